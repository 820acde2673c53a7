//! Memory of a device as a part of a file that programs map too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use iogate_dma::{Memory, MemoryError, SharedMemory, Width};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::file::{FileWindow, Part};
use crate::window::{Window, check_aligned};

const PAGE: u64 = 4096;

/// A device's own memory: sparse, zero until it is written, in a file whose
/// size cannot be changed. A range of it that a program has mapped is found by
/// [`ClientMemory::find_device_memory`](crate::ClientMemory::find_device_memory).
pub struct DeviceMemory {
    files: Arc<FileWindow>,
    file: OwnedFd,
    part: Arc<Part>,
}

impl DeviceMemory {
    /// `length` bytes that stand at `offset` of a new file, which ends behind
    /// them.
    ///
    /// # Errors
    /// `EINVAL` if the two are no whole pages or nothing, `EFBIG` beyond what a
    /// file can hold, `ENOMEM` if the window has no room.
    pub(crate) fn new(files: &Arc<FileWindow>, offset: u64, length: u64) -> io::Result<Self> {
        let whole = length > 0 && offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
        let end = offset.checked_add(length).filter(|_| whole);
        let end = end.ok_or(Errno::INVAL)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("vfio-device", flags)?;
        rustix::fs::ftruncate(&file, end)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        let part = files.map_part(file.as_fd(), offset, length)?;
        Ok(Self {
            files: Arc::clone(files),
            file,
            part,
        })
    }

    fn window(&self) -> &Window {
        self.files.window()
    }

    /// Where `length` bytes at `address` stand in the window.
    fn at(&self, address: u64, length: usize) -> Result<u64, MemoryError> {
        let length = u64::try_from(length).ok();
        let end = length.and_then(|length| address.checked_add(length));
        let at = self.part.base.checked_add(address);
        at.filter(|_| end.is_some_and(|end| end <= self.part.length))
            .ok_or(MemoryError::Absent { address })
    }

    fn at_aligned(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        check_aligned(address, width)?;
        match address.checked_add(width.bytes()) {
            Some(end) if end <= self.part.length => Ok(self.part.base.saturating_add(address)),
            _ => Err(MemoryError::Absent { address }),
        }
    }
}

impl Memory for DeviceMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let at = self.at(address, into.len())?;
        let read = self.window().read(at, into);
        read.map_err(|_| MemoryError::Gone { address })
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let at = self.at(address, from.len())?;
        let written = self.window().write(at, from);
        written.map_err(|_| MemoryError::Gone { address })
    }

    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        let at = self.at_aligned(address, width)?;
        let loaded = self.window().load(at, width);
        loaded.map_err(|_| MemoryError::Gone { address })
    }

    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        let at = self.at_aligned(address, width)?;
        let stored = self.window().store(at, width, value);
        stored.map_err(|_| MemoryError::Gone { address })
    }

    fn compare_exchange(
        &self,
        address: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let at = self.at_aligned(address, width)?;
        let found = self.window().compare_exchange(at, width, current, new);
        found.map_err(|_| MemoryError::Gone { address })
    }
}

impl SharedMemory for DeviceMemory {
    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        Some((self.file.as_fd(), self.part.offset))
    }
}

impl std::fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceMemory")
            .field("offset", &format_args!("{:#x}", self.part.offset))
            .field("length", &format_args!("{:#x}", self.part.length))
            .finish_non_exhaustive()
    }
}
