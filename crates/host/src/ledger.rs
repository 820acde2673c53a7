//! Who pays for how much pinned memory, while RLIMIT_MEMLOCK is enforced.
//! Linux `drivers/vfio/vfio_iommu_type1.c`, `vfio_lock_acct`, and
//! `drivers/iommu/iommufd/pages.c`, `update_unpinned`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// On whose account pinned memory goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Payer {
    /// A process, by its address space: type1, and iommufd if told so.
    Process(u64),
    /// A user, by real user id: iommufd.
    User(u32),
}

/// Pinned bytes by who pays for them.
#[derive(Default, Debug)]
pub(crate) struct Ledger(Mutex<BTreeMap<Payer, u64>>);

impl Ledger {
    fn paid(&self) -> MutexGuard<'_, BTreeMap<Payer, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `payer` pays for, in bytes.
    #[cfg(test)]
    pub(crate) fn sum(&self, payer: Payer) -> u64 {
        self.paid().get(&payer).copied().unwrap_or(0)
    }

    /// Has `payer` pay for `bytes` more until the result is dropped; `None` if
    /// that is more than `limit`.
    pub(crate) fn charge(self: &Arc<Self>, payer: Payer, limit: u64, bytes: u64) -> Option<Charge> {
        let mut paid = self.paid();
        let sum = paid.get(&payer).copied().unwrap_or(0);
        let total = sum.checked_add(bytes).filter(|total| *total <= limit)?;
        paid.insert(payer, total);
        Some(Charge {
            ledger: Arc::clone(self),
            payer,
            bytes,
        })
    }
}

/// Bytes that are paid for until this is dropped.
#[derive(Debug)]
pub struct Charge {
    ledger: Arc<Ledger>,
    payer: Payer,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut paid = self.ledger.paid();
        if let Some(sum) = paid.get_mut(&self.payer) {
            *sum = sum.saturating_sub(self.bytes);
            if *sum == 0 {
                paid.remove(&self.payer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payer_pays_until_the_limit_and_gets_back_what_is_dropped() {
        let ledger = Arc::new(Ledger::default());
        let (one, other) = (Payer::User(1), Payer::Process(1));
        let first = ledger.charge(one, 10, 6).unwrap();
        assert!(ledger.charge(one, 10, 5).is_none());
        assert!(ledger.charge(one, 10, u64::MAX).is_none());
        let _apart = ledger.charge(other, 10, 10).unwrap();
        let second = ledger.charge(one, 10, 4).unwrap();
        assert_eq!(ledger.sum(one), 10);
        drop(first);
        assert_eq!(ledger.sum(one), 4);
        drop(second);
        assert_eq!(ledger.sum(one), 0);
        assert_eq!(ledger.sum(other), 10);
    }
}
