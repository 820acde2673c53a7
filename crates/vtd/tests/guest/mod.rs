//! A guest that programs a unit by its registers, and devices behind it: what property tests and fuzzing drive.
#![allow(
    dead_code,
    reason = "each program that takes this file uses a part of it"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use iogate_dma::{
    Access as DmaAccess, FaultReason, Iova, Memory, MemoryError, Outcome, Participant, Pasid,
    Privilege, Request, RequesterId, Source, Span, Translate as _, Width,
};
use iogate_vtd::{Builder, Capabilities, Vtd};

use crate::naive::memory::Plain;
use crate::naive::{Access, Question};

/// The model's memory as a unit reads it.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    plain: Mutex<Plain>,
    /// How often the unit accessed it.
    accesses: AtomicU64,
    /// After so many accesses this word becomes this: a processor that runs at the same time.
    later: Mutex<Option<(u64, u64, u64)>>,
}

impl Shared {
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Plain) -> R) -> R {
        act(&mut self.plain.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the unit does.
    fn access<R>(&self, act: impl FnOnce(&mut Plain) -> R) -> R {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *later {
            Some((0, at, word)) => {
                let (at, word) = (*at, *word);
                *later = None;
                self.with(|plain| plain.set(at, word));
            }
            Some((left, ..)) => *left -= 1,
            None => {}
        }
        drop(later);
        self.with(act)
    }

    /// How often the unit accessed it since it was asked last.
    pub(crate) fn take_accesses(&self) -> u64 {
        self.accesses.swap(0, Ordering::Relaxed)
    }

    /// Has the word at `at` become `word` after so many accesses of the unit.
    pub(crate) fn change_later(&self, accesses: u64, at: u64, word: u64) {
        *self.later.lock().unwrap_or_else(PoisonError::into_inner) = Some((accesses, at, word));
    }

    /// Has it become so now, if it did not yet.
    pub(crate) fn change_now(&self) {
        let later = self
            .later
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((_, at, word)) = later {
            self.with(|plain| plain.set(at, word));
        }
    }
}

fn absent(address: u64) -> MemoryError {
    MemoryError::Absent { address }
}

impl Memory for Shared {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        self.access(|plain| {
            for (at, byte) in (address..=u64::MAX).zip(into.iter_mut()) {
                let word = plain.word(at & !7).ok_or(absent(at))?;
                *byte = word.to_le_bytes()[(at & 7) as usize];
            }
            Ok(())
        })
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.access(|plain| {
            for (at, byte) in (address..=u64::MAX).zip(from) {
                let mut word = plain.word(at & !7).ok_or(absent(at))?.to_le_bytes();
                word[(at & 7) as usize] = *byte;
                plain.set(at & !7, u64::from_le_bytes(word));
            }
            Ok(())
        })
    }

    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        if !address.is_multiple_of(width.bytes()) {
            return Err(MemoryError::Misaligned { address, width });
        }
        self.read(address, &mut bytes[..width.bytes() as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        if !address.is_multiple_of(width.bytes()) {
            return Err(MemoryError::Misaligned { address, width });
        }
        self.write(address, &value.to_le_bytes()[..width.bytes() as usize])
    }

    fn compare_exchange(
        &self,
        address: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        if width != Width::Qword || !address.is_multiple_of(8) {
            return Err(MemoryError::NotAtomic { address });
        }
        self.access(|plain| {
            let old = plain.word(address).ok_or(absent(address))?;
            if old == current {
                plain.set(address, new);
            }
            Ok(old)
        })
    }
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Became {
    Memory {
        address: u64,
        length: u64,
        read: bool,
        write: bool,
    },
    Message,
    Refused(FaultReason),
}

impl Became {
    /// Whether it allows the access, and nothing that tables do not. What is remembered may allow less than they do: not
    /// to write before the dirty flag is set.
    pub(crate) fn may(&self, access: Access, tables_read: bool, tables_write: bool) -> bool {
        let Self::Memory { read, write, .. } = *self else {
            return false;
        };
        let asked = match access {
            Access::Read => read,
            Access::Write => write,
        };
        asked && read <= tables_read && write <= tables_write
    }
}

/// A fault recording register. VT-d 4.1 section 11.4.7.7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) reason: u8,
    pub(crate) source: u16,
    pub(crate) address: u64,
    pub(crate) read: bool,
    pub(crate) pasid: Option<u32>,
}

/// A unit, its guest's memory, and a device.
pub(crate) struct Guest {
    pub(crate) unit: Arc<Vtd>,
    pub(crate) memory: Arc<Shared>,
    participant: Participant,
    queue: u64,
    tail: u64,
    waits: u64,
    wide: bool,
}

/// Bytes of the queue: one page, and behind it the word that a wait writes.
const QUEUE_BYTES: u64 = 0x1000;

impl Guest {
    /// A unit just powered on; `queue` is a free page of memory, and so is the next one.
    pub(crate) fn new(capabilities: Capabilities, memory: Plain, queue: u64) -> Self {
        Self::build(capabilities, memory, queue, |builder| builder)
    }

    /// One whose work the embedder does.
    pub(crate) fn deferred(capabilities: Capabilities, memory: Plain, queue: u64) -> Self {
        Self::build(capabilities, memory, queue, |builder| {
            builder.deferred(|| {})
        })
    }

    fn build(
        capabilities: Capabilities,
        memory: Plain,
        queue: u64,
        with: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let memory = Arc::new(Shared {
            plain: Mutex::new(memory),
            ..Shared::default()
        });
        let builder = Vtd::builder(Arc::clone(&memory) as _).capabilities(capabilities);
        let unit = with(builder).build().expect("the capabilities agree");
        Self {
            participant: unit.gate().join(),
            unit,
            memory,
            queue,
            tail: 0,
            waits: 0,
            wide: false,
        }
    }

    pub(crate) fn read(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.unit.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn read_short(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.unit.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn write(&self, offset: u64, value: u64) {
        self.unit.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn write_short(&self, offset: u64, value: u32) {
        self.unit.write(offset, &value.to_le_bytes());
    }

    /// Turns the queue and translation on, with this in RTADDR_REG.
    pub(crate) fn begin(&mut self, root: u64) {
        self.wide = root >> 10 & 3 == 1;
        self.tail = 0;
        self.write(0x20, root);
        self.write_short(0x18, 1 << 30);
        self.write(0x90, self.queue | u64::from(self.wide) << 11);
        self.write(0x88, 0);
        self.write_short(0x18, 1 << 26);
        self.forget();
        self.write_short(0x18, 1 << 31 | 1 << 26);
        assert_eq!(self.read_short(0x1c), 0xc400_0000, "GSTS");
    }

    /// Has the queue do these, and sees its wait descriptor done.
    pub(crate) fn invalidate(&mut self, descriptors: &[[u64; 2]]) {
        self.waits += 1;
        let status = self.queue + QUEUE_BYTES;
        let wait = [self.waits << 32 | 0x25, status];
        let bytes = if self.wide { 32 } else { 16 };
        for descriptor in descriptors.iter().chain([&wait]) {
            let at = self.queue + self.tail;
            self.memory.with(|plain| {
                for n in 0..bytes / 8 {
                    plain.set(at + 8 * n, descriptor.get(n as usize).copied().unwrap_or(0));
                }
            });
            self.tail = (self.tail + bytes) % QUEUE_BYTES;
        }
        self.write(0x88, self.tail);
        let written = self.memory.with(|plain| plain.word(status));
        assert_eq!(
            written,
            Some(self.waits & 0xffff_ffff),
            "the wait after {descriptors:x?}: FSTS {:#x}",
            self.read_short(0x34)
        );
    }

    /// Invalidates everything.
    pub(crate) fn forget(&mut self) {
        let mut all = vec![[0x11, 0]];
        if self.wide {
            all.push([0x37, 0]);
        }
        all.push([0x12, 0]);
        self.invalidate(&all);
    }

    /// Has a device make a request of `length` bytes.
    pub(crate) fn request(&mut self, question: &Question, length: u64) -> Became {
        let source = Source {
            pasid: question.pasid.and_then(Pasid::new),
            ..Source::from(RequesterId(question.source))
        };
        let span = Span::with_length(Iova(question.address), length).expect("it fits");
        let access = match question.access {
            Access::Read => DmaAccess::Read,
            Access::Write => DmaAccess::Write,
        };
        let mut request = Request::new(source, span, access);
        if question.privileged {
            request.privilege = Privilege::Supervisor;
        }
        let guard = self.participant.enter();
        match self.unit.translate(&guard, &request) {
            Ok(Outcome::Memory(run)) => Became::Memory {
                address: run.address(),
                length: run.length(),
                read: run.rights().can_read(),
                write: run.rights().can_write(),
            },
            Ok(_) => Became::Message,
            Err(fault) => Became::Refused(fault.reason),
        }
    }

    /// The oldest fault recorded, which is serviced; checks what FSTS says of it.
    pub(crate) fn take_record(&self) -> Option<Record> {
        let status = self.read_short(0x34);
        assert_eq!(status & !0xff02, 0, "FSTS says more than a pending fault");
        if status & 2 == 0 {
            return None;
        }
        let cap = self.read(0x8);
        let (records, count) = ((cap >> 24 & 0x3ff) * 16, (cap >> 40 & 0xff) + 1);
        // FRI is where the first was recorded when PPF became set; those behind it follow.
        let first = u64::from(status >> 8 & 0xff);
        let at = (0..count)
            .map(|n| records + 16 * ((first + n) % count))
            .find(|&at| self.read(at + 8) >> 63 != 0)
            .expect("a record with F, as FSTS says");
        let (low, high) = (self.read(at), self.read(at + 8));
        self.write_short(at + 12, 1 << 31);
        Some(Record {
            reason: (high >> 32) as u8,
            source: high as u16,
            address: low & !0xfff,
            read: high >> 62 & 1 != 0,
            pasid: (high >> 31 & 1 != 0).then_some((high >> 40) as u32 & 0xf_ffff),
        })
    }
}
