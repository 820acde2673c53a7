//! Real child processes and files to share with them.
#![allow(dead_code)] // Each test binary uses its part.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd};
use std::ptr;

pub(crate) const PAGE: usize = 4096;

/// A forked copy of this test, which takes turns with it.
pub(crate) struct Child {
    pub(crate) pid: libc::pid_t,
    go: File,
    here: File,
    reaped: bool,
}

/// The child's end: it has what it needs to wait for its turn. After a fork
/// of a process with threads it may not allocate.
pub(crate) struct Turns {
    go: File,
    here: File,
}

impl Turns {
    /// Lets the test go on, and waits for its `next`.
    pub(crate) fn pause(&mut self) {
        let mut byte = [0];
        if self.here.write_all(&byte).is_err() || self.go.read_exact(&mut byte).is_err() {
            exit(100);
        }
    }
}

pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: ends the process without running anything of the test's.
    unsafe { libc::_exit(status) }
}

fn pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: has room for two descriptors, which are then owned here.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    }
}

impl Child {
    /// Forks, and returns when the child pauses for the first time or ends.
    pub(crate) fn fork(body: impl FnOnce(&mut Turns) -> i32) -> Self {
        let (go_read, go) = pipe();
        let (here, here_write) = pipe();
        // SAFETY: the child only runs `body`, which does not allocate.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            drop((go, here));
            let mut turns = Turns {
                go: go_read,
                here: here_write,
            };
            exit(body(&mut turns));
        }
        drop((go_read, here_write));
        let mut child = Self {
            pid,
            go,
            here,
            reaped: false,
        };
        child.wait_for_pause();
        child
    }

    /// Lets the child run to its next pause; false if it has ended or
    /// executes another program.
    pub(crate) fn next(&mut self) -> bool {
        self.go.write_all(&[0]).unwrap();
        self.wait_for_pause()
    }

    fn wait_for_pause(&mut self) -> bool {
        self.here.read(&mut [0]).unwrap() == 1
    }

    /// The wait status, once the child has ended.
    pub(crate) fn reap(&mut self) -> i32 {
        let mut status = 0;
        // SAFETY: our own child, not reaped before.
        let reaped = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        assert_eq!(reaped, self.pid);
        self.reaped = true;
        status
    }

    pub(crate) fn kill(&self) {
        // SAFETY: our own child, not reaped before.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            self.reap();
        }
    }
}

/// `pages` pages of this process (and of children forked later).
pub(crate) struct Pages(pub(crate) *mut u8, pub(crate) usize);

impl Pages {
    pub(crate) fn private(pages: usize) -> Self {
        Self::map(pages, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    pub(crate) fn of(file: &File, pages: usize, offset: usize) -> Self {
        use std::os::fd::AsRawFd;
        Self::map(pages, libc::MAP_SHARED, file.as_raw_fd(), offset)
    }

    fn map(pages: usize, flags: i32, fd: i32, offset: usize) -> Self {
        let length = pages * PAGE;
        // SAFETY: a new mapping.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset as libc::off_t,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at.cast(), length)
    }

    pub(crate) fn va(&self) -> u64 {
        self.0 as u64
    }

    pub(crate) fn set(&self, index: usize, value: u8) {
        assert!(index < self.1);
        // SAFETY: inside of the mapping; volatile because it is shared.
        unsafe { self.0.add(index).write_volatile(value) }
    }

    pub(crate) fn get(&self, index: usize) -> u8 {
        assert!(index < self.1);
        // SAFETY: as in `set`.
        unsafe { self.0.add(index).read_volatile() }
    }

    pub(crate) fn unmap(&self, first: usize, pages: usize) {
        // SAFETY: pages of this mapping, not used afterwards.
        let result = unsafe { libc::munmap(self.0.add(first * PAGE).cast(), pages * PAGE) };
        assert_eq!(result, 0);
    }

    pub(crate) fn protect(&self, first: usize, rights: i32) {
        // SAFETY: a page of this mapping.
        let result = unsafe { libc::mprotect(self.0.add(first * PAGE).cast(), PAGE, rights) };
        assert_eq!(result, 0);
    }
}

/// A memfd of `length` bytes.
pub(crate) fn memfd(name: &str, length: usize) -> File {
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(length as u64).unwrap();
    file
}

/// Frees the blocks of a part of a file, which stays as long as it is.
pub(crate) fn punch(file: &File, offset: usize, length: usize) {
    let how = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file.as_fd(), how, offset as u64, length as u64).unwrap();
}

/// The size of this process's address space, in bytes. Does not allocate.
pub(crate) fn address_space() -> u64 {
    let mut text = [0; 64];
    let mut file = File::open("/proc/self/statm").unwrap();
    let length = file.read(&mut text).unwrap();
    let digits = text[..length]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    let pages = digits.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    pages * PAGE as u64
}
