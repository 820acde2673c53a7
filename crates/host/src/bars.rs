//! BARs as targets of DMA: registers and memory of one device that another one
//! reads and writes. PCI Express Base 6.0 section 2.4 (peer to peer).

use std::sync::{Arc, OnceLock};

use iogate_dma::{Memory, MemoryError, Width};
use iogate_pci::After;

use crate::slot::Slot;

/// Tells the worker of a device, by its index, that it has something to do.
pub(crate) type Kick = Box<dyn Fn(usize) + Send + Sync>;

/// The numbers of all BARs' bytes: above every other memory's, 36 bits for a
/// device and 33 for a BAR of it.
const FIRST: u64 = 0xffff << 48;
const DEVICE: u32 = 36;
const BAR: u32 = 33;
/// Bytes of a BAR that have numbers.
const LONGEST: u64 = 1 << BAR;
const DEVICES: u64 = 1 << (48 - DEVICE);

/// The bytes of all BARs.
pub(crate) struct Bars {
    slots: Arc<[Slot]>,
    kick: OnceLock<Kick>,
}

/// The number of a byte of a BAR; `None` if it has none.
pub(crate) fn number(device: usize, bar: u8, offset: u64) -> Option<u64> {
    let device = u64::try_from(device).ok().filter(|at| *at < DEVICES)?;
    (offset < LONGEST && bar < 6).then(|| FIRST | device << DEVICE | u64::from(bar) << BAR | offset)
}

/// Whether a number is that of a BAR's byte.
#[inline]
pub(crate) fn is_bar(address: u64) -> bool {
    address >= FIRST
}

impl Bars {
    pub(crate) fn new(slots: Arc<[Slot]>) -> Self {
        Self {
            slots,
            kick: OnceLock::new(),
        }
    }

    pub(crate) fn set_kick(&self, kick: Kick) {
        // The first that is given stays.
        let _ = self.kick.set(kick);
    }

    fn find(&self, address: u64) -> Result<(usize, &Slot, u8, u64), MemoryError> {
        let absent = MemoryError::Absent { address };
        let at = address.checked_sub(FIRST).ok_or(absent)?;
        let device = usize::try_from(at >> DEVICE).map_err(|_| absent)?;
        let [bar, ..] = (at >> BAR & 7).to_le_bytes();
        let slot = self.slots.get(device).ok_or(absent)?;
        Ok((device, slot, bar, at & LONGEST.wrapping_sub(1)))
    }
}

impl Memory for Bars {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let (_, slot, bar, offset) = self.find(address)?;
        let read = slot.read_bar(bar, offset, into);
        read.map_err(|_| MemoryError::Gone { address })
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let (device, slot, bar, offset) = self.find(address)?;
        let written = slot.write_bar(bar, offset, from);
        if written.map_err(|_| MemoryError::Gone { address })? == After::Work
            && let Some(kick) = self.kick.get()
        {
            kick(device);
        }
        Ok(())
    }

    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        let length = usize::try_from(width.bytes()).unwrap_or(8);
        self.read(address, bytes.get_mut(..length).unwrap_or_default())?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        let length = usize::try_from(width.bytes()).unwrap_or(8);
        let bytes = value.to_le_bytes();
        self.write(address, bytes.get(..length).unwrap_or_default())
    }

    fn compare_exchange(&self, address: u64, _: Width, _: u64, _: u64) -> Result<u64, MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
}
