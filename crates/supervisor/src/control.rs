//! Words between the supervisor and the processes it starts, until the
//! program runs and when it has ended. One datagram a word.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::guardian::Failed;

/// What a word says; its body is in brackets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Word {
    /// The namespace stands (mount ids of the nodes, 8 bytes each).
    Nodes = 1,
    /// A step failed (errno, 4 bytes; then what was tried, in words).
    Failed = 2,
    /// The program's process was started (its id, 4 bytes).
    Started = 3,
    /// The filter is installed (with the listener).
    Listener = 4,
    /// The program may start.
    Go = 5,
    /// The program cannot be executed (errno, 4 bytes).
    NotExecuted = 6,
    /// The program has ended (status as of wait, 4 bytes).
    Ended = 7,
}

impl Word {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Nodes,
            Self::Failed,
            Self::Started,
            Self::Listener,
            Self::Go,
            Self::NotExecuted,
            Self::Ended,
        ]
        .into_iter()
        .find(|word| *word as u8 == byte)
    }
}

/// A received word.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) word: Word,
    pub(crate) body: Vec<u8>,
    pub(crate) file: Option<OwnedFd>,
}

impl Message {
    /// The body of [`Word::Failed`].
    pub(crate) fn failed(&self) -> Failed {
        let step = self.body.get(4..).unwrap_or_default();
        Failed {
            step: String::from_utf8_lossy(step).into_owned(),
            error: io::Error::from_raw_os_error(self.number()),
        }
    }

    /// The first four bytes of the body.
    pub(crate) fn number(&self) -> i32 {
        let bytes = self.body.first_chunk().copied().unwrap_or_default();
        i32::from_le_bytes(bytes)
    }
}

/// One end of the line.
#[derive(Debug)]
pub(crate) struct Control(OwnedFd);

/// The longest word: the mount ids of 8,000 nodes.
const LONGEST: usize = 64_001;

impl Control {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// Says `word`. Allocates nothing.
    pub(crate) fn send(&self, word: Word, body: &[u8]) -> io::Result<()> {
        self.send_with(word, body, &mut SendAncillaryBuffer::default())
    }

    /// Says [`Word::Listener`]. Allocates nothing.
    pub(crate) fn send_listener(&self, listener: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut buffer = SendAncillaryBuffer::new(&mut space);
        let files = [listener];
        buffer.push(SendAncillaryMessage::ScmRights(&files));
        self.send_with(Word::Listener, &[], &mut buffer)
    }

    fn send_with(
        &self,
        word: Word,
        body: &[u8],
        files: &mut SendAncillaryBuffer<'_, '_, '_>,
    ) -> io::Result<()> {
        let tag = [word as u8];
        let parts = [IoSlice::new(&tag), IoSlice::new(body)];
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, &parts, files, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }

    /// Waits for the next word; `None` when the other end is gone.
    pub(crate) fn receive(&self) -> io::Result<Option<Message>> {
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut files = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(&self.0, &mut parts, &mut files, RecvFlags::CMSG_CLOEXEC)
        });
        let length = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => return Err(error.into()),
        };
        let file = files.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        bytes.truncate(length);
        let Some((tag, body)) = bytes.split_first() else {
            return Ok(None);
        };
        let word = Word::from_byte(*tag).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(Message {
            word,
            body: body.to_vec(),
            file,
        }))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_arrives_with_its_body_and_its_file() {
        let (one, other) = Control::pair().unwrap();
        one.send(Word::Ended, &7_i32.to_le_bytes()).unwrap();
        one.send_listener(one.as_fd()).unwrap();
        let ended = other.receive().unwrap().unwrap();
        assert_eq!((ended.word, ended.number()), (Word::Ended, 7));
        assert!(other.receive().unwrap().unwrap().file.is_some());
        drop(one);
        assert!(other.receive().unwrap().is_none());
    }
}
