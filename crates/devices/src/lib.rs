//! Software PCI functions. Each knows `pci` and `dma`, and nothing of who
//! uses it: a program under `run`, a guest, a test.
//!
//! | model | what it is |
//! |---|---|
//! | [`edu`] | QEMU's educational device: a factorial, a DMA engine, INTx and MSI |
//! | [`ioat`] | Intel's I/OAT DMA engine 3.3 with one channel |
//! | [`nvme`] | an NVMe 1.4 controller with one namespace |
//! | [`virtio_net`] | a virtio 1.2 network device: loopback, or a Unix stream |
//!
//! [`build`] makes one by name; [`models`] lists them with their properties.
//!
//! # Writing another device
//!
//! Take [`edu`] as the example: it is one file, and has every part.
//!
//! 1. **State.** One struct behind one mutex holds every register and the
//!    [`Life`](iogate_pci::Life) that they belong to. At power-on and after a
//!    reset it is made anew with [`Endpoint::life`](iogate_pci::Endpoint::life).
//! 2. **Endpoint.** [`Endpoint::builder`](iogate_pci::Endpoint::builder)
//!    takes identification, BARs and capabilities; it answers configuration
//!    space and keeps MSI and MSI-X tables, so that a model does neither.
//! 3. **Registers.** [`read_bar`](iogate_pci::Function::read_bar) and
//!    [`write_bar`](iogate_pci::Function::write_bar) lock the state, change it
//!    and return. They make no request: a write that starts something returns
//!    [`After::Work`](iogate_pci::After::Work). Any length at any offset may
//!    come; what the device's documentation does not allow reads as ones or
//!    zeros and writes nothing.
//! 4. **Work.** [`work`](iogate_pci::Function::work) locks the state, copies
//!    what it needs with the life, and unlocks. It makes its requests on a
//!    [`Bus`](iogate_pci::Bus) of that life, then locks again, asks
//!    [`is_alive`](iogate_pci::Bus::is_alive), and puts down the result. A
//!    quantum is bounded (edu moves at most 4 KiB, nvme about 1 MiB); with
//!    more to do it returns [`After::Work`](iogate_pci::After::Work).
//! 5. **Faults.** A refused request is already reported. The device answers
//!    as its specification says, and tells a person in words with
//!    [`Bus::answered`](iogate_pci::Bus::answered).
//! 6. **Interrupts.** Messages by `raise(vector)`, the pin by `set_line`, both
//!    always: the endpoint knows which is enabled. From the worker through the
//!    [`Bus`](iogate_pci::Bus), which is silent after a reset.
//! 7. **Reset.** Replace the state; the old worker's bus is dead by then.
//! 8. **Registry.** A `MODEL` with name, properties and a build function, and
//!    a line in `registry.rs`; `tests/registers.rs` then runs its hostile
//!    accesses on it as well.
//!
//! Written as a program, from power-on to a computed factorial:
//!
//! ```
//! use std::sync::Arc;
//! use iogate_devices::{Properties, Slot, build};
//! use iogate_dma::{Attachment, Fault, FaultSink, Gate, Interrupts, Line, Message, Port, Source};
//! use iogate_pci::After;
//!
//! struct Nobody;
//! impl Interrupts for Nobody {
//!     fn message(&self, _: Source, _: Message) {}
//!     fn line(&self, _: Source, _: Line) {}
//! }
//! impl FaultSink for Nobody {
//!     fn fault(&self, _: &Fault) {}
//!     fn answered(&self, _: Source, _: &str) {}
//! }
//! let source: Source = "0000:01:00.0".parse()?;
//! let slot = Slot { source, interrupts: Arc::new(Nobody), memory: None, tap: None };
//! let edu = build("edu", &Properties::new(), slot)?;
//! let gate = Arc::new(Gate::new());
//! let mut port = Port::new(source, Arc::new(Attachment::new()), gate.join(), Arc::new(Nobody));
//!
//! assert_eq!(edu.write_bar(0, 0x08, &5_u32.to_le_bytes()), After::Work);
//! while edu.work(&mut port) == After::Work {}
//! let mut factorial = [0; 4];
//! edu.read_bar(0, 0x08, &mut factorial);
//! assert_eq!(u32::from_le_bytes(factorial), 120);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![warn(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

pub mod edu;
pub mod ioat;
pub mod nvme;
mod properties;
mod registers;
mod registry;
mod rest;
pub mod virtio_net;

pub use properties::{Kind, Properties, Property, Value};
pub use registry::{BuildError, MakeMemory, Model, OpenTap, Slot, build, build_virtual, models};
