//! The fuzz bodies of iommufd on the committed corpus, and on seconds of
//! seeded random input.

#![allow(unreachable_pub, reason = "the bodies are called from elsewhere too")]

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

#[path = "../iommufd_world/mod.rs"]
mod iommufd_world;

mod areas;
mod body;
mod model;

type Body = fn(&[u8]);

const BODIES: [(&str, Body); 2] = [("sequence", body::sequence), ("call", body::call)];

#[test]
fn the_corpus_keeps_every_promise() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/iommufd_fuzz/corpus");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for (name, body) in BODIES {
            println!("{name}: {}", path.display());
            body(&bytes);
        }
        count += 1;
    }
    assert!(count >= 4);
}

fn random_input(name: &str, body: Body, length: usize) {
    let seed = match std::env::var("IOGATE_FUZZ_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => RandomState::new().hash_one(0u8),
    };
    println!("IOGATE_FUZZ_SEED={seed}");
    let mut random = Random(seed);
    let end = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < end {
        let length = random.next() as usize % length;
        let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        let result = std::panic::catch_unwind(|| body(&bytes));
        assert!(
            result.is_ok(),
            "IOGATE_FUZZ_SEED={seed}, {name} on {bytes:?}"
        );
    }
}

#[test]
fn sequences_of_calls_come_to_what_the_naive_model_says() {
    random_input("sequence", body::sequence, 600);
}

#[test]
fn no_bytes_of_an_argument_do_harm() {
    random_input("call", body::call, 400);
}

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
