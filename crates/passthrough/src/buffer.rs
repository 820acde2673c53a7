//! Memory that devices may be pointed at.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Page-aligned, zeroed memory of this process. A device may write to it at
/// any time while it is mapped for one, so it is read and written by copy.
pub struct Buffer {
    start: NonNull<AtomicU8>,
    length: usize,
}

impl Buffer {
    /// `length` bytes, rounded up to whole pages.
    pub fn new(length: usize) -> io::Result<Self> {
        let length = length.max(1).next_multiple_of(rustix::param::page_size());
        // SAFETY: an anonymous mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::POPULATE,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// Bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }

    fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the mapping holds `length` bytes and lives as long as self;
        // atomics may be shared with a device.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// Copies from `offset`; what lies past the end stays as it is.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        for (byte, from) in into.iter_mut().zip(self.bytes().iter().skip(offset)) {
            *byte = from.load(Ordering::Acquire);
        }
    }

    /// Copies to `offset`; what lies past the end is dropped.
    pub fn write(&self, offset: usize, from: &[u8]) {
        for (byte, to) in from.iter().zip(self.bytes().iter().skip(offset)) {
            to.store(*byte, Ordering::Release);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nothing borrows it any more. A
        // device that still has it mapped keeps its own pin of the pages.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

// SAFETY: the memory is only accessed through atomics.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}
