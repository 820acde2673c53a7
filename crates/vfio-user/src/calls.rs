//! Requests that wait for their replies, by the ids that they were sent with.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use rustix::io::Errno;

use crate::error::Error;
use crate::stream::Message;
use crate::wire::{Command, flags};

/// Ids are not used again at once, so that a late second reply hits nothing.
const SPARE: usize = 64;

/// What came back for a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
    pub(crate) files: Vec<OwnedFd>,
}

enum Slot {
    Free,
    /// Sent; the thread to wake when the answer is there.
    Waiting(Command, Option<Thread>),
    Answered(Result<Answer, Error>),
    /// Nobody wants the answer any more, but it may still come.
    Abandoned,
}

#[derive(Default)]
struct Inner {
    slots: Vec<Slot>,
    free: VecDeque<u16>,
    closed: bool,
}

/// The requests of one connection that are not answered yet.
#[derive(Default)]
pub(crate) struct Calls(Mutex<Inner>);

/// What a reply says, once its flags are looked at.
pub(crate) fn result(command: Command, message: &Message<'_>) -> Result<(), Error> {
    if message.header.command != command.number() {
        let what = "it is the answer to something else";
        return Err(Error::Answer { command, what });
    }
    if message.header.flags & flags::ERROR == 0 {
        return Ok(());
    }
    let errno = i32::try_from(message.header.error).unwrap_or_default();
    let errno = if (1..4096).contains(&errno) {
        Errno::from_raw_os_error(errno)
    } else {
        Errno::IO
    };
    Err(Error::Refused { command, errno })
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An id for a request that is about to be sent.
    pub(crate) fn begin(&self, command: Command) -> Result<u16, Error> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(Error::Disconnected);
        }
        let id = if inner.slots.len() < SPARE || inner.free.is_empty() {
            let id = u16::try_from(inner.slots.len()).map_err(|_| Errno::AGAIN)?;
            inner.slots.push(Slot::Free);
            id
        } else {
            inner.free.pop_front().unwrap_or_default()
        };
        if let Some(slot) = inner.slots.get_mut(usize::from(id)) {
            *slot = Slot::Waiting(command, None);
        }
        Ok(id)
    }

    fn release(inner: &mut Inner, id: u16) -> Slot {
        let Some(slot) = inner.slots.get_mut(usize::from(id)) else {
            return Slot::Free;
        };
        let was = std::mem::replace(slot, Slot::Free);
        inner.free.push_back(id);
        was
    }

    /// The request was not sent.
    pub(crate) fn cancel(&self, id: u16) {
        Self::release(&mut self.lock(), id);
    }

    /// The request was sent and nobody waits for it any more.
    pub(crate) fn abandon(&self, id: u16) {
        let mut inner = self.lock();
        match inner.slots.get_mut(usize::from(id)) {
            Some(slot @ Slot::Waiting(..)) => *slot = Slot::Abandoned,
            Some(Slot::Answered(_)) => drop(Self::release(&mut inner, id)),
            _ => {}
        }
    }

    /// The answer, if it is there; otherwise `thread` is woken when it comes.
    pub(crate) fn take(&self, id: u16, thread: &Thread) -> Option<Result<Answer, Error>> {
        let mut inner = self.lock();
        match inner.slots.get_mut(usize::from(id)) {
            Some(Slot::Waiting(_, waker)) => {
                if waker.is_none() {
                    *waker = Some(thread.clone());
                }
                None
            }
            Some(Slot::Answered(_)) => match Self::release(&mut inner, id) {
                Slot::Answered(answer) => Some(answer),
                _ => None,
            },
            _ => Some(Err(Error::Disconnected)),
        }
    }

    /// A reply with the id of `id` is in the hand of who waits for it.
    pub(crate) fn finish(&self, id: u16) {
        self.cancel(id);
    }

    /// Hands a reply to who waits for it. A reply that nobody waits for is
    /// dropped, its descriptors closed.
    pub(crate) fn answer(&self, message: &mut Message<'_>) {
        let id = message.header.id;
        let mut inner = self.lock();
        let Some(slot) = inner.slots.get_mut(usize::from(id)) else {
            return;
        };
        match slot {
            Slot::Waiting(command, waker) => {
                let waker = waker.take();
                let answer = result(*command, message).map(|()| Answer {
                    body: message.body.to_vec(),
                    files: std::mem::take(&mut message.files),
                });
                *slot = Slot::Answered(answer);
                drop(inner);
                if let Some(thread) = waker {
                    thread.unpark();
                }
            }
            Slot::Abandoned => drop(Self::release(&mut inner, id)),
            Slot::Free | Slot::Answered(_) => {}
        }
    }

    /// Wakes one thread that waits, so that it may read for all.
    pub(crate) fn wake_one(&self) {
        let inner = self.lock();
        let waiting = inner.slots.iter().find_map(|slot| match slot {
            Slot::Waiting(_, Some(thread)) => Some(thread.clone()),
            _ => None,
        });
        drop(inner);
        if let Some(thread) = waiting {
            thread.unpark();
        }
    }

    /// Nothing will be answered any more: whoever waits gets an error.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        let mut wake = Vec::new();
        for slot in &mut inner.slots {
            if let Slot::Waiting(_, waker) = slot {
                wake.extend(waker.take());
                *slot = Slot::Answered(Err(Error::Disconnected));
            }
        }
        drop(inner);
        for thread in wake {
            thread.unpark();
        }
    }
}
