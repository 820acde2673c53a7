//! A client: against a server of this crate, and against one that answers
//! what it should not.

mod common;

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Leak, Noting, Told, message, receive, send_files, serve};
use iogate_dma::{Iova, Memory, MemoryError, Rights, Span, Width};
use iogate_vfio_user::wire::{self, Command, HEADER, Header, RegionAccess, flags};
use iogate_vfio_user::{
    Client, ClientOptions, Connection, Device, DeviceInfo, DmaMap, Ended, Errno, Error,
    FeatureOperation, Irq, IrqAction, IrqTarget, Peer, Region, Server, ServerOptions, SetIrqs,
};
use zerocopy::{FromBytes, IntoBytes};

fn connect() -> (Client, Arc<Noting>, JoinHandle<Ended>) {
    let served = serve();
    let client = Client::from_socket(served.stream.into(), ClientOptions::default()).unwrap();
    (client, served.device, served.thread)
}

fn span(first: u64, length: u64) -> Span<Iova> {
    Span::with_length(Iova(first), length).unwrap()
}

/// A server whose every answer the test makes itself.
fn by_hand(
    version: &str,
    options: ClientOptions,
) -> (JoinHandle<Result<Client, Error>>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || Client::from_socket(ours.into(), options));
    let mut theirs = theirs;
    let (header, _) = receive(&mut theirs);
    answer(
        &mut theirs,
        &header,
        0,
        format!("\0\0\0\0{version}\0").as_bytes(),
    );
    (thread, theirs)
}

const PLAIN: &str = r#"{"capabilities":{"max_msg_fds":2,"max_data_xfer_size":64}}"#;

fn ready() -> (Arc<Client>, UnixStream) {
    let (thread, stream) = by_hand(PLAIN, ClientOptions::default());
    (Arc::new(thread.join().unwrap().unwrap()), stream)
}

fn answer(stream: &mut UnixStream, to: &Header, errno: u32, body: &[u8]) {
    let header = Header {
        id: to.id,
        command: to.command,
        size: (HEADER + body.len()) as u32,
        flags: flags::REPLY | if errno == 0 { 0 } else { flags::ERROR },
        error: errno,
    };
    stream
        .write_all(&[header.as_bytes(), body].concat())
        .unwrap();
}

#[test]
fn a_client_reads_what_it_wrote() {
    let (client, device, thread) = connect();
    assert_eq!(client.info().unwrap().regions, 3);
    assert_eq!(client.region(0).unwrap().size, 64 << 10);
    assert_eq!(client.region(1).unwrap().rights, Rights::READ);
    assert_eq!(client.irq(0).unwrap().count, 4);
    client.region_write(0, 16, &[1, 2, 3, 4]).unwrap();
    client.region_post(0, 20, &[5]).unwrap();
    assert_eq!(
        client.write_multi(&[(0, 21, &[6]), (0, 22, &[7, 8])]),
        Ok(2)
    );
    let mut read = [0; 8];
    client.region_read(0, 16, &mut read).unwrap();
    assert_eq!(read, [1, 2, 3, 4, 5, 6, 7, 8]);
    client.reset().unwrap();
    assert_eq!(
        client.feature(2, FeatureOperation::Get, &[], 8).unwrap(),
        [1; 8]
    );
    let mut state = [0; 200];
    assert_eq!(client.migration_read(&mut state).unwrap(), 100);
    client.migration_write(&[1, 2]).unwrap();
    drop(client);
    assert_eq!(thread.join().unwrap(), Ended::Disconnected);
    let told = device.told();
    assert_eq!(told[1], Told::Write(0, 16, vec![1, 2, 3, 4]));
    assert_eq!(told[2], Told::Write(0, 20, vec![5]));
    assert_eq!(told[5], Told::Reset);
}

#[test]
fn many_threads_use_one_connection() {
    let (client, _, thread) = connect();
    std::thread::scope(|scope| {
        for index in 0..8_u64 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..500_u64 {
                    let data = (round << 8 | index).to_ne_bytes();
                    if round % 2 == 0 {
                        client.region_post(0, index * 4096, &data).unwrap();
                    } else {
                        client.region_write(0, index * 4096, &data).unwrap();
                    }
                    let mut read = [0; 8];
                    client.region_read(0, index * 4096, &mut read).unwrap();
                    assert_eq!(read, data);
                }
            });
        }
    });
    drop(client);
    assert_eq!(thread.join().unwrap(), Ended::Disconnected);
}

#[test]
fn replies_are_given_to_whom_they_belong_whatever_their_order() {
    let (client, mut stream) = ready();
    let threads: Vec<_> = (0..6_u64)
        .map(|index| {
            let client = Arc::clone(&client);
            std::thread::spawn(move || {
                let mut into = [0; 8];
                client.region_read(0, index, &mut into).unwrap();
                assert_eq!(into, [index as u8; 8]);
            })
        })
        .collect();
    let mut requests: Vec<_> = threads.iter().map(|_| receive(&mut stream)).collect();
    requests.rotate_left(2);
    requests.reverse();
    for (header, body) in requests {
        let access = RegionAccess::read_from_bytes(&body).unwrap();
        let data = [access.offset as u8; 8];
        answer(&mut stream, &header, 0, &[&body, &data[..]].concat());
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

/// What the `vfio_user` crate 0.1.7 takes for success.
#[test]
fn an_error_reply_is_an_error_for_every_request() {
    let (client, mut stream) = ready();
    let thread = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut note = |result: Result<(), Error>| seen.push(result.unwrap_err());
        note(client.info().map(drop));
        note(client.region(0).map(drop));
        note(client.region_io(0).map(drop));
        note(client.irq(0).map(drop));
        note(client.set_irqs(0, 0, 1, IrqAction::Trigger, IrqTarget::None));
        note(client.region_read(0, 0, &mut [0; 4]));
        note(client.region_write(0, 0, &[0; 4]));
        note(client.dma_map(span(0, 4096), Rights::READ, None));
        note(client.dma_unmap(span(0, 4096)));
        note(client.dma_unmap_all());
        note(client.reset());
        note(client.feature(1, FeatureOperation::Get, &[], 8).map(drop));
        note(client.migration_read(&mut [0; 4]).map(drop));
        note(client.migration_write(&[0; 4]));
        seen
    });
    let mut commands = Vec::new();
    for _ in 0..14 {
        let (header, _) = receive(&mut stream);
        let command = Command::from_number(header.command).unwrap();
        let errno = Errno::EXIST;
        answer(&mut stream, &header, errno.raw_os_error() as u32, &[]);
        commands.push(Error::Refused { command, errno });
    }
    assert_eq!(thread.join().unwrap(), commands);
}

#[test]
fn an_error_without_an_errno_is_an_error_still() {
    let (client, mut stream) = ready();
    let thread = std::thread::spawn(move || [client.reset(), client.reset()]);
    for error in [0, 0x8000_0000_u32] {
        let (header, _) = receive(&mut stream);
        let reply = Header {
            size: HEADER as u32,
            flags: flags::REPLY | flags::ERROR,
            error,
            ..header
        };
        stream.write_all(reply.as_bytes()).unwrap();
    }
    let (command, errno) = (Command::DeviceReset, Errno::IO);
    let refused = Err(Error::Refused { command, errno });
    assert_eq!(thread.join().unwrap(), [refused, refused]);
}

#[test]
fn an_answer_that_does_not_fit_is_an_error() {
    let (client, mut stream) = ready();
    let thread = std::thread::spawn(move || {
        let mut into = [0; 4];
        let reads = [(); 4].map(|()| client.region_read(0, 0, &mut into));
        let info = client.info().map(drop);
        let region = [(); 3].map(|()| client.region(0).map(drop));
        let io = client.region_io(0).map(drop);
        (reads, info, region, io)
    });
    let access = |count| RegionAccess {
        count,
        ..Default::default()
    };
    for (count, data) in [(4, 3), (4, 5), (5, 5)] {
        let (header, _) = receive(&mut stream);
        let body = [access(count).as_bytes(), &vec![0; data]].concat();
        answer(&mut stream, &header, 0, &body);
    }
    let (mut header, _) = receive(&mut stream);
    header.command = Command::RegionWrite.number();
    answer(
        &mut stream,
        &header,
        0,
        &[access(4).as_bytes(), &[0; 4]].concat(),
    );
    let (header, _) = receive(&mut stream);
    let many = wire::DeviceInfo {
        regions: u32::MAX,
        ..Default::default()
    };
    answer(&mut stream, &header, 0, many.as_bytes());
    // Capabilities outside, going back, and more areas than there are bytes.
    let info = |cap_offset| wire::RegionInfo {
        flags: wire::REGION_CAPS,
        cap_offset,
        ..Default::default()
    };
    let (header, _) = receive(&mut stream);
    answer(&mut stream, &header, 0, info(33).as_bytes());
    let (header, _) = receive(&mut stream);
    let back = wire::CapHeader {
        id: 9,
        version: 1,
        next: 32,
    };
    answer(
        &mut stream,
        &header,
        0,
        &[info(32).as_bytes(), back.as_bytes()].concat(),
    );
    let (header, _) = receive(&mut stream);
    let sparse = wire::CapHeader {
        id: wire::CAP_SPARSE_MMAP,
        version: 1,
        next: 0,
    };
    let areas = wire::SparseMmap {
        areas: u32::MAX,
        reserved: 0,
    };
    let body = [
        info(32).as_bytes(),
        sparse.as_bytes(),
        areas.as_bytes(),
        &[0; 64],
    ]
    .concat();
    answer(&mut stream, &header, 0, &body);
    let (header, _) = receive(&mut stream);
    let parts = wire::RegionIoFds {
        count: 1,
        ..Default::default()
    };
    let part = wire::SubRegion::default();
    answer(
        &mut stream,
        &header,
        0,
        &[parts.as_bytes(), part.as_bytes()].concat(),
    );
    let (reads, info, region, io) = thread.join().unwrap();
    for result in reads.into_iter().chain([info, io]).chain(region) {
        assert!(matches!(result, Err(Error::Answer { .. })), "{result:?}");
    }
}

/// libvfio-user's `handle_mig_data_read` (lib/migration.c) gives the whole
/// buffer back whatever it read.
#[test]
fn migration_data_may_come_with_more_behind_it_but_not_be_more() {
    let (client, mut stream) = ready();
    let thread = std::thread::spawn(move || {
        let mut into = [0; 8];
        let first = client.migration_read(&mut into);
        (first, into, client.migration_read(&mut into))
    });
    for size in [3, 9] {
        let (header, _) = receive(&mut stream);
        let data = wire::MigData { argsz: 16, size };
        answer(
            &mut stream,
            &header,
            0,
            &[data.as_bytes(), &[5; 8]].concat(),
        );
    }
    let (first, into, second) = thread.join().unwrap();
    assert_eq!((first, into), (Ok(3), [5, 5, 5, 0, 0, 0, 0, 0]));
    assert!(matches!(second, Err(Error::Answer { .. })));
}

#[test]
fn what_the_server_does_not_take_is_not_sent() {
    let (client, mut stream) = ready();
    let command = Command::RegionRead;
    let (count, limit) = (65, 64);
    let too_much = |command| {
        Err(Error::TooMuch {
            command,
            count,
            limit,
        })
    };
    assert_eq!(client.region_read(0, 0, &mut [0; 65]), too_much(command));
    assert_eq!(
        client.region_write(0, 0, &[0; 65]),
        too_much(Command::RegionWrite)
    );
    assert_eq!(
        client.region_post(0, 0, &[0; 65]),
        too_much(Command::RegionWrite)
    );
    let command = Command::RegionWriteMulti;
    assert_eq!(
        client.write_multi(&[]),
        Err(Error::NotNegotiated { command })
    );
    // Eventfds go in as many messages as it takes.
    let thread = std::thread::spawn(move || {
        let (_reader, writer) = std::io::pipe().unwrap();
        let files = [writer.as_fd(); 5];
        client.set_irqs(0, 3, 5, IrqAction::Trigger, IrqTarget::Eventfds(&files))
    });
    for (start, count) in [(3, 2), (5, 2), (7, 1)] {
        let (header, body) = receive(&mut stream);
        let set = wire::SetIrqs::read_from_bytes(&body).unwrap();
        assert_eq!((set.start, set.count), (start, count));
        answer(&mut stream, &header, 0, &[]);
    }
    assert_eq!(thread.join().unwrap(), Ok(()));
}

#[test]
fn a_reply_that_comes_too_late_answers_nothing_else() {
    let options = ClientOptions {
        timeout: Duration::from_millis(700),
        ..ClientOptions::default()
    };
    let (thread, mut stream) = by_hand(PLAIN, options);
    let client = Arc::new(thread.join().unwrap().unwrap());
    let command = Command::DeviceReset;
    assert_eq!(client.reset(), Err(Error::Timeout { command }));
    let (late, _) = receive(&mut stream);
    let asking = Arc::clone(&client);
    let thread = std::thread::spawn(move || asking.reset());
    let (header, _) = receive(&mut stream);
    assert_ne!(header.id, late.id);
    answer(&mut stream, &late, 5, &[]);
    answer(&mut stream, &late, 5, &[]);
    answer(&mut stream, &header, 0, &[]);
    assert_eq!(thread.join().unwrap(), Ok(()));
}

#[test]
fn all_who_wait_are_told_when_the_server_goes() {
    let (client, mut stream) = ready();
    let threads: Vec<_> = (0..5)
        .map(|_| {
            let client = Arc::clone(&client);
            std::thread::spawn(move || client.reset())
        })
        .collect();
    for _ in &threads {
        receive(&mut stream);
    }
    drop(stream);
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Err(Error::Disconnected));
    }
    assert_eq!(client.reset(), Err(Error::Disconnected));
    assert!(!client.is_connected());
}

#[test]
fn a_version_that_was_not_proposed_is_refused() {
    let versions: [&[u8]; 6] = [
        &[],
        &[1, 0, 0, 0],
        &[0, 0, 1, 0],
        b"\0\0\0\0{}",
        b"\0\0\0\0x\0",
        b"\0\0\0\0{\"capabilities\":{\"max_dma_maps\":-1}}\0",
    ];
    for version in versions {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(|| {
            Client::from_socket(ours.into(), ClientOptions::default()).map(drop)
        });
        let (header, _) = receive(&mut theirs);
        answer(&mut theirs, &header, 0, version);
        let command = Command::Version;
        assert!(
            matches!(thread.join().unwrap(), Err(Error::Answer { command: c, .. }) if c == command)
        );
    }
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let (client, mut stream) = ready();
    let leak = Leak::new();
    let asking = Arc::clone(&client);
    let thread = std::thread::spawn(move || asking.reset());
    let (header, _) = receive(&mut stream);
    let files = [leak.file()];
    send_files(&stream, &message(999, 13, flags::REPLY, &[]), &files);
    send_files(
        &stream,
        &message(7, Command::DmaRead.number(), 0, &[0; 16]),
        &files,
    );
    send_files(&stream, &message(header.id, 13, flags::REPLY, &[]), &files);
    assert_eq!(thread.join().unwrap(), Ok(()));
    leak.wait_until_closed();
}

/// 4 KiB at 0x1000.
#[derive(Default)]
struct Page(Mutex<Vec<u8>>, AtomicU64);

impl Page {
    fn at(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>, MemoryError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let from = address.wrapping_sub(0x1000);
        match from.checked_add(length as u64) {
            Some(end) if end <= 4096 => Ok(from as usize..end as usize),
            _ => Err(MemoryError::Absent { address }),
        }
    }
}

impl Memory for Page {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let at = self.at(address, into.len())?;
        into.copy_from_slice(&self.0.lock().unwrap()[at]);
        Ok(())
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let at = self.at(address, from.len())?;
        self.0.lock().unwrap()[at].copy_from_slice(from);
        Ok(())
    }
    fn load(&self, address: u64, _: Width) -> Result<u64, MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
    fn store(&self, address: u64, _: Width, _: u64) -> Result<(), MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
    fn compare_exchange(&self, address: u64, _: Width, _: u64, _: u64) -> Result<u64, MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
}

fn with_page() -> (Arc<Client>, Arc<Page>, Arc<Noting>, JoinHandle<Ended>) {
    let page = Arc::new(Page(Mutex::new(vec![3; 4096]), AtomicU64::new(0)));
    let options = ClientOptions {
        memory: Some(Arc::clone(&page) as Arc<dyn Memory>),
        ..ClientOptions::default()
    };
    let served = serve();
    let client = Client::from_socket(served.stream.into(), options).unwrap();
    (Arc::new(client), page, served.device, served.thread)
}

#[test]
fn a_device_reaches_memory_without_a_descriptor_through_its_client() {
    let (client, page, device, _) = with_page();
    client
        .dma_map(span(0x1000, 4096), Rights::READ_WRITE, None)
        .unwrap();
    let peer = device.peer.lock().unwrap().clone().unwrap();
    let reading = Arc::clone(&client);
    let reader = std::thread::spawn(move || reading.run());
    let mut into = [0; 16];
    peer.dma_read(Iova(0x1100), &mut into).unwrap();
    assert_eq!(into, [3; 16]);
    peer.dma_write(Iova(0x1ff0), &[9; 16]).unwrap();
    assert_eq!(page.0.lock().unwrap()[0xff0..], [9; 16]);
    let (command, errno) = (Command::DmaRead, Errno::FAULT);
    let refused = Err(Error::Refused { command, errno });
    assert_eq!(peer.dma_read(Iova(0x1ff8), &mut into), refused);
    assert_eq!(
        peer.dma_read(Iova(u64::MAX - 7), &mut into)
            .unwrap_err()
            .errno(),
        Errno::INVAL
    );
    // The thread that reads does not keep others from being answered.
    for _ in 0..100 {
        client.region_read(0, 0, &mut into).unwrap();
        peer.dma_read(Iova(0x1000), &mut into).unwrap();
    }
    client.disconnect();
    assert_eq!(reader.join().unwrap(), Ended::Disconnected);
}

#[test]
fn requests_of_both_sides_cross() {
    let (client, page, device, _) = with_page();
    let peer = device.peer.lock().unwrap().clone().unwrap();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                start.wait();
                for round in 0..300 {
                    let mut into = [0; 8];
                    peer.dma_read(Iova(0x1000 + round), &mut into).unwrap();
                    peer.dma_post(Iova(0x1800), &into).unwrap();
                }
            });
        }
        let workers = [0, 1].map(|index| {
            let (client, start) = (&client, &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..300 {
                    client
                        .region_write(0, index * 8, &[index as u8; 8])
                        .unwrap();
                    client.region_read(0, 0, &mut [0; 64]).unwrap();
                }
            })
        });
        for worker in workers {
            worker.join().unwrap();
        }
        // Nobody waits for a reply now: somebody must read.
        scope.spawn(|| client.run());
        while page.1.load(Ordering::Relaxed) < 1200 {
            std::thread::sleep(Duration::from_millis(1));
        }
        client.disconnect();
    });
}

#[test]
fn memory_that_uses_its_own_client_is_refused_instead_of_waiting_for_itself() {
    struct Loop(Mutex<Option<Arc<Client>>>);
    impl Memory for Loop {
        fn read(&self, _: u64, into: &mut [u8]) -> Result<(), MemoryError> {
            let client = self.0.lock().unwrap().clone().unwrap();
            let command = Command::DeviceReset;
            assert_eq!(client.reset(), Err(Error::WithinAnswer { command }));
            into.fill(1);
            Ok(())
        }
        fn write(&self, address: u64, _: &[u8]) -> Result<(), MemoryError> {
            Err(MemoryError::Absent { address })
        }
        fn load(&self, address: u64, _: Width) -> Result<u64, MemoryError> {
            Err(MemoryError::NotAtomic { address })
        }
        fn store(&self, address: u64, _: Width, _: u64) -> Result<(), MemoryError> {
            Err(MemoryError::NotAtomic { address })
        }
        fn compare_exchange(
            &self,
            address: u64,
            _: Width,
            _: u64,
            _: u64,
        ) -> Result<u64, MemoryError> {
            Err(MemoryError::NotAtomic { address })
        }
    }
    let memory = Arc::new(Loop(Mutex::new(None)));
    let options = ClientOptions {
        memory: Some(Arc::clone(&memory) as Arc<dyn Memory>),
        ..ClientOptions::default()
    };
    let served = serve();
    let client = Arc::new(Client::from_socket(served.stream.into(), options).unwrap());
    *memory.0.lock().unwrap() = Some(Arc::clone(&client));
    client.reset().unwrap();
    let peer = served.device.peer.lock().unwrap().clone().unwrap();
    let running = Arc::clone(&client);
    let runner = std::thread::spawn(move || running.run());
    let mut into = [0; 4];
    peer.dma_read(Iova(0), &mut into).unwrap();
    assert_eq!(into, [1; 4]);
    client.disconnect();
    runner.join().unwrap();
    memory.0.lock().unwrap().take();
}

/// A device that asks another server for its registers.
struct Proxy(Client);

impl Device for Proxy {
    fn info(&self) -> DeviceInfo {
        self.0.info().unwrap()
    }
    fn region(&self, index: u32) -> Result<Region<'_>, Errno> {
        let region = self.0.region(index).map_err(|error| error.errno())?;
        Ok(Region {
            size: region.size,
            rights: region.rights,
            ..Region::default()
        })
    }
    fn region_read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let read = self.0.region_read(region, offset, into);
        read.map_err(|error| error.errno())
    }
    fn region_write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        let written = self.0.region_write(region, offset, from);
        written.map_err(|error| error.errno())
    }
    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        self.0.irq(index).map_err(|error| error.errno())
    }
    fn set_irqs(&self, _: &Peer, _: SetIrqs<'_>) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }
    fn dma_map(&self, _: &Arc<Peer>, _: DmaMap) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }
    fn dma_unmap(&self, _: &Peer, _: Span<Iova>) {}
    fn reset(&self, _: &Peer) -> Result<(), Errno> {
        self.0.reset().map_err(|error| error.errno())
    }
}

#[test]
fn a_device_may_ask_another_server_while_it_answers() {
    let (client, device, _) = connect();
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        Connection::new(theirs.into(), ServerOptions::default()).serve(&Proxy(client))
    });
    let client = Client::from_socket(ours.into(), ClientOptions::default()).unwrap();
    client.region_write(0, 4, &[1, 2, 3]).unwrap();
    let mut read = [0; 4];
    client.region_read(0, 4, &mut read).unwrap();
    assert_eq!(read, [1, 2, 3, 0]);
    client.reset().unwrap();
    assert_eq!(device.told().len(), 3);
}

/// Memory full of fives.
struct Fives;

impl Memory for Fives {
    fn read(&self, _: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        into.fill(5);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), MemoryError> {
        Ok(())
    }
    fn load(&self, address: u64, _: Width) -> Result<u64, MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
    fn store(&self, address: u64, _: Width, _: u64) -> Result<(), MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
    fn compare_exchange(&self, address: u64, _: Width, _: u64, _: u64) -> Result<u64, MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
}

#[test]
fn transfers_larger_than_the_socket_holds_arrive_whole_in_both_directions_at_once() {
    let served = serve();
    let options = ClientOptions {
        memory: Some(Arc::new(Fives)),
        ..ClientOptions::default()
    };
    let client = Client::from_socket(served.stream.into(), options).unwrap();
    client.reset().unwrap();
    let peer = served.device.peer.lock().unwrap().clone().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| client.run());
        let workers = [0, 1].map(|_| {
            scope.spawn(|| {
                let mut into = vec![0; 3 << 20];
                for _ in 0..4 {
                    into.fill(0);
                    peer.dma_read(Iova(0), &mut into).unwrap();
                    assert!(into.iter().all(|byte| *byte == 5));
                    peer.dma_write(Iova(0), &into).unwrap();
                }
            })
        });
        for _ in 0..20 {
            let mut into = vec![0; 0x10000];
            client.region_write(0, 0, &into).unwrap();
            client.region_read(0, 0, &mut into).unwrap();
        }
        for worker in workers {
            worker.join().unwrap();
        }
        client.disconnect();
        reader.join().unwrap();
    });
}

#[test]
fn clients_come_one_after_the_other_and_at_once() {
    let path = std::env::temp_dir().join(format!("iogate-wire-{}-clients", std::process::id()));
    let server = Server::bind(&path, ServerOptions::default()).unwrap();
    // The path is taken as long as somebody listens; to find out is to connect.
    assert!(Server::bind(&path, ServerOptions::default()).is_err());
    let stop = server.stop();
    let device = Noting::new();
    let ends = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| server.run(&*device, |ended| ends.lock().unwrap().push(ended)));
        }
        let first = Client::connect(&path, ClientOptions::default()).unwrap();
        let second = Client::connect(&path, ClientOptions::default()).unwrap();
        first.region_write(0, 0, &[7]).unwrap();
        let mut read = [0];
        second.region_read(0, 0, &mut read).unwrap();
        assert_eq!(read, [7]);
        // The device's state stays when a client goes.
        first.disconnect();
        assert_eq!(first.region_read(0, 0, &mut read), Err(Error::Disconnected));
        let again = first.reconnect().unwrap();
        read = [0];
        again.region_read(0, 0, &mut read).unwrap();
        assert_eq!(read, [7]);
        drop((again, second));
        while ends.lock().unwrap().len() < 4 {
            std::thread::yield_now();
        }
        stop.stop();
    });
    assert_eq!(*ends.lock().unwrap(), [Ended::Disconnected; 4]);
    // A path that nobody listens at any more is taken over.
    std::mem::drop(server);
    let stale = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(stale);
    drop(Server::bind(&path, ServerOptions::default()).unwrap());
    std::fs::write(&path, "no socket").unwrap();
    assert!(Server::bind(&path, ServerOptions::default()).is_err());
    std::fs::remove_file(&path).unwrap();
}
