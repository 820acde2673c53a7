//! Devices without IOMMU: who may use them, and what their requests meet.
//! Linux `drivers/vfio/container.c`, `vfio_noiommu_ops`, and
//! `drivers/vfio/group.c`.

use iogate_dma::{Fault, FaultReason, InFlight, Outcome, Request, Translate};

use crate::{Caller, Error, ErrorKind, Group, Host};

/// What a device without IOMMU makes its requests in: all of memory, by
/// addresses that only the machine's kernel knows the meaning of. Each is
/// refused.
pub(crate) struct PhysicalMemory;

impl Translate for PhysicalMemory {
    fn translate<'g>(
        &'g self,
        _guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        Err(Fault {
            source_id: request.source,
            span: request.span,
            access: request.access,
            reason: FaultReason::Physical,
            walk: None,
            recoverable: false,
        })
    }
}

/// EPERM without CAP_SYS_RAWIO.
pub(crate) fn check_raw_io(caller: &dyn Caller) -> Result<(), Error> {
    match caller.has_raw_io() {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::NotPermitted,
            "a device without IOMMU needs CAP_SYS_RAWIO",
        )),
    }
}

impl Host {
    /// Whether the group's device has no IOMMU.
    pub(crate) fn has_no_iommu(&self, group: &Group) -> bool {
        let members = group.members.iter();
        let mut devices = members.filter_map(|index| self.device(*index).ok());
        devices.any(|device| device.has_no_iommu())
    }

    /// Whether the machine offers such devices: the parameter
    /// `enable_unsafe_noiommu_mode` of the module `vfio`.
    pub(crate) fn offers_no_iommu(&self) -> bool {
        let mut devices = self.config.devices.iter();
        devices.any(|device| device.has_no_iommu())
    }
}
