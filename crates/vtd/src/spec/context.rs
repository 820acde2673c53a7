//! Context entries: what a function's requests enter. VT-d 4.1 sections 9.3
//! (legacy) and 9.4 (scalable).

use bitfield_struct::bitfield;

/// What a legacy context entry does with requests (TT).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TranslationType {
    /// 00b: untranslated requests pass the second stage; others are refused.
    Untranslated,
    /// 01b: the same, and requests of device-TLBs are served.
    DeviceTlb,
    /// 10b: untranslated requests pass unchanged; others are refused.
    PassThrough,
    /// 11b.
    Reserved,
}

/// Legacy context entry, bits 63:0.
#[bitfield(u64)]
pub struct ContextLow {
    /// P.
    pub present: bool,
    /// FPD: qualified faults are not recorded. Valid without P, too.
    pub fault_disable: bool,
    /// TT.
    #[bits(2)]
    pub type_bits: u8,
    /// Must be zero.
    #[bits(8)]
    pub reserved: u8,
    /// SSPTPTR: the second stage's root table, in pages of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

impl ContextLow {
    /// The second stage's root table.
    pub const fn address(self) -> u64 {
        self.frame() << 12
    }

    /// What the entry does with requests.
    pub const fn translation_type(self) -> TranslationType {
        match self.type_bits() {
            0 => TranslationType::Untranslated,
            1 => TranslationType::DeviceTlb,
            2 => TranslationType::PassThrough,
            _ => TranslationType::Reserved,
        }
    }
}

/// Legacy context entry, bits 127:64.
#[bitfield(u64)]
pub struct ContextHigh {
    /// AW: 001b three levels (39 bits), 010b four (48), 011b five (57).
    #[bits(3)]
    pub width: u8,
    /// For software.
    #[bits(4)]
    pub available: u8,
    /// Must be zero.
    pub reserved_low: bool,
    /// DID.
    pub domain: u16,
    /// Must be zero.
    #[bits(40)]
    pub reserved: u64,
}

/// Scalable-mode context entry, bits 63:0.
#[bitfield(u64)]
pub struct ScalableLow {
    /// P.
    pub present: bool,
    /// FPD: qualified faults are not recorded. Valid without P, too.
    pub fault_disable: bool,
    /// DTE: requests of device-TLBs are served.
    pub device_tlb: bool,
    /// PASIDE: requests may carry a PASID.
    pub pasid: bool,
    /// PRE: page requests are served.
    pub page_requests: bool,
    /// Must be zero.
    #[bits(4)]
    pub reserved: u8,
    /// PDTS: the directory has 2^(PDTS + 7) entries.
    #[bits(3)]
    pub directory_size: u8,
    /// PASIDDIRPTR: the PASID directory, in pages of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

impl ScalableLow {
    /// The PASID directory's address.
    pub const fn address(self) -> u64 {
        self.frame() << 12
    }

    /// The lowest PASID beyond the directory.
    pub const fn pasids(self) -> u32 {
        1_u32.wrapping_shl((self.directory_size() as u32).saturating_add(13))
    }
}

/// Scalable-mode context entry, bits 127:64. The other half of its 32 bytes is
/// reserved.
#[bitfield(u64)]
pub struct ScalableHigh {
    /// RID_PASID: what requests without a PASID enter.
    #[bits(20)]
    pub rid_pasid: u32,
    /// RID_PRIV: they are privileged, where ECAP.RPRIVS is set; reserved here.
    pub rid_privileged: bool,
    /// Must be zero.
    #[bits(43)]
    pub reserved: u64,
}

/// Bytes of a legacy context entry.
pub const CONTEXT_ENTRY: u64 = 16;
/// Bytes of a scalable-mode context entry.
pub const SCALABLE_CONTEXT_ENTRY: u64 = 32;
