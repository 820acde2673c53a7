//! Sets of addresses: sorted spans that neither overlap nor touch.

use iogate_dma::{Iova, Span};

/// A set of addresses.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Spans(Vec<Span<Iova>>);

impl Spans {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Span<Iova>> + '_ {
        self.0.iter().copied()
    }

    /// Adds all of `spans`, in any order.
    pub(crate) fn extend(&mut self, spans: impl IntoIterator<Item = Span<Iova>>) {
        self.0.extend(spans);
        self.0.sort_unstable_by_key(Span::first);
        self.0.dedup_by(|next, kept| {
            let touch = kept
                .last()
                .checked_add(1)
                .is_none_or(|end| next.first() <= end);
            if touch {
                *kept = Span::new(kept.first(), kept.last().max(next.last())).unwrap_or(*kept);
            }
            touch
        });
    }

    /// The parts of `span` that are not in the set.
    pub(crate) fn missing_from(&self, span: Span<Iova>) -> Vec<Span<Iova>> {
        cut(span, &self.0)
    }

    /// The parts of `span` that are in the set.
    pub(crate) fn within(&self, span: Span<Iova>) -> impl Iterator<Item = Span<Iova>> + '_ {
        let from = self.0.partition_point(|own| own.last() < span.first());
        let rest = self.0.get(from..).unwrap_or_default();
        rest.iter().map_while(move |own| own.intersection(&span))
    }

    /// Adds what lies between spans, the last first, until there are at most
    /// `most`.
    pub(crate) fn coarsen(&mut self, most: usize) {
        while self.0.len() > most.max(1)
            && let (Some(last), Some(before)) = (self.0.pop(), self.0.pop())
        {
            let both = Span::new(before.first(), last.last());
            self.0.push(both.unwrap_or(before));
        }
    }
}

/// What is left of `span` without `holes`, which are sorted.
pub(crate) fn cut(span: Span<Iova>, holes: &[Span<Iova>]) -> Vec<Span<Iova>> {
    let mut left = Vec::new();
    let mut from = Some(span.first());
    let touched = holes.partition_point(|hole| hole.last() < span.first());
    for hole in holes.get(touched..).unwrap_or_default() {
        let Some(first) = from.filter(|_| hole.first() <= span.last()) else {
            break;
        };
        let before = hole.first().0.checked_sub(1).map(Iova);
        left.extend(before.and_then(|last| Span::new(first, last)));
        from = hole.last().checked_add(1);
    }
    left.extend(from.and_then(|first| Span::new(first, span.last())));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, last: u64) -> Span<Iova> {
        Span::new(Iova(first), Iova(last)).unwrap()
    }

    fn spans(parts: &[(u64, u64)]) -> Spans {
        let mut spans = Spans::default();
        spans.extend(parts.iter().map(|&(first, last)| span(first, last)));
        spans
    }

    #[test]
    fn spans_that_touch_become_one() {
        let set = spans(&[(20, 29), (0, 9), (10, 12), (25, 40), (u64::MAX, u64::MAX)]);
        assert_eq!(set, spans(&[(0, 12), (20, 40), (u64::MAX, u64::MAX)]));
        assert_eq!(set.iter().count(), 3);
        let whole = spans(&[(0, u64::MAX), (5, 6)]);
        assert_eq!(whole.iter().collect::<Vec<_>>(), [Span::whole()]);
    }

    #[test]
    fn a_span_is_what_is_in_the_set_and_what_is_missing() {
        let set = spans(&[(10, 19), (30, 39)]);
        let asked = span(15, 34);
        assert_eq!(set.missing_from(asked), [span(20, 29)]);
        let inside: Vec<_> = set.within(asked).collect();
        assert_eq!(inside, [span(15, 19), span(30, 34)]);
        assert_eq!(set.missing_from(span(0, u64::MAX)).len(), 3);
        assert_eq!(set.missing_from(span(12, 13)), []);
        assert_eq!(spans(&[]).missing_from(asked), [asked]);
    }

    #[test]
    fn a_coarser_set_encloses_the_finer_one() {
        let mut set = spans(&[(0, 1), (10, 11), (20, 21), (30, 31)]);
        set.coarsen(2);
        assert_eq!(set, spans(&[(0, 1), (10, 31)]));
    }
}
