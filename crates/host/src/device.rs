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
    /// Its PCI address.
    pub source: Source,
    /// Its name in `GROUP_GET_DEVICE_FD`: the address in text.
    pub name: String,
    /// The number of its group.
    pub group: u32,
    /// The N of `/dev/vfio/devices/vfioN`.
    pub cdev: u32,
    /// The model.
    pub function: Arc<dyn Function>,
    /// What its requests enter.
    pub attachment: Arc<Attachment>,
    /// The unit that it stands behind.
    pub iommu: Arc<Iommu>,
}
