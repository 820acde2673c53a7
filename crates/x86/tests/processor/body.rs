//! One instance of an instruction form: executed here, and natively on ordinary
//! memory.

use iced_x86::{Code, Encoder, Instruction};
use iogate_x86::{Done, Inaccessible, Memory, Registers, Stopped, Vector, Vectors, execute};

use crate::forms::{self, Random, instance};
use crate::native::{ARENA, Machine};

/// Compares what the instruction that `bytes` choose does.
#[allow(dead_code, reason = "only the fuzzer has inputs")]
pub(crate) fn run(bytes: &[u8]) {
    thread_local! {
        static MACHINE: std::cell::RefCell<(Machine, Vec<Code>)> = std::cell::RefCell::new({
            let machine = Machine::new();
            let mut random = Random::of_seed(7);
            let known: Vec<_> = known(&machine, &mut random)
                .filter(|code| forms::lacks(*code, machine.features()).is_none())
                .collect();
            (machine, known)
        });
    }
    MACHINE.with_borrow_mut(|(machine, known)| {
        let mut random = Random::of_input(bytes);
        let count = u64::try_from(known.len()).unwrap();
        let index = usize::try_from(random.below(count)).unwrap();
        compare(machine, known[index], &mut random, 0);
    });
}

/// The forms that are executed at all.
pub(crate) fn known(machine: &Machine, random: &mut Random) -> impl Iterator<Item = Code> {
    Code::values().filter(|code| forms::has_memory(*code) && is_known(machine, *code, random))
}

/// Arithmetic flags and the direction.
const FLAGS: u64 = 0xcd5;

#[derive(Clone)]
struct Model {
    start: u64,
    bytes: [u8; ARENA],
    vectors: [Vector; 32],
    masks: [u64; 8],
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

struct VectorFile<'a>(&'a mut [Vector; 32], [u64; 8]);

impl Vectors for VectorFile<'_> {
    fn get(&mut self, index: usize) -> Option<Vector> {
        self.0.get(index).copied()
    }

    fn set(&mut self, index: usize, value: Vector) -> Option<()> {
        *self.0.get_mut(index)? = value;
        Some(())
    }

    fn mask(&mut self, index: usize) -> Option<u64> {
        self.1.get(index).copied()
    }
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
        let (mut vectors, masks) = (model.vectors, model.masks);
        let done = execute(
            &bytes,
            &mut registers,
            &mut VectorFile(&mut vectors, masks),
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
        masks: std::array::from_fn(|_| random.next() & random.next()),
    };
    random.fill(&mut model.bytes);
    for vector in &mut model.vectors {
        random.fill(vector);
    }
    machine.narrow(&mut model.vectors);
    model
}

pub(crate) fn compare(machine: &mut Machine, code: Code, random: &mut Random, seed: u64) {
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
            // Not every register of a string instruction is an address.
            let _ = model.write(address, bytes);
        });
    }
    let flags = random.next() & FLAGS;
    let mut registers = Registers {
        general: case.general,
        rip: machine.instruction(),
        flags: flags | 0x202,
        ..Registers::default()
    };
    machine.set(
        (&case.general, flags | 0x202),
        (&model.vectors, &model.masks),
        &model.bytes,
    );
    machine.run(&bytes);

    let (mut vectors, masks) = (model.vectors, model.masks);
    loop {
        match execute(
            &bytes,
            &mut registers,
            &mut VectorFile(&mut vectors, masks),
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
