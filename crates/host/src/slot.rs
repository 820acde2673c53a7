//! The state of one device's open files, shared by all of them. Linux
//! `drivers/vfio/pci/vfio_pci_core.c`, `struct vfio_pci_core_device`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Device, Error, Host, Retired};

/// One device and the lock of its state.
pub(crate) struct Slot {
    pub(crate) device: Arc<Device>,
    state: Mutex<DeviceState>,
}

/// What its open files share.
#[derive(Default)]
pub(crate) struct DeviceState {
    /// Open files that give access.
    pub(crate) opens: u32,
}

impl Slot {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        Self {
            device: Arc::clone(device),
            state: Mutex::default(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, DeviceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    /// One more file gives access to the device; the first resets and enables
    /// it. `vfio_df_open`, `vfio_pci_core_enable`.
    pub(crate) fn open_device(&self, index: usize) -> Result<(), Error> {
        let slot = self.slot(index)?;
        let mut state = slot.lock();
        state.opens = state.opens.saturating_add(1);
        Ok(())
    }

    /// One file less; the last silences the device. `vfio_df_close`,
    /// `vfio_pci_core_disable`.
    pub(crate) fn shut_device(&self, index: usize, _retired: &mut Retired) {
        let Ok(slot) = self.slot(index) else {
            return;
        };
        let mut state = slot.lock();
        state.opens = state.opens.saturating_sub(1);
    }
}
