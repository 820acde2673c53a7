//! The window: one reserved region of our own addresses, in which files of
//! clients are mapped. Whatever number is used as an offset in it, no other
//! memory of ours is reached.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;

use iogate_dma::{MemoryError, Width};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use crate::{fault, touch};

/// Bytes that are asked for first, and the least that is of use.
const LARGEST: usize = 1 << 44;
const SMALLEST: usize = 1 << 26;
/// The window begins at a multiple of this, the largest page of the machine:
/// an offset of whole pages is an address of whole pages.
const ALIGNMENT: usize = 1 << 30;

/// A reserved region. Dropping it unmaps everything in it.
pub(crate) struct Window {
    base: *mut u8,
    length: u64,
}

// SAFETY: `base` is an address, not memory that a thread owns; what is mapped
// there is only touched by the routines of `touch`, from any thread.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Reserves as much as the kernel and `RLIMIT_AS` allow: 16 TiB, or the
    /// largest power of two from 64 MiB on.
    pub(crate) fn new() -> io::Result<Self> {
        fault::install()?;
        let mut length = LARGEST;
        loop {
            match reserve_aligned(length) {
                Ok(base) => {
                    return Ok(Self {
                        base,
                        length: length as u64,
                    });
                }
                Err(error) if length <= SMALLEST => return Err(error),
                Err(_) => length >>= 1,
            }
        }
    }

    /// Bytes in the window.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Maps `length` bytes of `file` from byte `from` on, also where it ends
    /// earlier, at `offset`, over what was there.
    ///
    /// # Errors
    /// What mmap(2) and mprotect(2) give; `EINVAL` outside of the window.
    pub(crate) fn show(
        &self,
        offset: u64,
        length: u64,
        (file, from): (BorrowedFd<'_>, u64),
        writable: bool,
    ) -> io::Result<()> {
        let (at, length) = self.part(offset, length)?;
        // NORESERVE: a hugetlbfs mapping must not take pages of the pool.
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range lies in the window, whose memory nothing refers to.
        unsafe { rustix::mm::mmap(at, length, ProtFlags::READ, flags, file, from) }?;
        if writable {
            // In a second step: hugetlbfs makes a file as long as a mapping
            // that is made writable at once.
            let rights = MprotectFlags::READ | MprotectFlags::WRITE;
            // SAFETY: as above.
            if let Err(error) = unsafe { rustix::mm::mprotect(at, length, rights) } {
                self.hide(offset, length as u64)?;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Takes away what is mapped at `offset`; the addresses stay reserved.
    pub(crate) fn hide(&self, offset: u64, length: u64) -> io::Result<()> {
        let (at, length) = self.part(offset, length)?;
        reserve(at, length, MapFlags::FIXED).map(|_| ())
    }

    /// Fills `into` from `offset` on.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.at(offset, into.len() as u64)?;
        // SAFETY: a slice is no part of the window, `from` is one of that
        // length, and the handler was installed before the window existed.
        unsafe { touch::copy(into.as_mut_ptr(), from, into.len()) }
            .map_err(|stopped| stopped.error(offset))
    }

    /// Writes `from` to `offset` on.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> Result<(), MemoryError> {
        let to = self.at(offset, from.len() as u64)?;
        // SAFETY: as in `read`.
        unsafe { touch::copy(to, from.as_ptr(), from.len()) }
            .map_err(|stopped| stopped.error(offset))
    }

    /// One atomic load.
    pub(crate) fn load(&self, offset: u64, width: Width) -> Result<u64, MemoryError> {
        let from = self.at_aligned(offset, width)?;
        // SAFETY: as in `read`.
        unsafe { touch::load(from, width) }.map_err(|stopped| stopped.error(offset))
    }

    /// [`load`](Self::load) without a word about why not; the caller has seen
    /// to the alignment.
    #[inline]
    pub(crate) fn try_load(&self, offset: u64, width: Width) -> Option<u64> {
        let from = self.word(offset)?;
        // SAFETY: as in `read`.
        unsafe { touch::load(from, width) }.ok()
    }

    /// [`store`](Self::store) in the same way: whether it came to its end.
    #[inline]
    pub(crate) fn try_store(&self, offset: u64, width: Width, value: u64) -> bool {
        let to = self.word(offset);
        // SAFETY: as in `read`.
        to.is_some_and(|to| unsafe { touch::store(to, width, value) }.is_ok())
    }

    /// Where an aligned word stands. The window is of whole words: one that
    /// begins in it lies in it.
    #[inline]
    fn word(&self, offset: u64) -> Option<*mut u8> {
        let index = usize::try_from(offset).ok();
        let index = index.filter(|_| offset < self.length)?;
        Some(self.base.wrapping_add(index))
    }

    /// One atomic store.
    pub(crate) fn store(&self, offset: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        let to = self.at_aligned(offset, width)?;
        // SAFETY: as in `read`.
        unsafe { touch::store(to, width, value) }.map_err(|stopped| stopped.error(offset))
    }

    /// One atomic compare and exchange.
    pub(crate) fn compare_exchange(
        &self,
        offset: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let at = self.at_aligned(offset, width)?;
        // SAFETY: as in `read`.
        unsafe { touch::compare_exchange(at, width, current, new) }
            .map_err(|stopped| stopped.error(offset))
    }

    /// The address of `length` bytes at `offset`, all in the window.
    fn at(&self, offset: u64, length: u64) -> Result<*mut u8, MemoryError> {
        let end = offset.checked_add(length);
        match (end, usize::try_from(offset)) {
            (Some(end), Ok(index)) if end <= self.length => Ok(self.base.wrapping_add(index)),
            _ => Err(MemoryError::Absent {
                address: offset.max(self.length),
            }),
        }
    }

    fn at_aligned(&self, offset: u64, width: Width) -> Result<*mut u8, MemoryError> {
        check_aligned(offset, width)?;
        self.at(offset, width.bytes())
    }

    fn part(&self, offset: u64, length: u64) -> io::Result<(*mut c_void, usize)> {
        let refused = |_| io::Error::from(rustix::io::Errno::INVAL);
        let at = self.at(offset, length).map_err(refused)?;
        // No more than the window's length, which was a usize.
        let length = usize::try_from(length).unwrap_or(0);
        Ok((at.cast(), length))
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let length = usize::try_from(self.length).unwrap_or(0);
        // If the kernel refuses, the addresses stay in use.
        // SAFETY: the region that `new` reserved, which nothing refers to.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), length) };
    }
}

/// [`MemoryError::Misaligned`] if `address` is no multiple of `width`.
pub(crate) fn check_aligned(address: u64, width: Width) -> Result<(), MemoryError> {
    if address.is_multiple_of(width.bytes()) {
        Ok(())
    } else {
        Err(MemoryError::Misaligned { address, width })
    }
}

/// Maps inaccessible pages that cost no memory.
fn reserve(at: *mut c_void, length: usize, extra: MapFlags) -> io::Result<*mut c_void> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | extra;
    // SAFETY: a new mapping where the kernel likes, or (`hide`) one in the
    // window.
    let base = unsafe { rustix::mm::mmap_anonymous(at, length, ProtFlags::empty(), flags) }?;
    Ok(base)
}

/// Reserves `length` bytes at a multiple of [`ALIGNMENT`].
fn reserve_aligned(length: usize) -> io::Result<*mut u8> {
    let more = length.saturating_add(ALIGNMENT);
    let start = reserve(ptr::null_mut(), more, MapFlags::empty())?.cast::<u8>();
    let before = start.align_offset(ALIGNMENT).min(ALIGNMENT);
    let base = start.wrapping_add(before);
    let after = ALIGNMENT.saturating_sub(before);
    for (at, length) in [(start, before), (base.wrapping_add(length), after)] {
        if length > 0 {
            // If the kernel refuses, the addresses stay in use.
            // SAFETY: a part of what was reserved, which nothing refers to.
            let _ = unsafe { rustix::mm::munmap(at.cast(), length) };
        }
    }
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_at_and_past_the_end_reach_nothing() {
        let window = Window::new().unwrap();
        let end = window.length();
        let mut bytes = [0; 16];
        for offset in [0, end - 16, end - 1, end, end + 1, u64::MAX - 15, u64::MAX] {
            let absent = Err(MemoryError::Absent {
                address: if offset <= end - 16 {
                    offset
                } else {
                    offset.max(end)
                },
            });
            assert_eq!(window.read(offset, &mut bytes), absent, "{offset:#x}");
            assert_eq!(window.write(offset, &bytes), absent, "{offset:#x}");
        }
        for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
            let last = end - width.bytes();
            let absent = MemoryError::Absent { address: last };
            assert_eq!(window.load(last, width), Err(absent));
            assert_eq!(window.store(last, width, 0), Err(absent));
            assert_eq!(window.compare_exchange(last, width, 0, 0), Err(absent));
            let absent = MemoryError::Absent { address: end };
            assert_eq!(window.load(end, width), Err(absent));
        }
    }

    #[test]
    fn an_empty_access_reaches_nothing_and_succeeds() {
        let window = Window::new().unwrap();
        assert_eq!(window.read(0, &mut []), Ok(()));
        assert_eq!(window.write(window.length(), &[]), Ok(()));
    }
}
