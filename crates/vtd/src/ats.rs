//! Translations that devices keep: invalidated in their device-TLBs. VT-d 4.1
//! sections 4.1 and 6.5.2.5.

use std::collections::BTreeMap;
use std::sync::{PoisonError, Weak};

use iogate_dma::{DeviceTlb, DeviceTlbError, RequesterId, Span, TlbScope};

use crate::Vtd;

/// What a device is to drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DeviceInvalidation {
    pub(crate) source: RequesterId,
    pub(crate) scope: TlbScope,
    pub(crate) span: Span,
}

/// The devices that keep translations.
pub(crate) type DeviceTlbs = BTreeMap<RequesterId, Weak<dyn DeviceTlb>>;

impl Vtd {
    /// Has `device` drop translations when the guest says that `function` has
    /// to, until it is dropped or another one takes its place.
    pub fn set_device_tlb(&self, function: RequesterId, device: Weak<dyn DeviceTlb>) {
        let mut devices = self
            .device_tlbs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        devices.retain(|_, device| device.strong_count() > 0);
        devices.insert(function, device);
    }

    /// Has the device drop translations, and waits until nothing uses them. A
    /// function that keeps none has none to drop.
    pub(crate) fn invalidate_device_tlb(
        &self,
        invalidation: &DeviceInvalidation,
    ) -> Result<(), DeviceTlbError> {
        let devices = self
            .device_tlbs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let device = devices.get(&invalidation.source).and_then(Weak::upgrade);
        drop(devices);
        let Some(device) = device else {
            return Ok(());
        };
        let result = device.invalidate(invalidation.scope, invalidation.span);
        self.gate.grace().wait();
        result
    }
}
