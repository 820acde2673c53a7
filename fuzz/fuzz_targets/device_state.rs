//! The state of a device on its way to another, changed as bytes say.
#![no_main]

#[allow(dead_code, unused_imports, reason = "its tests are not built here")]
#[path = "../../crates/devices/tests/virtio_net_moves.rs"]
mod moves;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| moves::state(bytes));
