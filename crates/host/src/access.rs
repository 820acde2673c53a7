//! Reads and writes of a device's regions. Linux
//! `drivers/vfio/pci/vfio_pci_rdwr.c`.

use std::sync::atomic::Ordering;

use iogate_pci::{After, BarSpace};

use crate::slot::Slot;
use crate::{Error, ErrorKind, Host, Retired};

/// The regions of a PCI device. include/uapi/linux/vfio.h,
/// VFIO_PCI_BAR0_REGION_INDEX and following.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Region {
    /// BAR 0-5.
    Bar(u8),
    /// The expansion ROM: ours have none.
    Rom,
    /// Configuration space.
    Config,
    /// The VGA ranges: ours have none.
    Vga,
}

impl Region {
    /// The region with this index: EINVAL beyond the last.
    pub fn from_index(index: u64) -> Result<Self, Error> {
        Ok(match index {
            0..=5 => {
                let [index, ..] = index.to_le_bytes();
                Self::Bar(index)
            }
            6 => Self::Rom,
            7 => Self::Config,
            8 => Self::Vga,
            _ => return Err(Error::invalid("no such region")),
        })
    }
}

impl Host {
    /// How many of `length` bytes at `offset` of a region one call accesses:
    /// a BAR's end cuts it short. EINVAL past the end of a BAR and for regions
    /// that the device does not have, EFAULT if any byte lies past the end of
    /// configuration space. `vfio_pci_rw`, `vfio_pci_bar_rw`,
    /// `vfio_config_do_rw`.
    pub fn region_length(
        &self,
        device: usize,
        region: Region,
        offset: u64,
        length: u64,
    ) -> Result<u64, Error> {
        let slot = self.slot(device)?;
        match region {
            Region::Bar(bar) => {
                let bar = slot.endpoint().bar(bar);
                let left = bar.and_then(|bar| bar.size.checked_sub(offset));
                match left {
                    None | Some(0) => Err(Error::invalid("past the end of the BAR")),
                    Some(left) => Ok(length.min(left)),
                }
            }
            Region::Config => {
                let end = offset.checked_add(length);
                match end.is_some_and(|end| end <= slot.capabilities.config_size) {
                    true => Ok(length),
                    false => Err(Error::new(
                        ErrorKind::Fault,
                        "past the end of configuration space",
                    )),
                }
            }
            Region::Rom | Region::Vga => Err(Error::invalid("the device has no such region")),
        }
    }

    /// Reads a part of a region that [`region_length`](Self::region_length)
    /// allowed. EIO while memory does not answer.
    pub fn region_read(
        &self,
        device: usize,
        region: Region,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Error> {
        let slot = self.slot(device)?;
        self.wake(slot);
        match region {
            Region::Bar(bar) => slot.read_bar(bar, offset, into),
            Region::Config => {
                match self.config_answers(slot) {
                    true => self.read_config(slot, offset, into),
                    false => into.fill(0xff),
                }
                Ok(())
            }
            Region::Rom | Region::Vga => Err(Error::invalid("the device has no such region")),
        }
    }

    /// Writes a part of a region that [`region_length`](Self::region_length)
    /// allowed. EIO while memory does not answer.
    pub fn region_write(
        &self,
        device: usize,
        region: Region,
        offset: u64,
        from: &[u8],
    ) -> Result<Retired, Error> {
        let slot = self.slot(device)?;
        self.wake(slot);
        match region {
            Region::Bar(bar) => {
                let after = slot.write_bar(bar, offset, from)?;
                Ok(Retired {
                    work: (after == After::Work).then_some(device),
                    ..Retired::default()
                })
            }
            Region::Config if !self.config_answers(slot) => Ok(Retired::default()),
            Region::Config => {
                let mut retired = self.write_config(slot, offset, from);
                self.look_at_exports(&mut retired);
                Ok(retired)
            }
            Region::Rom | Region::Vga => Err(Error::invalid("the device has no such region")),
        }
    }

    fn config_answers(&self, slot: &Slot) -> bool {
        let interposer = self.interposer();
        interposer.is_none_or(|interposer| interposer.answers(slot.device.source))
    }

    /// An access ends a state of low power that is to be woken from.
    /// `vfio_pci_core_runtime_resume`.
    fn wake(&self, slot: &Slot) {
        if !slot.asleep.load(Ordering::SeqCst) {
            return;
        }
        let mut state = slot.lock();
        let low_power = state.low_power.as_mut();
        if let Some(signal) = low_power.and_then(|low_power| low_power.wakeup.take()) {
            state.low_power = None;
            slot.settle_power(&state);
            signal.signal();
        }
    }
}

impl Slot {
    /// Whether memory BARs answer.
    pub(crate) fn memory_answers(&self) -> bool {
        // A virtual function has no such bit: what is shown is the kernel's.
        let enabled = self.endpoint().command().memory_enabled() || self.owner.get().is_some();
        enabled && !self.asleep.load(Ordering::SeqCst)
    }

    /// Whether a BAR answers: memory only while Memory Space Enable is set and
    /// the function is awake; ports always. `__vfio_pci_memory_enabled`.
    fn check_enabled(&self, bar: u8) -> Result<(), Error> {
        let memory = self.endpoint().bar(bar).map(|bar| bar.space) == Some(BarSpace::Memory);
        match memory && !self.memory_answers() {
            true => Err(Error::new(
                ErrorKind::Io,
                "the device's memory does not answer: Memory Space Enable is clear",
            )),
            false => Ok(()),
        }
    }

    pub(crate) fn read_bar(&self, bar: u8, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let mut rest = into;
        let mut at = offset;
        while !rest.is_empty() {
            let piece = self.piece(bar, at, rest.len());
            let (now, later) = rest.split_at_mut_checked(piece.length).unwrap_or_default();
            if piece.hidden {
                now.fill(0xff);
            } else {
                self.check_enabled(bar)?;
                self.device.function.read_bar(bar, at, now);
            }
            rest = later;
            at = at.saturating_add(piece.bytes());
        }
        Ok(())
    }

    pub(crate) fn write_bar(&self, bar: u8, offset: u64, from: &[u8]) -> Result<After, Error> {
        let mut after = After::Nothing;
        let mut rest = from;
        let mut at = offset;
        while !rest.is_empty() {
            let piece = self.piece(bar, at, rest.len());
            let (now, later) = rest.split_at_checked(piece.length).unwrap_or_default();
            if !piece.hidden {
                self.check_enabled(bar)?;
                after = after.or(self.device.function.write_bar(bar, at, now));
            }
            rest = later;
            at = at.saturating_add(piece.bytes());
        }
        Ok(after)
    }

    /// The first access that one of `length` bytes, at least 1, is made of:
    /// naturally aligned and of at most 8 bytes, or a part of the MSI-X table,
    /// which is the kernel's own. `vfio_pci_core_do_io_rw`.
    fn piece(&self, bar: u8, at: u64, length: usize) -> Piece {
        let (first, end) = self.capabilities.msix_table(bar);
        let to = |limit: u64| usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
        if at >= first && at < end {
            return Piece {
                length: length.min(to(end)),
                hidden: true,
            };
        }
        let length = if at < first {
            length.min(to(first))
        } else {
            length
        };
        let aligned = 1_usize << at.trailing_zeros().min(3);
        let largest = 1_usize << length.max(1).ilog2().min(3);
        Piece {
            length: aligned.min(largest),
            hidden: false,
        }
    }
}

struct Piece {
    length: usize,
    /// Reads as ones, drops writes.
    hidden: bool,
}

impl Piece {
    fn bytes(&self) -> u64 {
        u64::try_from(self.length).unwrap_or(u64::MAX)
    }
}
