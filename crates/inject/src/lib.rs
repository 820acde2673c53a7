//! Failures made on purpose: calls that fail, DMA that is refused, interrupts
//! that are lost, devices that vanish. `docs/inject.md` has the grammar.
//!
//! Nothing of it is in the way of a session without it: an [`Injection`] puts
//! further links at the seams that are there. It is asked before calls
//! ([`Interpose`](iogate_host::Interpose)), stands before the address space of
//! a device ([`Injection::space`]), before the interrupt controller
//! ([`Injection::interrupts`]) and before a device's registers
//! ([`Injection::function`]).
//!
//! What happens to a device depends on the rules, the seed and how often that
//! device did the same before, never on time or on another device.
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

mod grammar;
mod injection;
mod links;
mod rule;

pub use grammar::GrammarError;
pub use injection::Injection;
