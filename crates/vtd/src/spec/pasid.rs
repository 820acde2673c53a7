//! The PASID directory and tables: which page tables a PASID's requests pass.
//! VT-d 4.1 sections 9.5 and 9.6.

use bitfield_struct::bitfield;

/// Scalable-mode PASID directory entry (64-bit).
#[bitfield(u64)]
pub struct DirectoryEntry {
    /// P.
    pub present: bool,
    /// FPD. Valid without P, too.
    pub fault_disable: bool,
    /// Must be zero.
    #[bits(10)]
    pub reserved: u16,
    /// SMPTBLPTR: the PASID table, in pages of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

impl DirectoryEntry {
    /// The PASID table's address.
    pub const fn address(self) -> u64 {
        self.frame() << 12
    }
}

/// Which stages a request passes (PGTT).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stages {
    /// 001b.
    First,
    /// 010b.
    Second,
    /// 011b: the first stage, whose tables and output pass the second.
    Nested,
    /// 100b.
    PassThrough,
    /// Every other value.
    Reserved,
}

/// Scalable-mode PASID table entry, bits 63:0.
#[bitfield(u64)]
pub struct PasidLow {
    /// P.
    pub present: bool,
    /// FPD. Valid without P, too.
    pub fault_disable: bool,
    /// AW: 001b three levels (39 bits), 010b four (48), 011b five (57).
    #[bits(3)]
    pub width: u8,
    /// Must be zero.
    pub reserved_low: bool,
    /// PGTT.
    #[bits(3)]
    pub stages_bits: u8,
    /// SSADE: the second stage keeps accessed and dirty flags.
    pub second_flags: bool,
    /// Must be zero.
    #[bits(2)]
    pub reserved: u8,
    /// SSPTPTR: the second stage's root table, in pages of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

impl PasidLow {
    /// The second stage's root table.
    pub const fn address(self) -> u64 {
        self.frame() << 12
    }

    /// Which stages a request passes.
    pub const fn stages(self) -> Stages {
        match self.stages_bits() {
            1 => Stages::First,
            2 => Stages::Second,
            3 => Stages::Nested,
            4 => Stages::PassThrough,
            _ => Stages::Reserved,
        }
    }
}

/// Scalable-mode PASID table entry, bits 127:64.
#[bitfield(u64)]
pub struct PasidMiddle {
    /// DID.
    pub domain: u16,
    /// Must be zero.
    #[bits(7)]
    pub reserved: u8,
    /// PWSNP: table reads snoop processor caches.
    pub walk_snoop: bool,
    /// PGSNP: accesses snoop processor caches.
    pub page_snoop: bool,
    /// CD, EMTE, EMT and PAT: memory types, without an effect here.
    #[bits(39)]
    pub memory_type: u64,
}

/// Scalable-mode PASID table entry, bits 191:128. The other bits of its 64
/// bytes are reserved.
#[bitfield(u64)]
pub struct PasidHigh {
    /// SRE: privileged requests are served.
    pub supervisor: bool,
    /// ERE: requests to execute are served.
    pub execute: bool,
    /// FSPM: 00b four levels, 01b five.
    #[bits(2)]
    pub levels: u8,
    /// WPE: privileged writes need a writable page.
    pub write_protect: bool,
    /// NXE: bit 63 of an entry forbids execution.
    pub no_execute: bool,
    /// SMEP.
    pub supervisor_execution: bool,
    /// EAFE: the first stage keeps extended accessed flags.
    pub extended_accessed: bool,
    /// Must be zero.
    #[bits(4)]
    pub reserved: u8,
    /// FSPTPTR: the first stage's root table, in pages of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

impl PasidHigh {
    /// The first stage's root table.
    pub const fn address(self) -> u64 {
        self.frame() << 12
    }
}

/// Bytes of a PASID directory entry, of which one stands for 64 PASIDs.
pub const DIRECTORY_ENTRY: u64 = 8;
/// Bytes of a PASID table entry.
pub const PASID_ENTRY: u64 = 64;
