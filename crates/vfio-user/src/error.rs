//! What can go wrong, with what a person needs to know of it.

use rustix::io::Errno;

use crate::wire::Command;

/// Why a request to the other side has no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The other side answered that it failed.
    #[error("{command:?} was refused: {errno}")]
    Refused {
        /// What was asked.
        command: Command,
        /// Its errno; EIO where the answer had none.
        errno: Errno,
    },
    /// The connection is closed: by the other side, by this one, or because
    /// something came that is not the protocol.
    #[error("the connection is closed")]
    Disconnected,
    /// No answer came in time. What was asked may still be done.
    #[error("{command:?} was not answered in time")]
    Timeout {
        /// What was asked.
        command: Command,
    },
    /// The answer does not fit what was asked.
    #[error("the answer to {command:?} is wrong: {what}")]
    Answer {
        /// What was asked.
        command: Command,
        /// What is wrong.
        what: &'static str,
    },
    /// More than the other side said that it takes.
    #[error("{command:?} with {count}, but the other side takes {limit}")]
    TooMuch {
        /// What was to be asked.
        command: Command,
        /// Bytes, descriptors or mappings.
        count: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// The other side did not say that it can do this.
    #[error("{command:?} was not negotiated")]
    NotNegotiated {
        /// What was to be asked.
        command: Command,
    },
    /// A register access may not wait for the client: the client waits for it.
    #[error(
        "{command:?} from within an answer would wait for the client that waits for the answer"
    )]
    WithinAnswer {
        /// What was to be asked.
        command: Command,
    },
    /// A system call failed.
    #[error("{0}")]
    System(#[from] Errno),
}

impl Error {
    /// The errno to give on.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. } | Self::System(errno) => *errno,
            Self::Disconnected => Errno::NOTCONN,
            Self::Timeout { .. } => Errno::TIMEDOUT,
            Self::Answer { .. } => Errno::PROTO,
            Self::TooMuch { .. } => Errno::TOOBIG,
            Self::NotNegotiated { .. } => Errno::OPNOTSUPP,
            Self::WithinAnswer { .. } => Errno::DEADLK,
        }
    }
}

/// How the serving of a client ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Ended {
    /// The client closed the connection.
    Disconnected,
    /// [`Stop`](crate::Stop) was asked.
    Stopped,
    /// The client sent what is not the protocol, so that the stream cannot be
    /// followed any more.
    Violation(Violation),
    /// The client does not read its answers.
    NotReading,
    /// Nothing more can be had from the socket.
    Failed(Errno),
}

/// What a client did to the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A message that is shorter than its header.
    #[error("a message of {0} bytes, less than its header")]
    Short(u32),
    /// A message that is longer than any may be.
    #[error("a message of {0} bytes, more than any may have")]
    Long(u32),
    /// Neither a command nor a reply.
    #[error("a message of type {0}")]
    Type(u32),
    /// The stream ended inside of a message.
    #[error("the stream ended within a message")]
    Torn,
    /// The first message does not say a version that can be spoken.
    #[error("no version that can be spoken: {0}")]
    Version(&'static str),
}
