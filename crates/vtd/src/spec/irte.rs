//! Interrupt remapping table entries. VT-d 4.1 sections 9.9 and 9.10.

use bitfield_struct::bitfield;
use iogate_dma::RequesterId;

/// Bytes of an entry.
pub const BYTES: u64 = 16;

/// An entry as it stands in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Irte {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

impl Irte {
    /// Whether it is Present.
    pub const fn is_present(self) -> bool {
        RemappedLow::from_bits(self.low).present()
    }

    /// Fault Processing Disable: faults qualified by it are not recorded. Looked
    /// at whether the entry is present or not.
    pub const fn is_silent(self) -> bool {
        RemappedLow::from_bits(self.low).fault_processing_disable()
    }

    /// IRTE Mode: whether the entry has the posted format.
    pub const fn is_posted(self) -> bool {
        RemappedLow::from_bits(self.low).posted()
    }

    /// Who may use the entry.
    pub const fn source(self) -> SourceCheck {
        SourceCheck::from_bits(self.high)
    }
}

/// Bits 63:0 of an entry for remapped interrupts. VT-d 4.1 section 9.9.
#[rustfmt::skip]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RemappedLow {
    /// P: the entry is valid.
    pub present: bool,
    /// FPD: some faults of it are not recorded.
    pub fault_processing_disable: bool,
    /// DM: the destination is a logical one.
    pub logical: bool,
    /// RH: one processor of several is chosen.
    pub redirection_hint: bool,
    /// TM: the interrupt is level-triggered.
    pub level: bool,
    /// DLM: delivery mode, as in a message's data.
    #[bits(3)] pub delivery_mode: u8,
    /// AVAIL: software's own.
    #[bits(4)] pub available: u8,
    #[bits(3)] __: u8,
    /// IM: the entry has the posted format.
    pub posted: bool,
    /// V: the vector.
    pub vector: u8,
    __: u8,
    /// DST: all of it is an x2APIC id in extended interrupt mode; else bits
    /// 15:8 are an xAPIC id and the rest is reserved.
    pub destination: u32,
}

impl RemappedLow {
    /// Bits that must be clear in extended interrupt mode.
    pub const RESERVED: u64 = 0xff00_7000;
    /// Bits that must be clear besides in xAPIC mode.
    pub const RESERVED_XAPIC: u64 = 0xffff_00ff_0000_0000;
}

/// Bits 63:0 of an entry for posted interrupts. VT-d 4.1 section 9.10.
#[rustfmt::skip]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PostedLow {
    /// P: the entry is valid.
    pub present: bool,
    /// FPD: some faults of it are not recorded.
    pub fault_processing_disable: bool,
    #[bits(6)] __: u8,
    /// AVAIL: software's own.
    #[bits(4)] pub available: u8,
    #[bits(2)] __: u8,
    /// URG: notify although the descriptor suppresses notifications.
    pub urgent: bool,
    /// IM: the entry has the posted format.
    pub posted: bool,
    /// VV: the vector that is posted.
    pub vector: u8,
    #[bits(14)] __: u16,
    /// PDA-L: bits 31:6 of the descriptor's address.
    #[bits(26)] pub descriptor_low: u32,
}

impl PostedLow {
    /// Bits that must be clear.
    pub const RESERVED: u64 = 0x3f_ff00_30fc;
}

/// Bits 127:64 of an entry: which sources may use it. VT-d 4.1 section 9.9; the
/// top half is reserved there, and in section 9.10 a part of an address.
#[rustfmt::skip]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct SourceCheck {
    /// SID: a requester id, or the first and the last bus of a range.
    pub id: u16,
    /// SQ: which bits of the function number are not compared.
    #[bits(2)] pub qualifier: u8,
    /// SVT: what is verified.
    #[bits(2)] pub kind: u8,
    #[bits(12)] __: u16,
    /// PDA-H: bits 63:32 of the descriptor's address, in the posted format.
    pub descriptor_high: u32,
}

impl SourceCheck {
    /// Bits that must be clear in the remapped format.
    pub const RESERVED: u64 = 0xffff_ffff_fff0_0000;
    /// Bits that must be clear in the posted format.
    pub const RESERVED_POSTED: u64 = 0xfff0_0000;
    /// Bits of the function number that each qualifier leaves out, a digit each.
    const IGNORED: u16 = 0x7640;

    /// Whether `source` may use the entry. The type of verification that
    /// section 9.9 reserves lets nobody in.
    #[inline(always)]
    pub const fn admits(self, source: RequesterId) -> bool {
        if self.kind() != 1 {
            return self.admits_bus(source);
        }
        let ignored = (Self::IGNORED >> (self.qualifier() << 2)) & 0b111;
        (source.0 ^ self.id()) & !ignored == 0
    }

    const fn admits_bus(self, source: RequesterId) -> bool {
        let [first, last] = self.id().to_be_bytes();
        let [bus, _] = source.0.to_be_bytes();
        match self.kind() {
            0 => true,
            2 => first <= bus && bus <= last,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_and_reserved_bits_of_each_format_cover_it_once() {
        let remapped = RemappedLow::new()
            .with_present(true)
            .with_fault_processing_disable(true)
            .with_logical(true)
            .with_redirection_hint(true)
            .with_level(true)
            .with_delivery_mode(7)
            .with_available(15)
            .with_posted(true)
            .with_vector(0xff)
            .with_destination(u32::MAX)
            .into_bits();
        assert_eq!(remapped ^ RemappedLow::RESERVED, u64::MAX);
        let posted = PostedLow::new()
            .with_present(true)
            .with_fault_processing_disable(true)
            .with_available(15)
            .with_urgent(true)
            .with_posted(true)
            .with_vector(0xff)
            .with_descriptor_low(0x3ff_ffff)
            .into_bits();
        assert_eq!(posted ^ PostedLow::RESERVED, u64::MAX);
        let source = SourceCheck::new()
            .with_id(0xffff)
            .with_qualifier(3)
            .with_kind(3)
            .into_bits();
        assert_eq!(source ^ SourceCheck::RESERVED, u64::MAX);
    }

    #[test]
    fn fields_stand_at_the_bits_that_sections_9_9_and_9_10_give() {
        let low = RemappedLow::from_bits(0x0000_5a00_0031_0cb5);
        assert!(low.present() && low.logical() && low.level());
        assert!(!low.redirection_hint() && !low.posted());
        assert_eq!(
            (low.delivery_mode(), low.available(), low.vector()),
            (5, 12, 0x31)
        );
        assert_eq!(low.destination(), 0x5a00);
        let low = PostedLow::from_bits(0x8000_0040_0022_c001);
        assert!(low.urgent() && low.posted());
        assert_eq!((low.vector(), low.descriptor_low()), (0x22, 0x200_0001));
        let high = SourceCheck::from_bits(0x1234_5678_0006_1f2e);
        assert_eq!((high.id(), high.qualifier(), high.kind()), (0x1f2e, 2, 1));
        assert_eq!(high.descriptor_high(), 0x1234_5678);
    }

    /// Section 9.9, field SQ: the bits of the function number left out.
    #[test]
    fn a_qualifier_leaves_out_bits_of_the_function_number() {
        let admitted = |qualifier| {
            let check = SourceCheck::new()
                .with_kind(1)
                .with_qualifier(qualifier)
                .with_id(0x1235);
            (0..=u16::MAX)
                .filter(|id| check.admits(RequesterId(*id)))
                .collect::<Vec<u16>>()
        };
        assert_eq!(admitted(0), [0x1235]);
        assert_eq!(admitted(1), [0x1231, 0x1235]);
        assert_eq!(admitted(2), [0x1231, 0x1233, 0x1235, 0x1237]);
        assert_eq!(admitted(3), (0x1230..=0x1237).collect::<Vec<u16>>());
    }

    /// Section 9.9, field SID: the first bus is the high byte.
    #[test]
    fn a_bus_range_has_its_first_bus_in_the_high_byte() {
        let check = |id| {
            SourceCheck::new()
                .with_kind(2)
                .with_qualifier(3)
                .with_id(id)
        };
        let admitted = |id| {
            (0..=255_u16)
                .filter(|bus| check(id).admits(RequesterId(bus << 8 | 0x55)))
                .collect::<Vec<u16>>()
        };
        assert_eq!(admitted(0x0406), [4, 5, 6]);
        assert_eq!(admitted(0x0404), [4]);
        assert!(admitted(0x0604).is_empty());
    }

    #[test]
    fn no_verification_admits_all_and_the_reserved_one_nobody() {
        let check = |kind| SourceCheck::new().with_kind(kind).with_id(7);
        assert!(check(0).admits(RequesterId(0xffff)));
        assert!(!check(3).admits(RequesterId(7)));
    }
}
