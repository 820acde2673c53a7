//! Pages that a mock device asks for. Linux
//! `drivers/iommu/iommufd/selftest.c`, `iommufd_test_trigger_iopf`.

use iogate_host::iommufd::{Failure, Outcome, PageFault};

use crate::{Call, mock};

/// IOMMU_NO_PASID.
const NO_PASID: u32 = 0;

/// IOMMU_TEST_OP_TRIGGER_IOPF: a group of one page. That there is nobody to ask
/// is no error.
pub(crate) fn trigger(call: &Call<'_>) -> Result<Outcome, Failure> {
    let argument = &call.argument;
    let (device, pasid) = (argument.word(16), argument.word(20));
    mock::check(call, device)?;
    let fault = PageFault {
        pasid: (pasid != NO_PASID).then_some(pasid),
        group: argument.word(24),
        permissions: argument.word(28),
        address: argument.quad(32),
    };
    call.host.device_asks(call.file, device, vec![fault])?;
    Ok(Outcome::default())
}
