//! One guest domain as it was when it was last looked at, shared by all who
//! follow a source in it.

use std::ops::ControlFlow;

use iogate_dma::{Change, GuestDomains, Iova, Mapping, Rights, Scan, Source, Span};

use crate::diff::Changes;
use crate::runs::{Runs, clip, push};
use crate::shadow::Limits;
use crate::spans::Spans;

/// Pieces that are to be looked at again, at most; with more, also what lies
/// between them.
const MAX_AGAIN: usize = 16;

#[derive(Default)]
pub(crate) struct Domain {
    /// What it maps, in the sections that somebody follows.
    pub(crate) known: Runs,
    /// Those sections.
    cover: Spans,
    /// What is to be looked at when the next turn comes, whatever it is about.
    pub(crate) again: Spans,
}

/// What a look at a domain's tables showed.
#[derive(Default)]
pub(crate) struct Seen {
    /// Where what is mapped is another than what was known, and what it is.
    news: Vec<(Span<Iova>, Vec<Mapping>)>,
    /// What is beyond a limit: it counts as not mapped.
    pub(crate) missed: Spans,
    /// Runs in it.
    pub(crate) runs: usize,
}

impl Seen {
    /// Whether something is mapped otherwise than was known.
    pub(crate) fn is_news(&self) -> bool {
        !self.news.is_empty()
    }
}

impl Domain {
    /// Somebody follows it in `section`.
    pub(crate) fn follow(&mut self, section: Span<Iova>) {
        self.again.extend(self.cover.missing_from(section));
        self.cover.extend([section]);
    }

    /// The parts of `span` that somebody follows.
    pub(crate) fn followed(&self, span: Span<Iova>) -> impl Iterator<Item = Span<Iova>> + '_ {
        self.cover.within(span)
    }

    /// Looks at what the domain that `source` is in maps in `dirty`.
    pub(crate) fn look(
        &self,
        unit: &dyn GuestDomains,
        source: Source,
        dirty: &Spans,
        limits: Limits,
    ) -> Seen {
        let mut seen = Seen::default();
        let mut total = self.known.len();
        for span in dirty.iter() {
            let known = self.known.overlapping(span);
            let others = total.saturating_sub(known.len());
            let mut look = Look {
                known,
                span,
                alike: 0,
                fresh: None,
                room: limits.runs.saturating_sub(others),
                ends: None,
            };
            let scan = unit.scan(source, span, limits.tables, &mut |run| look.tell(run));
            let until = match scan {
                Scan::Whole => None,
                Scan::Until(at) => Some(at),
                Scan::Stopped => Some(look.ends.unwrap_or(span.first())),
            };
            let missed = until.and_then(|at| Span::new(at.max(span.first()), span.last()));
            seen.missed.extend(missed);
            let fresh = look.finish();
            seen.runs = seen
                .runs
                .saturating_add(fresh.as_ref().map_or(known.len(), Vec::len));
            if let Some(fresh) = fresh {
                total = others.saturating_add(fresh.len());
                seen.news.push((span, fresh));
            }
        }
        seen
    }

    /// What leads from what is known to what was seen.
    pub(crate) fn changes(&self, seen: &Seen) -> Vec<Change> {
        let mut changes = Changes::default();
        for (span, fresh) in &seen.news {
            changes.add(self.known.within(*span), fresh.iter().copied());
        }
        changes.into_batch()
    }

    /// What was seen is what is known.
    pub(crate) fn learn(&mut self, seen: Seen) {
        for (span, fresh) in seen.news {
            self.known.replace(span, fresh);
        }
        self.again = seen.missed;
        self.again.coarsen(MAX_AGAIN);
    }
}

/// A scan under way, compared with what is known. Nothing is kept for as long
/// as all is as it was.
struct Look<'a> {
    /// What is known, of which the first and the last may pass `span`.
    known: &'a [Mapping],
    span: Span<Iova>,
    /// How many of `known` were told again.
    alike: usize,
    /// What was told, once it differs.
    fresh: Option<Vec<Mapping>>,
    /// How many runs there may be.
    room: usize,
    /// What was told last does not fit any more.
    ends: Option<Iova>,
}

impl Look<'_> {
    #[inline]
    fn tell(&mut self, run: Mapping) -> ControlFlow<()> {
        if self.fresh.is_none()
            && let Some(known) = self.known.get(self.alike)
            && (*known == run || clip(known, &self.span) == Some(run))
        {
            self.alike = self.alike.wrapping_add(1);
            return ControlFlow::Continue(());
        }
        self.differs(run)
    }

    fn differs(&mut self, run: Mapping) -> ControlFlow<()> {
        if run.rights == Rights::NONE {
            return ControlFlow::Continue(());
        }
        let fresh = match &mut self.fresh {
            Some(fresh) => fresh,
            None => self.fresh.insert(alike(self.known, self.alike, self.span)),
        };
        push(fresh, run);
        if fresh.len() > self.room {
            fresh.pop();
            self.ends = Some(run.span.first());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// What is mapped now, if that is not what was known.
    fn finish(self) -> Option<Vec<Mapping>> {
        let fresh = match self.fresh {
            Some(fresh) => fresh,
            None if self.alike == self.known.len() => return None,
            None => alike(self.known, self.alike, self.span),
        };
        let known = self.known.iter().filter_map(|run| clip(run, &self.span));
        (!known.eq(fresh.iter().copied())).then_some(fresh)
    }
}

/// The first `count` of `known`, within `span`.
fn alike(known: &[Mapping], count: usize, span: Span<Iova>) -> Vec<Mapping> {
    let first = known.iter().take(count);
    first.filter_map(|run| clip(run, &span)).collect()
}
