//! Descriptors of the invalidation queue. VT-d 4.1 section 6.5.2.

use bitfield_struct::bitfield;

use super::registers::Granularity;

/// The type, in two parts that stand in the same place in every descriptor.
#[bitfield(u64)]
pub struct Header {
    /// Type, bits 3:0.
    #[bits(4)]
    pub low: u8,
    #[bits(5)]
    _other: u8,
    /// Type, bits 6:4.
    #[bits(3)]
    pub high: u8,
    #[bits(52)]
    _other: u64,
}

/// The types of descriptors.
pub mod kind {
    /// Context-cache invalidation.
    pub const CONTEXT: u8 = 1;
    /// IOTLB invalidation.
    pub const IOTLB: u8 = 2;
    /// Device-TLB invalidation.
    pub const DEVICE_TLB: u8 = 3;
    /// Interrupt-entry-cache invalidation.
    pub const INTERRUPT: u8 = 4;
    /// Wait.
    pub const WAIT: u8 = 5;
    /// PASID-based IOTLB invalidation.
    pub const PASID_IOTLB: u8 = 6;
    /// PASID-cache invalidation.
    pub const PASID_CACHE: u8 = 7;
    /// PASID-based device-TLB invalidation.
    pub const PASID_DEVICE_TLB: u8 = 8;
    /// Page-group response.
    pub const PAGE_RESPONSE: u8 = 9;
}

/// Context-cache invalidation, low half. VT-d 4.1 section 6.5.2.1.
#[bitfield(u64)]
pub struct Context {
    #[bits(4)]
    _kind: u8,
    /// G: 1 global, 2 domain, 3 device.
    #[bits(2)]
    pub granularity: Granularity,
    #[bits(10)]
    _reserved: u16,
    /// DID.
    pub domain: u16,
    /// SID.
    pub source: u16,
    /// FM.
    #[bits(2)]
    pub function_mask: u8,
    #[bits(14)]
    _reserved: u16,
}

/// PASID-cache invalidation, low half. VT-d 4.1 section 6.5.2.2.
#[bitfield(u64)]
pub struct PasidCache {
    #[bits(4)]
    _kind: u8,
    /// G: 0 domain, 1 PASID, 3 global.
    #[bits(2)]
    pub granularity: u8,
    #[bits(10)]
    _reserved: u16,
    /// DID.
    pub domain: u16,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    _reserved: u16,
}

/// IOTLB invalidation, low half. VT-d 4.1 section 6.5.2.3.
#[bitfield(u64)]
pub struct Iotlb {
    #[bits(4)]
    _kind: u8,
    /// G: 1 global, 2 domain, 3 pages.
    #[bits(2)]
    pub granularity: Granularity,
    /// DW: drain writes.
    pub drain_writes: bool,
    /// DR: drain reads.
    pub drain_reads: bool,
    #[bits(8)]
    _reserved: u8,
    /// DID.
    pub domain: u16,
    #[bits(32)]
    _reserved: u32,
}

/// PASID-based IOTLB invalidation, low half. VT-d 4.1 section 6.5.2.4.
#[bitfield(u64)]
pub struct PasidIotlb {
    #[bits(4)]
    _kind: u8,
    /// G: 2 all of the PASID, 3 pages.
    #[bits(2)]
    pub granularity: u8,
    #[bits(10)]
    _reserved: u16,
    /// DID.
    pub domain: u16,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    _reserved: u16,
}

/// Which pages: the high half of both kinds of IOTLB invalidation.
#[bitfield(u64)]
pub struct Pages {
    /// AM: 2^`mask` pages.
    #[bits(6)]
    pub mask: u8,
    /// IH: only leaves changed.
    pub leaf_only: bool,
    #[bits(5)]
    _reserved: u8,
    /// ADDR, in pages of 4 KiB.
    #[bits(52)]
    pub page: u64,
}

/// Device-TLB invalidation, low half. VT-d 4.1 section 6.5.2.5.
#[bitfield(u64)]
pub struct DeviceTlb {
    #[bits(12)]
    _kind: u16,
    /// PFSID, bits 3:0.
    #[bits(4)]
    pub physical_low: u8,
    /// MIP.
    #[bits(5)]
    pub pending: u8,
    #[bits(11)]
    _reserved: u16,
    /// SID.
    pub source: u16,
    #[bits(4)]
    _reserved: u8,
    /// PFSID, bits 15:4.
    #[bits(12)]
    pub physical_high: u16,
}

/// Which pages: the high half of a device-TLB invalidation.
#[bitfield(u64)]
pub struct DevicePages {
    /// S: the lowest clear bit of the address says how many pages.
    pub sized: bool,
    #[bits(11)]
    _reserved: u16,
    /// ADDR, in pages of 4 KiB.
    #[bits(52)]
    pub page: u64,
}

/// PASID-based device-TLB invalidation, low half. VT-d 4.1 section 6.5.2.6.
#[bitfield(u64)]
pub struct PasidDeviceTlb {
    #[bits(4)]
    _kind: u8,
    /// MIP.
    #[bits(5)]
    pub pending: u8,
    #[bits(3)]
    _kind_high: u8,
    /// PFSID, bits 3:0.
    #[bits(4)]
    pub physical_low: u8,
    /// SID.
    pub source: u16,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    /// PFSID, bits 15:4.
    #[bits(12)]
    pub physical_high: u16,
}

/// Which pages: the high half of a PASID-based device-TLB invalidation.
#[bitfield(u64)]
pub struct PasidDevicePages {
    /// G: of every PASID.
    pub global: bool,
    #[bits(10)]
    _reserved: u16,
    /// S: the lowest clear bit of the address says how many pages.
    pub sized: bool,
    /// ADDR, in pages of 4 KiB.
    #[bits(52)]
    pub page: u64,
}

/// Interrupt-entry-cache invalidation, low half. VT-d 4.1 section 6.5.2.7.
#[bitfield(u64)]
pub struct Interrupt {
    #[bits(4)]
    _kind: u8,
    /// G: selected by the index.
    pub selective: bool,
    #[bits(22)]
    _reserved: u32,
    /// IM: 2^`mask` entries.
    #[bits(5)]
    pub mask: u8,
    /// IIDX.
    pub index: u16,
    #[bits(16)]
    _reserved: u16,
}

/// Wait, low half. VT-d 4.1 section 6.5.2.8.
#[bitfield(u64)]
pub struct Wait {
    #[bits(4)]
    _kind: u8,
    /// IF: raise the invalidation event.
    pub interrupt: bool,
    /// SW: write the status.
    pub status_write: bool,
    /// FN: what follows waits for this.
    pub fence: bool,
    /// PD: page requests are drained too.
    pub drain_page_requests: bool,
    #[bits(24)]
    _reserved: u32,
    /// Status Data.
    pub data: u32,
}

/// Page-group response, low half. VT-d 4.1 section 7.6.1.
#[bitfield(u64)]
pub struct PageResponse {
    #[bits(4)]
    _kind: u8,
    /// PP: the PASID counts.
    pub pasid_present: bool,
    #[bits(7)]
    _reserved: u8,
    /// RC.
    #[bits(4)]
    pub code: u8,
    /// RID.
    pub source: u16,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    _reserved: u16,
}

/// Page-group response, high half.
#[bitfield(u64)]
pub struct PageResponseGroup {
    #[bits(2)]
    _reserved: u8,
    /// LPIG: the request was the last of its group.
    pub last: bool,
    /// PRGI.
    #[bits(9)]
    pub group: u16,
    #[bits(52)]
    _reserved: u64,
}

/// The pages that a device-TLB invalidation with `sized` covers, as a number of
/// low bits of the page that do not count: those up to the lowest clear one.
/// PCI Express Base 6.0 section 10.3.1.
pub fn device_mask(page: u64, sized: bool) -> u8 {
    if !sized {
        return 0;
    }
    let low = page.trailing_ones().saturating_add(1).min(52);
    u8::try_from(low).unwrap_or(52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_clear_bit_says_how_many_pages() {
        assert_eq!(device_mask(0b111, false), 0);
        assert_eq!(device_mask(0b110, true), 1, "8 KiB");
        assert_eq!(device_mask(0b101, true), 2, "16 KiB");
        assert_eq!(device_mask((1 << 52) - 1, true), 52, "everything");
        assert_eq!(device_mask((1 << 51) - 1, true), 52, "everything");
    }
}
