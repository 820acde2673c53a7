//! Instructions as the emulator executes them, against the processor itself.
#![no_main]

#[path = "../../crates/x86/tests/processor/body.rs"]
mod body;
#[path = "../../crates/x86/tests/processor/forms.rs"]
#[allow(dead_code, reason = "it also serves a test")]
mod forms;
#[path = "../../crates/x86/tests/processor/native.rs"]
mod native;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::run(bytes));
