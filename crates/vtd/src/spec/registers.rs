//! The registers: offsets, fields, values at reset. VT-d 4.1 section 11.4.

use bitfield_struct::bitfield;

pub use super::capability::{Capability, ExtendedCapability, Version};

/// Offsets of the registers in their page, in bytes. VT-d 4.1 table 47.
pub mod offset {
    /// Version.
    pub const VER: u16 = 0x000;
    /// Capabilities, 64 bits.
    pub const CAP: u16 = 0x008;
    /// Extended capabilities, 64 bits.
    pub const ECAP: u16 = 0x010;
    /// Global command.
    pub const GCMD: u16 = 0x018;
    /// Global status.
    pub const GSTS: u16 = 0x01c;
    /// Root table address, 64 bits.
    pub const RTADDR: u16 = 0x020;
    /// Context command, 64 bits.
    pub const CCMD: u16 = 0x028;
    /// Fault status.
    pub const FSTS: u16 = 0x034;
    /// Fault event: control, data, address, upper address.
    pub const FECTL: u16 = 0x038;
    /// Invalidation queue head, 64 bits.
    pub const IQH: u16 = 0x080;
    /// Invalidation queue tail, 64 bits.
    pub const IQT: u16 = 0x088;
    /// Invalidation queue address, 64 bits.
    pub const IQA: u16 = 0x090;
    /// Invalidation completion status.
    pub const ICS: u16 = 0x09c;
    /// Invalidation event: control, data, address, upper address.
    pub const IECTL: u16 = 0x0a0;
    /// Invalidation queue error record, 64 bits.
    pub const IQERCD: u16 = 0x0b0;
    /// Interrupt remapping table address, 64 bits.
    pub const IRTA: u16 = 0x0b8;
    /// Page request queue head, 64 bits.
    pub const PQH: u16 = 0x0c0;
    /// Page request queue tail, 64 bits.
    pub const PQT: u16 = 0x0c8;
    /// Page request queue address, 64 bits.
    pub const PQA: u16 = 0x0d0;
    /// Page request status.
    pub const PRS: u16 = 0x0dc;
    /// Page request event: control, data, address, upper address.
    pub const PECTL: u16 = 0x0e0;
    /// Invalidate address, 64 bits, where ECAP.IRO says.
    pub const IVA: u16 = 0x0f0;
    /// IOTLB invalidate, 64 bits, after it.
    pub const IOTLB: u16 = 0x0f8;
    /// The first fault recording register, 128 bits, where CAP.FRO says.
    pub const FRCD: u16 = 0x220;
}

/// Global Command Register (offset 0x018, 32-bit, WO) and Global Status
/// Register (offset 0x01c, 32-bit, RO), which have one layout. VT-d 4.1
/// sections 11.4.4.1 and 11.4.4.2.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Global {
    #[bits(23)]
    _reserved: u32,
    /// CFI: interrupts of compatibility format pass.
    pub compatibility_interrupts: bool,
    /// SIRTP: set the interrupt table's address.
    pub interrupt_pointer: bool,
    /// IRE: interrupt remapping.
    pub interrupt_remapping: bool,
    /// QIE: queued invalidation.
    pub queued_invalidation: bool,
    /// WBF: flush the write buffer.
    pub write_buffer_flush: bool,
    /// EAFL: advanced fault logging.
    pub advanced_fault_log: bool,
    /// SFL: set the fault log's address.
    pub fault_log: bool,
    /// SRTP: set the root table's address.
    pub root_pointer: bool,
    /// TE: DMA remapping.
    pub translation: bool,
}

/// Translation Table Mode: what the root table's address leads to. VT-d 4.1
/// section 11.4.5.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableMode {
    /// Legacy mode.
    Legacy,
    /// Scalable mode.
    Scalable,
    /// Not defined.
    Reserved,
    /// All requests are aborted.
    Abort,
}

impl TableMode {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Legacy,
            1 => Self::Scalable,
            2 => Self::Reserved,
            _ => Self::Abort,
        }
    }

    const fn into_bits(self) -> u8 {
        match self {
            Self::Legacy => 0,
            Self::Scalable => 1,
            Self::Reserved => 2,
            Self::Abort => 3,
        }
    }
}

/// Root Table Address Register (offset 0x020, 64-bit, RW). VT-d 4.1 section
/// 11.4.5.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootTableAddress {
    #[bits(10)]
    _reserved: u16,
    /// TTM.
    #[bits(2)]
    pub mode: TableMode,
    /// RTA, in pages of 4 KiB.
    #[bits(52)]
    pub page: u64,
}

impl RootTableAddress {
    /// The root table's address.
    pub const fn address(self) -> u64 {
        self.page() << 12
    }
}

/// How much an invalidation by register is to cover, or covered. VT-d 4.1
/// sections 11.4.6 and 11.4.8.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granularity {
    /// None: the request was not understood.
    Reserved,
    /// Everything.
    Global,
    /// A domain.
    Domain,
    /// A device (context), pages (IOTLB).
    Selective,
}

impl Granularity {
    /// From the low two bits of `bits`.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            1 => Self::Global,
            2 => Self::Domain,
            3 => Self::Selective,
            _ => Self::Reserved,
        }
    }

    /// As two bits.
    pub const fn into_bits(self) -> u8 {
        match self {
            Self::Reserved => 0,
            Self::Global => 1,
            Self::Domain => 2,
            Self::Selective => 3,
        }
    }
}

/// Context Command Register (offset 0x028, 64-bit, RW). VT-d 4.1 section
/// 11.4.6.1.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextCommand {
    /// DID.
    pub domain: u16,
    /// SID: requester id.
    pub source: u16,
    /// FM: how many low bits of the function number do not count.
    #[bits(2)]
    pub function_mask: u8,
    #[bits(25)]
    _reserved: u32,
    /// CAIG (RO): what was covered.
    #[bits(2)]
    pub actual: Granularity,
    /// CIRG: what is to be covered.
    #[bits(2)]
    pub requested: Granularity,
    /// ICC: set by the guest, cleared when done.
    pub invalidate: bool,
}

/// Fault Status Register (offset 0x034, 32-bit, RW1C). VT-d 4.1 section
/// 11.4.7.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultStatus {
    /// PFO (RW1C): a fault found its recording register in use.
    pub overflow: bool,
    /// PPF (RO): a recording register holds a fault.
    pub pending: bool,
    #[bits(2)]
    _advanced: u8,
    /// IQE (RW1C): the queue holds what cannot be done.
    pub queue_error: bool,
    /// ICE (RW1C): a device-TLB answered what it was not asked.
    pub completion_error: bool,
    /// ITE (RW1C): a device-TLB did not answer.
    pub time_out: bool,
    #[bits(1)]
    _reserved: u8,
    /// FRI (RO): the recording register that made PPF set.
    pub record: u8,
    #[bits(16)]
    _reserved: u16,
}

/// Fault, Invalidation and Page Request Event Control Registers (offsets 0x038,
/// 0x0a0, 0x0e0, 32-bit, RW). VT-d 4.1 sections 11.4.7.2, 11.4.9.6, 11.4.11.5.
#[bitfield(u32)]
pub struct EventControl {
    #[bits(30)]
    _reserved: u32,
    /// IP (RO): a message is held back.
    pub pending: bool,
    /// IM: messages are held back.
    pub masked: bool,
}

/// Invalidation Queue Address Register (offset 0x090, 64-bit, RW). VT-d 4.1
/// section 11.4.9.3.
#[bitfield(u64)]
pub struct QueueAddress {
    /// QS: the queue has 2^`size` pages of 4 KiB.
    #[bits(3)]
    pub size: u8,
    #[bits(8)]
    _reserved: u8,
    /// DW: descriptors of 256 bits.
    pub wide: bool,
    /// IQA, in pages of 4 KiB.
    #[bits(52)]
    pub page: u64,
}

/// What made Invalidation Queue Error set: IQERCD.IQEI. VT-d 4.1 section
/// 11.4.9.10.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum QueueErrorInfo {
    /// The tail lies outside of the queue.
    Tail = 1,
    /// A descriptor cannot be read.
    Fetch = 2,
    /// The type of a descriptor is not one that the unit has.
    Type = 3,
    /// A reserved field of a descriptor is set, or a field has a reserved
    /// value.
    Reserved = 4,
    /// The width of descriptors does not go with the root table's type.
    Width = 5,
    /// The tail is no multiple of a descriptor of 256 bits.
    TailAlignment = 6,
    /// The root table's type is not one that the unit has.
    TableMode = 7,
}

/// Invalidation Queue Error Record Register (offset 0x0b0, 64-bit, RO). VT-d
/// 4.1 section 11.4.9.10.
#[bitfield(u64)]
pub struct QueueErrorRecord {
    /// IQEI, while IQE is set.
    #[bits(4)]
    pub info: u8,
    #[bits(28)]
    _reserved: u32,
    /// ITESID: whose device-TLB did not answer, while ITE is set.
    pub time_out_source: u16,
    /// ICESID: whose answered wrongly, while ICE is set.
    pub completion_source: u16,
}

/// Interrupt Remapping Table Address Register (offset 0x0b8, 64-bit, RW). VT-d
/// 4.1 section 11.4.10.
#[bitfield(u64)]
pub struct InterruptTableAddress {
    /// S: the table has 2^(`size` + 1) entries.
    #[bits(4)]
    pub size: u8,
    #[bits(7)]
    _reserved: u8,
    /// EIME: APIC ids have 32 bits.
    pub extended: bool,
    /// IRTA, in pages of 4 KiB.
    #[bits(52)]
    pub page: u64,
}

/// Page Request Queue Address Register (offset 0x0d0, 64-bit, RW). VT-d 4.1
/// section 11.4.11.3.
#[bitfield(u64)]
pub struct PageQueueAddress {
    /// PQS: the queue has 2^`size` pages of 4 KiB.
    #[bits(3)]
    pub size: u8,
    #[bits(9)]
    _reserved: u16,
    /// PQA, in pages of 4 KiB.
    #[bits(52)]
    pub page: u64,
}

/// Page Request Status Register (offset 0x0dc, 32-bit, RW1C). VT-d 4.1 section
/// 11.4.11.4.
#[bitfield(u32)]
pub struct PageRequestStatus {
    /// PPR: the queue was given a request.
    pub pending: bool,
    /// PRO: a request found the queue full.
    pub overflow: bool,
    #[bits(30)]
    _reserved: u32,
}

/// Invalidate Address Register (offset ECAP.IRO, 64-bit, WO). VT-d 4.1 section
/// 11.4.8.2.
#[bitfield(u64)]
pub struct InvalidateAddress {
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

/// IOTLB Invalidate Register (offset ECAP.IRO + 8, 64-bit, RW). VT-d 4.1
/// section 11.4.8.1.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IotlbInvalidate {
    #[bits(32)]
    _reserved: u32,
    /// DID.
    pub domain: u16,
    /// DW: drain writes.
    pub drain_writes: bool,
    /// DR: drain reads.
    pub drain_reads: bool,
    #[bits(7)]
    _reserved: u8,
    /// IAIG (RO): what was covered.
    #[bits(2)]
    pub actual: Granularity,
    #[bits(1)]
    _reserved: u8,
    /// IIRG: what is to be covered.
    #[bits(2)]
    pub requested: Granularity,
    #[bits(1)]
    _reserved: u8,
    /// IVT: set by the guest, cleared when done.
    pub invalidate: bool,
}

/// Fault Recording Register, low half (offset CAP.FRO, 64-bit, RO). VT-d 4.1
/// section 11.4.7.6.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordLow {
    #[bits(12)]
    _reserved: u16,
    /// FI: input address in pages of 4 KiB; for an interrupt its index, in the
    /// highest 16 bits.
    #[bits(52)]
    pub info: u64,
}

/// Fault Recording Register, high half (offset CAP.FRO + 8, 64-bit, RW1C).
/// VT-d 4.1 section 11.4.7.6.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordHigh {
    /// SID: requester id.
    pub source: u16,
    #[bits(12)]
    _reserved: u16,
    /// T2: with T1 clear a page request, with it set an atomic operation.
    pub type_2: bool,
    /// PRIV: in privileged mode.
    pub privileged: bool,
    /// EXE: to execute.
    pub execute: bool,
    /// PP: the request had a PASID.
    pub pasid_present: bool,
    /// FR.
    pub reason: u8,
    /// PV: its PASID.
    #[bits(20)]
    pub pasid: u32,
    /// AT: 0 untranslated, 1 translation request, 2 translated.
    #[bits(2)]
    pub address_type: u8,
    /// T1: clear: a write, set: a read.
    pub type_1: bool,
    /// F (RW1C): the record is in use.
    pub fault: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_linux_and_the_specification_have_them() {
        assert_eq!(Global::new().with_translation(true).into_bits(), 1 << 31);
        assert_eq!(Global::new().with_root_pointer(true).into_bits(), 1 << 30);
        assert_eq!(
            Global::new().with_queued_invalidation(true).into_bits(),
            1 << 26
        );
        assert_eq!(
            ContextCommand::new()
                .with_invalidate(true)
                .with_requested(Granularity::Selective)
                .with_actual(Granularity::Domain)
                .with_function_mask(3)
                .into_bits(),
            1 << 63 | 3 << 61 | 2 << 59 | 3 << 32
        );
        assert_eq!(
            IotlbInvalidate::new()
                .with_invalidate(true)
                .with_requested(Granularity::Global)
                .with_actual(Granularity::Selective)
                .with_drain_reads(true)
                .with_domain(7)
                .into_bits(),
            1 << 63 | 1 << 60 | 3 << 57 | 1 << 49 | 7 << 32
        );
        assert_eq!(QueueAddress::new().with_wide(true).into_bits(), 1 << 11);
        assert_eq!(
            RootTableAddress::new()
                .with_mode(TableMode::Scalable)
                .into_bits(),
            1 << 10
        );
        assert_eq!(
            FaultRecordHigh::new()
                .with_fault(true)
                .with_type_1(true)
                .with_pasid(1)
                .with_reason(5)
                .with_pasid_present(true)
                .with_type_2(true)
                .into_bits(),
            1 << 63 | 1 << 62 | 1 << 40 | 5 << 32 | 1 << 31 | 1 << 28
        );
        assert_eq!(FaultStatus::new().with_record(3).into_bits(), 3 << 8);
        assert_eq!(
            InterruptTableAddress::new()
                .with_extended(true)
                .with_size(15)
                .into_bits(),
            1 << 11 | 15
        );
    }
}
