//! The one client that a function has at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use iogate_vfio_user::{Errno, Peer};

/// Where the client sits.
#[derive(Default)]
pub(crate) struct Seat {
    client: Mutex<Option<Arc<Peer>>>,
    /// Told when the client comes or goes, and by [`tell`](Self::tell).
    changed: Condvar,
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Peer>>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a client sit down; EBUSY if there is another one.
    pub(crate) fn take(&self, client: &Arc<Peer>) -> Result<(), Errno> {
        let mut held = self.lock();
        if held.is_some() {
            return Err(Errno::BUSY);
        }
        *held = Some(Arc::clone(client));
        drop(held);
        self.tell();
        Ok(())
    }

    /// Whether this is the client that sits.
    pub(crate) fn is(&self, client: &Peer) -> bool {
        let held = self.lock();
        held.as_ref().is_some_and(|held| held.id() == client.id())
    }

    /// The seat is free again.
    pub(crate) fn leave(&self) {
        *self.lock() = None;
        self.tell();
    }

    /// The client, if there is one.
    pub(crate) fn client(&self) -> Option<Arc<Peer>> {
        self.lock().clone()
    }

    /// Something about the function may have changed.
    pub(crate) fn tell(&self) {
        // Without this who waits could look before the change and sleep after
        // being told.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Waits for something to become true, at most until `end`.
    fn wait_until(&self, end: Instant, is_true: impl Fn(&Option<Arc<Peer>>) -> bool) -> bool {
        let mut held = self.lock();
        loop {
            if is_true(&held) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(held, left);
            (held, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until nobody sits here, at most until `end`; whether nobody does.
    pub(crate) fn wait_free(&self, end: Instant) -> bool {
        self.wait_until(end, Option::is_none)
    }

    /// Waits until `look` finds something, at most until `end`.
    pub(crate) fn wait_for<T>(&self, end: Instant, look: impl Fn() -> Option<T>) -> Option<T> {
        self.wait_until(end, |_| look().is_some());
        look()
    }
}
