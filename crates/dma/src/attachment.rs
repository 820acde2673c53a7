//! What a device is attached to at the moment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Fault, FaultReason, InFlight, Outcome, Pasid, Request, Translate, WriteLog};

/// The address space that a function's requests enter, replaced by whoever
/// manages the function and read by its [`Port`](crate::Port).
///
/// A reader pays one atomic load while nothing changes. After a
/// [`set`](Self::set), wait for a [`Grace`](crate::Grace) before the old space
/// may be taken apart.
#[derive(Default)]
pub struct Attachment {
    version: AtomicU64,
    space: Mutex<Option<Arc<dyn Translate>>>,
    log: Mutex<Option<Arc<WriteLog>>>,
    link: Option<Link>,
    /// For a function that sends PASIDs: what its requests enter.
    by_pasid: Option<Mutex<ByPasid>>,
}

/// The spaces of a function that sends PASIDs. A request with a PASID never
/// enters the space of those without.
#[derive(Clone, Default)]
struct ByPasid {
    own: Option<Arc<dyn Translate>>,
    others: BTreeMap<Pasid, Arc<dyn Translate>>,
}

impl Translate for ByPasid {
    fn translate<'g>(
        &'g self,
        guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        let space = match request.source.pasid {
            None => self.own.as_ref(),
            Some(pasid) => self.others.get(&pasid),
        };
        let space = space.ok_or(Fault {
            source_id: request.source,
            span: request.span,
            access: request.access,
            reason: match request.source.pasid {
                None => FaultReason::Blocked,
                Some(_) => FaultReason::NoPasid,
            },
            walk: None,
            recoverable: false,
        })?;
        space.translate(guard, request)
    }
}

/// What makes a further link of the chain before an address space.
type Link = Box<dyn Fn(Arc<dyn Translate>) -> Arc<dyn Translate> + Send + Sync>;

impl Attachment {
    /// Attached to nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Attached to nothing; requests pass what `link` makes of a space before
    /// they enter that space.
    pub fn through(
        link: impl Fn(Arc<dyn Translate>) -> Arc<dyn Translate> + Send + Sync + 'static,
    ) -> Self {
        Self {
            link: Some(Box::new(link)),
            ..Self::default()
        }
    }

    /// For a function that sends PASIDs: a space for each of them can be set,
    /// and requests with one that has none are refused.
    pub fn with_pasids(self) -> Self {
        Self {
            by_pasid: Some(Mutex::default()),
            ..self
        }
    }

    /// Attaches to `space`, or to nothing, what comes without a PASID.
    pub fn set(&self, space: Option<Arc<dyn Translate>>) {
        match &self.by_pasid {
            None => self.publish(space),
            Some(_) => self.change(|spaces| spaces.own = space),
        }
    }

    /// Attaches to `space`, or to nothing, what comes with `pasid`. Without
    /// [`with_pasids`](Self::with_pasids) nothing happens.
    pub fn set_pasid(&self, pasid: Pasid, space: Option<Arc<dyn Translate>>) {
        self.change(|spaces| match space {
            Some(space) => drop(spaces.others.insert(pasid, space)),
            None => drop(spaces.others.remove(&pasid)),
        });
    }

    /// Changes the spaces by PASID and publishes a copy, which readers need
    /// not lock.
    fn change(&self, change: impl FnOnce(&mut ByPasid)) {
        let Some(spaces) = &self.by_pasid else {
            return;
        };
        let mut spaces = spaces.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut spaces);
        let is_empty = spaces.own.is_none() && spaces.others.is_empty();
        self.publish(
            Some(Arc::new(spaces.clone()))
                .filter(|_| !is_empty)
                .map(|all| all as _),
        );
    }

    fn publish(&self, space: Option<Arc<dyn Translate>>) {
        let space = match &self.link {
            Some(link) => space.map(link),
            None => space,
        };
        let mut held = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        *held = space;
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Has what the function writes marked in `log`, or in none. After a
    /// [`Grace`](crate::Grace) every write is.
    pub fn set_log(&self, log: Option<Arc<WriteLog>>) {
        let mut held = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        *held = log;
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Where writes are marked.
    pub fn log(&self) -> Option<Arc<WriteLog>> {
        let held = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    /// A number that changes with every [`set`](Self::set) and
    /// [`set_log`](Self::set_log).
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// The version and what is attached at it.
    pub fn get(&self) -> (u64, Option<Arc<dyn Translate>>) {
        let held = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        (self.version(), held.clone())
    }
}
