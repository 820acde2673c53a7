//! Keeps a worker out of its quanta while its function is at rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iogate_pci::StillWorking;

/// How long a quantum may go on that a function at rest waits for. Quanta end
/// early when asked; one that does not waits for its client's memory.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a worker may work, and whether it does.
#[derive(Default)]
pub(crate) struct Rest {
    inside: Mutex<bool>,
    left: Condvar,
    asked: AtomicBool,
}

/// The worker is in a quantum for as long as this exists.
pub(crate) struct Inside<'r>(&'r Rest);

impl Rest {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a quantum; `None` while the function is at rest.
    pub(crate) fn enter(&self) -> Option<Inside<'_>> {
        let mut inside = self.lock();
        if self.is_asked() {
            return None;
        }
        *inside = true;
        Some(Inside(self))
    }

    /// Whether a quantum should end soon.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Begins the rest: the worker is out, and stays out.
    pub(crate) fn begin(&self) -> Result<(), StillWorking> {
        let inside = self.lock();
        self.asked.store(true, Ordering::SeqCst);
        let waited = self
            .left
            .wait_timeout_while(inside, PATIENCE, |inside| *inside);
        let (inside, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *inside {
            self.asked.store(false, Ordering::SeqCst);
            return Err(StillWorking);
        }
        Ok(())
    }

    /// Ends the rest.
    pub(crate) fn end(&self) {
        let _inside = self.lock();
        self.asked.store(false, Ordering::SeqCst);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_rest_begins_when_the_worker_has_left_and_keeps_it_out() {
        let rest = Arc::new(Rest::default());
        let inside = rest.enter().unwrap();
        let theirs = Arc::clone(&rest);
        let begun = std::thread::spawn(move || theirs.begin());
        while !rest.is_asked() {
            std::thread::yield_now();
        }
        assert!(!begun.is_finished());
        drop(inside);
        assert_eq!(begun.join().unwrap(), Ok(()));
        assert!(rest.enter().is_none());
        rest.end();
        assert!(rest.enter().is_some());
    }
}
