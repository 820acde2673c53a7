//! I/O commands of the NVM command set. NVM Express 1.4 section 6.

use super::BLOCK_SHIFT;
use super::spec::command::{Command, io as opcode, low_byte};
use super::spec::completion::Status;
use super::storage::StorageError;
use super::worker::{MAX_TRANSFER, Quantum, Stop};

/// Attribute Deallocate, in Dword 11 of Dataset Management.
const DEALLOCATE: u32 = 1 << 2;
/// Bytes of a range of Dataset Management. NVM Express 1.4 figure 361.
const RANGE: u64 = 16;
/// Force Unit Access, in Dword 12.
const FUA: u32 = 1 << 30;

fn write_failed(error: StorageError) -> Stop {
    match error {
        StorageError::Full => Status::CAPACITY.into(),
        StorageError::Io(_) => Status::WRITE_FAULT.into(),
    }
}

impl Quantum<'_> {
    /// Executes an I/O command; Dword 0 of its completion.
    pub(super) fn io(&mut self, command: &Command) -> Result<u32, Stop> {
        let known = matches!(
            command.cdw0.opcode(),
            opcode::FLUSH
                | opcode::WRITE
                | opcode::READ
                | opcode::WRITE_ZEROES
                | opcode::DATASET_MANAGEMENT
        );
        if !known {
            return Err(Status::INVALID_OPCODE.into());
        }
        let broadcast = command.cdw0.opcode() == opcode::FLUSH && command.nsid == u32::MAX;
        if command.nsid != 1 && !broadcast {
            return Err(Status::INVALID_NAMESPACE.into());
        }
        match command.cdw0.opcode() {
            opcode::FLUSH => self.flush()?,
            opcode::WRITE => self.write(command)?,
            opcode::READ => self.read(command)?,
            opcode::WRITE_ZEROES => self.write_zeroes(command)?,
            _ => self.dataset_management(command)?,
        }
        Ok(0)
    }

    /// First byte and number of bytes of the blocks that a command names.
    fn range(&self, command: &Command) -> Result<(u64, u64), Stop> {
        let end = command.slba().checked_add(command.blocks());
        match end {
            Some(end) if end <= self.nvme.blocks() => Ok((
                command.slba() << BLOCK_SHIFT,
                command.blocks() << BLOCK_SHIFT,
            )),
            _ => Err(Status::LBA_RANGE.into()),
        }
    }

    /// As [`range`](Self::range), for commands that move data.
    fn data(&self, command: &Command) -> Result<(u64, u64), Stop> {
        if command.blocks() << BLOCK_SHIFT > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD.into());
        }
        self.range(command)
    }

    fn flush(&mut self) -> Result<(), Stop> {
        self.nvme.storage.flush().map_err(write_failed)
    }

    /// Flushes after a write that must not stay in a cache.
    fn settle(&mut self, command: &Command) -> Result<(), Stop> {
        let cached = self.with(|state| state.features.caches_writes())?;
        match command.cdw12 & FUA != 0 || !cached {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn read(&mut self, command: &Command) -> Result<(), Stop> {
        let (first, length) = self.data(command)?;
        let storage = &self.nvme.storage;
        self.transfer(command, length, |bus, iova, offset, buffer| {
            let read = storage.read(first.saturating_add(offset), buffer);
            read.map_err(|_| Status::READ_ERROR)?;
            Ok(bus.write(iova, buffer)?)
        })?;
        self.with(|state| {
            let counters = &mut state.counters;
            counters.reads = counters.reads.saturating_add(1);
            counters.units_read = counters.units_read.saturating_add(command.blocks());
        })
    }

    fn write(&mut self, command: &Command) -> Result<(), Stop> {
        let (first, length) = self.data(command)?;
        let storage = &self.nvme.storage;
        self.transfer(command, length, |bus, iova, offset, buffer| {
            bus.read(iova, buffer)?;
            let written = storage.write(first.saturating_add(offset), buffer);
            written.map_err(write_failed)
        })?;
        self.settle(command)?;
        self.with(|state| {
            let counters = &mut state.counters;
            counters.writes = counters.writes.saturating_add(1);
            counters.units_written = counters.units_written.saturating_add(command.blocks());
        })
    }

    fn write_zeroes(&mut self, command: &Command) -> Result<(), Stop> {
        let (first, length) = self.range(command)?;
        self.charge(length);
        let written = self.nvme.storage.write_zeroes(first, length);
        written.map_err(write_failed)?;
        self.settle(command)
    }

    /// Takes advice about ranges of blocks; only that some are of no use any
    /// more is followed.
    fn dataset_management(&mut self, command: &Command) -> Result<(), Stop> {
        let count = u64::from(low_byte(command.cdw10)).saturating_add(1);
        let mut list = [0; 4096];
        self.transfer(
            command,
            count.saturating_mul(RANGE),
            |bus, iova, at, buffer| {
                bus.read(iova, buffer)?;
                let part = usize::try_from(at).ok().and_then(|at| list.get_mut(at..));
                for (byte, value) in part.unwrap_or_default().iter_mut().zip(buffer.iter()) {
                    *byte = *value;
                }
                Ok(())
            },
        )?;
        let count = usize::try_from(count).unwrap_or_default();
        let (ranges, _) = list.as_chunks::<16>();
        let ranges = || {
            ranges.iter().take(count).map(|range| {
                let [_, _, _, _, a, b, c, d, low @ ..] = *range;
                let blocks = u32::from_le_bytes([a, b, c, d]);
                (u64::from_le_bytes(low), u64::from(blocks))
            })
        };
        let all = self.nvme.blocks();
        let inside =
            |(slba, blocks): (u64, u64)| slba.checked_add(blocks).is_some_and(|end| end <= all);
        if !ranges().all(inside) {
            return Err(Status::LBA_RANGE.into());
        }
        if command.cdw11 & DEALLOCATE != 0 {
            for (slba, blocks) in ranges() {
                let storage = &self.nvme.storage;
                storage.discard(slba << BLOCK_SHIFT, blocks << BLOCK_SHIFT);
            }
        }
        Ok(())
    }
}
