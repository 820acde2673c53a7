//! I/O page tables as data: one walker, one scanner and one builder for every
//! format; a format says how wide an index is and what an entry means.
//!
//! | to do | item |
//! |---|---|
//! | translate one address, setting accessed and dirty flags | [`walk`] |
//! | list what a range maps, as contiguous runs | [`scan`] |
//! | make and change tables, in tests and as a host | [`Builder`] |
//! | stage 1 whose tables lie behind stage 2 | [`Behind`] |
//!
//! # Formats
//! A format implements [`Format`]: the shape of its tables (top level, lowest
//! address bit and width of each index), which addresses it accepts, and what
//! an entry of a level means. Here: [`vtd::SecondStage`], [`vtd::FirstStage`].
//! Others fit without a change of the walker:
//!
//! | format | what it needs | where it goes |
//! |---|---|---|
//! | AMD v1 | an entry that skips levels | the level in [`Entry::Table`] |
//! | AMD v1, Arm | a leaf larger than its level's page | [`Entry::Leaf`]'s shift |
//! | AMD v2 | x86 tables | [`vtd::FirstStage`] |
//! | Arm LPAE | granules of 4, 16 and 64 KiB; concatenated top tables | [`Format::shape`] per level |
//! | Arm LPAE stage 1 | two roots | the caller chooses the table by the address |
//! | s390, sPAPR TCE | big-endian entries, 2,048 of them and more | [`Format::decode`] swaps; [`Format::shape`] |
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

mod behind;
mod build;
mod format;
mod permissions;
mod scan;
mod tables;
pub mod vtd;
mod walk;

pub use behind::{Behind, BehindError};
pub use build::{BuildError, Builder};
pub use format::{Entry, Format, Input, Leaves, Shape};
pub use permissions::Permissions;
pub use scan::{Mapped, Scanned, scan};
pub use tables::{ENTRIES_AT_ONCE, Tables};
pub use walk::{Reason, Stop, Translation, walk};
