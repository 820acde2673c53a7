//! The root table: which context table describes the functions of a bus.
//! VT-d 4.1 sections 9.1 (legacy) and 9.2 (scalable).

use bitfield_struct::bitfield;

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
