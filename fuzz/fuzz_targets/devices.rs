//! Registers, configuration space, resets and work of every device model.
#![no_main]

#[allow(dead_code, unused_imports, reason = "its tests are not built here")]
#[path = "../../crates/devices/tests/registers.rs"]
mod registers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for model in iogate_devices::models() {
        registers::session(model.name, bytes);
    }
});
