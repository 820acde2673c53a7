//! Which pages a function wrote, for whoever copies memory while it works.

use crate::{DirtyLog, Span};

/// The pages that were written since they were last taken, within some ranges.
/// Marked by a worker after each write and read by anybody, without a lock.
pub struct WriteLog {
    /// Ascending, no two overlap.
    ranges: Vec<Span>,
    pages: DirtyLog,
}

impl WriteLog {
    /// Bytes of a page, whatever whoever reads the log counts in.
    pub const PAGE: u64 = 4096;

    /// A log of what is written in `ranges`, of which no two overlap: so far
    /// nothing.
    pub fn new(mut ranges: Vec<Span>) -> Self {
        ranges.sort_unstable_by_key(|range| range.first());
        Self {
            ranges,
            pages: DirtyLog::new(Self::PAGE),
        }
    }

    /// The pages of `span` were written. To be called after the write: who
    /// takes the mark in between and copies the page would miss it.
    pub fn mark(&self, span: Span) {
        let first = self
            .ranges
            .partition_point(|range| range.last() < span.first());
        let ranges = self.ranges.iter().skip(first);
        for range in ranges.take_while(|range| range.first() <= span.last()) {
            if let Some(within) = range.intersection(&span) {
                self.pages.insert(within);
            }
        }
    }

    /// The pages of `span` that were written, as runs of whole pages in order;
    /// they are marked no longer.
    pub fn take(&self, span: Span) -> Vec<Span> {
        self.pages.take(span, false, |_| true)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::Iova;

    fn page(iova: Iova) -> u64 {
        iova.0 / WriteLog::PAGE
    }

    fn span(first: u64, last: u64) -> Span {
        Span::new(Iova(first), Iova(last)).unwrap()
    }

    fn taken(log: &WriteLog, within: Span) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        for run in log.take(within) {
            assert_eq!(run.first().0 % 4096, 0);
            assert_eq!(run.last().0 % 4096, 4095);
            pages.extend(page(run.first())..=page(run.last()));
        }
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
