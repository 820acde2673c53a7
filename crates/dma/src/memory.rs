//! Memory at the end of a chain of address spaces.

use std::os::fd::BorrowedFd;

/// Bytes of one single-copy-atomic access; its address is a multiple of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
    /// 8 bytes.
    Qword,
}

impl Width {
    /// Bytes: 1, 2, 4 or 8.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }
}

/// Why memory could not be accessed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// No memory stands at this address.
    #[error("no memory at {address:#x}")]
    Absent {
        /// The first byte that failed.
        address: u64,
    },
    /// The memory was there and is gone: its process ended, its file shrank.
    #[error("memory at {address:#x} is gone")]
    Gone {
        /// The first byte that failed.
        address: u64,
    },
    /// An atomic access at an address that is no multiple of its width.
    #[error("atomic access at {address:#x} is not aligned to {} bytes", width.bytes())]
    Misaligned {
        /// The address asked for.
        address: u64,
        /// The width asked for.
        width: Width,
    },
    /// This memory cannot be accessed atomically.
    #[error("memory at {address:#x} cannot be accessed atomically")]
    NotAtomic {
        /// The address asked for.
        address: u64,
    },
}

/// A space of bytes that requests end in: guest RAM, a client's memory.
///
/// Addresses are the output of a translation, in this memory's own numbering.
/// An access that fails may have moved a part of the bytes, as a bus does.
pub trait Memory: Send + Sync {
    /// Fills `into` from `address` on. Not atomic as a whole.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError>;

    /// Writes `from` to `address` on. Not atomic as a whole.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError>;

    /// Reads `width` bytes, little-endian, as one access with acquire order.
    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError>;

    /// Writes the low `width` bytes of `value`, little-endian, as one access
    /// with release order.
    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError>;

    /// Replaces `current` by `new` if `current` stands there. Returns what
    /// stood there: equal to `current` means replaced.
    fn compare_exchange(
        &self,
        address: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError>;
}

/// A device's own memory, which programs can have mapped: what is written on
/// either side is there on the other. Addresses begin at 0.
pub trait SharedMemory: Memory {
    /// The file that holds the memory, and the offset in it at which the memory
    /// begins, a multiple of the page size; `None` if programs cannot map it.
    fn file(&self) -> Option<(BorrowedFd<'_>, u64)>;
}
