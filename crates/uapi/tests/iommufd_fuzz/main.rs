//! The fuzz bodies of iommufd on the committed corpus, and on seconds of
//! seeded random input.

#![allow(unreachable_pub, reason = "the bodies are called from elsewhere too")]

#[path = "../fuzz_input/mod.rs"]
mod fuzz_input;
#[path = "../iommufd_world/mod.rs"]
mod iommufd_world;

mod areas;
mod body;
mod model;

use fuzz_input::Body;

const BODIES: [(&str, Body); 4] = [
    ("sequence", body::sequence),
    ("several", body::several),
    ("threads", body::threads),
    ("call", body::call),
];

#[test]
fn the_corpus_keeps_every_promise() {
    fuzz_input::corpus("iommufd_fuzz/corpus", &BODIES);
}

#[test]
fn sequences_of_calls_come_to_what_the_naive_model_says() {
    fuzz_input::random("sequence", body::sequence, 600);
}

#[test]
fn several_iommufds_come_to_what_their_models_say() {
    fuzz_input::random("several", body::several, 600);
}

#[test]
fn threads_at_once_come_to_what_their_models_say() {
    fuzz_input::random("threads", body::threads, 1200);
}

#[test]
fn no_bytes_of_an_argument_do_harm() {
    fuzz_input::random("call", body::call, 400);
}
