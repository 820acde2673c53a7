//! Two states of an address space compared: the least changes that lead from
//! one to the other.

use iogate_dma::{Change, Iova, Mapping, Span};

use crate::runs::{clip, push};

/// Changes: what is unmapped, then what is mapped, both in the order of
/// addresses and joined where they touch.
#[derive(Default, Debug)]
pub(crate) struct Changes {
    pub(crate) unmaps: Vec<Span<Iova>>,
    pub(crate) maps: Vec<Mapping>,
}

impl Changes {
    /// Adds what leads from `old` to `new`: both sorted, and above everything
    /// added before. What both map alike is not touched.
    pub(crate) fn add(
        &mut self,
        old: impl IntoIterator<Item = Mapping>,
        new: impl IntoIterator<Item = Mapping>,
    ) {
        let (mut olds, mut news) = (old.into_iter(), new.into_iter());
        let (mut old, mut new) = (olds.next(), news.next());
        loop {
            match (old, new) {
                (None, None) => return,
                (Some(a), Some(b)) if a == b => {
                    (old, new) = (olds.next(), news.next());
                }
                (Some(a), Some(b)) if a.span.overlaps(&b.span) => {
                    let first = a.span.first().max(b.span.first());
                    let last = a.span.last().min(b.span.last());
                    let below = first.0.checked_sub(1).map(Iova);
                    if let Some(below) = below.and_then(|last| Span::new(Iova(0), last)) {
                        // One of the two begins earlier, if any.
                        clip(&a, &below)
                            .into_iter()
                            .for_each(|a| self.unmap(a.span));
                        clip(&b, &below).into_iter().for_each(|b| self.map(b));
                    }
                    let both = Span::new(first, last);
                    let both = both.and_then(|both| clip(&a, &both).zip(clip(&b, &both)));
                    if let Some((a, b)) = both
                        && a != b
                    {
                        self.unmap(a.span);
                        self.map(b);
                    }
                    let above = last.checked_add(1);
                    let above = above.and_then(|first| Span::new(first, Iova(u64::MAX)));
                    let rest = |run: &Mapping| above.and_then(|above| clip(run, &above));
                    old = rest(&a).or_else(|| olds.next());
                    new = rest(&b).or_else(|| news.next());
                }
                (Some(a), b) if b.is_none_or(|b| a.span.first() < b.span.first()) => {
                    self.unmap(a.span);
                    old = olds.next();
                }
                (_, Some(b)) => {
                    self.map(b);
                    new = news.next();
                }
                (Some(_), None) => return,
            }
        }
    }

    #[inline]
    fn unmap(&mut self, span: Span<Iova>) {
        if let Some(last) = self.unmaps.last_mut()
            && last.last().checked_add(1) == Some(span.first())
            && let Some(joined) = Span::new(last.first(), span.last())
        {
            *last = joined;
        } else {
            self.unmaps.push(span);
        }
    }

    #[inline]
    fn map(&mut self, mapping: Mapping) {
        push(&mut self.maps, mapping);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.unmaps.is_empty() && self.maps.is_empty()
    }

    /// The part in `section`, as a listener takes them.
    pub(crate) fn batch(&self, section: Span<Iova>) -> Vec<Change> {
        let unmaps = self
            .unmaps
            .iter()
            .filter_map(|span| span.intersection(&section));
        let maps = self.maps.iter().filter_map(|run| clip(run, &section));
        let mut batch = Vec::with_capacity(self.unmaps.len().saturating_add(self.maps.len()));
        batch.extend(unmaps.map(Change::Unmap));
        batch.extend(maps.map(Change::Map));
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iogate_dma::Rights;

    fn span(first: u64, last: u64) -> Span<Iova> {
        Span::new(Iova(first), Iova(last)).unwrap()
    }

    fn run(first: u64, last: u64, output: u64) -> Mapping {
        Mapping {
            span: span(first, last),
            output,
            rights: Rights::READ,
        }
    }

    fn diff(old: &[Mapping], new: &[Mapping]) -> Changes {
        let mut changes = Changes::default();
        changes.add(old.iter().copied(), new.iter().copied());
        changes
    }

    #[test]
    fn equal_states_need_no_change() {
        let state = [run(0, 9, 0), run(20, 29, 7)];
        assert!(diff(&state, &state).is_empty());
        // Also where one has in two pieces what the other has in one.
        assert!(diff(&[run(0, 9, 0)], &[run(0, 4, 0), run(5, 9, 5)]).is_empty());
    }

    #[test]
    fn a_run_that_grows_is_mapped_only_where_it_is_new() {
        let changes = diff(&[run(10, 19, 10)], &[run(0, 29, 0)]);
        assert!(changes.unmaps.is_empty());
        assert_eq!(changes.maps, [run(0, 9, 0), run(20, 29, 20)]);
    }

    #[test]
    fn unmaps_join_over_what_is_replaced_and_what_goes() {
        let old = [
            run(0, 9, 0),
            run(10, 19, 50),
            run(20, 29, 90),
            run(40, 49, 0),
        ];
        let new = [run(5, 19, 700), run(40, 49, 0)];
        let changes = diff(&old, &new);
        assert_eq!(changes.unmaps, [span(0, 29)]);
        assert_eq!(changes.maps, [run(5, 19, 700)]);
    }

    #[test]
    fn the_whole_space_can_be_replaced() {
        let changes = diff(&[run(0, u64::MAX, 0)], &[run(0, u64::MAX, 1)]);
        assert_eq!(changes.unmaps, [Span::whole()]);
        assert_eq!(changes.maps, [run(0, u64::MAX, 1)]);
        let section = span(4096, 8191);
        let batch = changes.batch(section);
        assert_eq!(
            batch,
            [Change::Unmap(section), Change::Map(run(4096, 8191, 4097))]
        );
    }

    #[test]
    fn other_rights_are_another_mapping() {
        let mut writable = run(0, 9, 0);
        writable.rights = Rights::READ_WRITE;
        let changes = diff(&[run(0, 9, 0)], &[writable]);
        assert_eq!((changes.unmaps.len(), changes.maps.len()), (1, 1));
    }
}
