//! What a page-table format says of itself.

use iogate_dma::Access;

use crate::Permissions;

/// What an entry of a table means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing is mapped below it.
    Absent,
    /// It is there, and a bit that must be zero is set.
    Reserved,
    /// It points to a table.
    Table {
        /// Where the table begins.
        address: u64,
        /// The table's level, below the entry's own.
        level: u8,
        /// What the path through this entry allows.
        permissions: Permissions,
    },
    /// It maps memory.
    Leaf {
        /// Where the memory begins, a multiple of its size.
        address: u64,
        /// Logarithm of the size in bytes.
        shift: u32,
        /// What the entry allows.
        permissions: Permissions,
    },
}

/// How the address bits are divided among the tables of one level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The lowest address bit of the index: 12 at level 1 of 4 KiB pages.
    pub shift: u32,
    /// Bits of the index: a table has two to this power entries.
    pub bits: u32,
}

impl Shape {
    /// The index of `address` in a table of this shape.
    #[inline]
    pub const fn index(self, address: u64) -> u64 {
        let entries = 1_u64.unbounded_shl(self.bits).wrapping_sub(1);
        address.unbounded_shr(self.shift) & entries
    }
}

/// The bits of the leaves of one level. Bits in neither of the two are ignored
/// by [`Format::decode`].
///
/// If an entry is a leaf then so is every other with the same `flags`. It has
/// the same permissions and maps as many bytes as an entry of the level covers,
/// from the address on that the entry's bits in `address` are. If none of `flags`
/// is set, the entry is absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaves {
    /// Bits that say where it leads, each at its place in the address; above
    /// the page's offset, and without gaps.
    pub address: u64,
    /// Bits that say that it is a leaf and what it allows, and reserved ones.
    pub flags: u64,
}

/// The addresses that a format translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// Those below two to this power.
    Below(u32),
    /// Those whose upper bits, from the one below this number up, are equal.
    Canonical(u32),
}

impl Input {
    /// Whether `address` is one of them.
    #[inline]
    pub const fn accepts(self, address: u64) -> bool {
        match self {
            Self::Below(bits) => address.unbounded_shr(bits) == 0,
            Self::Canonical(bits) => {
                let upper = address.unbounded_shr(bits.saturating_sub(1));
                upper == 0 || upper == u64::MAX.unbounded_shr(bits.saturating_sub(1))
            }
        }
    }

    /// The first and last address of each contiguous part, lowest part first.
    pub const fn parts(self) -> [Option<(u64, u64)>; 2] {
        const fn last(bits: u32) -> u64 {
            1_u64.unbounded_shl(bits).wrapping_sub(1)
        }
        match self {
            Self::Below(bits) => [Some((0, last(bits))), None],
            Self::Canonical(bits) if bits >= 64 => [Some((0, u64::MAX)), None],
            Self::Canonical(bits) => {
                let half = last(bits.saturating_sub(1));
                [Some((0, half)), Some((!half, u64::MAX))]
            }
        }
    }
}

/// A page-table format with its settings: levels, widths, page sizes allowed.
///
/// An entry is 8 bytes as they are loaded, little-endian; a big-endian format
/// swaps them. Levels count down to 1, the tables of the smallest pages.
pub trait Format: Copy + Send + Sync {
    /// The level of the root table, 1 or more.
    fn top(&self) -> u8;

    /// The shape of the tables of `level`.
    fn shape(&self, level: u8) -> Shape;

    /// The addresses that it translates.
    fn input(&self) -> Input;

    /// What `entry`, of a table of `level`, means.
    fn decode(&self, entry: u64, level: u8) -> Entry;

    /// The entry as it is after it took part in a translation for `access`:
    /// with accessed and dirty flags. `leaf` says whether it maps memory. A
    /// format without such flags, or with them turned off, returns `entry`.
    #[inline]
    fn touched(&self, entry: u64, leaf: bool, access: Access) -> u64 {
        let _ = (leaf, access);
        entry
    }

    /// How leaves of `level` are told apart, so that a scan decodes one and
    /// knows the others; `None` in a format where each is decoded.
    #[inline]
    fn leaves(&self, level: u8) -> Option<Leaves> {
        let _ = level;
        None
    }

    /// An entry of `level` that maps `address`; `None` if the format has no
    /// pages there or `address` does not fit.
    fn leaf(&self, address: u64, level: u8, permissions: Permissions) -> Option<u64>;

    /// An entry of `level` that points to the table at `address`, and limits
    /// nothing; `None` if `address` does not fit.
    fn table(&self, address: u64, level: u8) -> Option<u64>;
}
