//! nvme: an NVM Express 1.4 controller with one namespace of 512-byte blocks.
//!
//! | part | what there is |
//! |---|---|
//! | queues | admin and up to 127 I/O pairs, 1024 entries, physically contiguous, round robin |
//! | data | PRP entries and lists, pages of 4 KiB, at most 512 KiB a command |
//! | admin | Identify, Create/Delete I/O queues, Get/Set Features, Get Log Page, Abort, Asynchronous Event Request |
//! | I/O | Read, Write, Flush, Write Zeroes, Dataset Management |
//! | memory buffer | with `cmb`: BAR 2, for queues, lists and data, at the address that CMBMSC gives it |
//! | interrupts | MSI-X, one vector for the admin queue and one a pair; INTx |
//! | resets | CC.EN, shutdown, function level, bus |
//!
//! A quantum of its worker takes at most 32 commands and stops after 1 MiB of
//! data. A refused request for data ends its command with Data Transfer Error
//! (0x04); one for an entry of a queue sets Controller Fatal Status, since
//! nothing can be told to the host any more.
//!
//! A controller reset by CC.EN is done by the worker, between commands:
//! CSTS.RDY falls when nothing of the old life is under way any more.

mod admin;
mod buffer;
mod event;
mod features;
mod io;
mod prp;
mod queue;
mod spec;
mod state;
mod storage;
mod worker;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_dma::{Line, Port};
use iogate_pci::{After, Bar, Bus, Endpoint, Function, Identity, MsixLayout, ResetKind};

use crate::properties::{Checked, Kind, Property};
use crate::registers;
use crate::registry::{BuildError, Model, Slot};
use buffer::Paths;
use spec::registers::offset;
use state::State;
use worker::{Quantum, Scratch};

pub use storage::{Backed, Sparse, Storage, StorageError};

/// Bytes of a logical block, as a power of two.
const BLOCK_SHIFT: u8 = 9;
const DEFAULT_SIZE: u64 = 64 << 20;
/// The largest namespace: 2^53 bytes, which no count overflows.
const MAX_SIZE: u64 = 1 << 53;
const DEFAULT_QUEUES: u16 = 16;
const MAX_QUEUES: u16 = 127;

const BAR_SIZE: u64 = 0x4000;
const TABLE: u32 = 0x2000;
const PENDING: u32 = 0x3000;

const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x0010;

pub(crate) const MODEL: Model = Model {
    name: "nvme",
    about: "NVMe 1.4 controller with one namespace",
    properties: &[
        Property {
            name: "size",
            kind: Kind::Bytes,
            about: "size of the namespace, a multiple of 512 (default 64 MiB, or the file's size)",
        },
        Property {
            name: "file",
            kind: Kind::Text,
            about: "an existing file that holds the namespace (default: memory, at most 4 GiB of written data)",
        },
        Property {
            name: "serial",
            kind: Kind::Text,
            about: "serial number, up to 20 printable ASCII characters (default: from the address)",
        },
        Property {
            name: "queues",
            kind: Kind::Integer,
            about: "I/O queue pairs, 1 to 127 (default 16)",
        },
        Property {
            name: "cmb",
            kind: Kind::Bytes,
            about: "controller memory buffer, a power of two from 4 KiB to 1 GiB (default: none)",
        },
    ],
    build,
    build_virtual: None,
};

fn build(properties: &Checked<'_>, slot: Slot) -> Result<Arc<dyn Function>, BuildError> {
    let size = properties.number("size");
    let storage: Box<dyn Storage> = match properties.text("file") {
        Some(path) => {
            Box::new(
                Backed::open(Path::new(path), size).map_err(|error| BuildError::File {
                    path: path.to_owned(),
                    error,
                })?,
            )
        }
        None => Box::new(Sparse::new(size.unwrap_or(DEFAULT_SIZE))),
    };
    let queues = properties.number("queues").unwrap_or(DEFAULT_QUEUES.into());
    let queues = u16::try_from(queues)
        .ok()
        .filter(|queues| (1..=MAX_QUEUES).contains(queues))
        .ok_or_else(|| BuildError::Range {
            property: "queues",
            value: queues.to_string(),
            rule: "there are 1 to 127 pairs",
        })?;
    let requester = slot.source.requester;
    let serial = match properties.text("serial") {
        Some(serial) => serial.to_owned(),
        None => format!("IOGATE{:04X}{:04X}", slot.source.segment, requester.0),
    };
    let buffer = properties.number("cmb").unwrap_or_default();
    Ok(Arc::new(Nvme::new(slot, storage, &serial, queues, buffer)?))
}

/// One controller.
pub struct Nvme {
    endpoint: Endpoint,
    storage: Box<dyn Storage>,
    serial: String,
    uuid: [u8; 16],
    state: Mutex<State>,
    scratch: Mutex<Scratch>,
}

impl Nvme {
    /// A controller over `storage` with `queues` I/O queue pairs, brought into
    /// the range 1 to 127, and a memory buffer of `buffer` bytes, or none (0).
    pub fn new(
        slot: Slot,
        storage: Box<dyn Storage>,
        serial: &str,
        queues: u16,
        buffer: u64,
    ) -> Result<Self, BuildError> {
        let size = storage.size();
        if size == 0 || !size.is_multiple_of(1 << BLOCK_SHIFT) || size > MAX_SIZE {
            return Err(BuildError::Range {
                property: "size",
                value: size.to_string(),
                rule: "it is a multiple of 512, at least 512 and at most 2^53",
            });
        }
        let printable = serial.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if serial.is_empty() || serial.len() > 20 || !printable {
            return Err(BuildError::Range {
                property: "serial",
                value: serial.to_owned(),
                rule: "it is 1 to 20 printable ASCII characters",
            });
        }
        if buffer != 0 && !buffer::is_size(buffer) {
            return Err(BuildError::Range {
                property: "cmb",
                value: buffer.to_string(),
                rule: "it is a power of two from 4 KiB to 1 GiB",
            });
        }
        let queues = queues.clamp(1, MAX_QUEUES);
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE,
            subsystem_vendor: VENDOR,
            subsystem: DEVICE,
            class: 0x01_0802,
            revision: 0x01,
        };
        let mut endpoint = Endpoint::builder(identity).bar(Bar::memory64(0, BAR_SIZE));
        if buffer != 0 {
            let memory = slot.make_memory(buffer::BAR, buffer)?;
            let bar = Bar::memory64(buffer::BAR, buffer).prefetchable();
            endpoint = endpoint.memory_bar(bar, memory);
        }
        let endpoint = endpoint
            .pin_a()
            .power_management()
            .msix(MsixLayout {
                vectors: queues.saturating_add(1),
                table_bar: 0,
                table_offset: TABLE,
                pba_bar: 0,
                pba_offset: PENDING,
            })
            .express()
            .build(slot.source, slot.interrupts)?;
        Ok(Self {
            state: Mutex::new(State::new(endpoint.life(), queues, buffer)),
            endpoint,
            storage,
            uuid: uuid(serial),
            serial: serial.to_owned(),
            scratch: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocks(&self) -> u64 {
        self.storage.size() >> BLOCK_SHIFT
    }
}

/// An identifier of version 8 (RFC 9562) that follows from the serial number:
/// two rounds of FNV-1a.
fn uuid(serial: &str) -> [u8; 16] {
    let hash = |seed: u64| {
        serial.bytes().fold(seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    };
    let first = hash(0xcbf2_9ce4_8422_2325);
    let second = hash(first);
    let version = u128::from(first) << 64 | u128::from(second);
    let version = version & !(0xf << 76 | 0x3 << 62) | 0x8 << 76 | 0x2 << 62;
    version.to_be_bytes()
}

impl Function for Nvme {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn model(&self) -> &'static str {
        MODEL.name
    }

    fn read_bar(&self, bar: u8, offset: u64, into: &mut [u8]) {
        if self.endpoint.read_memory(bar, offset, into) {
            return;
        }
        {
            let state = self.lock();
            registers::read(offset, into, |at| state.read(at));
        }
        self.endpoint.read_msix(0, offset, into);
    }

    fn write_bar(&self, bar: u8, offset: u64, from: &[u8]) -> After {
        if self.endpoint.write_memory(bar, offset, from) {
            return After::Nothing;
        }
        self.endpoint.write_msix(0, offset, from);
        let mut state = self.lock();
        let mut after = After::Nothing;
        for (at, value) in registers::dwords(offset, from) {
            if at >= u64::from(TABLE) {
                break;
            }
            after = match at.checked_sub(offset::DOORBELLS) {
                Some(at) => after.or(state.ring(at, value)),
                None => after.or(state.write(at, value)),
            };
        }
        self.endpoint.set_line(state.line());
        after
    }

    fn work(&self, port: &mut Port) -> After {
        let (life, registers) = {
            let state = self.lock();
            (state.life, state.buffer)
        };
        // Taken out, so that nothing is locked while the port is used.
        let scratch = std::mem::take(&mut *self.lock_scratch());
        let bus = Bus::new(&self.endpoint, port, life);
        let memory = self.endpoint.bar_memory(buffer::BAR);
        let bus = Paths::new(bus, registers, memory);
        let mut quantum = Quantum::new(self, bus, life, scratch);
        let after = quantum.run();
        *self.lock_scratch() = quantum.into_scratch();
        after
    }

    fn reset(&self, _kind: ResetKind) {
        let mut state = self.lock();
        *state = State::new(self.endpoint.life(), state.queues(), state.buffer.size());
        self.endpoint.set_line(Line::Deasserted);
    }
}
