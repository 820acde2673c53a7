//! Errors as the kernel tells them apart, each with the reason in words.

/// The kinds that the kernel answers with different errno values. `uapi` has
/// the table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// EINVAL.
    Invalid,
    /// EBUSY.
    Busy,
    /// ENOENT.
    NotFound,
    /// EEXIST.
    Exists,
    /// EOVERFLOW.
    Overflow,
    /// ENOSPC.
    NoSpace,
    /// EPERM.
    NotPermitted,
    /// EACCES.
    Denied,
    /// EOPNOTSUPP.
    Unsupported,
    /// ENOTTY.
    NoSuchCall,
    /// ENODEV.
    NoDevice,
    /// ENXIO.
    NoSuchAddress,
    /// EBADF.
    BadDescriptor,
    /// EBADFD.
    BadFile,
    /// E2BIG.
    TooBig,
    /// EFAULT.
    Fault,
    /// ENOMEM.
    NoMemory,
    /// EADDRINUSE.
    AddressInUse,
    /// EMSGSIZE.
    MessageSize,
    /// EIO.
    Io,
    /// ENOMSG.
    NoMessage,
    /// ERANGE.
    Range,
}

/// A refusal: its kind, and why, in words for the program's author.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Error {
    /// Which errno.
    pub kind: ErrorKind,
    /// Why: a sentence without a full stop.
    pub reason: &'static str,
}

impl Error {
    /// A refusal of `kind` because of `reason`.
    pub const fn new(kind: ErrorKind, reason: &'static str) -> Self {
        Self { kind, reason }
    }

    /// EINVAL, the most frequent answer.
    pub const fn invalid(reason: &'static str) -> Self {
        Self::new(ErrorKind::Invalid, reason)
    }
}
