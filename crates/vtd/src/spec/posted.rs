//! Posted interrupt descriptors: 64 bytes, aligned to 64. VT-d 4.1 section
//! 9.11.

use bitfield_struct::bitfield;

/// Bytes of each of the four words of PIR, the requests: one bit a vector,
/// from offset 0 on.
pub const REQUEST_WORD: u64 = 8;
/// Offset of [`Notification`].
pub const NOTIFICATION: u64 = 32;
/// Offsets of the words that are reserved.
pub const RESERVED_WORDS: [u64; 3] = [40, 48, 56];

/// Bits 319:256 of a descriptor: how its owner is told.
#[rustfmt::skip]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Notification {
    /// ON: a notification is on its way and has not been taken.
    pub outstanding: bool,
    /// SN: notifications of requests that are not urgent are suppressed.
    pub suppressed: bool,
    #[bits(14)] __: u16,
    /// NV: the vector of the notification.
    pub vector: u8,
    __: u8,
    /// NDST: the processor that is notified: an x2APIC id in extended
    /// interrupt mode, else bits 15:8 are an xAPIC id.
    pub destination: u32,
}

impl Notification {
    /// Bits that must be clear.
    pub const RESERVED: u64 = 0xff00_fffc;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_at_the_bits_that_section_9_11_gives() {
        let word = Notification::from_bits(0x0000_5a00_00f2_0001);
        assert!(word.outstanding() && !word.suppressed());
        assert_eq!((word.vector(), word.destination()), (0xf2, 0x5a00));
        let all = Notification::new()
            .with_outstanding(true)
            .with_suppressed(true)
            .with_vector(0xff)
            .with_destination(u32::MAX);
        assert_eq!(all.into_bits() ^ Notification::RESERVED, u64::MAX);
    }
}
