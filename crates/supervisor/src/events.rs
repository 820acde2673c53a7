//! What a client holds for a file that tells of events: a pipe, of which it has
//! both ends in one open file. A byte is in it while there is something to
//! read, so that polls say so, and writing is always possible; what the program
//! reads and writes never passes it. Our own end for writing is broken when the
//! last duplicate is closed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use iogate_host::iommufd::Readiness;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use crate::object::{Made, Proof};
use crate::thread::see;

/// Shows by a pipe whether there is something to read.
pub(crate) struct Shown {
    ours: OwnedFd,
    has_byte: AtomicBool,
}

/// A client's end, and by what it is shown that there is something to read.
pub(crate) fn make_events() -> io::Result<(Made, Shown)> {
    let (read, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A read that is not noticed finds at most the byte, and must not wait.
    let theirs = another(&read, OFlags::RDWR)?;
    let made = Made {
        inode: see(&theirs, "")?.inode,
        theirs,
        proof: Proof::Peer(ours.try_clone()?),
    };
    let has_byte = AtomicBool::new(false);
    Ok((made, Shown { ours, has_byte }))
}

impl Shown {
    /// Takes one byte back. The end for that is not kept: the client's are the
    /// only ones to read from.
    fn take(&self) {
        if let Ok(reader) = another(&self.ours, OFlags::RDONLY) {
            let _ = rustix::io::read(&reader, &mut [0]);
        }
    }
}

impl Readiness for Shown {
    fn filled(&self) {
        // A byte more wakes who waits for changes only.
        let wrote = rustix::io::write(&self.ours, &[0]).is_ok();
        if wrote && self.has_byte.swap(true, Ordering::SeqCst) {
            self.take();
        }
    }

    fn drained(&self) {
        if self.has_byte.swap(false, Ordering::SeqCst) {
            self.take();
        }
    }
}

/// Another open file of the same pipe.
fn another(pipe: &OwnedFd, access: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;

    fn polled(end: &OwnedFd) -> PollFlags {
        let all = PollFlags::IN | PollFlags::OUT | PollFlags::HUP;
        let mut poll = [PollFd::new(end, all)];
        rustix::event::poll(&mut poll, Some(&Timespec::default())).unwrap();
        let [poll] = &poll;
        poll.revents()
    }

    /// Linux drivers/iommu/iommufd/eventq.c, iommufd_eventq_fops_poll.
    #[test]
    fn polls_see_each_change_at_once_and_writing_is_always_possible() {
        let (made, shown) = make_events().unwrap();
        assert_eq!(polled(&made.theirs), PollFlags::OUT);
        for _ in 0..3 {
            shown.filled();
            assert_eq!(polled(&made.theirs), PollFlags::IN | PollFlags::OUT);
        }
        shown.drained();
        assert_eq!(polled(&made.theirs), PollFlags::OUT);
        shown.drained();
        shown.filled();
        assert_eq!(polled(&made.theirs), PollFlags::IN | PollFlags::OUT);
    }

    /// Linux drivers/iommu/iommufd/eventq.c, iommufd_fault_iopf_handler.
    #[test]
    fn who_waits_for_changes_is_woken_by_each() {
        let (made, shown) = make_events().unwrap();
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &made.theirs, EventData::new_u64(0), flags).unwrap();
        let is_woken = || {
            let mut events = Vec::with_capacity(1);
            let room = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&epoll, room, Some(&Timespec::default())).unwrap() == 1
        };
        for _ in 0..3 {
            shown.filled();
            assert!(is_woken() && !is_woken());
        }
    }

    #[test]
    fn an_unnoticed_read_finds_less_than_a_message_and_does_not_wait() {
        let (made, shown) = make_events().unwrap();
        let read = || rustix::io::read(&made.theirs, &mut [1; 64]);
        assert_eq!(read(), Err(rustix::io::Errno::AGAIN));
        for _ in 0..100 {
            shown.filled();
        }
        assert_eq!(read(), Ok(1));
        assert_eq!(read(), Err(rustix::io::Errno::AGAIN));
        shown.drained();
        shown.filled();
        assert_eq!(read(), Ok(1));
    }

    #[test]
    fn the_last_close_is_seen_and_not_the_first() {
        let (made, shown) = make_events().unwrap();
        let copy = made.theirs.try_clone().unwrap();
        shown.filled();
        drop(made.theirs);
        assert!(!made.proof.is_released());
        drop(copy);
        assert!(made.proof.is_released());
        shown.filled();
        shown.drained();
        assert!(made.proof.is_released());
    }
}
