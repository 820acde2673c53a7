//! Two states of an address space compared: the least changes that lead from
//! one to the other.

use std::borrow::Cow;

use iogate_dma::{Change, Iova, Mapping, Span};

use crate::runs::{clip, join};

/// Changes: what is unmapped, then what is mapped, both in the order of
/// addresses and joined where they touch.
#[derive(Default, Debug)]
pub(crate) struct Changes {
    unmaps: Vec<Change>,
    maps: Vec<Change>,
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
        if let Some(Change::Unmap(last)) = self.unmaps.last_mut()
            && last.last().checked_add(1) == Some(span.first())
            && let Some(joined) = Span::new(last.first(), span.last())
        {
            *last = joined;
        } else {
            self.unmaps.push(Change::Unmap(span));
        }
    }

    #[inline]
    fn map(&mut self, mapping: Mapping) {
        if let Some(Change::Map(last)) = self.maps.last_mut()
            && let Some(joined) = join(last, &mapping)
        {
            *last = joined;
        } else {
            self.maps.push(Change::Map(mapping));
        }
    }

    /// Makes room for so many mappings.
    pub(crate) fn expect(&mut self, mappings: usize) {
        self.maps.reserve(mappings);
    }

    /// Begins the mappings with those from `first` on, and keeps `most` of
    /// them; whether that was all.
    pub(crate) fn limit(&mut self, first: Iova, most: usize) -> bool {
        let from = self.maps.partition_point(|map| span(map).last() < first);
        self.maps.rotate_left(from);
        let all = self.maps.len() <= most;
        self.maps.truncate(most);
        all
    }

    /// All of them, as a listener takes them.
    pub(crate) fn into_batch(mut self) -> Vec<Change> {
        if self.unmaps.is_empty() {
            return self.maps;
        }
        self.unmaps.append(&mut self.maps);
        self.unmaps
    }
}

/// The addresses that a change is about.
pub(crate) fn span(change: &Change) -> Span<Iova> {
    match change {
        Change::Map(mapping) => mapping.span,
        Change::Unmap(span) => *span,
    }
}

/// The part of a batch in `section`.
pub(crate) fn within(batch: &[Change], section: Span<Iova>) -> Cow<'_, [Change]> {
    if batch.iter().all(|change| section.encloses(&span(change))) {
        return Cow::Borrowed(batch);
    }
    let part = |change: &Change| match change {
        Change::Map(mapping) => clip(mapping, &section).map(Change::Map),
        Change::Unmap(span) => span.intersection(&section).map(Change::Unmap),
    };
    batch.iter().filter_map(part).collect()
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

    fn diff(old: &[Mapping], new: &[Mapping]) -> Vec<Change> {
        let mut changes = Changes::default();
        changes.add(old.iter().copied(), new.iter().copied());
        changes.into_batch()
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
        let maps = [run(0, 9, 0), run(20, 29, 20)];
        assert_eq!(changes, maps.map(Change::Map));
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
        let map = Change::Map(run(5, 19, 700));
        assert_eq!(changes, [Change::Unmap(span(0, 29)), map]);
    }

    #[test]
    fn the_whole_space_can_be_replaced() {
        let changes = diff(&[run(0, u64::MAX, 0)], &[run(0, u64::MAX, 1)]);
        let map = Change::Map(run(0, u64::MAX, 1));
        assert_eq!(changes, [Change::Unmap(Span::whole()), map]);
        let section = span(4096, 8191);
        let batch = within(&changes, section);
        assert_eq!(
            *batch,
            [Change::Unmap(section), Change::Map(run(4096, 8191, 4097))]
        );
    }

    #[test]
    fn other_rights_are_another_mapping() {
        let mut writable = run(0, 9, 0);
        writable.rights = Rights::READ_WRITE;
        let changes = diff(&[run(0, 9, 0)], &[writable]);
        assert_eq!(changes.len(), 2);
    }
}
