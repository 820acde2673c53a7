//! The unit tier: what `cargo test` runs.

use std::path::Path;

use super::{Case, Tier};
use crate::process::Job;
use crate::setup::Bench;
use crate::verdict::Stop;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::Unit, "cargo-test".to_owned(), cargo_test),
        Case::new(Tier::Unit, "loom".to_owned(), loom),
    ]
}

/// Every interleaving of the users of gates and of slots, by the loom model checker.
fn loom(bench: &Bench, log: &Path) -> Result<(), Stop> {
    let mut command = bench.cargo();
    command
        .args([
            "test",
            "--package",
            "iogate-dma",
            "--test",
            "gate_loom",
            "--test",
            "slot_loom",
        ])
        .arg("--target-dir")
        .arg(bench.site.xtask.join("loom"))
        .env("RUSTFLAGS", "--cfg loom");
    let ended = Job::new(command, log).limit(600).run()?;
    ended.success("cargo test under loom").map(drop)
}

fn cargo_test(bench: &Bench, log: &Path) -> Result<(), Stop> {
    let mut command = bench.cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    let ended = Job::new(command, log).limit(1800).run()?;
    let mut counts = (0, 0);
    let mut program = "";
    for line in ended.log.lines() {
        let line = line.trim_start();
        if line.starts_with("Running ") || line.starts_with("Doc-tests ") {
            program = line;
        } else if line.starts_with("test result:") {
            let passed = count(line, "passed");
            let failed = count(line, "failed");
            counts = (counts.0 + passed, counts.1 + failed);
            if passed + failed > 0 {
                bench.progress.print(&format!("{program}\n{line}"));
            }
        }
    }
    bench.counted.set(Some(counts));
    ended.success("cargo test").map(drop)
}

/// The number before `word` in cargo's result line.
fn count(line: &str, word: &str) -> u64 {
    let words: Vec<&str> = line.split_whitespace().collect();
    words
        .windows(2)
        .find(|pair| pair[1].trim_end_matches(';') == word)
        .and_then(|pair| pair[0].parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn cargos_result_line_is_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!((count(line, "passed"), count(line, "failed")), (12, 3));
    }
}
