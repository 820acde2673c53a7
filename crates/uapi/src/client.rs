//! The calling process as a call sees it: memory, descriptors, credentials.

use std::sync::Arc;

use iogate_host::{Caller, Event, FileId, Pages, Watch};
use iogate_interrupt::Signal;

use crate::Errno;

/// Client memory at this address is absent (EFAULT).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no client memory at {0:#x}")]
pub struct BadAddress(pub u64);

/// What a descriptor of the client names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Named {
    /// One of our files.
    Ours(FileId),
    /// Something else.
    Other,
}

/// The calling thread's process. Everything in its memory may change between
/// two reads: read an argument once and use the copy.
pub trait Client: Caller {
    /// Fills `into` from the client's `address`.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), BadAddress>;

    /// Writes `from` to the client's `address`.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), BadAddress>;

    /// What descriptor `fd` names; EBADF if it is not open.
    fn named(&self, fd: i32) -> Result<Named, Errno>;

    /// The eventfd `fd` as something to signal: EBADF if not open, EINVAL if
    /// it is no eventfd. The signal keeps the eventfd alive.
    fn eventfd(&self, fd: i32) -> Result<Arc<dyn Signal>, Errno>;

    /// The client's `length` bytes from `address` on, which may be absent:
    /// that shows when they are pinned.
    fn pages(&self, address: u64, length: u64) -> Arc<dyn Pages>;

    /// `length` bytes of the file `fd` from `offset` on: EBADF if not open,
    /// EINVAL if its memory cannot be shared so.
    fn file_pages(&self, fd: i32, offset: u64, length: u64) -> Result<Arc<dyn Pages>, Errno>;

    /// Gives the client a descriptor, close-on-exec, for one of our files while
    /// its call still waits, and returns the number. On an error the caller
    /// closes the file.
    fn install(&self, file: FileId) -> Result<i32, Errno> {
        let _ = file;
        Err(Errno::EMFILE)
    }

    /// Has [`Host::event`](iogate_host::Host::event) called with `event`
    /// whenever the eventfd `fd` is signalled, until the result is dropped:
    /// EBADF if not open, EINVAL if it is no eventfd.
    fn watch(&self, fd: i32, event: Event) -> Result<Box<dyn Watch>, Errno>;
}

impl From<BadAddress> for Errno {
    fn from(_: BadAddress) -> Self {
        Self::EFAULT
    }
}
