//! Where mappings end and how often pages are pinned. Linux
//! `drivers/iommu/iommufd/selftest.c`, `iommufd_test_md_check_pa` and
//! `iommufd_test_md_check_refs`.

use iogate_dma::Rights;
use iogate_host::iommufd::{Failure, Outcome, Outside};
use iogate_host::{Error, ErrorKind};
use iogate_space::Segment;

use crate::{Call, mock, span};

/// The processor's page size, in bytes.
const PAGE: u64 = 4096;
/// Bytes that one operation looks at.
pub(crate) const MOST: u64 = 1 << 30;

/// IOMMU_TEST_OP_MD_CHECK_MAP: whether `length` bytes from `iova` on of a page
/// table are those of the program's memory: EINVAL, EFAULT.
pub(crate) fn map(call: &Call<'_>) -> Result<Outcome, Failure> {
    let argument = &call.argument;
    let (iova, length, address) = (argument.quad(16), argument.quad(24), argument.quad(32));
    if [iova, length, address]
        .iter()
        .any(|word| word % mock::PAGE != 0)
        || length > MOST
    {
        return Err(Error::invalid("not whole pages").into());
    }
    let reached = call
        .host
        .hwpt_translate(call.file, argument.id(), span(iova, length)?)?;
    let expected = memory(call.program, address, length)?;
    match joined(&reached) == joined(&expected) {
        true => Ok(Outcome::default()),
        false => Err(Error::invalid("the page table maps something else").into()),
    }
}

/// IOMMU_TEST_OP_MD_CHECK_REFS: whether each of the program's pages is pinned
/// so many times: EIO.
pub(crate) fn refs(call: &Call<'_>) -> Result<Outcome, Failure> {
    let argument = &call.argument;
    let (length, address, expected) = (argument.quad(16), argument.quad(24), argument.word(32));
    if length % PAGE != 0 || address % PAGE != 0 || length > MOST {
        return Err(Error::invalid("not whole pages").into());
    }
    if length == 0 {
        return Ok(Outcome::default());
    }
    let pages = memory(call.program, address, length)?;
    let counts = call.host.pin_counts(&pages);
    match counts.iter().all(|count| *count == expected) {
        true => Ok(Outcome::default()),
        false => Err(Error::new(ErrorKind::Io, "a page is pinned another number of times").into()),
    }
}

/// Where the program's bytes are.
pub(crate) fn memory(
    program: &dyn Outside,
    address: u64,
    length: u64,
) -> Result<Vec<Segment>, Error> {
    let pages = program.pages(address, length);
    // As a mapping for writes would have it, if it can: a file that is mapped
    // for reading and for writing is reached by two ways.
    let pinned = pages.pin(0, length, Rights::READ_WRITE);
    let pinned = pinned.or_else(|_| pages.pin(0, length, Rights::READ));
    let pinned =
        pinned.map_err(|_| Error::new(ErrorKind::Fault, "the program has no memory there"))?;
    Ok(pinned.segments().to_vec())
}

/// The same with as few segments as can be.
pub(crate) fn joined(segments: &[Segment]) -> Vec<Segment> {
    let mut joined: Vec<Segment> = Vec::new();
    for segment in segments {
        match joined.last_mut() {
            Some(last) if last.output.checked_add(last.length) == Some(segment.output) => {
                last.length = last.length.saturating_add(segment.length);
            }
            _ => joined.push(*segment),
        }
    }
    joined
}
