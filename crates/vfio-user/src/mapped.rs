//! What a client has mapped: no two overlap, and what is unmapped covers
//! whole mappings.

use std::collections::BTreeMap;

use iogate_dma::{Address, Iova, Span};
use rustix::io::Errno;

/// Mappings by their first address, with their last.
#[derive(Debug, Default)]
pub(crate) struct Mapped(BTreeMap<u64, u64>);

impl Mapped {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether a mapping has a byte of `span`.
    pub(crate) fn overlaps(&self, span: Span<Iova>) -> bool {
        let below = self.0.range(..=span.last().as_u64()).next_back();
        below.is_some_and(|(_, last)| *last >= span.first().as_u64())
    }

    pub(crate) fn insert(&mut self, span: Span<Iova>) {
        self.0.insert(span.first().as_u64(), span.last().as_u64());
    }

    /// Removes the mappings within `span`. EINVAL if it cuts one, ENOENT if
    /// there is none.
    pub(crate) fn remove(&mut self, span: Span<Iova>) -> Result<Vec<Span<Iova>>, Errno> {
        let (first, last) = (span.first().as_u64(), span.last().as_u64());
        let cut = |at: u64| {
            let below = self.0.range(..at).next_back();
            below.is_some_and(|(_, end)| *end >= at)
        };
        if cut(first) || last.checked_add(1).is_some_and(cut) {
            return Err(Errno::INVAL);
        }
        let within: Vec<_> = self
            .0
            .range(first..=last)
            .filter_map(|(first, last)| Span::new(Iova(*first), Iova(*last)))
            .collect();
        if within.is_empty() {
            return Err(Errno::NOENT);
        }
        for span in &within {
            self.0.remove(&span.first().as_u64());
        }
        Ok(within)
    }

    /// Removes all of them.
    pub(crate) fn clear(&mut self) -> Vec<Span<Iova>> {
        let all = std::mem::take(&mut self.0);
        all.into_iter()
            .filter_map(|(first, last)| Span::new(Iova(first), Iova(last)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, length: u64) -> Span<Iova> {
        Span::with_length(Iova(first), length).unwrap()
    }

    #[test]
    fn what_is_unmapped_may_enclose_mappings_but_not_cut_one() {
        let mut mapped = Mapped::default();
        mapped.insert(span(0x1000, 0x1000));
        mapped.insert(span(0x3000, 0x2000));
        assert_eq!(mapped.remove(span(0x1000, 0x2800)), Err(Errno::INVAL));
        assert_eq!(mapped.remove(span(0x1800, 0x4000)), Err(Errno::INVAL));
        assert_eq!(mapped.remove(span(0x4000, 0x800)), Err(Errno::INVAL));
        assert_eq!(mapped.remove(span(0x2000, 0x1000)), Err(Errno::NOENT));
        let both = vec![span(0x1000, 0x1000), span(0x3000, 0x2000)];
        assert_eq!(mapped.remove(span(0, 0x10000)), Ok(both));
        assert_eq!(mapped.len(), 0);
    }

    #[test]
    fn overlaps_are_seen_at_either_end_and_at_the_top_of_the_space() {
        let mut mapped = Mapped::default();
        mapped.insert(span(0x1000, 0x1000));
        assert!(mapped.overlaps(span(0x1fff, 1)));
        assert!(mapped.overlaps(span(0, 0x1001)));
        assert!(mapped.overlaps(span(0x1800, 8)));
        assert!(!mapped.overlaps(span(0, 0x1000)));
        assert!(!mapped.overlaps(span(0x2000, 0x1000)));
        let top = span(u64::MAX - 0xfff, 0x1000);
        mapped.insert(top);
        assert!(mapped.overlaps(span(u64::MAX, 1)));
        assert_eq!(mapped.remove(top), Ok(vec![top]));
    }
}
