//! Who mapped and unmapped which IOVA, and when.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use iogate_dma::{Iova, Rights, Span};
use iogate_host::{Actor, SpaceId, Via};

use crate::StackId;

/// Unmaps that the history holds; older ones are forgotten.
pub const MAX_HISTORY: usize = 65_536;

/// A call that changed a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Deed {
    pub(crate) via: Via,
    pub(crate) by: Option<Actor>,
    pub(crate) at: Instant,
    pub(crate) stack: Option<StackId>,
}

/// A mapping and what happened to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mapping {
    pub(crate) span: Span,
    pub(crate) rights: Rights,
    pub(crate) mapped: Deed,
    /// When private memory behind a part of it was taken away, last.
    pub(crate) revoked: Option<Deed>,
}

/// A mapping that is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gone {
    pub(crate) space: SpaceId,
    pub(crate) mapping: Mapping,
    pub(crate) unmapped: Deed,
}

/// What the history knows about an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// It is mapped.
    Live(Mapping),
    /// It was mapped.
    Gone(Gone),
    /// It was not, as far as the history reaches; the nearest mapping, if any.
    Never(Option<Mapping>),
}

/// The mappings of all address spaces, and the last that went.
#[derive(Default)]
pub(crate) struct History {
    live: HashMap<SpaceId, BTreeMap<Iova, Mapping>>,
    gone: VecDeque<Gone>,
    forgotten: u64,
}

impl History {
    pub(crate) fn mapped(&mut self, space: SpaceId, span: Span, rights: Rights, mapped: Deed) {
        let mapping = Mapping {
            span,
            rights,
            mapped,
            revoked: None,
        };
        self.live
            .entry(space)
            .or_default()
            .insert(span.first(), mapping);
    }

    pub(crate) fn unmapped(
        &mut self,
        space: SpaceId,
        span: Span,
        unmapped: Deed,
    ) -> Option<Mapping> {
        let maps = self.live.get_mut(&space)?;
        let mapping = maps.remove(&span.first())?;
        if maps.is_empty() {
            self.live.remove(&space);
        }
        if self.gone.len() >= MAX_HISTORY {
            self.gone.pop_front();
            self.forgotten = self.forgotten.saturating_add(1);
        }
        self.gone.push_back(Gone {
            space,
            mapping,
            unmapped,
        });
        Some(mapping)
    }

    pub(crate) fn revoked(&mut self, space: SpaceId, span: Span, deed: Deed) {
        let Some(maps) = self.live.get_mut(&space) else {
            return;
        };
        for (_, mapping) in maps.range_mut(..=span.last()).rev() {
            if mapping.span.last() < span.first() {
                break;
            }
            mapping.revoked = Some(deed);
        }
    }

    /// The mapping that holds `iova` now.
    pub(crate) fn live_at(&self, space: SpaceId, iova: Iova) -> Option<Mapping> {
        let (_, mapping) = self.live.get(&space)?.range(..=iova).next_back()?;
        mapping.span.contains(iova).then_some(*mapping)
    }

    /// What is known about `iova`. Reads the whole history in the worst case:
    /// for new causes only.
    pub(crate) fn look(&self, space: SpaceId, iova: Iova) -> Known {
        if let Some(mapping) = self.live_at(space, iova) {
            return Known::Live(mapping);
        }
        let was_there = |gone: &&Gone| gone.space == space && gone.mapping.span.contains(iova);
        match self.gone.iter().rev().find(was_there) {
            Some(gone) => Known::Gone(*gone),
            None => Known::Never(self.nearest(space, iova)),
        }
    }

    /// Unmaps that the history no longer holds.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Mappings that stand now, over all spaces.
    pub(crate) fn live_count(&self) -> usize {
        self.live.values().map(BTreeMap::len).sum()
    }

    fn nearest(&self, space: SpaceId, iova: Iova) -> Option<Mapping> {
        let maps = self.live.get(&space)?;
        let below = maps.range(..iova).next_back().map(|(_, m)| *m);
        let above = maps.range(iova..).next().map(|(_, m)| *m);
        match (below, above) {
            (Some(b), Some(a)) => {
                let to_below = iova.0.saturating_sub(b.span.last().0);
                let to_above = a.span.first().0.saturating_sub(iova.0);
                Some(if to_above < to_below { a } else { b })
            }
            (b, a) => b.or(a),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deed(via: Via) -> Deed {
        Deed {
            via,
            by: None,
            at: Instant::now(),
            stack: None,
        }
    }

    fn span(first: u64, length: u64) -> Span {
        Span::with_length(Iova(first), length).unwrap()
    }

    #[test]
    fn an_address_is_live_then_gone_then_forgotten() {
        let mut history = History::default();
        let space = SpaceId(1);
        history.mapped(space, span(0x1000, 0x1000), Rights::READ, deed(Via::MapDma));
        assert!(matches!(history.look(space, Iova(0x1fff)), Known::Live(_)));
        assert!(matches!(
            history.look(space, Iova(0x2000)),
            Known::Never(Some(_))
        ));
        history.unmapped(space, span(0x1000, 0x1000), deed(Via::UnmapDma));
        assert!(matches!(history.look(space, Iova(0x1800)), Known::Gone(_)));
        assert!(matches!(
            history.look(SpaceId(2), Iova(0x1800)),
            Known::Never(None)
        ));
        for _ in 0..MAX_HISTORY {
            history.mapped(space, span(0x9000, 1), Rights::READ, deed(Via::MapDma));
            history.unmapped(space, span(0x9000, 1), deed(Via::UnmapDma));
        }
        assert!(matches!(
            history.look(space, Iova(0x1800)),
            Known::Never(None)
        ));
        assert_eq!(history.forgotten(), 1);
    }

    #[test]
    fn the_nearest_mapping_is_on_either_side() {
        let mut history = History::default();
        let space = SpaceId(1);
        history.mapped(space, span(0x1000, 0x1000), Rights::READ, deed(Via::MapDma));
        history.mapped(space, span(0x9000, 0x1000), Rights::READ, deed(Via::MapDma));
        let nearest = |at| match history.look(space, Iova(at)) {
            Known::Never(Some(mapping)) => mapping.span.first(),
            other => panic!("{other:?}"),
        };
        assert_eq!(nearest(0x2000), Iova(0x1000));
        assert_eq!(nearest(0x8fff), Iova(0x9000));
    }
}
