//! ioat: Intel QuickData Technology (I/OAT, CBDMA) version 3.3, as function
//! 8086:2021 of a Xeon: a DMA engine of one channel.
//!
//! | part | what there is |
//! |---|---|
//! | descriptors | copy, fill and null, in a linked list of bus addresses |
//! | a transfer | at most 2^XFERCAP bytes, 4 KiB by default |
//! | completions | the channel's status to its completion address, interrupts by MSI-X or INTx |
//! | commands | suspend, resume, reset; abort suspends |
//!
//! A chain begins when CHAINADDR is written: the channel is armed and counts
//! from 0, also from suspended. DMACOUNT says how many descriptors of the
//! chain are submitted. CHANSTS is active as soon as there are some, idle when
//! all are done. Suspend and reset wait for the descriptor under way: Suspended
//! and Halted are shown when nothing moves any more.
//!
//! A descriptor that is wrong or refused halts the channel with its cause in
//! CHANERR: a refused address is reported as an illegal one (source,
//! destination, next descriptor, chain, completion). XOR, P+Q, CRC, DCA and
//! interrupt coalescing are not there, and not announced.

mod spec;
mod state;
mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_dma::{Line, Port};
use iogate_pci::{After, Bar, Bus, Endpoint, Function, Identity, MsixLayout, ResetKind};

use crate::properties::{Checked, Kind, Property};
use crate::registry::{BuildError, Model, Slot};
use state::State;
use worker::Quantum;

const BAR_SIZE: u64 = 0x4000;
const TABLE: u32 = 0x2000;
const PENDING: u32 = 0x3000;
const TRANSFER_CAPACITY: u8 = 12;

pub(crate) const MODEL: Model = Model {
    name: "ioat",
    about: "Intel I/OAT DMA engine with one channel",
    properties: &[Property {
        name: "xfercap",
        kind: Kind::Integer,
        about: "the most bytes of a transfer, as a power of two, 12 to 20 (default 12)",
    }],
    build,
    build_virtual: None,
};

fn build(properties: &Checked<'_>, slot: Slot) -> Result<Arc<dyn Function>, BuildError> {
    let given = properties.number("xfercap");
    let capacity = given.unwrap_or(TRANSFER_CAPACITY.into());
    let capacity = u8::try_from(capacity)
        .ok()
        .filter(|capacity| (12..=20).contains(capacity))
        .ok_or_else(|| BuildError::Range {
            property: "xfercap",
            value: capacity.to_string(),
            rule: "it is a power of two from 12 to 20",
        })?;
    Ok(Arc::new(Ioat::new(slot, capacity)?))
}

/// One DMA engine.
pub struct Ioat {
    endpoint: Endpoint,
    state: Mutex<State>,
    /// The worker's buffer from one quantum to the next.
    buffer: Mutex<Vec<u8>>,
}

impl Ioat {
    fn new(slot: Slot, capacity: u8) -> Result<Self, BuildError> {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x2021,
            subsystem_vendor: 0x8086,
            subsystem: 0x0000,
            class: 0x08_8000,
            revision: 0x04,
        };
        let endpoint = Endpoint::builder(identity)
            .bar(Bar::memory64(0, BAR_SIZE))
            .pin_a()
            .power_management()
            .msix(MsixLayout {
                vectors: 1,
                table_bar: 0,
                table_offset: TABLE,
                pba_bar: 0,
                pba_offset: PENDING,
            })
            .express()
            .build(slot.source, slot.interrupts)?;
        Ok(Self {
            state: Mutex::new(State::new(endpoint.life(), capacity)),
            endpoint,
            buffer: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_buffer(&self) -> MutexGuard<'_, Vec<u8>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function for Ioat {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn model(&self) -> &'static str {
        MODEL.name
    }

    fn read_bar(&self, _bar: u8, offset: u64, into: &mut [u8]) {
        {
            let mut state = self.lock();
            state.read(offset, into);
            self.endpoint.set_line(state.line());
        }
        self.endpoint.read_msix(0, offset, into);
    }

    fn write_bar(&self, _bar: u8, offset: u64, from: &[u8]) -> After {
        self.endpoint.write_msix(0, offset, from);
        let mut state = self.lock();
        let after = state.write(offset, from);
        self.endpoint.set_line(state.line());
        after
    }

    fn work(&self, port: &mut Port) -> After {
        let life = self.lock().life;
        // Taken out, so that nothing is locked while the port is used.
        let buffer = std::mem::take(&mut *self.lock_buffer());
        let mut quantum = Quantum {
            ioat: self,
            bus: Bus::new(&self.endpoint, port, life),
            life,
            buffer,
        };
        let after = quantum.run();
        *self.lock_buffer() = quantum.buffer;
        after
    }

    fn reset(&self, _kind: ResetKind) {
        let mut state = self.lock();
        *state = State::new(self.endpoint.life(), state.transfer_capacity());
        self.endpoint.set_line(Line::Deasserted);
    }
}
