//! Split virtqueues in memory. Virtio 1.2 section 2.7.

use bitfield_struct::bitfield;

/// Bytes of a descriptor. Virtio 1.2 section 2.7.5.
pub(crate) const DESCRIPTOR: usize = 16;

/// Offsets in the available ring, in bytes. Virtio 1.2 section 2.7.6.
pub(crate) mod available {
    pub(crate) const FLAGS: u64 = 0;
    pub(crate) const INDEX: u64 = 2;
    pub(crate) const RING: u64 = 4;
    /// Bytes of an entry; `used_event` follows the last.
    pub(crate) const ENTRY: u64 = 2;
    /// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
    pub(crate) const NO_INTERRUPT: u64 = 1;
}

/// Offsets in the used ring, in bytes. Virtio 1.2 section 2.7.8.
pub(crate) mod used {
    pub(crate) const FLAGS: u64 = 0;
    pub(crate) const INDEX: u64 = 2;
    pub(crate) const RING: u64 = 4;
    /// Bytes of an entry; `avail_event` follows the last.
    pub(crate) const ENTRY: u64 = 8;
    /// `VIRTQ_USED_F_NO_NOTIFY`.
    pub(crate) const NO_NOTIFY: u64 = 1;
}

/// Flags of a descriptor (16-bit).
#[bitfield(u16)]
pub(crate) struct Flags {
    pub(crate) next: bool,
    /// The device writes, and does not read.
    pub(crate) write: bool,
    pub(crate) indirect: bool,
    #[bits(13)]
    __: u16,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: Flags,
    pub(crate) next: u16,
}

impl Descriptor {
    pub(crate) fn parse(bytes: [u8; DESCRIPTOR]) -> Self {
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            l0,
            l1,
            l2,
            l3,
            f0,
            f1,
            n0,
            n1,
        ] = bytes;
        Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: Flags::from_bits(u16::from_le_bytes([f0, f1])),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}
