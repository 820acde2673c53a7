//! The vfio-user protocol, server and client.
//!
//! Specification: libvfio-user's `docs/vfio-user.rst`, protocol version 0.0 and
//! later, as QEMU 11 speaks it and beyond.
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
