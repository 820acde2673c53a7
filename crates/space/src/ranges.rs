//! Reserved ranges, by who reserved them, and the allow list.

use iogate_dma::{Iova, Span};

use crate::AllowError;

#[derive(Default)]
pub(crate) struct Ranges {
    owned: Vec<(u64, Span)>,
    /// The union of `owned`, in order, adjacent ones merged.
    reserved: Vec<Span>,
    /// In order, without overlap.
    allowed: Vec<Span>,
}

impl Ranges {
    pub(crate) fn reserve(&mut self, owner: u64, span: Span) {
        if !self.owned.contains(&(owner, span)) {
            self.owned.push((owner, span));
            self.merge();
        }
    }

    pub(crate) fn release(&mut self, owner: u64) {
        self.owned.retain(|(of, _)| *of != owner);
        self.merge();
    }

    pub(crate) fn set_allowed(&mut self, allowed: &[Span]) -> Result<(), AllowError> {
        let mut sorted = allowed.to_vec();
        sorted.sort_unstable_by_key(Span::first);
        let pairs = sorted.iter().zip(sorted.iter().skip(1));
        if pairs.into_iter().any(|(a, b)| a.overlaps(b)) {
            return Err(AllowError::SelfOverlap);
        }
        if let Some(hit) = sorted.iter().find_map(|span| self.reserved_in(*span)) {
            return Err(AllowError::Reserved(hit));
        }
        self.allowed = sorted;
        Ok(())
    }

    /// The allow list, in order; empty if everything is allowed.
    pub(crate) fn allowed(&self) -> &[Span] {
        &self.allowed
    }

    /// The lowest reserved range that shares a byte with `span`.
    pub(crate) fn reserved_in(&self, span: Span) -> Option<Span> {
        first_overlap(&self.reserved, span)
    }

    /// The lowest allowed range that shares a byte with `span`.
    pub(crate) fn allowed_in(&self, span: Span) -> Option<Span> {
        first_overlap(&self.allowed, span)
    }

    /// What no one reserves, in order.
    pub(crate) fn usable(&self) -> Vec<Span> {
        let mut usable = Vec::new();
        let mut from = Some(Iova(0));
        for span in &self.reserved {
            let before = span.first().0.checked_sub(1).map(Iova);
            usable.extend(from.zip(before).and_then(|(from, to)| Span::new(from, to)));
            from = span.last().checked_add(1);
        }
        usable.extend(from.and_then(|from| Span::new(from, Iova(u64::MAX))));
        usable
    }

    fn merge(&mut self) {
        let mut spans: Vec<Span> = self.owned.iter().map(|(_, span)| *span).collect();
        spans.sort_unstable_by_key(Span::first);
        self.reserved.clear();
        for span in spans {
            match self.reserved.last_mut() {
                Some(before) if span.first().0 <= before.last().0.saturating_add(1) => {
                    let last = before.last().max(span.last());
                    *before = Span::new(before.first(), last).unwrap_or(*before);
                }
                _ => self.reserved.push(span),
            }
        }
    }
}

fn first_overlap(sorted: &[Span], span: Span) -> Option<Span> {
    let at = sorted.partition_point(|other| other.last() < span.first());
    sorted
        .get(at)
        .copied()
        .filter(|other| other.overlaps(&span))
}
