//! One connection, used by many threads: requests go out from any of them, and
//! one of those that wait reads for all.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::answering::Answering;
use crate::calls::{Calls, result};
use crate::error::Error;
use crate::outbox::{Outbox, Unsent};
use crate::stream::{Cut, Message, Patience, Receiver};
use crate::wire::{Command, HEADER, Header, flags};

/// Commands that may wait for the thread that serves, while others read.
const BACKLOG: usize = 64;
/// Bytes of such commands.
const BACKLOG_BYTES: usize = 1 << 20;

/// A message that outlives the buffer it was read into.
pub(crate) struct Kept {
    header: Header,
    body: Vec<u8>,
    files: Vec<OwnedFd>,
}

impl Kept {
    fn of(message: &mut Message<'_>) -> Self {
        Self {
            header: message.header,
            body: message.body.to_vec(),
            files: std::mem::take(&mut message.files),
        }
    }

    fn message(self: &mut Kept) -> Message<'_> {
        Message {
            header: self.header,
            body: &self.body,
            files: std::mem::take(&mut self.files),
        }
    }
}

#[derive(Default)]
struct Backlog {
    commands: VecDeque<Kept>,
    bytes: usize,
    /// The thread that serves, while it waits for others to read.
    server: Option<Thread>,
}

/// Which end of the protocol a connection has here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// The other side is a client: its commands are kept for a thread that
    /// serves it.
    Server,
    /// The other side is a server: who waits for a reply serves its commands,
    /// and the socket itself ends a read that takes too long.
    Client,
}

/// One connection.
pub(crate) struct Channel {
    pub(crate) side: Side,
    pub(crate) outbox: Outbox,
    pub(crate) calls: Calls,
    receiver: Mutex<Receiver>,
    /// Threads that found another one reading.
    parked: AtomicUsize,
    backlog: Mutex<Backlog>,
    /// How long requests wait for their replies, and messages for the socket.
    pub(crate) timeout: Duration,
}

fn unsent(error: Unsent) -> Error {
    match error {
        Unsent::Closed | Unsent::NotReading => Error::Disconnected,
        Unsent::Failed(errno) => Error::System(errno),
    }
}

impl Channel {
    pub(crate) fn new(
        socket: OwnedFd,
        limit: usize,
        queue: usize,
        timeout: Duration,
        side: Side,
    ) -> Self {
        Self {
            outbox: Outbox::new(socket, queue),
            calls: Calls::default(),
            receiver: Mutex::new(Receiver::new(limit)),
            parked: AtomicUsize::new(0),
            backlog: Mutex::default(),
            timeout,
            side,
        }
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to read, if no other thread has it.
    fn reader(&self) -> Option<MutexGuard<'_, Receiver>> {
        match self.receiver.try_lock() {
            Ok(receiver) => Some(receiver),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The longest message that is taken from now on.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set_limit(limit);
    }

    /// Closes the connection and wakes everybody who waits for it.
    pub(crate) fn close(&self) {
        self.outbox.close();
        self.calls.close();
        let server = self.backlog().server.take();
        if let Some(server) = server {
            server.unpark();
        }
    }

    /// Has another thread read, after this one gave up the right to.
    fn pass_on(&self) {
        // Whoever parks counts itself before it tries for the right.
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) == 0 {
            return;
        }
        let server = self.backlog().server.take();
        match server {
            Some(server) => server.unpark(),
            None => self.calls.wake_one(),
        }
    }

    fn send(
        &self,
        header: &Header,
        body: &[&[u8]],
        files: &[BorrowedFd<'_>],
        keep: bool,
    ) -> Result<bool, Unsent> {
        let mut parts = [
            IoSlice::new(header.as_bytes()),
            IoSlice::new(&[]),
            IoSlice::new(&[]),
            IoSlice::new(&[]),
        ];
        for (part, bytes) in parts.iter_mut().skip(1).zip(body) {
            *part = IoSlice::new(bytes);
        }
        let used = parts
            .get(..body.len().saturating_add(1))
            .unwrap_or_default();
        self.outbox.post(used, files, keep)
    }

    fn command(
        &self,
        command: Command,
        id: u16,
        flags: u32,
        body: &[&[u8]],
        files: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let length: usize = body.iter().map(|part| part.len()).sum();
        let size = u32::try_from(length.saturating_add(HEADER)).map_err(|_| Errno::MSGSIZE)?;
        let header = Header {
            id,
            command: command.number(),
            size,
            flags: flags::COMMAND | flags,
            error: 0,
        };
        // The thread that serves sends the rest before it reads on; an answer
        // to one client does not wait for another client's socket.
        let serves = self.side == Side::Server && Answering::over(self);
        let keep = serves || self.side == Side::Client || !Answering::would_wait(self);
        let sent = self.send(&header, body, files, keep);
        let whole = sent.map_err(unsent)?;
        if !whole && !serves {
            let until = Instant::now()
                .checked_add(self.timeout)
                .ok_or(Errno::OVERFLOW)?;
            self.outbox.settle(until).map_err(unsent)?;
        }
        Ok(())
    }

    /// Sends a command that nobody answers. `body` has at most three parts.
    pub(crate) fn post(&self, command: Command, body: &[&[u8]]) -> Result<(), Error> {
        self.command(command, 0, flags::NO_REPLY, body, &[])
    }

    /// Sends a command whose reply [`wait`](Self::wait) waits for. `body` has
    /// at most three parts.
    pub(crate) fn submit(
        &self,
        command: Command,
        body: &[&[u8]],
        files: &[BorrowedFd<'_>],
    ) -> Result<u16, Error> {
        if Answering::would_wait(self) {
            return Err(Error::WithinAnswer { command });
        }
        let id = self.calls.begin(command)?;
        if let Err(error) = self.command(command, id, 0, body, files) {
            self.calls.cancel(id);
            if self.outbox.is_closed() {
                self.close();
            }
            return Err(error);
        }
        Ok(id)
    }

    /// Sends a reply: never waits.
    pub(crate) fn reply(
        &self,
        to: &Header,
        body: &[&[u8]],
        files: &[BorrowedFd<'_>],
    ) -> Result<(), Unsent> {
        let length: usize = body.iter().map(|part| part.len()).sum();
        let header = Header {
            id: to.id,
            command: to.command,
            size: u32::try_from(length.saturating_add(HEADER)).unwrap_or(u32::MAX),
            flags: flags::REPLY,
            error: 0,
        };
        self.send(&header, body, files, true).map(drop)
    }

    /// Says that a command failed: never waits.
    pub(crate) fn refuse(&self, to: &Header, errno: Errno) -> Result<(), Unsent> {
        let header = Header {
            id: to.id,
            command: to.command,
            size: u32::try_from(HEADER).unwrap_or_default(),
            flags: flags::REPLY | flags::ERROR,
            error: errno.raw_os_error().unsigned_abs(),
        };
        self.send(&header, &[], &[], true).map(drop)
    }

    fn patience(&self, until: Instant) -> Patience {
        match self.side {
            Side::Client => Patience::Socket,
            Side::Server => Patience::Until(until),
        }
    }

    /// Waits for the reply to `id` and gives it to `then`. Commands of the
    /// other side that come meanwhile go to `other`; `false` from it ends the
    /// reading on this thread.
    pub(crate) fn wait<R>(
        &self,
        id: u16,
        command: Command,
        until: Instant,
        mut other: impl FnMut(&mut Message<'_>) -> bool,
        then: impl FnOnce(&mut Message<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let thread = std::thread::current();
        let result = loop {
            let Some(mut receiver) = self.reader() else {
                self.parked.fetch_add(1, Ordering::SeqCst);
                let answer = self.calls.take(id, &thread);
                if answer.is_none() && self.reader().is_none() {
                    let left = until.saturating_duration_since(Instant::now());
                    if !left.is_zero() {
                        std::thread::park_timeout(left);
                    }
                }
                self.parked.fetch_sub(1, Ordering::SeqCst);
                if let Some(answer) = answer.or_else(|| self.calls.take(id, &thread)) {
                    break self.give(answer, then);
                }
                if Instant::now() >= until {
                    self.calls.abandon(id);
                    break Err(Error::Timeout { command });
                }
                continue;
            };
            if let Some(answer) = self.calls.take(id, &thread) {
                drop(receiver);
                break self.give(answer, then);
            }
            let read = if self.is_full() {
                Ok(None)
            } else {
                self.read_for(&mut receiver, id, until, &mut other)
            };
            match read {
                Ok(Some(size)) => {
                    self.calls.finish(id);
                    let mut message = receiver.take(size);
                    break result(command, &message).and_then(|()| then(&mut message));
                }
                // The commands that came must be looked at first.
                Ok(None) => {
                    drop(receiver);
                    self.pass_on();
                    if Instant::now() >= until {
                        self.calls.abandon(id);
                        break Err(Error::Timeout { command });
                    }
                    std::thread::park_timeout(Duration::from_millis(1));
                }
                Err(Cut::Idle) => {
                    if Instant::now() >= until {
                        self.calls.abandon(id);
                        break Err(Error::Timeout { command });
                    }
                }
                Err(_) => {
                    drop(receiver);
                    self.close();
                    break Err(Error::Disconnected);
                }
            }
        };
        self.pass_on();
        // Replies of this side that a client's thread made while it read.
        if self.side == Side::Client && self.outbox.is_waiting() {
            let _ = self.outbox.settle(until);
        }
        result
    }

    fn give<R>(
        &self,
        answer: Result<crate::calls::Answer, Error>,
        then: impl FnOnce(&mut Message<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let answer = answer?;
        then(&mut Message {
            header: Header::default(),
            body: &answer.body,
            files: answer.files,
        })
    }

    /// Reads until the reply to `id` lies in `receiver`.
    fn read_for(
        &self,
        receiver: &mut Receiver,
        id: u16,
        until: Instant,
        other: &mut impl FnMut(&mut Message<'_>) -> bool,
    ) -> Result<Option<usize>, Cut> {
        loop {
            self.flush_before_reading(receiver, Some(until))?;
            let size = receiver.fill(self.outbox.socket(), self.patience(until))?;
            if receiver.is_reply_to(id) {
                return Ok(Some(size));
            }
            let mut message = receiver.take(size);
            if message.is_reply() {
                self.calls.answer(&mut message);
            } else if !other(&mut message) {
                return Ok(None);
            }
        }
    }

    fn is_full(&self) -> bool {
        let backlog = self.backlog();
        backlog.commands.len() >= BACKLOG || backlog.bytes >= BACKLOG_BYTES
    }

    /// Keeps a command for the thread that serves. `false` if no more should
    /// be read before it looked.
    pub(crate) fn keep(&self, message: &mut Message<'_>) -> bool {
        let mut backlog = self.backlog();
        backlog.bytes = backlog.bytes.saturating_add(message.body.len());
        backlog.commands.push_back(Kept::of(message));
        let more = backlog.commands.len() < BACKLOG && backlog.bytes < BACKLOG_BYTES;
        let server = backlog.server.take();
        drop(backlog);
        if let Some(server) = server {
            server.unpark();
        }
        more
    }

    /// Waits for the next command and gives it to `handle`: those for which
    /// `quick` says so while no other thread can read, others when one can.
    pub(crate) fn next<R>(
        &self,
        quick: impl Fn(&Header) -> bool,
        handle: impl FnOnce(&mut Message<'_>) -> R,
    ) -> Result<R, Cut> {
        loop {
            let mut backlog = self.backlog();
            if let Some(mut kept) = backlog.commands.pop_front() {
                backlog.bytes = backlog.bytes.saturating_sub(kept.body.len());
                drop(backlog);
                return Ok(handle(&mut kept.message()));
            }
            drop(backlog);
            let Some(mut receiver) = self.reader() else {
                self.parked.fetch_add(1, Ordering::SeqCst);
                let mut backlog = self.backlog();
                backlog.server = Some(std::thread::current());
                let nothing = backlog.commands.is_empty();
                drop(backlog);
                if nothing && self.reader().is_none() && !self.outbox.is_closed() {
                    std::thread::park();
                }
                self.parked.fetch_sub(1, Ordering::SeqCst);
                continue;
            };
            if !self.backlog().commands.is_empty() {
                continue;
            }
            self.flush_before_reading(&receiver, None)?;
            let size = match receiver.fill(self.outbox.socket(), Patience::Socket) {
                Ok(size) => size,
                Err(cut) => {
                    drop(receiver);
                    self.pass_on();
                    return Err(cut);
                }
            };
            let mut message = receiver.take(size);
            if message.is_reply() {
                self.calls.answer(&mut message);
                continue;
            }
            let result = if quick(&message.header) {
                let result = handle(&mut message);
                drop(receiver);
                self.pass_on();
                result
            } else {
                let mut kept = Kept::of(&mut message);
                drop(receiver);
                self.pass_on();
                handle(&mut kept.message())
            };
            return Ok(result);
        }
    }

    /// What waits to be sent is sent before the thread waits for more to come.
    fn flush_before_reading(&self, receiver: &Receiver, until: Option<Instant>) -> Result<(), Cut> {
        while self.outbox.is_waiting() && !receiver.has_message() {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.map(Timespec::try_from).transpose();
            let left = left.map_err(|_| Cut::Failed(Errno::OVERFLOW))?;
            let both = PollFlags::IN | PollFlags::OUT;
            let mut sockets = [PollFd::from_borrowed_fd(self.outbox.socket(), both)];
            match poll(&mut sockets, left.as_ref()) {
                Ok(0) => return Err(Cut::Idle),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Cut::Failed(errno)),
            }
            self.outbox.flush().map_err(|_| Cut::Closed)?;
            let [socket] = &sockets;
            if !socket.revents().difference(PollFlags::OUT).is_empty() {
                break;
            }
        }
        Ok(())
    }
}
