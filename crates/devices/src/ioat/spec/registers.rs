//! Registers in BAR 0: of the device, then of its channel. Datasheet section
//! "Intel QuickData Technology Memory Mapped Registers".

use bitfield_struct::bitfield;

/// Offsets in BAR 0, in bytes.
pub(crate) mod offset {
    /// Channel Count, 8 bits, RO.
    pub(crate) const CHANCNT: u64 = 0x00;
    /// Transfer Capacity, 8 bits, RO: a power of two of bytes.
    pub(crate) const XFERCAP: u64 = 0x01;
    /// Interrupt Control, 8 bits.
    pub(crate) const INTRCTRL: u64 = 0x03;
    /// Attention Status, 32 bits, one a channel; reading clears it.
    pub(crate) const ATTNSTATUS: u64 = 0x04;
    /// Version, 8 bits, RO.
    pub(crate) const CBVER: u64 = 0x08;
    /// Capabilities, 32 bits, RO.
    pub(crate) const DMACAPABILITY: u64 = 0x10;
    /// Channel Control, 16 bits.
    pub(crate) const CHANCTRL: u64 = 0x80;
    /// Compatibility, 16 bits, RO.
    pub(crate) const DMA_COMP: u64 = 0x82;
    /// Channel Command, 8 bits.
    pub(crate) const CHANCMD: u64 = 0x84;
    /// Descriptors submitted since the chain began, 16 bits.
    pub(crate) const DMACOUNT: u64 = 0x86;
    /// Channel Status, 64 bits, RO.
    pub(crate) const CHANSTS: u64 = 0x88;
    /// Descriptor Chain Address, 64 bits.
    pub(crate) const CHAINADDR: u64 = 0x90;
    /// Completion Address, 64 bits.
    pub(crate) const CHANCMP: u64 = 0x98;
    /// Channel Error, 32 bits: writing ones clears.
    pub(crate) const CHANERR: u64 = 0xa8;
    /// Channel Error Mask, 32 bits.
    pub(crate) const CHANERRMSK: u64 = 0xac;
}

/// CBVER (offset 0x08): 3.3.
pub(crate) const VERSION: u8 = 0x33;
/// DMA_COMP (offset 0x82): compatible with versions 2 and 3.
pub(crate) const COMPATIBLE: u16 = 0x0002;

/// Interrupt Control (INTRCTRL, offset 0x03, 8-bit).
#[bitfield(u8)]
pub(crate) struct InterruptControl {
    /// Master Interrupt Enable; reading the register clears it.
    pub(crate) master: bool,
    /// Interrupt Status, RO: a channel wants attention.
    pub(crate) status: bool,
    /// Interrupt, RO: status and master.
    pub(crate) interrupt: bool,
    /// MSI-X Vector Control: a vector a channel.
    pub(crate) msix: bool,
    #[bits(4)]
    __: u8,
}

/// Capabilities (DMACAPABILITY, offset 0x10, 32-bit, RO).
#[bitfield(u32)]
pub(crate) struct Capabilities {
    #[bits(6)]
    __: u8,
    /// Block fill.
    pub(crate) fill: bool,
    #[bits(25)]
    __: u32,
}

/// Channel Control (CHANCTRL, offset 0x80, 16-bit).
#[bitfield(u16)]
pub(crate) struct ChannelControl {
    /// Interrupt Disable: set when the channel interrupts, cleared by writing
    /// 1.
    pub(crate) interrupt_disable: bool,
    __: bool,
    /// Write the status to the completion address on an error.
    pub(crate) error_completion: bool,
    /// Any Error Abort Enable.
    pub(crate) any_error_abort: bool,
    /// Interrupt on an error.
    pub(crate) error_interrupt: bool,
    /// Snoop control of descriptors: nothing to do here.
    pub(crate) snoop: bool,
    #[bits(2)]
    __: u8,
    /// In Use: a lock among programs.
    pub(crate) in_use: bool,
    #[bits(3)]
    __: u8,
    #[bits(4)]
    pub(crate) priority: u8,
}

/// Channel Command (CHANCMD, offset 0x84, 8-bit).
#[bitfield(u8)]
pub(crate) struct ChannelCommand {
    #[bits(2)]
    __: u8,
    pub(crate) suspend: bool,
    pub(crate) abort: bool,
    pub(crate) resume: bool,
    /// Reads as 1 until the channel is reset.
    pub(crate) reset: bool,
    #[bits(2)]
    __: u8,
}

/// DMA Transfer Status, the low bits of CHANSTS (offset 0x88).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    Active = 0,
    /// Everything that was submitted is done.
    Idle = 1,
    Suspended = 2,
    /// By an error or a reset.
    Halted = 3,
    /// A chain is set, nothing was submitted.
    Armed = 4,
}

impl Status {
    /// Its bits in CHANSTS.
    pub(crate) fn bits(self) -> u64 {
        match self {
            Self::Active => 0,
            Self::Idle => 1,
            Self::Suspended => 2,
            Self::Halted => 3,
            Self::Armed => 4,
        }
    }
}

/// Channel Error (CHANERR, offset 0xa8, 32-bit, RW1C).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(crate) struct ChannelError {
    pub(crate) source_address: bool,
    pub(crate) destination_address: bool,
    /// The next descriptor cannot be fetched, or is not aligned to 64 bytes.
    pub(crate) next_address: bool,
    pub(crate) descriptor: bool,
    /// The chain address is not aligned to 64 bytes, or leads nowhere.
    pub(crate) chain_address: bool,
    pub(crate) command: bool,
    #[bits(4)]
    __: u8,
    /// A descriptor asks for an operation that there is not.
    pub(crate) control: bool,
    /// A size of 0, or above the transfer capacity.
    pub(crate) length: bool,
    pub(crate) completion_address: bool,
    #[bits(19)]
    __: u32,
}
