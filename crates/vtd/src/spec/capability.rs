//! The registers that say what a unit can do. VT-d 4.1 sections 11.4.1 to
//! 11.4.3.

use bitfield_struct::bitfield;

/// Version Register (offset 0x000, 32-bit, RO). VT-d 4.1 section 11.4.1.
#[bitfield(u32)]
pub struct Version {
    /// Minor version.
    #[bits(4)]
    pub minor: u8,
    /// Major version.
    #[bits(4)]
    pub major: u8,
    #[bits(24)]
    _reserved: u32,
}

/// Capability Register (offset 0x008, 64-bit, RO). VT-d 4.1 section 11.4.2.
#[bitfield(u64)]
pub struct Capability {
    /// ND: domain ids have 4 + 2 * `domains` bits.
    #[bits(3)]
    pub domains: u8,
    /// AFL: advanced fault logging.
    pub advanced_fault_log: bool,
    /// RWBF: write buffers must be flushed.
    pub write_buffer: bool,
    /// PLMR: protected low memory.
    pub protected_low: bool,
    /// PHMR: protected high memory.
    pub protected_high: bool,
    /// CM: caching mode.
    pub caching_mode: bool,
    /// SAGAW: bit 1: 39 bits, bit 2: 48 bits, bit 3: 57 bits.
    #[bits(5)]
    pub guest_widths: u8,
    #[bits(3)]
    _reserved: u8,
    /// MGAW: the widest guest address, in bits, less one.
    #[bits(6)]
    pub max_width: u8,
    /// ZLR: zero-length reads of pages that can only be written.
    pub zero_length_read: bool,
    #[bits(1)]
    _reserved: u8,
    /// FRO: where the fault recording registers are, in 16 bytes.
    #[bits(10)]
    pub fault_offset: u16,
    /// SSLPS: bit 0: 2 MiB, bit 1: 1 GiB.
    #[bits(4)]
    pub second_stage_pages: u8,
    #[bits(1)]
    _reserved: u8,
    /// PSI: page-selective invalidation.
    pub page_selective: bool,
    /// NFR: fault recording registers, less one.
    pub fault_records: u8,
    /// MAMV: the largest address mask.
    #[bits(6)]
    pub max_address_mask: u8,
    /// DWD: writes are drained.
    pub write_draining: bool,
    /// DRD: reads are drained.
    pub read_draining: bool,
    /// FS1GP: first-stage pages of 1 GiB.
    pub first_stage_1g: bool,
    #[bits(2)]
    _reserved: u8,
    /// PI: posted interrupts.
    pub posted_interrupts: bool,
    /// FS5LP: first stage of 5 levels.
    pub first_stage_5_level: bool,
    /// ECMDS: enhanced commands.
    pub enhanced_commands: bool,
    /// ESIRTPS: setting the interrupt table's address invalidates.
    pub interrupt_pointer_invalidates: bool,
    /// ESRTPS: setting the root table's address invalidates.
    pub root_pointer_invalidates: bool,
}

/// Extended Capability Register (offset 0x010, 64-bit, RO). VT-d 4.1 section
/// 11.4.3.
#[bitfield(u64)]
pub struct ExtendedCapability {
    /// C: structures are read coherently.
    pub coherent: bool,
    /// QI: queued invalidation.
    pub queued_invalidation: bool,
    /// DT: device-TLBs.
    pub device_tlb: bool,
    /// IR: interrupt remapping.
    pub interrupt_remapping: bool,
    /// EIM: 32-bit APIC ids.
    pub extended_interrupt_mode: bool,
    #[bits(1)]
    _reserved: u8,
    /// PT: pass-through.
    pub pass_through: bool,
    /// SC: snoop control.
    pub snoop_control: bool,
    /// IRO: where IVA and IOTLB are, in 16 bytes.
    #[bits(10)]
    pub iotlb_offset: u16,
    #[bits(2)]
    _reserved: u8,
    /// MHMV: the largest index mask of interrupt-entry invalidation.
    #[bits(4)]
    pub max_handle_mask: u8,
    #[bits(1)]
    _reserved: u8,
    /// MTS: memory types.
    pub memory_types: bool,
    /// NEST: nested translation.
    pub nested: bool,
    #[bits(2)]
    _reserved: u8,
    /// PRS: page requests.
    pub page_requests: bool,
    /// ERS: execute requests.
    pub execute_requests: bool,
    /// SRS: supervisor requests.
    pub supervisor_requests: bool,
    #[bits(1)]
    _reserved: u8,
    /// NWFS: the no-write flag of translation requests.
    pub no_write_flag: bool,
    /// EAFS: the extended accessed flag.
    pub extended_accessed: bool,
    /// PSS: bits of a PASID, less one.
    #[bits(5)]
    pub pasid_size: u8,
    /// PASID: requests with PASID.
    pub pasid: bool,
    /// DIT: device-TLB invalidations are throttled.
    pub throttle: bool,
    /// PDS: page requests are drained by a wait descriptor.
    pub page_request_draining: bool,
    /// SMTS: scalable mode.
    pub scalable_mode: bool,
    /// VCS: virtual commands.
    pub virtual_commands: bool,
    /// SSADS: accessed and dirty bits of the second stage.
    pub second_stage_accessed_dirty: bool,
    /// SSTS: second stage in scalable mode.
    pub second_stage: bool,
    /// FSTS: first stage in scalable mode.
    pub first_stage: bool,
    /// SMPWCS: what PASID entries lead to is read coherently.
    pub scalable_coherent: bool,
    /// RPS: RID_PASID of the context entry.
    pub rid_pasid: bool,
    #[bits(1)]
    _reserved: u8,
    /// PMS: performance monitoring.
    pub performance_monitoring: bool,
    /// ADMS: the root table type that aborts all requests.
    pub abort_mode: bool,
    /// RPRIVS: RID_PRIV of the context entry.
    pub rid_priv: bool,
    #[bits(4)]
    _reserved: u8,
    /// SMS: stop markers.
    pub stop_marker: bool,
    #[bits(5)]
    _reserved: u8,
}
