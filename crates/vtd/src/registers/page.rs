//! The page of registers: who stands where, and what a write may change. VT-d
//! 4.1 sections 11.2 and 11.4.

use crate::events::Part;
use crate::registers::Registers;
use crate::spec::registers::{Global, offset};

/// Bits of RTADDR that a guest can set; TTM with scalable mode only.
const ROOT_MODE: u64 = 3 << 10;
const PAGE: u64 = !0xfff;
/// Bits of IRTA: size, and EIME with extended interrupt mode only.
const TABLE_SIZE: u64 = 0xf;
const TABLE_EXTENDED: u64 = 1 << 11;
/// Bits of CCMD and of IOTLB, without what the unit alone sets.
const CONTEXT_COMMAND: u64 = 1 << 63 | 3 << 61 | 0x3_ffff_ffff;
const CONTEXT_ACTUAL: u64 = 3 << 59;
const IOTLB_COMMAND: u64 = 1 << 63 | 3 << 60 | 0x3_ffff << 32;
const IOTLB_ACTUAL: u64 = 3 << 57;
const INVALIDATE_ADDRESS: u64 = PAGE | 0x7f;

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// `old` with the dword that `at` is in replaced by `value`, in the bits of
/// `mask`.
fn replaced(old: u64, at: u16, value: u32, mask: u64) -> u64 {
    let value = u64::from(value);
    let new = match at & 4 {
        0 => old & 0xffff_ffff_0000_0000 | value,
        _ => old & 0xffff_ffff | value << 32,
    };
    new & mask
}

impl Registers {
    /// The 8 bytes at `slot`, a multiple of 8.
    pub(super) fn quad(&self, slot: u64) -> u64 {
        let Ok(slot) = u16::try_from(slot) else {
            return 0;
        };
        let has_queue = self.capabilities.has_queued_invalidation();
        match slot {
            offset::VER => self.capabilities.version().into(),
            offset::CAP => self.capabilities.capability_register(),
            offset::ECAP => self.capabilities.extended_capability_register(),
            // GCMD reads as zero; GSTS is the upper half.
            offset::GCMD => pair(0, self.status.into_bits()),
            offset::RTADDR => self.root,
            offset::CCMD => self.context_command,
            0x030 => pair(0, self.faults.status().into_bits()),
            offset::FECTL => self.fault_event.control_and_data(),
            0x040 => self.fault_event.address,
            offset::IQH if has_queue => self.queue.head.into(),
            offset::IQT if has_queue => self.queue.tail.into(),
            offset::IQA if has_queue => self.queue.address,
            0x098 if has_queue => pair(0, self.queue.completed.into()),
            offset::IECTL if has_queue => self.invalidation_event.control_and_data(),
            0x0a8 if has_queue => self.invalidation_event.address,
            offset::IQERCD if has_queue => self.queue.error.into_bits(),
            offset::IRTA => self.interrupt_table,
            // IVA reads as zero.
            offset::IOTLB => self.iotlb_command,
            _ => self.faults.quad(slot),
        }
    }

    /// The guest writes a dword at `at`, a multiple of 4.
    pub(super) fn write_dword(&mut self, at: u64, value: u32) {
        let Ok(at) = u16::try_from(at) else {
            return;
        };
        if !self.write_translation(at, value) && self.capabilities.has_queued_invalidation() {
            self.write_queue(at, value);
        }
    }

    /// Whether it was one of the registers that every unit has.
    fn write_translation(&mut self, at: u16, value: u32) -> bool {
        const RTADDR_HIGH: u16 = offset::RTADDR + 4;
        const CCMD_HIGH: u16 = offset::CCMD + 4;
        const IRTA_HIGH: u16 = offset::IRTA + 4;
        const IVA_HIGH: u16 = offset::IVA + 4;
        const IOTLB_HIGH: u16 = offset::IOTLB + 4;
        match at {
            offset::GCMD => self.write_command(Global::from_bits(value)),
            offset::RTADDR | RTADDR_HIGH => {
                let scalable = self.capabilities.is_scalable();
                let mask = PAGE | if scalable { ROOT_MODE } else { 0 };
                self.root = replaced(self.root, at, value, mask);
            }
            offset::CCMD | CCMD_HIGH => {
                let actual = self.context_command & CONTEXT_ACTUAL;
                let new = replaced(self.context_command, at, value, CONTEXT_COMMAND);
                self.context_command = new | actual;
            }
            offset::IRTA | IRTA_HIGH => {
                if self.capabilities.has_interrupt_remapping() {
                    let extended = self.capabilities.has_extended_interrupt_mode();
                    let mask = PAGE | TABLE_SIZE | if extended { TABLE_EXTENDED } else { 0 };
                    self.interrupt_table = replaced(self.interrupt_table, at, value, mask);
                }
            }
            offset::IVA | IVA_HIGH => {
                let new = replaced(self.invalidate_address, at, value, INVALIDATE_ADDRESS);
                self.invalidate_address = new;
            }
            offset::IOTLB | IOTLB_HIGH => {
                let actual = self.iotlb_command & IOTLB_ACTUAL;
                let new = replaced(self.iotlb_command, at, value, IOTLB_COMMAND);
                self.iotlb_command = new | actual;
            }
            offset::FSTS => self.write_fault_status(value),
            0x038..=0x044 => {
                let sent = self
                    .fault_event
                    .write(part(at.wrapping_sub(offset::FECTL)), value);
                self.outbox.extend(sent);
            }
            _ if at >= offset::FRCD => self.write_fault_record(at, value),
            _ => return false,
        }
        true
    }

    /// Registers of units with queued invalidation.
    fn write_queue(&mut self, at: u16, value: u32) {
        const IQA_HIGH: u16 = offset::IQA + 4;
        match at {
            offset::IQT => self.queue.tail = value & 0x7_fff0,
            offset::IQA | IQA_HIGH => {
                let wide = self.capabilities.is_scalable();
                let mask = PAGE | 7 | if wide { 1 << 11 } else { 0 };
                self.queue.address = replaced(self.queue.address, at, value, mask);
            }
            offset::ICS if value & 1 != 0 => {
                self.queue.completed = false;
                self.invalidation_event.serviced();
            }
            0x0a0..=0x0ac => {
                let sent = self
                    .invalidation_event
                    .write(part(at.wrapping_sub(offset::IECTL)), value);
                self.outbox.extend(sent);
            }
            _ => {}
        }
    }
}

/// Which of an event's four registers stands `at` bytes after the first.
fn part(at: u16) -> Part {
    match at >> 2 {
        0 => Part::Control,
        1 => Part::Data,
        2 => Part::Address,
        _ => Part::UpperAddress,
    }
}
