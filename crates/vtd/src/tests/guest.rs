//! A guest for tests: RAM, a unit, the messages that reached it.

use std::sync::{Arc, Mutex};

use iogate_dma::{Memory, MemoryError, Message, Width};

use crate::spec::registers::offset;
use crate::{Capabilities, Vtd};

/// RAM from address 0 on, with a hole.
pub(crate) struct Ram(Mutex<Vec<u8>>);

/// Bytes of RAM.
pub(crate) const RAM: u64 = 0x40_0000;
/// No RAM is here.
pub(crate) const HOLE: std::ops::Range<u64> = 0x30_0000..0x30_1000;

impl Ram {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![0; RAM as usize])))
    }

    fn with<R>(
        &self,
        address: u64,
        length: usize,
        act: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, MemoryError> {
        let absent = MemoryError::Absent { address };
        let end = address.checked_add(length as u64).ok_or(absent)?;
        if end > RAM || address < HOLE.end && end > HOLE.start {
            return Err(absent);
        }
        let mut bytes = self.0.lock().unwrap();
        Ok(act(&mut bytes[address as usize..end as usize]))
    }
}

impl Memory for Ram {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        self.with(address, into.len(), |bytes| into.copy_from_slice(bytes))
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.with(address, from.len(), |bytes| bytes.copy_from_slice(from))
    }

    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        let mut value = [0; 8];
        self.with(address, width.bytes() as usize, |bytes| {
            value[..bytes.len()].copy_from_slice(bytes);
        })?;
        Ok(u64::from_le_bytes(value))
    }

    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        let length = width.bytes() as usize;
        self.write(address, &value.to_le_bytes()[..length])
    }

    fn compare_exchange(
        &self,
        address: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let length = width.bytes() as usize;
        self.with(address, length, |bytes| {
            let mut value = [0; 8];
            value[..length].copy_from_slice(bytes);
            if u64::from_le_bytes(value) == current {
                bytes.copy_from_slice(&new.to_le_bytes()[..length]);
            }
            u64::from_le_bytes(value)
        })
    }
}

/// Where the tests put the queue, and what a wait descriptor writes.
pub(crate) const QUEUE: u64 = 0x10_0000;
pub(crate) const STATUS: u64 = 0x20_0000;

pub(crate) const TE: u32 = 1 << 31;
pub(crate) const SRTP: u32 = 1 << 30;
pub(crate) const QIE: u32 = 1 << 26;

pub(crate) struct Guest {
    pub(crate) ram: Arc<Ram>,
    pub(crate) unit: Arc<Vtd>,
    messages: Arc<Mutex<Vec<Message>>>,
    wide: bool,
}

impl Guest {
    pub(crate) fn new(capabilities: Capabilities) -> Self {
        let ram = Ram::new();
        let messages = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&messages);
        let unit = Vtd::builder(Arc::clone(&ram) as _)
            .capabilities(capabilities)
            .deliver(move |message| received.lock().unwrap().push(message))
            .build()
            .unwrap();
        let wide = capabilities.is_scalable();
        Self {
            ram,
            unit,
            messages,
            wide,
        }
    }

    /// What reached the guest since it was asked last.
    pub(crate) fn messages(&self) -> Vec<Message> {
        std::mem::take(&mut self.messages.lock().unwrap())
    }

    pub(crate) fn read32(&self, at: u16) -> u32 {
        let mut bytes = [0; 4];
        self.unit.read(at.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn read64(&self, at: u16) -> u64 {
        let mut bytes = [0; 8];
        self.unit.read(at.into(), &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn write32(&self, at: u16, value: u32) {
        self.unit.write(at.into(), &value.to_le_bytes());
    }

    pub(crate) fn write64(&self, at: u16, value: u64) {
        self.unit.write(at.into(), &value.to_le_bytes());
    }

    pub(crate) fn put(&self, address: u64, words: &[u64]) {
        for (at, word) in (address..).step_by(8).zip(words) {
            self.ram.write(at, &word.to_le_bytes()).unwrap();
        }
    }

    /// Bytes of a descriptor.
    pub(crate) fn width(&self) -> u64 {
        if self.wide { 32 } else { 16 }
    }

    /// Enables the queue, of `size` as IQA has it.
    pub(crate) fn enable_queue(&self, size: u64) {
        self.write32(offset::IQT, 0);
        let wide = u64::from(self.wide) << 11;
        self.write64(offset::IQA, QUEUE | wide | size);
        self.write32(offset::GCMD, QIE);
        assert_eq!(self.read32(offset::GSTS) & QIE, QIE);
    }

    /// Puts descriptors where the tail is and moves it past them.
    pub(crate) fn submit(&self, descriptors: &[[u64; 2]]) {
        let size = 4096 << (self.read64(offset::IQA) & 7);
        let mut tail = self.read64(offset::IQT);
        for &[low, high] in descriptors {
            self.put(QUEUE + tail, &[low, high]);
            if self.wide {
                self.put(QUEUE + tail + 16, &[0, 0]);
            }
            tail = (tail + self.width()) % size;
        }
        self.write32(offset::IQT, tail as u32);
    }

    /// Unmasks an event and gives it this message.
    pub(crate) fn program(&self, event: u16, message: Message) {
        self.write32(event + 4, message.data);
        self.write64(event + 8, message.address);
        self.write32(event, 0);
    }

    /// The fault record with this index, low and high.
    pub(crate) fn fault(&self, index: u16) -> (u64, u64) {
        let at = offset::FRCD + 16 * index;
        (self.read64(at), self.read64(at + 8))
    }
}

/// A wait descriptor that writes `data` to [`STATUS`].
pub(crate) fn wait(data: u32) -> [u64; 2] {
    [u64::from(data) << 32 | 1 << 5 | 5, STATUS]
}
