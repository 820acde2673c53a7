//! Every instruction form that is known against the processor itself: executed
//! natively on ordinary memory it gives the same registers, flags and memory.
//!
//! `IOGATE_SEED` repeats a run; `IOGATE_INSTANCES` is how many instances of a
//! form are tried.

#![allow(missing_docs)]

#[path = "processor/forms.rs"]
mod forms;
#[path = "processor/native.rs"]
mod native;

use std::collections::BTreeSet;

use iced_x86::{Code, Encoder, Instruction};
use iogate_x86::{Done, Inaccessible, Memory, Registers, Stopped, Vector, Vectors, execute};

use crate::forms::{Random, instance};
use crate::native::{ARENA, Machine};

/// Arithmetic flags and the direction.
const FLAGS: u64 = 0xcd5;

#[derive(Clone)]
struct Model {
    start: u64,
    bytes: [u8; ARENA],
    vectors: [Vector; 32],
}

impl Memory for Model {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Inaccessible> {
        let at = usize::try_from(address.wrapping_sub(self.start)).unwrap();
        let from = self.bytes.get(at..at.saturating_add(into.len()));
        into.copy_from_slice(from.ok_or(Inaccessible(address))?);
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Inaccessible> {
        let at = usize::try_from(address.wrapping_sub(self.start)).unwrap();
        let into = self.bytes.get_mut(at..at.saturating_add(from.len()));
        into.ok_or(Inaccessible(address))?.copy_from_slice(from);
        Ok(())
    }
}

struct VectorFile<'a>(&'a mut [Vector; 32]);

impl Vectors for VectorFile<'_> {
    fn get(&mut self, index: usize) -> Option<Vector> {
        self.0.get(index).copied()
    }

    fn set(&mut self, index: usize, value: Vector) -> Option<()> {
        *self.0.get_mut(index)? = value;
        Some(())
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn what_is_executed_here_is_what_the_processor_does() {
    let seed = number("IOGATE_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::from(now.unwrap().subsec_nanos())
    });
    let instances = number("IOGATE_INSTANCES").unwrap_or(2000);
    println!("IOGATE_SEED={seed} IOGATE_INSTANCES={instances}");
    let mut random = Random(seed | 1 << 40);
    let mut machine = Machine::new();
    let (mut compared, mut lacking) = (0_u64, BTreeSet::new());
    let mut forms = 0;
    for code in Code::values().filter(|code| forms::has_memory(*code)) {
        if !is_known(&machine, code, &mut random) {
            continue;
        }
        if let Some(feature) = forms::lacks(code, machine.features()) {
            lacking.insert(format!("{code:?} ({feature})"));
            continue;
        }
        forms += 1;
        for _ in 0..instances {
            compare(&mut machine, code, &mut random, seed);
            compared += 1;
        }
    }
    println!("{compared} instances of {forms} forms; the processor lacks {lacking:?}");
    assert!(forms > 250, "{forms} forms");
}

/// Whether any instance of a form is executed.
fn is_known(machine: &Machine, code: Code, random: &mut Random) -> bool {
    (0..4).any(|_| {
        let Some(case) = instance(code, machine.arena(), random) else {
            return false;
        };
        let mut registers = Registers {
            general: case.general,
            rip: machine.instruction(),
            ..Registers::default()
        };
        let Some(bytes) = encode(machine, &case.instruction) else {
            return false;
        };
        let mut model = model(machine, random);
        let mut vectors = model.vectors;
        let done = execute(
            &bytes,
            &mut registers,
            &mut VectorFile(&mut vectors),
            &mut model,
        );
        !matches!(done, Err(Stopped::Unknown(_)))
    })
}

fn encode(machine: &Machine, instruction: &Instruction) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, machine.instruction()).ok()?;
    Some(encoder.take_buffer())
}

fn model(machine: &Machine, random: &mut Random) -> Model {
    let mut model = Model {
        start: machine.arena(),
        bytes: [0; ARENA],
        vectors: [[0; 64]; 32],
    };
    random.fill(&mut model.bytes);
    for vector in &mut model.vectors {
        random.fill(vector);
    }
    machine.narrow(&mut model.vectors);
    model
}

fn compare(machine: &mut Machine, code: Code, random: &mut Random, seed: u64) {
    let (case, bytes) = loop {
        if let Some(case) = instance(code, machine.arena(), random)
            && let Some(bytes) = encode(machine, &case.instruction)
        {
            break (case, bytes);
        }
    };
    let mut model = model(machine, random);
    if let Some(address) = case.target {
        model
            .write(address, &machine.target().to_le_bytes())
            .unwrap();
    }
    if random.below(3) == 0 {
        forms::make_equal(&case, random, |address, bytes| {
            model.write(address, bytes).unwrap();
        });
    }
    let flags = random.next() & FLAGS;
    let mut registers = Registers {
        general: case.general,
        rip: machine.instruction(),
        flags: flags | 0x202,
        ..Registers::default()
    };
    machine.set(&case.general, flags | 0x202, &model.vectors, &model.bytes);
    machine.run(&bytes);

    let mut vectors = model.vectors;
    loop {
        match execute(
            &bytes,
            &mut registers,
            &mut VectorFile(&mut vectors),
            &mut model,
        ) {
            Ok(Done::Completed) => break,
            Ok(Done::Partly) => {}
            Err(stopped) => panic!("seed {seed}: {code:?} {bytes:02x?}: {stopped:?}"),
        }
    }
    let what = || format!("seed {seed}: {code:?} {bytes:02x?} flags {flags:#x} {case:x?}");
    let (general, native_flags, native_vectors) = machine.get();
    assert_eq!(registers.general, general, "registers of {}", what());
    let defined = forms::defined_flags(&case, FLAGS);
    assert_eq!(
        registers.flags & defined,
        native_flags & defined,
        "flags (expected {native_flags:#x}, have {:#x}) of {}",
        registers.flags,
        what()
    );
    assert!(model.bytes == *machine.memory(), "memory of {}", what());
    machine.narrow(&mut vectors);
    assert!(vectors == native_vectors, "vectors of {}", what());
    let expected = match case.target {
        Some(_) => machine.target(),
        None => machine.instruction() + u64::try_from(bytes.len()).unwrap(),
    };
    assert_eq!(registers.rip, expected, "rip of {}", what());
}
