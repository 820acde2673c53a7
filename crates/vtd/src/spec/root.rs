//! The root table: which context table describes the functions of a bus.
//! VT-d 4.1 sections 9.1 (legacy), 9.2 (scalable) and 11.4.5 (RTADDR_REG).

use bitfield_struct::bitfield;

/// How a unit finds the domain of a request (RTADDR_REG.TTM).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableMode {
    /// A context entry of 16 bytes for each function.
    Legacy,
    /// A context entry of 32 bytes, and tables by PASID behind it.
    Scalable,
    /// 10b is reserved; 11b aborts every request where it is offered.
    Other,
}

/// Root Table Address Register (offset 0x020, 64-bit, RW), as it is latched.
#[bitfield(u64)]
pub struct RootTable {
    #[bits(10)]
    __: u16,
    /// TTM: 00b legacy, 01b scalable.
    #[bits(2)]
    pub mode_bits: u8,
    /// RTA: the table's address in pages of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

impl RootTable {
    /// The table's address.
    pub const fn address(self) -> u64 {
        self.frame() << 12
    }

    /// How the table is read.
    pub const fn mode(self) -> TableMode {
        match self.mode_bits() {
            0 => TableMode::Legacy,
            1 => TableMode::Scalable,
            _ => TableMode::Other,
        }
    }
}

/// Half a root entry (64-bit). A legacy entry's lower half points to the
/// context table of the bus, its upper half is reserved. Of a scalable entry
/// the lower half is for devices 0-15 and the upper half for 16-31.
#[bitfield(u64)]
pub struct RootHalf {
    /// P, LP or UP: the context table is there.
    pub present: bool,
    /// Must be zero.
    #[bits(11)]
    pub reserved: u16,
    /// CTP, LCTP or UCTP: the context table in pages of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

impl RootHalf {
    /// The context table's address.
    pub const fn address(self) -> u64 {
        self.frame() << 12
    }
}

/// Bytes of a root entry.
pub const ROOT_ENTRY: u64 = 16;
