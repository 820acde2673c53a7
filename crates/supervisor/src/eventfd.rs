//! Eventfds of the client: signalled by devices, or watched for its signals.
//! eventfd(2).

use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use iogate_interrupt::Signal;
use iogate_uapi::Errno;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::ReadWriteFlags;

use crate::eventfds::Eventfds;
use crate::thread::{Descriptors, Thread, link_of};

/// How often a signal that failed is tried again.
const TRIES: usize = 16;

/// A duplicate of an eventfd of the client.
#[derive(Debug)]
pub(crate) struct Eventfd(OwnedFd);

impl Eventfd {
    /// The eventfd that `fd` of `thread` names: EBADF if it is not open,
    /// EINVAL if it is no eventfd, or one that cannot be had: where descriptors
    /// are only shown, those that are not `made` here.
    pub(crate) fn of(thread: &Thread, fd: i32, made: &Eventfds) -> Result<Self, Errno> {
        if thread.descriptors() == Descriptors::Shown {
            thread.look(fd)?;
            return made.find(thread, fd).map(Self).ok_or(Errno::EINVAL);
        }
        let file = thread.duplicate(fd)?;
        // Asked of the duplicate: the client may put another file in its place.
        if link_of(&file).is_ok_and(|link| link == b"anon_inode:[eventfd]") {
            Ok(Self(file))
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// Takes its count, if there is any.
    pub(crate) fn take(&self) -> bool {
        let mut count = [0; 8];
        // The client chooses whether its eventfd waits; this never does.
        let flags = ReadWriteFlags::NOWAIT;
        let taken =
            rustix::io::preadv2(&self.0, &mut [IoSliceMut::new(&mut count)], u64::MAX, flags);
        taken == Ok(8)
    }
}

impl Signal for Eventfd {
    fn signal(&self) {
        // Who waits for a signal that was lost waits for ever.
        for _ in 0..TRIES {
            let mut poll = [PollFd::new(&self.0, PollFlags::OUT)];
            match rustix::event::poll(&mut poll, Some(&Timespec::default())) {
                // A full count would block, and is a signal that nobody has
                // taken yet.
                Ok(0) => return,
                Ok(_) if rustix::io::write(&self.0, &1_u64.to_ne_bytes()).is_ok() => return,
                _ => {}
            }
        }
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn own() -> std::rc::Rc<Thread> {
        let id = rustix::thread::gettid().as_raw_pid().cast_unsigned();
        crate::thread::Threads::default().get(id, || true).unwrap()
    }

    #[test]
    fn a_signal_arrives_once_and_never_waits() {
        let theirs = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let eventfd = Eventfd::of(&own(), theirs.as_raw_fd(), &Eventfds::default()).unwrap();
        assert!(!eventfd.take());
        eventfd.signal();
        assert!(eventfd.take() && !eventfd.take());
        rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        eventfd.signal();
        assert!(eventfd.take());
    }

    #[test]
    fn what_is_no_eventfd_is_refused() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (thread, none) = (own(), Eventfds::default());
        assert_eq!(
            Eventfd::of(&thread, one.as_raw_fd(), &none).unwrap_err(),
            Errno::EINVAL
        );
        assert_eq!(Eventfd::of(&thread, 9999, &none).unwrap_err(), Errno::EBADF);
    }
}
