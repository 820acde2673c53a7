//! One Intel VT-d unit as software: a guest programs it by its registers and
//! queues; devices translate and interrupt through it.
//!
//! Specification: Intel Virtualization Technology for Directed I/O, revision
//! 4.1. Sections are cited as "VT-d 4.1 section N".
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

pub mod acpi;
mod ats;
mod builder;
mod cache;
mod capabilities;
mod events;
mod fault;
mod follow;
mod invalidate;
mod live;
mod pages;
mod queue;
mod registers;
mod remap;
pub mod spec;
mod state;
#[cfg(test)]
mod tests;
mod translate;
mod unit;

pub use builder::{BuildError, Builder};
pub use capabilities::{Capabilities, MAX_ADDRESS_MASK, MAX_FAULT_RECORDS};
pub use pages::{PageRequest, PageRequested, PageRequester, PageResponse, ResponseCode};
pub use registers::REGISTER_BYTES;
pub use remap::{Blocked, Cause, Posting, Remapped, Route, Routed};
pub use state::StateError;
pub use unit::Vtd;
