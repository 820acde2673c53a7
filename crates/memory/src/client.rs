//! The memory of all programs of a session behind one numbering.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use iogate_dma::{Memory, MemoryError, Width};

use crate::device::DeviceMemory;
use crate::file::{FileRange, FileWindow};
use crate::process::Process;
use crate::slot::{self, ProcessSlot, Slots};
use crate::vma::Vma;
use crate::window::check_aligned;

/// Shared files and processes as one [`Memory`]; the crate's documentation has
/// the numbering.
///
/// In shared files a `read` or `write` of up to 64 bytes goes in ascending
/// order, aligned words whole: who sees the end of a queue entry that was
/// written so sees all of it. Longer ones go in no order.
///
/// A `load` or `store` in a process is one system call, not one access of the
/// bus: the program may see a part of it. `compare_exchange` there is
/// [`MemoryError::NotAtomic`]. In shared files all three are atomic.
pub struct ClientMemory {
    files: Arc<FileWindow>,
    slots: Arc<Slots>,
}

impl ClientMemory {
    /// Reserves the window: addresses, no memory. Installs the process-wide
    /// fault handler the first time.
    ///
    /// # Errors
    /// `ENOMEM` if not even 64 MiB of addresses are to be had (`RLIMIT_AS`).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            files: Arc::new(FileWindow::new()?),
            slots: Arc::new(Slots::new()),
        })
    }

    /// Makes `length` bytes of a shared file from `offset` on reachable. The
    /// file is mapped as a whole and once, however many ranges are made, and
    /// stays mapped, with its memory, until the last range is dropped.
    ///
    /// # Errors
    /// `EINVAL` for an empty range or one that wraps, `EFAULT` if the file
    /// ends before it, `ENODEV` if it is no regular file, `EACCES` or `EPERM`
    /// if it may not be mapped so, `ENOMEM` if the window has no room for the
    /// whole file. Its bytes are still within reach then, by a process that
    /// has it mapped.
    pub fn map_file(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        length: u64,
        writable: bool,
    ) -> io::Result<FileRange> {
        self.files.map(file, offset, length, writable)
    }

    /// What [`map_file`](Self::map_file) gives for `length` bytes at `va` of a
    /// process's mapping, if their file is mapped here already: without
    /// opening it, which costs more than all the rest.
    ///
    /// `None` if the mapping is private, is of no file, or does not hold all
    /// the bytes; if the file is not mapped here, or not so far; if it ends
    /// before them. Then `map_file` does it, or says why it cannot be done.
    pub fn find_file(&self, vma: &Vma, va: u64, length: u64, writable: bool) -> Option<FileRange> {
        self.files.find(vma, va, length, writable)
    }

    /// `length` bytes at `va` of a process's mapping, if they are of a
    /// [`DeviceMemory`] that was made here.
    pub fn find_device_memory(&self, vma: &Vma, va: u64, length: u64) -> Option<FileRange> {
        self.files.find_part(vma, va, length)
    }

    /// Makes memory for a device: `length` bytes that stand at `offset` of a
    /// file of their own, both whole pages. They take a part of the window until
    /// the memory and every range of it are dropped.
    ///
    /// # Errors
    /// `EINVAL` if the two are no whole pages or nothing, `EFBIG` beyond what a
    /// file can hold, `ENOMEM` if the window has no room.
    pub fn make_device_memory(&self, offset: u64, length: u64) -> io::Result<DeviceMemory> {
        DeviceMemory::new(&self.files, offset, length)
    }

    /// Gives a process a slot.
    ///
    /// # Errors
    /// `ENOSPC` if all 65,534 are in use.
    pub fn add_process(&self, process: Arc<Process>) -> io::Result<ProcessSlot> {
        self.slots.add(process)
    }

    /// Calls `access` with the process of slot `number`, and gives its error
    /// the address that it has here.
    fn in_process<T>(
        &self,
        number: u16,
        va: u64,
        length: usize,
        access: impl FnOnce(&Process) -> Result<T, MemoryError>,
    ) -> Result<T, MemoryError> {
        let slot = self.slots.get(number);
        let process = slot.as_ref().and_then(|slot| slot.as_deref());
        let process = process.filter(|_| slot::fits(va, length));
        let process = process.ok_or(MemoryError::Absent {
            address: slot::join(number, va),
        })?;
        access(process).map_err(|error| match error {
            MemoryError::Absent { address } => MemoryError::Absent {
                address: slot::join(number, address),
            },
            MemoryError::Gone { address } => MemoryError::Gone {
                address: slot::join(number, address),
            },
            other => other,
        })
    }
}

impl Memory for ClientMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        match slot::split(address) {
            (0, offset) => self.files.window().read(offset, into),
            (number, va) => {
                self.in_process(number, va, into.len(), |process| process.read(va, into))
            }
        }
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        match slot::split(address) {
            (0, offset) => self.files.window().write(offset, from),
            (number, va) => self.in_process(number, va, from.len(), |process| {
                process.write_pinned(va, from)
            }),
        }
    }

    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        match slot::split(address) {
            (0, offset) => self.files.window().load(offset, width),
            _ => {
                check_aligned(address, width)?;
                let mut bytes = [0; 8];
                self.read(address, low(&mut bytes, width))?;
                Ok(u64::from_le_bytes(bytes))
            }
        }
    }

    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        match slot::split(address) {
            (0, offset) => self.files.window().store(offset, width, value),
            _ => {
                check_aligned(address, width)?;
                self.write(address, low(&mut value.to_le_bytes(), width))
            }
        }
    }

    fn compare_exchange(
        &self,
        address: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        match slot::split(address) {
            (0, offset) => self
                .files
                .window()
                .compare_exchange(offset, width, current, new),
            _ => {
                check_aligned(address, width)?;
                Err(MemoryError::NotAtomic { address })
            }
        }
    }
}

/// The bytes that an access of `width` moves.
fn low(bytes: &mut [u8; 8], width: Width) -> &mut [u8] {
    let (low, _) = match width {
        Width::Byte => bytes.split_at_mut(1),
        Width::Word => bytes.split_at_mut(2),
        Width::Dword => bytes.split_at_mut(4),
        Width::Qword => bytes.split_at_mut(8),
    };
    low
}
