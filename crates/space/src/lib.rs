//! An I/O address space: the areas that user space mapped, the ranges that
//! devices reserve and that user space allows, and the translation of a
//! device's addresses, which takes no lock and allocates nothing.
//!
//! | file | what it holds |
//! |---|---|
//! | `space` | [`AddressSpace`], the one door |
//! | `answer` | what its methods take, return and refuse |
//! | `ranges` | reserved and allowed ranges |
//! | `slot` | one entry of the radix, read without a lock |
//! | `table` | the radix as a reader sees it |
//! | `books` | the writer's side of the radix: who owns a slot, what is free |
//! | `edit` | placing, removing and changing ranges of slots |
//! | `areas` | the areas themselves |
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

mod answer;
mod areas;
mod books;
mod edit;
mod ranges;
mod slot;
mod space;
mod table;

pub use answer::{AllowError, FillError, Hit, MapError, Miss, ReserveError, Segment};
pub use areas::Area;
pub use space::{AddressSpace, DEFAULT_TABLE_LIMIT};
