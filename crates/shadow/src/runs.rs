//! What an address space maps: sorted runs, each as long as it can be.

use std::ops::Range;

use iogate_dma::{Iova, Mapping, Span};

use crate::spans;

/// The part of `run` in `span`.
pub(crate) fn clip(run: &Mapping, span: &Span<Iova>) -> Option<Mapping> {
    let part = run.span.intersection(span)?;
    let skipped = part.first().0.wrapping_sub(run.span.first().0);
    Some(Mapping {
        span: part,
        output: run.output.wrapping_add(skipped),
        rights: run.rights,
    })
}

/// The two as one, if `next` goes on where `run` ends.
#[inline]
pub(crate) fn join(run: &Mapping, next: &Mapping) -> Option<Mapping> {
    let bytes = run.span.length()?;
    let goes_on = run.span.first().checked_add(bytes) == Some(next.span.first())
        && run.output.checked_add(bytes) == Some(next.output)
        && run.rights == next.rights;
    let span = Span::new(run.span.first(), next.span.last()).filter(|_| goes_on)?;
    Some(Mapping { span, ..*run })
}

/// Adds `next` behind `runs`, as a part of the last one if it can be.
#[inline]
pub(crate) fn push(runs: &mut Vec<Mapping>, next: Mapping) {
    if let Some(last) = runs.last_mut()
        && let Some(joined) = join(last, &next)
    {
        *last = joined;
    } else {
        runs.push(next);
    }
}

/// Sorted runs that do not overlap and cannot be joined.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Runs(Vec<Mapping>);

impl Runs {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn as_slice(&self) -> &[Mapping] {
        &self.0
    }

    /// Where the runs are that overlap `span`.
    fn range(&self, span: Span<Iova>) -> Range<usize> {
        let from = self.0.partition_point(|run| run.span.last() < span.first());
        let rest = self.0.get(from..).unwrap_or_default();
        let count = rest.partition_point(|run| run.span.first() <= span.last());
        from..from.saturating_add(count)
    }

    /// The runs that overlap `span`, whole.
    pub(crate) fn overlapping(&self, span: Span<Iova>) -> &[Mapping] {
        self.0.get(self.range(span)).unwrap_or_default()
    }

    /// What is mapped in `span`.
    pub(crate) fn within(&self, span: Span<Iova>) -> impl Iterator<Item = Mapping> + '_ {
        let runs = self.overlapping(span).iter();
        runs.filter_map(move |run| clip(run, &span))
    }

    /// `new`, joined runs within `span`, are what is mapped there now.
    pub(crate) fn replace(&mut self, span: Span<Iova>, mut new: Vec<Mapping>) {
        let mut range = self.range(span);
        let overlapping = self.0.get(range.clone()).unwrap_or_default();
        let below = span.first().0.checked_sub(1);
        let below = below.and_then(|last| Span::new(Iova(0), Iova(last)));
        let head = overlapping.first().zip(below);
        let mut head = head.and_then(|(run, below)| clip(run, &below));
        let above = span.last().checked_add(1);
        let above = above.and_then(|first| Span::new(first, Iova(u64::MAX)));
        let tail = overlapping.last().zip(above);
        let mut tail = tail.and_then(|(run, above)| clip(run, &above));
        // A neighbour may go on in what is new.
        if head.is_none()
            && let Some(before) = range.start.checked_sub(1)
        {
            head = self.0.get(before).copied();
            range.start = before;
        }
        if tail.is_none()
            && let Some(next) = self.0.get(range.end)
        {
            tail = Some(*next);
            range.end = range.end.saturating_add(1);
        }
        if let Some(head) = head {
            match new
                .first_mut()
                .and_then(|first| Some((join(&head, first)?, first)))
            {
                Some((joined, first)) => *first = joined,
                None => new.insert(0, head),
            }
        }
        if let Some(tail) = tail {
            push(&mut new, tail);
        }
        if self.0.len() == range.len() {
            self.0 = new;
        } else {
            self.0.splice(range, new);
        }
    }

    /// Nothing of `spans`, which are sorted, is mapped any more.
    pub(crate) fn remove(&mut self, holes: &[Span<Iova>]) {
        let old = std::mem::take(&mut self.0);
        for run in old {
            let parts = spans::cut(run.span, holes);
            self.0
                .extend(parts.iter().filter_map(|part| clip(&run, part)));
        }
    }

    /// Adds runs of which nothing was mapped, in any order.
    pub(crate) fn insert(&mut self, new: impl IntoIterator<Item = Mapping>) {
        let mut all = std::mem::take(&mut self.0);
        all.extend(new);
        all.sort_unstable_by_key(|run| run.span.first());
        for run in all {
            push(&mut self.0, run);
        }
    }
}

impl FromIterator<Mapping> for Runs {
    /// From what is sorted and does not overlap.
    fn from_iter<I: IntoIterator<Item = Mapping>>(sorted: I) -> Self {
        let mut runs = Vec::new();
        for run in sorted {
            push(&mut runs, run);
        }
        Self(runs)
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
            rights: Rights::READ_WRITE,
        }
    }

    #[test]
    fn what_replaces_a_middle_leaves_both_ends() {
        let mut runs = Runs::from_iter([run(0, 99, 1000)]);
        runs.replace(span(40, 59), vec![run(45, 54, 5000)]);
        let all = [run(0, 39, 1000), run(45, 54, 5000), run(60, 99, 1060)];
        assert_eq!(runs.as_slice(), all);
        runs.replace(span(40, 59), vec![run(40, 59, 1040)]);
        assert_eq!(runs.as_slice(), [run(0, 99, 1000)]);
        runs.replace(span(90, 200), vec![]);
        assert_eq!(runs.as_slice(), [run(0, 89, 1000)]);
        runs.replace(Span::whole(), vec![]);
        assert_eq!(runs.len(), 0);
    }

    #[test]
    fn neighbours_join_what_goes_on_from_them() {
        let mut runs = Runs::from_iter([run(0, 9, 100), run(20, 29, 120), run(50, 59, 0)]);
        runs.replace(span(10, 19), vec![run(10, 19, 110)]);
        assert_eq!(runs.as_slice(), [run(0, 29, 100), run(50, 59, 0)]);
    }

    #[test]
    fn the_last_address_of_the_space_can_be_mapped() {
        let top = run(u64::MAX - 9, u64::MAX, 0);
        let mut runs = Runs::from_iter([top]);
        runs.replace(span(u64::MAX, u64::MAX), vec![]);
        assert_eq!(runs.as_slice(), [run(u64::MAX - 9, u64::MAX - 1, 0)]);
        runs.remove(&[span(0, u64::MAX)]);
        runs.insert([
            run(u64::MAX, u64::MAX, 9),
            run(u64::MAX - 9, u64::MAX - 1, 0),
        ]);
        assert_eq!(runs.as_slice(), [top]);
    }
}
