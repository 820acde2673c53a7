//! Shared files of clients, found by their mappings. The ones used last are
//! kept for a moment, so that a program that maps and unmaps parts of one file
//! does not have it mapped here each time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iogate_memory::{ClientMemory, FileRange, Vma};
use rustix::fs::{Mode, OFlags};

/// Files kept at a time.
const MOST: usize = 16;
/// How long a file is kept unused. It keeps its memory that long even if the
/// client is done with it.
pub(crate) const KEPT: Duration = Duration::from_secs(1);

struct Recent {
    device: (u32, u32),
    inode: u64,
    write: bool,
    file: OwnedFd,
    /// Keeps the file mapped.
    _mapped: FileRange,
    used: Instant,
}

/// The files used last.
#[derive(Default)]
pub(crate) struct SharedFiles(Mutex<Vec<Recent>>);

impl SharedFiles {
    fn lock(&self) -> MutexGuard<'_, Vec<Recent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `length` bytes of the file of `vma` reachable, those at `va`;
    /// `None` if it is no shared file that lies in memory, or cannot be had.
    /// `process` is the directory of `/proc` of a process that has the mapping.
    pub(crate) fn map(
        &self,
        memory: &ClientMemory,
        process: impl AsFd,
        vma: &Vma,
        (va, length): (u64, u64),
        write: bool,
    ) -> Option<FileRange> {
        let offset = vma
            .file_offset(va)
            .filter(|_| vma.shared && vma.is_file())?;
        if let Some(range) = memory.find_device_memory(vma, va, length) {
            return Some(range);
        }
        let mut recent = self.lock();
        let known = recent
            .iter_mut()
            .find(|file| (file.device, file.inode, file.write) == (vma.device, vma.inode, write));
        if let Some(known) = known {
            known.used = Instant::now();
            let file = known.file.as_fd();
            return memory
                .find_file(vma, va, length, write)
                .or_else(|| memory.map_file(file, offset, length, write).ok());
        }
        let file = open(process, vma, write).ok()?;
        let range = memory.map_file(file.as_fd(), offset, length, write).ok()?;
        let mapped = memory.map_file(file.as_fd(), offset, 1, write).ok()?;
        if recent.len() >= MOST {
            let oldest = recent.iter().enumerate().min_by_key(|(_, file)| file.used);
            if let Some((oldest, _)) = oldest {
                recent.swap_remove(oldest);
            }
        }
        recent.push(Recent {
            device: vma.device,
            inode: vma.inode,
            write,
            file,
            _mapped: mapped,
            used: Instant::now(),
        });
        Some(range)
    }

    /// Lets go of files that were not used for a while.
    pub(crate) fn expire(&self) {
        self.lock().retain(|file| file.used.elapsed() < KEPT);
    }
}

/// Whether a file lies in memory only, so that its mappings behave as pinned
/// pages do: memfd, shm, hugetlbfs.
pub(crate) fn is_in_memory(file: impl AsFd) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    const HUGETLBFS: i64 = 0x9584_58f6;
    rustix::fs::fstatfs(file).is_ok_and(|fs| [TMPFS, HUGETLBFS].contains(&fs.f_type))
}

/// The file of a shared mapping: as root by the mapping itself, else by a
/// descriptor of the process.
fn open(process: impl AsFd, vma: &Vma, write: bool) -> io::Result<OwnedFd> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let open = |name: &str| {
        let open = |flags| {
            let flags = flags | OFlags::CLOEXEC;
            rustix::fs::openat(&process, name, flags, Mode::empty())
        };
        // Looked at before it is opened: an open may wait, or do something.
        let path = open(OFlags::PATH)?;
        if !is_file_of(&path, vma) || !is_in_memory(&path) {
            return Err(rustix::io::Errno::NODEV);
        }
        let file = open(access | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        match is_file_of(&file, vma) {
            true => Ok(file),
            false => Err(rustix::io::Errno::NODEV),
        }
    };
    if let Ok(file) = open(&format!("map_files/{:x}-{:x}", vma.start, vma.end)) {
        return Ok(file);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptors = rustix::fs::openat(&process, "fd", flags, Mode::empty())?;
    for entry in rustix::fs::Dir::new(descriptors)?.flatten() {
        if let Ok(name) = entry.file_name().to_str()
            && let Ok(file) = open(&format!("fd/{name}"))
        {
            return Ok(file);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn is_file_of(file: &OwnedFd, vma: &Vma) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| {
        let device = (
            rustix::fs::major(stat.st_dev),
            rustix::fs::minor(stat.st_dev),
        );
        (device, stat.st_ino) == (vma.device, vma.inode)
    })
}
