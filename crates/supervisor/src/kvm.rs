//! The devices by which virtual machines are told of VFIO files: which open
//! file is which.
//!
//! All of KVM's files share one inode, and a descriptor's number soon means
//! another of them. So each open file is marked by a lock (F_OFD_SETLK of
//! fcntl(2)) on a byte of that inode: its duplicates have the lock too, it goes
//! with the last of them, and it keeps none of them open.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;

use crate::client_process::ClientProcess;

/// What KVM's link of such a device is.
pub(crate) const LINK: &[u8] = b"anon_inode:kvm-vfio";

/// Open files by the bytes that they have locked.
pub(crate) struct Machines {
    /// Shares the inode and locks nothing.
    neutral: OwnedFd,
    known: Vec<u64>,
    next: u64,
    /// Those that cannot be locked, since their descriptors are only shown: by
    /// process and descriptor, with their numbers.
    shown: Vec<(Arc<ClientProcess>, i32, u64)>,
}

/// Bytes tried when others, of other sessions, are locked.
const TRIES: usize = 4096;

impl Machines {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            neutral: rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
            known: Vec::new(),
            shown: Vec::new(),
            next: u64::from(std::process::id()) << 31,
        })
    }

    /// The number of what descriptor `fd` of `process` shows, a device of this
    /// kind. One that is closed and made anew under the same number counts as
    /// the same. Tells `closed` of the numbers whose descriptors are none now.
    pub(crate) fn number_shown(
        &mut self,
        process: &Arc<ClientProcess>,
        fd: i32,
        mut closed: impl FnMut(u64),
    ) -> u64 {
        self.shown.retain(|(process, fd, number)| {
            let link = format!("fd/{fd}");
            let link = rustix::fs::readlinkat(process.directory(), link.as_str(), Vec::new());
            let is_open = link.is_ok_and(|link| link.as_bytes() == LINK);
            if !is_open {
                closed(*number);
            }
            is_open
        });
        let mut shown = self.shown.iter();
        let known = shown.find(|(of, at, _)| (of.space(), *at) == (process.space(), fd));
        if let Some((_, _, number)) = known {
            return *number;
        }
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.shown.push((Arc::clone(process), fd, number));
        number
    }

    /// The number of the open file `file`. Tells `closed` of the numbers whose
    /// files are closed by now.
    pub(crate) fn number(
        &mut self,
        file: &OwnedFd,
        mut closed: impl FnMut(u64),
    ) -> io::Result<u64> {
        let neutral = &self.neutral;
        self.known.retain(|number| {
            let is_open = lock(neutral, libc::F_OFD_GETLK, *number) == Ok(Found::Another);
            if !is_open {
                closed(*number);
            }
            is_open
        });
        // An open file is not in its own way.
        let mut known = self.known.iter();
        let own = known.find(|number| lock(file, libc::F_OFD_GETLK, **number) == Ok(Found::Nobody));
        if let Some(own) = own {
            return Ok(*own);
        }
        for _ in 0..TRIES {
            let number = self.next;
            self.next = number.wrapping_add(1);
            match lock(file, libc::F_OFD_SETLK, number) {
                Ok(_) => {
                    self.known.push(number);
                    return Ok(number);
                }
                Err(libc::EAGAIN) => {}
                Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENOLCK))
    }
}

/// Whose lock is in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Nobody,
    Another,
}

/// Asks for the byte `number` through `file`, or takes it.
fn lock(file: &OwnedFd, command: i32, number: u64) -> Result<Found, i32> {
    let write = i16::try_from(libc::F_WRLCK).unwrap_or_default();
    let from_start = i16::try_from(libc::SEEK_SET).unwrap_or_default();
    let mut range = libc::flock {
        l_type: write,
        l_whence: from_start,
        l_start: number.cast_signed(),
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: `range` is the structure that these commands read and fill.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut range) } < 0 {
        return Err(io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO));
    }
    Ok(match i32::from(range.l_type) {
        libc::F_UNLCK => Found::Nobody,
        _ => Found::Another,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that has its inode in common with KVM's.
    fn file() -> OwnedFd {
        rustix::event::eventfd(0, EventfdFlags::empty()).unwrap()
    }

    #[test]
    fn an_open_file_keeps_its_number_until_its_last_close() {
        let mut machines = Machines::new().unwrap();
        let none = |number| panic!("{number} is open");
        let (one, other) = (file(), file());
        let first = machines.number(&one, none).unwrap();
        let second = machines.number(&other, none).unwrap();
        assert_ne!(first, second);
        let copy = one.try_clone().unwrap();
        drop(one);
        assert_eq!(machines.number(&copy, none).unwrap(), first);
        assert_eq!(machines.number(&other, none).unwrap(), second);
        drop(copy);
        let again = file();
        let mut closed = Vec::new();
        let third = machines
            .number(&again, |number| closed.push(number))
            .unwrap();
        assert_eq!(closed, [first]);
        assert!(third != first && third != second);
    }

    #[test]
    fn sessions_do_not_take_each_others_numbers() {
        let (one, other) = (file(), file());
        let none = |number| panic!("{number} is open");
        let (mut here, mut there) = (Machines::new().unwrap(), Machines::new().unwrap());
        let first = here.number(&one, none).unwrap();
        assert_ne!(there.number(&other, none).unwrap(), first);
    }
}
