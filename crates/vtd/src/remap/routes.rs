//! Routes: messages whose remapping somebody keeps, such as a virtual machine's
//! route from an eventfd, and who is told when it changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use iogate_dma::{Message, RequesterId};

use super::Remapped;
use crate::Vtd;
use crate::spec::interrupt::Format;

/// Who keeps what a message is remapped to.
pub trait Route: Send + Sync {
    /// The message is this one now. `None`: it is blocked or posted, so that
    /// each has to go through [`Vtd::send_msi`].
    ///
    /// Called when the route is made and whenever that changes, before the
    /// guest is told that the change is done. No lock of the unit is held
    /// but the route's own: it may not make or drop this very route.
    fn routed(&self, to: Option<Message>);
}

/// Routes by the index that their message asks for; those that ask for none,
/// or for one beyond every table, by [`NO_INDEX`].
#[derive(Default)]
pub(super) struct Routes(Mutex<BTreeMap<u32, Vec<Arc<Kept>>>>);

const NO_INDEX: u32 = u32::MAX;

/// One route.
struct Kept {
    source: RequesterId,
    message: Message,
    route: Arc<dyn Route>,
    /// What was told last. Held while it is found out and told, so that the
    /// last to tell tells the newest.
    told: Mutex<Option<Option<Message>>>,
}

/// A route that is kept true until this is dropped.
#[must_use = "a route is forgotten when this is dropped"]
pub struct Routed {
    unit: Weak<Vtd>,
    index: u32,
    kept: Arc<Kept>,
}

impl Routes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Vec<Arc<Kept>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vtd {
    /// Has `route` told what `message` of `source` is remapped to, now and
    /// whenever the guest changes it: by invalidating the very entry, or by
    /// what concerns all.
    pub fn route(
        self: &Arc<Self>,
        source: RequesterId,
        message: Message,
        route: Arc<dyn Route>,
    ) -> Routed {
        let index = match Format::of(message) {
            Format::Remappable { index, .. } if index <= 0xffff => index,
            _ => NO_INDEX,
        };
        let kept = Arc::new(Kept {
            source,
            message,
            route,
            told: Mutex::default(),
        });
        // First it can be told, then it is: a change between is not lost.
        let mut routes = self.remapping.routes.lock();
        routes.entry(index).or_default().push(Arc::clone(&kept));
        drop(routes);
        self.tell(&kept);
        Routed {
            unit: Arc::downgrade(self),
            index,
            kept,
        }
    }

    /// Tells the routes with these indices what has changed for them.
    pub(super) fn tell_routes(&self, first: u32, last: u32) {
        let routes = self.remapping.routes.lock();
        let concerned: Vec<Arc<Kept>> = routes
            .range(first..=last)
            .flat_map(|(_, routes)| routes.iter().map(Arc::clone))
            .collect();
        drop(routes);
        for kept in concerned {
            self.tell(&kept);
        }
    }

    fn tell(&self, kept: &Kept) {
        let mut told = kept.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match self.remap(kept.source, kept.message) {
            Ok(Remapped::Message(message)) => Some(message),
            _ => None,
        };
        if *told != Some(now) {
            kept.route.routed(now);
            *told = Some(now);
        }
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        let Some(unit) = self.unit.upgrade() else {
            return;
        };
        let mut routes = unit.remapping.routes.lock();
        if let Some(of_index) = routes.get_mut(&self.index) {
            of_index.retain(|kept| !Arc::ptr_eq(kept, &self.kept));
            if of_index.is_empty() {
                routes.remove(&self.index);
            }
        }
    }
}
