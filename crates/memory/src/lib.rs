//! The memory of other programs as the end of a device access, as an
//! implementation of [`iogate_dma::Memory`].
//!
//! One [`ClientMemory`] serves a whole session. Its addresses are its own:
//!
//! | bits 63-48 | bits 47-0 |
//! |---|---|
//! | 0 | offset in the window: shared files, each mapped once ([`ClientMemory::map_file`]) |
//! | n ≥ 1 | virtual address in the process of slot n ([`ClientMemory::add_process`]) |
//!
//! A shared file stays reachable after the client has unmapped it, as pinned
//! pages do. Private memory is reached through an open `/proc/PID/mem`, which
//! names one address space: after its end nothing else is reached by it. That
//! of a process that is not dumpable is root's; others reach the memory by the
//! process's number, with its open `/proc/PID/maps` as the witness.
//!
//! A virtual machine's memory is a [`GuestMemory`] of its own, by guest-physical
//! address.
//!
//! # What a client can do to us
//!
//! It can change its memory while we copy, and shrink a file that we have
//! mapped. No Rust reference to client memory exists: all of it is touched by
//! a few assembly routines that the compiler cannot see into, so a race gives
//! odd bytes and nothing worse. A fault in them is caught by a handler for
//! SIGSEGV and SIGBUS, installed with the first of the two, and becomes a
//! [`MemoryError`](iogate_dma::MemoryError); the handler passes every other
//! fault on to the one that was there before. Threads that access memory must
//! not block these two signals: the kernel would end the process.
#![deny(unsafe_op_in_unsafe_fn)]
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

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("iogate-memory touches client memory by x86-64 instructions, under Linux");

mod client;
mod device;
mod fault;
mod file;
mod free;
mod guest;
mod process;
mod slot;
mod touch;
mod vm;
mod vma;
mod window;

pub use client::ClientMemory;
pub use device::DeviceMemory;
pub use file::FileRange;
pub use guest::{Backed, Backing, GuestMemory, GuestRange, MapError, RangeWatcher, Remote};
pub use process::Process;
pub use slot::ProcessSlot;
pub use vma::Vma;
