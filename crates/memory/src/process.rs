//! The private memory of another process, through files that name its address
//! space and never that of a process that comes after it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use iogate_dma::{MemoryError, Rights};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::vm::Vm;
use crate::vma::{self, Vma};

/// Bytes that a string is read by: what the lowest byte of an address counts,
/// so that no piece crosses a page.
const PIECE: usize = 256;

/// The address space that a process had when it was opened. After the process
/// has exited or executed another program everything gives
/// [`MemoryError::Gone`].
#[derive(Debug)]
pub struct Process {
    bytes: Bytes,
    /// Names the address space, and tells its end.
    maps: OwnedFd,
}

/// How the bytes are reached.
#[derive(Debug)]
enum Bytes {
    /// By an open `/proc/PID/mem`.
    File(OwnedFd),
    /// By number, where that file is root's: the process is not dumpable. Of
    /// what is read or written, nothing counts unless `maps` says afterwards
    /// that the address space was there; nothing is written unless it says so
    /// before.
    Number(Vm),
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
        let maps = open("maps", OFlags::RDONLY)?;
        let bytes = match open("mem", OFlags::RDWR) {
            Ok(mem) => Bytes::File(mem),
            Err(error @ (Errno::ACCESS | Errno::PERM)) => {
                let vm = Vm::open(open("status", OFlags::RDONLY)?)?;
                Bytes::Number(vm.ok_or(error)?)
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { bytes, maps })
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
            let into = into.get_mut(done..).unwrap_or_default();
            match &self.bytes {
                Bytes::File(mem) => rustix::io::pread(mem, into, at),
                Bytes::Number(vm) => self.witnessed(|| vm.read(at, into)),
            }
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
            let from = from.get(done..).unwrap_or_default();
            match &self.bytes {
                Bytes::File(mem) => rustix::io::pwrite(mem, from, at),
                Bytes::Number(vm) => self.witnessed(|| vm.write(at, from)),
            }
        })
    }

    /// What `transfer` by number gives, if the address space is in use before
    /// and after it; 0, as the file would give, if not.
    fn witnessed(
        &self,
        transfer: impl FnOnce() -> rustix::io::Result<usize>,
    ) -> rustix::io::Result<usize> {
        if !vma::is_in_use(self.maps.as_fd()) {
            return Ok(0);
        }
        let done = transfer();
        if vma::is_in_use(self.maps.as_fd()) {
            done
        } else {
            Ok(0)
        }
    }

    /// Whether the address space is still in use.
    pub fn is_in_use(&self) -> bool {
        vma::is_in_use(self.maps.as_fd())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::process::{Child, Command, Stdio};

    /// A process that waits, as one that is not dumpable is reached.
    fn by_number() -> (Child, Process) {
        let pipe = Stdio::piped;
        let mut child = Command::new("cat")
            .stdin(pipe())
            .stdout(pipe())
            .spawn()
            .unwrap();
        let echo = (b"!", &mut [0]);
        io::Write::write_all(child.stdin.as_mut().unwrap(), echo.0).unwrap();
        io::Read::read_exact(child.stdout.as_mut().unwrap(), echo.1).unwrap();
        let open = |name| {
            File::open(format!("/proc/{}/{name}", child.id()))
                .unwrap()
                .into()
        };
        let process = Process {
            bytes: Bytes::Number(Vm::open(open("status")).unwrap().unwrap()),
            maps: open("maps"),
        };
        (child, process)
    }

    #[test]
    fn by_number_a_process_is_read_and_written_where_it_may_itself() {
        let (mut child, process) = by_number();
        let maps = io::read_to_string(File::open(format!("/proc/{}/maps", child.id())).unwrap());
        let maps = maps.unwrap();
        let start = |line: &str| u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        let stack = start(maps.lines().find(|line| line.ends_with("[stack]")).unwrap());
        let mut bytes = [0; 4];
        process.write(stack + 4, &[1, 2, 3, 4]).unwrap();
        process.read(stack + 4, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        let code = start(maps.lines().find(|line| line.contains(" r-xp ")).unwrap());
        let absent = |address| Err(MemoryError::Absent { address });
        assert_eq!(process.write(code, &[0]), absent(code));
        assert_eq!(process.write_pinned(code, &[0]), absent(code));
        assert_eq!(process.read(0, &mut bytes), absent(0));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn by_number_a_process_that_is_gone_is_gone() {
        let (mut child, mut process) = by_number();
        assert!(process.is_in_use());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_in_use());
        // The number means another process by now: this one.
        let status = File::open("/proc/self/status").unwrap().into();
        process.bytes = Bytes::Number(Vm::open(status).unwrap().unwrap());
        let mut here = [7_u8];
        let va = here.as_mut_ptr().expose_provenance() as u64;
        let gone = Err(MemoryError::Gone { address: va });
        assert_eq!(process.read(va, &mut [0]), gone);
        assert_eq!(process.write(va, &[0]), gone);
        assert_eq!(process.write_pinned(va, &[0]), gone);
        assert_eq!(here, [7]);
    }
}
