//! The bits of each register that can be other than zero. VT-d 4.1 section
//! 11.4.

use crate::Capabilities;

const PAGE: u64 = !0xfff;

/// CCMD without CAIG, which the unit alone sets.
pub(crate) const CONTEXT_COMMAND: u64 = 1 << 63 | 3 << 61 | 0x3_ffff_ffff;
/// CAIG.
pub(crate) const CONTEXT_ACTUAL: u64 = 3 << 59;
/// CCMD.
pub(crate) const CONTEXT: u64 = CONTEXT_COMMAND | CONTEXT_ACTUAL;
/// IOTLB without IAIG, which the unit alone sets.
pub(crate) const IOTLB_COMMAND: u64 = 1 << 63 | 3 << 60 | 0x3_ffff << 32;
/// IAIG.
pub(crate) const IOTLB_ACTUAL: u64 = 3 << 57;
/// IOTLB.
pub(crate) const IOTLB: u64 = IOTLB_COMMAND | IOTLB_ACTUAL;
/// IVA.
pub(crate) const INVALIDATE_ADDRESS: u64 = PAGE | 0x7f;
/// IQT.
pub(crate) const QUEUE_OFFSET: u32 = 0x7_fff0;
/// IQERCD.
pub(crate) const QUEUE_ERROR: u64 = 0xffff_ffff_0000_000f;
/// PQA.
pub(crate) const PAGE_QUEUE: u64 = PAGE | 7;
/// PQH and PQT.
pub(crate) const PAGE_OFFSET: u32 = 0x7_ffe0;
/// The high half of FRCD.
pub(crate) const FAULT_HIGH: u64 = 0xffff_ffff_f000_ffff;

/// RTADDR: TTM with scalable mode only.
pub(crate) fn root(capabilities: &Capabilities) -> u64 {
    PAGE | when(capabilities.is_scalable(), 3 << 10)
}

/// IRTA: EIME with extended interrupt mode only.
pub(crate) fn interrupt_table(capabilities: &Capabilities) -> u64 {
    let extended = when(capabilities.has_extended_interrupt_mode(), 1 << 11);
    when(
        capabilities.has_interrupt_remapping(),
        PAGE | 0xf | extended,
    )
}

/// IQA: DW with scalable mode only.
pub(crate) fn queue(capabilities: &Capabilities) -> u64 {
    let wide = when(capabilities.is_scalable(), 1 << 11);
    when(capabilities.has_queued_invalidation(), PAGE | 7 | wide)
}

/// GSTS: what can be on.
pub(crate) fn enabled(capabilities: &Capabilities) -> u32 {
    let queue = capabilities.has_queued_invalidation();
    let remapping = capabilities.has_interrupt_remapping();
    1 << 31 | u32::from(queue) << 26 | u32::from(remapping) << 25 | u32::from(remapping) << 23
}

/// GSTS.
pub(crate) fn status(capabilities: &Capabilities) -> u32 {
    let remapping = capabilities.has_interrupt_remapping();
    enabled(capabilities) | 1 << 30 | u32::from(remapping) << 24
}

fn when(offered: bool, mask: u64) -> u64 {
    if offered { mask } else { 0 }
}
