//! Compares QEMU's intel-iommu with the naive model and with iogate-vtd: random structures, valid and invalid, requests
//! of devices, faults, invalidations. QEMU runs already; `cargo xtask test vtd/differential` starts it.

mod differences;
mod machine;
#[path = "../../../../crates/vtd/tests/naive/mod.rs"]
mod naive;
#[path = "../../../../xtask/src/qtest.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod qtest;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use machine::{Machine, READER, Seen, WRITERS};
use naive::generate::{DATA, DATA_END, HOLE, Malice, TABLES, World};
use naive::history::{Event, History, Times};
use naive::{Access, Answer, Choices, Question, Unit, choices, translate};

const USAGE: &str =
    "usage: iogate-client-vtd-qtest SOCKET legacy|scalable HOST-BITS SEED QUESTIONS";
/// Questions about one world.
const QUESTIONS: u64 = 48;
/// Edits, invalidations and questions after them.
const STEPS: u64 = 48;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, mode, bits, seed, questions] = words.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let numbers = (bits.parse(), seed.parse(), questions.parse());
    let (Ok(bits), Ok(seed), Ok(questions)) = numbers else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match compare(Path::new(socket), mode == "scalable", bits, seed, questions) {
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
    translated: u64,
    reasons: BTreeMap<u8, u64>,
    silent: u64,
    /// Explained by an older state.
    older: u64,
    known: BTreeMap<&'static str, u64>,
    unknown: u64,
    classes: BTreeMap<(u64, u64), u64>,
}

fn compare(
    socket: &Path,
    scalable: bool,
    bits: u32,
    seed: u64,
    questions: u64,
) -> std::io::Result<bool> {
    let mut machine = Machine::connect(socket)?;
    let (cap, ecap) = machine.capabilities;
    println!("CAP {cap:#x} ECAP {ecap:#x}, seed {seed}");
    let unit = Unit::new(cap, ecap, bits);
    let mut counts = Counts::default();
    let mut used = DATA;
    let mut round = seed;
    while counts.asked < questions && counts.classes.len() < 20 {
        let bytes = choices::bytes_of_seed(round, 8000);
        let mut choices = Choices::new(&bytes);
        // What one entry is at a time is known of worlds without malice alone.
        let sequential = choices.below(3) == 0;
        let malice = if sequential {
            Malice::NONE
        } else {
            Malice::SOME
        };
        let sources = [READER, WRITERS[0], WRITERS[1], WRITERS[2]];
        let mut world = World::build(&mut choices, &unit, &sources, scalable, malice);
        world.unit.root = world.root;
        world.unit.translates = true;
        machine.clear(TABLES, used - TABLES)?;
        used = TABLES;
        for (&address, &word) in &world.memory.words {
            machine.set_word(address, word)?;
            used = used.max((address + 0x1000) & !0xfff);
        }
        machine.begin(world.root, scalable)?;
        for _ in 0..QUESTIONS {
            ask(&mut machine, &mut world, &mut choices, round, &mut counts)?;
        }
        if sequential {
            machine.begin(world.root, scalable)?;
            sequence(&mut machine, &mut world, &mut choices, round, &mut counts)?;
        }
        round += 1;
    }
    println!(
        "{} questions, {} translated, {} refused and not recorded, {} by older states, {} unknown differences; refused by reason: {:x?}; known: {:?}",
        counts.asked,
        counts.translated,
        counts.silent,
        counts.older,
        counts.unknown,
        counts.reasons,
        counts.known
    );
    Ok(counts.unknown == 0)
}

/// A question that the devices can ask, or none.
fn question(world: &World, choices: &mut Choices<'_>) -> Option<Question> {
    let mut question = world.question(choices);
    question.access = if question.source == READER {
        question.address = question.address & !0x7f | 4;
        Access::Read
    } else {
        Access::Write
    };
    // An interrupt message in QEMU, whoever sends it.
    (question.address >> 20 != 0xfee && question.pasid.is_none()).then_some(question)
}

fn ask(
    machine: &mut Machine,
    world: &mut World,
    choices: &mut Choices<'_>,
    round: u64,
    counts: &mut Counts,
) -> std::io::Result<()> {
    let Some(question) = question(world, choices) else {
        return Ok(());
    };
    world.memory.missed.take();
    let (expected, touched) = translate(&world.unit, &world.memory, &question);
    // QEMU has other memory below, and registers above, where the model has nothing.
    let known = |&address: &u64| (HOLE..HOLE + 0x1000_0000).contains(&address);
    if !world.memory.missed.take().iter().all(known) {
        return Ok(());
    }
    if structure(&expected) {
        return Ok(());
    }
    let at = place(&expected);
    counts.asked += 1;
    match &expected {
        Answer::Fault { found, told: true } => {
            *counts.reasons.entry(found.reason).or_default() += 1;
        }
        Answer::Fault { .. } => counts.silent += 1,
        _ => counts.translated += 1,
    }
    let seen = machine.ask(&question, at.as_slice())?;
    for (entry, bits) in touched {
        let word = world.memory.word(entry).unwrap_or(0);
        world.memory.set(entry, word | bits);
    }
    if let Some(at) = at.filter(|_| seen.arrived.is_some()) {
        // What the device wrote, or what was put there for it to read.
        let word = machine.word(at & !7)?;
        world.memory.set(at & !7, word);
    }
    if agrees(&question, &expected, &seen, at.map(|_| 0)) {
        return Ok(());
    }
    match differences::known(world, &question, &expected, &seen) {
        Some(name) => *counts.known.entry(name).or_default() += 1,
        None => {
            counts.unknown += 1;
            let told = |answer: &Answer| match answer {
                Answer::Fault { found, .. } => u64::from(found.reason),
                _ => 0x100,
            };
            let record = seen.record.map_or(0x100, |record| u64::from(record.reason));
            let class = (told(&expected), record);
            let times = counts.classes.entry(class).or_default();
            *times += 1;
            if *times > 2 {
                return Ok(());
            }
            println!("round {round}: {question:x?}\n  model {expected:x?}\n  QEMU  {seen:x?}");
            for line in differences::lines(world, &question) {
                println!("    {line}");
            }
        }
    }
    Ok(())
}

/// Where the bytes of an answer can be seen.
fn place(answer: &Answer) -> Option<u64> {
    match *answer {
        Answer::Memory { address, .. } => (DATA..DATA_END).contains(&address).then_some(address),
        _ => None,
    }
}

/// Whether a device would write to structures, which stay what they are.
fn structure(answer: &Answer) -> bool {
    matches!(answer, Answer::Memory { address, .. } if (TABLES..DATA).contains(address))
}

/// Edits, invalidations, and requests whose answers may be older ones.
fn sequence(
    machine: &mut Machine,
    world: &mut World,
    choices: &mut Choices<'_>,
    round: u64,
    counts: &mut Counts,
) -> std::io::Result<()> {
    let mut history = History::new(world);
    let mut asked: Vec<Question> = Vec::new();
    for step in 0..STEPS {
        match choices.below(8) {
            0 => {
                let Some((at, kind)) = world.edit(choices, asked.last()) else {
                    continue;
                };
                machine.set_word(at, world.memory.word(at).unwrap_or(0))?;
                history.edited(world.memory.clone(), kind);
            }
            1 => {
                let near = match asked.last() {
                    Some(last) if choices.below(4) != 0 => *last,
                    _ => world.question(choices),
                };
                let event = Event::choose(choices, &history, &near);
                machine.invalidate(&[event.descriptor()])?;
                history.invalidated(event);
            }
            _ => {
                let again = !asked.is_empty() && choices.below(4) != 0;
                let question = if again {
                    let index = choices.below(asked.len() as u64) as usize;
                    Some(asked[index])
                } else {
                    question(world, choices)
                };
                let Some(question) = question else {
                    continue;
                };
                asked.push(question);
                explained(machine, world, &history, &question, (round, step), counts)?;
            }
        }
    }
    Ok(())
}

/// Asks, and looks for a state that explains what happens.
fn explained(
    machine: &mut Machine,
    world: &World,
    history: &History,
    question: &Question,
    at: (u64, u64),
    counts: &mut Counts,
) -> std::io::Result<()> {
    world.memory.missed.take();
    let fresh = translate(&world.unit, &world.memory, question).0;
    let known = |&address: &u64| (HOLE..HOLE + 0x1000_0000).contains(&address);
    if !world.memory.missed.take().iter().all(known) {
        return Ok(());
    }
    // What the model refuses QEMU may not, and remember.
    let older = history.older(question, true);
    if !history.missed.take().iter().all(known) {
        return Ok(());
    }
    let mut answers = vec![(fresh.clone(), None)];
    answers.extend(
        older
            .into_iter()
            .map(|(answer, times)| (answer, Some(times))),
    );
    if answers.iter().any(|(answer, _)| structure(answer)) {
        return Ok(());
    }
    let mut places: Vec<u64> = answers
        .iter()
        .filter_map(|(answer, _)| place(answer))
        .collect();
    places.sort_unstable();
    places.dedup();
    places.truncate(32);
    let seen = machine.ask(question, &places)?;
    counts.asked += 1;
    let explains = |(answer, times): &&(Answer, Option<Times>)| {
        let index = place(answer).and_then(|place| places.iter().position(|&p| p == place));
        let refused = times.is_some_and(|times| !history.is_of_now(times));
        let refused = refused && matches!(answer, Answer::Fault { .. });
        if !refused && agrees(question, answer, &seen, index) {
            return true;
        }
        let mut world = world.clone();
        if let Some(times) = times {
            world.memory = history.mixture(*times);
        }
        differences::known(&world, question, answer, &seen).is_some()
            || differences::known_of_caches(answer, &seen).is_some()
    };
    match answers.iter().find(explains) {
        Some((_, None)) => {}
        Some(_) => counts.older += 1,
        None => {
            counts.unknown += 1;
            *counts.classes.entry((0x200, counts.unknown)).or_default() += 1;
            println!("round {}, step {}: {question:x?}", at.0, at.1);
            for (answer, times) in &answers {
                println!("  model {answer:x?} {times:?}");
            }
            println!("  QEMU  {seen:x?}, of {places:x?}");
            println!("  {:x?}", history.events());
            for line in differences::lines(world, question) {
                println!("    {line}");
            }
        }
    }
    Ok(())
}

/// Whether QEMU does what the model says.
fn agrees(question: &Question, expected: &Answer, seen: &Seen, there: Option<usize>) -> bool {
    match expected {
        Answer::Memory { .. } | Answer::Message => seen.arrived == there && seen.record.is_none(),
        Answer::Fault { told: false, .. } => seen.arrived.is_none() && seen.record.is_none(),
        Answer::Fault { found, .. } => seen.record.is_some_and(|record| {
            (record.reason == found.reason || found.or.contains(&record.reason))
                && record.source == question.source
                && record.address == question.address & !0xfff
                && record.read == (question.access == Access::Read)
                && record.pasid == question.pasid
                && seen.arrived.is_none()
        }),
    }
}
