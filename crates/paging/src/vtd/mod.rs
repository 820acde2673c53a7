//! The two formats of Intel VT-d. Virtualization Technology for Directed I/O,
//! revision 4.1, chapter 9.

mod first;
mod second;

pub use first::{FirstStage, SupervisorWrites};
pub use second::SecondStage;

use crate::Shape;

/// Present, or readable, in both formats.
const BIT_0: u64 = 1;
/// Writable, in both formats.
const BIT_1: u64 = 1 << 1;
/// Page size: the entry maps a page although it is not of level 1.
const PAGE_SIZE: u64 = 1 << 7;

/// Levels of tables, each with 512 entries of 4 KiB pages below.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Levels {
    /// 39 bits of address; second stage only.
    Three,
    /// 48 bits.
    Four,
    /// 57 bits.
    Five,
}

impl Levels {
    /// 3, 4 or 5.
    pub const fn count(self) -> u8 {
        match self {
            Self::Three => 3,
            Self::Four => 4,
            Self::Five => 5,
        }
    }

    /// Address bits that the tables divide: 39, 48 or 57.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Three => 39,
            Self::Four => 48,
            Self::Five => 57,
        }
    }
}

/// The sizes of page that an entry above level 1 may map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LargePages {
    /// At level 2. CAP.SSLPS bit 0.
    pub two_mib: bool,
    /// At level 3. CAP.SSLPS bit 1, CAP.FS1GP.
    pub one_gib: bool,
}

impl LargePages {
    /// Both.
    pub const ALL: Self = Self {
        two_mib: true,
        one_gib: true,
    };

    const fn at(self, level: u8) -> bool {
        match level {
            1 => true,
            2 => self.two_mib,
            3 => self.one_gib,
            _ => false,
        }
    }
}

/// The lowest address bit of the index at `level`, which is also the
/// logarithm of what an entry covers.
#[inline]
const fn shift(level: u8) -> u32 {
    (level as u32).wrapping_mul(9).wrapping_add(3)
}

#[inline]
const fn shape(level: u8) -> Shape {
    Shape {
        shift: shift(level),
        bits: 9,
    }
}

/// Bits `first` to `last`.
#[inline]
const fn bits(first: u32, last: u32) -> u64 {
    let below = 1_u64.unbounded_shl(last.saturating_add(1)).wrapping_sub(1);
    below & u64::MAX.unbounded_shl(first)
}

/// The bits of a leaf's address, of `level`, that are not reserved.
#[inline]
const fn page(level: u8, output_bits: u32) -> u64 {
    bits(shift(level), 51) & !bits(output_bits, 51)
}
