//! One listener that follows one source: what it has, and what it is told.

use std::sync::Arc;

use iogate_dma::{
    Access, Change, DomainKey, Fault, FaultReason, Gpa, Iova, Listener, Mapping, Partial, Rights,
    Scope, Source, Span,
};

use crate::diff::{Changes, span, within};
use crate::runs::{Runs, clip};
use crate::shadow::Failure;
use crate::spans::Spans;
use crate::{spans, trace};

/// A domain as a follower is in it: sources with equal ones share it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct DomainId {
    pub(crate) key: DomainKey,
    /// The guest's number for it.
    pub(crate) number: u32,
}

impl From<(DomainKey, u32)> for DomainId {
    fn from((key, number): (DomainKey, u32)) -> Self {
        Self { key, number }
    }
}

/// Refusals one behind the other after which a listener is left alone until
/// the next turn.
const MAX_REFUSALS: usize = 16;
/// Refused mappings that are remembered, so that the guest is told once.
const MAX_TOLD: usize = 64;

pub(crate) struct Follower {
    pub(crate) id: u64,
    pub(crate) source: Source,
    pub(crate) section: Span<Iova>,
    pub(crate) listener: Arc<dyn Listener>,
    pub(crate) domain: Option<DomainId>,
    /// What it has, where that is not what its domain maps in the section.
    pub(crate) own: Option<Runs>,
    /// The first that it refused in the last turn.
    refusal: Option<Failure>,
    /// What of its domain is beyond a limit.
    missed: Option<Failure>,
    /// It has refused something in this turn.
    pub(crate) is_rested: bool,
    told: Vec<Mapping>,
    /// Where to begin with mapping when it refuses much.
    resume: Iova,
}

impl Follower {
    /// One that has nothing yet.
    pub(crate) fn new(
        id: u64,
        source: Source,
        section: Span<Iova>,
        listener: Arc<dyn Listener>,
    ) -> Self {
        Self {
            id,
            source,
            section,
            listener,
            domain: None,
            own: Some(Runs::default()),
            refusal: None,
            missed: None,
            is_rested: false,
            told: Vec::new(),
            resume: Iova(0),
        }
    }

    /// Whether `scope` is about the domain that it is in.
    pub(crate) fn is_meant(&self, scope: Scope) -> bool {
        match scope {
            Scope::Everything => true,
            Scope::Domain(number) => self.domain.is_some_and(|domain| domain.number == number),
            Scope::Entry(source) => {
                source.function() == self.source.function()
                    && (source.pasid.is_none() || source.pasid == self.source.pasid)
            }
        }
    }

    /// What it has, its domain mapping `known`.
    pub(crate) fn view(&self, known: &Runs) -> Runs {
        match &self.own {
            Some(own) => own.clone(),
            None => known.within(self.section).collect(),
        }
    }

    /// Tells it of what changes in a domain whose mappings it has, all of
    /// `known` before the change. What it does not take is its own matter from
    /// then on.
    pub(crate) fn hear(&mut self, changes: &[Change], known: &Runs, faults: &mut Vec<Fault>) {
        let batch = within(changes, self.section);
        if let Some(done) = self.tell(&batch, faults) {
            let view = known.within(self.section).collect();
            self.own = Some(after(view, &done));
            self.is_rested = true;
        }
    }

    /// Tells it of what leads from what it has to `target`, as far as that is
    /// in its section. What leads to `renewed` outputs is unmapped and mapped
    /// anew. It may have up to `most` runs.
    pub(crate) fn settle(
        &mut self,
        target: &Runs,
        renewed: Option<Span<Gpa>>,
        most: usize,
        faults: &mut Vec<Fault>,
    ) {
        let Some(own) = self.own.take() else {
            return;
        };
        let mut changes = Changes::default();
        if own.len() == 0 {
            changes.expect(target.overlapping(self.section).len());
        }
        let new = target.within(self.section);
        match renewed {
            None => changes.add(own.as_slice().iter().copied(), new),
            Some(renewed) => {
                let old = own.as_slice().iter();
                changes.add(old.flat_map(|run| marked(run, renewed)), new);
            }
        }
        let is_all = changes.limit(self.resume, most.saturating_sub(own.len()));
        let batch = changes.into_batch();
        match self.tell(&batch, faults) {
            Some(done) => self.own = Some(after(own, &done)),
            None if !is_all => self.own = Some(after(own, &batch)),
            None => {
                self.resume = Iova(0);
                self.told.retain(|told| told.rights == Rights::NONE);
                self.refusal = None;
            }
        }
    }

    /// Takes everything from it.
    pub(crate) fn clear(&mut self, known: &Runs) {
        self.own = Some(self.view(known));
        self.settle(&Runs::default(), None, usize::MAX, &mut Vec::new());
    }

    /// What it lacks.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.refusal.or(self.missed)
    }

    /// These parts of its domain are beyond a limit, and not followed.
    pub(crate) fn miss(&mut self, missed: &Spans, faults: &mut Vec<Fault>) {
        self.missed = None;
        for span in missed.within(self.section) {
            let errno = crate::ENOSPC;
            self.missed.get_or_insert(Failure { span, errno });
            let nothing = Mapping {
                span,
                output: 0,
                rights: Rights::NONE,
            };
            self.report(nothing, faults);
        }
    }

    /// Hands over a batch, unmaps first. `None` if all of it is in force, else
    /// what is.
    fn tell(&mut self, batch: &[Change], faults: &mut Vec<Fault>) -> Option<Vec<Change>> {
        if batch.is_empty() {
            return None;
        }
        let refused = self.hand_over(batch)?;
        self.refusal = None;
        let unmaps = batch.partition_point(|change| matches!(change, Change::Unmap(_)));
        let (unmaps, maps) = batch.split_at_checked(unmaps).unwrap_or_default();
        let mut done = Vec::new();
        if let Some(applied) = refused.applied.checked_sub(unmaps.len()) {
            done.extend_from_slice(unmaps);
            let refused = Partial { applied, ..refused };
            self.insist(maps, Some(refused), &mut done, faults);
        } else {
            let stuck = self.insist(unmaps, Some(refused), &mut done, faults);
            let maps = without(maps, &stuck);
            self.insist(&maps, None, &mut done, faults);
        }
        Some(done)
    }

    /// One call of the listener. `None` if all of `changes` are in force.
    fn hand_over(&self, changes: &[Change]) -> Option<Partial> {
        let result = self.listener.apply(changes);
        trace::batch(self, changes, result);
        result
            .err()
            .filter(|partial| partial.applied < changes.len())
    }

    /// Hands over `changes`, of which the first was refused if there is a
    /// `refusal`, and goes on behind each that is refused. Adds to `done` what
    /// is in force; the rest.
    #[cold]
    fn insist(
        &mut self,
        changes: &[Change],
        refusal: Option<Partial>,
        done: &mut Vec<Change>,
        faults: &mut Vec<Fault>,
    ) -> Vec<Span<Iova>> {
        let mut stuck = Vec::new();
        let mut rest = changes;
        let mut refusal = match refusal {
            None if !rest.is_empty() => self.hand_over(rest),
            refusal => refusal,
        };
        let mut refusals = 0_usize;
        while let Some(partial) = refusal {
            let (before, behind) = rest
                .split_at_checked(partial.applied)
                .unwrap_or((rest, &[]));
            done.extend_from_slice(before);
            rest = behind;
            let Some((refused, behind)) = rest.split_first() else {
                break;
            };
            self.refuse(refused, partial.errno, faults);
            stuck.push(span(refused));
            rest = behind;
            refusals = if before.is_empty() {
                refusals.saturating_add(1)
            } else {
                1
            };
            if refusals >= MAX_REFUSALS {
                stuck.extend(rest.iter().map(span));
                return stuck;
            }
            refusal = if rest.is_empty() {
                None
            } else {
                self.hand_over(rest)
            };
        }
        done.extend_from_slice(rest);
        stuck
    }

    /// The listener did not take `change`.
    fn refuse(&mut self, change: &Change, errno: i32, faults: &mut Vec<Fault>) {
        let span = span(change);
        self.refusal.get_or_insert(Failure { span, errno });
        if let Change::Map(mapping) = change {
            self.report(*mapping, faults);
            self.resume = span.last().checked_add(1).unwrap_or(Iova(0));
        }
    }

    /// The guest is told of a mapping that is missing, once.
    fn report(&mut self, missing: Mapping, faults: &mut Vec<Fault>) {
        if self.told.contains(&missing) {
            return;
        }
        if self.told.len() >= MAX_TOLD {
            self.told.remove(0);
        }
        self.told.push(missing);
        let is_written = missing.rights.can_write();
        faults.push(Fault {
            source_id: self.source,
            span: missing.span,
            access: if is_written {
                Access::Write
            } else {
                Access::Read
            },
            reason: FaultReason::NotMapped,
            walk: None,
            recoverable: false,
        });
    }
}

/// The pieces of `run`; those that lead to `renewed` with rights that no
/// mapping has, so that they equal nothing.
fn marked(run: &Mapping, renewed: Span<Gpa>) -> impl Iterator<Item = Mapping> + use<> {
    let run = *run;
    let from = renewed.first().0.max(run.output);
    let last = run.output.saturating_add(run.span.last_offset());
    let bytes = renewed.last().0.min(last).checked_sub(from);
    let leads = bytes.and_then(|bytes| {
        let skipped = from.wrapping_sub(run.output);
        let first = run.span.first().checked_add(skipped)?;
        Span::new(first, first.checked_add(bytes)?)
    });
    let inside = leads.and_then(|leads| clip(&run, &leads));
    let inside = inside.map(|inside| Mapping {
        rights: Rights::NONE,
        ..inside
    });
    let outside = spans::cut(run.span, leads.as_slice());
    let outside = outside
        .into_iter()
        .filter_map(move |part| clip(&run, &part));
    let mut pieces: Vec<_> = outside.chain(inside).collect();
    pieces.sort_unstable_by_key(|piece| piece.span.first());
    pieces.into_iter()
}

/// `maps` where nothing of `stuck`, which is sorted, is mapped still.
fn without(maps: &[Change], stuck: &[Span<Iova>]) -> Vec<Change> {
    let mut left = Vec::with_capacity(maps.len());
    for change in maps {
        if let Change::Map(mapping) = change {
            let parts = spans::cut(mapping.span, stuck);
            let parts = parts.iter().filter_map(|part| clip(mapping, part));
            left.extend(parts.map(Change::Map));
        }
    }
    left
}

/// What is mapped after `done`, whose unmaps come first and are sorted.
fn after(mut view: Runs, done: &[Change]) -> Runs {
    let unmapped = done.iter().filter_map(|change| match change {
        Change::Unmap(span) => Some(*span),
        Change::Map(_) => None,
    });
    view.remove(&unmapped.collect::<Vec<_>>());
    view.insert(done.iter().filter_map(|change| match change {
        Change::Map(mapping) => Some(*mapping),
        Change::Unmap(_) => None,
    }));
    view
}
