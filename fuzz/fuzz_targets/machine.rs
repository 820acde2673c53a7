//! Any bytes as a machine file, and as a `--device` argument.
#![no_main]

#[path = "../../crates/machine/tests/fuzz/body.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::machine_file(bytes));
