//! Buffers of a mock device's memory. Linux
//! `drivers/iommu/iommufd/selftest.c`, `iommufd_test_dmabuf_get` and
//! `iommufd_test_dmabuf_revoke`.

use iogate_host::Error;
use iogate_host::iommufd::{Failure, Outcome};

use crate::Call;

/// IOMMU_TEST_OP_DMABUF_GET: the descriptor is the return value. It is closed
/// on exec whatever flags are asked for.
pub(crate) fn create(call: &Call<'_>) -> Result<Outcome, Failure> {
    let buffer = call.host.buffer_create(call.argument.word(16).into())?;
    let installed = call.program.install(buffer);
    let fd = installed.map_err(|error| Failure {
        error,
        retired: Box::new(call.host.close(buffer)),
    })?;
    Ok(Outcome {
        value: fd.into(),
        ..Outcome::default()
    })
}

/// IOMMU_TEST_OP_DMABUF_REVOKE: EINVAL for a descriptor that is no buffer.
pub(crate) fn revoke(call: &Call<'_>) -> Result<Outcome, Failure> {
    let argument = &call.argument;
    let buffer = call.program.file(argument.word(16).cast_signed())?;
    let buffer = buffer.ok_or(Error::invalid("the descriptor is no buffer"))?;
    call.host.buffer_revoke(buffer, argument.word(20) != 0)?;
    Ok(Outcome::default())
}
