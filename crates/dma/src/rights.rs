//! What an access does, and what a mapping allows.

use std::fmt;
use std::ops::BitAnd;

/// What one access does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// A memory read.
    Read,
    /// A memory write.
    Write,
    /// An atomic operation: needs both rights.
    Atomic,
    /// An instruction fetch: needs the right to read, and to execute where a
    /// format has that bit.
    Execute,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic",
            Self::Execute => "execute",
        })
    }
}

/// What a mapping allows. The default allows nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Rights(u8);

impl Rights {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Reads only.
    pub const READ: Self = Self(1);
    /// Writes only.
    pub const WRITE: Self = Self(2);
    /// Reads and writes.
    pub const READ_WRITE: Self = Self(3);

    /// The rights with these two parts.
    pub const fn new(read: bool, write: bool) -> Self {
        Self(read as u8 | (write as u8) << 1)
    }

    /// Bit 0: read, bit 1: write. Other bits are ignored.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 3)
    }

    /// Bit 0: read, bit 1: write.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether reads are allowed.
    pub const fn can_read(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether writes are allowed.
    pub const fn can_write(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether `access` is allowed.
    pub const fn allows(self, access: Access) -> bool {
        match access {
            Access::Read | Access::Execute => self.can_read(),
            Access::Write => self.can_write(),
            Access::Atomic => self.can_read() && self.can_write(),
        }
    }

    /// Whether everything that `other` allows is allowed.
    pub const fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitAnd for Rights {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.can_read(), self.can_write()) {
            (true, true) => "rw",
            (true, false) => "ro",
            (false, true) => "wo",
            (false, false) => "none",
        })
    }
}
