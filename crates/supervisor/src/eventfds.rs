//! The eventfds of a client whose descriptors cannot be duplicated: made here
//! when it asks for one, and known by the number that the kernel gives each.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::EventfdFlags;

use crate::process;
use crate::thread::Thread;

/// Eventfds remembered before it is looked for those that no process has any
/// more.
const MANY: usize = 256;
/// Eventfds remembered at most. What is made beyond is the kernel's own.
const MOST: usize = 8192;

#[derive(Default)]
struct Made {
    by_id: HashMap<u64, OwnedFd>,
    /// At how many it is looked again.
    many: usize,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Eventfds(Mutex<Made>);

impl Eventfds {
    /// Makes one as eventfd2(2) does, for the descendants of this process;
    /// `None` if the kernel has to, since there are too many.
    pub(crate) fn make(&self, count: u32, flags: u32) -> Option<io::Result<OwnedFd>> {
        let flags = EventfdFlags::from_bits_retain(flags) | EventfdFlags::CLOEXEC;
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.by_id.len() >= made.many.max(MANY) {
            let held = held_by_descendants();
            made.by_id.retain(|id, _| held.contains(id));
            made.many = made.by_id.len().saturating_mul(2);
        }
        if made.by_id.len() >= MOST {
            return None;
        }
        let mut make = || {
            let theirs = rustix::event::eventfd(count, flags)?;
            let path = format!("/proc/self/fdinfo/{}", theirs.as_raw_fd());
            let id = id(&std::fs::read_to_string(path)?).ok_or(io::ErrorKind::Unsupported)?;
            made.by_id.insert(id, theirs.try_clone()?);
            Ok(theirs)
        };
        Some(make())
    }

    /// The one that descriptor `fd` of `thread` names.
    pub(crate) fn find(&self, thread: &Thread, fd: i32) -> Option<OwnedFd> {
        let id = id(&thread.text(&format!("fdinfo/{fd}")).ok()?)?;
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.by_id.get(&id)?.try_clone().ok()
    }
}

/// The number of an eventfd, from its text in `fdinfo`. proc_pid_fdinfo(5).
fn id(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let id = lines.find_map(|line| line.strip_prefix("eventfd-id:"))?;
    id.trim().parse().ok()
}

/// The numbers of all eventfds that descendants of this process hold.
fn held_by_descendants() -> HashSet<u64> {
    let mut held = HashSet::new();
    for child in process::descendants(std::process::id()) {
        let directory = format!("/proc/{}", child.process);
        let Ok(descriptors) = std::fs::read_dir(format!("{directory}/fd")) else {
            continue;
        };
        for entry in descriptors.flatten() {
            let is_one = std::fs::read_link(entry.path())
                .is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]");
            let number = entry.file_name();
            let path = format!("{directory}/fdinfo/{}", number.display());
            if is_one && let Ok(text) = std::fs::read_to_string(path) {
                held.extend(id(&text));
            }
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thread::Threads;

    #[test]
    fn an_eventfd_is_known_by_any_descriptor_for_it() {
        let thread = rustix::thread::gettid().as_raw_pid().cast_unsigned();
        let thread = Threads::default().get(thread, || true).unwrap();
        let eventfds = Eventfds::default();
        let theirs = eventfds.make(3, 0).unwrap().unwrap();
        let copy = theirs.try_clone().unwrap();
        let found = eventfds.find(&thread, copy.as_raw_fd()).unwrap();
        let mut count = [0; 8];
        rustix::io::read(&found, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 3);
        let other = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
        assert!(eventfds.find(&thread, other.as_raw_fd()).is_none());
        let refused = eventfds.make(0, 1 << 20).unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn eventfds_that_nobody_holds_are_forgotten() {
        let eventfds = Eventfds::default();
        for _ in 0..3 * MANY {
            drop(eventfds.make(0, 0).unwrap().unwrap());
        }
        assert!(eventfds.0.lock().unwrap().by_id.len() <= MANY);
    }
}
