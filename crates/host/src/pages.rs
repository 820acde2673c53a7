//! A client's memory as mappings see it: named first, pinned when a device
//! can reach it.

use std::fmt::Debug;

use iogate_dma::Rights;
use iogate_space::Segment;

/// Why pages could not be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PinError {
    /// A page is absent or does not allow what the mapping would (EFAULT).
    #[error("no usable page at {0:#x}")]
    Fault(u64),
    /// No more of them can be held (ENOMEM).
    #[error("out of resources while pinning")]
    NoMemory,
}

/// A range of a client's memory that may become the target of a mapping. Two
/// mappings may share one.
pub trait Pages: Send + Sync + Debug {
    /// Makes the bytes from `offset` to `offset + length` reachable by devices
    /// with `rights`, or fails and leaves nothing behind.
    fn pin(&self, offset: u64, length: u64, rights: Rights) -> Result<Box<dyn Pinned>, PinError>;

    /// As [`pin`](Self::pin), for software that copies the bytes and lets go:
    /// what only devices may not have is there for it.
    fn lend(&self, offset: u64, length: u64, rights: Rights) -> Result<Box<dyn Pinned>, PinError> {
        self.pin(offset, length, rights)
    }

    /// Where the range starts: an address in the client, or an offset in a
    /// file. Shown in reports and kept for the kernel's alignment rules.
    fn start(&self) -> u64;

    /// Whether the range names a file's pages rather than a process's.
    fn is_file(&self) -> bool;

    /// Whether the processor reaches the bytes: software cannot access what is
    /// a device's own.
    fn is_memory(&self) -> bool {
        true
    }

    /// Whether they are a device's own and it has taken them back: nothing of
    /// them is reached any more.
    fn is_revoked(&self) -> bool {
        false
    }

    /// Some of the memory is gone for good although it is pinned: a mapping
    /// that is made from now on is of what is there now.
    fn outdate(&self) {}

    /// Whether a mapping of them may allow writes: not if they were named for
    /// one that does not, as the copy of a read-only mapping finds them.
    fn is_writable(&self) -> bool {
        true
    }

    /// The address space that [`start`](Self::start) is an address of, as
    /// [`Caller::address_space`](crate::Caller::address_space) numbers them.
    /// Without meaning for a file.
    fn address_space(&self) -> u64;
}

/// Pinned pages. Dropping it releases them: do so only when no device can use
/// them any more.
pub trait Pinned: Send + Sync {
    /// Where the bytes are, in order.
    fn segments(&self) -> &[Segment];

    /// The parts, as (offset, length) from the first pinned byte, that are
    /// gone when the client unmaps them: private memory, which only its
    /// process can name. Shared files survive.
    fn private(&self) -> &[(u64, u64)];

    /// The first address at which the client has mapped a device's own memory
    /// or registers, if it has there. An iommufd does not take those: VM_IO,
    /// VM_PFNMAP. Linux `mm/gup.c`, `check_vma_flags`.
    fn device_address(&self) -> Option<u64> {
        None
    }
}
