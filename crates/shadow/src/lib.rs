//! A guest's domains followed into listeners: replay, then each invalidation
//! as the least changes that make a listener's view the guest's.
//!
//! | what happens | what listeners are told |
//! |---|---|
//! | a listener [follows](Shadow::follow) a source | all that its domain maps in the [`Section`], joined into runs |
//! | the guest invalidates pages | what changed there: only these pages are looked at |
//! | it invalidates a domain, or everything | what changed; nothing, if nothing did |
//! | it moves a device to another domain | the difference of the two |
//! | a device joins a domain that is followed | all of it, without a look at its tables |
//!
//! A turn's changes come in one batch for each listener: unmaps, then maps,
//! both in the order of addresses.
//!
//! A listener that refuses a change is told of those behind it all the same,
//! and what it has is remembered. The guest is told of the mapping by
//! [`GuestDomains::report`](iogate_dma::GuestDomains::report), once; it is
//! tried again at every later turn. Where an unmap was refused nothing new is
//! mapped until it succeeds.
//!
//! Outputs are guest-physical addresses as the tables say them: a guest that
//! passes its devices through maps everything. Who listens clips that to memory
//! that exists.
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

mod diff;
mod domain;
mod follower;
mod following;
mod runs;
mod section;
mod shadow;
mod spans;
mod trace;

pub use following::Following;
pub use section::Section;
pub use shadow::{Failure, FollowError, Limits, Shadow};

/// No space left on device. Linux `asm-generic/errno-base.h`.
const ENOSPC: i32 = 28;
