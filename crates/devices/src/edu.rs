//! edu, an educational device: a factorial, a small buffer, a DMA engine and
//! an interrupt. Register-compatible with QEMU's documentation
//! `docs/specs/edu.rst`.
//!
//! | offset | register | access |
//! |---|---|---|
//! | 0x00 | identification, 0x010000ed | RO |
//! | 0x04 | liveness: reads as the inverse of what was written | RW |
//! | 0x08 | factorial: write n, read n! modulo 2^32 when bit 0 of status is 0 | RW |
//! | 0x20 | status: bit 0 computing (RO), bit 7 interrupt after a factorial | RW |
//! | 0x24 | interrupt status | RO |
//! | 0x60 | interrupt raise: bits are added to the status | WO |
//! | 0x64 | interrupt acknowledge: bits are taken from the status | WO |
//! | 0x80 | DMA source | RW |
//! | 0x88 | DMA destination | RW |
//! | 0x90 | DMA count, in bytes | RW |
//! | 0x98 | DMA command: bit 0 start and busy, bit 1 to memory, bit 2 interrupt 0x100 after | RW |
//! | 0xa0 | PASID of the next transfers: bits 0-19 it, bit 31 whether they carry it | RW |
//!
//! Accesses are 4 bytes below 0x80, 4 or 8 from 0x80 on; a register of 8 bytes
//! written with 4 takes them as its whole value. Everything else reads as
//! ones and takes no writes. One side of a transfer is the 4096-byte buffer
//! at 0x40000, the other is memory, at an address of which the `dma-mask`
//! property lets 28 bits through.
//!
//! QEMU's edu has no PASIDs: the register at 0xa0 is an addition of iogate's,
//! there only with the property `pasid` while the function may send PASIDs. It
//! takes no writes during a transfer, and of a PASID only the bits that the
//! unit tells apart.
//!
//! Chosen here: a transfer that leaves the buffer moves nothing and ends as
//! any other; one that faults leaves the buffer as it was and ends as any
//! other, since the device has no way to say so. Beside the documented MSI there are a PCI Express and a
//! Power Management capability, so that the function can be reset.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitfield_struct::bitfield;
use iogate_dma::{Iova, Line, Pasid, Port};
use iogate_pci::{After, Bar, Bus, BusError, Endpoint, Function, Identity, Life, Msi, ResetKind};

use crate::properties::{Checked, Kind, Property};
use crate::registry::{BuildError, Model, Slot};

const IDENTIFICATION: u32 = 0x0100_00ed;
const BUFFER: u64 = 0x4_0000;
const BUFFER_SIZE: usize = 4096;
/// The interrupt after a factorial.
const FACTORIAL_DONE: u32 = 0x001;
/// The interrupt after a transfer.
const DMA_DONE: u32 = 0x100;

pub(crate) const MODEL: Model = Model {
    name: "edu",
    about: "educational device: factorial, DMA engine, INTx and MSI",
    properties: &[
        Property {
            name: "dma-mask",
            kind: Kind::Integer,
            about: "bits of a DMA address that reach the bus (default 0xfffffff)",
        },
        Property {
            name: "pasid",
            kind: Kind::Bool,
            about: "whether it has PASIDs, an addition to QEMU's edu (default false)",
        },
    ],
    build,
    build_virtual: None,
};

/// Bits of its PASIDs: all that there can be.
const PASID_WIDTH: u8 = 20;

/// The default `dma-mask`: 28 bits.
const MASK: u64 = 0x0fff_ffff;

fn build(properties: &Checked<'_>, slot: Slot) -> Result<Arc<dyn Function>, BuildError> {
    let mask = properties.number("dma-mask").unwrap_or(MASK);
    let has_pasids = properties.yes("pasid").unwrap_or(false);
    Ok(Arc::new(Edu::new(slot, mask, has_pasids)?))
}

/// Status register (offset 0x20, 32-bit, RW).
#[bitfield(u32)]
struct Status {
    computing: bool,
    #[bits(6)]
    __: u8,
    interrupt: bool,
    #[bits(24)]
    __: u32,
}

/// DMA command register (offset 0x98, 64-bit, RW).
#[bitfield(u64)]
struct DmaCommand {
    busy: bool,
    to_memory: bool,
    interrupt: bool,
    #[bits(61)]
    __: u64,
}

/// DMA PASID register (offset 0xa0, 32-bit, RW).
#[bitfield(u32)]
struct DmaPasid {
    #[bits(20)]
    pasid: u32,
    #[bits(11)]
    __: u16,
    is_valid: bool,
}

impl DmaPasid {
    /// What transfers carry.
    fn carried(self) -> Option<Pasid> {
        Pasid::new(self.pasid()).filter(|_| self.is_valid())
    }
}

/// One edu device.
pub struct Edu {
    endpoint: Endpoint,
    mask: u64,
    state: Mutex<State>,
}

struct State {
    /// The life that the rest belongs to.
    life: Life,
    liveness: u32,
    factorial: u32,
    status: Status,
    interrupts: u32,
    dma_source: u64,
    dma_destination: u64,
    dma_count: u64,
    dma_command: DmaCommand,
    dma_pasid: DmaPasid,
    buffer: [u8; BUFFER_SIZE],
}

impl State {
    fn new(life: Life) -> Self {
        Self {
            life,
            liveness: 0,
            factorial: 0,
            status: Status::new(),
            interrupts: 0,
            dma_source: 0,
            dma_destination: 0,
            dma_count: 0,
            dma_command: DmaCommand::new(),
            dma_pasid: DmaPasid::new(),
            buffer: [0; BUFFER_SIZE],
        }
    }

    /// The bytes of the buffer that a transfer takes, if it stays inside.
    fn window(&mut self) -> Option<&mut [u8]> {
        let address = match self.dma_command.to_memory() {
            true => self.dma_source,
            false => self.dma_destination,
        };
        let first = usize::try_from(address.checked_sub(BUFFER)?).ok()?;
        let count = usize::try_from(self.dma_count).ok()?;
        self.buffer.get_mut(first..first.checked_add(count)?)
    }
}

impl Edu {
    /// An edu whose DMA addresses are cut to the bits of `mask`, and that has
    /// PASIDs or not.
    fn new(slot: Slot, mask: u64, has_pasids: bool) -> Result<Self, BuildError> {
        let identity = Identity {
            vendor: 0x1234,
            device: 0x11e8,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x00_ff00,
            revision: 0x10,
        };
        let builder = Endpoint::builder(identity)
            .bar(Bar::memory32(0, 1 << 20))
            .pin_a()
            .power_management()
            .msi(Msi::default())
            .express();
        let builder = match has_pasids {
            true => builder.pasid(PASID_WIDTH),
            false => builder,
        };
        let endpoint = builder.build(slot.source, slot.interrupts)?;
        Ok(Self {
            state: Mutex::new(State::new(endpoint.life())),
            endpoint,
            mask,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn computes(&self, bus: &mut Bus<'_>) {
        let operand = self.lock().factorial;
        let factorial = factorial(operand);
        let mut state = self.lock();
        if !bus.is_alive() {
            return;
        }
        state.factorial = factorial;
        state.status.set_computing(false);
        if state.status.interrupt() {
            raise(&mut state, FACTORIAL_DONE, bus);
        }
    }

    fn transfers(&self, bus: &mut Bus<'_>) {
        let mut scratch = [0; BUFFER_SIZE];
        let (command, memory, length) = {
            let mut state = self.lock();
            let command = state.dma_command;
            let memory = match command.to_memory() {
                true => state.dma_destination,
                false => state.dma_source,
            };
            let window = state.window().unwrap_or_default();
            for (to, from) in scratch.iter_mut().zip(window.iter()) {
                *to = *from;
            }
            (command, Iova(memory & self.mask), window.len())
        };
        let moved = scratch.get_mut(..length).unwrap_or_default();
        let result = match (moved.is_empty(), command.to_memory()) {
            (true, _) => Ok(()),
            (false, true) => bus.write(memory, moved),
            (false, false) => bus.read(memory, moved),
        };
        match result {
            Ok(()) => {}
            Err(BusError::Reset) => return,
            Err(BusError::Refused(_)) => {
                bus.answered("ended the transfer; edu has no error status");
            }
        }
        let mut state = self.lock();
        if !bus.is_alive() {
            return;
        }
        if !command.to_memory() && result.is_ok() {
            // The registers cannot have changed while the command was busy.
            let window = state.window().unwrap_or_default();
            for (to, from) in window.iter_mut().zip(moved.iter()) {
                *to = *from;
            }
        }
        state.dma_command.set_busy(false);
        if command.interrupt() {
            raise(&mut state, DMA_DONE, bus);
        }
    }
}

/// Adds `bits` to the interrupt status and interrupts by MSI or INTx.
fn raise(state: &mut State, bits: u32, bus: &Bus<'_>) {
    state.interrupts |= bits;
    if state.interrupts != 0 {
        bus.set_line(Line::Asserted);
        bus.raise(0);
    }
}

/// n! modulo 2^32. From 34 on 2^32 divides it.
fn factorial(n: u32) -> u32 {
    match n {
        34.. => 0,
        _ => (1..=n).fold(1, u32::wrapping_mul),
    }
}

impl Function for Edu {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn model(&self) -> &'static str {
        MODEL.name
    }

    fn read_bar(&self, _bar: u8, offset: u64, into: &mut [u8]) {
        let state = self.lock();
        let value = match (offset, into.len()) {
            (0x00, 4) => IDENTIFICATION.into(),
            (0x04, 4) => state.liveness.into(),
            (0x08, 4) => state.factorial.into(),
            (0x20, 4) => state.status.into_bits().into(),
            (0x24, 4) => state.interrupts.into(),
            (0x80, 4 | 8) => state.dma_source,
            (0x88, 4 | 8) => state.dma_destination,
            (0x90, 4 | 8) => state.dma_count,
            (0x98, 4 | 8) => state.dma_command.into_bits(),
            (0xa0, 4 | 8) if self.endpoint.pasid_bits() != 0 => state.dma_pasid.into_bits().into(),
            _ => u64::MAX,
        };
        into.fill(0xff);
        for (byte, value) in into.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    fn write_bar(&self, _bar: u8, offset: u64, from: &[u8]) -> After {
        let (low, value) = match *from {
            [a, b, c, d] => {
                let low = u32::from_le_bytes([a, b, c, d]);
                (low, u64::from(low))
            }
            [a, b, c, d, e, f, g, h] if offset >= 0x80 => {
                let low = u32::from_le_bytes([a, b, c, d]);
                (low, u64::from_le_bytes([a, b, c, d, e, f, g, h]))
            }
            _ => return After::Nothing,
        };
        let mut state = self.lock();
        let idle = !state.dma_command.busy();
        match offset {
            0x04 => state.liveness = !low,
            0x08 if !state.status.computing() => {
                state.factorial = low;
                state.status.set_computing(true);
                return After::Work;
            }
            0x20 => {
                let interrupt = Status::from_bits(low).interrupt();
                state.status.set_interrupt(interrupt);
            }
            0x60 => {
                state.interrupts |= low;
                if state.interrupts != 0 {
                    self.endpoint.set_line(Line::Asserted);
                    self.endpoint.raise(0);
                }
            }
            0x64 => {
                state.interrupts &= !low;
                if state.interrupts == 0 {
                    self.endpoint.set_line(Line::Deasserted);
                }
            }
            0x80 if idle => state.dma_source = value,
            0x88 if idle => state.dma_destination = value,
            0x90 if idle => state.dma_count = value,
            0x98 if idle && DmaCommand::from_bits(value).busy() => {
                state.dma_command = DmaCommand::from_bits(value);
                return After::Work;
            }
            0xa0 if idle => {
                let bits = u32::from(self.endpoint.pasid_bits());
                let beyond = u32::MAX.unbounded_shl(bits);
                let written = DmaPasid::from_bits(low);
                if bits != 0 {
                    state.dma_pasid = DmaPasid::new()
                        .with_is_valid(written.is_valid())
                        .with_pasid(written.pasid() & !beyond);
                }
            }
            _ => {}
        }
        After::Nothing
    }

    fn work(&self, port: &mut Port) -> After {
        let (life, computing, transferring, pasid) = {
            let state = self.lock();
            let (status, command) = (state.status, state.dma_command);
            let pasid = state.dma_pasid.carried();
            (state.life, status.computing(), command.busy(), pasid)
        };
        if computing {
            self.computes(&mut Bus::new(&self.endpoint, port, life));
        }
        if transferring {
            port.set_pasid(pasid);
            self.transfers(&mut Bus::new(&self.endpoint, port, life));
            port.set_pasid(None);
        }
        After::Nothing
    }

    fn reset(&self, _kind: ResetKind) {
        let mut state = self.lock();
        *state = State::new(self.endpoint.life());
        self.endpoint.set_line(Line::Deasserted);
    }
}
