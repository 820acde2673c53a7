//! The listening end of the filter: system calls in, answers out.
//! seccomp_unotify(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};

/// A noticed system call. Its caller waits for the answer.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Call {
    /// Names this stop; never used again.
    pub(crate) id: u64,
    /// The calling thread, as the listener's pid namespace numbers it; 0 if it
    /// has no number there.
    pub(crate) thread: u32,
    flags: u32,
    number: i32,
    arch: u32,
    instruction: u64,
    /// The six arguments, as registers.
    pub(crate) arguments: [u64; 6],
}

impl Call {
    /// The number of the system call, as x86-64 numbers it.
    pub(crate) fn number(&self) -> i64 {
        crate::filter::native(self.arch, self.number)
    }

    /// A call that nobody makes.
    #[cfg(test)]
    pub(crate) fn test(number: i64, arguments: [u64; 6]) -> Self {
        Self {
            number: i32::try_from(number).unwrap(),
            arch: crate::filter::AUDIT_ARCH_X86_64,
            arguments,
            ..Self::default()
        }
    }

    /// An argument that the kernel takes as an `int`.
    pub(crate) fn int(&self, index: usize) -> i32 {
        low_half(self.argument(index)).cast_signed()
    }

    /// An argument that the kernel takes as an `unsigned int`.
    pub(crate) fn uint(&self, index: usize) -> u32 {
        low_half(self.argument(index))
    }

    /// An argument as it is.
    pub(crate) fn argument(&self, index: usize) -> u64 {
        self.arguments.get(index).copied().unwrap_or_default()
    }
}

fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

#[repr(C)]
struct AddFd {
    id: u64,
    flags: u32,
    source: u32,
    target: u32,
    target_flags: u32,
}

const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
const ID_VALID: u64 = 0x4008_2102;
const ADD_FD: u64 = 0x4018_2103;
const SET_FLAGS: u64 = 0x4008_2104;

/// How often a request that failed without a reason is made again.
const PATIENCE: u32 = 16;

const CONTINUE: u32 = 1;
const ADD_FD_SET: u32 = 1;
const ADD_FD_SEND: u32 = 2;
const SYNC_WAKE_UP: u64 = 1;

/// What the caller of a noticed system call sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    /// This return value.
    Value(i64),
    /// -1 and this errno.
    Error(i32),
    /// Whatever the kernel does with the call.
    Continue,
}

/// Whether a descriptor is closed by exec.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnExec {
    /// It stays open.
    Keep,
    /// O_CLOEXEC.
    Close,
}

impl OnExec {
    /// From the flags of an open.
    pub(crate) fn from_flags(flags: u64) -> Self {
        if flags & u64::from(libc::O_CLOEXEC.cast_unsigned()) == 0 {
            Self::Keep
        } else {
            Self::Close
        }
    }

    fn flags(self) -> u32 {
        match self {
            Self::Keep => 0,
            Self::Close => libc::O_CLOEXEC.cast_unsigned(),
        }
    }
}

/// The listener of one filter.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Takes the listener over and asks for wake-ups on the same processor,
    /// which make a call several times faster where the kernel knows them
    /// (6.6).
    pub(crate) fn new(fd: OwnedFd) -> Self {
        // SAFETY: this request takes a number, not a pointer.
        unsafe { libc::ioctl(fd.as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
        Self(fd)
    }

    /// Waits for the next call; `None` when nobody is left under the filter.
    pub(crate) fn next(&self) -> io::Result<Option<Call>> {
        let mut patience = PATIENCE;
        loop {
            let mut call = Call::default();
            // SAFETY: `Call` has the layout of struct seccomp_notif and is
            // zeroed, as the kernel demands; it is written for this call only.
            let done = unsafe { libc::ioctl(self.0.as_raw_fd(), RECEIVE, &raw mut call) };
            if done == 0 {
                return Ok(Some(call));
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // The caller was killed before its call could be taken, or a
                // signal came to this thread.
                Some(libc::EINTR | libc::ENOENT) => {}
                _ if patience > 0 => patience = patience.saturating_sub(1),
                _ => return Err(error),
            }
            let mut poll = [PollFd::new(&self.0, PollFlags::IN)];
            let now = rustix::event::Timespec::default();
            let _ = rustix::event::poll(&mut poll, Some(&now));
            let [seen] = &poll;
            if seen.revents().contains(PollFlags::HUP) {
                return Ok(None);
            }
        }
    }

    /// Answers a call. A caller that is gone needs no answer.
    pub(crate) fn answer(&self, id: u64, reply: Reply) {
        let mut response = Response {
            id,
            value: 0,
            error: 0,
            flags: 0,
        };
        match reply {
            Reply::Value(value) => response.value = value,
            Reply::Error(errno) => response.error = errno.saturating_neg(),
            Reply::Continue => response.flags = CONTINUE,
        }
        // A caller without an answer waits for ever.
        for _ in 0..PATIENCE {
            // SAFETY: `Response` has the layout of struct seccomp_notif_resp.
            let done = unsafe { libc::ioctl(self.0.as_raw_fd(), SEND, &raw mut response) };
            // ENOENT: the caller is gone.
            if done == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT) {
                return;
            }
        }
    }

    /// Answers a call with a new descriptor of the caller for the file `file`:
    /// its number, `at` if there may be one, is the call's return value.
    pub(crate) fn answer_file(
        &self,
        id: u64,
        file: BorrowedFd<'_>,
        on_exec: OnExec,
        at: Option<u32>,
    ) -> io::Result<()> {
        self.add_at(id, ADD_FD_SEND, file, on_exec, at).map(drop)
    }

    /// Gives the caller a new descriptor for `file`, and returns its number:
    /// `at` if there may be one. The call still waits for its answer.
    pub(crate) fn add_file(
        &self,
        id: u64,
        file: BorrowedFd<'_>,
        on_exec: OnExec,
        at: Option<u32>,
    ) -> io::Result<i32> {
        self.add_at(id, 0, file, on_exec, at)
    }

    fn add_at(
        &self,
        id: u64,
        flags: u32,
        file: BorrowedFd<'_>,
        on_exec: OnExec,
        at: Option<u32>,
    ) -> io::Result<i32> {
        if let Some(at) = at {
            match self.add(id, flags | ADD_FD_SET, file, at, on_exec) {
                // Above the caller's RLIMIT_NOFILE.
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
                added => return added,
            }
        }
        self.add(id, flags, file, 0, on_exec)
    }

    /// Makes descriptor `target` of the caller name `file`, whatever it named
    /// before. The call still waits for its answer.
    pub(crate) fn replace_file(
        &self,
        id: u64,
        target: u32,
        file: BorrowedFd<'_>,
        on_exec: OnExec,
    ) -> io::Result<()> {
        self.add(id, ADD_FD_SET, file, target, on_exec).map(drop)
    }

    fn add(
        &self,
        id: u64,
        flags: u32,
        file: BorrowedFd<'_>,
        target: u32,
        on_exec: OnExec,
    ) -> io::Result<i32> {
        let request = AddFd {
            id,
            flags,
            source: file.as_raw_fd().cast_unsigned(),
            target,
            target_flags: on_exec.flags(),
        };
        loop {
            // SAFETY: `AddFd` has the layout of struct seccomp_notif_addfd.
            let done = unsafe { libc::ioctl(self.0.as_raw_fd(), ADD_FD, &raw const request) };
            if done >= 0 {
                return Ok(done);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Whether the call still waits: then its thread is alive, and what was
    /// looked up by its number was looked up in it.
    pub(crate) fn is_waiting(&self, id: u64) -> bool {
        // SAFETY: the kernel reads eight bytes.
        unsafe { libc::ioctl(self.0.as_raw_fd(), ID_VALID, &raw const id) == 0 }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_those_of_the_kernel() {
        assert_eq!(size_of::<Call>(), size_of::<libc::seccomp_notif>());
        assert_eq!(size_of::<Response>(), size_of::<libc::seccomp_notif_resp>());
        assert_eq!(size_of::<AddFd>(), size_of::<libc::seccomp_notif_addfd>());
        for (request, size) in [(RECEIVE, 80), (SEND, 24), (ADD_FD, 24), (ID_VALID, 8)] {
            assert_eq!(request >> 16 & 0x3fff, size);
        }
    }
}
