//! The fuzz body on the committed corpus, and on seconds of mutations of it.
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

mod body;

fn corpus() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut paths: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

#[test]
fn the_corpus_keeps_every_promise() {
    let corpus = corpus();
    assert!(corpus.len() >= 8);
    for bytes in &corpus {
        body::machine_file(bytes);
    }
}

/// Pieces that make a mutation likely to mean something.
const PIECES: [&str; 24] = [
    "[[device]]\n",
    "[[bridge]]\n",
    "[[iommu]]\n",
    "model = \"nvme\"\n",
    "model = \"edu\"\n",
    "behind = \"rp0\"\n",
    "behind = \"conv\"\n",
    "name = \"conv\"\n",
    "name = \"rp0\"\n",
    "kind = \"root-port\"\n",
    "kind = \"upstream-port\"\n",
    "kind = \"downstream-port\"\n",
    "kind = \"pcie-pci-bridge\"\n",
    "kind = \"pci-bridge\"\n",
    "at = \"0000:01:00.0\"\n",
    "at = \"00:1f.7\"\n",
    "group = 3\n",
    "acs = false\n",
    "iommu = \"b\"\n",
    "0xffffffffffffffff",
    "18446744073709551616",
    ",,",
    "\u{e9}\u{1f600}",
    "\"",
];

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let end = at + self.below(bytes.len() - at + 1).min(40);
        match self.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            3 => {
                let other = &corpus[self.below(corpus.len())];
                let lines: Vec<&[u8]> = other.split_inclusive(|&b| b == b'\n').collect();
                let line = lines[self.below(lines.len())];
                bytes.splice(at..at, line.iter().copied());
            }
            _ => {
                // At the start of a line most often, where it can mean something.
                let line = bytes[..at]
                    .iter()
                    .rposition(|&b| b == b'\n')
                    .map_or(0, |n| n + 1);
                let at = if self.below(4) > 0 { line } else { at };
                bytes.splice(at..at, PIECES[self.below(PIECES.len())].bytes());
            }
        }
    }
}

/// Lines that make one device differ from another.
const DEVICE_LINES: [&str; 14] = [
    "behind = \"rp0\"\n",
    "behind = \"conv\"\n",
    "behind = \"pci\"\n",
    "behind = \"d0\"\n",
    "at = \"0000:07:00.0\"\n",
    "at = \"0000:07:00.1\"\n",
    "at = \"0000:00:03.0\"\n",
    "at = \"0001:03:00.0\"\n",
    "group = 1\n",
    "group = 3\n",
    "driver = \"none\"\n",
    "acs = true\n",
    "mediated = true\n",
    "iommu = \"none\"\n",
];

/// The bridges and units of one file of the corpus with random devices: most
/// of these are machines.
fn recombine(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let base = String::from_utf8_lossy(&corpus[random.below(corpus.len())]).into_owned();
    let mut text = match base.split_once("[[device]]") {
        Some((head, _)) => head.to_owned(),
        None => "version = 1\n".to_owned(),
    };
    for _ in 0..=random.below(5) {
        let model = ["edu", "nvme"][random.below(2)];
        text.push_str(&format!("[[device]]\nmodel = \"{model}\"\n"));
        let line = random.below(2 * DEVICE_LINES.len());
        text.push_str(DEVICE_LINES.get(line).unwrap_or(&""));
    }
    text.into_bytes()
}

#[test]
fn no_mutation_of_the_corpus_panics_or_breaks_a_promise() {
    let corpus = corpus();
    let seed = match std::env::var("IOGATE_FUZZ_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => RandomState::new().hash_one(0u8),
    };
    println!("IOGATE_FUZZ_SEED={seed}");
    let mut random = Random(seed);
    let end = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < end {
        let recombined = random.below(2) == 0;
        let (mut bytes, mutations) = match recombined {
            true => (recombine(&mut random, &corpus), random.below(2)),
            false => (
                corpus[random.below(corpus.len())].clone(),
                1 + random.below(6),
            ),
        };
        for _ in 0..mutations {
            random.mutate(&mut bytes, &corpus);
        }
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let result = std::panic::catch_unwind(|| body::machine_file(&bytes));
        assert!(result.is_ok(), "IOGATE_FUZZ_SEED={seed}, on:\n{shown}");
    }
}
