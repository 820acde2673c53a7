//! Where tables are read.

use iogate_dma::{Memory, MemoryError, Width};
use zerocopy::IntoBytes;

/// Entries that [`Tables::load_many`] is asked for in one call, at most.
pub const ENTRIES_AT_ONCE: usize = 512;

/// Memory that holds page tables, by entries of 8 bytes.
pub trait Tables {
    /// Why an entry cannot be had.
    type Error;

    /// The entry at `address`, a multiple of 8, in one access.
    fn load(&self, address: u64) -> Result<u64, Self::Error>;

    /// The entries from `address` on, a multiple of 8.
    fn load_many(&self, address: u64, into: &mut [u64]) -> Result<(), Self::Error>;

    /// Replaces the entry at `address` if `current` stands there; returns what
    /// stood there.
    fn replace(&self, address: u64, current: u64, new: u64) -> Result<u64, Self::Error>;
}

impl<M: Memory + ?Sized> Tables for &M {
    type Error = MemoryError;

    #[inline]
    fn load(&self, address: u64) -> Result<u64, MemoryError> {
        Memory::load(*self, address, Width::Qword)
    }

    fn load_many(&self, address: u64, into: &mut [u64]) -> Result<(), MemoryError> {
        self.read(address, into.as_mut_bytes())?;
        if cfg!(target_endian = "big") {
            for entry in into {
                *entry = u64::from_le(*entry);
            }
        }
        Ok(())
    }

    fn replace(&self, address: u64, current: u64, new: u64) -> Result<u64, MemoryError> {
        self.compare_exchange(address, Width::Qword, current, new)
    }
}
