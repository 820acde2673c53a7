//! Which sources stand behind a unit, as messages ask for it: by one load.

use std::collections::BTreeSet;

use iogate_dma::RequesterId;

/// A set of requester ids.
#[derive(Debug)]
pub(super) enum Behind {
    /// Every one.
    All,
    /// A bit for each.
    Some(Box<[u64; 1024]>),
}

impl Behind {
    pub(super) fn new(scope: Option<&BTreeSet<RequesterId>>) -> Self {
        let Some(scope) = scope else {
            return Self::All;
        };
        let mut bits = Box::new([0; 1024]);
        for source in scope {
            if let Some(word) = bits.get_mut(usize::from(source.0 >> 6)) {
                *word |= 1_u64 << (source.0 & 63);
            }
        }
        Self::Some(bits)
    }

    #[inline]
    pub(super) fn contains(&self, source: RequesterId) -> bool {
        match self {
            Self::All => true,
            Self::Some(bits) => bits
                .get(usize::from(source.0 >> 6))
                .is_some_and(|word| word >> (source.0 & 63) & 1 != 0),
        }
    }
}
