//! The checker: remembers who mapped and unmapped every IOVA, explains each
//! refused access once, counts its repeats, and names what was never unmapped.
//!
//! It is told of mappings as an [`Observer`](iogate_host::Observer) and of
//! refusals as a [`FaultSink`](iogate_dma::FaultSink), prints the first causes
//! as they happen and writes everything into a [`Report`].
//!
//! Bounds: [`MAX_PRINTED`] causes are printed, [`MAX_CAUSES`] kept, the rest
//! counted; the history holds the last [`MAX_HISTORY`] unmaps.
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

mod cause;
mod checker;
mod history;
mod report;
mod sarif;
mod stack;
mod text;

pub use cause::{MAX_CAUSES, MAX_PRINTED};
pub use checker::{Checker, Outside};
pub use history::MAX_HISTORY;
pub use report::{Report, SCHEMA};
pub use stack::{Frame, StackId};
