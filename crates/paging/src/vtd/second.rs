//! Second-stage tables: guest-physical or I/O virtual to physical.
//! VT-d 4.1 section 9.8.

use iogate_dma::{Access, Privilege};

use super::{BIT_0, BIT_1, LargePages, Levels, PAGE_SIZE, bits, page, shape, shift};
use crate::{Entry, Format, Input, Leaves, Permissions, Shape};

const EXECUTE: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const SNOOP: u64 = 1 << 11;
/// Reserved on every level; its neighbours are ignored.
const RESERVED: u64 = 1 << 62;

/// Second-stage tables, with what a unit and a domain make of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondStage {
    /// Levels of the domain's tables (AW).
    pub levels: Levels,
    /// Bits of address translated: the lesser of the unit's MGAW + 1 and what
    /// the levels give.
    pub input_bits: u32,
    /// Bits of a physical address (HAW); those above, to bit 51, are reserved.
    pub output_bits: u32,
    /// Page sizes above 4 KiB.
    pub large: LargePages,
    /// Whether a leaf's SNP bit is there (ECAP.SC); reserved otherwise.
    pub snoop_control: bool,
    /// Whether entries have a right to execute; otherwise what can be read can
    /// be executed.
    pub execute: bool,
    /// Whether accessed and dirty flags are kept (SSADE).
    pub flags: bool,
}

impl SecondStage {
    /// Tables of this many levels with all sizes of page, 52-bit output, and
    /// nothing optional.
    pub const fn new(levels: Levels) -> Self {
        Self {
            levels,
            input_bits: levels.bits(),
            output_bits: 52,
            large: LargePages::ALL,
            snoop_control: false,
            execute: false,
            flags: false,
        }
    }

    const fn present(&self) -> u64 {
        BIT_0 | BIT_1 | if self.execute { EXECUTE } else { 0 }
    }

    const fn permissions(&self, entry: u64) -> Permissions {
        let read = entry & BIT_0 != 0;
        let execute = if self.execute {
            entry & EXECUTE != 0
        } else {
            read
        };
        Permissions::new(read, entry & BIT_1 != 0, execute)
    }
}

impl Format for SecondStage {
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
        Input::Below(self.input_bits)
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Entry {
        if entry & self.present() == 0 {
            return Entry::Absent;
        }
        let unused = bits(self.output_bits, 51) | RESERVED;
        let permissions = self.permissions(entry);
        if level == 1 || (level <= 3 && entry & PAGE_SIZE != 0) {
            let below = bits(12, shift(level).wrapping_sub(1));
            let snoop = if self.snoop_control { 0 } else { SNOOP };
            if entry & (unused | below | snoop) != 0 || !self.large.at(level) {
                return Entry::Reserved;
            }
            return Entry::Leaf {
                address: entry & bits(12, 51),
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
        if !self.flags {
            return entry;
        }
        let writes = matches!(access, Access::Write | Access::Atomic);
        entry | ACCESSED | if leaf && writes { DIRTY } else { 0 }
    }

    #[inline]
    fn leaves(&self, level: u8) -> Option<Leaves> {
        let size = if level == 1 { 0 } else { PAGE_SIZE };
        let snoop = if self.snoop_control { 0 } else { SNOOP };
        let address = page(level, self.output_bits);
        let wide = bits(12, 51) & !address;
        Some(Leaves {
            address,
            flags: wide | self.present() | size | snoop | RESERVED,
        })
    }

    fn leaf(&self, address: u64, level: u8, permissions: Permissions) -> Option<u64> {
        let fits = address & !bits(shift(level), self.output_bits.checked_sub(1)?) == 0;
        let rights = permissions.rights(Privilege::User);
        let execute = self.execute && permissions.executable(Privilege::User);
        (fits && self.large.at(level)).then_some(
            address
                | u64::from(rights.bits())
                | if execute { EXECUTE } else { 0 }
                | if level == 1 { 0 } else { PAGE_SIZE },
        )
    }

    fn table(&self, address: u64, _level: u8) -> Option<u64> {
        let fits = address & !bits(12, self.output_bits.checked_sub(1)?) == 0;
        fits.then_some(address | self.present())
    }
}
