//! The link of the chain: from a request to where it ends.

use std::fmt;

use crate::{Fault, InFlight, Memory, MemoryError, Message, Request, Rights, Width};

/// Where a request ends when it is allowed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome<'g> {
    /// In memory: the first contiguous piece of the span asked for.
    Memory(Run<'g>),
    /// In an interrupt: the span lies in a window whose writes are messages.
    /// The address is given; the data is what the device writes.
    Message {
        /// The doorbell that the write reaches.
        address: u64,
    },
}

impl Outcome<'_> {
    /// The interrupt that a write of `data` makes; `None` in memory.
    pub fn message(&self, data: u32) -> Option<Message> {
        match *self {
            Self::Memory(_) => None,
            Self::Message { address } => Some(Message { address, data }),
        }
    }
}

/// A contiguous piece of a translation: memory, an address in it, a length.
/// It is no longer than the span asked for, and cannot outlive the guard it
/// was made under.
#[derive(Clone, Copy)]
pub struct Run<'g> {
    memory: &'g dyn Memory,
    address: u64,
    length: u64,
    rights: Rights,
}

impl<'g> Run<'g> {
    /// `length` bytes of `memory` from `address` on, of which `rights` are
    /// allowed.
    pub fn new(memory: &'g dyn Memory, address: u64, length: u64, rights: Rights) -> Self {
        Self {
            memory,
            address,
            length,
            rights,
        }
    }

    /// Output address of the first byte, in the memory's own numbering.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes in the run.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What the mapping allows.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Reads the run's first `into.len()` bytes; [`MemoryError::Absent`] if
    /// the run is shorter.
    pub fn read(&self, into: &mut [u8]) -> Result<(), MemoryError> {
        self.check(into.len())?;
        self.memory.read(self.address, into)
    }

    /// Writes the run's first `from.len()` bytes; [`MemoryError::Absent`] if
    /// the run is shorter.
    pub fn write(&self, from: &[u8]) -> Result<(), MemoryError> {
        self.check(from.len())?;
        self.memory.write(self.address, from)
    }

    /// One atomic read at the start of the run.
    pub fn load(&self, width: Width) -> Result<u64, MemoryError> {
        self.memory.load(self.address, width)
    }

    /// One atomic write at the start of the run.
    pub fn store(&self, width: Width, value: u64) -> Result<(), MemoryError> {
        self.memory.store(self.address, width, value)
    }

    fn check(&self, length: usize) -> Result<(), MemoryError> {
        match u64::try_from(length) {
            Ok(length) if length <= self.length => Ok(()),
            _ => Err(MemoryError::Absent {
                address: self.address.saturating_add(self.length),
            }),
        }
    }
}

impl fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("address", &format_args!("{:#x}", self.address))
            .field("length", &format_args!("{:#x}", self.length))
            .field("rights", &self.rights)
            .finish_non_exhaustive()
    }
}

/// An address space that devices make requests in.
pub trait Translate: Send + Sync {
    /// Where `request` ends: the first contiguous piece of its span, which may
    /// be shorter than asked for, or the fault that stops it.
    ///
    /// `guard` keeps the result true: an unmap or an invalidation publishes
    /// its change and then waits for the guards that are older, so a run may
    /// be used until its guard is dropped, and no longer.
    fn translate<'g>(
        &'g self,
        guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault>;
}
