//! A process of the client: its memory, who it runs as, and how many pieces of
//! its private memory devices reach.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use iogate_memory::{ClientMemory, Process, ProcessSlot};
use rustix::fs::{Mode, OFlags};

use crate::thread::Status;

/// A process, or what was one: after its end, or when it has executed another
/// program, its memory is gone and never that of another.
#[derive(Debug)]
pub(crate) struct ClientProcess {
    id: u32,
    user: u32,
    space: u64,
    memory: Arc<Process>,
    /// `/proc/PID`.
    directory: OwnedFd,
    slot: OnceLock<ProcessSlot>,
    private: AtomicUsize,
}

impl ClientProcess {
    /// Opens the process of `thread`; `space` is the number for its address
    /// space.
    pub(crate) fn open(thread: u32, status: &Status, space: u64) -> io::Result<Self> {
        let thread = i32::try_from(thread).map_err(|_| io::ErrorKind::NotFound)?;
        Ok(Self {
            id: status.process,
            user: status.user,
            space,
            memory: Arc::new(Process::open(thread)?),
            directory: rustix::fs::open(
                format!("/proc/{}", status.process),
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?,
            slot: OnceLock::new(),
            private: AtomicUsize::new(0),
        })
    }

    /// The process (thread group) id.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The real user id, as it was when the process was first seen.
    pub(crate) fn user(&self) -> u32 {
        self.user
    }

    /// The number of its address space.
    pub(crate) fn space(&self) -> u64 {
        self.space
    }

    /// Its directory of `/proc`.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(crate) fn memory(&self) -> &Process {
        &self.memory
    }

    /// Whether the address space that was opened is still in use.
    pub(crate) fn is_alive(&self) -> bool {
        self.memory.is_in_use()
    }

    /// The address by which devices reach the byte at `va`; `None` if there is
    /// none.
    pub(crate) fn reach(&self, all: &ClientMemory, va: u64) -> Option<u64> {
        if let Some(slot) = self.slot.get() {
            return slot.address(va);
        }
        let slot = all.add_process(Arc::clone(&self.memory)).ok()?;
        self.slot.get_or_init(|| slot).address(va)
    }

    /// Pins of its private memory.
    pub(crate) fn private(&self) -> &AtomicUsize {
        &self.private
    }

    /// Whether devices reach some of its private memory.
    pub(crate) fn has_private(&self) -> bool {
        self.private.load(Ordering::SeqCst) > 0
    }
}
