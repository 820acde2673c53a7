//! Translations that a device keeps for itself. PCI Express Base 6.0 chapter 10
//! (Address Translation Services).

use crate::{Pasid, Span};

/// Which of a device's translations are meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TlbScope {
    /// Those of requests without PASID.
    WithoutPasid,
    /// Those of this PASID.
    Pasid(Pasid),
    /// Those of every PASID.
    EveryPasid,
}

/// How a device failed to answer an invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum DeviceTlbError {
    /// It did not answer in time.
    #[error("the device did not answer in time")]
    TimedOut,
    /// It answered what it was not asked.
    #[error("the device answered what it was not asked")]
    Unexpected,
}

/// A device that keeps translations (an Address Translation Cache).
pub trait DeviceTlb: Send + Sync {
    /// Drops translations of `span`. When it returns the device finds none of
    /// them any more; who found one before uses it under a guard, whose end the
    /// IOMMU waits for.
    ///
    /// No lock of the IOMMU is held. It must not call the IOMMU.
    ///
    /// # Errors
    /// If the device did not, or not properly, say that it did.
    fn invalidate(&self, scope: TlbScope, span: Span) -> Result<(), DeviceTlbError>;
}
