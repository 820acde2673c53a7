//! Operations on an iommufd that only some sessions offer, injected by whoever
//! builds the host.

use std::sync::Arc;

use super::Failure;
use crate::{Caller, Error, FileId, Host, Pages, Retired};

/// The program that makes a call: its memory and descriptors.
pub trait Outside: Caller {
    /// Fills `into` from the program's `address`: EFAULT.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Error>;

    /// Writes `from` to the program's `address`: EFAULT.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Error>;

    /// Which of our files descriptor `fd` is, if it is one: EBADF.
    fn file(&self, fd: i32) -> Result<Option<FileId>, Error>;

    /// The program's `length` bytes from `address` on.
    fn pages(&self, address: u64, length: u64) -> Arc<dyn Pages>;

    /// Gives the program a descriptor for one of our files; on an error, which
    /// is that of the program's table of descriptors, the caller closes it.
    fn install(&self, file: FileId) -> Result<i32, Error>;
}

/// What an operation comes to, when it is not an errno.
#[derive(Default)]
#[must_use = "what is retired must be waited for"]
pub struct Outcome {
    /// The return value.
    pub value: i64,
    /// What is left to be done.
    pub retired: Retired,
}

impl From<Retired> for Outcome {
    fn from(retired: Retired) -> Self {
        Self { value: 0, retired }
    }
}

/// Operations on an iommufd beyond the kernel's usual ones: what a kernel built
/// with CONFIG_IOMMUFD_TEST answers as IOMMU_TEST_CMD.
pub trait Extension: Send + Sync {
    /// One operation. `argument` is a copy of the program's structure, and is
    /// written back to it unless the operation fails.
    fn call(
        &self,
        host: &Host,
        file: FileId,
        argument: &mut [u8; 72],
        program: &dyn Outside,
    ) -> Result<Outcome, Failure>;
}
