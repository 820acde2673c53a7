//! Virtio over PCI: where the structures stand. Virtio 1.2 sections 4.1.2 and
//! 4.1.4.

/// Vendor and device of a network device: 0x1040 plus the device type 1.
/// Virtio 1.2 section 4.1.2.1.
pub(crate) const VENDOR: u16 = 0x1af4;
pub(crate) const DEVICE: u16 = 0x1041;
pub(crate) const REVISION: u8 = 1;

/// The BAR of all structures but MSI-X.
pub(crate) const BAR: u8 = 4;
pub(crate) const BAR_SIZE: u64 = 0x4000;
/// The BAR of the MSI-X structures.
pub(crate) const MSIX_BAR: u8 = 1;
pub(crate) const MSIX_BAR_SIZE: u64 = 0x1000;
pub(crate) const PENDING: u32 = 0x800;

/// A structure in the BAR: `cfg_type`, offset and length. Virtio 1.2 section
/// 4.1.4.
#[derive(Clone, Copy)]
pub(crate) struct Structure {
    pub(crate) kind: u8,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

impl Structure {
    /// The offset in the structure of a BAR access at `offset`; `None` below
    /// it.
    pub(crate) fn at(&self, offset: u64) -> Option<u64> {
        offset.checked_sub(self.offset.into())
    }
}

/// One page each, so that a host may tell them apart.
pub(crate) const COMMON: Structure = Structure {
    kind: 1,
    offset: 0x0000,
    length: 0x38,
};
pub(crate) const NOTIFY: Structure = Structure {
    kind: 2,
    offset: 0x3000,
    length: 0x1000,
};
pub(crate) const ISR: Structure = Structure {
    kind: 3,
    offset: 0x1000,
    length: 0x1,
};
pub(crate) const DEVICE_SPECIFIC: Structure = Structure {
    kind: 4,
    offset: 0x2000,
    length: 0x0c,
};

/// `notify_off_multiplier`: bytes between the places of two queues. Virtio
/// 1.2 section 4.1.4.4.
pub(crate) const NOTIFY_MULTIPLIER: u32 = 4;

/// `VIRTIO_PCI_CAP_PCI_CFG`: a window to a BAR. Virtio 1.2 section 4.1.4.9.
pub(crate) const WINDOW: u8 = 5;
/// Offsets in that capability, in bytes.
pub(crate) mod window {
    pub(crate) const BAR: u64 = 4;
    pub(crate) const OFFSET: u64 = 8;
    pub(crate) const LENGTH: u64 = 12;
    pub(crate) const DATA: u64 = 16;
}

/// The body of a capability, after the id and the next pointer: its length,
/// `cfg_type`, BAR, an id and padding, offset, length, and what follows.
pub(crate) fn capability(structure: Structure, bar: u8, more: &[u8]) -> Vec<u8> {
    let length = more.len().saturating_add(16);
    let length = u8::try_from(length).unwrap_or(u8::MAX);
    let mut body = vec![length, structure.kind, bar, 0, 0, 0];
    body.extend(structure.offset.to_le_bytes());
    body.extend(structure.length.to_le_bytes());
    body.extend(more);
    body
}
