//! Guest memory of words, which several threads may access.

use std::sync::atomic::{AtomicU64, Ordering};

use iogate_dma::{Memory, MemoryError, Width};

/// Memory from address 0 on.
pub(crate) struct Words(Vec<AtomicU64>);

impl Words {
    pub(crate) fn new(bytes: u64) -> Self {
        Self((0..bytes / 8).map(|_| AtomicU64::new(0)).collect())
    }

    fn word(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        let index = usize::try_from(address / 8).ok();
        let word = index.and_then(|index| self.0.get(index));
        word.ok_or(MemoryError::Absent { address })
    }

    /// The word at a multiple of 8, if memory is there.
    pub(crate) fn get(&self, address: u64) -> Option<u64> {
        let word = self.word(address).ok()?;
        Some(word.load(Ordering::SeqCst))
    }

    pub(crate) fn set(&self, address: u64, value: u64) {
        if let Ok(word) = self.word(address) {
            word.store(value, Ordering::SeqCst);
        }
    }
}

/// Bits of a width, and how far the address is within its word.
fn place(address: u64, width: Width) -> Result<(u64, u64), MemoryError> {
    if !address.is_multiple_of(width.bytes()) {
        return Err(MemoryError::Misaligned { address, width });
    }
    Ok((u64::MAX >> (64 - 8 * width.bytes()), address % 8 * 8))
}

impl Memory for Words {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        for (at, byte) in (address..).zip(into) {
            *byte = self.load(at, Width::Byte)? as u8;
        }
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        for (at, byte) in (address..).zip(from) {
            self.store(at, Width::Byte, u64::from(*byte))?;
        }
        Ok(())
    }

    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        let (mask, shift) = place(address, width)?;
        Ok(self.word(address)?.load(Ordering::SeqCst) >> shift & mask)
    }

    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        let (mask, shift) = place(address, width)?;
        let word = self.word(address)?;
        let merged = |old: u64| Some(old & !(mask << shift) | (value & mask) << shift);
        let order = Ordering::SeqCst;
        // The closure never refuses.
        let _ = word.fetch_update(order, order, merged);
        Ok(())
    }

    fn compare_exchange(
        &self,
        address: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let (mask, shift) = place(address, width)?;
        let word = self.word(address)?;
        let mut seen = word.load(Ordering::SeqCst);
        loop {
            let found = seen >> shift & mask;
            if found != current {
                return Ok(found);
            }
            let merged = seen & !(mask << shift) | (new & mask) << shift;
            let order = Ordering::SeqCst;
            match word.compare_exchange(seen, merged, order, order) {
                Ok(_) => return Ok(current),
                Err(other) => seen = other,
            }
        }
    }
}
