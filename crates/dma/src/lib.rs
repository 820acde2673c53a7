//! A device's access leaves the device as (source, address, kind) and passes a
//! chain of address spaces until it ends in memory, in an interrupt or in a
//! fault. This crate names the parts of that sentence and the contracts
//! between them; it implements none of the links.
//!
//! | part | items |
//! |---|---|
//! | addresses | [`Iova`], [`Gpa`], inclusive [`Span`] |
//! | who | [`RequesterId`], [`Pasid`], [`Source`] |
//! | what | [`Access`], [`Rights`], [`Request`] |
//! | where it ends | [`Outcome`]: a [`Run`] of [`Memory`], a [`Message`], or a [`Fault`] |
//! | the link | [`Translate`], told to devices through an [`Attachment`] |
//! | how long a result may be used | [`Gate`], [`InFlight`], [`Stay`], [`Grace`] |
//! | the device's end | [`Port`]; [`Interrupts`]; [`FaultSink`]; [`DeviceTlb`], [`Atc`] |
//! | what a device wrote | [`WriteLog`], [`DirtyLog`] |
//! | words of a cache, read and written as one | [`Slot`] |
//! | a guest's domains, and who follows them | [`GuestDomains`], [`Observer`]; [`Listener`] of [`Change`]s |
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

mod address;
mod atc;
mod attachment;
mod device_tlb;
mod dirty;
mod fault;
mod gate;
mod guest;
mod interrupts;
mod listener;
mod memory;
mod port;
mod request;
mod rights;
mod slot;
mod source;
mod translate;
mod write_log;

pub use address::{Address, Gpa, Iova, Span};
pub use atc::Atc;
pub use attachment::Attachment;
pub use device_tlb::{DeviceTlb, DeviceTlbError, TlbScope};
pub use dirty::DirtyLog;
pub use fault::{Fault, FaultReason, FaultSink, Stage, Walk};
pub use gate::{Gate, Grace, InFlight, Participant, Stay};
pub use guest::{DomainKey, GuestDomains, Invalidated, Observer, Scan, Scope};
pub use interrupts::{Interrupts, Line, Message};
pub use listener::{Change, Listener, Mapping, Partial};
pub use memory::{Memory, MemoryError, SharedMemory, Width};
pub use port::{DmaError, Port};
pub use request::{Kind, Privilege, Request};
pub use rights::{Access, Rights};
pub use slot::Slot;
pub use source::{ParseRequesterIdError, Pasid, RequesterId, Source};
pub use translate::{Outcome, Run, Translate};
pub use write_log::WriteLog;
