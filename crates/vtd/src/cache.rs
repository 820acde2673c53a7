//! The translation cache (IOTLB), and the context and PASID caches: tagged
//! atomic entries, read without a lock.

/// The caches of a unit.
#[derive(Debug, Default)]
pub(crate) struct Caches {}
