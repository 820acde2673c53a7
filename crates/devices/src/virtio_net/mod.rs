//! virtio-net: a virtio 1.2 network device on PCI, modern only, with split
//! queues.
//!
//! | part | what there is |
//! |---|---|
//! | features | MAC, STATUS, MRG_RXBUF, CTRL_VQ, CTRL_RX, MQ, INDIRECT_DESC, EVENT_IDX, VERSION_1, ACCESS_PLATFORM, SR_IOV |
//! | queues | 1 to 8 pairs and a control queue, 2 to 1024 entries (256 unless asked otherwise) |
//! | interrupts | MSI-X, a vector a queue and one for the configuration; INTx |
//! | functions | by SR-IOV up to 16 virtual ones, each with queues and a loopback of its own |
//! | back ends | loopback, a pair's transmitted packets are its received ones; a Unix stream as QEMU's `-netdev stream`; a tap interface |
//!
//! | BAR | offset | structure | accesses that change something |
//! |---|---|---|---|
//! | 1 | 0x0000 | MSI-X table, pending bits at 0x800 | writes |
//! | 4 | 0x0000 | common configuration | writes |
//! | 4 | 0x1000 | ISR status | reads |
//! | 4 | 0x2000 | device configuration | none |
//! | 4 | 0x3000 | notifications, 4 bytes a queue | writes |
//!
//! Packets are moved in batches of up to 256, or until 1 MiB is moved: indices
//! and descriptors are read in bulk, and used entries are written in bulk with
//! one index. While it works the device asks for no notifications, nor for a
//! moment after the last packet where the driver is quick to bring the next;
//! in a loopback for none of receive buffers at all: a packet that finds none
//! is dropped, as on a wire. From a stream packets wait for buffers.
//!
//! A queue that makes no sense, or whose structures are refused, sets
//! DEVICE_NEEDS_RESET; a packet whose memory is refused is dropped. A reset by
//! the driver is seen as done (status 0) when the worker has left the queues.
//!
//! Its state moves to another device with as many pairs, whatever the back
//! ends are; the MAC address moves with it.

mod backend;
mod migrate;
mod ring;
mod spec;
mod state;
mod watch;
mod window;
mod worker;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_dma::{Line, Port};
use iogate_pci::topology::{FIRST_VF_OFFSET, MAX_VFS, VF_STRIDE};
use iogate_pci::{
    After, Bar, Bus, ConfigEffect, Endpoint, Function, Identity, Migrate, MsixLayout, ResetKind,
    Wake, config,
};

use crate::properties::{Checked, Kind, Property};
use crate::registry::{BuildError, Model, Slot};
use crate::rest::Rest;
use backend::{Backend, Stream};
use spec::common::NO_VECTOR;
use spec::pci::{self, COMMON, DEVICE_SPECIFIC, ISR, NOTIFY};
use state::{Cause, MAX_PAIRS, Role, Setup, State};
use worker::{Quantum, Scratch};

pub(crate) const MODEL: Model = Model {
    name: "virtio-net",
    about: "virtio 1.2 network device, loopback, a Unix stream or a tap",
    properties: &[
        Property {
            name: "queues",
            kind: Kind::Integer,
            about: "queue pairs, 1 to 8 (default 1)",
        },
        Property {
            name: "mac",
            kind: Kind::Text,
            about: "MAC address (default: from the address)",
        },
        Property {
            name: "socket",
            kind: Kind::Text,
            about: "a listening Unix socket to connect to, as QEMU's -netdev stream (default: loopback)",
        },
        Property {
            name: "tap",
            kind: Kind::Text,
            about: "a tap interface of this machine, made if there is none, which needs CAP_NET_ADMIN",
        },
        Property {
            name: "migration",
            kind: Kind::Bool,
            about: "whether the state can be saved and moved (default true)",
        },
        Property {
            name: "vfs",
            kind: Kind::Integer,
            about: "virtual functions by SR-IOV, 0 to 16, each a loopback (default 0)",
        },
    ],
    build,
    build_virtual: Some(build_virtual),
};

fn build(properties: &Checked<'_>, slot: Slot) -> Result<Arc<dyn Function>, BuildError> {
    let mac = match properties.text("mac") {
        Some(text) => parse_mac(text).ok_or_else(|| BuildError::Range {
            property: "mac",
            value: text.to_owned(),
            rule: "it is six bytes as in 02:00:00:00:01:00, and no group's address",
        })?,
        None => default_mac(&slot),
    };
    let role = match properties.number("vfs").unwrap_or(0) {
        0 => Role::Alone,
        vfs => Role::Physical {
            vfs: u16::try_from(vfs)
                .ok()
                .filter(|vfs| *vfs <= MAX_VFS)
                .ok_or_else(|| BuildError::Range {
                    property: "vfs",
                    value: vfs.to_string(),
                    rule: "there are at most 16 virtual functions",
                })?,
        },
    };
    let setup = Setup {
        mac,
        pairs: pairs(properties)?,
        role,
    };
    let backend = backend(properties, &slot)?;
    let mut device = VirtioNet::new(slot, setup, backend)?;
    device.migratable = properties.yes("migration").unwrap_or(true);
    Ok(Arc::new(device))
}

fn backend(properties: &Checked<'_>, slot: &Slot) -> Result<Backend, BuildError> {
    let (path, stream) = match (properties.text("socket"), properties.text("tap")) {
        (None, None) => return Ok(Backend::Loopback),
        (Some(path), None) => (path.to_owned(), Stream::connect(Path::new(path))),
        (None, Some(name)) => {
            let opened = match &slot.tap {
                Some(open) => open(name),
                None => Err(std::io::ErrorKind::Unsupported.into()),
            };
            (
                format!("tap interface {name}"),
                opened.and_then(Stream::tap),
            )
        }
        (Some(_), Some(name)) => {
            return Err(BuildError::Range {
                property: "tap",
                value: name.to_owned(),
                rule: "a device has a socket or a tap, not both",
            });
        }
    };
    let stream = stream.map_err(|error| BuildError::File { path, error })?;
    Ok(Backend::Stream(stream))
}

/// A virtual function has the queues of its device, and a loopback of its own.
fn build_virtual(properties: &Checked<'_>, slot: Slot) -> Result<Arc<dyn Function>, BuildError> {
    let setup = Setup {
        mac: default_mac(&slot),
        pairs: pairs(properties)?,
        role: Role::Virtual,
    };
    let mut device = VirtioNet::new(slot, setup, Backend::Loopback)?;
    device.migratable = properties.yes("migration").unwrap_or(true);
    Ok(Arc::new(device))
}

fn pairs(properties: &Checked<'_>) -> Result<u16, BuildError> {
    let pairs = properties.number("queues").unwrap_or(1);
    u16::try_from(pairs)
        .ok()
        .filter(|pairs| (1..=MAX_PAIRS).contains(pairs))
        .ok_or_else(|| BuildError::Range {
            property: "queues",
            value: pairs.to_string(),
            rule: "there are 1 to 8 pairs",
        })
}

/// Locally administered, one for each address on the bus.
fn default_mac(slot: &Slot) -> [u8; 6] {
    let [low, high] = slot.source.requester.0.to_le_bytes();
    let [segment, _] = slot.source.segment.to_le_bytes();
    [0x02, 0x69, 0x6f, segment, high, low]
}

/// An address of one station, as `02:00:00:00:01:00`.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        let digits = part.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits)?;
    }
    let [first, ..] = mac;
    (parts.next().is_none() && first & 1 == 0).then_some(mac)
}

/// One network device.
pub struct VirtioNet {
    endpoint: Endpoint,
    backend: Backend,
    /// Where the window capability stands in configuration space.
    window: u64,
    state: Mutex<State>,
    /// Keeps the worker away while the state moves.
    rest: Rest,
    /// Whether the state may move.
    migratable: bool,
    /// The worker's, from one quantum to the next.
    scratch: Mutex<Option<Box<Scratch>>>,
}

impl VirtioNet {
    fn new(slot: Slot, setup: Setup, backend: Backend) -> Result<Self, BuildError> {
        let identity = Identity {
            vendor: pci::VENDOR,
            device: pci::DEVICE,
            subsystem_vendor: pci::VENDOR,
            subsystem: 0x1100,
            class: 0x02_0000,
            revision: pci::REVISION,
        };
        let vectors = setup.queues().saturating_add(1);
        let bars = [
            Bar::memory32(pci::MSIX_BAR, pci::MSIX_BAR_SIZE),
            Bar::memory64(pci::BAR, pci::BAR_SIZE).prefetchable(),
        ];
        let [msix_bar, bar] = bars;
        let builder = Endpoint::builder(identity).bar(msix_bar).bar(bar);
        let builder = match setup.role {
            Role::Alone => builder.pin_a(),
            Role::Physical { vfs } => {
                let places = (vfs, FIRST_VF_OFFSET, VF_STRIDE);
                builder.pin_a().ari().sr_iov(places, pci::DEVICE, &bars)
            }
            // PCI Express Base 6.0 section 9.3.4: it has no pin.
            Role::Virtual => builder.ari(),
        };
        let mut builder = builder
            .power_management()
            .msix(MsixLayout {
                vectors,
                table_bar: pci::MSIX_BAR,
                table_offset: 0,
                pba_bar: pci::MSIX_BAR,
                pba_offset: pci::PENDING,
            })
            .express();
        let multiplier = pci::NOTIFY_MULTIPLIER.to_le_bytes();
        let structures = [
            (COMMON, &[][..]),
            (NOTIFY, &multiplier[..]),
            (ISR, &[]),
            (DEVICE_SPECIFIC, &[]),
        ];
        for (structure, more) in structures {
            let body = pci::capability(structure, pci::BAR, more);
            builder = builder.capability(config::capability::VENDOR, &body, &[]);
        }
        let (body, writable) = window::capability();
        let endpoint = builder
            .capability(config::capability::VENDOR, &body, &writable)
            .build(slot.source, slot.interrupts)?;
        Ok(Self {
            window: window::find(&endpoint),
            state: Mutex::new(State::new(endpoint.life(), setup, vectors)),
            endpoint,
            backend,
            rest: Rest::default(),
            migratable: true,
            scratch: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_scratch(&self) -> MutexGuard<'_, Option<Box<Scratch>>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells a cause: by its vector where messages are enabled, else by ISR
    /// Status and the pin.
    fn interrupt(&self, state: &mut State, cause: Cause, raise: impl FnOnce(u16)) {
        if self.endpoint.messages_enabled() {
            match state.vector_of(cause) {
                NO_VECTOR => {}
                vector => raise(vector),
            }
        } else {
            state.set_isr(cause);
            self.endpoint.set_line(state.line());
        }
    }
}

impl Function for VirtioNet {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn model(&self) -> &'static str {
        MODEL.name
    }

    fn read_bar(&self, bar: u8, offset: u64, into: &mut [u8]) {
        into.fill(0);
        if bar != pci::BAR {
            self.endpoint.read_msix(bar, offset, into);
            return;
        }
        let mut state = self.lock();
        if let Some(at) = DEVICE_SPECIFIC.at(offset) {
            state.read_device(at, into);
        } else if ISR.at(offset) == Some(0)
            && let Some(first) = into.first_mut()
        {
            *first = state.take_isr();
            self.endpoint.set_line(Line::Deasserted);
        } else {
            state.read_common(offset, into);
        }
    }

    fn write_bar(&self, bar: u8, offset: u64, from: &[u8]) -> After {
        if bar != pci::BAR {
            self.endpoint.write_msix(bar, offset, from);
            return After::Nothing;
        }
        let mut state = self.lock();
        if let Some(at) = NOTIFY.at(offset) {
            return state.notify(at);
        }
        if let Some(cause) = state.write_common(offset, from) {
            self.interrupt(&mut state, cause, |vector| self.endpoint.raise(vector));
        }
        // A reset by the driver clears ISR Status.
        self.endpoint.set_line(state.line());
        state.after()
    }

    fn work(&self, port: &mut Port) -> After {
        let Some(_inside) = self.rest.enter() else {
            return After::Nothing;
        };
        let plan = self.lock().begin(self.backend.has_news());
        // Taken out, so that nothing is locked while the port is used.
        let mut scratch = self.lock_scratch().take().unwrap_or_default();
        let bus = Bus::new(&self.endpoint, port, plan.life);
        let after = Quantum::new(self, bus, plan).run(&mut scratch);
        *self.lock_scratch() = Some(scratch);
        after
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        self.read_window(offset, into);
        self.endpoint.read_config(offset, into);
    }

    fn write_config(&self, offset: u64, from: &[u8]) -> (ConfigEffect, After) {
        let effect = self.endpoint.write_config(offset, from);
        (effect, self.write_window(offset, from))
    }

    fn attend(&self, wake: Wake) {
        self.backend.attend(wake);
    }

    fn migrate(&self) -> Option<&dyn Migrate> {
        self.migratable.then_some(self as &dyn Migrate)
    }

    fn reset(&self, _kind: ResetKind) {
        let mut state = self.lock();
        *state = state.anew(self.endpoint.life());
        self.endpoint.set_line(Line::Deasserted);
    }
}
