//! Registers, queues, requests and states of a VT-d unit without sense.
#![no_main]

#[path = "../../crates/vtd/tests/bodies/hostile.rs"]
mod hostile;
#[path = "../../crates/vtd/tests/guest/mod.rs"]
mod guest;
#[path = "../../crates/vtd/tests/naive/mod.rs"]
mod naive;
#[path = "../../crates/vtd/tests/bodies/structures.rs"]
#[allow(dead_code, reason = "its units are used here")]
mod structures;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    hostile::run(bytes);
});
