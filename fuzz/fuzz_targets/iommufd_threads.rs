//! Sequences of calls on several iommufds, against their naive models: by threads at once.
#![no_main]

#[path = "../../crates/uapi/tests/iommufd_fuzz/areas.rs"]
#[allow(dead_code, unreachable_pub, reason = "the other body uses it")]
mod areas;
#[path = "../../crates/uapi/tests/iommufd_fuzz/body.rs"]
#[allow(dead_code, unreachable_pub, reason = "it holds all bodies")]
mod body;
#[path = "../../crates/uapi/tests/iommufd_world/mod.rs"]
mod iommufd_world;
#[path = "../../crates/uapi/tests/iommufd_fuzz/model.rs"]
#[allow(dead_code, unreachable_pub, reason = "the other body uses it")]
mod model;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::threads(bytes));
