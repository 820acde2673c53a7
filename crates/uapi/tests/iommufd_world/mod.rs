//! A machine with a few devices and a program with memory and descriptors, for
//! the tests of iommufd and of the KVM link.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod program;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use iogate_dma::{
    Attachment, Fault, FaultSink, Gate, Interrupts, Iova, Line, Memory, MemoryError, Message, Port,
    Rights, Source, Span, Width,
};
use iogate_host::{
    Actor, Caller, Device, FileId, GroupConfig, Host, HostConfig, Iommu, Memlock, MemlockMode,
    Node, Observer, Reserved, ReservedKind, SpaceId, Translation, Via,
};
use iogate_interrupt::{Delivery, Window};
use iogate_pci::{After, Bar, Endpoint, Function, Identity, ResetKind};
use iogate_uapi::{Answer, Client, Errno, Named};

pub use program::{Page, Process, Program, Ram};

pub const PAGE: u64 = 4096;
/// Where the program keeps the arguments of its calls.
pub const ARGUMENT: u64 = 0x10_0000;

thread_local! {
    /// Where this thread has its arguments.
    static ARGUMENT_AT: Cell<u64> = const { Cell::new(ARGUMENT) };
}

/// Gives this thread another place for its arguments: four of the sixteen pages
/// from [`ARGUMENT`] on.
pub fn set_argument(at: u64) {
    ARGUMENT_AT.set(at);
}

fn argument() -> u64 {
    ARGUMENT_AT.get()
}
/// Memory of the program that it maps for devices: 64 pages, then none.
pub const HEAP: u64 = 0x1000_0000;
pub const HEAP_PAGES: u64 = 64;

pub const FIXED: u32 = 1;
pub const W: u32 = 2;
pub const R: u32 = 4;
pub const RW: u32 = W | R;

/// The machine's devices, by index. The first two share a group.
pub const TWIN_A: usize = 0;
pub const TWIN_B: usize = 1;
pub const ALONE: usize = 2;
/// Behind a unit with 39 bits that does not enforce coherency.
pub const NARROW: usize = 3;
/// Behind a unit whose smallest page is 64 KiB.
pub const COARSE: usize = 4;
/// In a group that a host driver has.
pub const TAKEN: usize = 5;
/// Behind a unit with both kinds of interrupt window.
pub const CONTRARY: usize = 6;
/// Behind a unit whose smallest page is 2 KiB and that tracks dirty pages.
pub const FINE: usize = 7;
/// Behind a unit that keeps 8000-9fff for itself.
pub const CROWDED: usize = 8;
/// A mediated device.
pub const MEDIATED: usize = 9;
/// Without IOMMU.
pub const BARE: usize = 10;
/// It sends PASIDs, behind a unit that tells 8 bits of them apart.
pub const SENDER: usize = 11;
/// Behind the same unit; it sends none.
pub const SILENT: usize = 12;
/// It has two pages of memory in BAR 0 and ports in BAR 1.
pub const WITH_BARS: usize = CROWDED;

/// The fields of a structure, one after the other, as bytes.
#[macro_export]
macro_rules! pack {
    ($($value:expr),* $(,)?) => { [$($value.to_ne_bytes().as_slice()),*].concat() };
}

/// A field of an answer.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A field of an answer.
pub fn quad(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Memory as devices reach it: what is not pinned must not be.
struct Checked {
    ram: Arc<Ram>,
    process: Arc<Process>,
    violations: Arc<AtomicUsize>,
}

impl Checked {
    /// Runs `access` while nothing can be unpinned.
    fn pinned<R>(&self, address: u64, access: impl FnOnce() -> R) -> R {
        let pins = self.process.pins.lock().unwrap();
        if !pins.contains_key(&(address / PAGE)) {
            self.violations.fetch_add(1, Ordering::Relaxed);
        }
        access()
    }
}

impl Memory for Checked {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        self.pinned(address, || self.ram.read(address, into))
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.pinned(address, || self.ram.write(address, from))
    }
    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        self.ram.load(address, width)
    }
    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        self.ram.store(address, width, value)
    }
    fn compare_exchange(&self, at: u64, width: Width, a: u64, b: u64) -> Result<u64, MemoryError> {
        self.ram.compare_exchange(at, width, a, b)
    }
}

struct Silent(Endpoint, Mutex<[u8; 8192]>);

impl Function for Silent {
    fn endpoint(&self) -> &Endpoint {
        &self.0
    }
    fn model(&self) -> &'static str {
        "silent"
    }
    fn read_bar(&self, _: u8, offset: u64, into: &mut [u8]) {
        let at = offset as usize;
        into.copy_from_slice(&self.1.lock().unwrap()[at..at + into.len()]);
    }
    fn write_bar(&self, _: u8, offset: u64, from: &[u8]) -> After {
        let at = offset as usize;
        self.1.lock().unwrap()[at..at + from.len()].copy_from_slice(from);
        After::Nothing
    }
    fn work(&self, _: &mut Port) -> After {
        After::Nothing
    }
    fn reset(&self, _: ResetKind) {}
}

struct Nobody;

impl Interrupts for Nobody {
    fn message(&self, _: Source, _: Message) {}
    fn line(&self, _: Source, _: Line) {}
}

impl FaultSink for Nobody {
    fn fault(&self, _: &Fault) {}
    fn answered(&self, _: Source, _: &str) {}
}

/// What the observer was told, in words.
#[derive(Default)]
pub struct Diary(pub Mutex<Vec<String>>);

impl Diary {
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
    fn note(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }
}

impl Observer for Diary {
    fn mapped(&self, _: SpaceId, span: Span, rights: Rights, via: Via, _: Option<Actor>) {
        self.note(format!("mapped {span} {rights} {}", via.name()));
    }
    fn unmapped(&self, _: SpaceId, span: Span, via: Via, _: Option<Actor>) {
        self.note(format!("unmapped {span} {}", via.name()));
    }
    fn revoked(&self, _: SpaceId, span: Span, _: Option<Actor>) {
        self.note(format!("revoked {span}"));
    }
    fn attached(&self, source: Source, space: Option<SpaceId>) {
        let state = if space.is_some() {
            "attached"
        } else {
            "detached"
        };
        self.note(format!("{state} {source}"));
    }
}

/// Everything together.
pub struct World {
    pub host: Arc<Host>,
    pub program: Program,
    pub diary: Arc<Diary>,
    violations: Arc<AtomicUsize>,
    gate: Arc<Gate>,
    ports: Mutex<BTreeMap<usize, Port>>,
    next_fd: Mutex<i32>,
}

fn unit(index: usize, bits: u32, page_sizes: u64, coherent: bool) -> Iommu {
    Iommu {
        index,
        aperture_last: Iova((1 << bits) - 1),
        page_sizes,
        reserved: vec![reserved(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi)],
        coherent,
        tracks_dirty: false,
        pasid_bits: 0,
    }
}

fn reserved(first: u64, last: u64, kind: ReservedKind) -> Reserved {
    Reserved {
        span: Span::new(Iova(first), Iova(last)).unwrap(),
        kind,
    }
}

impl World {
    pub fn new() -> Self {
        Self::with_memlock(MemlockMode::Off)
    }

    pub fn with_memlock(memlock: MemlockMode) -> Self {
        let usual = Arc::new(unit(0, 48, 0x4020_1000, true));
        let narrow = Arc::new(unit(1, 39, 0x4020_1000, false));
        let coarse = Arc::new(unit(2, 48, 0x1_0000, true));
        let mut contrary = unit(3, 48, 0x1000, true);
        let software = reserved(0x800_0000, 0x80f_ffff, ReservedKind::SoftwareMsi);
        contrary.reserved.insert(0, software);
        let contrary = Arc::new(contrary);
        let mut fine = unit(4, 48, 0x800, true);
        fine.reserved.clear();
        fine.tracks_dirty = true;
        let fine = Arc::new(fine);
        let mut crowded = unit(5, 48, 0x1000, true);
        crowded.reserved = vec![reserved(0x8000, 0x9fff, ReservedKind::Reserved)];
        let crowded = Arc::new(crowded);
        let mut telling = unit(6, 48, 0x1000, true);
        telling.pasid_bits = 8;
        let telling = Arc::new(telling);
        let behind = [
            (&usual, 1),
            (&usual, 1),
            (&usual, 2),
            (&narrow, 3),
            (&coarse, 4),
            (&usual, 5),
            (&contrary, 6),
            (&fine, 7),
            (&crowded, 8),
        ];
        let units = behind.map(|(iommu, group)| (Translation::Unit(Arc::clone(iommu)), group));
        let others = [(Translation::Emulated, 9), (Translation::NoIommu, 10)];
        let late = [11, 12].map(|group| (Translation::Unit(Arc::clone(&telling)), group));
        let all = units.into_iter().chain(others).chain(late).enumerate();
        let devices = all.map(|(index, (translation, group))| {
            let source: Source = match index {
                MEDIATED => "ffff:00:00.0".parse().unwrap(),
                _ => format!("0000:{index:02x}:00.0").parse().unwrap(),
            };
            let identity = Identity {
                vendor: 0x1234,
                device: 0x11e8,
                ..Identity::default()
            };
            let mut endpoint = Endpoint::builder(identity);
            if index == WITH_BARS {
                endpoint = endpoint
                    .bar(Bar::memory32(0, 8192))
                    .bar(Bar::io(1, 32))
                    .express();
            }
            if index == SENDER {
                endpoint = endpoint.express().pasid(20);
            }
            let endpoint = endpoint.build(source, Arc::new(Nobody)).unwrap();
            let attachment = match index {
                SENDER => Attachment::new().with_pasids(),
                _ => Attachment::new(),
            };
            if index == SENDER {
                endpoint.enable_pasids(8);
            }
            Arc::new(Device {
                index,
                source,
                name: source.to_string(),
                group,
                cdev: index as u32,
                function: Arc::new(Silent(endpoint, Mutex::new([0; 8192]))),
                attachment: Arc::new(attachment),
                translation,
            })
        });
        let ram = Arc::new(Ram::default());
        let gate = Arc::new(Gate::new());
        let diary = Arc::new(Diary::default());
        let process = Arc::new(Process::default());
        let violations = Arc::new(AtomicUsize::new(0));
        let groups = (1..=12).map(|number| GroupConfig {
            number,
            viable: number != 5,
        });
        let host = Host::new(HostConfig {
            groups: groups.collect(),
            devices: devices.collect(),
            dma_entry_limit: 65535,
            memlock,
            memory: Arc::new(Checked {
                ram: Arc::clone(&ram),
                process: Arc::clone(&process),
                violations: Arc::clone(&violations),
            }),
            gate: Arc::clone(&gate),
            delivery: Arc::new(Delivery::new(Window::X86)),
            observer: Arc::clone(&diary) as Arc<dyn Observer>,
        });
        let program = Program {
            process,
            ram,
            memlock: Mutex::new(Memlock::Limit(8 << 20)),
            privileged: Mutex::new(false),
            user: Mutex::new(1000),
            fd_limit: Mutex::new(i32::MAX),
        };
        let world = Self {
            host,
            program,
            diary,
            violations,
            gate,
            ports: Mutex::default(),
            next_fd: Mutex::new(3),
        };
        for page in 0..16 {
            world.give(ARGUMENT + page * PAGE, 1000 + page, true, false);
        }
        for page in 0..HEAP_PAGES {
            world.give(HEAP + page * PAGE, 2000 + page, true, page % 2 == 0);
        }
        world
    }

    /// Gives the program a page of memory.
    pub fn give(&self, address: u64, frame: u64, writable: bool, shared: bool) {
        let page = Page {
            frame,
            writable,
            shared,
        };
        let mut pages = self.program.process.pages.lock().unwrap();
        pages.insert(address / PAGE, page);
    }

    /// The program unmaps a page.
    pub fn take(&self, address: u64) {
        let first = address / PAGE * PAGE;
        let page = self
            .program
            .process
            .pages
            .lock()
            .unwrap()
            .remove(&(first / PAGE));
        if page.is_some_and(|page| !page.shared) {
            let by = Some(self.program.actor());
            let grace = self.host.revoke(1, first, first + PAGE - 1, by);
            grace.into_iter().for_each(iogate_dma::Grace::wait);
        }
    }

    /// How many frames are pinned.
    pub fn pinned_frames(&self) -> usize {
        self.program.process.pins.lock().unwrap().len()
    }

    fn descriptor(&self, named: Named) -> i32 {
        let mut next = self.next_fd.lock().unwrap();
        *next += 1;
        self.program
            .process
            .fds
            .lock()
            .unwrap()
            .insert(*next, named);
        *next
    }

    /// A descriptor that names `named`.
    pub fn named(&self, named: Named) -> i32 {
        self.descriptor(named)
    }

    /// A descriptor of something that is none of ours.
    pub fn other(&self) -> i32 {
        self.descriptor(Named::Other)
    }

    /// A memory file of these frames.
    pub fn memory_file(&self, frames: &[u64]) -> i32 {
        let fd = self.other();
        let mut files = self.program.process.files.lock().unwrap();
        files.insert(fd, frames.to_vec());
        fd
    }

    pub fn open(&self, node: Node) -> Result<Opened, Errno> {
        let file = self.host.open(node, &self.program)?;
        let fd = self.descriptor(Named::Ours(file));
        Ok(Opened { file, fd })
    }

    pub fn iommufd(&self) -> Opened {
        self.open(Node::Iommufd).unwrap()
    }

    pub fn cdev(&self, index: usize) -> Opened {
        self.open(Node::Device(index)).unwrap()
    }

    pub fn close(&self, opened: Opened) {
        let retired = self.host.close(opened.file);
        retired.grace.into_iter().for_each(iogate_dma::Grace::wait);
        self.program.process.fds.lock().unwrap().remove(&opened.fd);
    }

    fn finish(answer: Answer) -> Result<i64, Errno> {
        let after = answer.after;
        after.grace.into_iter().for_each(iogate_dma::Grace::wait);
        drop(after.retired);
        match answer.value {
            value if value < 0 => Err(Errno(-value as i32)),
            value => Ok(value),
        }
    }

    /// Makes a call with the argument at an address.
    pub fn raw(&self, file: Opened, number: u32, address: u64) -> Result<i64, Errno> {
        let command = 0x3b00 | number;
        let answer = iogate_uapi::ioctl(&self.host, file.file, command, address, &self.program);
        Self::finish(answer?)
    }

    /// Makes a call with these bytes as its argument, which become the answer.
    pub fn call(&self, file: Opened, number: u32, bytes: &mut [u8]) -> Result<i64, Errno> {
        self.program.write(argument(), bytes).unwrap();
        let result = self.raw(file, number, argument());
        self.program.read(argument(), bytes).unwrap();
        result
    }

    pub fn kvm(&self, machine: u64, group: u32, attr: u64, fd: i32) -> Option<Result<(), Errno>> {
        let at = argument() + 0x100;
        self.program.write(at, &fd.to_ne_bytes()).unwrap();
        self.program
            .write(argument(), &pack!(0_u32, group, attr, at))
            .unwrap();
        let answer = iogate_uapi::kvm_device_attr(&self.host, machine, argument(), &self.program);
        answer
            .transpose()
            .map(|answer| answer.and_then(Self::finish).map(drop))
    }

    pub fn ioas(&self, file: Opened) -> u32 {
        let mut bytes = pack!(12_u32, 0_u32, 0_u32);
        self.call(file, 0x81, &mut bytes).unwrap();
        word(&bytes, 8)
    }

    pub fn destroy(&self, file: Opened, id: u32) -> Result<(), Errno> {
        self.call(file, 0x80, &mut pack!(8_u32, id)).map(drop)
    }

    pub fn map(
        &self,
        file: Opened,
        ioas: u32,
        flags: u32,
        (va, length): (u64, u64),
        iova: u64,
    ) -> Result<u64, Errno> {
        let mut bytes = pack!(40_u32, flags, ioas, 0_u32, va, length, iova);
        self.call(file, 0x85, &mut bytes)?;
        Ok(quad(&bytes, 32))
    }

    pub fn map_file(
        &self,
        file: Opened,
        ioas: u32,
        fd: i32,
        (start, length): (u64, u64),
        iova: u64,
    ) -> Result<u64, Errno> {
        let mut bytes = pack!(40_u32, FIXED | RW, ioas, fd, start, length, iova);
        self.call(file, 0x8f, &mut bytes)?;
        Ok(quad(&bytes, 32))
    }

    pub fn copy(
        &self,
        file: Opened,
        flags: u32,
        (from, source): (u32, u64),
        (to, iova): (u32, u64),
        length: u64,
    ) -> Result<u64, Errno> {
        let mut bytes = pack!(40_u32, flags, to, from, length, iova, source);
        self.call(file, 0x83, &mut bytes)?;
        Ok(quad(&bytes, 24))
    }

    pub fn unmap(&self, file: Opened, ioas: u32, iova: u64, length: u64) -> Result<u64, Errno> {
        let mut bytes = pack!(24_u32, ioas, iova, length);
        self.call(file, 0x86, &mut bytes)?;
        Ok(quad(&bytes, 16))
    }

    /// The ranges and the alignment.
    pub fn ranges(&self, file: Opened, ioas: u32) -> (Vec<(u64, u64)>, u64) {
        let at = argument() + PAGE;
        let mut bytes = pack!(32_u32, ioas, 64_u32, 0_u32, at, 0_u64);
        self.call(file, 0x84, &mut bytes).unwrap();
        let count = word(&bytes, 8) as usize;
        let mut list = vec![0; count * 16];
        self.program.read(at, &mut list).unwrap();
        let ranges = list.chunks(16).map(|one| (quad(one, 0), quad(one, 8)));
        (ranges.collect(), quad(&bytes, 24))
    }

    pub fn allow(&self, file: Opened, ioas: u32, list: &[(u64, u64)]) -> Result<(), Errno> {
        let at = argument() + PAGE;
        let ranges = list.iter().flat_map(|(start, last)| pack!(start, last));
        self.program.write(at, &ranges.collect::<Vec<_>>()).unwrap();
        let mut bytes = pack!(24_u32, ioas, list.len() as u32, 0_u32, at);
        self.call(file, 0x82, &mut bytes).map(drop)
    }

    pub fn option(
        &self,
        file: Opened,
        (option, op): (u32, u16),
        object: u32,
        value: u64,
    ) -> Result<u64, Errno> {
        let mut bytes = pack!(24_u32, option, op, 0_u16, object, value);
        self.call(file, 0x87, &mut bytes)?;
        Ok(quad(&bytes, 16))
    }

    pub fn hwpt(&self, file: Opened, device: u32, pt: u32, flags: u32) -> Result<u32, Errno> {
        let mut bytes = pack!(24_u32, flags, device, pt, 0_u32, 0_u32);
        self.call(file, 0x89, &mut bytes)?;
        Ok(word(&bytes, 16))
    }

    pub fn bind(&self, device: Opened, iommufd: Opened) -> Result<u32, Errno> {
        let mut bytes = pack!(16_u32, 0_u32, iommufd.fd, 0_u32);
        self.call(device, 118, &mut bytes)?;
        Ok(word(&bytes, 12))
    }

    pub fn attach(&self, device: Opened, pt: u32) -> Result<u32, Errno> {
        let mut bytes = pack!(12_u32, 0_u32, pt);
        self.call(device, 119, &mut bytes)?;
        Ok(word(&bytes, 8))
    }

    pub fn detach(&self, device: Opened) -> Result<(), Errno> {
        self.call(device, 120, &mut pack!(8_u32, 0_u32)).map(drop)
    }

    /// A device that is open and bound, and its number.
    pub fn bound(&self, index: usize, iommufd: Opened) -> (Opened, u32) {
        let device = self.cdev(index);
        let id = self.bind(device, iommufd).unwrap();
        (device, id)
    }

    /// The byte that the device reads; `None` if it faults.
    pub fn dma_read(&self, index: usize, iova: u64) -> Option<u8> {
        let mut byte = [0];
        let mut ports = self.ports.lock().unwrap();
        let port = self.port(&mut ports, index);
        port.read(Iova(iova), &mut byte).ok().map(|()| byte[0])
    }

    /// Has the device write a byte: whether it could.
    pub fn dma_write(&self, index: usize, iova: u64, byte: u8) -> bool {
        let mut ports = self.ports.lock().unwrap();
        let port = self.port(&mut ports, index);
        port.write(Iova(iova), &[byte]).is_ok()
    }

    /// A worker of any device.
    pub fn participant(&self) -> iogate_dma::Participant {
        self.gate.join()
    }

    /// A call that gives a file.
    pub fn install(&self, file: Opened, number: u32, bytes: &[u8]) -> FileId {
        self.program.write(ARGUMENT, bytes).unwrap();
        let command = 0x3b00 | number;
        let answer = iogate_uapi::ioctl(&self.host, file.file, command, ARGUMENT, &self.program);
        answer.unwrap().install.unwrap()
    }

    /// Writes to a device's file.
    pub fn pwrite(&self, file: Opened, at: u64, bytes: &[u8]) {
        self.program.write(ARGUMENT, bytes).unwrap();
        let pieces = [(ARGUMENT, bytes.len() as u64)];
        let answer = iogate_uapi::write(&self.host, file.file, at, &pieces, &self.program);
        Self::finish(answer.unwrap()).unwrap();
    }

    /// A byte of BAR 0 of [`WITH_BARS`].
    pub fn bar_byte(&self, offset: u64) -> u8 {
        let mut byte = [0];
        let device = self.host.device(WITH_BARS).unwrap();
        device.function.read_bar(0, offset, &mut byte);
        byte[0]
    }

    /// A port of the device for a thread of its own.
    pub fn worker(&self, index: usize) -> Port {
        let device = self.host.device(index).unwrap();
        let attachment = Arc::clone(&device.attachment);
        Port::new(
            device.source,
            attachment,
            self.gate.join(),
            Arc::new(Nobody),
        )
    }

    fn port<'p>(&self, ports: &'p mut BTreeMap<usize, Port>, index: usize) -> &'p mut Port {
        ports.entry(index).or_insert_with(|| self.worker(index))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let violations = self.violations.load(Ordering::Relaxed);
            assert_eq!(violations, 0, "devices reached memory that was not pinned");
        }
    }
}

/// An open file and the descriptor it has in the program.
#[derive(Clone, Copy)]
pub struct Opened {
    pub file: FileId,
    pub fd: i32,
}
