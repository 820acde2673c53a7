//! How long a translation may be used: guards, and waiting for older ones.
//!
//! A worker enters the gate before it translates and leaves it when it has
//! used the result. Who takes a mapping away publishes the change, drops its
//! locks, and waits for the [`Grace`]: then no worker uses the old
//! translation any more. Entering and leaving are one store each, on a cache
//! line of the worker's own.

use std::sync::PoisonError;

#[cfg(loom)]
use loom::{
    sync::atomic::{AtomicU64, Ordering, fence},
    sync::{Arc, Mutex},
};
#[cfg(not(loom))]
use std::{
    sync::atomic::{AtomicU64, Ordering, fence},
    sync::{Arc, Mutex},
};

const OUTSIDE: u64 = 0;

/// One worker's state: the epoch at which it entered, or [`OUTSIDE`].
#[repr(align(128))]
struct Seat(AtomicU64);

/// The meeting point of workers and of those who take mappings away.
pub struct Gate {
    epoch: AtomicU64,
    seats: Mutex<Vec<Arc<Seat>>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            epoch: AtomicU64::new(1),
            seats: Mutex::new(Vec::new()),
        }
    }
}

impl Gate {
    /// A gate without workers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a worker. It leaves for good when the participant is dropped.
    #[cfg(not(loom))]
    pub fn join(self: &Arc<Self>) -> Participant {
        Self::admit(self)
    }

    /// [`join`](Self::join), in the form that loom's `Arc` allows.
    #[cfg(loom)]
    pub fn admit_for_loom(gate: &Arc<Self>) -> Participant {
        Self::admit(gate)
    }

    fn admit(gate: &Arc<Self>) -> Participant {
        let seat = Arc::new(Seat(AtomicU64::new(OUTSIDE)));
        let mut seats = gate.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.push(Arc::clone(&seat));
        drop(seats);
        Participant {
            gate: Arc::clone(gate),
            seat,
        }
    }

    /// What must pass before a change that is already published has reached
    /// every worker: the guards that are inside now.
    pub fn grace(&self) -> Grace {
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let older = seats
            .iter()
            .filter(|seat| is_older(seat, epoch))
            .map(Arc::clone)
            .collect();
        Grace { epoch, older }
    }
}

fn is_older(seat: &Seat, epoch: u64) -> bool {
    let entered = seat.0.load(Ordering::SeqCst);
    entered != OUTSIDE && entered <= epoch
}

/// A worker's place at the gate.
pub struct Participant {
    gate: Arc<Gate>,
    seat: Arc<Seat>,
}

impl Participant {
    /// Enters: what is translated under the guard stays usable until it is
    /// dropped.
    pub fn enter(&mut self) -> InFlight<'_> {
        let epoch = self.gate.epoch.load(Ordering::SeqCst);
        self.seat.0.store(epoch, Ordering::SeqCst);
        // Without this a translation could read the old mapping before the
        // seat is seen as taken.
        fence(Ordering::SeqCst);
        InFlight {
            seat: &self.seat,
            leaves: true,
        }
    }

    /// Enters for as long as the result lives: for a holder that cannot borrow
    /// its participant.
    pub fn stay(mut self) -> Stay {
        let mut guard = self.enter();
        guard.leaves = false;
        drop(guard);
        Stay { participant: self }
    }
}

/// A worker that is inside until this is dropped.
pub struct Stay {
    participant: Participant,
}

impl Stay {
    /// A guard of the stay, which does not end with it.
    pub fn guard(&self) -> InFlight<'_> {
        InFlight {
            seat: &self.participant.seat,
            leaves: false,
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.participant.seat.0.store(OUTSIDE, Ordering::SeqCst);
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        let mut seats = self
            .gate
            .seats
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| !Arc::ptr_eq(seat, &self.seat));
    }
}

/// A worker is between translation and use.
pub struct InFlight<'p> {
    seat: &'p Seat,
    /// Whether the worker leaves with this guard.
    leaves: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.leaves {
            self.seat.0.store(OUTSIDE, Ordering::SeqCst);
        }
    }
}

/// The guards that were inside when a change was published.
#[must_use = "a change has reached every worker only when its grace has passed"]
pub struct Grace {
    epoch: u64,
    older: Vec<Arc<Seat>>,
}

impl Grace {
    /// Whether the last of them has left.
    pub fn has_passed(&mut self) -> bool {
        let epoch = self.epoch;
        self.older.retain(|seat| is_older(seat, epoch));
        self.older.is_empty()
    }

    /// Waits until the last of them has left. Never call it with a guard of
    /// one's own or with a lock that a worker needs.
    pub fn wait(mut self) {
        let mut rounds = 0_u32;
        while !self.has_passed() {
            rounds = rounds.saturating_add(1);
            pause(rounds);
        }
    }
}

#[cfg(loom)]
fn pause(_: u32) {
    loom::thread::yield_now();
}

#[cfg(not(loom))]
fn pause(rounds: u32) {
    match rounds {
        0..64 => std::hint::spin_loop(),
        64..1024 => std::thread::yield_now(),
        _ => std::thread::sleep(std::time::Duration::from_micros(50)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_grace_waits_for_older_guards_only() {
        let gate = Arc::new(Gate::new());
        let (mut a, mut b) = (gate.join(), gate.join());
        let older = a.enter();
        let mut grace = gate.grace();
        let younger = b.enter();
        assert!(!grace.has_passed());
        drop(older);
        assert!(grace.has_passed());
        drop(younger);
    }

    #[test]
    fn a_stay_is_waited_for_until_it_ends() {
        let gate = Arc::new(Gate::new());
        let stay = gate.join().stay();
        drop(stay.guard());
        let mut grace = gate.grace();
        assert!(!grace.has_passed());
        drop(stay);
        assert!(grace.has_passed());
    }

    #[test]
    fn a_grace_without_guards_has_passed() {
        let gate = Arc::new(Gate::new());
        let _idle = gate.join();
        assert!(gate.grace().has_passed());
    }

    #[test]
    fn a_worker_that_re_enters_counts_as_younger() {
        let gate = Arc::new(Gate::new());
        let mut worker = gate.join();
        let first = worker.enter();
        let mut grace = gate.grace();
        drop(first);
        let _second = worker.enter();
        assert!(grace.has_passed());
    }
}
