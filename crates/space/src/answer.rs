//! What the methods of an address space take, return and refuse.

use iogate_dma::{Iova, Rights, Span};

/// Contiguous output for a part of an area.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Segment {
    /// Bytes, at least 1.
    pub length: u64,
    /// Where the first byte goes; the last may not pass 2^64.
    pub output: u64,
}

/// A translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Hit {
    /// Where the first byte asked for goes.
    pub output: u64,
    /// Bytes with contiguous output and these rights, from 1 to those asked
    /// for. A run of all 2^64 bytes says `u64::MAX`.
    pub length: u64,
    /// What the areas allow, the access asked for included.
    pub rights: Rights,
}

/// Why the first byte asked for has no translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Miss {
    /// No area.
    #[error("not mapped")]
    NotMapped,
    /// The area does not allow this access, whatever else is true of it.
    #[error("against the area's rights")]
    Permission,
    /// The memory behind the area was taken away.
    #[error("revoked")]
    Revoked,
    /// The area has no output at present.
    #[error("mapped, but without output at present")]
    Unfilled,
}

/// Why a range was not reserved.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum ReserveError {
    /// An area has some of its bytes.
    #[error("the range hits the area {0}")]
    Mapped(Span),
    /// The allow list has some of its bytes.
    #[error("the range hits the allowed range {0}")]
    Allowed(Span),
}

/// Why an allow list was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum AllowError {
    /// Two of its ranges share a byte.
    #[error("the allowed ranges overlap each other")]
    SelfOverlap,
    /// One of its ranges shares a byte with this reserved range.
    #[error("an allowed range hits the reserved range {0}")]
    Reserved(Span),
}

/// Why an area was not mapped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum MapError {
    /// This area, the lowest such, shares a byte with it.
    #[error("overlaps the area {0}")]
    Overlaps(Span),
    /// It has bytes of this reserved range.
    #[error("hits the reserved range {0}")]
    Reserved(Span),
    /// The tables have reached their limit.
    #[error("the translation tables have reached their limit")]
    Full,
}

/// Why an area got no output.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum FillError {
    /// No area has this byte of the range. Nothing was changed.
    #[error("{0} is not mapped")]
    NotMapped(Iova),
    /// A segment is empty, its output passes 2^64, or the range does. Nothing
    /// was changed.
    #[error("a segment is empty or passes the top of the address space")]
    Malformed,
    /// The tables have reached their limit. The range is left without output,
    /// and bytes beside it in the same areas may be too.
    #[error("the translation tables have reached their limit")]
    Full,
}
