//! First-stage tables: those of an x86-64 processor. VT-d 4.1 sections 3.6
//! and 9.7.

use iogate_dma::{Access, Privilege};

use super::{BIT_0, BIT_1, LargePages, Levels, PAGE_SIZE, bits, page, shape, shift};
use crate::{Entry, Format, Input, Leaves, Permissions, Shape};

const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const EXTENDED_ACCESSED: u64 = 1 << 10;
const EXECUTE_DISABLE: u64 = 1 << 63;

/// What a supervisor's write to a read-only page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SupervisorWrites {
    /// Allowed (WPE clear).
    Allowed,
    /// Refused (WPE set).
    Refused,
}

/// First-stage tables, with what a unit and a PASID-table entry make of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstStage {
    /// Four or five (FSPM).
    pub levels: Levels,
    /// Bits of a physical address (HAW); those above, to bit 51, are reserved.
    pub output_bits: u32,
    /// Page sizes above 4 KiB.
    pub large: LargePages,
    /// Whether bit 63 forbids execution (NXE); reserved otherwise.
    pub no_execute: bool,
    /// Whether a supervisor's write needs a writable page (WPE).
    pub supervisor_writes: SupervisorWrites,
    /// Whether the extended accessed flag is kept (EAFE).
    pub extended_accessed: bool,
}

impl FirstStage {
    /// Tables of this many levels with all sizes of page, 52-bit output, bit
    /// 63 to forbid execution, and nothing else that is optional.
    pub const fn new(levels: Levels) -> Self {
        Self {
            levels,
            output_bits: 52,
            large: LargePages::ALL,
            no_execute: true,
            supervisor_writes: SupervisorWrites::Refused,
            extended_accessed: false,
        }
    }

    const fn permissions(&self, entry: u64) -> Permissions {
        let write = entry & BIT_1 != 0;
        let execute = !self.no_execute || entry & EXECUTE_DISABLE == 0;
        let user = Permissions::new(true, write, execute).with_user(entry & USER != 0);
        match self.supervisor_writes {
            SupervisorWrites::Refused => user,
            SupervisorWrites::Allowed => user.with_supervisor_write(),
        }
    }
}

impl Format for FirstStage {
    #[inline]
    fn top(&self) -> u8 {
        self.levels.count()
    }

    #[inline]
    fn shape(&self, level: u8) -> Shape {
        shape(level)
    }

    #[inline]
    fn input(&self) -> Input {
        Input::Canonical(self.levels.bits())
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Entry {
        if entry & BIT_0 == 0 {
            return Entry::Absent;
        }
        let execute = if self.no_execute { 0 } else { EXECUTE_DISABLE };
        let unused = bits(self.output_bits, 51) | execute;
        let permissions = self.permissions(entry);
        if level == 1 || (level <= 3 && entry & PAGE_SIZE != 0) {
            // Bit 12 of a large page is its PAT bit.
            let below = bits(13, shift(level).wrapping_sub(1));
            if entry & (unused | below) != 0 || !self.large.at(level) {
                return Entry::Reserved;
            }
            return Entry::Leaf {
                address: entry & bits(shift(level), 51),
                shift: shift(level),
                permissions,
            };
        }
        if entry & (unused | PAGE_SIZE) != 0 {
            return Entry::Reserved;
        }
        Entry::Table {
            address: entry & bits(12, 51),
            level: level.wrapping_sub(1),
            permissions,
        }
    }

    #[inline]
    fn touched(&self, entry: u64, leaf: bool, access: Access) -> u64 {
        let writes = matches!(access, Access::Write | Access::Atomic);
        let extended = if self.extended_accessed {
            EXTENDED_ACCESSED
        } else {
            0
        };
        entry | ACCESSED | extended | if leaf && writes { DIRTY } else { 0 }
    }

    #[inline]
    fn leaves(&self, level: u8) -> Option<Leaves> {
        let size = if level == 1 { 0 } else { PAGE_SIZE };
        let address = page(level, self.output_bits);
        // All above bit 12, which is the PAT bit of a large page.
        let wide = bits(13, 51) & !address;
        Some(Leaves {
            address,
            flags: wide | BIT_0 | BIT_1 | USER | size | EXECUTE_DISABLE,
        })
    }

    fn leaf(&self, address: u64, level: u8, permissions: Permissions) -> Option<u64> {
        let fits = address & !bits(shift(level), self.output_bits.checked_sub(1)?) == 0;
        let user = permissions.rights(Privilege::User).can_read();
        let privilege = if user {
            Privilege::User
        } else {
            Privilege::Supervisor
        };
        let rights = permissions.rights(privilege);
        let no_execute = self.no_execute && !permissions.executable(privilege);
        (fits && rights.can_read() && self.large.at(level)).then_some(
            address
                | BIT_0
                | if rights.can_write() { BIT_1 } else { 0 }
                | if user { USER } else { 0 }
                | if no_execute { EXECUTE_DISABLE } else { 0 }
                | if level == 1 { 0 } else { PAGE_SIZE },
        )
    }

    fn table(&self, address: u64, _level: u8) -> Option<u64> {
        let fits = address & !bits(12, self.output_bits.checked_sub(1)?) == 0;
        fits.then_some(address | BIT_0 | BIT_1 | USER)
    }
}
