//! Memory of a process by its number: process_vm_readv(2) and
//! process_vm_writev(2), whose number can come to mean another process.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

/// The number of a process.
#[derive(Debug)]
pub(crate) struct Vm(libc::pid_t);

impl Vm {
    /// From an open `/proc/TID/status`: the process (thread group), because
    /// the thread may end before it.
    pub(crate) fn open(status: OwnedFd) -> io::Result<Option<Self>> {
        let text = io::read_to_string(File::from(status))?;
        let mut lines = text.lines();
        let number = lines.find_map(|line| line.strip_prefix("Tgid:"));
        Ok(number
            .and_then(|number| number.trim().parse().ok())
            .map(Self))
    }

    /// Reads what the process itself may read. Returns how many bytes that
    /// were, 0 if there is no such process.
    pub(crate) fn read(&self, va: u64, into: &mut [u8]) -> rustix::io::Result<usize> {
        let local = libc::iovec {
            iov_base: into.as_mut_ptr().cast(),
            iov_len: into.len(),
        };
        let remote = remote(va, into.len())?;
        // SAFETY: each array has the one element that is said; the kernel
        // writes at most `into.len()` bytes to `into`, and checks `remote`.
        count(unsafe {
            libc::process_vm_readv(self.0, &raw const local, 1, &raw const remote, 1, 0)
        })
    }

    /// Writes where the process itself may write. Returns how many bytes, 0 if
    /// there is no such process.
    pub(crate) fn write(&self, va: u64, from: &[u8]) -> rustix::io::Result<usize> {
        let local = libc::iovec {
            iov_base: from.as_ptr().cast_mut().cast(),
            iov_len: from.len(),
        };
        let remote = remote(va, from.len())?;
        // SAFETY: each array has the one element that is said; the kernel only
        // reads `from`, and checks `remote`.
        count(unsafe {
            libc::process_vm_writev(self.0, &raw const local, 1, &raw const remote, 1, 0)
        })
    }
}

fn remote(va: u64, length: usize) -> rustix::io::Result<libc::iovec> {
    let address = usize::try_from(va).map_err(|_| Errno::FAULT)?;
    Ok(libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address),
        iov_len: length,
    })
}

fn count(done: isize) -> rustix::io::Result<usize> {
    if let Ok(count) = usize::try_from(done) {
        return Ok(count);
    }
    let error = io::Error::last_os_error();
    match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
        Errno::SRCH => Ok(0),
        error => Err(error),
    }
}
