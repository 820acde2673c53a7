//! The page of registers: who stands where, and what a write may change. VT-d
//! 4.1 sections 11.2 and 11.4.

use crate::events::Part;
use crate::registers::{Registers, mask};
use crate::spec::registers::{Global, offset};

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
        let has_pages = self.capabilities.has_page_requests();
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
            offset::PQH if has_pages => self.pages.head.into(),
            offset::PQT if has_pages => self.pages.tail.into(),
            offset::PQA if has_pages => self.pages.address,
            0x0d8 if has_pages => pair(0, self.pages.status().into_bits()),
            offset::PECTL if has_pages => self.pages.event.control_and_data(),
            0x0e8 if has_pages => self.pages.event.address,
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
        if self.write_translation(at, value) {
            return;
        }
        if self.capabilities.has_queued_invalidation() {
            self.write_queue(at, value);
        }
        if self.capabilities.has_page_requests() {
            self.write_pages(at, value);
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
                let mask = mask::root(&self.capabilities);
                self.root = replaced(self.root, at, value, mask);
            }
            offset::CCMD | CCMD_HIGH => {
                let actual = self.context_command & mask::CONTEXT_ACTUAL;
                let new = replaced(self.context_command, at, value, mask::CONTEXT_COMMAND);
                self.context_command = new | actual;
            }
            offset::IRTA | IRTA_HIGH => {
                let mask = mask::interrupt_table(&self.capabilities);
                self.interrupt_table = replaced(self.interrupt_table, at, value, mask);
            }
            offset::IVA | IVA_HIGH => {
                let new = replaced(self.invalidate_address, at, value, mask::INVALIDATE_ADDRESS);
                self.invalidate_address = new;
            }
            offset::IOTLB | IOTLB_HIGH => {
                let actual = self.iotlb_command & mask::IOTLB_ACTUAL;
                let new = replaced(self.iotlb_command, at, value, mask::IOTLB_COMMAND);
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
            offset::IQT => self.queue.tail = value & mask::QUEUE_OFFSET,
            offset::IQA | IQA_HIGH => {
                let mask = mask::queue(&self.capabilities);
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

    /// Registers of units with page requests.
    fn write_pages(&mut self, at: u16, value: u32) {
        const PQA_HIGH: u16 = offset::PQA + 4;
        match at {
            offset::PQH => self.pages.head = value & mask::PAGE_OFFSET,
            offset::PQT => self.pages.tail = value & mask::PAGE_OFFSET,
            offset::PQA | PQA_HIGH => {
                self.pages.address = replaced(self.pages.address, at, value, mask::PAGE_QUEUE);
            }
            offset::PRS => self.write_page_status(value),
            0x0e0..=0x0ec => {
                let sent = self
                    .pages
                    .event
                    .write(part(at.wrapping_sub(offset::PECTL)), value);
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
