//! A VT-d unit as a PCI function whose BAR 0 holds its registers: for a guest's
//! kernel they are a page of memory that the ACPI table names.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use iogate_dma::{Interrupts, Message, Port, Source};
use iogate_pci::{
    After, Bar, Command, Endpoint, Function, Identity, LayoutError, ResetKind, config,
};
use iogate_vtd::Vtd;

use super::worker::Waker;

/// What the function is called by its ids. The vendor is that of QEMU's `edu`,
/// which nobody else has; the class is that of an interrupt controller: Linux
/// leaves the addresses of those alone, so that the unit stays where the ACPI
/// table says it is.
pub(crate) const IDENTITY: Identity = Identity {
    vendor: 0x1234,
    device: 0x7d00,
    subsystem_vendor: 0x1234,
    subsystem: 0x7d00,
    class: 0x08_0000,
    revision: 1,
};

/// Bytes of the page of registers.
const REGISTERS: u64 = 4096;
/// Messages that wait for the client; a guest needs no more than a few kinds.
const MESSAGES: usize = 64;

/// Messages of a unit on their way to its worker, which sends them.
#[derive(Default)]
pub(crate) struct Outgoing {
    queue: Mutex<VecDeque<Message>>,
    pub(crate) waker: Arc<Waker>,
}

impl Outgoing {
    /// Takes a message; never waits. One that waits already is not sent twice:
    /// an edge that was not seen yet is one edge.
    pub(crate) fn put(&self, message: Message) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.contains(&message) && queue.len() < MESSAGES {
            queue.push_back(message);
        }
        drop(queue);
        self.waker.wake();
    }

    /// The next one to be sent.
    pub(crate) fn take(&self) -> Option<Message> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop_front()
    }
}

/// The function.
pub(crate) struct UnitFunction {
    unit: Arc<Vtd>,
    endpoint: Endpoint,
}

impl UnitFunction {
    pub(crate) fn new(
        unit: Arc<Vtd>,
        source: Source,
        interrupts: Arc<dyn Interrupts>,
    ) -> Result<Self, LayoutError> {
        let endpoint = Endpoint::builder(IDENTITY)
            .bar(Bar::memory32(0, REGISTERS))
            .build(source, interrupts)?;
        Ok(Self { unit, endpoint })
    }
}

impl Function for UnitFunction {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn model(&self) -> &'static str {
        "vtd"
    }

    fn read_bar(&self, _: u8, offset: u64, into: &mut [u8]) {
        self.unit.read(offset, into);
    }

    fn write_bar(&self, _: u8, offset: u64, from: &[u8]) -> After {
        self.unit.write(offset, from);
        // The unit wakes its own worker.
        After::Nothing
    }

    fn work(&self, _: &mut Port) -> After {
        After::Nothing
    }

    /// Bus Master Enable is always set: no kernel sets it for a unit, and QEMU
    /// drops the messages of a function that has it clear.
    fn read_config(&self, offset: u64, into: &mut [u8]) {
        self.endpoint.read_config(offset, into);
        let [low, _] = Command::MASTER.to_le_bytes();
        let at = u64::from(config::register::COMMAND).checked_sub(offset);
        let byte = at.and_then(|at| into.get_mut(usize::try_from(at).ok()?));
        if let Some(byte) = byte {
            *byte |= low;
        }
    }

    fn reset(&self, _: ResetKind) {
        self.unit.reset();
    }
}
