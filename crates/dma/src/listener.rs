//! Who follows what an address space maps: changes, in batches that may fail
//! part-way.

use crate::{Iova, Rights, Span};

/// A piece of an address space: input, output, rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The input addresses.
    pub span: Span<Iova>,
    /// Where the first of them leads; the others follow.
    pub output: u64,
    /// What is allowed there.
    pub rights: Rights,
}

/// One change of what an address space maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// These addresses, of which none was mapped, are mapped now.
    Map(Mapping),
    /// These addresses, each of which was mapped, are mapped no more. They may
    /// be a part of a mapping or cover several.
    Unmap(Span<Iova>),
}

/// Why a batch was not applied to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{applied} changes were applied, then: errno {errno}")]
pub struct Partial {
    /// How many changes of the batch, from its first, are in force.
    pub applied: usize,
    /// Why the next one is not, as an errno of Linux.
    pub errno: i32,
}

/// Who is told of changes: an IOAS, a container of the kernel, a remote device.
pub trait Listener: Send + Sync {
    /// Applies `changes` in their order. When it returns, what was unmapped is
    /// not accessed any more.
    ///
    /// # Errors
    /// How many of them are in force when the next one could not be applied.
    /// A change is applied whole or not at all.
    fn apply(&self, changes: &[Change]) -> Result<(), Partial>;
}
