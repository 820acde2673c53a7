//! A machine with a few devices and a program with memory and descriptors, for
//! the tests of containers, groups and devices.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic
)]

pub mod probe;
pub mod program;

use std::sync::Arc;

use iogate_dma::{
    Attachment, Fault, FaultReason, FaultSink, Gate, Iova, Message, Outcome, Port, Request, Rights,
    Source, Span,
};
use iogate_host::{
    Actor, Device, FileId, GroupConfig, Host, HostConfig, Iommu, MemlockMode, Node, Observer,
    Reserved, ReservedKind, SpaceId, Translation, Via,
};
use iogate_interrupt::{Delivery, Window};
use iogate_uapi::{Answer, Errno};

use probe::Probe;
use program::Program;

pub const PAGE: u64 = 4096;
/// Where the program keeps the arguments of its calls.
pub const ARGUMENT: u64 = 0x10_0000;
/// Memory of the program that it maps for devices: 64 pages, then none.
pub const HEAP: u64 = 0x1000_0000;
pub const HEAP_PAGES: u64 = 64;

/// The machine's devices, by index: two on one bus, each in its own group.
pub const FIRST: usize = 0;
pub const SECOND: usize = 1;
/// Conventional PCI on the root bus, with INTx only.
pub const PLAIN: usize = 2;
/// Its group is a host driver's.
pub const TAKEN: usize = 3;
/// Behind a unit with 39 bits and page sizes from 2 KiB, not coherent.
pub const NARROW: usize = 4;
/// Two in one group.
pub const TWIN: usize = 5;
/// A mediated device.
pub const MEDIATED: usize = 7;
/// Without IOMMU.
pub const BARE: usize = 8;

pub fn group_of(device: usize) -> u32 {
    match device {
        6 => 15,
        MEDIATED => 16,
        BARE => 17,
        _ => 10 + u32::try_from(device).unwrap(),
    }
}

pub const NAMES: [&str; 9] = [
    "0000:01:00.0",
    "0000:01:00.1",
    "0000:00:03.0",
    "0000:02:00.0",
    "0000:03:00.0",
    "0000:04:00.0",
    "0000:04:00.1",
    "83b8f4f2-509f-4c5e-9a3d-2f1b1c0de001",
    "0000:05:00.0",
];

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

/// `_IO(';', 100 + n)`.
pub fn number(n: u32) -> u32 {
    0x3b00 | (100 + n)
}

struct Nobody;

impl Observer for Nobody {
    fn mapped(&self, _: SpaceId, _: Span, _: Rights, _: Via, _: Option<Actor>) {}
    fn unmapped(&self, _: SpaceId, _: Span, _: Via, _: Option<Actor>) {}
    fn revoked(&self, _: SpaceId, _: Span, _: Option<Actor>) {}
    fn attached(&self, _: Source, _: Option<SpaceId>) {}
}

impl FaultSink for Nobody {
    fn fault(&self, _: &Fault) {}
    fn answered(&self, _: Source, _: &str) {}
}

pub struct World {
    pub host: Arc<Host>,
    pub program: Arc<Program>,
    pub probes: Vec<Arc<Probe>>,
    pub delivery: Arc<Delivery>,
    gate: Arc<Gate>,
}

fn span(first: u64, last: u64) -> Span {
    Span::new(Iova(first), Iova(last)).unwrap()
}

impl World {
    pub fn new() -> Self {
        Self::with(65_535, MemlockMode::Off)
    }

    pub fn with(dma_entry_limit: u32, memlock: MemlockMode) -> Self {
        let program = Arc::new(Program::new());
        let delivery = Arc::new(Delivery::new(Window::X86));
        let gate = Arc::new(Gate::new());
        let wide = Arc::new(Iommu {
            index: 0,
            aperture_last: Iova((1 << 48) - 1),
            page_sizes: 0x4020_1000,
            reserved: vec![
                Reserved {
                    span: span(0xfee0_0000, 0xfeef_ffff),
                    kind: ReservedKind::Msi,
                },
                Reserved {
                    span: span(0x7000_0000, 0x7000_ffff),
                    kind: ReservedKind::DirectRelaxable,
                },
            ],
            coherent: true,
            tracks_dirty: true,
            pasid_bits: 0,
        });
        let narrow = Arc::new(Iommu {
            index: 1,
            aperture_last: Iova((1 << 39) - 1),
            page_sizes: 0x20_1800,
            reserved: vec![Reserved {
                span: span(0x800_0000, 0x80f_ffff),
                kind: ReservedKind::SoftwareMsi,
            }],
            coherent: false,
            tracks_dirty: false,
            pasid_bits: 0,
        });
        let mut probes = Vec::new();
        let mut devices = Vec::new();
        for (index, name) in NAMES.iter().enumerate() {
            let source: Source = name.parse().unwrap_or("ffff:00:00.0".parse().unwrap());
            let probe = Arc::new(match index {
                PLAIN => Probe::plain(source, delivery.clone()),
                _ => Probe::express(source, delivery.clone()),
            });
            probes.push(probe.clone());
            devices.push(Arc::new(Device {
                index,
                source,
                name: (*name).to_string(),
                group: group_of(index),
                cdev: u32::try_from(index).unwrap(),
                function: probe,
                attachment: Arc::new(Attachment::new()),
                translation: match index {
                    MEDIATED => Translation::Emulated,
                    BARE => Translation::NoIommu,
                    NARROW => Translation::Unit(narrow.clone()),
                    _ => Translation::Unit(wide.clone()),
                },
            }));
        }
        let groups = (10..=17).map(|number| GroupConfig {
            number,
            viable: number != group_of(TAKEN),
        });
        let host = Host::new(HostConfig {
            groups: groups.collect(),
            devices,
            dma_entry_limit,
            memlock,
            memory: program.clone(),
            gate: gate.clone(),
            delivery: delivery.clone(),
            observer: Arc::new(Nobody),
        });
        program.set_host(&host);
        Self {
            host,
            program,
            probes,
            delivery,
            gate,
        }
    }

    pub fn open(&self, node: Node) -> Result<FileId, Errno> {
        Ok(self.host.open(node, &*self.program)?)
    }

    pub fn close(&self, file: FileId) {
        let retired = self.host.close(file);
        if let Some(grace) = retired.grace {
            grace.wait();
        }
    }

    /// Does what is to be done after a call, and gives its value.
    pub fn settle(&self, result: Result<Answer, Errno>) -> Result<Answer, Errno> {
        let mut answer = result?;
        if let Some(grace) = answer.after.grace.take() {
            grace.wait();
        }
        answer.after.retired.clear();
        match answer.value {
            0.. => Ok(answer),
            errno => Err(Errno(i32::try_from(-errno).unwrap())),
        }
    }

    pub fn raw(&self, file: FileId, command: u32, argument: u64) -> Result<i64, Errno> {
        let result = iogate_uapi::ioctl(&self.host, file, command, argument, &*self.program);
        self.settle(result).map(|answer| answer.value)
    }

    /// A call with a structure, which is read back.
    pub fn call(&self, file: FileId, n: u32, argument: &mut [u8]) -> Result<i64, Errno> {
        self.program.poke(ARGUMENT, argument);
        let result = self.raw(file, number(n), ARGUMENT);
        self.program.peek(ARGUMENT, argument);
        result
    }

    /// As [`call`](Self::call), the answer first.
    pub fn ask(&self, file: FileId, n: u32, argument: Vec<u8>) -> Result<Vec<u8>, Errno> {
        let mut argument = argument;
        self.call(file, n, &mut argument)?;
        Ok(argument)
    }

    pub fn group(&self, device: usize) -> FileId {
        self.open(Node::Group(group_of(device))).unwrap()
    }

    pub fn set_container(&self, group: FileId, container: FileId) -> Result<i64, Errno> {
        let fd = self.program.fd(container);
        self.call(group, 4, &mut pack!(fd))
    }

    pub fn device_fd(&self, group: FileId, name: &str) -> Result<FileId, Errno> {
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        self.program.poke(ARGUMENT, &text);
        let command = number(6);
        let result = iogate_uapi::ioctl(&self.host, group, command, ARGUMENT, &*self.program);
        self.settle(result).map(|answer| answer.install.unwrap())
    }

    /// A container with the device's group and this IOMMU type.
    pub fn container(&self, device: usize, kind: u64) -> (FileId, FileId) {
        let container = self.open(Node::Container).unwrap();
        let group = self.group(device);
        self.set_container(group, container).unwrap();
        self.raw(container, number(2), kind).unwrap();
        (container, group)
    }

    /// A device, ready to use: container, group, device.
    pub fn ready(&self, device: usize) -> (FileId, FileId, FileId) {
        let (container, group) = self.container(device, 3);
        let file = self.device_fd(group, NAMES[device]).unwrap();
        (container, group, file)
    }

    pub fn map(
        &self,
        container: FileId,
        flags: u32,
        (vaddr, iova, size): (u64, u64, u64),
    ) -> Result<(), Errno> {
        self.ask(container, 13, pack!(32_u32, flags, vaddr, iova, size))
            .map(drop)
    }

    /// The bytes that it was about.
    pub fn unmap(&self, container: FileId, flags: u32, iova: u64, size: u64) -> Result<u64, Errno> {
        let answer = self.ask(container, 14, pack!(24_u32, flags, iova, size))?;
        Ok(quad(&answer, 16))
    }

    pub fn region(&self, index: u32, offset: u64) -> u64 {
        iogate_uapi::region_offset(index) + offset
    }

    pub fn pread(&self, file: FileId, at: u64, length: u64) -> Result<Vec<u8>, Errno> {
        let pieces = [(ARGUMENT, length)];
        let result = iogate_uapi::read(&self.host, file, at, &pieces, &*self.program);
        let moved = self.settle(result)?.value;
        let mut bytes = vec![0; usize::try_from(moved).unwrap()];
        self.program.peek(ARGUMENT, &mut bytes);
        Ok(bytes)
    }

    pub fn pwrite(&self, file: FileId, at: u64, bytes: &[u8]) -> Result<i64, Errno> {
        self.program.poke(ARGUMENT, bytes);
        let pieces = [(ARGUMENT, bytes.len() as u64)];
        let result = iogate_uapi::write(&self.host, file, at, &pieces, &*self.program);
        self.settle(result).map(|answer| answer.value)
    }

    /// 32 bits of configuration space.
    pub fn config(&self, file: FileId, at: u64) -> u32 {
        word(&self.pread(file, self.region(7, at), 4).unwrap(), 0)
    }

    pub fn set_config(&self, file: FileId, at: u64, bytes: &[u8]) {
        self.pwrite(file, self.region(7, at), bytes).unwrap();
    }

    /// Why a device's access is refused, if it is.
    pub fn dma(&self, device: usize, iova: u64, bytes: &mut [u8]) -> Result<(), FaultReason> {
        let device = self.host.device(device).unwrap();
        let mut port = Port::new(
            device.source,
            device.attachment.clone(),
            self.gate.join(),
            Arc::new(Nobody),
        );
        port.read(Iova(iova), bytes).map_err(|error| match error {
            iogate_dma::DmaError::Refused(fault) => fault.reason,
            error => panic!("{error}"),
        })
    }

    pub fn dma_write(&self, device: usize, iova: u64, bytes: &[u8]) -> Result<(), FaultReason> {
        let device = self.host.device(device).unwrap();
        let mut port = Port::new(
            device.source,
            device.attachment.clone(),
            self.gate.join(),
            Arc::new(Nobody),
        );
        port.write(Iova(iova), bytes).map_err(|error| match error {
            iogate_dma::DmaError::Refused(fault) => fault.reason,
            error => panic!("{error}"),
        })
    }

    /// A worker of any device.
    pub fn worker(&self) -> iogate_dma::Participant {
        self.gate.join()
    }

    /// The message that a device's write of `data` at `iova` is.
    pub fn message(&self, device: usize, iova: u64, data: u32) -> Option<Message> {
        let device = self.host.device(device).unwrap();
        let space = device.attachment.get().1?;
        let mut worker = self.gate.join();
        let guard = worker.enter();
        let span = Span::with_length(Iova(iova), 4).unwrap();
        let request = Request::new(device.source, span, iogate_dma::Access::Write);
        let outcome = space.translate(&guard, &request);
        match outcome.ok()? {
            outcome @ Outcome::Message { .. } => outcome.message(data),
            _ => None,
        }
    }

    /// SET_IRQS with any data.
    pub fn set_irqs(
        &self,
        file: FileId,
        flags: u32,
        (index, start, count): (u32, u32, u32),
        data: &[u8],
    ) -> Result<(), Errno> {
        let argsz = u32::try_from(20 + data.len()).unwrap();
        let mut argument = pack!(argsz, flags, index, start, count);
        argument.extend(data);
        self.call(file, 10, &mut argument).map(drop)
    }
}
