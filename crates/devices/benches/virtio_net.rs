//! Packets per second of a virtio-net loopback: notified for each burst, with
//! its worker on the same thread, over a shared file behind an address space
//! of 4 KiB pages. Beside it, in the same run, memcpy of the same packets from
//! and to memory of our own.

use std::error::Error;
use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iogate_devices::{Properties, Slot, build};
use iogate_dma::{
    Attachment, Fault, FaultReason, FaultSink, Gate, InFlight, Interrupts, Iova, Line, Memory,
    Message, Outcome, Port, Request, Rights, Run, Source, Span, Translate, Width,
};
use iogate_memory::{ClientMemory, FileRange};
use iogate_pci::{After, Function};
use iogate_space::{AddressSpace, Segment};

const RAM: usize = 8 << 20;
const PAGE: u64 = 4096;
const SIZE: u16 = 256;
const BURST: u16 = 32;
const BAR: u8 = 4;
/// Table, available ring and used ring of queue 0; those of queue 1 follow.
const RINGS: [u64; 3] = [0x0000, 0x4000, 0x8000];
const QUEUE: u64 = 0x1_0000;
/// Buffers of 2 KiB: received, then transmitted.
const BUFFERS: u64 = 0x10_0000;
const BUFFER: u64 = 2048;
const HEADER: usize = 12;

struct Pages {
    space: AddressSpace<()>,
    memory: ClientMemory,
}

impl Translate for Pages {
    fn translate<'g>(
        &'g self,
        guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        match self.space.lookup(guard, request.span, request.access) {
            Ok(hit) => {
                let run = Run::new(&self.memory, hit.output, hit.length, hit.rights);
                Ok(Outcome::Memory(run))
            }
            Err(_) => Err(Fault {
                source_id: request.source,
                span: request.span,
                access: request.access,
                reason: FaultReason::NotMapped,
                walk: None,
                recoverable: false,
            }),
        }
    }
}

struct Nobody;

impl Interrupts for Nobody {
    fn message(&self, _: Source, _: Message) {}
    fn line(&self, _: Source, _: Line) {}
}

impl FaultSink for Nobody {
    fn fault(&self, fault: &Fault) {
        eprintln!("{fault}");
    }
    fn answered(&self, _: Source, answer: &str) {
        eprintln!("{answer}");
    }
}

struct Bench {
    nic: Arc<dyn Function>,
    port: Port,
    pages: Arc<Pages>,
    base: u64,
    /// Keeps the file mapped.
    _range: FileRange,
    /// The index of both rings.
    index: u16,
}

impl Bench {
    fn new() -> Result<Self, Box<dyn Error>> {
        let memory = ClientMemory::new()?;
        let file = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, RAM as u64)?;
        let range = memory.map_file(file.as_fd(), 0, RAM as u64, true)?;
        let base = range.address();
        memory.write(base, &vec![0; RAM])?;
        let gate = Arc::new(Gate::new());
        let space = AddressSpace::new(gate.clone());
        for page in 0..RAM as u64 / PAGE {
            let first = Iova(page * PAGE);
            let span = Span::with_length(first, PAGE).ok_or("span")?;
            space
                .map(span, Rights::READ_WRITE, ())
                .map_err(|(e, ())| e)?;
            let output = base + page * PAGE;
            space.fill(
                first,
                &[Segment {
                    length: PAGE,
                    output,
                }],
            )?;
        }
        let pages = Arc::new(Pages { space, memory });
        let attachment = Arc::new(Attachment::new());
        attachment.set(Some(pages.clone()));
        let source: Source = "0000:01:00.0".parse()?;
        let interrupts = Arc::new(Nobody);
        let nic = build(
            "virtio-net",
            &Properties::new(),
            Slot {
                source,
                interrupts,
                memory: None,
                tap: None,
            },
        )?;
        let _ = nic.endpoint().write_config(4, &[6, 0]);
        let port = Port::new(source, attachment, gate.join(), Arc::new(Nobody));
        Ok(Self {
            nic,
            port,
            pages,
            base,
            _range: range,
            index: 0,
        })
    }

    fn set(&mut self, offset: u64, bytes: &[u8]) {
        let mut after = self.nic.write_bar(BAR, offset, bytes);
        while after == After::Work {
            after = self.nic.work(&mut self.port);
        }
    }

    fn poke(&self, address: u64, bytes: &[u8]) {
        let written = self.pages.memory.write(self.base + address, bytes);
        written.expect("the bench's own memory");
    }

    /// Sets up both queues for packets of `length` bytes.
    fn start(&mut self, length: u32) {
        for (register, value) in [(0x14, &[0][..]), (0x14, &[3]), (0x08, &[1]), (0x0c, &[1])] {
            self.set(register, value);
        }
        self.set(0x14, &[0x0b]);
        for queue in 0..2_u16 {
            let place = u64::from(queue) * QUEUE;
            self.set(0x16, &queue.to_le_bytes());
            self.set(0x18, &SIZE.to_le_bytes());
            for (register, ring) in [0x20, 0x28, 0x30].into_iter().zip(RINGS) {
                self.set(register, &(place + ring).to_le_bytes());
                self.poke(place + ring, &[0; 0x4000]);
            }
            // No interrupts: as DPDK does.
            self.poke(place + RINGS[1], &[1, 0]);
            for at in 0..SIZE {
                let slot = u64::from(queue * SIZE + at);
                let mut descriptor = Vec::new();
                descriptor.extend((BUFFERS + slot * BUFFER).to_le_bytes());
                let (bytes, flags) = match queue {
                    0 => (2048, 2_u16),
                    _ => (length + HEADER as u32, 0),
                };
                descriptor.extend(bytes.to_le_bytes());
                descriptor.extend(flags.to_le_bytes());
                descriptor.extend([0; 2]);
                self.poke(place + u64::from(at) * 16, &descriptor);
            }
            self.set(0x1c, &[1, 0]);
        }
        self.set(0x14, &[0x0f]);
        self.index = 0;
    }

    /// Sends a burst and sees that it came back.
    fn burst(&mut self) {
        let mut entries = [0; BURST as usize * 2];
        for (at, entry) in entries.chunks_exact_mut(2).enumerate() {
            let head = (self.index + at as u16) % SIZE;
            entry.copy_from_slice(&head.to_le_bytes());
        }
        let slot = u64::from(self.index % SIZE) * 2;
        self.index = self.index.wrapping_add(BURST);
        for queue in 0..2 {
            let ring = queue * QUEUE + RINGS[1];
            self.poke(ring + 4 + slot, &entries);
            let index = self.index.into();
            let stored = self
                .pages
                .memory
                .store(self.base + ring + 2, Width::Word, index);
            stored.expect("the bench's own memory");
        }
        self.set(0x3004, &[1, 0]);
        let used = self.base + RINGS[2] + 2;
        let seen = self.pages.memory.load(used, Width::Word);
        assert_eq!(seen, Ok(self.index.into()));
    }
}

/// Seconds for a packet, the best of many rounds.
fn best(mut burst: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..200 {
        let start = Instant::now();
        (0..100).for_each(|_| burst());
        best = best.min(start.elapsed());
    }
    best.as_secs_f64() / (100.0 * f64::from(BURST))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut bench = Bench::new()?;
    for length in [64, 512, 1500] {
        bench.start(length);
        let packet = best(|| bench.burst());
        let bytes = length as usize + HEADER;
        let from = vec![1; usize::from(SIZE) * BUFFER as usize];
        let mut to = from.clone();
        let mut between = vec![0; bytes];
        let mut at = 0;
        let copied = best(|| {
            for _ in 0..BURST {
                let here = at % from.len();
                between.copy_from_slice(black_box(&from[here..here + bytes]));
                to[here..here + bytes].copy_from_slice(black_box(&between));
                at += BUFFER as usize;
            }
        });
        println!(
            "{length:4} bytes: {:5.2} million packets/s, {:.0} ns a packet; memcpy in and out {:.0} ns: {:.1} times",
            1e-6 / packet,
            packet * 1e9,
            copied * 1e9,
            packet / copied,
        );
    }
    Ok(())
}
