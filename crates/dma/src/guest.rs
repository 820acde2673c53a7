//! The address spaces that a guest makes in the tables of its IOMMU, for those
//! who follow them.

use std::ops::ControlFlow;
use std::sync::Weak;

use crate::{Fault, Iova, Mapping, Source, Span};

/// Names one guest domain for as long as its structures say what they say now:
/// sources with equal keys have equal mappings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainKey(pub [u64; 4]);

/// How far a scan of a domain came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scan {
    /// To the end of its span.
    Whole,
    /// Its budget ended: everything below this address has been told.
    Until(Iova),
    /// The one who was told wanted no more.
    Stopped,
}

/// Whose mappings may have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Everybody's: the domains too that sources enter.
    Everything,
    /// The domain that this function's requests enter may be another one now:
    /// a context or PASID entry was invalidated. With a PASID, only for it.
    Entry(Source),
    /// What the domains with this id of the guest map.
    Domain(u32),
}

/// A guest said that its tables changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalidated {
    /// Whose.
    pub scope: Scope,
    /// Which input addresses.
    pub span: Span<Iova>,
}

/// Who wants to know what a guest invalidates.
pub trait Observer: Send + Sync {
    /// The guest invalidated all of these, and has not been told yet that it
    /// is done: when this returns, listeners have what the tables say now.
    ///
    /// No lock of the unit is held. Called by one thread at a time.
    fn invalidated(&self, batch: &[Invalidated]);
}

/// A virtual IOMMU whose guest domains can be followed.
pub trait GuestDomains: Send + Sync {
    /// The domain that requests of `source` enter now, and the guest's id for
    /// it; `None` if they enter none, so that nothing is mapped.
    fn domain(&self, source: Source) -> Option<(DomainKey, u32)>;

    /// Tells of everything that the domain `source` is in maps within `span`,
    /// in the order of addresses, coalesced. Reads tables as they are now,
    /// past every cache. Bounded by `budget` pieces of tables.
    fn scan(
        &self,
        source: Source,
        span: Span<Iova>,
        budget: usize,
        tell: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> Scan;

    /// Has `observer` told of what the guest invalidates, until it is dropped.
    fn observe(&self, observer: Weak<dyn Observer>);

    /// Tells the guest of an access that a host refused, or of a mapping that
    /// a listener could not take, as its specification has it.
    fn report(&self, fault: &Fault);
}
