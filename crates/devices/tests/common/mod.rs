//! A machine of one device over plain memory: an identity space with holes,
//! and everything that is reported kept for the test to look at.
#![allow(dead_code, unreachable_pub, reason = "each test uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

pub mod driver;
pub mod virtio;

use std::sync::{Arc, Mutex};

use iogate_devices::{Properties, Slot, build};
use iogate_dma::{
    Attachment, Fault, FaultReason, FaultSink, Gate, InFlight, Interrupts, Iova, Line, Memory,
    MemoryError, Message, Outcome, Port, Request, Rights, Run, SharedMemory, Source, Span,
    Translate, Width,
};
use iogate_pci::{After, ConfigEffect, Function, Migrate, ResetKind, StateError, migration};

/// Plain memory from address 0 on.
#[derive(Default)]
pub struct Ram(Mutex<Vec<u8>>);

impl Memory for Ram {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let ram = self.0.lock().unwrap();
        let first = address as usize;
        let bytes = ram.get(first..first + into.len());
        into.copy_from_slice(bytes.ok_or(MemoryError::Absent { address })?);
        Ok(())
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let mut ram = self.0.lock().unwrap();
        let first = address as usize;
        let bytes = ram.get_mut(first..first + from.len());
        bytes
            .ok_or(MemoryError::Absent { address })?
            .copy_from_slice(from);
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

impl SharedMemory for Ram {
    fn file(&self) -> Option<(std::os::fd::BorrowedFd<'_>, u64)> {
        None
    }
}

/// What translations do besides translating: a reset in the middle, say.
pub type Hook = Box<dyn FnMut(&Request) + Send>;

/// Every address is itself, in the spans that are mapped.
pub struct Space {
    ram: Ram,
    mapped: Mutex<Vec<(Span<Iova>, Rights)>>,
    hook: Mutex<Option<Hook>>,
}

impl Space {
    /// Runs `hook` at the next translation.
    pub fn at_next_request(&self, hook: Hook) {
        *self.hook.lock().unwrap() = Some(hook);
    }
}

impl Translate for Space {
    fn translate<'g>(
        &'g self,
        _: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        // Taken out: the hook may come back here.
        let hook = self.hook.lock().unwrap().take();
        if let Some(mut hook) = hook {
            hook(request);
        }
        let fault = |reason| Fault {
            source_id: request.source,
            span: request.span,
            access: request.access,
            reason,
            walk: None,
            recoverable: false,
        };
        let first = request.span.first();
        let mapped = self.mapped.lock().unwrap();
        let (span, rights) = *mapped
            .iter()
            .find(|(span, _)| span.contains(first))
            .ok_or_else(|| fault(FaultReason::NotMapped))?;
        if !rights.allows(request.access) {
            return Err(fault(FaultReason::Permission));
        }
        let piece = span.intersection(&request.span).unwrap();
        let length = piece.length().unwrap();
        Ok(Outcome::Memory(Run::new(
            &self.ram, first.0, length, rights,
        )))
    }
}

/// Faults and what devices answered to them, as lines.
#[derive(Default)]
pub struct Reports(Mutex<Vec<String>>);

impl FaultSink for Reports {
    fn fault(&self, fault: &Fault) {
        self.0.lock().unwrap().push(fault.to_string());
    }
    fn answered(&self, _: Source, answer: &str) {
        self.0.lock().unwrap().push(answer.to_owned());
    }
}

/// Interrupts in their order.
#[derive(Default)]
pub struct Interrupted(Mutex<(Vec<u32>, Option<Line>)>);

impl Interrupts for Interrupted {
    fn message(&self, _: Source, message: Message) {
        self.0.lock().unwrap().0.push(message.data);
    }
    fn line(&self, _: Source, line: Line) {
        self.0.lock().unwrap().1 = Some(line);
    }
}

/// What behaves as a tap does: each read gives a frame, each write takes one.
/// The peer is bound to `name`, the other end to `name` and `.tap`.
fn datagrams(name: &str) -> std::io::Result<std::fs::File> {
    let socket = std::os::unix::net::UnixDatagram::bind(format!("{name}.tap"))?;
    socket.connect(name)?;
    Ok(std::fs::File::from(std::os::fd::OwnedFd::from(socket)))
}

pub struct Machine {
    pub device: Arc<dyn Function>,
    pub space: Arc<Space>,
    reports: Arc<Reports>,
    interrupts: Arc<Interrupted>,
    pub gate: Arc<Gate>,
    pub port: Port,
}

impl Machine {
    /// One device over `size` bytes of memory, all mapped; it is bus master.
    pub fn new(model: &str, properties: &Properties, size: usize) -> Self {
        let source: Source = "0000:01:00.0".parse().unwrap();
        let interrupts = Arc::new(Interrupted::default());
        let slot = Slot {
            source,
            interrupts: interrupts.clone(),
            tap: Some(Arc::new(datagrams)),
            memory: Some(Arc::new(|_, size| {
                Ok(Arc::new(Ram(Mutex::new(vec![0; size as usize]))))
            })),
        };
        let device = build(model, properties, slot).unwrap();
        let whole = Span::with_length(Iova(0), size as u64).unwrap();
        let space = Arc::new(Space {
            ram: Ram(Mutex::new(vec![0; size])),
            mapped: Mutex::new(vec![(whole, Rights::READ_WRITE)]),
            hook: Mutex::default(),
        });
        let attachment = Arc::new(Attachment::new());
        attachment.set(Some(space.clone()));
        let reports = Arc::new(Reports::default());
        let gate = Arc::new(Gate::new());
        let port = Port::new(source, attachment, gate.join(), reports.clone());
        let machine = Self {
            device,
            space,
            reports,
            interrupts,
            gate,
            port,
        };
        machine.set_command(0x0006);
        machine
    }

    pub fn set_command(&self, command: u16) {
        let effect = self
            .device
            .endpoint()
            .write_config(4, &command.to_le_bytes());
        assert_eq!(effect, ConfigEffect::None);
    }

    /// Maps exactly these ranges: first address, bytes, rights.
    pub fn map(&self, ranges: &[(u64, u64, Rights)]) {
        *self.space.mapped.lock().unwrap() = ranges
            .iter()
            .map(|(first, length, rights)| {
                (Span::with_length(Iova(*first), *length).unwrap(), *rights)
            })
            .collect();
    }

    /// Runs `hook` at the next translation.
    pub fn at_next_request(&self, hook: impl FnMut(&Request) + Send + 'static) {
        self.space.at_next_request(Box::new(hook));
    }

    pub fn peek(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.space.ram.read(address, &mut bytes).unwrap();
        bytes
    }

    pub fn peek64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.peek(address, 8).try_into().unwrap())
    }

    pub fn poke(&self, address: u64, bytes: &[u8]) {
        self.space.ram.write(address, bytes).unwrap();
    }

    pub fn read32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.read_bar(0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn read64(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.device.read_bar(0, offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub fn write32(&mut self, offset: u64, value: u32) {
        let after = self.device.write_bar(0, offset, &value.to_le_bytes());
        self.finish(after);
    }

    pub fn write64(&mut self, offset: u64, value: u64) {
        let after = self.device.write_bar(0, offset, &value.to_le_bytes());
        self.finish(after);
    }

    /// Reads `N` bytes of a BAR.
    pub fn read<const N: usize>(&self, bar: u8, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.device.read_bar(bar, offset, &mut bytes);
        bytes
    }

    /// Writes to a BAR and does the work that it leaves.
    pub fn write(&mut self, bar: u8, offset: u64, bytes: &[u8]) {
        let after = self.device.write_bar(bar, offset, bytes);
        self.finish(after);
    }

    /// Works until nothing is left; the quanta that it took.
    pub fn finish(&mut self, mut after: After) -> u32 {
        let mut quanta = 0;
        while after == After::Work {
            after = self.device.work(&mut self.port);
            quanta += 1;
            assert!(quanta < 100_000, "the worker never finishes");
        }
        quanta
    }

    pub fn migrate(&self) -> &dyn Migrate {
        self.device.migrate().unwrap()
    }

    /// Comes to rest, as a host has it.
    pub fn rest(&self) {
        self.migrate().quiesce().unwrap();
        self.device.endpoint().hold();
    }

    /// Goes on.
    pub fn resume(&mut self) {
        self.device.endpoint().release();
        let after = self.migrate().resume();
        self.finish(after);
    }

    /// The state, of a device at rest.
    pub fn save(&self) -> Vec<u8> {
        migration::save(&*self.device).unwrap()
    }

    pub fn load(&self, stream: &[u8]) -> Result<(), StateError> {
        migration::load(&*self.device, stream)
    }

    pub fn reset(&self) {
        self.device.endpoint().reset();
        self.device.reset(ResetKind::FunctionLevel);
        self.gate.grace().wait();
    }

    /// Data of the messages since the last call.
    pub fn messages(&self) -> Vec<u32> {
        std::mem::take(&mut self.interrupts.0.lock().unwrap().0)
    }

    pub fn line(&self) -> Line {
        let line = self.interrupts.0.lock().unwrap().1;
        line.unwrap_or(Line::Deasserted)
    }

    /// Faults and answers since the last call.
    pub fn reports(&self) -> Vec<String> {
        std::mem::take(&mut self.reports.0.lock().unwrap())
    }

    /// Enables MSI-X with vector n's message data being n.
    pub fn enable_msix(&self) {
        let endpoint = self.device.endpoint();
        let msix = endpoint.msix().unwrap();
        for vector in 0..msix.layout().vectors {
            let address = 0xfee0_0000;
            let data = vector.into();
            msix.program(vector, Message { address, data });
            msix.unmask(vector);
        }
        endpoint.enable_msix().unwrap();
    }
}
