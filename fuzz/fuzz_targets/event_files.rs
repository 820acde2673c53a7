//! Sequences on event files, against the naive model.
#![no_main]

#[path = "../../crates/uapi/tests/event_fuzz/body.rs"]
#[allow(unreachable_pub, reason = "a test calls it too")]
mod body;
#[path = "../../crates/uapi/tests/iommufd_world/mod.rs"]
mod iommufd_world;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::events(bytes));
