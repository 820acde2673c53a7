//! A client served: its version, then each of its commands in their order.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use iogate_dma::{Access, Iova, Rights, Span};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::answering::Answering;
use crate::device::{Device, DeviceInfo, DmaMap};
use crate::error::{Ended, Violation};
use crate::mapped::Mapped;
use crate::outbox::Unsent;
use crate::peer::Peer;
use crate::stream::{Cut, Message};
use crate::version::{self, Limits};
use crate::wire::{
    Bitmap, Command, DIRTY_GET, DIRTY_START, DIRTY_STOP, DirtyPages, DirtyRange, DmaUnmap, HEADER,
    Header, MAP_FILE_IO, MAP_MMAP, MAP_READ, MAP_WRITE, RegionAccess, SmallWrite, UNMAP_ALL,
    UNMAP_GET_DIRTY, WriteMulti, flags,
};

/// The longest message before versions are exchanged.
pub(crate) const BEFORE_VERSION: usize = 16 << 10;
/// Bytes that any message may have beside transferred data.
const FIXED: usize = 64 << 10;

/// The longest message of a connection whose transfers have at most `transfer`
/// bytes.
pub(crate) fn longest(transfer: u32) -> usize {
    HEADER
        .saturating_add(FIXED)
        .saturating_add(usize::try_from(transfer).unwrap_or(usize::MAX))
}

/// What one client has here.
pub(crate) struct Session<'a> {
    pub(crate) device: &'a dyn Device,
    pub(crate) peer: &'a Arc<Peer>,
    pub(crate) limits: &'a Limits,
    pub(crate) info: DeviceInfo,
    /// Size and rights of each region.
    regions: Vec<(u64, Rights)>,
    mapped: Mapped,
    /// The payload of the reply that is being made.
    pub(crate) reply: Vec<u8>,
    /// The descriptors that go with it.
    pub(crate) reply_files: Vec<OwnedFd>,
}

/// The head of a payload; EINVAL if it is shorter.
pub(crate) fn head<T: FromBytes + KnownLayout + Immutable>(
    body: &[u8],
) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(body).map_err(|_| Errno::INVAL)
}

fn span(address: u64, size: u64) -> Result<Span<Iova>, Errno> {
    Span::with_length(Iova(address), size).ok_or(Errno::INVAL)
}

fn ended(cut: Cut, peer: &Peer) -> Ended {
    match cut {
        _ if peer.channel.outbox.gave_up() => Ended::NotReading,
        Cut::Closed | Cut::Idle => Ended::Disconnected,
        Cut::Violation(violation) => Ended::Violation(violation),
        Cut::Failed(errno) => Ended::Failed(errno),
    }
}

fn unsent(unsent: Unsent) -> Ended {
    match unsent {
        Unsent::Closed => Ended::Disconnected,
        Unsent::NotReading => Ended::NotReading,
        Unsent::Failed(errno) => Ended::Failed(errno),
    }
}

/// Serves the client behind `peer` until it is gone.
pub(crate) fn serve(peer: &Arc<Peer>, device: &dyn Device, limits: &Limits) -> Ended {
    let ended = match negotiate(peer, limits).and_then(|()| connect(peer, device)) {
        Ok(()) => Session::new(peer, device, limits).run_to_the_end(),
        Err(ended) => ended,
    };
    peer.channel.close();
    ended
}

fn connect(peer: &Arc<Peer>, device: &dyn Device) -> Result<(), Ended> {
    let _answering = Answering::begin(&peer.channel);
    device.connected(peer).map_err(Ended::Failed)
}

/// Exchanges versions: the first message of a client.
fn negotiate(peer: &Arc<Peer>, limits: &Limits) -> Result<(), Ended> {
    let channel = &peer.channel;
    let first = channel.next(
        |_| true,
        |message| {
            let header = message.header;
            let said = if header.command != Command::Version.number() {
                Err("the first message is another one")
            } else if !message.files.is_empty() {
                Err("descriptors came with it")
            } else {
                version::parse(message.body)
            };
            let said = said.and_then(|said| match said.major {
                version::MAJOR => Ok(said),
                _ => Err("its major version is not spoken"),
            });
            match said {
                Ok(said) => {
                    let payload = version::format(limits, said.named);
                    peer.negotiated(said.limits);
                    let replied = channel.reply(&header, &[&payload], &[]);
                    replied.map_err(unsent)
                }
                Err(what) => {
                    let _ = channel.refuse(&header, Errno::INVAL);
                    Err(Ended::Violation(Violation::Version(what)))
                }
            }
        },
    );
    first.map_err(|cut| ended(cut, peer))??;
    channel.set_limit(longest(limits.max_data_xfer_size));
    Ok(())
}

/// Whether a command is answered at once, without a look at what else the
/// client sends: it never waits for anybody.
fn quick(header: &Header) -> bool {
    matches!(
        Command::from_number(header.command),
        Some(Command::RegionRead | Command::RegionWrite | Command::RegionWriteMulti)
    )
}

impl<'a> Session<'a> {
    fn new(peer: &'a Arc<Peer>, device: &'a dyn Device, limits: &'a Limits) -> Self {
        let info = device.info();
        let region = |index| {
            let region = device.region(index);
            region.map_or((0, Rights::NONE), |region| (region.size, region.rights))
        };
        Session {
            device,
            peer,
            limits,
            info,
            regions: (0..info.regions).map(region).collect(),
            mapped: Mapped::default(),
            reply: Vec::new(),
            reply_files: Vec::new(),
        }
    }

    /// Serves until the client is gone, and takes back what it had.
    fn run_to_the_end(mut self) -> Ended {
        let ended = self.run();
        // Whoever waits for the client's memory must let go of it first.
        self.peer.channel.close();
        let _answering = Answering::begin(&self.peer.channel);
        for span in self.mapped.clear() {
            self.device.dma_unmap(self.peer, span);
        }
        self.device.disconnected(self.peer);
        ended
    }

    fn run(&mut self) -> Ended {
        let channel = Arc::clone(&self.peer.channel);
        loop {
            let answered = channel.next(quick, |message| self.answer(message));
            match answered {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return unsent(error),
                Err(cut) => return ended(cut, self.peer),
            }
        }
    }

    /// Does what a command says and replies to it.
    fn answer(&mut self, message: &mut Message<'_>) -> Result<(), Unsent> {
        self.reply.clear();
        self.reply_files.clear();
        let done = {
            let _answering = Answering::begin(&self.peer.channel);
            self.execute(message)
        };
        let header = &message.header;
        if header.flags & flags::NO_REPLY != 0 {
            return Ok(());
        }
        let channel = &self.peer.channel;
        match done {
            Ok(()) if self.reply_files.is_empty() => channel.reply(header, &[&self.reply], &[]),
            Ok(()) => {
                let files: Vec<_> = self.reply_files.iter().map(AsFd::as_fd).collect();
                channel.reply(header, &[&self.reply], &files)
            }
            Err(errno) => channel.refuse(header, errno),
        }
    }

    fn execute(&mut self, message: &mut Message<'_>) -> Result<(), Errno> {
        let body = message.body;
        let files = std::mem::take(&mut message.files);
        let command = Command::from_number(message.header.command);
        let takes_files = matches!(command, Some(Command::DmaMap | Command::DeviceSetIrqs));
        let most = usize::try_from(self.limits.max_msg_fds).unwrap_or(usize::MAX);
        if !files.is_empty() && (!takes_files || files.len() > most) {
            return Err(Errno::INVAL);
        }
        match command {
            Some(Command::RegionRead) => self.region_read(body),
            Some(Command::RegionWrite) => self.region_write(body),
            Some(Command::RegionWriteMulti) => self.write_multi(body),
            Some(Command::DmaMap) => self.dma_map(body, files),
            Some(Command::DmaUnmap) => self.dma_unmap(body),
            Some(Command::DirtyPages) => self.dirty_pages(body),
            Some(Command::DeviceGetInfo) => self.device_info(body),
            Some(Command::DeviceGetRegionInfo) => self.region_info(body),
            Some(Command::DeviceGetRegionIoFds) => self.region_io(body),
            Some(Command::DeviceGetIrqInfo) => self.irq_info(body),
            Some(Command::DeviceSetIrqs) => self.set_irqs(body, files),
            Some(Command::DeviceReset) => self.reset(body),
            Some(Command::DeviceFeature) => self.feature(body),
            Some(Command::MigDataRead) => self.migration_read(body),
            Some(Command::MigDataWrite) => self.migration_write(body),
            Some(Command::Version) => Err(Errno::INVAL),
            Some(Command::DmaRead | Command::DmaWrite) | None => Err(Errno::NOSYS),
        }
    }

    /// Bytes of a transfer; EINVAL if it is longer than was agreed.
    pub(crate) fn transfer(&self, count: u64) -> Result<usize, Errno> {
        if count > u64::from(self.limits.max_data_xfer_size) {
            return Err(Errno::INVAL);
        }
        usize::try_from(count).map_err(|_| Errno::INVAL)
    }

    /// Checks that `count` bytes at `offset` lie in a region that allows this.
    fn check(&self, region: u32, offset: u64, count: u64, access: Access) -> Result<(), Errno> {
        let index = usize::try_from(region).map_err(|_| Errno::INVAL)?;
        let (size, rights) = self.regions.get(index).ok_or(Errno::INVAL)?;
        let end = offset.checked_add(count).ok_or(Errno::INVAL)?;
        if end > *size || !rights.allows(access) {
            return Err(Errno::INVAL);
        }
        Ok(())
    }

    fn region_read(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (access, rest) = head::<RegionAccess>(body)?;
        let count = self.transfer(access.count.into())?;
        if !rest.is_empty() {
            return Err(Errno::INVAL);
        }
        let RegionAccess { offset, region, .. } = access;
        self.check(region, offset, count as u64, Access::Read)?;
        self.reply.extend_from_slice(access.as_bytes());
        let from = self.reply.len();
        self.reply.resize(from.saturating_add(count), 0);
        let into = self.reply.get_mut(from..).unwrap_or_default();
        if into.is_empty() {
            return Ok(());
        }
        self.device.region_read(region, offset, into)
    }

    fn region_write(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (access, data) = head::<RegionAccess>(body)?;
        let count = self.transfer(access.count.into())?;
        if data.len() != count {
            return Err(Errno::INVAL);
        }
        let RegionAccess { offset, region, .. } = access;
        self.check(region, offset, count as u64, Access::Write)?;
        if !data.is_empty() {
            self.device.region_write(region, offset, data)?;
        }
        self.reply.extend_from_slice(access.as_bytes());
        Ok(())
    }

    /// The reply says how many were done; an error means that the first was not.
    fn write_multi(&mut self, body: &[u8]) -> Result<(), Errno> {
        if !self.limits.write_multiple {
            return Err(Errno::NOSYS);
        }
        let (multi, writes) = head::<WriteMulti>(body)?;
        let length = size_of::<SmallWrite>() as u64;
        if multi.count.checked_mul(length) != Some(writes.len() as u64) {
            return Err(Errno::INVAL);
        }
        let mut done: u64 = 0;
        for write in writes.chunks_exact(size_of::<SmallWrite>()) {
            match self.small_write(write) {
                Ok(()) => done = done.saturating_add(1),
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        self.reply
            .extend_from_slice(WriteMulti { count: done }.as_bytes());
        Ok(())
    }

    fn small_write(&self, write: &[u8]) -> Result<(), Errno> {
        let (write, _) = head::<SmallWrite>(write)?;
        let SmallWrite { region, offset, .. } = write;
        let count = usize::try_from(write.count).map_err(|_| Errno::INVAL)?;
        let data = write.data.get(..count).ok_or(Errno::INVAL)?;
        self.check(region, offset, count as u64, Access::Write)?;
        if data.is_empty() {
            return Ok(());
        }
        self.device.region_write(region, offset, data)
    }

    fn dma_map(&mut self, body: &[u8], mut files: Vec<OwnedFd>) -> Result<(), Errno> {
        use crate::wire::DmaMap as Request;
        let (map, rest) = head::<Request>(body)?;
        let known = MAP_READ | MAP_WRITE | MAP_MMAP | MAP_FILE_IO;
        let argsz = usize::try_from(map.argsz).map_err(|_| Errno::INVAL)?;
        if argsz < size_of::<Request>() || !rest.is_empty() || map.flags & !known != 0 {
            return Err(Errno::INVAL);
        }
        let rights = Rights::new(map.flags & MAP_READ != 0, map.flags & MAP_WRITE != 0);
        let span = span(map.address, map.size)?;
        map.offset.checked_add(map.size).ok_or(Errno::INVAL)?;
        let file = files.pop();
        if !files.is_empty() || (file.is_none() && map.offset != 0) {
            return Err(Errno::INVAL);
        }
        if self.mapped.overlaps(span) {
            return Err(Errno::EXIST);
        }
        let most = usize::try_from(self.limits.max_dma_maps).unwrap_or(usize::MAX);
        if self.mapped.len() >= most {
            return Err(Errno::NOSPC);
        }
        let map = DmaMap {
            span,
            rights,
            file: file.map(|file| (file, map.offset)),
        };
        self.device.dma_map(self.peer, map)?;
        self.mapped.insert(span);
        Ok(())
    }

    /// The reply repeats the request; with the dirty bitmap if that was wanted.
    fn dma_unmap(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (unmap, rest) = head::<DmaUnmap>(body)?;
        self.reply.extend_from_slice(unmap.as_bytes());
        match unmap.flags {
            UNMAP_ALL if unmap.address == 0 && unmap.size == 0 => {
                for span in self.mapped.clear() {
                    self.device.dma_unmap(self.peer, span);
                }
                return Ok(());
            }
            0 => {}
            UNMAP_GET_DIRTY => {
                let span = span(unmap.address, unmap.size)?;
                let fixed = size_of::<DmaUnmap>();
                self.dirty_bitmap(span, rest, unmap.argsz, fixed)?;
            }
            _ => return Err(Errno::INVAL),
        }
        for span in self.mapped.remove(span(unmap.address, unmap.size)?)? {
            self.device.dma_unmap(self.peer, span);
        }
        Ok(())
    }

    /// Adds the bitmap of `span` that `request`, a [`Bitmap`], asks for.
    fn dirty_bitmap(
        &mut self,
        span: Span<Iova>,
        request: &[u8],
        argsz: u32,
        fixed: usize,
    ) -> Result<(), Errno> {
        let (bitmap, _) = head::<Bitmap>(request)?;
        if !bitmap.page_size.is_power_of_two() {
            return Err(Errno::INVAL);
        }
        let pages = span
            .last_offset()
            .checked_div(bitmap.page_size)
            .unwrap_or(0);
        let least = (pages / 64).saturating_add(1).saturating_mul(8);
        let size = self.transfer(bitmap.size)?;
        let whole = fixed
            .saturating_add(size_of::<Bitmap>())
            .saturating_add(size);
        if bitmap.size < least || (argsz as u64) < whole as u64 {
            return Err(Errno::INVAL);
        }
        self.reply.extend_from_slice(bitmap.as_bytes());
        let from = self.reply.len();
        self.reply.resize(from.saturating_add(size), 0);
        let into = self.reply.get_mut(from..).unwrap_or_default();
        self.device.dirty(self.peer, span, bitmap.page_size, into)
    }

    fn dirty_pages(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (request, rest) = head::<DirtyPages>(body)?;
        match request.flags {
            DIRTY_START => self.device.log_dirty(self.peer, true),
            DIRTY_STOP => self.device.log_dirty(self.peer, false),
            DIRTY_GET => {
                let (range, rest) = head::<DirtyRange>(rest)?;
                self.reply.extend_from_slice(request.as_bytes());
                self.reply.extend_from_slice(range.as_bytes());
                let fixed = self.reply.len();
                let span = span(range.address, range.size)?;
                self.dirty_bitmap(span, rest, request.argsz, fixed)
            }
            _ => Err(Errno::INVAL),
        }
    }
}
