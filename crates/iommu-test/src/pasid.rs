//! PASIDs of mock devices. Linux `drivers/iommu/iommufd/selftest.c`,
//! `iommufd_test_pasid_attach` and what follows it.

use iogate_host::Error;
use iogate_host::iommufd::{Failure, Outcome, PasidChange};

use crate::{Call, leaves};

/// IOMMU_TEST_OP_PASID_ATTACH and IOMMU_TEST_OP_PASID_REPLACE.
pub(crate) fn attach(call: &Call<'_>, change: PasidChange) -> Result<Outcome, Failure> {
    let argument = &call.argument;
    let (pasid, pt) = (argument.word(16), argument.word(20));
    let host = call.host;
    let retired = host.pasid_attach(call.file, argument.id(), pasid, pt, change)?;
    Ok(leaves(retired))
}

/// IOMMU_TEST_OP_PASID_DETACH.
pub(crate) fn detach(call: &Call<'_>) -> Result<Outcome, Failure> {
    let argument = &call.argument;
    let host = call.host;
    let retired = host.pasid_detach(call.file, argument.id(), argument.word(16))?;
    Ok(leaves(retired))
}

/// IOMMU_TEST_OP_PASID_CHECK_HWPT: EINVAL if another page table is attached, or
/// any where 0 is expected.
pub(crate) fn check(call: &Call<'_>) -> Result<Outcome, Failure> {
    let argument = &call.argument;
    let (pasid, expected) = (argument.word(16), argument.word(20));
    let hwpt = call.host.pasid_hwpt(call.file, argument.id(), pasid)?;
    match hwpt.unwrap_or(0) == expected {
        true => Ok(Outcome::default()),
        false => Err(Error::invalid("the PASID has another page table").into()),
    }
}
