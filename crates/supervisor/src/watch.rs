//! The one thread that waits for what happens outside of noticed calls: ends
//! that are let go of, and eventfds that the client signals.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_host::{Event, Watch};
use rustix::event::EventfdFlags;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::eventfd::Eventfd;

/// Something that has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Happened {
    /// The end with this number was let go of.
    Released(u64),
    /// An eventfd was signalled.
    Signalled(Event),
    /// A second has passed.
    Tick,
}

/// Keys of watches have this bit, those of ends have not.
const WATCH: u64 = 1 << 63;
/// The key of the word to stop.
const STOP: u64 = u64::MAX;

type Watches = HashMap<u64, (Arc<Eventfd>, Event)>;

/// What is waited for.
pub(crate) struct Watcher {
    epoll: OwnedFd,
    watches: Mutex<Watches>,
    next: AtomicU64,
    stop: OwnedFd,
}

/// How often a wait that failed is tried again.
const PATIENCE: u32 = 16;

impl Watcher {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = rustix::event::eventfd(0, flags)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
        Ok(Self {
            epoll,
            stop,
            watches: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the other end of `peer` to be let go of, once; it is known as
    /// `end`.
    pub(crate) fn add_end(&self, end: u64, peer: impl AsFd) -> io::Result<()> {
        let flags = EventFlags::HUP | EventFlags::ONESHOT;
        let data = EventData::new_u64(end & !WATCH);
        Ok(epoll::add(&self.epoll, peer, data, flags)?)
    }

    /// Waits for an eventfd until the result is dropped.
    pub(crate) fn add_eventfd(
        self: &Arc<Self>,
        eventfd: Eventfd,
        event: Event,
    ) -> io::Result<Box<dyn Watch>> {
        let key = self.next.fetch_add(1, Ordering::Relaxed) | WATCH;
        let eventfd = Arc::new(eventfd);
        self.watches().insert(key, (Arc::clone(&eventfd), event));
        let watch = EventWatch {
            watcher: Arc::clone(self),
            eventfd,
            key,
        };
        let data = EventData::new_u64(key);
        epoll::add(&self.epoll, &*watch.eventfd, data, EventFlags::IN)?;
        Ok(Box::new(watch))
    }

    /// Ends [`run`](Self::run).
    pub(crate) fn stop(&self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }

    /// Waits for things to happen and tells `then` of them, until it is
    /// stopped.
    pub(crate) fn run(&self, mut then: impl FnMut(Happened)) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        let mut patience = PATIENCE;
        loop {
            events.clear();
            let room = rustix::buffer::spare_capacity(&mut events);
            let second = rustix::event::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            match epoll::wait(&self.epoll, room, Some(&second)) {
                Ok(0) => then(Happened::Tick),
                Ok(_) => patience = PATIENCE,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) if patience > 0 => patience = patience.saturating_sub(1),
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let key = event.data.u64();
                if key == STOP {
                    return Ok(());
                }
                if key & WATCH == 0 {
                    then(Happened::Released(key));
                    continue;
                }
                let watch = self.watches().get(&key).cloned();
                if let Some((eventfd, event)) = watch
                    && eventfd.take()
                {
                    then(Happened::Signalled(event));
                }
            }
        }
    }
}

struct EventWatch {
    watcher: Arc<Watcher>,
    eventfd: Arc<Eventfd>,
    key: u64,
}

impl Watch for EventWatch {}

impl Drop for EventWatch {
    fn drop(&mut self) {
        // The client holds the same open file, which would stay registered.
        let _ = epoll::delete(&self.watcher.epoll, &*self.eventfd);
        self.watcher.watches().remove(&self.key);
    }
}
