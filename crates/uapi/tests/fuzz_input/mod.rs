//! What every fuzz test of this crate feeds its bodies with: the committed
//! corpus, and some seconds of random bytes whose seed is printed.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

/// A plain function on bytes that panics where a promise is broken.
pub(crate) type Body = fn(&[u8]);

/// Runs every body on every file of `tests/DIRECTORY`; there are at least four.
pub(crate) fn corpus(directory: &str, bodies: &[(&str, Body)]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(directory);
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for (name, body) in bodies {
            println!("{name}: {}", path.display());
            body(&bytes);
        }
        count += 1;
    }
    assert!(count >= 4);
}

/// Runs a body on random inputs of less than `length` bytes. A seed in the
/// environment (`IOGATE_FUZZ_SEED`) repeats a run.
pub(crate) fn random(name: &str, body: Body, length: usize) {
    let seed = match std::env::var("IOGATE_FUZZ_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => RandomState::new().hash_one(0_u8),
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
