//! A function that can be assigned, as the whole object model shares it.

use std::sync::Arc;

use iogate_dma::{Attachment, Source};
use iogate_pci::Function;

use crate::Iommu;

/// A function bound to a VFIO driver. Immutable; the state of its open files
/// is kept by whoever opened them.
pub struct Device {
    /// Its index among the host's devices.
    pub index: usize,
    /// Its PCI address. A mediated device has none, and a number instead that
    /// no other has.
    pub source: Source,
    /// Its name in `GROUP_GET_DEVICE_FD`: the address in text, or the UUID of a
    /// mediated device.
    pub name: String,
    /// The number of its group.
    pub group: u32,
    /// The N of `/dev/vfio/devices/vfioN`.
    pub cdev: u32,
    /// The model.
    pub function: Arc<dyn Function>,
    /// What its requests enter.
    pub attachment: Arc<Attachment>,
    /// What stands between it and memory.
    pub translation: Translation,
}

/// What stands between a device and memory: the same for all of a group. Linux
/// `enum vfio_group_type`.
#[derive(Clone, Debug)]
pub enum Translation {
    /// A unit translates its requests.
    Unit(Arc<Iommu>),
    /// Nothing: the device is software, a mediated device, that reads and
    /// writes what an address space names by itself.
    Emulated,
    /// Nothing: its requests carry physical addresses.
    NoIommu,
}

impl Device {
    /// The unit that it stands behind.
    pub fn unit(&self) -> Option<&Arc<Iommu>> {
        match &self.translation {
            Translation::Unit(iommu) => Some(iommu),
            Translation::Emulated | Translation::NoIommu => None,
        }
    }

    /// Whether it is a mediated device.
    pub fn is_emulated(&self) -> bool {
        matches!(self.translation, Translation::Emulated)
    }

    /// Whether its requests carry physical addresses.
    pub fn has_no_iommu(&self) -> bool {
        matches!(self.translation, Translation::NoIommu)
    }
}
