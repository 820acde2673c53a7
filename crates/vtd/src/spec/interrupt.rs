//! Interrupt messages as functions write them. VT-d 4.1 section 5.1.2.

use bitfield_struct::bitfield;
use iogate_dma::Message;

/// The address of a message. VT-d 4.1 section 5.1.2.2 for the remappable
/// format.
#[rustfmt::skip]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MessageAddress {
    #[bits(2)] __: u8,
    /// Bit 15 of the handle.
    pub handle_high: bool,
    /// SHV: the data's low half is added to the handle.
    pub subhandle_valid: bool,
    /// Interrupt format: set in the remappable one, clear in the compatibility
    /// one.
    pub remappable: bool,
    /// Bits 14:0 of the handle.
    #[bits(15)] pub handle_low: u16,
    /// Always 0xfee.
    #[bits(12)] pub head: u16,
}

/// A message, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// The write is no interrupt: its address is not fee00000-feefffff.
    NoInterrupt,
    /// Compatibility format: what it says is what processors get.
    Compatibility,
    /// Remappable format.
    Remappable {
        /// The entry it asks for: handle, plus subhandle if that is valid. As
        /// their sum it may be beyond every table.
        index: u32,
        /// Whether it sets bits that are reserved: the data's high half, when
        /// the subhandle is valid.
        reserved: bool,
    },
}

impl Format {
    /// Decodes a message. Bits 1:0 of the address do not count.
    #[inline(always)]
    pub const fn of(message: Message) -> Self {
        if message.address >> 20 != 0xfee {
            return Self::NoInterrupt;
        }
        // The address is below 2^32, as was just seen.
        #[allow(clippy::cast_possible_truncation)]
        let address = MessageAddress::from_bits(message.address as u32);
        if !address.remappable() {
            return Self::Compatibility;
        }
        let handle = (address.handle_high() as u32) << 15 | address.handle_low() as u32;
        if address.subhandle_valid() {
            Self::Remappable {
                index: handle.saturating_add(message.data & 0xffff),
                reserved: message.data >> 16 != 0,
            }
        } else {
            Self::Remappable {
                index: handle,
                reserved: false,
            }
        }
    }
}

/// An interrupt on its way to processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt {
    /// Whether the destination is a logical one.
    pub logical: bool,
    /// Whether one processor of several is chosen.
    pub redirection_hint: bool,
    /// Whether it is level-triggered.
    pub level: bool,
    /// Delivery mode, 0-7. Intel SDM volume 3 section 12.11.2.
    pub delivery_mode: u8,
    /// The vector.
    pub vector: u8,
    /// An xAPIC id, 0-255, or an x2APIC id.
    pub destination: u32,
}

impl Interrupt {
    /// The message in compatibility format that says this. Bits 31:8 of the
    /// destination stand in bits 63:40 of the address, as KVM's x2APIC format
    /// has them (Linux `Documentation/virt/kvm/api.rst`,
    /// `KVM_CAP_X2APIC_API`); they are clear for every xAPIC id.
    #[inline(always)]
    pub const fn message(self) -> Message {
        let destination = self.destination as u64;
        let address = 0xfee0_0000
            | (destination & 0xff) << 12
            | (destination & 0xffff_ff00) << 32
            | (self.redirection_hint as u64) << 3
            | (self.logical as u64) << 2;
        let data = self.vector as u32
            | (self.delivery_mode as u32 & 7) << 8
            | 1 << 14
            | (self.level as u32) << 15;
        Message { address, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(address: u64, data: u32) -> Format {
        Format::of(Message { address, data })
    }

    fn index(index: u32) -> Format {
        Format::Remappable {
            index,
            reserved: false,
        }
    }

    /// Section 5.1.2.2.
    #[test]
    fn the_handle_is_bits_19_to_5_and_bit_2_above_them() {
        assert_eq!(format(0xfee0_0010, 0), index(0));
        assert_eq!(format(0xfee0_0030, 0), index(1));
        assert_eq!(format(0xfeef_fff0, 0), index(0x7fff));
        assert_eq!(format(0xfee0_0014, 0), index(0x8000));
        assert_eq!(format(0xfeef_fff4, u32::MAX), index(0xffff));
    }

    /// Section 5.1.2.2: data counts when SHV is set only.
    #[test]
    fn a_valid_subhandle_is_added_to_the_handle() {
        assert_eq!(format(0xfee0_0038, 5), index(6));
        assert_eq!(format(0xfee0_0030, 5), index(1));
        assert_eq!(format(0xfeef_fffc, 0xffff), index(0x1_fffe));
        let reserved = Format::Remappable {
            index: 6,
            reserved: true,
        };
        assert_eq!(format(0xfee0_0038, 0x1_0005), reserved);
        assert_eq!(format(0xfee0_0030, 0xffff_0005), index(1));
    }

    #[test]
    fn the_lowest_bits_of_the_address_do_not_count() {
        assert_eq!(format(0xfee0_0033, 0), index(1));
    }

    #[test]
    fn what_is_not_written_to_fee00000_feefffff_is_no_interrupt() {
        for address in [0, 0xfedf_fff0, 0xfef0_0010, 0x1_fee0_0010] {
            assert_eq!(format(address, 0), Format::NoInterrupt);
        }
        assert_eq!(format(0xfee0_000c, 0), Format::Compatibility);
    }

    /// Intel SDM volume 3 section 12.11.
    #[test]
    fn an_interrupt_is_said_as_the_message_that_makes_it() {
        let interrupt = Interrupt {
            logical: false,
            redirection_hint: false,
            level: false,
            delivery_mode: 0,
            vector: 0x31,
            destination: 0x5a,
        };
        let message = |address, data| Message { address, data };
        assert_eq!(interrupt.message(), message(0xfee5_a000, 0x4031));
        let other = Interrupt {
            logical: true,
            redirection_hint: true,
            level: true,
            delivery_mode: 1,
            destination: 0x1234_5678,
            ..interrupt
        };
        assert_eq!(other.message(), message(0x1234_5600_fee7_800c, 0xc131));
    }
}
