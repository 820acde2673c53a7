//! The fuzz body of event files on the committed corpus, and on seconds of
//! seeded random input.

#![allow(unreachable_pub, reason = "the body is called from elsewhere too")]

#[path = "../fuzz_input/mod.rs"]
mod fuzz_input;
#[path = "../iommufd_world/mod.rs"]
mod iommufd_world;

mod body;

#[test]
fn the_corpus_keeps_every_promise() {
    fuzz_input::corpus("event_fuzz/corpus", &[("events", body::events)]);
}

#[test]
fn sequences_on_event_files_come_to_what_the_naive_model_says() {
    fuzz_input::random("events", body::events, 400);
}
