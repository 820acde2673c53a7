//! The state of a unit as bytes: saved, and restored somewhere else.
//!
//! What is cached is no part of it: a restored unit reads the guest's tables
//! again. A queue that is half done goes on.

mod bytes;

use std::collections::BTreeSet;

use iogate_dma::{Pasid, RequesterId, Source};

use crate::Vtd;
use crate::events::Event;
use crate::fault::Record;
use crate::pages::Group;
use crate::registers::{Command, Registers, mask};
use crate::spec::registers::{
    FaultRecordHigh, FaultRecordLow, Global, QueueAddress, QueueErrorRecord,
};

use bytes::{Reader, Writer};

/// The form of the bytes.
const VERSION: u32 = 1;
const MAGIC: u32 = u32::from_le_bytes(*b"VT-d");

/// Why bytes are not the state of this unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("byte {at} of the state: {what}")]
pub struct StateError {
    /// Where: bytes from the beginning.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl Vtd {
    /// The state, as bytes. A piece of work that is under way is waited for;
    /// what remains of it is part of the state. Not called under a guard.
    pub fn save(&self) -> Vec<u8> {
        self.between_work(|| self.write_state())
    }

    fn write_state(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.u32(MAGIC);
        writer.u32(VERSION);
        writer.u64(self.capabilities.capability_register());
        writer.u64(self.capabilities.extended_capability_register());
        let pages = self.lock_pages();
        self.with_registers(|registers| {
            writer.u64(self.live.root());
            writer.u64(self.live.interrupt_table());
            write_registers(&mut writer, registers);
        });
        writer.count(pages.waiting.len());
        for Group { source, group } in &pages.waiting {
            writer.u16(source.segment);
            writer.u16(source.requester.0);
            writer.u32(source.pasid.map_or(u32::MAX, Pasid::as_u32));
            writer.u16(*group);
        }
        writer.into_bytes()
    }

    /// Gives the unit a state that [`save`](Self::save) told, of a unit with
    /// the same capabilities. Caches are dropped, and who follows domains is
    /// told that everything may be different. Not called under a guard.
    ///
    /// # Errors
    /// If the bytes are not such a state: nothing has changed then.
    pub fn restore(&self, state: &[u8]) -> Result<(), StateError> {
        let mut reader = Reader::new(state);
        reader.expect(MAGIC.into(), 4, "not the state of a VT-d unit")?;
        reader.expect(VERSION.into(), 4, "another version")?;
        let other = "of a unit with other capabilities";
        reader.expect(self.capabilities.capability_register(), 8, other)?;
        reader.expect(self.capabilities.extended_capability_register(), 8, other)?;
        let fresh = Registers::new(self.capabilities);
        let root = reader.masked(mask::root(&self.capabilities), "root table in force")?;
        let table = mask::interrupt_table(&self.capabilities);
        let table = reader.masked(table, "interrupt table in force")?;
        let registers = read_registers(&mut reader, fresh)?;
        let waiting = self.read_waiting(&mut reader)?;
        reader.end()?;
        self.between_work(|| {
            self.with_registers(|now| {
                *now = registers;
                self.live.set_root(root);
                self.live.set_interrupt_table(table);
                self.live.set_status(now.status.into_bits());
            });
            self.replace_waiting(waiting);
            self.forget();
        });
        Ok(())
    }

    fn read_waiting(&self, reader: &mut Reader<'_>) -> Result<BTreeSet<Group>, StateError> {
        let mut waiting = BTreeSet::new();
        let most = if self.capabilities.has_page_requests() {
            crate::pages::MAX_GROUPS
        } else {
            0
        };
        for _ in 0..reader.count(most, "page requests that wait")? {
            let segment = reader.u16()?;
            let requester = RequesterId(reader.u16()?);
            let pasid = match reader.u32()? {
                u32::MAX => None,
                raw => Some(Pasid::new(raw).ok_or(reader.error("a PASID"))?),
            };
            let group = reader.u16()?;
            if group > crate::pages::MAX_GROUP {
                return Err(reader.error("a page request group"));
            }
            let source = Source {
                pasid,
                ..Source::new(segment, requester)
            };
            waiting.insert(Group { source, group });
        }
        Ok(waiting)
    }
}

fn write_registers(writer: &mut Writer, registers: &Registers) {
    writer.u32(registers.status.into_bits());
    writer.u64(registers.root);
    writer.u64(registers.interrupt_table);
    writer.u64(registers.context_command);
    writer.u64(registers.invalidate_address);
    writer.u64(registers.iotlb_command);
    let command = registers.command;
    writer.flag(command.is_some());
    writer.u32(command.map_or(0, |command| command.enabled.into_bits()));
    for latched in [
        command.and_then(|command| command.root),
        command.and_then(|command| command.interrupt_table),
    ] {
        writer.flag(latched.is_some());
        writer.u64(latched.unwrap_or(0));
    }
    let faults = &registers.faults;
    writer.flag(faults.overflow);
    writer.flag(faults.queue_error);
    writer.flag(faults.completion_error);
    writer.flag(faults.time_out);
    writer.u32(faults.first.into());
    writer.count(faults.next);
    writer.count(faults.records.len());
    for record in &faults.records {
        writer.u64(record.low.into_bits());
        writer.u64(record.high.into_bits());
    }
    let queue = &registers.queue;
    writer.u64(queue.address);
    writer.u64(queue.active);
    writer.u32(queue.head);
    writer.u32(queue.tail);
    writer.flag(queue.completed);
    writer.u64(queue.error.into_bits());
    let pages = &registers.pages;
    writer.u64(pages.address);
    writer.u32(pages.head);
    writer.u32(pages.tail);
    writer.flag(pages.pending);
    writer.flag(pages.overflow);
    for event in [
        &registers.fault_event,
        &registers.invalidation_event,
        &pages.event,
    ] {
        writer.flag(event.masked);
        writer.flag(event.pending);
        writer.u32(event.data);
        writer.u64(event.address);
    }
}

fn read_registers(reader: &mut Reader<'_>, fresh: Registers) -> Result<Registers, StateError> {
    let mut registers = fresh;
    let capabilities = registers.capabilities;
    let status = reader.masked_u32(mask::status(&capabilities), "GSTS")?;
    registers.status = Global::from_bits(status);
    registers.root = reader.masked(mask::root(&capabilities), "RTADDR")?;
    let table = mask::interrupt_table(&capabilities);
    registers.interrupt_table = reader.masked(table, "IRTA")?;
    registers.context_command = reader.masked(mask::CONTEXT, "CCMD")?;
    registers.invalidate_address = reader.masked(mask::INVALIDATE_ADDRESS, "IVA")?;
    registers.iotlb_command = reader.masked(mask::IOTLB, "IOTLB")?;
    let has_command = reader.flag("a command")?;
    let enabled = reader.masked_u32(mask::enabled(&capabilities), "a command")?;
    let root = reader.flag("a command's root table")?;
    let root = root.then_some(reader.masked(mask::root(&capabilities), "a command's root table")?);
    let interrupts = reader.flag("a command's interrupt table")?;
    let interrupts = interrupts.then_some(reader.masked(table, "a command's interrupt table")?);
    registers.command = has_command.then_some(Command {
        enabled: Global::from_bits(enabled),
        root,
        interrupt_table: interrupts,
    });
    read_faults(reader, &mut registers)?;
    read_queue(reader, &mut registers)?;
    let offers_pages = capabilities.has_page_requests();
    let pages = &mut registers.pages;
    let (address, offset) = match offers_pages {
        true => (mask::PAGE_QUEUE, mask::PAGE_OFFSET),
        false => (0, 0),
    };
    pages.address = reader.masked(address, "PQA")?;
    pages.head = reader.masked_u32(offset, "PQH")?;
    pages.tail = reader.masked_u32(offset, "PQT")?;
    pages.pending = reader.flag("PPR")?;
    pages.overflow = reader.flag("PRO")?;
    for event in [
        &mut registers.fault_event,
        &mut registers.invalidation_event,
        &mut registers.pages.event,
    ] {
        *event = Event {
            masked: reader.flag("an event's mask")?,
            pending: reader.flag("an event's pending bit")?,
            data: reader.u32()?,
            address: reader.masked(!3, "an event's address")?,
        };
        if event.pending && !event.masked {
            return Err(reader.error("an event that is pending and not masked"));
        }
    }
    Ok(registers)
}

fn read_faults(reader: &mut Reader<'_>, registers: &mut Registers) -> Result<(), StateError> {
    let faults = &mut registers.faults;
    let records = faults.records.len();
    faults.overflow = reader.flag("PFO")?;
    faults.queue_error = reader.flag("IQE")?;
    faults.completion_error = reader.flag("ICE")?;
    faults.time_out = reader.flag("ITE")?;
    let last = records.saturating_sub(1);
    faults.first = u8::try_from(reader.count(last, "FRI")?).unwrap_or(0);
    faults.next = reader.count(last, "the next fault record")?;
    if reader.count(records, "the number of fault records")? != records {
        return Err(reader.error("the number of fault records"));
    }
    for record in &mut faults.records {
        *record = Record {
            low: FaultRecordLow::from_bits(reader.masked(!0xfff, "a fault record")?),
            high: FaultRecordHigh::from_bits(reader.masked(mask::FAULT_HIGH, "a fault record")?),
        };
    }
    Ok(())
}

fn read_queue(reader: &mut Reader<'_>, registers: &mut Registers) -> Result<(), StateError> {
    let capabilities = registers.capabilities;
    let enabled = registers.status.queued_invalidation();
    let queue = &mut registers.queue;
    queue.address = reader.masked(mask::queue(&capabilities), "IQA")?;
    queue.active = reader.masked(mask::queue(&capabilities), "the queue in force")?;
    let active = QueueAddress::from_bits(queue.active);
    let within = (4096_u32 << (active.size() & 7)).wrapping_sub(1);
    let aligned = if active.wide() { !0x1f } else { !0xf };
    let head = if enabled { within & aligned } else { 0 };
    queue.head = reader.masked_u32(head, "IQH")?;
    let offered = capabilities.has_queued_invalidation();
    let tail = if offered { mask::QUEUE_OFFSET } else { 0 };
    queue.tail = reader.masked_u32(tail, "IQT")?;
    queue.completed = reader.flag("IWC")?;
    queue.error = QueueErrorRecord::from_bits(reader.masked(mask::QUEUE_ERROR, "IQERCD")?);
    Ok(())
}
