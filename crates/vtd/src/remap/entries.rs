//! The interrupt entry cache: a word for each index, which says all that a
//! remapped interrupt needs, so that one load is a hit.
//!
//! A word without an entry holds the number of the clearing that emptied it.
//! Who looks an entry up in memory remembers that word before it reads, and
//! fills it only if it still stands there: an entry read before an
//! invalidation is never cached behind it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::spec::interrupt::Interrupt;
use crate::spec::irte::SourceCheck;

/// Words of a chunk; chunks come when the first of their entries is used.
const CHUNK: usize = 512;
const CHUNKS: usize = 128;

type Chunk = Box<[AtomicU64; CHUNK]>;

/// The cache.
pub(super) struct Entries {
    chunks: [OnceLock<Chunk>; CHUNKS],
    clearings: AtomicU64,
}

/// A word that holds an entry: bit 0 set, then what the accessors read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry(u64);

impl Entry {
    /// Bits that are left for the destination. An x2APIC id beyond them is not
    /// cached.
    const DESTINATION_BITS: u32 = 28;

    /// The entry as a word; `None` if it does not fit.
    pub(super) fn new(interrupt: Interrupt, source: SourceCheck, silent: bool) -> Option<Self> {
        if interrupt.destination >> Self::DESTINATION_BITS != 0 {
            return None;
        }
        Some(Self(
            1 | u64::from(silent) << 1
                | u64::from(interrupt.logical) << 2
                | u64::from(interrupt.redirection_hint) << 3
                | u64::from(interrupt.level) << 4
                | u64::from(interrupt.delivery_mode & 7) << 5
                | u64::from(interrupt.vector) << 8
                | (source.into_bits() & 0xf_ffff) << 16
                | u64::from(interrupt.destination) << 36,
        ))
    }

    #[inline]
    pub(super) fn source(self) -> SourceCheck {
        SourceCheck::from_bits(self.0 >> 16 & 0xf_ffff)
    }

    #[inline]
    pub(super) fn is_silent(self) -> bool {
        self.0 >> 1 & 1 != 0
    }

    // Each field is cut out of as many bits as it has.
    #[allow(clippy::cast_possible_truncation)]
    #[inline]
    pub(super) fn interrupt(self) -> Interrupt {
        Interrupt {
            logical: self.0 >> 2 & 1 != 0,
            redirection_hint: self.0 >> 3 & 1 != 0,
            level: self.0 >> 4 & 1 != 0,
            delivery_mode: (self.0 >> 5 & 7) as u8,
            vector: (self.0 >> 8 & 0xff) as u8,
            destination: (self.0 >> 36) as u32,
        }
    }
}

/// A word that held no entry when this was made.
pub(super) struct Vacancy<'a> {
    word: &'a AtomicU64,
    seen: u64,
}

impl Vacancy<'_> {
    /// Puts an entry there that was read since, unless the word has changed.
    pub(super) fn fill(self, entry: Entry) {
        if self.seen & 1 != 0 {
            return;
        }
        // Whoever was faster has the same entry or a newer clearing.
        let _ =
            self.word
                .compare_exchange(self.seen, entry.0, Ordering::Release, Ordering::Relaxed);
    }
}

impl Entries {
    pub(super) fn new() -> Self {
        Self {
            chunks: [const { OnceLock::new() }; CHUNKS],
            clearings: AtomicU64::new(0),
        }
    }

    /// The cached entry.
    #[inline]
    pub(super) fn get(&self, index: u16) -> Option<Entry> {
        let index = usize::from(index);
        let chunk = self.chunks.get(index / CHUNK)?.get()?;
        let word = chunk.get(index % CHUNK)?.load(Ordering::Acquire);
        (word & 1 != 0).then_some(Entry(word))
    }

    /// Where an entry that is read from now on may be put.
    // The index is below CHUNKS * CHUNK.
    #[allow(clippy::indexing_slicing)]
    pub(super) fn vacancy(&self, index: u16) -> Vacancy<'_> {
        let index = usize::from(index);
        let chunk = self.chunks[index / CHUNK]
            .get_or_init(|| Box::new([const { AtomicU64::new(0) }; CHUNK]));
        // With the fence of `clear`: either the clearing sees the chunk, or what
        // is read from now on is what it clears for.
        fence(Ordering::SeqCst);
        let word = &chunk[index % CHUNK];
        let seen = word.load(Ordering::Acquire);
        Vacancy { word, seen }
    }

    /// Empties the words from `first` to `last`, included.
    pub(super) fn clear(&self, first: u16, last: u16) {
        let number = self.clearings.fetch_add(1, Ordering::Relaxed);
        let empty = number.wrapping_add(1) << 1;
        fence(Ordering::SeqCst);
        let (first, last) = (usize::from(first), usize::from(last));
        let chunks = self.chunks.iter().enumerate();
        for (number, chunk) in chunks.skip(first / CHUNK) {
            let begin = number.saturating_mul(CHUNK);
            if begin > last {
                break;
            }
            let Some(chunk) = chunk.get() else {
                continue;
            };
            let from = first.saturating_sub(begin);
            let words = chunk.iter().skip(from);
            let count = last.saturating_sub(begin.max(first)).saturating_add(1);
            for word in words.take(count) {
                word.store(empty, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(vector: u8) -> Entry {
        let interrupt = Interrupt {
            logical: true,
            redirection_hint: false,
            level: true,
            delivery_mode: 5,
            vector,
            destination: 0xfff_ffff,
        };
        let source = SourceCheck::new()
            .with_id(0xabcd)
            .with_kind(1)
            .with_qualifier(3);
        Entry::new(interrupt, source, true).unwrap()
    }

    #[test]
    fn an_entry_comes_back_as_it_went_in() {
        let entry = entry(0xfe);
        assert!(entry.is_silent());
        assert_eq!(entry.source().into_bits(), 0x7_abcd);
        let interrupt = entry.interrupt();
        assert!(interrupt.logical && interrupt.level && !interrupt.redirection_hint);
        assert_eq!((interrupt.delivery_mode, interrupt.vector), (5, 0xfe));
        assert_eq!(interrupt.destination, 0xfff_ffff);
        let far = Interrupt {
            destination: 0x1000_0000,
            ..interrupt
        };
        assert_eq!(Entry::new(far, entry.source(), false), None);
    }

    #[test]
    fn an_entry_read_before_a_clearing_is_not_cached_behind_it() {
        let entries = Entries::new();
        let vacancy = entries.vacancy(7);
        entries.clear(0, u16::MAX);
        vacancy.fill(entry(1));
        assert_eq!(entries.get(7), None);
        entries.vacancy(7).fill(entry(2));
        assert_eq!(entries.get(7), Some(entry(2)));
        let late = entries.vacancy(8);
        entries.clear(7, 7);
        late.fill(entry(3));
        assert_eq!((entries.get(7), entries.get(8)), (None, Some(entry(3))));
    }

    #[test]
    fn a_clearing_empties_its_range_and_nothing_else() {
        for (first, last) in [
            (0, 0),
            (511, 512),
            (5, 5),
            (512, 1535),
            (100, 2000),
            (65_535, 65_535),
            (0, 65_535),
        ] {
            let entries = Entries::new();
            let all = || (0..2100).chain(65_000..=65_535);
            for index in all() {
                entries.vacancy(index).fill(entry(1));
            }
            entries.clear(first, last);
            for index in all() {
                let kept = index < first || last < index;
                assert_eq!(
                    entries.get(index).is_some(),
                    kept,
                    "{index} of {first}-{last}"
                );
            }
        }
    }
}
