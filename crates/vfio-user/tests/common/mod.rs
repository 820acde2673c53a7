//! A raw client, and a device that notes what it is told.
#![allow(dead_code)]

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use iogate_dma::{Iova, Rights, Span};
use iogate_vfio_user::wire::{Command, HEADER, Header, flags};
use iogate_vfio_user::{
    Connection, Device, DeviceInfo, DmaMap, Ended, Errno, FeatureCall, FeatureOperation, Irq,
    IrqAction, IrqData, Peer, Region, ServerOptions, SetIrqs,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::{FromBytes, IntoBytes};

/// What a device was told, in its own words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    Connected,
    Disconnected,
    Write(u32, u64, Vec<u8>),
    Map(u64, u64, Rights, Option<u64>),
    Unmap(u64, u64),
    Irqs(u32, u32, u32, IrqAction, &'static str, usize),
    Reset,
    Feature(u16, FeatureOperation, Vec<u8>),
    MigrationWrite(Vec<u8>),
}

/// What a write does beside being noted.
pub(crate) type Act = Box<dyn FnMut(&Peer) + Send>;

/// Region 0: 64 KiB of memory; region 1: read-only; region 2: does not exist.
/// Interrupt type 0: 4 of them; type 1: none.
#[derive(Default)]
pub(crate) struct Noting {
    pub(crate) told: Mutex<Vec<Told>>,
    pub(crate) memory: Mutex<Vec<u8>>,
    pub(crate) peer: Mutex<Option<Arc<Peer>>>,
    pub(crate) files: Mutex<Vec<OwnedFd>>,
    /// A worker that has to leave the memory before it is unmapped.
    pub(crate) before_unmap: Mutex<Option<JoinHandle<()>>>,
    /// Done by a write to region 0.
    pub(crate) on_write: Mutex<Option<Act>>,
}

impl Noting {
    pub(crate) fn new() -> Arc<Self> {
        let noting = Self::default();
        noting.memory.lock().unwrap().resize(64 << 10, 0);
        Arc::new(noting)
    }

    pub(crate) fn tell(&self, told: Told) {
        self.told.lock().unwrap().push(told);
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

impl Device for Noting {
    fn connected(&self, client: &Arc<Peer>) -> Result<(), Errno> {
        *self.peer.lock().unwrap() = Some(Arc::clone(client));
        self.tell(Told::Connected);
        Ok(())
    }

    fn disconnected(&self, _: &Peer) {
        self.tell(Told::Disconnected);
        self.files.lock().unwrap().clear();
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            regions: 3,
            irqs: 2,
            reset: true,
            pci: true,
        }
    }

    fn region(&self, index: u32) -> Result<Region<'_>, Errno> {
        let (size, rights) = match index {
            0 => (64 << 10, Rights::READ_WRITE),
            1 => (4096, Rights::READ),
            _ => (0, Rights::NONE),
        };
        Ok(Region {
            size,
            rights,
            ..Region::default()
        })
    }

    fn region_read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        if region == 1 {
            into.fill(0x11);
            return Ok(());
        }
        let memory = self.memory.lock().unwrap();
        into.copy_from_slice(&memory[offset as usize..][..into.len()]);
        Ok(())
    }

    fn region_write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        if let Some(act) = &mut *self.on_write.lock().unwrap() {
            act(self.peer.lock().unwrap().as_ref().unwrap());
        }
        self.tell(Told::Write(region, offset, from.to_vec()));
        let mut memory = self.memory.lock().unwrap();
        memory[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        let count = if index == 0 { 4 } else { 0 };
        Ok(Irq { count, flags: 1 })
    }

    fn set_irqs(&self, _: &Peer, set: SetIrqs<'_>) -> Result<(), Errno> {
        let (data, count) = match set.data {
            IrqData::None => ("none", 0),
            IrqData::Bool(bools) => ("bool", bools.iter().filter(|byte| **byte != 0).count()),
            IrqData::Eventfds(files) => {
                let count = files.len();
                self.files.lock().unwrap().extend(files);
                ("eventfd", count)
            }
        };
        let SetIrqs {
            index,
            start,
            count: of,
            action,
            ..
        } = set;
        self.tell(Told::Irqs(index, start, of, action, data, count));
        Ok(())
    }

    fn dma_map(&self, _: &Arc<Peer>, map: DmaMap) -> Result<(), Errno> {
        let length = map.span.length().unwrap();
        let offset = map.file.map(|(file, offset)| {
            self.files.lock().unwrap().push(file);
            offset
        });
        self.tell(Told::Map(map.span.first().0, length, map.rights, offset));
        Ok(())
    }

    fn dma_unmap(&self, _: &Peer, span: Span<Iova>) {
        let waited = self.before_unmap.lock().unwrap().take();
        if let Some(worker) = waited {
            worker.join().unwrap();
        }
        self.tell(Told::Unmap(span.first().0, span.length().unwrap()));
    }

    fn reset(&self, _: &Peer) -> Result<(), Errno> {
        self.tell(Told::Reset);
        Ok(())
    }

    fn feature(&self, _: &Peer, call: FeatureCall<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        if call.index != 2 {
            return Err(Errno::NOTTY);
        }
        self.tell(Told::Feature(
            call.index,
            call.operation,
            call.data.to_vec(),
        ));
        if call.operation == FeatureOperation::Get {
            reply.extend_from_slice(&[1; 8]);
        }
        Ok(())
    }

    fn migration_read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let length = into.len().min(100);
        into[..length].fill(7);
        Ok(length)
    }

    fn migration_write(&self, from: &[u8]) -> Result<(), Errno> {
        self.tell(Told::MigrationWrite(from.to_vec()));
        Ok(())
    }
}

/// A device served on a thread of its own, and the other end of the socket.
pub(crate) struct Served {
    pub(crate) device: Arc<Noting>,
    pub(crate) stream: UnixStream,
    pub(crate) thread: JoinHandle<Ended>,
}

pub(crate) fn serve_with(options: ServerOptions) -> Served {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let device = Noting::new();
    let serving = Arc::clone(&device);
    let thread =
        std::thread::spawn(move || Connection::new(theirs.into(), options).serve(&*serving));
    Served {
        device,
        stream: ours,
        thread,
    }
}

pub(crate) fn serve() -> Served {
    serve_with(ServerOptions::default())
}

pub(crate) fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let header = Header {
        id,
        command,
        size: (HEADER + body.len()) as u32,
        flags,
        error: 0,
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn receive(stream: &mut UnixStream) -> (Header, Vec<u8>) {
    let mut head = [0; HEADER];
    stream.read_exact(&mut head).unwrap();
    let header = Header::read_from_bytes(&head).unwrap();
    let mut body = vec![0; header.size as usize - HEADER];
    stream.read_exact(&mut body).unwrap();
    (header, body)
}

/// Sends `bytes` with descriptors at their first byte.
pub(crate) fn send_files(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)));
    let parts = [IoSlice::new(bytes)];
    let sent = sendmsg(stream, &parts, &mut ancillary, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

/// The writing ends of a pipe, and the end that says when all are closed.
pub(crate) struct Leak(std::io::PipeReader, std::io::PipeWriter);

impl Leak {
    pub(crate) fn new() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        Self(reader, writer)
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }

    /// Returns when nobody else has the writing end any more.
    pub(crate) fn wait_until_closed(self) {
        let Self(mut reader, writer) = self;
        drop(writer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}

impl Served {
    /// As `call`, with descriptors.
    pub(crate) fn call_with(
        &mut self,
        command: Command,
        body: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, i32> {
        let bytes = message(77, command.number(), 0, body);
        send_files(&self.stream, &bytes, files);
        self.reply(command)
    }

    pub(crate) fn send(&mut self, id: u16, command: Command, flags: u32, body: &[u8]) {
        let bytes = message(id, command.number(), flags, body);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The payload of the reply, or its errno.
    pub(crate) fn call(&mut self, command: Command, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.send(77, command, 0, body);
        self.reply(command)
    }

    fn reply(&mut self, command: Command) -> Result<Vec<u8>, i32> {
        let (header, body) = receive(&mut self.stream);
        assert_eq!((header.id, header.command), (77, command.number()));
        assert_eq!(header.flags & flags::TYPE, flags::REPLY);
        if header.flags & flags::ERROR != 0 {
            assert!(body.is_empty());
            return Err(header.error as i32);
        }
        Ok(body)
    }

    pub(crate) fn peer(&self) -> Arc<Peer> {
        loop {
            if let Some(peer) = &*self.device.peer.lock().unwrap() {
                return Arc::clone(peer);
            }
            std::thread::yield_now();
        }
    }

    pub(crate) fn version(&mut self) {
        let json = br#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"write_multiple":true}}"#;
        let mut body = vec![0; 4];
        body.extend_from_slice(json);
        body.push(0);
        self.call(Command::Version, &body).unwrap();
    }

    /// Closes the client's end and says how the serving ended.
    pub(crate) fn close(self) -> (Ended, Vec<Told>) {
        drop(self.stream);
        let ended = self.thread.join().unwrap();
        (ended, self.device.told())
    }
}
