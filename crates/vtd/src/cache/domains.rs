//! Domains by source: the context cache and the PASID cache.

use std::sync::atomic::{AtomicU64, Ordering};

use iogate_dma::{Pasid, Slot, Source};
use zerocopy::FromZeros;

use super::Clock;
use crate::translate::{Domain, Head};

/// Lines; a power of two.
const LINES: usize = 1024;

/// The stamp, the tag, and the three words of a [`Domain`].
#[derive(Debug, FromZeros)]
#[repr(C, align(64))]
struct Line(Slot<5>);

/// What sources enter, as it was when it was read.
#[derive(Debug)]
pub(crate) struct Domains {
    lines: Box<[Line; LINES]>,
    clock: Clock,
    /// What is older is void.
    mark: AtomicU64,
}

impl Default for Domains {
    fn default() -> Self {
        Self {
            lines: zeroed(),
            clock: Clock::default(),
            mark: AtomicU64::new(1),
        }
    }
}

impl Domains {
    /// What `source` enters, if it is remembered.
    #[inline]
    pub(crate) fn get(&self, source: Source) -> Option<Domain> {
        let tag = tag(source);
        let (_, [stamp, found, head, second, first]) = self.line(tag)?.0.read()?;
        let valid = found == tag && stamp >= self.mark.load(Ordering::Acquire);
        valid.then(|| Domain {
            head: Head::from_bits(head),
            second,
            first,
        })
    }

    /// All of the domain but its tables.
    #[inline]
    pub(crate) fn head(&self, source: Source) -> Option<Head> {
        let tag = tag(source);
        let (_, [stamp, found, head]) = self.line(tag)?.0.read_first()?;
        let valid = found == tag && stamp >= self.mark.load(Ordering::Acquire);
        valid.then(|| Head::from_bits(head))
    }

    /// To be taken before the structures are read.
    pub(crate) fn stamp(&self) -> u64 {
        self.clock.now()
    }

    /// Remembers `domain`, which was read after `stamp` was taken.
    pub(crate) fn put(&self, stamp: u64, source: Source, domain: &Domain) {
        let tag = tag(source);
        if let Some(line) = self.line(tag) {
            let head = domain.head.into_bits();
            let words = [stamp, tag, head, domain.second, domain.first];
            line.0.write(0, words);
        }
    }

    /// Forgets everything. Whatever part the guest named: structures are read
    /// again in less time than they are looked for.
    pub(crate) fn clear(&self) {
        self.clock.outdate(&self.mark);
    }

    #[inline]
    fn line(&self, tag: u64) -> Option<&Line> {
        let hash = tag ^ (tag >> 16).wrapping_mul(0x9e5);
        self.lines.get(index(hash, LINES))
    }
}

/// Names a source; never 0.
#[inline]
fn tag(source: Source) -> u64 {
    let pasid = source.pasid.map(Pasid::as_u32);
    let pasid = pasid.map_or(0, |pasid| u64::from(pasid) << 1 | 1);
    1 << 63 | pasid << 16 | u64::from(source.requester.0)
}

/// The place of `hash` among that many, a power of two.
#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the upper bits are not used"
)]
pub(super) const fn index(hash: u64, places: usize) -> usize {
    hash as usize & places.wrapping_sub(1)
}

/// All zero, in memory that is taken when it is used.
pub(super) fn zeroed<T: FromZeros>() -> Box<T> {
    T::new_box_zeroed().unwrap_or_else(|_| Box::new(T::new_zeroed()))
}
