//! Feature identifiers and what Get Features may be asked for. NVM Express
//! 1.4 section 5.21.1.

pub(crate) const ARBITRATION: u8 = 0x01;
pub(crate) const POWER: u8 = 0x02;
pub(crate) const TEMPERATURE: u8 = 0x04;
pub(crate) const ERROR_RECOVERY: u8 = 0x05;
pub(crate) const WRITE_CACHE: u8 = 0x06;
pub(crate) const QUEUES: u8 = 0x07;
pub(crate) const COALESCING: u8 = 0x08;
pub(crate) const VECTOR: u8 = 0x09;
pub(crate) const ATOMICITY: u8 = 0x0a;
pub(crate) const ASYNC_EVENTS: u8 = 0x0b;

/// Bit 31 of Dword 10 of Set Features: keep the value over a power cycle.
pub(crate) const SAVE: u32 = 1 << 31;

/// Capabilities of a feature, as the Select field asks for: changeable.
pub(crate) const CHANGEABLE: u32 = 1 << 2;
/// The feature holds for one namespace.
pub(crate) const PER_NAMESPACE: u32 = 1 << 1;

/// Which value of a feature is asked for. NVM Express 1.4 figure 196.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Select {
    Current,
    Default,
    Supported,
}

impl Select {
    /// The Select field of Dword 10; `None` if it is reserved. Nothing is
    /// saved here, so that the saved value is the default.
    pub(crate) fn parse(cdw10: u32) -> Option<Self> {
        match cdw10 >> 8 & 7 {
            0 => Some(Self::Current),
            1 | 2 => Some(Self::Default),
            3 => Some(Self::Supported),
            _ => None,
        }
    }
}
