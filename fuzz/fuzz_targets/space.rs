//! Sequences of operations on an address space, against the naive model.
#![no_main]

#[path = "../../crates/space/tests/model/mod.rs"]
mod model;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| model::run(bytes));
