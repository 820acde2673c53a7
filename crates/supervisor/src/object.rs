//! What a client holds for a file of ours, and how its last close is seen.
//!
//! A container, a group or `/dev/iommu` is one end of a pair of sockets: its
//! inode is its identity, and the other end hangs up with the last duplicate.
//! A device is a memory file, which also maps. It holds the device's plain
//! memory, if there is any, and ends before the registers; its size is sealed.
//! Its identity is its inode and, since several ends may be of one such file,
//! a lock on a byte of its own. That lock goes with the last duplicate and the
//! last mapping. What tells of events is in `events`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};

use crate::thread::{Inode, see};

/// By what we see whether the client still holds its end.
#[derive(Debug)]
pub(crate) enum Proof {
    /// The other socket, or a pipe's end.
    Peer(OwnedFd),
    /// The lock that it holds.
    Lock(Lock),
}

/// A lock on one byte of a memory file that goes with the open file that has
/// it. Here is another open file of the same.
#[derive(Clone, Debug)]
pub(crate) struct Lock {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) byte: i64,
}

/// A client's end of a file, made but not yet handed over.
pub(crate) struct Made {
    /// What the client gets.
    pub(crate) theirs: OwnedFd,
    pub(crate) inode: Inode,
    pub(crate) proof: Proof,
}

/// The end of a file that is not a device.
pub(crate) fn make_socket() -> io::Result<Made> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // A read of the client's finds the end, instead of waiting for ever.
    rustix::net::shutdown(&ours, Shutdown::Write)?;
    Ok(Made {
        inode: see(&theirs, "")?.inode,
        theirs,
        proof: Proof::Peer(ours),
    })
}

/// The end of a device whose file is that of its plain `memory`, or an empty
/// one. No other end of it has locked `byte`.
pub(crate) fn make_device(memory: Option<BorrowedFd<'_>>, byte: i64) -> io::Result<Made> {
    let file = match memory {
        Some(memory) => open_again(memory)?,
        None => {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = rustix::fs::memfd_create("vfio-device", flags)?;
            // What the client would put into the file itself would never reach
            // a device. An access of a mapping faults, because the file ends
            // before it.
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&file, seals)?;
            file
        }
    };
    another_device(&Arc::new(file), byte)
}

/// Another end of a device whose proof is `file`, with the same inode.
pub(crate) fn another_device(file: &Arc<OwnedFd>, byte: i64) -> io::Result<Made> {
    let theirs = open_again(file.as_fd())?;
    lock(&theirs, libc::F_OFD_SETLK, libc::F_RDLCK, byte)?;
    Ok(Made {
        inode: see(&theirs, "")?.inode,
        theirs,
        proof: Proof::Lock(Lock {
            file: Arc::clone(file),
            byte,
        }),
    })
}

/// Another open file of the same file.
fn open_again(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Locks, unlocks or asks about one byte of an open file; fcntl(2). What it
/// answers is the kind of lock that stands in the way.
fn lock(file: impl AsFd, command: i32, kind: i32, byte: i64) -> io::Result<i32> {
    let kind = libc::c_short::try_from(kind).unwrap_or_default();
    let mut lock = libc::flock {
        l_type: kind,
        l_whence: 0,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the kernel reads and writes a local structure.
    match unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock.l_type.into()),
    }
}

/// Whether another open file has locked the byte. If the kernel does not say,
/// it counts as locked: an object that is taken for closed is gone for good.
fn is_locked_by_another(file: impl AsFd, byte: i64) -> bool {
    let found = lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte);
    !found.is_ok_and(|kind| kind == libc::F_UNLCK)
}

impl Lock {
    /// Whether the client still holds it.
    fn is_held(&self) -> bool {
        is_locked_by_another(&*self.file, self.byte)
    }

    /// Whether `open`, a file that is open in the client, holds it.
    pub(crate) fn is_of(&self, open: impl AsFd) -> bool {
        !is_locked_by_another(open, self.byte) && self.is_held()
    }

    /// Waits until the client has let go of it.
    pub(crate) fn wait(&self) {
        loop {
            match lock(&*self.file, libc::F_OFD_SETLKW, libc::F_WRLCK, self.byte) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        let _ = lock(&*self.file, libc::F_OFD_SETLK, libc::F_UNLCK, self.byte);
    }
}

impl Proof {
    /// Whether the client has let go of its end, without waiting.
    pub(crate) fn is_released(&self) -> bool {
        match self {
            Self::Peer(peer) => {
                let mut poll = [PollFd::new(peer, PollFlags::empty())];
                let polled = rustix::event::poll(&mut poll, Some(&Timespec::default()));
                let [peer] = &poll;
                let gone = PollFlags::HUP | PollFlags::ERR;
                polled.is_ok() && peer.revents().intersects(gone)
            }
            Self::Lock(lock) => !lock.is_held(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_close_is_seen_and_not_the_first() {
        for made in [make_socket().unwrap(), make_device(None, 0).unwrap()] {
            let copy = made.theirs.try_clone().unwrap();
            assert!(!made.proof.is_released());
            drop(made.theirs);
            assert!(!made.proof.is_released());
            drop(copy);
            assert!(made.proof.is_released());
        }
    }

    #[test]
    fn every_file_has_an_identity_of_its_own() {
        let (one, other) = (make_device(None, 0).unwrap(), make_device(None, 1).unwrap());
        let socket = make_socket().unwrap();
        assert_ne!(one.inode, other.inode);
        assert_ne!(one.inode, socket.inode);
        let Proof::Lock(lock) = &one.proof else {
            panic!("a device has a lock");
        };
        let again = another_device(&lock.file, 7).unwrap();
        assert_eq!(again.inode, one.inode);
        assert!(lock.is_of(&one.theirs) && !lock.is_of(&again.theirs));
        let copy = one.theirs.try_clone().unwrap();
        drop(one.theirs);
        assert!(lock.is_of(&copy) && !one.proof.is_released());
        drop(copy);
        assert!(one.proof.is_released() && !again.proof.is_released());
        drop(again.theirs);
        assert!(again.proof.is_released());
    }

    #[test]
    fn waiting_ends_with_the_lock_and_leaves_none() {
        let made = make_device(None, 3).unwrap();
        let Proof::Lock(lock) = &made.proof else {
            panic!("a device has a lock");
        };
        let waiting = lock.clone();
        let waiter = std::thread::spawn(move || waiting.wait());
        drop(made.theirs);
        waiter.join().unwrap();
        assert!(!lock.is_held());
        assert!(another_device(&lock.file, 3).is_ok());
    }

    #[test]
    fn a_mapping_holds_a_device_open() {
        let made = make_device(None, 0).unwrap();
        // SAFETY: a new mapping, of a file that is not touched.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ,
                libc::MAP_SHARED,
                std::os::fd::AsRawFd::as_raw_fd(&made.theirs),
                0,
            )
        };
        assert_ne!(mapping, libc::MAP_FAILED);
        drop(made.theirs);
        assert!(!made.proof.is_released());
        // SAFETY: the mapping made above, which nothing refers to.
        unsafe { libc::munmap(mapping, 4096) };
        assert!(made.proof.is_released());
    }

    #[test]
    fn a_read_of_a_container_does_not_wait() {
        let made = make_socket().unwrap();
        assert_eq!(rustix::io::read(&made.theirs, &mut [0; 8]), Ok(0));
    }
}
