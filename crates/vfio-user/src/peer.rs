//! A client as a served device sees it: its memory, behind requests.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Instant;

use iogate_dma::Iova;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::channel::Channel;
use crate::error::Error;
use crate::stream::Message;
use crate::version::Limits;
use crate::wire::{Command, DmaAccess};

/// A client that is connected, for the device that it uses.
///
/// Its methods may be called from any thread. Those that wait for the client
/// ([`dma_read`](Self::dma_read), [`dma_write`](Self::dma_write)) fail with
/// [`Error::WithinAnswer`] on a thread that is within a method of
/// [`Device`](crate::Device): the client may do nothing else before it has that
/// answer.
pub struct Peer {
    id: u64,
    pub(crate) channel: Arc<Channel>,
    limits: OnceLock<Limits>,
}

impl Peer {
    pub(crate) fn new(id: u64, channel: Arc<Channel>) -> Self {
        Self {
            id,
            channel,
            limits: OnceLock::new(),
        }
    }

    pub(crate) fn negotiated(&self, limits: Limits) {
        let _ = self.limits.set(limits);
    }

    /// A number that no other client of this process has or had.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What the client takes.
    pub fn limits(&self) -> &Limits {
        self.limits.get().unwrap_or(&Limits::UNSAID)
    }

    /// Whether the connection is there.
    pub fn is_connected(&self) -> bool {
        !self.channel.outbox.is_closed()
    }

    /// Ends the connection.
    pub fn disconnect(&self) {
        self.channel.close();
    }

    fn chunk(&self, command: Command) -> Result<usize, Error> {
        match usize::try_from(self.limits().max_data_xfer_size) {
            Ok(chunk) if chunk > 0 => Ok(chunk),
            _ => Err(Error::NotNegotiated { command }),
        }
    }

    fn until(&self) -> Result<Instant, Error> {
        let until = Instant::now().checked_add(self.channel.timeout);
        Ok(until.ok_or(Errno::OVERFLOW)?)
    }

    fn request<R>(
        &self,
        command: Command,
        access: DmaAccess,
        data: &[u8],
        then: impl FnOnce(&mut Message<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let until = self.until()?;
        let channel = &self.channel;
        let id = channel.submit(command, &[access.as_bytes(), data], &[])?;
        channel.wait(id, command, until, |other| channel.keep(other), then)
    }

    /// Fills `into` from `address` on of what the client has mapped. Waits for
    /// its answer; transfers are split as the client wants them.
    pub fn dma_read(&self, address: Iova, into: &mut [u8]) -> Result<(), Error> {
        let command = Command::DmaRead;
        let chunk = self.chunk(command)?;
        let mut address = address;
        for part in into.chunks_mut(chunk) {
            let count = part.len() as u64;
            let access = DmaAccess {
                address: address.0,
                count,
            };
            self.request(command, access, &[], |reply| {
                let wrong = |what| Error::Answer { command, what };
                let (answer, data) = DmaAccess::read_from_prefix(reply.body)
                    .map_err(|_| wrong("it is too short"))?;
                if answer.count != count || data.len() != part.len() {
                    return Err(wrong("it has another count"));
                }
                part.copy_from_slice(data);
                Ok(())
            })?;
            address = Iova(address.0.wrapping_add(count));
        }
        Ok(())
    }

    /// Writes `from` to `address` on of what the client has mapped. Waits until
    /// the client did it.
    pub fn dma_write(&self, address: Iova, from: &[u8]) -> Result<(), Error> {
        let command = Command::DmaWrite;
        let chunk = self.chunk(command)?;
        let mut address = address;
        for part in from.chunks(chunk) {
            let count = part.len() as u64;
            let access = DmaAccess {
                address: address.0,
                count,
            };
            // QEMU's replies have no payload, others repeat the request's.
            self.request(command, access, part, |_| Ok(()))?;
            address = Iova(address.0.wrapping_add(count));
        }
        Ok(())
    }

    /// Writes `from` without waiting for the client, and without knowing
    /// whether it did: an interrupt message. May be called from within an
    /// answer, even to another client; then it is EAGAIN if this one's socket
    /// is full.
    pub fn dma_post(&self, address: Iova, from: &[u8]) -> Result<(), Error> {
        let command = Command::DmaWrite;
        let chunk = self.chunk(command)?;
        let mut address = address;
        for part in from.chunks(chunk) {
            let count = part.len() as u64;
            let access = DmaAccess {
                address: address.0,
                count,
            };
            self.channel.post(command, &[access.as_bytes(), part])?;
            address = Iova(address.0.wrapping_add(count));
        }
        Ok(())
    }
}
