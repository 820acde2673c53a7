//! Streams of bytes, decoded into sessions, against the naive model.

mod bytes;

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

#[test]
fn the_corpus_does_what_the_naive_model_does() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bytes/corpus");
    let mut files = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        bytes::run(&std::fs::read(entry.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files > 0);
}

/// `IOGATE_FUZZ_SEED` repeats a run, `IOGATE_FUZZ_SECONDS` prolongs it.
#[test]
fn seconds_of_random_sessions_do_what_the_naive_model_does() {
    let number = |name| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().expect("a decimal number"))
    };
    let seed = number("IOGATE_FUZZ_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let seconds = number("IOGATE_FUZZ_SECONDS").unwrap_or(2);
    println!("IOGATE_FUZZ_SEED={seed}");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut state = seed | 1;
    while Instant::now() < end {
        let session: Vec<u8> = (0..1000)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[5]
            })
            .collect();
        bytes::run(&session);
    }
}
