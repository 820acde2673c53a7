//! What a client holds for a file of ours, and how its last close is seen.
//!
//! A container, a group or `/dev/iommu` is one end of a pair of sockets: its
//! inode is its identity, and the other end hangs up with the last duplicate.
//! A device is a memory file, sealed while empty, which also maps: its identity
//! is its inode too, and a lock that it holds goes with the last duplicate and
//! the last mapping.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};

use crate::thread::{Inode, see};

/// By what we see whether the client still holds its end.
#[derive(Debug)]
pub(crate) enum Proof {
    /// The other socket.
    Peer(OwnedFd),
    /// An open file of the same memory file, without a lock.
    Lock(Arc<OwnedFd>),
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

/// The end of a device.
pub(crate) fn make_device() -> io::Result<Made> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("vfio-device", flags)?;
    // What the client would put into the file itself would never reach a
    // device. An access of a mapping faults, because the file ends before it.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    another_device(&Arc::new(file))
}

/// Another end of a device whose proof is `file`, with the same identity.
pub(crate) fn another_device(file: &Arc<OwnedFd>) -> io::Result<Made> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::fs::flock(&theirs, FlockOperation::NonBlockingLockShared)?;
    Ok(Made {
        inode: see(&theirs, "")?.inode,
        theirs,
        proof: Proof::Lock(Arc::clone(file)),
    })
}

impl Proof {
    /// Whether the client has let go of its end, without waiting.
    pub(crate) fn is_released(&self) -> bool {
        match self {
            Self::Peer(peer) => {
                let mut poll = [PollFd::new(peer, PollFlags::empty())];
                let polled = rustix::event::poll(&mut poll, Some(&Timespec::default()));
                let [peer] = &poll;
                polled.is_ok() && peer.revents().contains(PollFlags::HUP)
            }
            Self::Lock(file) => {
                let operation = FlockOperation::NonBlockingLockExclusive;
                rustix::fs::flock(file.as_fd(), operation).is_ok()
            }
        }
    }

    /// Waits until the client has let go of its end, where that takes a
    /// thread of its own.
    pub(crate) fn wait(file: &OwnedFd) {
        let operation = FlockOperation::LockExclusive;
        while rustix::fs::flock(file, operation) == Err(rustix::io::Errno::INTR) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_close_is_seen_and_not_the_first() {
        for made in [make_socket().unwrap(), make_device().unwrap()] {
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
        let (one, other) = (make_device().unwrap(), make_device().unwrap());
        let socket = make_socket().unwrap();
        assert_ne!(one.inode, other.inode);
        assert_ne!(one.inode, socket.inode);
        let Proof::Lock(file) = &one.proof else {
            panic!("a device has a lock");
        };
        let again = another_device(file).unwrap();
        assert_eq!(again.inode, one.inode);
        drop(one.theirs);
        assert!(!again.proof.is_released());
        drop(again.theirs);
        assert!(one.proof.is_released());
    }

    #[test]
    fn a_mapping_holds_a_device_open() {
        let made = make_device().unwrap();
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
