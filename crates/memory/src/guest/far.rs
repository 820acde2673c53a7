//! The window of guest memory: its lower half is guest-physical addresses, in
//! its upper half stands what cannot be mapped at its own address.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use iogate_dma::{MemoryError, Width};
use rustix::io::Errno;

use crate::free::FreeSpace;
use crate::window::Window;

/// The window and what of its upper half is free.
pub(super) struct Space {
    window: Window,
    /// Bytes of the lower half.
    near: u64,
    free: Mutex<FreeSpace>,
}

impl Space {
    pub(super) fn new() -> io::Result<Self> {
        let window = Window::new()?;
        let near = window.length() / 2;
        let mut free = FreeSpace::new(window.length());
        // Lowest first: the lower half.
        free.take(near, 1);
        Ok(Self {
            window,
            near,
            free: Mutex::new(free),
        })
    }

    /// The whole window. Offsets at and above [`near`](Self::near) are no
    /// guest-physical addresses.
    pub(super) fn window(&self) -> &Window {
        &self.window
    }

    /// The first address that has no place of its own.
    pub(super) fn near(&self) -> u64 {
        self.near
    }

    fn check(&self, address: u64, length: u64) -> Result<(), MemoryError> {
        let end = address.checked_add(length);
        match end.is_some_and(|end| end <= self.near) {
            true => Ok(()),
            false => Err(MemoryError::Absent { address }),
        }
    }

    pub(super) fn near_read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        self.check(address, into.len() as u64)?;
        self.window.read(address, into)
    }

    pub(super) fn near_write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.check(address, from.len() as u64)?;
        self.window.write(address, from)
    }

    /// A load of an aligned word of the lower half; `None` if it is none, or
    /// does not come to its end.
    #[inline]
    pub(super) fn near_load(&self, address: u64, width: Width) -> Option<u64> {
        // The half is of whole words: an aligned one that begins in it lies in
        // it.
        let is_near = address < self.near && address & width.bytes().wrapping_sub(1) == 0;
        match is_near {
            true => self.window.try_load(address, width),
            false => None,
        }
    }

    /// A store, as [`near_load`](Self::near_load); whether it came to its end.
    #[inline]
    pub(super) fn near_store(&self, address: u64, width: Width, value: u64) -> bool {
        let is_near = address < self.near && address & width.bytes().wrapping_sub(1) == 0;
        is_near && self.window.try_store(address, width, value)
    }

    pub(super) fn near_exchange(
        &self,
        address: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        self.check(address, width.bytes())?;
        self.window.compare_exchange(address, width, current, new)
    }

    /// Maps the pages of `page` bytes that hold `length` bytes of a file from
    /// `offset` on, somewhere in the upper half.
    pub(super) fn place(
        self: &Arc<Self>,
        file: BorrowedFd<'_>,
        (offset, length): (u64, u64),
        page: u64,
        writable: bool,
    ) -> io::Result<Far> {
        let start = offset.checked_div(page).ok_or(Errno::INVAL)?;
        let start = start.saturating_mul(page);
        let end = offset.checked_add(length).ok_or(Errno::INVAL)?;
        let end = end.checked_next_multiple_of(page).ok_or(Errno::INVAL)?;
        let room = end.saturating_sub(start);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let base = free.take(room, page).ok_or(Errno::NOMEM)?;
        if let Err(error) = self.window.show(base, room, (file, start), writable) {
            free.put(base, room);
            return Err(error);
        }
        Ok(Far {
            space: Arc::clone(self),
            base,
            room,
            first: base.saturating_add(offset.saturating_sub(start)),
        })
    }
}

/// A range of a file in the upper half, mapped for as long as this exists.
pub(super) struct Far {
    space: Arc<Space>,
    base: u64,
    room: u64,
    /// Where the range's first byte stands in the window.
    first: u64,
}

impl Far {
    /// Runs `access` on the place of the range's byte `offset`; its error
    /// names guest-physical addresses, of which `address` is the first.
    fn at<T>(
        &self,
        address: u64,
        offset: u64,
        access: impl FnOnce(&Window, u64) -> Result<T, MemoryError>,
    ) -> Result<T, MemoryError> {
        let place = self.first.saturating_add(offset);
        let address_of = |at: u64| address.saturating_add(at.saturating_sub(place));
        access(&self.space.window, place).map_err(|error| match error {
            MemoryError::Absent { address } => MemoryError::Absent {
                address: address_of(address),
            },
            MemoryError::Gone { address } => MemoryError::Gone {
                address: address_of(address),
            },
            other => other,
        })
    }

    pub(super) fn read(
        &self,
        address: u64,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), MemoryError> {
        self.at(address, offset, |window, at| window.read(at, into))
    }

    pub(super) fn write(&self, address: u64, offset: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.at(address, offset, |window, at| window.write(at, from))
    }

    pub(super) fn load(&self, address: u64, offset: u64, width: Width) -> Result<u64, MemoryError> {
        self.at(address, offset, |window, at| window.load(at, width))
    }

    pub(super) fn store(
        &self,
        address: u64,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Result<(), MemoryError> {
        self.at(address, offset, |window, at| window.store(at, width, value))
    }

    pub(super) fn compare_exchange(
        &self,
        address: u64,
        offset: u64,
        width: Width,
        (current, new): (u64, u64),
    ) -> Result<u64, MemoryError> {
        self.at(address, offset, |window, at| {
            window.compare_exchange(at, width, current, new)
        })
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // If the kernel refuses, the addresses are not given to another.
        if self.space.window.hide(self.base, self.room).is_ok() {
            let free = &self.space.free;
            let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
            free.put(self.base, self.room);
        }
    }
}
