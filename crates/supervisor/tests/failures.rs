//! Sessions of whose supervisor one system call fails: the client gets an errno
//! and tries again, or the session ends with a word; nothing is left behind.
//!
//! A sample of the calls, by default; `-- all` fails each in turn, `-- SEED` the
//! sample of another run, `-- at N` one.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

#[path = "failures/calls.rs"]
mod calls;
#[path = "session/client.rs"]
mod client;
#[path = "failures/patient.rs"]
mod patient;
#[path = "failures/trace.rs"]
mod trace;
#[path = "failures/verdict.rs"]
mod verdict;
#[path = "session/world.rs"]
mod world;

use std::process::ExitCode;

use iogate_supervisor::{Status, run};

/// Calls of a sample.
const SAMPLE: u64 = 40;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.get(1..).unwrap_or_default() {
        ["client"] => patient::client(),
        ["run"] => supervise(),
        ["all"] => verdict::check(|total| (0..total).collect()),
        ["at", number] => {
            let number = number.parse().unwrap();
            verdict::check(|_| vec![number])
        }
        rest => {
            let seed = rest.iter().find_map(|word| word.parse().ok());
            let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
            println!("sample {seed}");
            verdict::check(|total| sample(seed, total))
        }
    }
}

/// Numbers below `total` that follow from `seed`.
fn sample(seed: u64, total: u64) -> Vec<u64> {
    let mut state = seed;
    let mut next = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    (0..SAMPLE).map(|_| next() % total).collect()
}

/// A session whose supervisor waits to be traced.
fn supervise() -> ExitCode {
    let exe = std::env::current_exe().unwrap();
    let session = world::session(1, exe.to_str().unwrap(), &["client"]);
    trace::offer();
    match run(session) {
        Ok(ended) => match ended.status {
            Status::Exited(code) => code.into(),
            Status::Signalled(signal) => u8::try_from(200 + signal).unwrap_or(u8::MAX).into(),
        },
        Err(error) => {
            eprintln!("iogate: {error}");
            error.exit_code().into()
        }
    }
}
