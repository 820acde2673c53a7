//! A client's whole stream against a server, beside the naive model.
#![no_main]

#[path = "../../crates/vfio-user/tests/bytes/mod.rs"]
mod bytes;

libfuzzer_sys::fuzz_target!(|input: &[u8]| bytes::run(input));
