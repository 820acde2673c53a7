//! The numbers at which clients are given our files. What a thread has at one
//! of these is looked up once: every call that may put another file there, or
//! none, is noticed first.
//!
//! What is known is kept thread by thread, because a table of descriptors is a
//! thread's: threads, processes and their children share one or not, as they
//! like. A noticed change makes all threads forget the number. From then on
//! until its caller is seen past it (in another call, or dead) the number is not
//! relied upon by a thread that has the same table: the change may come at any
//! moment.
//!
//! What a program does by `io_uring` is not seen, so that nothing is relied upon
//! in a session that has set one up. Files are handed out at these numbers all
//! the same: a ring closes any number, but opens only the lowest that is free.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::listener::{Call, Listener};
use crate::thread::open_pidfd;

/// The first of the numbers.
pub(crate) const FIRST: i32 = 896;
/// The number after the last: FD_SETSIZE, because select(2) takes none above.
pub(crate) const END: i32 = 1024;

/// All of them.
pub(crate) const ALL: RangeInclusive<i32> = FIRST..=END - 1;

/// A program with more descriptors than this may reach our numbers by opening
/// more, in the moment between the look whether one is free and its use.
pub(crate) const MOST_OPEN: u64 = 640;

/// An fcntl(2) that asks for a number from here on may be given one of ours.
pub(crate) const FIRST_ASKED_FOR: u32 = 256;

/// Whether a number is one of ours.
pub(crate) fn is_reserved(number: i32) -> bool {
    ALL.contains(&number)
}

/// The numbers whose meaning `call` may change; `None` if it changes none.
pub(crate) fn changed_by(call: &Call) -> Option<RangeInclusive<i32>> {
    let one = |number: i32| is_reserved(number).then_some(number..=number);
    match call.number() {
        libc::SYS_close => one(call.int(0)),
        libc::SYS_dup2 | libc::SYS_dup3 => one(call.int(1)),
        libc::SYS_close_range | libc::SYS_execve | libc::SYS_execveat | libc::SYS_fcntl => {
            Some(ALL)
        }
        _ => None,
    }
}

/// The changes that are under way, by the threads that make them.
#[derive(Default)]
pub(crate) struct Changes {
    by_thread: HashMap<u32, Change>,
    /// Whether changes happen that are not noticed.
    unseen: bool,
    /// Whether files may be closed unnoticed, but none put at our numbers.
    closed_unseen: bool,
}

struct Change {
    thread: OwnedFd,
    numbers: RangeInclusive<i32>,
}

/// Changes remembered before the dead are looked for.
const MANY: usize = 64;

impl Changes {
    /// `call` is about to change what `numbers` mean to its thread.
    pub(crate) fn begin(&mut self, call: &Call, numbers: RangeInclusive<i32>, from: &Listener) {
        if self.by_thread.len() >= MANY {
            self.by_thread
                .retain(|_, change| !has_ended(&change.thread));
        }
        let id = call.thread;
        match open_pidfd(id, id) {
            Ok((thread, _)) if from.is_waiting(call.id) => {
                self.by_thread.insert(id, Change { thread, numbers });
            }
            _ if from.is_waiting(call.id) => self.unseen = true,
            _ => {}
        }
    }

    /// Thread `id` makes another call: what it did before is done.
    pub(crate) fn end(&mut self, id: u32) {
        if !self.by_thread.is_empty() {
            self.by_thread.remove(&id);
        }
    }

    /// From now on files are closed, and opened at the lowest free numbers,
    /// without being noticed.
    pub(crate) fn are_unseen(&mut self) {
        self.closed_unseen = true;
    }

    /// Whether no change of `number` to thread `id`, which waits in a noticed
    /// call, can happen before it is noticed.
    pub(crate) fn spare(&mut self, number: i32, id: u32) -> bool {
        !self.closed_unseen && self.leave_free(number, id)
    }

    /// Whether thread `id`, which waits in a noticed call and has nothing at
    /// `number`, cannot get anything there before it is noticed.
    pub(crate) fn leave_free(&mut self, number: i32, id: u32) -> bool {
        if self.unseen {
            return false;
        }
        if self.by_thread.is_empty() {
            return true;
        }
        self.by_thread
            .retain(|_, change| !has_ended(&change.thread));
        let mut changes = self.by_thread.iter();
        !changes.any(|(other, change)| {
            let touches = change.numbers.contains(&number);
            touches && (may_share_table(*other, id) || has_ended(&change.thread))
        })
    }
}

/// Whether the thread (or process) that a pidfd names has ended.
pub(crate) fn has_ended(thread: &OwnedFd) -> bool {
    let mut poll = [PollFd::new(thread, PollFlags::IN)];
    let polled = rustix::event::poll(&mut poll, Some(&Timespec::default()));
    // What cannot be asked is not relied upon.
    polled != Ok(0)
}

/// Whether two threads may have one table of descriptors. kcmp(2); where that
/// is missing or forbidden they may.
fn may_share_table(one: u32, other: u32) -> bool {
    /// KCMP_FILES.
    const FILES: i32 = 2;
    // SAFETY: the arguments of kcmp are plain numbers.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, FILES, 0, 0) };
    order <= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: i64, arguments: [u64; 6]) -> Call {
        Call::test(number, arguments)
    }

    #[test]
    fn a_change_is_of_the_numbers_that_it_names() {
        let one = |number, arguments| changed_by(&call(number, arguments));
        assert_eq!(one(libc::SYS_close, [896, 0, 0, 0, 0, 0]), Some(896..=896));
        assert_eq!(one(libc::SYS_close, [3, 0, 0, 0, 0, 0]), None);
        assert_eq!(
            one(libc::SYS_dup2, [3, 1023, 0, 0, 0, 0]),
            Some(1023..=1023)
        );
        assert_eq!(one(libc::SYS_dup3, [1023, 3, 0, 0, 0, 0]), None);
        assert_eq!(one(libc::SYS_execve, [0; 6]), Some(ALL));
        assert_eq!(one(libc::SYS_ioctl, [1000, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn a_change_matters_to_those_who_share_the_table() {
        let id = || rustix::thread::gettid().as_raw_pid().cast_unsigned();
        let own = id();
        let begun = move |numbers| {
            let (thread, _) = open_pidfd(own, own).unwrap();
            Changes {
                by_thread: HashMap::from([(own, Change { thread, numbers })]),
                unseen: false,
                closed_unseen: false,
            }
        };
        std::thread::spawn(move || {
            let mut changes = begun(900..=900);
            assert!(!changes.spare(900, id()) && changes.spare(901, id()));
            changes.end(own);
            assert!(changes.spare(900, id()));
            let mut changes = begun(ALL);
            // SAFETY: gives this thread a table of its own.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            assert!(changes.spare(900, id()));
            changes.are_unseen();
            assert!(!changes.spare(900, id()) && changes.leave_free(900, id()));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_change_ends_with_its_thread() {
        let (send, receive) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            let id = rustix::thread::gettid().as_raw_pid().cast_unsigned();
            let _ = send.send(open_pidfd(id, std::process::id()).unwrap());
            let _ = wait.recv();
            id
        });
        let (thread, names_thread) = receive.recv().unwrap();
        assert!(!has_ended(&thread));
        drop(go);
        let id = other.join().unwrap();
        if names_thread {
            // The join comes a moment before the thread's end.
            let _ = rustix::event::poll(&mut [PollFd::new(&thread, PollFlags::IN)], None);
            let mut changes = Changes {
                by_thread: HashMap::from([(
                    id,
                    Change {
                        thread,
                        numbers: ALL,
                    },
                )]),
                unseen: false,
                closed_unseen: false,
            };
            let own = rustix::thread::gettid().as_raw_pid().cast_unsigned();
            assert!(changes.spare(900, own));
        }
    }
}
