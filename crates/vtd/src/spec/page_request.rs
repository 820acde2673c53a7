//! Descriptors of the page request queue, and the codes that answer them.
//! VT-d 4.1 sections 7.4 and 7.6.

use bitfield_struct::bitfield;

/// Bytes of a page request descriptor.
pub const PAGE_REQUEST: u32 = 32;

/// Type of a page request descriptor.
pub const PAGE_REQUEST_TYPE: u8 = 1;

/// Page request descriptor, bits 63:0. The upper 128 bits are zero.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequestLow {
    /// Type: 1.
    pub kind: u8,
    /// PP: the request had a PASID.
    pub pasid_present: bool,
    #[bits(7)]
    _reserved: u8,
    /// RID.
    pub source: u16,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    /// EXR: to execute.
    pub execute: bool,
    /// PMR: in privileged mode.
    pub privileged: bool,
    #[bits(10)]
    _reserved: u16,
}

/// Page request descriptor, bits 127:64.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequestHigh {
    /// RD: to read.
    pub read: bool,
    /// WR: to write.
    pub write: bool,
    /// LPIG: the last of its group.
    pub last: bool,
    /// PRGI.
    #[bits(9)]
    pub group: u16,
    /// ADDR, in pages of 4 KiB.
    #[bits(52)]
    pub page: u64,
}

/// What a page-group response says. PCI Express Base 6.0 section 10.4.2.1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ResponseCode {
    /// All pages of the group are there now, as far as they can be.
    Success,
    /// A page does not exist, or not with the rights asked for.
    Invalid,
    /// Something is broken: the function asks no more.
    Failure,
}

impl ResponseCode {
    /// Reads RC; codes that are not defined are failures.
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Success,
            1 => Self::Invalid,
            _ => Self::Failure,
        }
    }
}
