//! Compares interrupt remapping of QEMU's intel-iommu with iogate-vtd's: random entries, valid and invalid, messages of
//! devices on several buses, what is delivered and what is recorded. QEMU runs already; `cargo xtask test
//! vtd-interrupts` starts it.

#[path = "../../../../../crates/vtd/tests/naive/choices.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod choices;
mod entries;
mod known;
mod ours;
#[path = "../../../../../xtask/src/qtest.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod qtest;
#[path = "../../../../../crates/vtd/tests/support/mod.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod support;
mod theirs;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use choices::{Choices, bytes_of_seed};
use entries::World;
use ours::Ours;
use theirs::Theirs;

const USAGE: &str = "usage: iogate-client-vtd-interrupts SOCKET TRACE xapic|x2apic SEED QUESTIONS";
/// Messages sent over one table.
const MESSAGES: u64 = 64;
/// Differences of a kind that are shown in full.
const SHOWN: u64 = 3;

/// A message that a device writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) source: u16,
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// It arrives at the interrupt controller as this.
    Message { address: u64, data: u32 },
    /// It does not, and this is recorded.
    Fault { reason: u8, source: u16, index: u16 },
    /// It does not, and nothing is recorded.
    Nothing,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, trace, mode, seed, questions] = words.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let (Ok(seed), Ok(questions)) = (seed.parse(), questions.parse()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let extended = mode == "x2apic";
    match compare(
        Path::new(socket),
        Path::new(trace),
        extended,
        seed,
        questions,
    ) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Counts {
    asked: u64,
    delivered: u64,
    silent: u64,
    reasons: BTreeMap<u8, u64>,
    known: BTreeMap<&'static str, u64>,
    unknown: u64,
}

fn compare(
    socket: &Path,
    trace: &Path,
    extended: bool,
    seed: u64,
    questions: u64,
) -> io::Result<bool> {
    let mut theirs = Theirs::connect(socket, trace)?;
    let mut ours = Ours::new(extended);
    println!("seed {seed}");
    let mut counts = Counts::default();
    let mut round = seed;
    while counts.asked < questions {
        let bytes = bytes_of_seed(round, 8000);
        let mut choices = Choices::new(&bytes);
        let world = World::build(&mut choices, extended);
        theirs.begin(&world)?;
        ours.begin(&world);
        for _ in 0..MESSAGES {
            let question = world.question(&mut choices);
            let expected = ours.ask(&question);
            let seen = theirs.ask(&question)?;
            count(&mut counts, round, &world, &question, expected, seen);
        }
        round += 1;
    }
    println!(
        "{} messages, {} delivered, {} blocked and not recorded, {} unknown differences; blocked by reason: {:x?}; known: {:?}",
        counts.asked, counts.delivered, counts.silent, counts.unknown, counts.reasons, counts.known
    );
    Ok(counts.unknown == 0)
}

fn count(
    counts: &mut Counts,
    round: u64,
    world: &World,
    question: &Question,
    expected: Answer,
    seen: Answer,
) {
    counts.asked += 1;
    match expected {
        Answer::Message { .. } => counts.delivered += 1,
        Answer::Fault { reason, .. } => *counts.reasons.entry(reason).or_default() += 1,
        Answer::Nothing => counts.silent += 1,
    }
    if expected == seen {
        return;
    }
    if let Some(name) = known::name(world, question, expected, seen) {
        *counts.known.entry(name).or_default() += 1;
        return;
    }
    counts.unknown += 1;
    if counts.unknown <= SHOWN {
        println!(
            "round {round}: {question:x?}\n  iogate {expected:x?}\n  QEMU   {seen:x?}\n  {}",
            world.told(question)
        );
    }
}
