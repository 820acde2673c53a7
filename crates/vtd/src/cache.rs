//! What a unit remembers of tables: domains by source (context and PASID-table
//! entries in one), and translations. Read without a lock, of bounded size.
//!
//! Both are honest, each for itself: what was read stays until the guest
//! invalidates that cache, or until it makes room. VT-d 4.1 section 6.2.

mod domains;
mod translations;

pub(crate) use domains::Domains;
pub(crate) use translations::Translations;

use std::sync::atomic::{AtomicU64, Ordering};

/// The caches of a unit.
#[derive(Debug, Default)]
pub(crate) struct Caches {
    /// The context cache and the PASID cache.
    pub(crate) domains: Domains,
    /// The IOTLB.
    pub(crate) translations: Translations,
}

/// Counts invalidations, so that what was begun before one is told from what
/// was begun after it. 48 bits of it are kept in entries: enough for years of
/// nothing but invalidations.
#[derive(Debug)]
struct Clock(AtomicU64);

impl Default for Clock {
    fn default() -> Self {
        Self(AtomicU64::new(1))
    }
}

impl Clock {
    /// To be taken before structures are read.
    #[inline]
    fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Has `mark` outdate what was begun before.
    fn outdate(&self, mark: &AtomicU64) {
        let now = self.0.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        mark.store(now, Ordering::Release);
    }
}
