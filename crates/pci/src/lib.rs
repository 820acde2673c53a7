//! PCI functions as software sees them: configuration space, capabilities,
//! BARs, MSI, MSI-X and INTx; and the contract that every device model keeps.
//!
//! | part | items |
//! |---|---|
//! | a device model | [`Function`], [`After`], [`ResetKind`], [`Wake`] |
//! | what every model has in common | [`Endpoint`], built by a [`Builder`] |
//! | what a model's worker uses | [`Bus`], which dies with the [`Life`] it belongs to |
//! | moving a function's state | [`Migrate`], [`migration`] |
//! | configuration registers | [`config`] |
//! | buses, bridges, isolation | [`topology`] |
//!
//! An [`Endpoint`] answers the configuration space, knows the BARs and sends
//! the interrupts. A model owns one and lends it by [`Function::endpoint`]:
//!
//! ```
//! use std::sync::Arc;
//! use iogate_dma::{Interrupts, Line, Message, Source};
//! use iogate_pci::{Bar, Endpoint, Identity, Msi};
//! # struct Nowhere;
//! # impl Interrupts for Nowhere {
//! #     fn message(&self, _: Source, _: Message) {}
//! #     fn line(&self, _: Source, _: Line) {}
//! # }
//! # let interrupts = Arc::new(Nowhere);
//! let source: Source = "0000:01:00.0".parse()?;
//! let identity = Identity {
//!     vendor: 0x1234,
//!     device: 0x11e8,
//!     class: 0x00_ff00,
//!     ..Identity::default()
//! };
//! let endpoint = Endpoint::builder(identity)
//!     .bar(Bar::memory32(0, 1 << 20))
//!     .pin_a()
//!     .msi(Msi::default())
//!     .build(source, interrupts)?;
//! let mut id = [0; 4];
//! endpoint.read_config(0, &mut id);
//! assert_eq!(u32::from_le_bytes(id), 0x11e8_1234);
//! assert_eq!(endpoint.command().memory_enabled(), false);
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

mod bar;
mod bus;
pub mod config;
mod endpoint;
mod function;
mod integrated;
mod layout;
mod message;
mod migrate;
pub mod migration;
mod msix;
mod sriov;
pub mod topology;

pub use bar::{Bar, BarSpace, BarWidth};
pub use bus::{Bus, BusError, Life};
pub use config::Command;
pub use endpoint::{ConfigEffect, Endpoint, InterruptError};
pub use function::{After, Function, ResetKind, Wake};
pub use layout::{Builder, Identity, LayoutError, Msi, MsixLayout};
pub use migrate::{Migrate, StateError, StateReader, StateWriter, StillWorking};
pub use msix::Msix;
