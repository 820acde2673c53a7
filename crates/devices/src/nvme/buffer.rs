//! The controller memory buffer: memory of the controller's own, which programs
//! map and which commands may name, at addresses that the host chooses. NVM
//! Express 1.4 section 4.7.

use std::sync::Arc;

use iogate_dma::{Iova, Line, SharedMemory};
use iogate_pci::{Bus, BusError};

use super::spec::registers::{Cmbloc, Cmbmsc, Cmbsz};

/// The BAR that is the buffer.
pub(super) const BAR: u8 = 2;
/// CMBSZ counts in these: 4 KiB.
const UNIT: u64 = 4096;
/// The largest buffer, 1 GiB.
pub(super) const LARGEST: u64 = 1 << 30;

/// Whether a buffer can have this many bytes: all of a BAR.
pub(super) fn is_size(bytes: u64) -> bool {
    bytes.is_power_of_two() && (UNIT..=LARGEST).contains(&bytes)
}

/// The buffer's registers. They survive a controller reset. NVM Express 1.4
/// section 7.3.2.
#[derive(Clone, Copy, Default)]
pub(super) struct Registers {
    /// Bytes; 0 if there is none.
    size: u64,
    space: Cmbmsc,
}

impl Registers {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            space: Cmbmsc::new(),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether Capabilities announce a buffer.
    pub(super) fn is_there(&self) -> bool {
        self.size > 0
    }

    fn is_shown(&self) -> bool {
        self.is_there() && self.space.cre()
    }

    /// CMBLOC: commands may mix the buffer and other memory as they like.
    pub(super) fn location(&self) -> u32 {
        match self.is_shown() {
            true => Cmbloc::new()
                .with_bir(BAR)
                .with_cqmms(true)
                .with_cdpmls(true)
                .with_cdpcils(true)
                .into_bits(),
            false => 0,
        }
    }

    /// CMBSZ: queues, lists and data of both directions.
    pub(super) fn sizes(&self) -> u32 {
        let units = u32::try_from(self.size / UNIT).unwrap_or_default();
        match self.is_shown() {
            true => Cmbsz::new()
                .with_sqs(true)
                .with_cqs(true)
                .with_lists(true)
                .with_rds(true)
                .with_wds(true)
                .with_sz(units)
                .into_bits(),
            false => 0,
        }
    }

    /// CMBMSC.
    pub(super) fn space(&self) -> u64 {
        self.space.into_bits()
    }

    pub(super) fn set_space(&mut self, value: u64) {
        if self.is_there() {
            self.space = Cmbmsc::from_bits(value & !0xffc);
        }
    }

    /// CMBSTS: bit 0 is Controller Base Address Invalid.
    pub(super) fn status(&self) -> u32 {
        u32::from(self.space.cmse() && self.base().is_none())
    }

    /// The address of the first byte, while commands can name it.
    pub(super) fn base(&self) -> Option<u64> {
        let base = self.space.cba() << 12;
        let fits = base.checked_add(self.size.checked_sub(1)?).is_some();
        (self.space.cre() && self.space.cmse() && fits).then_some(base)
    }
}

/// What addresses in commands lead to: the buffer, or the bus.
pub(super) struct Paths<'w> {
    bus: Bus<'w>,
    /// The buffer with its first address and its size.
    buffer: Option<(u64, u64, &'w Arc<dyn SharedMemory>)>,
}

impl<'w> Paths<'w> {
    pub(super) fn new(
        bus: Bus<'w>,
        registers: Registers,
        buffer: Option<&'w Arc<dyn SharedMemory>>,
    ) -> Self {
        let buffer = registers.base().zip(buffer);
        Self {
            bus,
            buffer: buffer.map(|(base, memory)| (base, registers.size(), memory)),
        }
    }

    /// Where a piece of at most `length` bytes at `address` lies, and its
    /// length: an offset in the buffer, or nowhere in it.
    fn piece(&self, address: u64, length: usize) -> (Option<u64>, usize) {
        let Some((base, size, _)) = self.buffer else {
            return (None, length);
        };
        let (offset, until) = match address.checked_sub(base) {
            Some(offset) if offset < size => (Some(offset), size.saturating_sub(offset)),
            Some(_) => (None, u64::MAX),
            None => (None, base.saturating_sub(address)),
        };
        let until = usize::try_from(until).unwrap_or(usize::MAX);
        (offset, length.min(until))
    }

    /// Reads `into.len()` bytes at `iova`. On an error a part may be filled.
    pub(super) fn read(&mut self, iova: Iova, into: &mut [u8]) -> Result<(), BusError> {
        let mut rest = into;
        let mut at = iova.0;
        loop {
            let (offset, length) = self.piece(at, rest.len());
            let (now, later) = rest.split_at_mut_checked(length).unwrap_or_default();
            match (offset, self.buffer) {
                (Some(offset), Some((_, _, memory))) if self.bus.is_alive() => {
                    // The machine's memory is full: there is nothing to read.
                    if memory.read(offset, now).is_err() {
                        now.fill(0);
                    }
                }
                (Some(_), _) => return Err(BusError::Reset),
                (None, _) => self.bus.read(Iova(at), now)?,
            }
            if later.is_empty() {
                return Ok(());
            }
            at = at.wrapping_add(u64::try_from(length).unwrap_or(u64::MAX));
            rest = later;
        }
    }

    /// Writes `from` at `iova`. On an error a part may be written.
    pub(super) fn write(&mut self, iova: Iova, from: &[u8]) -> Result<(), BusError> {
        let mut rest = from;
        let mut at = iova.0;
        loop {
            let (offset, length) = self.piece(at, rest.len());
            let (now, later) = rest.split_at_checked(length).unwrap_or_default();
            match (offset, self.buffer) {
                (Some(offset), Some((_, _, memory))) if self.bus.is_alive() => {
                    // The machine's memory is full: the bytes are lost.
                    let _ = memory.write(offset, now);
                }
                (Some(_), _) => return Err(BusError::Reset),
                (None, _) => self.bus.write(Iova(at), now)?,
            }
            if later.is_empty() {
                return Ok(());
            }
            at = at.wrapping_add(u64::try_from(length).unwrap_or(u64::MAX));
            rest = later;
        }
    }

    /// [`Bus::raise`].
    pub(super) fn raise(&self, vector: u16) {
        self.bus.raise(vector);
    }

    /// [`Bus::set_line`].
    pub(super) fn set_line(&self, line: Line) {
        self.bus.set_line(line);
    }

    /// [`Bus::answered`].
    pub(super) fn answered(&self, answer: &str) {
        self.bus.answered(answer);
    }
}
