//! Numbers that are given out, the lowest free first, from 1.

use std::collections::BTreeSet;

/// Which numbers are free.
#[derive(Debug)]
pub(super) struct Numbers {
    /// Free numbers below `next`.
    free: BTreeSet<u32>,
    next: u32,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            free: BTreeSet::new(),
            next: 1,
        }
    }
}

impl Numbers {
    /// The lowest free number, which is taken now.
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop_first().unwrap_or_else(|| {
            let number = self.next;
            self.next = number.saturating_add(1);
            number
        })
    }

    /// Gives back a number that was taken.
    pub(super) fn give(&mut self, number: u32) {
        self.free.insert(number);
    }
}
