//! Submission Queue Entry (64 bytes). NVM Express 1.4 section 4.2.

use bitfield_struct::bitfield;

/// Bytes of an entry.
pub(crate) const SIZE: u64 = 64;

/// Command Dword 0 (32-bit). NVM Express 1.4 figure 105.
#[bitfield(u32)]
pub(crate) struct Cdw0 {
    pub(crate) opcode: u8,
    /// Fused operation; 0 is none.
    #[bits(2)]
    pub(crate) fuse: u8,
    #[bits(4)]
    __: u8,
    /// PRP or SGL for Data Transfer; 0 is PRP.
    #[bits(2)]
    pub(crate) psdt: u8,
    /// Command Identifier.
    pub(crate) cid: u16,
}

/// Admin opcodes. NVM Express 1.4 figure 139.
pub(crate) mod admin {
    pub(crate) const DELETE_SQ: u8 = 0x00;
    pub(crate) const CREATE_SQ: u8 = 0x01;
    pub(crate) const GET_LOG_PAGE: u8 = 0x02;
    pub(crate) const DELETE_CQ: u8 = 0x04;
    pub(crate) const CREATE_CQ: u8 = 0x05;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const ABORT: u8 = 0x08;
    pub(crate) const SET_FEATURES: u8 = 0x09;
    pub(crate) const GET_FEATURES: u8 = 0x0a;
    pub(crate) const ASYNC_EVENT: u8 = 0x0c;
}

/// NVM command set opcodes. NVM Express 1.4 figure 346.
pub(crate) mod io {
    pub(crate) const FLUSH: u8 = 0x00;
    pub(crate) const WRITE: u8 = 0x01;
    pub(crate) const READ: u8 = 0x02;
    pub(crate) const WRITE_ZEROES: u8 = 0x08;
    pub(crate) const DATASET_MANAGEMENT: u8 = 0x09;
}

/// One command as it was fetched.
#[derive(Clone, Copy)]
pub(crate) struct Command {
    pub(crate) cdw0: Cdw0,
    pub(crate) nsid: u32,
    pub(crate) prp1: u64,
    pub(crate) prp2: u64,
    /// Dwords 10 to 15.
    pub(crate) cdw10: u32,
    pub(crate) cdw11: u32,
    pub(crate) cdw12: u32,
    pub(crate) cdw13: u32,
}

impl Command {
    /// The command in these 64 bytes.
    pub(crate) fn parse(bytes: &[u8; 64]) -> Self {
        let (dwords, _) = bytes.as_chunks::<4>();
        let dword = |index: usize| {
            let bytes = dwords.get(index).copied().unwrap_or_default();
            u32::from_le_bytes(bytes)
        };
        let qword = |index: usize| {
            u64::from(dword(index)) | u64::from(dword(index.saturating_add(1))) << 32
        };
        Self {
            cdw0: Cdw0::from_bits(dword(0)),
            nsid: dword(1),
            prp1: qword(6),
            prp2: qword(8),
            cdw10: dword(10),
            cdw11: dword(11),
            cdw12: dword(12),
            cdw13: dword(13),
        }
    }

    /// Starting LBA of read, write and write zeroes.
    pub(crate) fn slba(&self) -> u64 {
        u64::from(self.cdw10) | u64::from(self.cdw11) << 32
    }

    /// Number of logical blocks of read, write and write zeroes: 1-65536.
    pub(crate) fn blocks(&self) -> u64 {
        u64::from(self.cdw12 & 0xffff).saturating_add(1)
    }
}

/// The low and the high half of a command dword.
pub(crate) fn halves(dword: u32) -> (u16, u16) {
    let [a, b, c, d] = dword.to_le_bytes();
    (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
}

/// The lowest byte of a command dword.
pub(crate) fn low_byte(dword: u32) -> u8 {
    let [low, _, _, _] = dword.to_le_bytes();
    low
}
