//! A unit's domains and who follows them: each invalidation becomes one turn.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_dma::{
    Fault, Gpa, GuestDomains, Invalidated, Iova, Listener, Observer, Scope, Source, Span,
};

use crate::domain::Domain;
use crate::follower::{DomainId, Follower};
use crate::runs::Runs;
use crate::spans::Spans;
use crate::{Following, Section, trace};

/// What a guest can make a shadow keep and read. What is beyond a limit counts
/// as not mapped, is reported to the guest as a fault, and is looked at again
/// at every turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Runs of a domain: contiguous pieces of input with contiguous output. A
    /// run takes 32 bytes in the shadow.
    pub runs: usize,
    /// Pieces of tables that are read for one span that was invalidated, as
    /// [`GuestDomains::scan`] counts them.
    pub tables: usize,
}

impl Default for Limits {
    /// 262,144 of each: 1 GiB in scattered pages of 4 KiB, 512 GiB in pages of
    /// 4 KiB at all.
    fn default() -> Self {
        Self {
            runs: 1 << 18,
            tables: 1 << 18,
        }
    }
}

/// Why a source cannot be followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The listener follows here already: it would be told of two mappings of
    /// one address.
    #[error("the listener is told of {0} already")]
    Overlaps(Span<Iova>),
}

/// What a listener lacks of what its guest maps, or has still of what it does
/// not map any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The first that was refused.
    pub span: Span<Iova>,
    /// Why, as an errno of Linux; ENOSPC if a limit of the shadow was reached.
    pub errno: i32,
}

/// The domains of a unit's guest, followed into listeners.
///
/// All methods may be called from any thread at any time, but not by a
/// [`Listener::apply`] and not inside of a gate. Turns exclude each other: a
/// listener that takes its time delays the invalidation that is under way, and
/// who follows, replays or drops a [`Following`] meanwhile. Translation never
/// waits for it.
pub struct Shadow {
    unit: Arc<dyn GuestDomains>,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    followers: Vec<Follower>,
    domains: BTreeMap<DomainId, Domain>,
    next: u64,
}

impl Shadow {
    /// The shadow of `unit`, with the default limits. Two shadows of one unit
    /// share nothing.
    pub fn of(unit: Arc<dyn GuestDomains>) -> Arc<Self> {
        Self::with_limits(unit, Limits::default())
    }

    /// The shadow of `unit`.
    pub fn with_limits(unit: Arc<dyn GuestDomains>, limits: Limits) -> Arc<Self> {
        let shadow = Arc::new(Self {
            unit,
            limits,
            state: Mutex::default(),
        });
        let observer: Arc<dyn Observer> = Arc::<Self>::clone(&shadow);
        shadow.unit.observe(Arc::downgrade(&observer));
        shadow
    }

    /// Has `listener` follow what `source` can reach in `section`, until the
    /// result is dropped. It is told of everything mapped there before this
    /// returns; of what it does not take then as always: the guest is told,
    /// and it is tried again.
    ///
    /// # Errors
    /// If the listener is told of a part of the section by another following.
    pub fn follow(
        self: &Arc<Self>,
        source: impl Into<Source>,
        section: impl Into<Section>,
        listener: Arc<dyn Listener>,
    ) -> Result<Following, FollowError> {
        let section = section.into().span();
        let mut state = self.lock();
        let same =
            |other: &&Follower| ptr::addr_eq(Arc::as_ptr(&other.listener), Arc::as_ptr(&listener));
        let mut others = state.followers.iter().filter(same);
        if let Some(both) = others.find_map(|other| other.section.intersection(&section)) {
            return Err(FollowError::Overlaps(both));
        }
        let id = state.next;
        state.next = id.wrapping_add(1);
        let mut follower = Follower::new(id, source.into(), section, listener);
        enter(&mut follower, &*self.unit, &mut state.domains);
        state.followers.push(follower);
        self.finish(state, id, None);
        Ok(Following {
            shadow: Arc::clone(self),
            id,
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what was begun for the follower `id` with a turn.
    pub(crate) fn finish(
        &self,
        mut state: MutexGuard<'_, State>,
        id: u64,
        renewed: Option<Span<Gpa>>,
    ) {
        let mut faults = Vec::new();
        state.turn(&*self.unit, self.limits, &[], (id, renewed), &mut faults);
        if let Some(follower) = state.followers.iter().find(|one| one.id == id) {
            trace::replay(follower);
        }
        drop(state);
        self.report(&faults);
    }

    fn report(&self, faults: &[Fault]) {
        for fault in faults {
            self.unit.report(fault);
        }
    }
}

impl Observer for Shadow {
    fn invalidated(&self, batch: &[Invalidated]) {
        let mut faults = Vec::new();
        let nobody = (u64::MAX, None);
        self.lock()
            .turn(&*self.unit, self.limits, batch, nobody, &mut faults);
        self.report(&faults);
    }
}

impl State {
    /// Brings every listener to what the tables say, where `batch` or an
    /// earlier turn says that they may say something else. The mappings of one
    /// follower that lead to some outputs are renewed.
    fn turn(
        &mut self,
        unit: &dyn GuestDomains,
        limits: Limits,
        batch: &[Invalidated],
        (id, renewed): (u64, Option<Span<Gpa>>),
        faults: &mut Vec<Fault>,
    ) {
        let State {
            followers, domains, ..
        } = self;
        for follower in followers.iter_mut() {
            follower.is_rested = false;
            let domain = follower.domain.and_then(|id| domains.get(&id));
            let again = domain.is_some_and(|domain| !domain.again.is_empty());
            if again || batch.iter().any(|one| follower.is_meant(one.scope)) {
                enter(follower, unit, domains);
            }
        }
        for (id, domain) in domains.iter_mut() {
            let mut dirty = std::mem::take(&mut domain.again);
            let meant = batch
                .iter()
                .filter(|one| is_meant(*id, one.scope, followers));
            dirty.extend(meant.flat_map(|one| domain.followed(one.span)));
            if !dirty.is_empty() {
                look(*id, domain, dirty, followers, (unit, limits), faults);
            }
        }
        let most = limits.runs.saturating_mul(2);
        let nothing = Runs::default();
        for follower in followers.iter_mut() {
            let domain = follower.domain.and_then(|id| domains.get(&id));
            let target = domain.map_or(&nothing, |domain| &domain.known);
            let renewed = renewed.filter(|_| follower.id == id);
            if renewed.is_some() {
                follower.own = Some(follower.view(target));
            }
            if !follower.is_rested {
                follower.settle(target, renewed, most, faults);
            }
        }
        self.forget();
    }

    /// The follower with this id, and its domain.
    pub(crate) fn find(&mut self, id: u64) -> Option<(&mut Follower, Option<&mut Domain>)> {
        let follower = self.followers.iter_mut().find(|one| one.id == id)?;
        let domain = follower.domain.and_then(|id| self.domains.get_mut(&id));
        Some((follower, domain))
    }

    /// Removes the follower with this id.
    pub(crate) fn remove(&mut self, id: u64) {
        self.followers.retain(|one| one.id != id);
        self.forget();
    }

    /// Domains that nobody follows are no more known.
    fn forget(&mut self) {
        let followers = &self.followers;
        self.domains
            .retain(|id, _| followers.iter().any(|one| one.domain == Some(*id)));
    }
}

/// Whether `scope` is about the domain `id`.
fn is_meant(id: DomainId, scope: Scope, followers: &[Follower]) -> bool {
    match scope {
        Scope::Everything => true,
        Scope::Domain(number) => id.number == number,
        Scope::Entry(_) => {
            let mut inside = followers.iter().filter(|one| one.domain == Some(id));
            inside.any(|one| one.is_meant(scope))
        }
    }
}

/// The follower is in the domain that its source is in now; what it has stays
/// what it was.
fn enter(
    follower: &mut Follower,
    unit: &dyn GuestDomains,
    domains: &mut BTreeMap<DomainId, Domain>,
) {
    let now = unit.domain(follower.source).map(DomainId::from);
    if now == follower.domain {
        return;
    }
    trace::switch(follower.source, follower.domain, now);
    let before = follower.domain.and_then(|id| domains.get(&id));
    let nothing = Runs::default();
    let known = before.map_or(&nothing, |domain| &domain.known);
    follower.own = Some(follower.view(known));
    follower.domain = now;
    if let Some(id) = now {
        domains.entry(id).or_default().follow(follower.section);
    }
}

/// Looks at the tables of a domain once, by one of its sources, and tells its
/// followers.
fn look(
    id: DomainId,
    domain: &mut Domain,
    dirty: Spans,
    followers: &mut [Follower],
    (unit, limits): (&dyn GuestDomains, Limits),
    faults: &mut Vec<Fault>,
) {
    let mut inside = followers.iter().filter(|one| one.domain == Some(id));
    let seen = inside.find_map(|one| {
        let seen = domain.look(unit, one.source, &dirty, limits);
        // Else what was looked at may be the tables of another domain: its
        // entry was changed, and will be invalidated.
        let is_inside = unit.domain(one.source).map(DomainId::from) == Some(id);
        is_inside.then_some((one.source, seen))
    });
    let Some((source, seen)) = seen else {
        domain.again = dirty;
        return;
    };
    trace::scan(source, id, &dirty, &seen);
    let mut changes = None;
    for one in followers.iter_mut().filter(|one| one.domain == Some(id)) {
        one.miss(&seen.missed, faults);
        if one.own.is_none() && seen.is_news() {
            let changes = changes.get_or_insert_with(|| domain.changes(&seen));
            one.hear(changes, &domain.known, faults);
        }
    }
    domain.learn(seen);
}
