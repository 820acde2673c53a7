//! The client's side: a connection to a device that is served elsewhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iogate_dma::Memory;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use zerocopy::{FromBytes, IntoBytes};

use crate::answering::Answering;
use crate::channel::{Channel, Side};
use crate::error::{Ended, Error};
use crate::serve::longest;
use crate::server::connected;
use crate::stream::{Cut, Message};
use crate::version::{self, Limits, Named};
use crate::wire::{Command, DmaAccess, flags};

/// What a client offers to a server, and for how long it waits for it.
#[derive(Clone)]
pub struct ClientOptions {
    /// What it takes.
    pub limits: Limits,
    /// How long a request waits for its reply.
    pub timeout: Duration,
    /// The memory that the server may ask for by DMA_READ and DMA_WRITE, by
    /// the addresses that it was mapped at; without it such requests are
    /// refused. Its methods are called by whichever thread reads from the
    /// connection, and may not use this client.
    pub memory: Option<Arc<dyn Memory>>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            timeout: Duration::from_secs(5),
            memory: None,
        }
    }
}

/// A connection to a server. All methods may be called by many threads at once.
///
/// Requests go out in the order of the calls, and a thread that waits for its
/// reply reads for the others that wait. While none waits nobody reads: an
/// embedder whose server asks for memory on its own keeps a thread in
/// [`run`](Self::run).
pub struct Client {
    pub(crate) channel: Channel,
    limits: Limits,
    options: ClientOptions,
    path: Option<PathBuf>,
}

impl Client {
    /// Connects to the server at `path` and agrees on a version.
    pub fn connect(path: impl AsRef<Path>, options: ClientOptions) -> Result<Self, Error> {
        let path = path.as_ref();
        let mut client = Self::from_socket(connected(path)?, options)?;
        client.path = Some(path.to_owned());
        Ok(client)
    }

    /// Agrees on a version with the server at the other end of `socket`, a
    /// connected Unix stream socket.
    pub fn from_socket(socket: OwnedFd, options: ClientOptions) -> Result<Self, Error> {
        // A read of the socket ends early enough that who waits sees its time.
        let tick = options.timeout.checked_div(4).unwrap_or_default();
        set_socket_timeout(
            &socket,
            Timeout::Recv,
            Some(tick.max(Duration::from_millis(1))),
        )?;
        let channel = Channel::new(
            socket,
            longest(version::MAX_TRANSFER),
            usize::MAX,
            options.timeout,
            Side::Client,
        );
        let mut client = Self {
            channel,
            limits: Limits::UNSAID,
            options,
            path: None,
        };
        client.negotiate()?;
        Ok(client)
    }

    /// A new connection to the server that this one was connected to. What
    /// was mapped and bound there is to be mapped and bound again.
    pub fn reconnect(&self) -> Result<Self, Error> {
        let path = self.path.as_ref().ok_or(Error::Disconnected)?;
        Self::connect(path, self.options.clone())
    }

    fn negotiate(&mut self) -> Result<(), Error> {
        let command = Command::Version;
        let wrong = |what| Error::Answer { command, what };
        let proposal = version::format(&self.options.limits, Named::ALL);
        let said = self.call(command, &[&proposal], &[], |reply| {
            version::parse(reply.body).map_err(wrong)
        })?;
        if said.major != version::MAJOR || said.minor > version::MINOR {
            return Err(wrong("its version was not proposed"));
        }
        self.limits = said.limits;
        self.channel
            .set_limit(longest(self.options.limits.max_data_xfer_size));
        Ok(())
    }

    /// What the server takes.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether the connection is there, as far as is known.
    pub fn is_connected(&self) -> bool {
        !self.channel.outbox.is_closed()
    }

    /// Closes the connection: whoever waits gets an error.
    pub fn disconnect(&self) {
        self.channel.close();
    }

    /// Reads until the connection is closed, so that the server's requests
    /// are served while no thread waits for a reply.
    pub fn run(&self) -> Ended {
        loop {
            match self.channel.next(|_| true, |message| self.serve(message)) {
                Ok(()) | Err(Cut::Idle) => {}
                Err(cut) => {
                    self.channel.close();
                    return match cut {
                        Cut::Violation(violation) => Ended::Violation(violation),
                        Cut::Failed(errno) => Ended::Failed(errno),
                        Cut::Closed | Cut::Idle => Ended::Disconnected,
                    };
                }
            }
        }
    }

    pub(crate) fn until(&self) -> Result<Instant, Error> {
        let until = Instant::now().checked_add(self.channel.timeout);
        Ok(until.ok_or(Errno::OVERFLOW)?)
    }

    /// Sends a request and waits for its reply.
    pub(crate) fn call<R>(
        &self,
        command: Command,
        body: &[&[u8]],
        files: &[BorrowedFd<'_>],
        then: impl FnOnce(&mut Message<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let until = self.until()?;
        let id = self.channel.submit(command, body, files)?;
        self.finish(id, command, until, then)
    }

    /// Waits for the reply to a request that was sent.
    pub(crate) fn finish<R>(
        &self,
        id: u16,
        command: Command,
        until: Instant,
        then: impl FnOnce(&mut Message<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let serve = |message: &mut Message<'_>| {
            self.serve(message);
            true
        };
        self.channel.wait(id, command, until, serve, then)
    }

    /// Does what the server asks of this side's memory.
    fn serve(&self, message: &mut Message<'_>) {
        let mut data = Vec::new();
        let done = {
            let _answering = Answering::begin(&self.channel);
            self.access(message, &mut data)
        };
        let header = &message.header;
        if header.flags & flags::NO_REPLY != 0 {
            return;
        }
        // A failure closes the connection; who waits for it sees that.
        let _ = match done {
            Ok(access) => self.channel.reply(header, &[access.as_bytes(), &data], &[]),
            Err(errno) => self.channel.refuse(header, errno),
        };
    }

    /// The errors are those that QEMU gives.
    fn access(&self, message: &Message<'_>, data: &mut Vec<u8>) -> Result<DmaAccess, Errno> {
        let command = Command::from_number(message.header.command);
        let (access, sent) = DmaAccess::read_from_prefix(message.body).map_err(|_| Errno::INVAL)?;
        if !message.files.is_empty() {
            return Err(Errno::INVAL);
        }
        if access.count > u64::from(self.options.limits.max_data_xfer_size) {
            return Err(Errno::TOOBIG);
        }
        let count = usize::try_from(access.count).map_err(|_| Errno::TOOBIG)?;
        access
            .address
            .checked_add(access.count)
            .ok_or(Errno::INVAL)?;
        let memory = self.options.memory.as_deref().ok_or(Errno::FAULT)?;
        match command {
            Some(Command::DmaRead) if sent.is_empty() => {
                data.resize(count, 0);
                let read = memory.read(access.address, data);
                read.map_err(|_| Errno::FAULT)?;
            }
            Some(Command::DmaWrite) if sent.len() == count => {
                let written = memory.write(access.address, sent);
                written.map_err(|_| Errno::FAULT)?;
            }
            Some(Command::DmaRead | Command::DmaWrite) => return Err(Errno::INVAL),
            _ => return Err(Errno::NOSYS),
        }
        Ok(access)
    }
}

impl AsFd for Client {
    /// The socket, to wait for; never to be read or written.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.outbox.socket()
    }
}
