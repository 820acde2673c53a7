//! What a device is attached to at the moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Translate, WriteLog};

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

    /// Attaches to `space`, or to nothing.
    pub fn set(&self, space: Option<Arc<dyn Translate>>) {
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
