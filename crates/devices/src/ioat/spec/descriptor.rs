//! Descriptors in memory: 64 bytes, a list linked by bus addresses. Datasheet
//! section "Descriptor Formats".

use bitfield_struct::bitfield;

/// Bytes of a descriptor, and its alignment.
pub(crate) const SIZE: u64 = 64;

/// Operations.
pub(crate) mod operation {
    /// Copy.
    pub(crate) const COPY: u8 = 0x00;
    /// Fill with eight bytes, over and over.
    pub(crate) const FILL: u8 = 0x01;
}

/// Descriptor Control (offset 0x04 of a descriptor, 32-bit).
#[bitfield(u32)]
pub(crate) struct Control {
    /// Interrupt when done.
    pub(crate) interrupt: bool,
    #[bits(2)]
    __: u8,
    /// Write the status to the completion address when done.
    pub(crate) completion: bool,
    /// Done before the next begins: always so here.
    pub(crate) fence: bool,
    /// Moves nothing.
    pub(crate) null: bool,
    #[bits(18)]
    __: u32,
    pub(crate) operation: u8,
}

/// A copy or a fill.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    /// Bytes.
    pub(crate) size: u32,
    pub(crate) control: Control,
    /// The source address; for a fill the pattern.
    pub(crate) source: u64,
    pub(crate) destination: u64,
    pub(crate) next: u64,
}

impl Descriptor {
    pub(crate) fn parse(bytes: &[u8; 64]) -> Self {
        let (qwords, _) = bytes.as_chunks::<8>();
        let mut qwords = qwords.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut qword = || qwords.next().unwrap_or_default();
        let [s0, s1, s2, s3, c0, c1, c2, c3] = qword().to_le_bytes();
        Self {
            size: u32::from_le_bytes([s0, s1, s2, s3]),
            control: Control::from_bits(u32::from_le_bytes([c0, c1, c2, c3])),
            source: qword(),
            destination: qword(),
            next: qword(),
        }
    }
}
