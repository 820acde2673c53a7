//! Completion Queue Entry (16 bytes) and its status. NVM Express 1.4 section
//! 4.6.

use bitfield_struct::bitfield;

/// Bytes of an entry.
pub(crate) const SIZE: u64 = 16;

/// Completion Dword 3 (32-bit). NVM Express 1.4 figures 122 and 124.
#[bitfield(u32)]
pub(crate) struct Dw3 {
    /// Command Identifier.
    pub(crate) cid: u16,
    /// Phase Tag.
    pub(crate) phase: bool,
    /// Status Code.
    pub(crate) sc: u8,
    /// Status Code Type.
    #[bits(3)]
    pub(crate) sct: u8,
    /// Command Retry Delay.
    #[bits(2)]
    pub(crate) crd: u8,
    pub(crate) more: bool,
    /// Do Not Retry.
    pub(crate) dnr: bool,
}

/// How a command ended: status code type and status code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Status {
    pub(crate) sct: u8,
    pub(crate) sc: u8,
}

impl Status {
    const fn generic(sc: u8) -> Self {
        Self { sct: 0, sc }
    }
    const fn specific(sc: u8) -> Self {
        Self { sct: 1, sc }
    }
    const fn media(sc: u8) -> Self {
        Self { sct: 2, sc }
    }

    // Generic Command Status. NVM Express 1.4 figures 126 and 127.
    pub(crate) const SUCCESS: Self = Self::generic(0x00);
    pub(crate) const INVALID_OPCODE: Self = Self::generic(0x01);
    pub(crate) const INVALID_FIELD: Self = Self::generic(0x02);
    pub(crate) const ID_CONFLICT: Self = Self::generic(0x03);
    pub(crate) const DATA_TRANSFER: Self = Self::generic(0x04);
    pub(crate) const ABORT_REQUESTED: Self = Self::generic(0x07);
    pub(crate) const INVALID_NAMESPACE: Self = Self::generic(0x0b);
    pub(crate) const SEQUENCE: Self = Self::generic(0x0c);
    pub(crate) const PRP_OFFSET: Self = Self::generic(0x13);
    pub(crate) const LBA_RANGE: Self = Self::generic(0x80);
    pub(crate) const CAPACITY: Self = Self::generic(0x81);

    // Command Specific Status. NVM Express 1.4 figure 128.
    pub(crate) const INVALID_CQ: Self = Self::specific(0x00);
    pub(crate) const INVALID_QUEUE: Self = Self::specific(0x01);
    pub(crate) const QUEUE_SIZE: Self = Self::specific(0x02);
    pub(crate) const EVENT_LIMIT: Self = Self::specific(0x05);
    pub(crate) const INTERRUPT_VECTOR: Self = Self::specific(0x08);
    pub(crate) const LOG_PAGE: Self = Self::specific(0x09);
    pub(crate) const QUEUE_DELETION: Self = Self::specific(0x0c);
    pub(crate) const NOT_SAVEABLE: Self = Self::specific(0x0d);

    // Media and Data Integrity Errors. NVM Express 1.4 figure 132.
    pub(crate) const WRITE_FAULT: Self = Self::media(0x80);
    pub(crate) const READ_ERROR: Self = Self::media(0x81);

    /// Whether the same command would fail again.
    fn is_final(self) -> bool {
        self != Self::SUCCESS && self != Self::ABORT_REQUESTED && self.sct != 2
    }

    /// Dword 3 of the completion of command `cid`.
    pub(crate) fn dw3(self, cid: u16, phase: bool) -> Dw3 {
        Dw3::new()
            .with_cid(cid)
            .with_phase(phase)
            .with_sc(self.sc)
            .with_sct(self.sct)
            .with_dnr(self.is_final())
    }
}
