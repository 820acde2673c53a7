//! The private memory of another process, through files that name its address
//! space and never that of a process that comes after it.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

use iogate_dma::{MemoryError, Rights};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::vma::{self, Vma};

/// Bytes that a string is read by: what the lowest byte of an address counts,
/// so that no piece crosses a page.
const PIECE: usize = 256;

/// The address space that a process had when it was opened. After the process
/// has exited or executed another program everything gives
/// [`MemoryError::Gone`].
#[derive(Debug)]
pub struct Process {
    mem: OwnedFd,
    maps: OwnedFd,
}

impl Process {
    /// Opens the memory of the process that thread `tid` belongs to.
    ///
    /// A number can be another thread by the time of this call. A caller that
    /// has it from a seccomp notification checks afterwards that the
    /// notification is still valid: then the thread has been waiting all the
    /// time, and its process has not executed another program.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` without such a thread; `EACCES` or `EPERM` if its
    /// memory may not be written (ptrace(2), "access mode checking").
    pub fn open(tid: i32) -> io::Result<Self> {
        // By one directory, which stays that of this thread.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(format!("/proc/{tid}"), flags, Mode::empty())?;
        let open = |name, flags| {
            rustix::fs::openat(&directory, name, flags | OFlags::CLOEXEC, Mode::empty())
        };
        Ok(Self {
            mem: open("mem", OFlags::RDWR)?,
            maps: open("maps", OFlags::RDONLY)?,
        })
    }

    /// Fills `into` from `va` on.
    ///
    /// What a process keeps itself from reading (`PROT_NONE`) is read all the
    /// same; [`check`](Self::check) tells.
    ///
    /// # Errors
    /// [`MemoryError::Absent`] with the first byte that is not mapped; what
    /// was before it has been read. [`MemoryError::Gone`] with the process.
    pub fn read(&self, va: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        transfer(va, into.len(), |at, done| {
            rustix::io::pread(&self.mem, into.get_mut(done..).unwrap_or_default(), at)
        })
    }

    /// Writes `from` to `va` on, where the process itself could write: what
    /// the kernel's answer to a system call does.
    ///
    /// # Errors
    /// As for [`read`](Self::read); [`MemoryError::Absent`] also where the
    /// process may not write. Nothing is written then.
    pub fn write(&self, va: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.check(va, from.len() as u64, Rights::WRITE)?;
        self.write_pinned(va, from)
    }

    /// Writes `from` to `va` on as a device does to pages that were pinned
    /// when the process could write them: its protection is not asked again.
    pub(crate) fn write_pinned(&self, va: u64, from: &[u8]) -> Result<(), MemoryError> {
        transfer(va, from.len(), |at, done| {
            rustix::io::pwrite(&self.mem, from.get(done..).unwrap_or_default(), at)
        })
    }

    /// Reads the string at `va`; `None` if its first `limit` bytes have no
    /// NUL.
    ///
    /// # Errors
    /// As for [`read`](Self::read), for bytes up to the NUL only.
    pub fn read_string(&self, va: u64, limit: usize) -> Result<Option<CString>, MemoryError> {
        let mut string = Vec::new();
        let mut piece = [0; PIECE];
        while string.len() < limit {
            let at = va.saturating_add(string.len() as u64);
            let in_piece = usize::from(at.to_le_bytes()[0]);
            let length = PIECE
                .saturating_sub(in_piece)
                .min(limit.saturating_sub(string.len()));
            let piece = piece.get_mut(..length).unwrap_or_default();
            self.read(at, piece)?;
            let nul = piece.iter().position(|byte| *byte == 0);
            string.extend(piece.iter().take(nul.unwrap_or(length)));
            if nul.is_some() {
                return Ok(CString::new(string).ok());
            }
        }
        Ok(None)
    }

    /// The mapping that `va` lies in.
    ///
    /// # Errors
    /// [`MemoryError::Absent`] if there is none, [`MemoryError::Gone`] with
    /// the process.
    pub fn vma_at(&self, va: u64) -> Result<Vma, MemoryError> {
        vma::find(&self.maps, va)
    }

    /// Whether the process itself has `rights` on all of `length` bytes from
    /// `va` on. They may be in several mappings.
    ///
    /// # Errors
    /// [`MemoryError::Absent`] with the first byte that is not mapped or not
    /// allowed; [`MemoryError::Gone`] with the process.
    pub fn check(&self, va: u64, length: u64, rights: Rights) -> Result<(), MemoryError> {
        let end = va
            .checked_add(length)
            .ok_or(MemoryError::Absent { address: va })?;
        let mut at = va;
        while at < end {
            let vma = self.vma_at(at)?;
            if !vma.rights.covers(rights) {
                return Err(MemoryError::Absent { address: at });
            }
            at = vma.end;
        }
        Ok(())
    }
}

/// Repeats `call` (address, bytes done) until `length` bytes are done.
fn transfer(
    va: u64,
    length: usize,
    mut call: impl FnMut(u64, usize) -> rustix::io::Result<usize>,
) -> Result<(), MemoryError> {
    let mut done = 0_usize;
    while done < length {
        let address = va
            .checked_add(done as u64)
            .ok_or(MemoryError::Absent { address: u64::MAX })?;
        match call(address, done) {
            // mem_rw() in fs/proc/base.c: 0 bytes when the address space has
            // no users left, EIO for a byte that cannot be accessed.
            Ok(0) => return Err(MemoryError::Gone { address }),
            Ok(count) => done = done.saturating_add(count),
            Err(Errno::INTR) => {}
            Err(_) => return Err(MemoryError::Absent { address }),
        }
    }
    Ok(())
}
