//! `iogate serve` seen by a virtual machine: this test is the machine, and talks
//! to the sockets as QEMU does.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iogate_dma::{Iova, Memory, MemoryError, Rights, Span, Width};
use iogate_vfio_user::{Client, ClientOptions, IrqAction, IrqTarget};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::MemfdFlags;

const RAM: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// `iogate serve` in a directory of its own.
struct Serving {
    child: Child,
    directory: PathBuf,
    arguments: String,
    stderr: PathBuf,
}

fn serve(machine: &str, options: &[&str]) -> Serving {
    let directory = common::scratch("sockets");
    let file = common::scratch("machine.toml");
    let stderr = common::scratch("stderr");
    fs::write(&file, format!("version = 1\n{machine}")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_iogate"))
        .args(["serve", "--machine"])
        .arg(&file)
        .arg("--dir")
        .arg(&directory)
        .args(options)
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || match lines.next() {
        Some(line) => line.unwrap(),
        None => panic!("{}", fs::read_to_string(&stderr).unwrap()),
    };
    let arguments = line();
    assert_eq!(line(), "ready");
    Serving {
        child,
        directory,
        arguments,
        stderr,
    }
}

impl Serving {
    fn socket(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// A guest's memory.
struct Guest {
    ram: OwnedFd,
    next: u64,
}

fn guest() -> Guest {
    let ram = rustix::fs::memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&ram, RAM).unwrap();
    Guest {
        ram,
        next: 0x10_0000,
    }
}

impl Guest {
    fn write(&self, at: u64, bytes: &[u8]) {
        rustix::io::pwrite(&self.ram, bytes, at).unwrap();
    }
    fn write64(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }
    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        rustix::io::pread(&self.ram, &mut bytes, at).unwrap();
        bytes
    }
    fn read64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at))
    }
    fn page(&mut self) -> u64 {
        self.next += 4096;
        self.write(self.next, &[0; 4096]);
        self.next
    }

    /// Connects to a socket and tells of the memory, as each function of a
    /// machine does.
    fn plug(&self, path: &Path, options: ClientOptions) -> Client {
        let client = Client::connect(path, options).unwrap();
        let span = Span::with_length(Iova(0), RAM).unwrap();
        let file = Some((self.ram.as_fd(), 0));
        client.dma_map(span, Rights::READ_WRITE, file).unwrap();
        client
    }

    /// A second-stage table of 4 levels that has one page.
    fn table(&mut self, iova: u64, to: u64) -> u64 {
        let root = self.page();
        let mut table = root;
        for level in (1..=3).rev() {
            let next = self.page();
            self.write64(table + (iova >> (12 + 9 * level) & 511) * 8, next | 3);
            table = next;
        }
        self.write64(table + (iova >> 12 & 511) * 8, to | 3);
        root
    }
}

fn unset() -> ClientOptions {
    ClientOptions::default()
}

const CONFIG: u32 = 7;

/// What a register says once it says it.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn read32(client: &Client, region: u32, at: u64) -> u32 {
    let mut bytes = [0; 4];
    client.region_read(region, at, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

fn read64(client: &Client, region: u32, at: u64) -> u64 {
    let mut bytes = [0; 8];
    client.region_read(region, at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// Memory Space Enable and Bus Master Enable.
fn enable(client: &Client) {
    client.region_write(CONFIG, 4, &[6, 0]).unwrap();
}

/// Sets the root table and enables translation. VT-d 4.1 sections 11.4.4 and
/// 11.4.5.
fn translate(unit: &Client, root: u64) {
    unit.region_write(0, 0x20, &root.to_le_bytes()).unwrap();
    for (command, status) in [(1_u32 << 30, 1 << 30), (1 << 31, 1 << 31)] {
        let now = read32(unit, 0, 0x1c) & 0x96ff_ffff;
        let value = (now | command).to_le_bytes();
        unit.region_write(0, 0x18, &value).unwrap();
        wait_for("the command", || {
            (read32(unit, 0, 0x1c) & status != 0).then_some(())
        });
    }
}

/// A root table that leads a device of bus 0 to a second-stage table.
fn root(guest: &mut Guest, device: u64, table: u64) -> u64 {
    let (root, context) = (guest.page(), guest.page());
    guest.write64(root, context | 1);
    guest.write64(context + device * 8 * 16, table | 1);
    guest.write64(context + device * 8 * 16 + 8, 1 << 8 | 2);
    root
}

/// A transfer of edu between its buffer and memory.
fn edu(client: &Client, memory: u64, count: u64, to_memory: bool) {
    let buffer = 0x4_0000_u64;
    let (from, to) = if to_memory {
        (buffer, memory)
    } else {
        (memory, buffer)
    };
    for (at, value) in [(0x80, from), (0x88, to), (0x90, count)] {
        client.region_write(0, at, &value.to_le_bytes()).unwrap();
    }
    let command = 1 | u64::from(to_memory) << 1;
    client
        .region_write(0, 0x98, &command.to_le_bytes())
        .unwrap();
    wait_for("the transfer", || {
        (read64(client, 0, 0x98) & 1 == 0).then_some(())
    });
}

const IOVA: u64 = 0x76_5432_1000;
const EDU: &str = "[[iommu]]\nname = 'unit'\nkind = 'vtd'\n\
                   [[device]]\nmodel = 'edu'\ndma-mask = 0xffffffffffff\n";

/// What a unit writes to its client's memory: its messages.
#[derive(Default)]
struct Messages(Mutex<Vec<(u64, u32)>>);

impl Memory for Messages {
    fn read(&self, address: u64, _: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError::Absent { address })
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let data = u32::from_le_bytes(from.try_into().unwrap());
        self.0.lock().unwrap().push((address, data));
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
fn dma_goes_where_the_guests_tables_say_and_what_is_refused_interrupts_the_guest() {
    let serving = serve(EDU, &[]);
    let mut guest = guest();
    let messages = Arc::new(Messages::default());
    let options = ClientOptions {
        memory: Some(messages.clone()),
        ..unset()
    };
    let unit = Arc::new(guest.plug(&serving.socket("unit"), options));
    let device = guest.plug(&serving.socket("edu"), unset());
    let reader = Arc::clone(&unit);
    let reading = std::thread::spawn(move || reader.run());
    // Bus Master Enable is always set: QEMU would drop its messages.
    assert_eq!(read32(&unit, CONFIG, 4) & 4, 4);
    assert_eq!(read32(&unit, CONFIG, 8) >> 8, 0x08_0000);
    enable(&device);

    let (from, to) = (guest.page(), guest.page());
    guest.write(from, b"by way of the unit");
    edu(&device, from, 18, false);
    let table = guest.table(IOVA, to);
    let root = root(&mut guest, 5, table);
    // Fault event: unmasked, its data and address.
    for (at, value) in [(0x3c, 0x21_u32), (0x40, 0xfee0_1000), (0x38, 0)] {
        unit.region_write(0, at, &value.to_le_bytes()).unwrap();
    }
    translate(&unit, root);
    edu(&device, IOVA, 18, true);
    assert_eq!(&guest.read::<18>(to), b"by way of the unit");
    assert!(messages.0.lock().unwrap().is_empty());

    edu(&device, IOVA + 0x1000, 4, true);
    let message = wait_for("the fault event", || {
        messages.0.lock().unwrap().first().copied()
    });
    assert_eq!(message, (0xfee0_1000, 0x21));
    let record = 16 * (read64(&unit, 0, 8) >> 24 & 0x3ff);
    assert_eq!(read64(&unit, 0, record), IOVA + 0x1000);
    let high = read64(&unit, 0, record + 8);
    // F, a write, reason 5 (no right to write), source 00:05.0.
    assert_eq!((high >> 63, high >> 32 & 0xff, high & 0xffff), (1, 5, 0x28));
    let said = wait_for("a word about it", || {
        let said = serving.said();
        said.contains("edu 0000:00:05.0: write at 0x7654322000")
            .then_some(said)
    });
    assert_eq!(said.lines().count(), 1, "{said}");
    unit.disconnect();
    reading.join().unwrap();
}

#[test]
fn a_device_with_ats_asks_its_unit_and_forgets_when_it_is_told_to() {
    let machine = EDU.replace("'vtd'", "'vtd'\nats = true");
    let serving = serve(&machine, &[]);
    let mut guest = guest();
    let unit = guest.plug(&serving.socket("unit"), unset());
    let device = guest.plug(&serving.socket("edu"), unset());
    enable(&device);
    // The only extended capability: ATS.
    assert_eq!(read32(&device, CONFIG, 0x100) & 0xffff, 0x0f);
    let (from, to) = (guest.page(), guest.page());
    guest.write(from, b"translated");
    edu(&device, from, 10, false);
    let table = guest.table(IOVA, to);
    // Translation Type 1: translation requests are answered.
    let root = root(&mut guest, 5, table | 1 << 2);
    translate(&unit, root);
    device
        .region_write(CONFIG, 0x106, &0x8000_u16.to_le_bytes())
        .unwrap();
    edu(&device, IOVA, 10, true);
    assert_eq!(&guest.read::<10>(to), b"translated");
    // An invalidation queue with one device-TLB invalidation of everything of
    // 00:05.0, an IOTLB invalidation of everything, and a wait. VT-d 4.1
    // section 6.5.2.
    let (queue, status) = (guest.page(), guest.page());
    let mut leaf = table;
    for level in (1..=3).rev() {
        leaf = guest.read64(leaf + (IOVA >> (12 + 9 * level) & 511) * 8) & !0xfff;
    }
    guest.write64(leaf + (IOVA >> 12 & 511) * 8, 0);
    let descriptors = [
        [2 | 1 << 4, 0],
        [3 | 0x28 << 32, 0x7fff_ffff_ffff_f001],
        [5 | 1 << 5 | 7 << 32, status],
    ];
    for (at, [low, high]) in (queue..).step_by(16).zip(descriptors) {
        guest.write64(at, low);
        guest.write64(at + 8, high);
    }
    unit.region_write(0, 0x90, &queue.to_le_bytes()).unwrap();
    let command = (read32(&unit, 0, 0x1c) & 0x96ff_ffff | 1 << 26).to_le_bytes();
    unit.region_write(0, 0x18, &command).unwrap();
    unit.region_write(0, 0x88, &0x30_u64.to_le_bytes()).unwrap();
    wait_for("the wait", || {
        (guest.read64(status) & 0xff == 7).then_some(())
    });
    edu(&device, IOVA, 10, false);
    wait_for("a word about it", || {
        serving
            .said()
            .contains("read at 0x7654321000")
            .then_some(())
    });
}

#[test]
fn vectors_and_the_line_reach_the_eventfds_that_are_bound_to_them() {
    let serving = serve(EDU, &[]);
    let device = guest().plug(&serving.socket("edu"), unset());
    enable(&device);
    let raise = |bits: u32| device.region_write(0, 0x60, &bits.to_le_bytes()).unwrap();
    let acknowledge = || {
        device
            .region_write(0, 0x64, &u32::MAX.to_le_bytes())
            .unwrap();
    };
    let new = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let count = |event: &OwnedFd| {
        let mut count = [0; 8];
        rustix::io::read(event, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    };
    let set = |index, action, target: IrqTarget<'_>, count| {
        device.set_irqs(index, 0, count, action, target)
    };
    let (line, message) = (new(), new());
    let trigger = IrqAction::Trigger;
    set(0, trigger, IrqTarget::Eventfds(&[line.as_fd()]), 1).unwrap();
    raise(1);
    assert_eq!(count(&line), 1);
    // It is masked until it is unmasked; it is asserted still.
    set(0, IrqAction::Unmask, IrqTarget::None, 1).unwrap();
    assert_eq!(count(&line), 1);
    acknowledge();
    // MSI while the line is set up.
    assert!(set(1, trigger, IrqTarget::Eventfds(&[message.as_fd()]), 1).is_err());
    set(0, trigger, IrqTarget::None, 0).unwrap();
    // A guest writes its own message and enables it, as it would without VFIO.
    let capability = (0..48).try_fold(read32(&device, CONFIG, 0x34) & 0xff, |at, _| {
        let header = read32(&device, CONFIG, at.into());
        if header & 0xff == 5 {
            Err(at)
        } else {
            Ok(header >> 8 & 0xff)
        }
    });
    let msi = u64::from(capability.unwrap_err());
    device
        .region_write(CONFIG, msi + 4, &0xfee0_2000_u32.to_le_bytes())
        .unwrap();
    device
        .region_write(CONFIG, msi + 12, &0x4041_u16.to_le_bytes())
        .unwrap();
    device
        .region_write(CONFIG, msi + 2, &1_u16.to_le_bytes())
        .unwrap();
    set(1, trigger, IrqTarget::Eventfds(&[message.as_fd()]), 1).unwrap();
    device
        .region_write(CONFIG, msi + 12, &0x4052_u16.to_le_bytes())
        .unwrap();
    raise(2);
    assert_eq!((count(&message), count(&line)), (1, 0));
    // A reset forgets what is pending, not where it would go.
    device.reset().unwrap();
    enable(&device);
    raise(4);
    assert_eq!(count(&message), 1);
    set(1, trigger, IrqTarget::None, 0).unwrap();
    acknowledge();
    raise(8);
    assert_eq!(count(&message), 0);
}

#[test]
fn a_client_that_dies_takes_its_memory_with_it_and_the_next_one_begins_anew() {
    let serving = serve("[[device]]\nmodel = 'edu'\niommu = 'none'", &[]);
    let guest = guest();
    let path = serving.socket("edu");
    let first = guest.plug(&path, unset());
    enable(&first);
    // One client at a time.
    let second = Client::connect(&path, unset());
    assert!(second.is_err() || second.unwrap().info().is_err());
    first.disconnect();
    drop(first);
    let next = wait_for("the seat to be free", || {
        let next = Client::connect(&path, unset()).ok()?;
        next.info().ok().map(|_| next)
    });
    assert_eq!(read32(&next, CONFIG, 4) & 6, 0);
    enable(&next);
    edu(&next, 0x1000, 64, true);
    let said = wait_for("a word about it", || {
        let said = serving.said();
        said.contains("is refused").then_some(said)
    });
    assert!(
        said.contains("edu 0000:00:04.0: write at 0x1000-0x103f"),
        "{said}"
    );
    // Its memory is its own.
    let span = Span::with_length(Iova(0), RAM).unwrap();
    next.dma_map(span, Rights::READ_WRITE, Some((guest.ram.as_fd(), 0)))
        .unwrap();
    guest.write(0x2000, &[7; 64]);
    edu(&next, 0x2000, 64, false);
    edu(&next, 0x3000, 64, true);
    assert_eq!(guest.read::<64>(0x3000), [7; 64]);
}

#[test]
fn maps_of_every_kind_are_survived() {
    let serving = serve("[[device]]\nmodel = 'edu'\niommu = 'none'", &[]);
    let guest = guest();
    let page = Arc::new(Messages::default());
    let options = ClientOptions {
        memory: Some(page.clone()),
        ..unset()
    };
    let client = Arc::new(Client::connect(serving.socket("edu"), options).unwrap());
    enable(&client);
    let span = |first, length| Span::with_length(Iova(first), length).unwrap();
    let rw = Rights::READ_WRITE;
    let map = |first, length, file| client.dma_map(span(first, length), rw, file);
    // Not of whole pages.
    assert!(map(0x10, 0x20, None).is_err());
    // Beyond the end of the file, and no file that can be mapped: the client is
    // asked for them.
    let (pipe, _end) = std::io::pipe().unwrap();
    map(0x10_0000, 0x1000, Some((guest.ram.as_fd(), RAM))).unwrap();
    map(0x20_0000, 0x1000, Some((pipe.as_fd(), 0))).unwrap();
    map(0x30_0000, 0x1000, None).unwrap();
    let reader = Arc::clone(&client);
    let reading = std::thread::spawn(move || reader.run());
    for (count, at) in [(1, 0x10_0000), (2, 0x20_0000), (3, 0x30_0000)] {
        edu(&client, at, 4, true);
        assert_eq!(page.0.lock().unwrap().last(), Some(&(at, 0)));
        assert_eq!(page.0.lock().unwrap().len(), count);
    }
    // A file that shrinks afterwards.
    let short = rustix::fs::memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&short, 0x2000).unwrap();
    map(0x40_0000, 0x2000, Some((short.as_fd(), 0))).unwrap();
    rustix::fs::ftruncate(&short, 0).unwrap();
    edu(&client, 0x40_0000, 64, true);
    edu(&client, 0x40_0000, 64, false);
    // Everything at the top of the address space.
    let _ = map(0xffff_ffff_ffff_f000, 0x1000, None);
    client.dma_unmap_all().unwrap();
    edu(&client, 0x30_0000, 4, true);
    assert_eq!(page.0.lock().unwrap().len(), 3);
    client.disconnect();
    reading.join().unwrap();
    assert!(serving.said().contains("is refused"));
}

#[test]
fn a_client_that_dies_while_a_device_asks_it_does_not_stop_the_device() {
    let serving = serve("[[device]]\nmodel = 'edu'\niommu = 'none'", &[]);
    let path = serving.socket("edu");
    for _ in 0..5 {
        let client = wait_for("the seat to be free", || {
            let client = Client::connect(&path, unset()).ok()?;
            client.info().ok().map(|_| client)
        });
        enable(&client);
        let span = Span::with_length(Iova(0), RAM).unwrap();
        client.dma_map(span, Rights::READ_WRITE, None).unwrap();
        // Nobody reads what the device asks for.
        for (at, value) in [(0x80, 0x4_0000_u64), (0x88, 0), (0x90, 64), (0x98, 3)] {
            client.region_write(0, at, &value.to_le_bytes()).unwrap();
        }
        client.disconnect();
    }
}

#[test]
fn a_device_of_another_server_reaches_what_the_guests_tables_say() {
    let elsewhere = serve(
        "[[device]]\nmodel = 'edu'\nname = 'far'\ndma-mask = 0xffffffffffff\niommu = 'none'",
        &[],
    );
    let machine = format!(
        "[[iommu]]\nname = 'unit'\nkind = 'vtd'\n[[device]]\nmodel = 'remote'\nsocket = '{}'\n",
        elsewhere.socket("far").display()
    );
    let serving = serve(&machine, &[]);
    let mut guest = guest();
    let unit = guest.plug(&serving.socket("unit"), unset());
    let device = guest.plug(&serving.socket("remote"), unset());
    enable(&device);
    assert_eq!(read32(&device, CONFIG, 0), 0x11e8_1234);
    let message = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let target = IrqTarget::Eventfds(&[message.as_fd()]);
    device
        .set_irqs(1, 0, 1, IrqAction::Trigger, target)
        .unwrap();

    // Before translation is enabled, addresses are the guest's.
    let (from, to) = (guest.page(), guest.page());
    guest.write(from, b"from afar");
    edu(&device, from, 9, false);
    let table = guest.table(IOVA, to);
    let root = root(&mut guest, 5, table);
    translate(&unit, root);
    edu(&device, IOVA, 9, true);
    assert_eq!(&guest.read::<9>(to), b"from afar");
    // Its old addresses lead nowhere now.
    edu(&device, to + 64, 9, true);
    assert_eq!(guest.read64(to + 64), 0);

    device.region_write(0, 0x60, &1_u32.to_le_bytes()).unwrap();
    let mut events = [PollFd::new(&message, PollFlags::IN)];
    let time = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut events, Some(&time)), Ok(1));

    // The machine's memory goes: the device reaches none of it any more.
    let span = Span::with_length(Iova(0), RAM).unwrap();
    device.dma_unmap(span).unwrap();
    unit.dma_unmap(span).unwrap();
    edu(&device, IOVA, 9, false);
    wait_for("a word about it", || {
        elsewhere.said().contains("is refused").then_some(())
    });
}

#[test]
fn what_is_printed_is_what_qemu_wants_and_a_signal_leaves_nothing_behind() {
    let mut serving = serve(EDU, &["--bar", "0xfebfc000"]);
    let table = serving.socket("dmar.bin");
    let words = serving.arguments.clone();
    for word in [
        "-object memory-backend-memfd,id=iogate-ram,size=",
        "share=on -machine memory-backend=iogate-ram",
        "\"addr\":\"04.0\",\"driver\":\"vfio-user-pci\",\"id\":\"iogate-unit\"",
        "\"addr\":\"05.0\",\"driver\":\"vfio-user-pci\",\"id\":\"iogate-edu\"",
        &format!("-acpitable file={}", table.display()),
    ] {
        assert!(words.contains(word), "{word}\n{words}");
    }
    let table = fs::read(table).unwrap();
    assert_eq!(&table[..4], b"DMAR");
    assert!(
        table
            .windows(8)
            .any(|bytes| bytes == 0xfebf_c000_u64.to_le_bytes())
    );
    // Somebody is connected at that moment.
    let _client = guest().plug(&serving.socket("edu"), unset());
    serving.signal(rustix::process::Signal::INT);
    let status = serving.child.wait().unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(2));
    let left: Vec<_> = fs::read_dir(&serving.directory).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    // So that the end of the test has a process to end.
    serving.child = Command::new("sleep").arg("60").spawn().unwrap();
}

#[test]
fn a_table_follows_where_firmware_puts_the_registers() {
    let serving = serve(EDU, &[]);
    let unit = guest().plug(&serving.socket("unit"), unset());
    unit.region_write(CONFIG, 0x10, &0xfe00_1000_u32.to_le_bytes())
        .unwrap();
    unit.region_write(CONFIG, 4, &[2, 0]).unwrap();
    wait_for("the table", || {
        let table = fs::read(serving.socket("dmar.bin")).unwrap();
        let mut bases = table.windows(8);
        bases
            .any(|bytes| bytes == 0xfe00_1000_u64.to_le_bytes())
            .then_some(())
    });
    wait_for("a word about it", || {
        serving
            .said()
            .contains("start the machine anew")
            .then_some(())
    });
}

fn refusal(arguments: &[&str]) -> String {
    let output = common::iogate(&[&["serve"], arguments].concat());
    assert_eq!(output.status.code(), Some(125));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_cannot_be_served_is_refused_in_words() {
    let qemu = common::scratch("qemu");
    let version = "#!/bin/sh\necho 'QEMU emulator version 7.2.22 (Debian)'\n";
    fs::write(&qemu, version).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    let qemu = qemu.to_str().unwrap();
    let old = refusal(&["--", qemu, "-m", "1G"]);
    assert!(old.contains("QEMU 7.2.22") && old.contains("10.1"), "{old}");
    let none = refusal(&["--", "/bin/true"]);
    assert!(none.contains("does not say that it is QEMU"), "{none}");
    let missing = refusal(&["--", "/no/such/qemu"]);
    assert!(missing.contains("/no/such/qemu"), "{missing}");
    let apart = refusal(&["--", qemu, "-daemonize"]);
    assert!(apart.contains("-daemonize"), "{apart}");
    let bars = refusal(&["--bar", "0xfe000000", "--bar", "0xfe001000"]);
    assert!(
        bars.contains("2 times") && bars.contains("1 units"),
        "{bars}"
    );
    let file = common::scratch("machine.toml");
    let name = file.to_str().unwrap();
    for (machine, why) in [
        (
            "[[iommu]]\nname = 'i'\n[[device]]\nmodel = 'edu'",
            "kind = \"vtd\"",
        ),
        (
            "[[device]]\nmodel = 'virtio-net'\nvfs = 2",
            "virtual functions",
        ),
        ("[[device]]\nmodel = 'edu'\nmediated = true", "mediated"),
        ("[[device]]\nmodel = 'remote'", "socket"),
        (
            "[[iommu]]\nname = 'i'\nkind = 'vtd'\ncaching-mode = false\n\
             [[device]]\nmodel = 'remote'\nsocket = '/x'",
            "caching-mode = true",
        ),
        (
            "[[iommu]]\nname = 'i'\nkind = 'vtd'\nmode = 'scalable'\nfirst-stage = true\n\
             [[device]]\nmodel = 'remote'\nsocket = '/x'",
            "first-stage = false",
        ),
        (
            "[[device]]\nmodel = 'remote'\nsocket = '/no/socket'",
            "/no/socket",
        ),
        (
            "[[device]]\nmodel = 'edu'\nname = 'x'\n[[device]]\nmodel = 'nvme'\nname = 'x'",
            "another `name`",
        ),
    ] {
        fs::write(&file, format!("version = 1\n{machine}")).unwrap();
        let refused = refusal(&["--machine", name]);
        assert!(refused.contains(why), "{machine}: {refused}");
    }
    let output = common::iogate(&["run", "--device", "remote,socket=/x", "--", "true"]);
    let refused = String::from_utf8(output.stderr).unwrap();
    assert!(refused.contains("`iogate serve` takes it"), "{refused}");
}

#[test]
fn a_private_directory_is_nobody_elses_and_goes_with_its_maker() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_iogate"))
        .args(["serve", "--device", "edu"])
        .env_remove("XDG_RUNTIME_DIR")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let path = line.split("file=").nth(1).unwrap().trim();
    let directory = Path::new(path).parent().unwrap().to_owned();
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(&directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    child.wait().unwrap();
    let _ = out.read_to_string(&mut line);
    assert!(!directory.exists());
}
