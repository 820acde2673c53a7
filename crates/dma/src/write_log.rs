//! Which pages a function wrote, for whoever copies memory while it works.
//!
//! Marked by a worker after each write and read by anybody, without a lock:
//! an open table of words, each for 64 pages. A log that runs out of words
//! says that everything was written, which is true enough to copy by.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Iova, Span};

/// Words of a log: those of 32 GiB where writes are dense. 2 MiB of memory.
const WORDS: usize = 1 << 17;
/// Words that are looked at before a log counts as full.
const PROBES: usize = 256;

/// The pages that were written since they were last taken, within some ranges.
pub struct WriteLog {
    /// Ascending, no two overlap.
    ranges: Vec<Span>,
    /// The number of a word plus one; 0 is nobody's.
    keys: Box<[AtomicU64]>,
    /// The pages of each word.
    words: Box<[AtomicU64]>,
    full: AtomicBool,
}

impl WriteLog {
    /// Bytes of a page, whatever whoever reads the log counts in.
    pub const PAGE: u64 = 4096;

    /// A log of what is written in `ranges`, of which no two overlap: so far
    /// nothing.
    pub fn new(mut ranges: Vec<Span>) -> Self {
        ranges.sort_unstable_by_key(|range| range.first());
        let words = || (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        Self {
            ranges,
            keys: words(),
            words: words(),
            full: AtomicBool::new(false),
        }
    }

    /// The pages of `span` were written. To be called after the write: who
    /// takes the mark in between and copies the page would miss it.
    pub fn mark(&self, span: Span) {
        if self.full.load(Ordering::Relaxed) {
            return;
        }
        for range in self.ranges_in(span) {
            let (first, last) = (page(range.first()), page(range.last()));
            for number in first >> 6..=last >> 6 {
                match self.slot(number, Absent::Added) {
                    Some(word) => {
                        word.fetch_or(bits_of(number, first, last), Ordering::AcqRel);
                    }
                    None => self.full.store(true, Ordering::Release),
                }
            }
        }
    }

    /// Says which pages of `span` were written, as runs of whole pages in no
    /// order, and forgets them.
    pub fn take(&self, span: Span, mut written: impl FnMut(Span)) {
        if self.full.load(Ordering::Acquire) {
            self.ranges_in(span).for_each(written);
            return;
        }
        let (first, last) = (page(span.first()), page(span.last()));
        let numbers = first >> 6..=last >> 6;
        let count = numbers.end().wrapping_sub(*numbers.start());
        let mut take = |number: u64, word: &AtomicU64| {
            let bits = bits_of(number, first, last);
            let taken = word.fetch_and(!bits, Ordering::AcqRel) & bits;
            runs(number, taken, &mut written);
        };
        if usize::try_from(count).is_ok_and(|count| count < WORDS) {
            for number in numbers {
                if let Some(word) = self.slot(number, Absent::Left) {
                    take(number, word);
                }
            }
            return;
        }
        for (key, word) in self.keys.iter().zip(&self.words) {
            let number = key.load(Ordering::Acquire).checked_sub(1);
            if let Some(number) = number.filter(|number| numbers.contains(number)) {
                take(number, word);
            }
        }
    }

    /// The parts of `span` that are logged.
    fn ranges_in(&self, span: Span) -> impl Iterator<Item = Span> {
        let first = self
            .ranges
            .partition_point(|range| range.last() < span.first());
        let ranges = self.ranges.iter().skip(first);
        let ranges = ranges.take_while(move |range| range.first() <= span.last());
        ranges.filter_map(move |range| {
            let first = range.first().max(span.first());
            Span::new(first, range.last().min(span.last()))
        })
    }

    /// The word with this number; `None` if there is none, or no room for it.
    fn slot(&self, number: u64, absent: Absent) -> Option<&AtomicU64> {
        let key = number.wrapping_add(1);
        let mask = WORDS.wrapping_sub(1);
        // Sixteen neighbours stand side by side, their groups anywhere.
        let group = (number >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let start = usize::try_from(group << 4 | number & 15).unwrap_or(0);
        for at in (start..).take(PROBES) {
            let at = at & mask;
            let (cell, word) = (self.keys.get(at)?, self.words.get(at)?);
            let mut found = cell.load(Ordering::Acquire);
            if found == 0 {
                match absent {
                    Absent::Left => return None,
                    Absent::Added => {
                        let order = Ordering::AcqRel;
                        found = match cell.compare_exchange(0, key, order, Ordering::Acquire) {
                            Ok(_) => key,
                            Err(other) => other,
                        };
                    }
                }
            }
            if found == key {
                return Some(word);
            }
        }
        None
    }
}

/// What becomes of a word that is not there.
#[derive(Clone, Copy)]
enum Absent {
    Added,
    Left,
}

fn page(iova: Iova) -> u64 {
    iova.0 / WriteLog::PAGE
}

/// The bits that pages `first..=last` have in the word with this number.
fn bits_of(number: u64, first: u64, last: u64) -> u64 {
    let base = number << 6;
    let from = first.saturating_sub(base).min(63);
    let to = last.saturating_sub(base).min(63);
    u64::MAX << from & u64::MAX >> 63_u64.wrapping_sub(to)
}

/// The runs of ones in a word, as pages.
fn runs(number: u64, bits: u64, written: &mut impl FnMut(Span)) {
    let mut rest = bits;
    while rest != 0 {
        let from = rest.trailing_zeros();
        let length = (rest >> from).trailing_ones();
        let to = from.wrapping_add(length).wrapping_sub(1);
        let page = |bit: u32| (number << 6 | u64::from(bit)).wrapping_mul(WriteLog::PAGE);
        let last = page(to).wrapping_add(WriteLog::PAGE.wrapping_sub(1));
        if let Some(span) = Span::new(Iova(page(from)), Iova(last)) {
            written(span);
        }
        rest &= u64::MAX.checked_shl(from.wrapping_add(length)).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;

    fn span(first: u64, last: u64) -> Span {
        Span::new(Iova(first), Iova(last)).unwrap()
    }

    fn taken(log: &WriteLog, within: Span) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        log.take(within, |run| {
            assert_eq!(run.first().0 % 4096, 0);
            assert_eq!(run.last().0 % 4096, 4095);
            pages.extend(page(run.first())..=page(run.last()));
        });
        pages
    }

    #[test]
    fn a_write_marks_every_page_that_it_touches_until_it_is_taken() {
        let log = WriteLog::new(vec![Span::whole()]);
        log.mark(span(0x1fff, 0x2000));
        log.mark(span(63 << 12, 65 << 12));
        log.mark(span(u64::MAX, u64::MAX));
        assert_eq!(taken(&log, span(0x2000, 0x2fff)), [2].into());
        assert_eq!(
            taken(&log, Span::whole()),
            [1, 63, 64, 65, u64::MAX >> 12].into()
        );
        assert!(taken(&log, Span::whole()).is_empty());
    }

    #[test]
    fn what_lies_outside_of_the_ranges_is_not_logged() {
        let log = WriteLog::new(vec![span(0x8000, 0x8fff), span(0x2000, 0x3fff)]);
        log.mark(span(0, 0xffff));
        assert_eq!(taken(&log, Span::whole()), [2, 3, 8].into());
        log.mark(span(0x4000, 0x7fff));
        assert!(taken(&log, Span::whole()).is_empty());
    }

    #[test]
    fn a_log_without_room_says_that_all_of_its_ranges_was_written() {
        let log = WriteLog::new(vec![span(0, (1 << 40) - 1)]);
        for number in 0..200_000_u64 {
            // Far apart: each takes a word.
            log.mark(span(number << 19, number << 19));
        }
        let mut all = Vec::new();
        log.take(span(0x5000, 0x1_ffff_ffff), |run| all.push(run));
        assert_eq!(all, [span(0x5000, 0x1_ffff_ffff)]);
    }

    #[test]
    fn random_marks_and_takes_agree_with_a_set_of_pages() {
        let mut seed = 7_u64;
        let mut random = move |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let log = WriteLog::new(vec![
            span(0, 0x3fff_ffff),
            span(1 << 40, (1 << 40) + 0xff_ffff),
        ]);
        let mut model = BTreeSet::new();
        for _ in 0..20_000 {
            let base = random(2) << 40;
            let first = base + random(0x100_0000);
            let last = first + random(0x8_0000);
            if random(8) == 0 {
                let within = span(first, last);
                let pages = page(within.first())..=page(within.last());
                let expected: BTreeSet<u64> = model.range(pages).copied().collect();
                model.retain(|page| !expected.contains(page));
                assert_eq!(taken(&log, within), expected);
            } else {
                log.mark(span(first, last));
                let end = if base == 0 {
                    u64::MAX
                } else {
                    base + 0xff_ffff
                };
                model.extend(page(Iova(first))..=page(Iova(last.min(end))));
            }
        }
        assert_eq!(taken(&log, Span::whole()), model);
    }

    #[test]
    fn no_mark_is_lost_between_a_worker_and_who_takes() {
        let log = Arc::new(WriteLog::new(vec![Span::whole()]));
        let worker = Arc::clone(&log);
        let marks = std::thread::spawn(move || {
            for number in 0..20_000_u64 {
                let at = (number * 7) % 5000 * 4096;
                worker.mark(span(at, at));
            }
        });
        let mut seen = BTreeSet::new();
        while !marks.is_finished() {
            seen.extend(taken(&log, span(0, 5000 * 4096)));
        }
        marks.join().unwrap();
        seen.extend(taken(&log, Span::whole()));
        assert_eq!(seen, (0..5000).collect());
    }
}
