//! Which signal a message or a line of a function reaches.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use iogate_dma::{Interrupts, Line, Message, Source};

use crate::Window;
use crate::line::LineState;

/// Something that can be signalled: an eventfd, a route of a virtual machine.
/// It must not block, and must not call the [`Delivery`] that it is bound to.
pub trait Signal: Send + Sync {
    /// The interrupt has happened once more.
    fn signal(&self);
}

/// Why a vector cannot be bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BindError {
    /// No PCI function has this vector: MSI-X ends at 2047.
    #[error("vector {0} is beyond 2047")]
    Vector(u16),
}

/// Vectors of one function. PCI Local Bus 3.0 section 6.8.2.
const VECTORS: u16 = 2048;

/// Groups of functions that share a lock.
const SHARDS: usize = 64;

#[derive(Default)]
struct Route {
    vectors: Vec<Option<Arc<dyn Signal>>>,
    line: Mutex<LineState>,
}

impl Route {
    fn line(&self) -> MutexGuard<'_, LineState> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Shard(RwLock<BTreeMap<Source, Route>>);

impl Shard {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Source, Route>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Source, Route>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The interrupt controller of a machine, shared by all of its functions.
///
/// Messages are told apart by who sent them, as an IOMMU with interrupt
/// remapping does: two functions may use the same address and data. A message
/// that nobody bound is dropped and counted. When an unbind returns, the
/// signal is not signalled any more.
pub struct Delivery {
    window: Window,
    shards: Vec<Shard>,
    spurious: AtomicU64,
}

impl Delivery {
    /// Nothing bound; messages are writes into `window`.
    pub fn new(window: Window) -> Self {
        Self {
            window,
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            spurious: AtomicU64::new(0),
        }
    }

    /// The window that messages are written to.
    pub fn window(&self) -> Window {
        self.window
    }

    fn shard(&self, source: Source) -> Option<&Shard> {
        // Device and bus numbers of neighbours differ in the bits kept here.
        let key = source.requester.0 ^ source.requester.0 >> 8 ^ source.segment;
        self.shards.get(usize::from(key) % SHARDS)
    }

    /// Runs `change` on the route of `source`, which is made if there is none.
    fn change<T>(&self, source: Source, change: impl FnOnce(&mut Route) -> T) -> Option<T> {
        let mut routes = self.shard(source)?.write();
        Some(change(routes.entry(source).or_default()))
    }

    /// Binds `signal` to a vector, in place of what was bound, and gives the
    /// message that reaches it. The messages of a function's vectors 0, 1, 2…
    /// differ in the low bits of the data, as multiple-message MSI wants.
    pub fn bind(
        &self,
        source: Source,
        vector: u16,
        signal: Arc<dyn Signal>,
    ) -> Result<Message, BindError> {
        if vector >= VECTORS {
            return Err(BindError::Vector(vector));
        }
        let index = usize::from(vector);
        self.change(source, |route| {
            if route.vectors.len() <= index {
                route.vectors.resize(index.saturating_add(1), None);
            }
            if let Some(slot) = route.vectors.get_mut(index) {
                *slot = Some(signal);
            }
        });
        Ok(self.message_of(vector))
    }

    /// The message that reaches what is bound to `vector` of a function.
    pub fn message_of(&self, vector: u16) -> Message {
        Message {
            address: self.window.doorbell().0,
            data: vector.into(),
        }
    }

    /// Unbinds a vector, if it is bound.
    pub fn unbind(&self, source: Source, vector: u16) {
        self.change(source, |route| {
            if let Some(slot) = route.vectors.get_mut(usize::from(vector)) {
                *slot = None;
            }
        });
    }

    /// Unbinds every vector of a function. Its line stays bound.
    pub fn unbind_all(&self, source: Source) {
        self.change(source, |route| route.vectors.clear());
    }

    /// Binds the function's INTx line, or unbinds it with `None`. If the line
    /// is asserted, the signal is signalled at once.
    pub fn bind_line(&self, source: Source, signal: Option<Arc<dyn Signal>>) {
        self.change(source, |route| route.line().bind(signal));
    }

    /// Masks the function's line.
    pub fn mask(&self, source: Source) {
        self.change(source, |route| route.line().set_masked(true));
    }

    /// Unmasks the function's line: signals again if it is still asserted.
    pub fn unmask(&self, source: Source) {
        self.change(source, |route| route.line().set_masked(false));
    }

    /// Whether the function's line is masked, by [`mask`](Self::mask) or
    /// because it was signalled.
    pub fn line_masked(&self, source: Source) -> bool {
        self.look(source, |route| route.line().is_masked())
    }

    /// Whether the function asserts its line.
    pub fn line_asserted(&self, source: Source) -> bool {
        self.look(source, |route| route.line().is_asserted())
    }

    fn look(&self, source: Source, look: impl FnOnce(&Route) -> bool) -> bool {
        let routes = self.shard(source).map(Shard::read);
        routes.is_some_and(|routes| routes.get(&source).is_some_and(look))
    }

    /// Messages that were dropped because nobody bound them.
    pub fn spurious(&self) -> u64 {
        self.spurious.load(Ordering::Relaxed)
    }
}

impl Interrupts for Delivery {
    fn message(&self, source: Source, message: Message) {
        let delivered = self.window.contains(message.address)
            && self.look(source, |route| {
                let index = usize::try_from(message.data).ok();
                let bound = index.and_then(|index| route.vectors.get(index)?.as_ref());
                if let Some(signal) = bound {
                    signal.signal();
                }
                bound.is_some()
            });
        tracing::event!(
            name: "irq_fire",
            target: "iogate",
            tracing::Level::INFO,
            device = %source,
            vector = message.data,
            delivered,
        );
        if !delivered {
            self.spurious.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn line(&self, source: Source, line: Line) {
        tracing::event!(
            name: "irq_line",
            target: "iogate",
            tracing::Level::INFO,
            device = %source,
            asserted = line == Line::Asserted,
        );
        let known = self.look(source, |route| {
            route.line().set(line);
            true
        });
        if !known {
            // The first news of this function: its state must be there when
            // the line is bound.
            self.change(source, |route| route.line().set(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Counter(AtomicU64);
    impl Signal for Counter {
        fn signal(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    impl Counter {
        fn count(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn source(text: &str) -> Source {
        text.parse().unwrap()
    }

    fn counter() -> Arc<Counter> {
        Arc::default()
    }

    #[test]
    fn a_message_reaches_the_signal_bound_to_its_vector_of_its_source() {
        let delivery = Delivery::new(Window::X86);
        let (a, b) = (source("01:00.0"), source("02:00.0"));
        let (first, second, other) = (counter(), counter(), counter());
        let message = delivery.bind(a, 0, first.clone()).unwrap();
        let next = delivery.bind(a, 5, second.clone()).unwrap();
        delivery.bind(b, 0, other.clone()).unwrap();
        delivery.message(a, message);
        delivery.message(a, next);
        delivery.message(a, next);
        assert_eq!((first.count(), second.count(), other.count()), (1, 2, 0));
        assert_eq!(delivery.spurious(), 0);
    }

    #[test]
    fn what_nobody_bound_is_dropped_and_counted() {
        let delivery = Delivery::new(Window::X86);
        let (a, b) = (source("01:00.0"), source("02:00.0"));
        let signal = counter();
        let message = delivery.bind(a, 1, signal.clone()).unwrap();
        delivery.message(b, message);
        delivery.message(a, Message { data: 0, ..message });
        delivery.message(
            a,
            Message {
                data: u32::MAX,
                ..message
            },
        );
        delivery.message(
            a,
            Message {
                address: 0x1000,
                ..message
            },
        );
        delivery.unbind(a, 1);
        delivery.message(a, message);
        assert_eq!((signal.count(), delivery.spurious()), (0, 5));
        assert_eq!(delivery.bind(a, 2048, signal), Err(BindError::Vector(2048)));
    }

    #[test]
    fn a_line_is_signalled_once_and_again_after_unmask_while_asserted() {
        let delivery = Delivery::new(Window::X86);
        let (a, signal) = (source("01:00.0"), counter());
        delivery.bind_line(a, Some(signal.clone()));
        delivery.line(a, Line::Asserted);
        delivery.line(a, Line::Asserted);
        assert!(delivery.line_masked(a));
        assert_eq!(signal.count(), 1);
        delivery.unmask(a);
        assert_eq!(signal.count(), 2);
        delivery.line(a, Line::Deasserted);
        delivery.unmask(a);
        assert_eq!(signal.count(), 2);
        assert!(!delivery.line_masked(a));
    }

    #[test]
    fn a_masked_line_is_silent_until_unmasked() {
        let delivery = Delivery::new(Window::X86);
        let (a, signal) = (source("01:00.0"), counter());
        delivery.bind_line(a, Some(signal.clone()));
        delivery.mask(a);
        delivery.line(a, Line::Asserted);
        assert_eq!(signal.count(), 0);
        delivery.unmask(a);
        assert_eq!(signal.count(), 1);
    }

    #[test]
    fn a_line_asserted_before_it_is_bound_is_signalled_on_binding() {
        let delivery = Delivery::new(Window::X86);
        let (a, signal) = (source("01:00.0"), counter());
        delivery.line(a, Line::Asserted);
        delivery.bind_line(a, Some(signal.clone()));
        assert_eq!(signal.count(), 1);
        delivery.bind_line(a, None);
        delivery.unmask(a);
        assert_eq!(signal.count(), 1);
    }
}
