//! Why an interrupt is blocked.

use std::fmt;

use crate::spec::fault::Reason;

/// Why an interrupt is blocked. VT-d 4.1 section 7.1.3, the conditions of
/// interrupt remapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// The message sets bits that its format reserves (20h).
    RequestReserved,
    /// The table has no entry of this index (21h).
    Index,
    /// The entry is not present (22h).
    NotPresent,
    /// The entry cannot be read: no memory is there (23h).
    Table,
    /// The entry sets bits that its format reserves (24h).
    EntryReserved,
    /// The message has compatibility format, and such are blocked (25h).
    Compatibility,
    /// The entry is not for this source (26h).
    Source,
    /// The posted interrupt descriptor cannot be accessed (27h).
    Descriptor,
    /// The posted interrupt descriptor sets reserved bits (28h).
    DescriptorReserved,
    /// It is a write to memory, and no interrupt.
    NoInterrupt,
    /// The source does not stand behind this unit.
    NotBehind,
}

impl Cause {
    /// What a fault recording register says; `None` for what no unit sees.
    pub const fn reason(self) -> Option<Reason> {
        Some(match self {
            Self::RequestReserved => Reason::REMAP_REQUEST_RESERVED,
            Self::Index => Reason::REMAP_INDEX,
            Self::NotPresent => Reason::REMAP_ABSENT,
            Self::Table => Reason::REMAP_ACCESS,
            Self::EntryReserved => Reason::REMAP_RESERVED,
            Self::Compatibility => Reason::REMAP_COMPATIBILITY,
            Self::Source => Reason::REMAP_SOURCE,
            Self::Descriptor => Reason::POSTED_ACCESS,
            Self::DescriptorReserved => Reason::POSTED_RESERVED,
            Self::NoInterrupt | Self::NotBehind => return None,
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::RequestReserved => "reserved bits of the message are set",
            Self::Index => "the table has no such entry",
            Self::NotPresent => "the entry is not present",
            Self::Table => "the table is not in memory",
            Self::EntryReserved => "reserved bits of the entry are set",
            Self::Compatibility => "messages in compatibility format are blocked",
            Self::Source => "the entry is for another source",
            Self::Descriptor => "the posted interrupt descriptor is not in memory",
            Self::DescriptorReserved => "reserved bits of the posted interrupt descriptor are set",
            Self::NoInterrupt => "not an interrupt",
            Self::NotBehind => "the source is not behind this unit",
        })
    }
}

/// A message that is blocked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("interrupt blocked, entry {index:#x}: {cause}")]
pub struct Blocked {
    /// Why.
    pub cause: Cause,
    /// The entry that the message asks for, as much of it as a fault recording
    /// register can hold; 0 if it asks for none.
    pub index: u16,
    /// Whether the entry has it not recorded: Fault Processing Disable.
    pub silent: bool,
}

impl Blocked {
    /// Before an entry was asked for.
    pub(super) const fn of(cause: Cause) -> Self {
        Self::by(0, cause, false)
    }

    /// Before the entry was seen.
    pub(super) const fn at(index: u32, cause: Cause) -> Self {
        let [low, high, ..] = index.to_le_bytes();
        Self::by(u16::from_le_bytes([low, high]), cause, false)
    }

    /// By the entry.
    pub(super) const fn by(index: u16, cause: Cause, silent: bool) -> Self {
        Self {
            cause,
            index,
            silent,
        }
    }
}
