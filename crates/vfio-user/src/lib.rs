//! The vfio-user protocol, server and client.
//!
//! Specification: libvfio-user's `docs/vfio-user.rst`, protocol version 0.0 and
//! later, as QEMU 11 speaks it and beyond.
//!
//! No thread is started here: a server runs on the threads that call
//! [`Server::run`] or [`Connection::serve`], a client on those that wait for a
//! reply.
//!
//! | file | what it holds |
//! |---|---|
//! | `wire` | messages as they lie in the stream |
//! | `stream` | a stream cut into messages |
//! | `outbox` | messages on their way out |
//! | `calls` | requests that wait for replies |
//! | `channel` | one connection, used by many threads |
//! | `version` | what each side can do |
//! | `device` | [`Device`], what is served |
//! | `server` | [`Server`], who serves it |
//! | `serve` | a client served: its version, accesses and memory |
//! | `describe` | its commands about the device itself |
//! | `answering` | whether a thread is making an answer |
//! | `mapped` | what a client has mapped |
//! | `peer` | [`Peer`], the client as the device sees it |
//! | `client` | [`Client`], a connection to a server |
//! | `requests` | what it asks of a device |
//! | `remote` | [`RemoteListener`], a device that follows an address space |
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

mod answering;
mod calls;
mod channel;
mod client;
mod describe;
mod device;
mod error;
mod mapped;
mod outbox;
mod peer;
mod remote;
mod requests;
mod serve;
mod server;
mod stream;
mod version;
pub mod wire;

pub use client::{Client, ClientOptions};
pub use device::{
    Device, DeviceInfo, DmaMap, FeatureCall, FeatureOperation, IoKind, Irq, IrqAction, IrqData,
    Region, RegionIo, SetIrqs, SubRegion,
};
pub use error::{Ended, Error, Violation};
pub use peer::Peer;
pub use remote::{Backing, Held, RemoteListener};
pub use requests::{IrqTarget, RemoteRegion, RemoteRegionIo};
pub use rustix::io::Errno;
pub use server::{Connection, Server, ServerOptions, Stop};
pub use version::{Limits, MAX_FDS, MAX_TRANSFER};
