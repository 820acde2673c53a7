//! The processes whose memory addresses can name, by slot number.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use rustix::io::Errno;

use crate::process::Process;

/// Bits of an address that are the virtual address in a process.
const VA_BITS: u32 = 48;
const SLOTS_PER_CHUNK: u16 = 256;

/// A slot: its process while it has one. A reader holds the lock for one
/// access, and a writer comes only when nobody should be reading any more, so
/// no reader waits.
type Slot = RwLock<Option<Arc<Process>>>;

/// Slots 1 to 65534, made in chunks as they are needed. Addresses of the last
/// are left to who numbers other memory beside this one.
pub(crate) struct Slots {
    chunks: [OnceLock<Box<[Slot]>>; SLOTS_PER_CHUNK as usize],
    unused: Mutex<Unused>,
}

struct Unused {
    /// The lowest number that was never used.
    fresh: Option<u16>,
    /// Used and given back, the longest unused first: a stale address shall
    /// mean nothing for as long as possible.
    returned: VecDeque<u16>,
}

impl Slots {
    pub(crate) fn new() -> Self {
        Self {
            chunks: [const { OnceLock::new() }; SLOTS_PER_CHUNK as usize],
            unused: Mutex::new(Unused {
                fresh: Some(1),
                returned: VecDeque::new(),
            }),
        }
    }

    pub(crate) fn add(self: &Arc<Self>, process: Arc<Process>) -> io::Result<ProcessSlot> {
        let number = {
            let mut unused = self.unused();
            if let Some(fresh) = unused.fresh {
                unused.fresh = fresh.checked_add(1).filter(|next| *next < u16::MAX);
                fresh
            } else {
                unused.returned.pop_front().ok_or(Errno::NOSPC)?
            }
        };
        self.set(number, Some(Arc::clone(&process)));
        Ok(ProcessSlot {
            slots: Arc::clone(self),
            number,
            process,
        })
    }

    /// The process of slot `number`, kept in it until the guard is dropped.
    pub(crate) fn get(&self, number: u16) -> Option<RwLockReadGuard<'_, Option<Arc<Process>>>> {
        let [chunk, index] = number.to_be_bytes();
        let slot = self
            .chunks
            .get(usize::from(chunk))?
            .get()?
            .get(usize::from(index))?;
        Some(slot.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, number: u16, process: Option<Arc<Process>>) {
        let [chunk, index] = number.to_be_bytes();
        let Some(chunk) = self.chunks.get(usize::from(chunk)) else {
            return;
        };
        let chunk = chunk.get_or_init(|| (0..SLOTS_PER_CHUNK).map(|_| Slot::default()).collect());
        if let Some(slot) = chunk.get(usize::from(index)) {
            *slot.write().unwrap_or_else(PoisonError::into_inner) = process;
        }
    }

    fn unused(&self) -> MutexGuard<'_, Unused> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of an address that is the slot, and the one that is the virtual
/// address.
#[allow(clippy::cast_possible_truncation)] // 64 less 48 bits.
pub(crate) fn split(address: u64) -> (u16, u64) {
    ((address >> VA_BITS) as u16, address & va_mask())
}

/// The address of `va` in slot `number`.
pub(crate) fn join(number: u16, va: u64) -> u64 {
    u64::from(number) << VA_BITS | va
}

/// Whether `length` bytes from `va` on stay in a slot.
pub(crate) fn fits(va: u64, length: usize) -> bool {
    let end = va.checked_add(length as u64);
    end.is_some_and(|end| end <= 1 << VA_BITS)
}

const fn va_mask() -> u64 {
    (1 << VA_BITS) - 1
}

/// A process that has a slot. Dropping it gives the slot back: do that only
/// when the grace of every mapping that was made of it has passed.
#[derive(Debug)]
pub struct ProcessSlot {
    slots: Arc<Slots>,
    number: u16,
    process: Arc<Process>,
}

impl ProcessSlot {
    /// The slot's number, from 1 on.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The process.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// The address that names the byte at `va` of the process, in the
    /// numbering of the [`ClientMemory`](crate::ClientMemory) that the slot
    /// belongs to; `None` for a `va` of more than 48 bits, which a process
    /// has only if it asks for it (5-level paging).
    pub fn address(&self, va: u64) -> Option<u64> {
        (va <= va_mask()).then(|| join(self.number, va))
    }
}

impl Drop for ProcessSlot {
    fn drop(&mut self) {
        self.slots.set(self.number, None);
        self.slots.unused().returned.push_back(self.number);
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").finish_non_exhaustive()
    }
}
