//! A stream cut into messages: what is received, with the descriptors that
//! belong to it.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use zerocopy::FromBytes;

use crate::error::Violation;
use crate::wire::{HEADER, Header, flags};

/// Bytes that a receiver has room for before a longer message comes.
const ROOM: usize = 16 << 10;

/// A whole message.
#[derive(Debug)]
pub(crate) struct Message<'buffer> {
    pub(crate) header: Header,
    pub(crate) body: &'buffer [u8],
    pub(crate) files: Vec<OwnedFd>,
}

impl Message<'_> {
    pub(crate) fn is_reply(&self) -> bool {
        self.header.flags & flags::TYPE == flags::REPLY
    }
}

/// Why no message came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// The other side closed the stream, between two messages.
    Closed,
    /// Nothing came in time.
    Idle,
    Violation(Violation),
    Failed(Errno),
}

/// How long a receiver waits for bytes.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    /// As long as the socket has it.
    Socket,
    Until(Instant),
}

/// Cuts a stream into messages.
///
/// One system call takes whatever the socket holds, so it may bring several
/// messages. The kernel ends a read with the piece that descriptors were sent
/// with: they belong to the last message that begins in what was read.
pub(crate) struct Receiver {
    buffer: Vec<u8>,
    /// What of `buffer` is not taken yet.
    start: usize,
    end: usize,
    /// Where in the stream `end` is.
    position: u64,
    /// Descriptors with the position in the stream behind the bytes that they
    /// came with.
    files: VecDeque<(u64, Vec<OwnedFd>)>,
    /// The longest message that is taken.
    limit: usize,
}

/// Waits until `socket` is ready for `what`; `false` if the time is over first.
pub(crate) fn ready(
    socket: BorrowedFd<'_>,
    what: PollFlags,
    until: Instant,
) -> Result<bool, Errno> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::OVERFLOW)?;
        match poll(&mut [PollFd::from_borrowed_fd(socket, what)], Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

impl Receiver {
    /// Takes messages of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            buffer: vec![0; ROOM],
            start: 0,
            end: 0,
            position: 0,
            files: VecDeque::new(),
            limit,
        }
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    fn held(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The size of the next message if its header is there.
    fn announced(&self) -> Result<Option<usize>, Violation> {
        let Ok((header, _)) = Header::read_from_prefix(self.held()) else {
            return Ok(None);
        };
        let kind = header.flags & flags::TYPE;
        if kind != flags::COMMAND && kind != flags::REPLY {
            return Err(Violation::Type(kind));
        }
        match usize::try_from(header.size) {
            Ok(size) if size < HEADER => Err(Violation::Short(header.size)),
            Ok(size) if size <= self.limit => Ok(Some(size)),
            _ => Err(Violation::Long(header.size)),
        }
    }

    /// Whether a whole message is held.
    pub(crate) fn has_message(&self) -> bool {
        let held = self.end.saturating_sub(self.start);
        !matches!(self.announced(), Ok(size) if size.is_none_or(|size| size > held))
    }

    /// Whether the next message is the reply to `id`.
    pub(crate) fn is_reply_to(&self, id: u16) -> bool {
        Header::read_from_prefix(self.held())
            .is_ok_and(|(header, _)| header.id == id && header.flags & flags::TYPE == flags::REPLY)
    }

    /// Makes sure that a whole message is held, and says how long it is.
    pub(crate) fn fill(
        &mut self,
        socket: BorrowedFd<'_>,
        patience: Patience,
    ) -> Result<usize, Cut> {
        loop {
            let size = self.announced().map_err(Cut::Violation)?;
            let held = self.end.saturating_sub(self.start);
            match size {
                Some(size) if size <= held => return Ok(size),
                _ => self.read(socket, size.unwrap_or(HEADER), patience)?,
            }
        }
    }

    /// Reads what there is, with room for a message of `size` bytes.
    fn read(&mut self, socket: BorrowedFd<'_>, size: usize, patience: Patience) -> Result<(), Cut> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len().saturating_sub(self.start) < size {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end.saturating_sub(self.start));
        }
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        if let Patience::Until(until) = patience {
            if !ready(socket, PollFlags::IN, until).map_err(Cut::Failed)? {
                return Err(Cut::Idle);
            }
            flags |= RecvFlags::DONTWAIT;
        }
        let mut space = [MaybeUninit::uninit();
            rustix::cmsg_space!(ScmRights(crate::version::MAX_FDS as usize))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let mut parts = [IoSliceMut::new(room)];
        let read = match recvmsg(socket, &mut parts, &mut ancillary, flags) {
            Ok(received) => received.bytes,
            Err(Errno::INTR) => return Ok(()),
            Err(Errno::AGAIN) => return Err(Cut::Idle),
            Err(Errno::CONNRESET | Errno::PIPE) => 0,
            Err(errno) => return Err(Cut::Failed(errno)),
        };
        if read == 0 {
            return Err(if self.start == self.end {
                Cut::Closed
            } else {
                Cut::Violation(Violation::Torn)
            });
        }
        self.end = self.end.saturating_add(read);
        self.position = self.position.wrapping_add(read as u64);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.push_back((self.position, files.collect()));
            }
        }
        Ok(())
    }

    /// Takes the message of `size` bytes that [`fill`](Self::fill) found.
    pub(crate) fn take(&mut self, size: usize) -> Message<'_> {
        let from = self.start;
        self.start = from.saturating_add(size).min(self.end);
        let behind = self
            .position
            .wrapping_sub(self.end.saturating_sub(self.start) as u64);
        let mut files = Vec::new();
        while self.files.front().is_some_and(|(end, _)| *end <= behind) {
            if let Some((_, more)) = self.files.pop_front() {
                if files.is_empty() {
                    files = more;
                } else {
                    files.extend(more);
                }
            }
        }
        let message = self.buffer.get(from..self.start).unwrap_or_default();
        let (header, body) =
            Header::read_from_prefix(message).unwrap_or((Header::default(), Default::default()));
        Message {
            header,
            body,
            files,
        }
    }
}
