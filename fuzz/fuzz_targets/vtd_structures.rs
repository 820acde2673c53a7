//! VT-d structures and requests, against the naive model.
#![no_main]

#[path = "../../crates/vtd/tests/guest/mod.rs"]
mod guest;
#[path = "../../crates/vtd/tests/naive/mod.rs"]
mod naive;
#[path = "../../crates/vtd/tests/bodies/structures.rs"]
mod structures;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    structures::run(bytes);
});
