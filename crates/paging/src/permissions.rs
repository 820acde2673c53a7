//! What a path through tables allows, to each privilege.

use std::fmt;
use std::ops::BitAnd;

use iogate_dma::{Access, Privilege, Rights};

/// Reading, writing and executing, for user and for supervisor requests. The
/// entries of a walk are combined by `&`: a path allows what each of them does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Permissions(u8);

impl Permissions {
    /// Nothing, to nobody.
    pub const NONE: Self = Self(0);
    /// Everything, to everybody.
    pub const ALL: Self = Self(0o77);

    /// Reading and writing, to a user: what a device asks for without a PASID.
    pub const USER_DATA: Self = Self(0o3);

    /// Six bits that [`bits`](Self::bits) gave; others are ignored.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0o77)
    }

    /// As six bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The same for both privileges.
    pub const fn new(read: bool, write: bool, execute: bool) -> Self {
        let one = read as u8 | (write as u8) << 1 | (execute as u8) << 2;
        Self(one | one << 3)
    }

    /// These to a supervisor, and to a user only if `user`.
    pub const fn with_user(self, user: bool) -> Self {
        if user { self } else { Self(self.0 & 0o70) }
    }

    /// These, and writing to a supervisor.
    pub const fn with_supervisor_write(self) -> Self {
        Self(self.0 | 0o20)
    }

    /// Whether `privilege` may do `access`.
    pub const fn allow(self, access: Access, privilege: Privilege) -> bool {
        let mine = match privilege {
            Privilege::User => self.0,
            Privilege::Supervisor => self.0 >> 3,
        };
        let needed = match access {
            Access::Read => 0o1,
            Access::Write => 0o2,
            Access::Atomic => 0o3,
            Access::Execute => 0o5,
        };
        mine & needed == needed
    }

    /// What `privilege` may do to data.
    pub const fn rights(self, privilege: Privilege) -> Rights {
        match privilege {
            Privilege::User => Rights::from_bits(self.0 & 0o3),
            Privilege::Supervisor => Rights::from_bits(self.0 >> 3 & 0o3),
        }
    }

    /// Whether `privilege` may execute.
    pub const fn executable(self, privilege: Privilege) -> bool {
        match privilege {
            Privilege::User => self.0 & 0o4 != 0,
            Privilege::Supervisor => self.0 & 0o40 != 0,
        }
    }
}

impl BitAnd for Permissions {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (privilege, name) in [(Privilege::User, "u:"), (Privilege::Supervisor, " s:")] {
            f.write_str(name)?;
            for (access, letter) in [(Access::Read, "r"), (Access::Write, "w")] {
                let allowed = self.rights(privilege).allows(access);
                f.write_str(if allowed { letter } else { "-" })?;
            }
            f.write_str(if self.executable(privilege) { "x" } else { "-" })?;
        }
        Ok(())
    }
}
