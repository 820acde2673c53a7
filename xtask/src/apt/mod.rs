//! Packages without installing anything: a private apt downloads and verifies them from the
//! mirror the machine itself is set up with, and they are unpacked under `target/xtask`.

mod fetch;
mod mirror;
mod set;

pub(crate) use fetch::Apt;
pub(crate) use mirror::{Mirror, Release};
pub(crate) use set::{ACPICA, DPDK, GDB, Set, Tree};
