//! Memory for tables, and the translation of both formats written down once
//! more, entry by entry, from the tables of VT-d 4.1 sections 9.7 and 9.8.
#![allow(dead_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use iogate_dma::{Memory, MemoryError, Width};

/// Memory from address 0 on, in entries of 8 bytes.
pub(crate) struct Flat(pub(crate) Vec<AtomicU64>);

impl Flat {
    pub(crate) fn pages(count: usize) -> Self {
        Self((0..count * 512).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn at(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        let absent = MemoryError::Absent { address };
        self.0.get((address / 8) as usize).ok_or(absent)
    }

    pub(crate) fn get(&self, address: u64) -> Option<u64> {
        Some(self.at(address).ok()?.load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, address: u64, entry: u64) {
        self.at(address).unwrap().store(entry, Ordering::Release);
    }
}

impl Memory for Flat {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        for (index, bytes) in into.chunks_mut(8).enumerate() {
            let entry = self.at(address + 8 * index as u64)?;
            bytes.copy_from_slice(&entry.load(Ordering::Acquire).to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        for (index, bytes) in from.chunks_exact(8).enumerate() {
            let entry = u64::from_le_bytes(bytes.try_into().unwrap());
            self.at(address + 8 * index as u64)?
                .store(entry, Ordering::Release);
        }
        Ok(())
    }

    fn load(&self, address: u64, _width: Width) -> Result<u64, MemoryError> {
        Ok(self.at(address)?.load(Ordering::Acquire))
    }

    fn store(&self, address: u64, _width: Width, value: u64) -> Result<(), MemoryError> {
        self.at(address)?.store(value, Ordering::Release);
        Ok(())
    }

    fn compare_exchange(
        &self,
        address: u64,
        _width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let (ok, err) = (Ordering::AcqRel, Ordering::Acquire);
        let done = self.at(address)?.compare_exchange(current, new, ok, err);
        Ok(done.unwrap_or_else(|stood| stood))
    }
}

/// What the naive translation says of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Naive {
    Address,
    Absent {
        level: u8,
    },
    Reserved {
        level: u8,
    },
    Unreadable {
        level: u8,
    },
    Page {
        output: u64,
        size: u64,
        read: bool,
        write: bool,
    },
}

/// A second stage of `levels` with page sizes of all kinds, without the
/// optional bits. `haw` is the width of a physical address.
pub(crate) fn second_stage(memory: &Flat, root: u64, levels: u8, haw: u32, iova: u64) -> Naive {
    if iova >> (12 + 9 * u32::from(levels)) != 0 {
        return Naive::Address;
    }
    let (mut table, mut read, mut write) = (root, true, true);
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (u32::from(level) - 1);
        let Some(entry) = memory.get(table + ((iova >> shift) & 511) * 8) else {
            return Naive::Unreadable { level };
        };
        let bit = |n: u32| entry >> n & 1 == 1;
        if !bit(0) && !bit(1) {
            return Naive::Absent { level };
        }
        let too_wide = (haw..52).any(bit);
        let page = level == 1 || (bit(7) && level <= 3);
        let reserved = match (page, level) {
            (true, 1) => bit(11),
            (true, 2) => bit(11) || (12..21).any(bit),
            (true, _) => bit(11) || (12..30).any(bit),
            (false, _) => bit(7),
        };
        if too_wide || reserved || bit(62) {
            return Naive::Reserved { level };
        }
        read &= bit(0);
        write &= bit(1);
        let address = entry & 0x000f_ffff_ffff_f000;
        if page {
            let size = 1 << shift;
            let output = address + iova % size;
            return Naive::Page {
                output,
                size,
                read,
                write,
            };
        }
        table = address;
    }
    unreachable!("level 1 maps a page or nothing")
}

/// A first stage of `levels` for user requests; sizes of all kinds, bit 63
/// forbids execution.
pub(crate) fn first_stage(memory: &Flat, root: u64, levels: u8, haw: u32, iova: u64) -> Naive {
    let width = 12 + 9 * u32::from(levels);
    let sign = iova >> (width - 1) & 1;
    if (width..64).any(|bit| iova >> bit & 1 != sign) {
        return Naive::Address;
    }
    let (mut table, mut user, mut write) = (root, true, true);
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (u32::from(level) - 1);
        let Some(entry) = memory.get(table + ((iova >> shift) & 511) * 8) else {
            return Naive::Unreadable { level };
        };
        let bit = |n: u32| entry >> n & 1 == 1;
        if !bit(0) {
            return Naive::Absent { level };
        }
        let too_wide = (haw..52).any(bit);
        let page = level == 1 || (bit(7) && level <= 3);
        let reserved = match (page, level) {
            (true, 1) => false,
            (true, 2) => (13..21).any(bit),
            (true, _) => (13..30).any(bit),
            (false, _) => bit(7),
        };
        if too_wide || reserved {
            return Naive::Reserved { level };
        }
        user &= bit(2);
        write &= bit(1);
        let address = entry & 0x000f_ffff_ffff_f000;
        if page {
            let size = 1 << shift;
            let output = address / size * size + iova % size;
            return Naive::Page {
                output,
                size,
                read: user,
                write: user && write,
            };
        }
        table = address;
    }
    unreachable!("level 1 maps a page or nothing")
}
