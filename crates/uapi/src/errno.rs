//! The one table from errors to errno values. include/uapi/asm-generic/errno.h.

use std::fmt;

use iogate_host::{Error, ErrorKind};

/// An errno value, positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $value:literal),* $(,)?) => {
        impl Errno {
            $(#[allow(missing_docs)] pub const $name: Self = Self($value);)*

            /// The symbolic name, or `errno` where this crate has none.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    _ => "errno",
                }
            }

            /// All that have a name.
            pub const NAMED: &[Self] = &[$(Self::$name),*];
        }
    };
}

errnos! {
    EPERM = 1, ENOENT = 2, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, EBADF = 9, EAGAIN = 11, ENOMEM = 12, EACCES = 13,
    EFAULT = 14, EBUSY = 16, EEXIST = 17, ENODEV = 19, EINVAL = 22, EMFILE = 24, ENOTTY = 25,
    ENOSPC = 28, ESPIPE = 29, ERANGE = 34, ENOSYS = 38, ENOMSG = 42, EOVERFLOW = 75, EBADFD = 77, EMSGSIZE = 90,
    EOPNOTSUPP = 95, EADDRINUSE = 98, ETIMEDOUT = 110,
}

impl From<ErrorKind> for Errno {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => Self::EINVAL,
            ErrorKind::Busy => Self::EBUSY,
            ErrorKind::NotFound => Self::ENOENT,
            ErrorKind::Exists => Self::EEXIST,
            ErrorKind::Overflow => Self::EOVERFLOW,
            ErrorKind::NoSpace => Self::ENOSPC,
            ErrorKind::NotPermitted => Self::EPERM,
            ErrorKind::Denied => Self::EACCES,
            ErrorKind::Unsupported => Self::EOPNOTSUPP,
            ErrorKind::NoSuchCall => Self::ENOTTY,
            ErrorKind::NoDevice => Self::ENODEV,
            ErrorKind::NoSuchAddress => Self::ENXIO,
            ErrorKind::BadDescriptor => Self::EBADF,
            ErrorKind::BadFile => Self::EBADFD,
            ErrorKind::TooBig => Self::E2BIG,
            ErrorKind::Fault => Self::EFAULT,
            ErrorKind::NoMemory => Self::ENOMEM,
            ErrorKind::AddressInUse => Self::EADDRINUSE,
            ErrorKind::MessageSize => Self::EMSGSIZE,
            ErrorKind::Io => Self::EIO,
            ErrorKind::NoMessage => Self::ENOMSG,
            ErrorKind::Range => Self::ERANGE,
        }
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        error.kind.into()
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            "errno" => write!(f, "errno {}", self.0),
            name => f.write_str(name),
        }
    }
}
