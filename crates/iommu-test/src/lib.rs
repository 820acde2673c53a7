//! The kernel's test interface of iommufd: what `/dev/iommu` of a kernel built
//! with CONFIG_IOMMUFD_TEST answers to IOMMU_TEST_CMD (0x3ba0), so that tests
//! written for such a kernel run against the object model of `iogate-host`.
//! Linux `drivers/iommu/iommufd/selftest.c`.
//!
//! | file | operations |
//! |---|---|
//! | `argument` | where the fields of the structure are |
//! | `mock` | devices and their unit: 2, 10, 12, 16 |
//! | `check` | where mappings end, how often pages are pinned: 3, 4 |
//! | `access` | accesses: 5-8, 11 |
//! | `dirty` | pages that a device wrote: 13 |
//! | `fault` | pages that a device asks for: 15 |
//! | `pasid` | page tables by PASID: 18-21 |
//! | `buffer` | buffers of a device's memory, which none stands behind: 22, 23 |
//!
//! 1 reserves a range, 9 sets a limit that has no meaning here. 14 and 17 are
//! ENOENT: there are no nested page tables and no virtual IOMMUs to ask about.
#![forbid(unsafe_code)]
#![warn(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

mod access;
mod argument;
mod buffer;
mod check;
mod dirty;
mod fault;
mod mock;
mod pasid;

use std::sync::Arc;

use iogate_dma::{Iova, Span};
use iogate_host::iommufd::{Extension, Failure, Outcome, Outside, PasidChange};
use iogate_host::{Error, ErrorKind, FileId, Host, Iommu, Retired};

use argument::Argument;

/// The test interface; see the crate's documentation.
pub struct TestInterface {
    /// The unit that all mock devices stand behind.
    iommu: Arc<Iommu>,
}

impl TestInterface {
    /// The test interface of a session.
    pub fn new() -> Self {
        Self {
            iommu: Arc::new(mock::iommu()),
        }
    }
}

impl Default for TestInterface {
    fn default() -> Self {
        Self::new()
    }
}

impl Extension for TestInterface {
    fn call(
        &self,
        host: &Host,
        file: FileId,
        argument: &mut [u8; 72],
        program: &dyn Outside,
    ) -> Result<Outcome, Failure> {
        let mut call = Call {
            host,
            file,
            program,
            argument: Argument(argument),
        };
        match call.argument.op() {
            1 => call.add_reserved(),
            2 => mock::create(&self.iommu, &mut call, 0),
            3 => check::map(&call),
            4 => check::refs(&call),
            5 => access::create(&mut call),
            6 => access::unpin(&call),
            7 => access::pin(&mut call),
            8 => access::read_or_write(&call),
            9 => call.set_memory_limit(),
            10 => mock::replace(&mut call),
            11 => access::replace(&call),
            12 => {
                let flags = call.argument.word(28);
                mock::create(&self.iommu, &mut call, flags)
            }
            13 => dirty::set(&mut call),
            15 => fault::trigger(&call),
            14 => Err(NOT_NESTED.into()),
            16 => mock::check_cache(&call),
            17 => {
                host.iommufd_unit(file, call.argument.word(16))?;
                Err(NO_VIOMMU.into())
            }
            18 => pasid::attach(&call, PasidChange::Attach),
            19 => pasid::attach(&call, PasidChange::Replace),
            20 => pasid::detach(&call),
            21 => pasid::check(&call),
            22 => buffer::create(&call),
            23 => buffer::revoke(&call),
            _ => Err(UNSUPPORTED.into()),
        }
    }
}

/// One operation.
struct Call<'c> {
    host: &'c Host,
    file: FileId,
    program: &'c dyn Outside,
    argument: Argument<'c>,
}

const UNSUPPORTED: Error = Error::new(ErrorKind::Unsupported, "no such test operation or flag");

const NOT_NESTED: Error = Error::new(
    ErrorKind::NotFound,
    "the iommufd has no nested page table with this id",
);
const NO_VIOMMU: Error = Error::new(
    ErrorKind::NotFound,
    "the device has no place in a virtual IOMMU",
);

impl Call<'_> {
    /// IOMMU_TEST_OP_ADD_RESERVED. `iommufd_test_add_reserved`.
    fn add_reserved(&self) -> Result<Outcome, Failure> {
        let (start, length) = (self.argument.quad(16), self.argument.quad(24));
        let span = span(start, length)?;
        self.host
            .ioas_reserve(self.file, self.argument.id(), span)?;
        Ok(Outcome::default())
    }

    /// IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT: how much the kernel allocates at a
    /// time, which is not modelled; 12 bytes at least.
    fn set_memory_limit(&self) -> Result<Outcome, Failure> {
        match self.argument.word(16) {
            0..12 => Err(Error::invalid("the limit is too low").into()),
            _ => Ok(Outcome::default()),
        }
    }
}

/// EINVAL for an empty range, EOVERFLOW for one that wraps.
fn span(start: u64, length: u64) -> Result<Span, Error> {
    if length == 0 {
        return Err(Error::invalid("the range is empty"));
    }
    Span::with_length(Iova(start), length).ok_or(Error::new(
        ErrorKind::Overflow,
        "the range passes the top of the address space",
    ))
}

/// An outcome that leaves only this to be done.
fn leaves(retired: Retired) -> Outcome {
    retired.into()
}
