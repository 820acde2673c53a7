//! The sending side of a connection: messages whole, one after the other, from
//! any thread, with what the socket does not take yet.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown,
};

use crate::stream::ready;
use crate::version::MAX_FDS;

struct Queued {
    bytes: Vec<u8>,
    sent: usize,
    files: Vec<OwnedFd>,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Queued>,
    bytes: usize,
}

/// Why a message was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unsent {
    Closed,
    /// The other side does not read.
    NotReading,
    Failed(Errno),
}

/// Sends messages whole and one after the other, from any thread.
pub(crate) struct Outbox {
    socket: OwnedFd,
    queue: Mutex<Queue>,
    /// Whether the queue holds anything.
    waiting: AtomicBool,
    /// Bytes that may be queued.
    limit: usize,
    /// Whether this side gave up because the other does not read.
    gave_up: AtomicBool,
    closed: AtomicBool,
}

fn send(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    files: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        let sent = if files.is_empty() {
            sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), flags)
        } else {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS as usize))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
                return Err(Errno::TOOBIG);
            }
            sendmsg(socket, parts, &mut ancillary, flags)
        };
        if sent != Err(Errno::INTR) {
            return sent;
        }
    }
}

impl Outbox {
    pub(crate) fn new(socket: OwnedFd, limit: usize) -> Self {
        Self {
            socket,
            queue: Mutex::default(),
            waiting: AtomicBool::new(false),
            limit,
            gave_up: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Ends the connection in both directions: whoever waits for it wakes.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether the connection was closed because the other side does not read.
    pub(crate) fn gave_up(&self) -> bool {
        self.gave_up.load(Ordering::Acquire)
    }

    /// Whether something waits to be sent.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    fn give_up(&self) -> Unsent {
        self.gave_up.store(true, Ordering::Release);
        self.close();
        Unsent::NotReading
    }

    fn failed(&self, errno: Errno) -> Unsent {
        self.close();
        match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Unsent::Closed,
            errno => Unsent::Failed(errno),
        }
    }

    /// Sends a message, or as much of it as the socket takes and keeps the
    /// rest. Never waits. `true` if nothing is left. A message that is not
    /// begun is kept only if `keep` says so; otherwise this is EAGAIN.
    pub(crate) fn post(
        &self,
        parts: &[IoSlice<'_>],
        files: &[BorrowedFd<'_>],
        keep: bool,
    ) -> Result<bool, Unsent> {
        if self.is_closed() {
            return Err(Unsent::Closed);
        }
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = if queue.messages.is_empty() {
            match send(self.socket.as_fd(), parts, files) {
                Ok(sent) if sent == length => return Ok(true),
                Ok(sent) => sent,
                Err(Errno::AGAIN) => 0,
                Err(errno) => return Err(self.failed(errno)),
            }
        } else {
            0
        };
        if sent == 0 && !keep {
            return Err(Unsent::Failed(Errno::AGAIN));
        }
        let left = length.saturating_sub(sent);
        let bytes = queue.bytes.saturating_add(left);
        // A message that is begun must end; any other has to fit.
        if bytes > self.limit && sent == 0 && !queue.messages.is_empty() {
            return Err(self.give_up());
        }
        let mut rest = Vec::with_capacity(left);
        let mut skip = sent;
        for part in parts {
            rest.extend_from_slice(part.get(skip.min(part.len())..).unwrap_or_default());
            skip = skip.saturating_sub(part.len());
        }
        // Descriptors go with the first byte.
        let mut kept = Vec::new();
        if sent == 0 {
            for file in files {
                match file.try_clone_to_owned() {
                    Ok(file) => kept.push(file),
                    Err(_) => return Err(Unsent::Failed(Errno::MFILE)),
                }
            }
        }
        queue.messages.push_back(Queued {
            bytes: rest,
            sent: 0,
            files: kept,
        });
        queue.bytes = bytes;
        self.waiting.store(true, Ordering::Release);
        Ok(false)
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn flush(&self) -> Result<bool, Unsent> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Queue { messages, bytes } = &mut *queue;
        while let Some(message) = messages.front_mut() {
            let part = message.bytes.get(message.sent..).unwrap_or_default();
            let files: Vec<_> = message.files.iter().map(AsFd::as_fd).collect();
            match send(self.socket.as_fd(), &[IoSlice::new(part)], &files) {
                Ok(sent) => {
                    let whole = sent == part.len();
                    message.sent = message.sent.saturating_add(sent);
                    message.files.clear();
                    *bytes = bytes.saturating_sub(sent);
                    if whole {
                        messages.pop_front();
                    }
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(self.failed(errno)),
            }
        }
        self.waiting.store(false, Ordering::Release);
        Ok(true)
    }

    /// Waits until everything is sent. Past `until` the other side is
    /// taken for one that does not read, and the connection is closed.
    pub(crate) fn settle(&self, until: Instant) -> Result<(), Unsent> {
        while !self.flush()? {
            match ready(self.socket.as_fd(), PollFlags::OUT, until) {
                Ok(true) => {}
                Ok(false) => return Err(self.give_up()),
                Err(errno) => return Err(self.failed(errno)),
            }
        }
        Ok(())
    }
}
