//! Sequences of calls on containers, groups and devices, against the naive model.
#![no_main]

#[path = "../../crates/uapi/tests/legacy_fuzz/body.rs"]
#[allow(dead_code, unreachable_pub, reason = "it holds two bodies")]
mod body;
#[path = "../../crates/uapi/tests/legacy_world/mod.rs"]
mod legacy_world;
#[path = "../../crates/uapi/tests/legacy_fuzz/model.rs"]
#[allow(dead_code, unreachable_pub, reason = "the other body uses it")]
mod model;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::sequence(bytes));
