//! The interrupt entry cache: a word for each index, which says all that a
//! remapped interrupt needs, so that one load is a hit.
//!
//! A word without an entry holds the number of the clearing that emptied it.
//! Who looks an entry up in memory remembers that word before it reads, and
//! fills it only if it still stands there: an entry read before an
//! invalidation is never cached behind it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use iogate_dma::Message;

use crate::spec::interrupt::Interrupt;
use crate::spec::irte::SourceCheck;

/// Indices that a table can have.
const INDICES: usize = 1 << 16;

/// The cache: 512 KiB, which come with the first entry.
pub(super) struct Entries {
    words: OnceLock<Box<[AtomicU64]>>,
    clearings: AtomicU64,
}

/// A word that holds an entry. Its bits stand where the message wants them:
///
/// | bits | what | in the message |
/// |---|---|---|
/// | 0 | set: the word holds an entry | |
/// | 1 | Fault Processing Disable | |
/// | 2, 3 | logical destination, redirection hint | address 2, 3 |
/// | 11:4 | destination 27:20 | address 59:52 |
/// | 19:12 | destination 7:0 | address 19:12 |
/// | 39:20 | who may use it: SID, SQ, SVT | |
/// | 50:40 | vector, delivery mode | data 10:0 |
/// | 51 | level-triggered | data 15 |
/// | 63:52 | destination 19:8 | address 51:40 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry(u64);

impl Entry {
    /// Bits that are left for the destination. An x2APIC id beyond them is not
    /// cached.
    const DESTINATION_BITS: u32 = 28;
    /// Bits of SID, SQ and SVT.
    const SOURCE: u64 = 0xf_ffff;

    /// The entry as a word; `None` if it does not fit.
    pub(super) fn new(interrupt: Interrupt, source: SourceCheck, silent: bool) -> Option<Self> {
        if interrupt.destination >> Self::DESTINATION_BITS != 0 {
            return None;
        }
        let Message { address, data } = interrupt.message();
        let data = u64::from(data);
        Some(Self(
            1 | u64::from(silent) << 1
                | address & 0xf_f00c
                | address >> 48 & 0xff0
                | (address >> 40 & 0xfff) << 52
                | (source.into_bits() & Self::SOURCE) << 20
                | (data & 0x7ff) << 40
                | (data >> 15 & 1) << 51,
        ))
    }

    #[inline(always)]
    pub(super) fn source(self) -> SourceCheck {
        SourceCheck::from_bits(self.0 >> 20 & Self::SOURCE)
    }

    #[inline(always)]
    pub(super) fn is_silent(self) -> bool {
        self.0 >> 1 & 1 != 0
    }

    // The data is cut out of 16 bits.
    #[allow(clippy::cast_possible_truncation)]
    #[inline(always)]
    pub(super) fn message(self) -> Message {
        let address =
            0xfee0_0000 | self.0 & 0xf_f00c | (self.0 & 0xff0) << 48 | (self.0 >> 12 & 0xfff << 40);
        let data = 1 << 14 | self.0 >> 40 & 0x7ff | self.0 >> 36 & 1 << 15;
        Message {
            address,
            data: data as u32,
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
            words: OnceLock::new(),
            clearings: AtomicU64::new(0),
        }
    }

    /// The cached entry.
    #[inline]
    pub(super) fn get(&self, index: u16) -> Option<Entry> {
        let word = self.words.get()?.get(usize::from(index))?;
        let word = word.load(Ordering::Acquire);
        (word & 1 != 0).then_some(Entry(word))
    }

    /// Where an entry that is read from now on may be put.
    // There is a word for each index.
    #[allow(clippy::indexing_slicing)]
    pub(super) fn vacancy(&self, index: u16) -> Vacancy<'_> {
        let words = self
            .words
            .get_or_init(|| (0..INDICES).map(|_| AtomicU64::new(0)).collect());
        // With the fence of `clear`: either the clearing sees the words, or what
        // is read from now on is what it clears for.
        fence(Ordering::SeqCst);
        let word = &words[usize::from(index)];
        let seen = word.load(Ordering::Acquire);
        Vacancy { word, seen }
    }

    /// Empties the words from `first` to `last`, included.
    pub(super) fn clear(&self, first: u16, last: u16) {
        let number = self.clearings.fetch_add(1, Ordering::Relaxed);
        let empty = number.wrapping_add(1) << 1;
        fence(Ordering::SeqCst);
        let range = usize::from(first)..=usize::from(last);
        let words = self.words.get().and_then(|words| words.get(range));
        for word in words.into_iter().flatten() {
            word.store(empty, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interrupt(vector: u8) -> Interrupt {
        Interrupt {
            logical: true,
            redirection_hint: false,
            level: true,
            delivery_mode: 5,
            vector,
            destination: 0xfff_ffff,
        }
    }

    fn entry(vector: u8) -> Entry {
        let source = SourceCheck::new()
            .with_id(0xabcd)
            .with_kind(1)
            .with_qualifier(3);
        Entry::new(interrupt(vector), source, true).unwrap()
    }

    #[test]
    fn an_entry_comes_back_as_it_went_in() {
        let entry = entry(0xfe);
        assert!(entry.is_silent());
        assert_eq!(entry.source().into_bits(), 0x7_abcd);
        assert_eq!(entry.message(), interrupt(0xfe).message());
        let none = SourceCheck::new();
        for bit in 0..42 {
            let one = Interrupt {
                logical: bit == 28,
                redirection_hint: bit == 29,
                level: bit == 30,
                delivery_mode: if (31..34).contains(&bit) {
                    1 << (bit - 31)
                } else {
                    0
                },
                vector: if bit >= 34 { 1 << (bit - 34) } else { 0 },
                destination: if bit < 28 { 1 << bit } else { 0 },
            };
            let word = Entry::new(one, none, false).unwrap();
            assert_eq!(word.message(), one.message(), "bit {bit}");
            assert!(!word.is_silent() && word.source() == none);
        }
        let far = Interrupt {
            destination: 0x1000_0000,
            ..interrupt(1)
        };
        assert_eq!(Entry::new(far, none, false), None);
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
