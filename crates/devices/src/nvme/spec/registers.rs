//! Controller registers. NVM Express 1.4 section 3.1.

use bitfield_struct::bitfield;

/// Offsets of the registers in BAR 0, in bytes.
pub(crate) mod offset {
    pub(crate) const CAP: u64 = 0x00;
    pub(crate) const CAP_HIGH: u64 = 0x04;
    pub(crate) const VS: u64 = 0x08;
    pub(crate) const INTMS: u64 = 0x0c;
    pub(crate) const INTMC: u64 = 0x10;
    pub(crate) const CC: u64 = 0x14;
    pub(crate) const CSTS: u64 = 0x1c;
    pub(crate) const AQA: u64 = 0x24;
    pub(crate) const ASQ: u64 = 0x28;
    pub(crate) const ASQ_HIGH: u64 = 0x2c;
    pub(crate) const ACQ: u64 = 0x30;
    pub(crate) const ACQ_HIGH: u64 = 0x34;
    pub(crate) const CMBLOC: u64 = 0x38;
    pub(crate) const CMBSZ: u64 = 0x3c;
    pub(crate) const CMBMSC: u64 = 0x50;
    pub(crate) const CMBMSC_HIGH: u64 = 0x54;
    pub(crate) const CMBSTS: u64 = 0x58;
    /// First doorbell; with a stride of 4, queue y has its tail at 8 y and its
    /// head at 8 y + 4 from here.
    pub(crate) const DOORBELLS: u64 = 0x1000;
}

/// Version (offset 0x08, 32-bit, RO): 1.4.0. NVM Express 1.4 section 3.1.2.
pub(crate) const VERSION: u32 = 0x0001_0400;

/// Controller Capabilities (offset 0x00, 64-bit, RO). NVM Express 1.4 section
/// 3.1.1.
#[bitfield(u64)]
pub(crate) struct Cap {
    /// Maximum Queue Entries Supported, less one.
    pub(crate) mqes: u16,
    /// Contiguous Queues Required.
    pub(crate) cqr: bool,
    #[bits(2)]
    pub(crate) ams: u8,
    #[bits(5)]
    __: u8,
    /// Timeout, in 500 ms.
    pub(crate) to: u8,
    /// Doorbell Stride: 2^(2 + this) bytes.
    #[bits(4)]
    pub(crate) dstrd: u8,
    pub(crate) nssrs: bool,
    /// Command Sets Supported; bit 0 is NVM.
    pub(crate) css: u8,
    pub(crate) bps: bool,
    #[bits(2)]
    __: u8,
    /// Memory Page Size Minimum: 2^(12 + this) bytes.
    #[bits(4)]
    pub(crate) mpsmin: u8,
    #[bits(4)]
    pub(crate) mpsmax: u8,
    pub(crate) pmrs: bool,
    /// Controller Memory Buffer Supported.
    pub(crate) cmbs: bool,
    #[bits(6)]
    __: u8,
}

/// Controller Configuration (offset 0x14, 32-bit, RW). NVM Express 1.4
/// section 3.1.5.
#[bitfield(u32)]
pub(crate) struct Cc {
    /// Enable.
    pub(crate) en: bool,
    #[bits(3)]
    __: u8,
    /// I/O Command Set Selected; 0 is NVM.
    #[bits(3)]
    pub(crate) css: u8,
    /// Memory Page Size: 2^(12 + this) bytes.
    #[bits(4)]
    pub(crate) mps: u8,
    /// Arbitration Mechanism Selected; 0 is round robin.
    #[bits(3)]
    pub(crate) ams: u8,
    /// Shutdown Notification; 0 is none.
    #[bits(2)]
    pub(crate) shn: u8,
    /// I/O Submission Queue Entry Size, as a power of two.
    #[bits(4)]
    pub(crate) iosqes: u8,
    /// I/O Completion Queue Entry Size, as a power of two.
    #[bits(4)]
    pub(crate) iocqes: u8,
    #[bits(8)]
    __: u8,
}

/// Controller Status (offset 0x1c, 32-bit, RO). NVM Express 1.4 section 3.1.6.
#[bitfield(u32)]
pub(crate) struct Csts {
    /// Ready.
    pub(crate) rdy: bool,
    /// Controller Fatal Status.
    pub(crate) cfs: bool,
    /// Shutdown Status: 0 normal, 1 occurring, 2 complete.
    #[bits(2)]
    pub(crate) shst: u8,
    #[bits(28)]
    __: u32,
}

/// Admin Queue Attributes (offset 0x24, 32-bit, RW). NVM Express 1.4 section
/// 3.1.8.
#[bitfield(u32)]
pub(crate) struct Aqa {
    /// Admin Submission Queue Size, less one.
    #[bits(12)]
    pub(crate) asqs: u16,
    #[bits(4)]
    __: u8,
    /// Admin Completion Queue Size, less one.
    #[bits(12)]
    pub(crate) acqs: u16,
    #[bits(4)]
    __: u8,
}

/// Controller Memory Buffer Location (offset 0x38, 32-bit, RO). NVM Express 1.4
/// section 3.1.11.
#[bitfield(u32)]
pub(crate) struct Cmbloc {
    /// Base Indicator Register: the BAR.
    #[bits(3)]
    pub(crate) bir: u8,
    /// Queue Mixed Memory Support.
    pub(crate) cqmms: bool,
    pub(crate) cqpds: bool,
    /// Data Pointer Mixed Locations Support.
    pub(crate) cdpmls: bool,
    /// Data Pointer and Command Independent Locations Support.
    pub(crate) cdpcils: bool,
    pub(crate) cdmmms: bool,
    pub(crate) cqda: bool,
    #[bits(3)]
    __: u8,
    /// Offset in units of CMBSZ.
    #[bits(20)]
    pub(crate) ofst: u32,
}

/// Controller Memory Buffer Size (offset 0x3c, 32-bit, RO). NVM Express 1.4
/// section 3.1.12.
#[bitfield(u32)]
pub(crate) struct Cmbsz {
    /// Submission Queue Support.
    pub(crate) sqs: bool,
    /// Completion Queue Support.
    pub(crate) cqs: bool,
    /// PRP and SGL List Support.
    pub(crate) lists: bool,
    /// Read Data Support.
    pub(crate) rds: bool,
    /// Write Data Support.
    pub(crate) wds: bool,
    #[bits(3)]
    __: u8,
    /// Size Units: 4 KiB times 16 to the power of this.
    #[bits(4)]
    pub(crate) szu: u8,
    /// Size in units.
    #[bits(20)]
    pub(crate) sz: u32,
}

/// Controller Memory Buffer Memory Space Control (offset 0x50, 64-bit, RW).
/// NVM Express 1.4 section 3.1.16.
#[bitfield(u64)]
pub(crate) struct Cmbmsc {
    /// Capabilities Registers Enabled: CMBLOC and CMBSZ show the buffer.
    pub(crate) cre: bool,
    /// Controller Memory Space Enable: commands can name it.
    pub(crate) cmse: bool,
    #[bits(10)]
    __: u16,
    /// Controller Base Address, in pages.
    #[bits(52)]
    pub(crate) cba: u64,
}
