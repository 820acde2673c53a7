//! Shared files in the window: each mapped once, with room to grow, for as
//! long as a range of it is in use.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use iogate_dma::Width;
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::free::FreeSpace;
use crate::vma::Vma;
use crate::window::Window;

/// Room that every file gets while there is enough of the window.
const ROOM: u64 = 64 << 20;
/// Alignment of a mapping, so that shared memory may use huge pages; more for
/// files whose own pages are larger, up to the largest page of the machine.
const ALIGNMENT: u64 = 2 << 20;
const LARGEST_PAGE: u64 = 1 << 30;

/// What names a file while one of its mappings exists: device and inode.
type FileKey = (u64, u64);

/// One mapping of a file, from the file's first byte on.
struct Mapping {
    base: u64,
    room: u64,
    writable: bool,
    users: usize,
}

struct Files {
    free: FreeSpace,
    /// A file has more than one mapping if it outgrew one that was in use, or
    /// if it was wanted writable after a mapping for reading.
    mappings: HashMap<FileKey, Vec<Mapping>>,
    /// Memory of devices, of whose files only that part is mapped.
    parts: Vec<Weak<Part>>,
}

/// A part of a file that is mapped for as long as this exists.
pub(crate) struct Part {
    files: Arc<FileWindow>,
    key: FileKey,
    /// Where it begins in the file.
    pub(crate) offset: u64,
    pub(crate) base: u64,
    pub(crate) length: u64,
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut files = self.files.files();
        files.parts.retain(|part| part.strong_count() > 0);
        // As in `release`.
        if self.files.window.hide(self.base, self.length).is_ok() {
            files.free.put(self.base, self.length);
        }
    }
}

impl Files {
    /// The base of a mapping that has the first `end` bytes of the file. It
    /// has one more user then.
    fn reuse(&mut self, key: FileKey, end: u64, writable: bool) -> Option<u64> {
        let known = self.mappings.get_mut(&key)?;
        let mapping = known
            .iter_mut()
            .find(|mapping| end <= mapping.room && (mapping.writable || !writable))?;
        mapping.users = mapping.users.saturating_add(1);
        Some(mapping.base)
    }
}

/// The window and the files that are mapped in it.
pub(crate) struct FileWindow {
    window: Window,
    files: Mutex<Files>,
}

impl FileWindow {
    pub(crate) fn new() -> io::Result<Self> {
        let window = Window::new()?;
        let files = Files {
            free: FreeSpace::new(window.length()),
            mappings: HashMap::new(),
            parts: Vec::new(),
        };
        Ok(Self {
            window,
            files: Mutex::new(files),
        })
    }

    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Maps `length` bytes of `file` from `offset` on, both whole pages, for as
    /// long as the part exists.
    pub(crate) fn map_part(
        self: &Arc<Self>,
        file: BorrowedFd<'_>,
        offset: u64,
        length: u64,
    ) -> io::Result<Arc<Part>> {
        let stat = rustix::fs::fstat(file)?;
        let mut files = self.files();
        let base = files.free.take(length, ALIGNMENT).ok_or(Errno::NOMEM)?;
        if let Err(error) = self.window.show(base, length, (file, offset), true) {
            files.free.put(base, length);
            return Err(error);
        }
        let part = Arc::new(Part {
            files: Arc::clone(self),
            key: (stat.st_dev, stat.st_ino),
            offset,
            base,
            length,
        });
        files.parts.push(Arc::downgrade(&part));
        Ok(part)
    }

    /// `length` bytes at `va` of `vma`, if they lie in a part that is mapped.
    pub(crate) fn find_part(
        self: &Arc<Self>,
        vma: &Vma,
        va: u64,
        length: u64,
    ) -> Option<FileRange> {
        let offset = vma.file_offset(va).filter(|_| vma.shared)?;
        let end = offset.checked_add(length)?;
        let (major, minor) = vma.device;
        let key = (rustix::fs::makedev(major, minor), vma.inode);
        let found = self.files().parts.iter().find_map(|part| {
            let part = part.upgrade()?;
            let part_end = part.offset.checked_add(part.length)?;
            (part.key == key && offset >= part.offset && end <= part_end).then_some(part)
        });
        let part = found?;
        let base = part.base.checked_add(offset.checked_sub(part.offset)?)?;
        let mut range = self.range(key, base, 0, length);
        range.part = Some(part);
        Some(range)
    }

    pub(crate) fn map(
        self: &Arc<Self>,
        file: BorrowedFd<'_>,
        offset: u64,
        length: u64,
        writable: bool,
    ) -> io::Result<FileRange> {
        let end = offset.checked_add(length).filter(|_| length > 0);
        let end = end.ok_or(Errno::INVAL)?;
        let stat = rustix::fs::fstat(file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::NODEV.into());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if end > size {
            return Err(Errno::FAULT.into());
        }
        let key = (stat.st_dev, stat.st_ino);
        let mut files = self.files();
        if let Some(base) = files.reuse(key, end, writable) {
            return Ok(self.range(key, base, offset, length));
        }
        let page = u64::try_from(stat.st_blksize).unwrap_or(0);
        let mapping = place(&self.window, &mut files.free, file, size, page, writable)?;
        let base = mapping.base;
        files.mappings.entry(key).or_default().push(mapping);
        Ok(self.range(key, base, offset, length))
    }

    /// What `map` gives for the bytes at `va` of `vma`, without the file's
    /// descriptor; `None` where that needs the descriptor or fails.
    pub(crate) fn find(
        self: &Arc<Self>,
        vma: &Vma,
        va: u64,
        length: u64,
        writable: bool,
    ) -> Option<FileRange> {
        if !vma.shared || !vma.is_file() || va.checked_add(length)? > vma.end {
            return None;
        }
        let offset = vma.file_offset(va)?;
        let end = offset.checked_add(length)?;
        let last = length.checked_sub(1)?;
        let (major, minor) = vma.device;
        let key = (rustix::fs::makedev(major, minor), vma.inode);
        let base = self.files().reuse(key, end, writable)?;
        let range = self.range(key, base, offset, length);
        // The mapping has room for the bytes; the file may end before them.
        let last = range.address.saturating_add(last);
        let exists = self.window.load(last, Width::Byte).is_ok();
        exists.then_some(range)
    }

    fn range(self: &Arc<Self>, key: FileKey, base: u64, offset: u64, length: u64) -> FileRange {
        FileRange {
            files: Arc::clone(self),
            key,
            base,
            address: base.saturating_add(offset),
            length,
            part: None,
        }
    }

    fn release(&self, key: FileKey, base: u64) {
        let mut files = self.files();
        let files = &mut *files;
        let Some(known) = files.mappings.get_mut(&key) else {
            return;
        };
        let Some(index) = known.iter().position(|mapping| mapping.base == base) else {
            return;
        };
        if let Some(mapping) = known.get_mut(index) {
            mapping.users = mapping.users.saturating_sub(1);
            if mapping.users > 0 {
                return;
            }
        }
        let mapping = known.swap_remove(index);
        if known.is_empty() {
            files.mappings.remove(&key);
        }
        // If the kernel refuses, the file stays mapped and its addresses are
        // not given to another.
        if self.window.hide(mapping.base, mapping.room).is_ok() {
            files.free.put(mapping.base, mapping.room);
        }
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Maps a whole file of `size` bytes and pages of `page` bytes, with room to
/// grow if the window has it.
fn place(
    window: &Window,
    free: &mut FreeSpace,
    file: BorrowedFd<'_>,
    size: u64,
    page: u64,
    writable: bool,
) -> io::Result<Mapping> {
    let alignment = match page {
        ALIGNMENT..=LARGEST_PAGE if page.is_power_of_two() => page,
        _ => ALIGNMENT,
    };
    let least = size.checked_next_multiple_of(alignment);
    let ample = size
        .checked_next_power_of_two()
        .map(|room| room.max(ROOM).max(alignment));
    let taken = [ample, least].into_iter().flatten().find_map(|room| {
        let base = free.take(room, alignment)?;
        Some((base, room))
    });
    let (base, room) = taken.ok_or(Errno::NOMEM)?;
    match window.show(base, room, (file, 0), writable) {
        Ok(()) => Ok(Mapping {
            base,
            room,
            writable,
            users: 1,
        }),
        Err(error) => {
            free.put(base, room);
            Err(error)
        }
    }
}

/// A range of a shared file that can be accessed. Dropping the last range of
/// a file unmaps it: do that only when the grace of the mapping that was made
/// of it has passed.
pub struct FileRange {
    files: Arc<FileWindow>,
    key: FileKey,
    base: u64,
    address: u64,
    length: u64,
    /// What it lies in, if that is not a mapping of the whole file.
    part: Option<Arc<Part>>,
}

impl FileRange {
    /// The first byte's address, in the numbering of the
    /// [`ClientMemory`](crate::ClientMemory) that it was made by.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes in the range.
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl Drop for FileRange {
    fn drop(&mut self) {
        if self.part.is_none() {
            self.files.release(self.key, self.base);
        }
    }
}

impl std::fmt::Debug for FileRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileRange")
            .field("address", &format_args!("{:#x}", self.address))
            .field("length", &format_args!("{:#x}", self.length))
            .finish_non_exhaustive()
    }
}
