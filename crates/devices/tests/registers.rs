//! Hostile accesses: what bytes say is done to each model, by registers,
//! configuration space, memory, resets and quanta of work. Nothing may panic,
//! hang or grow.
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant, SystemTime};

use common::Machine;
use iogate_devices::{Properties, Value, models};
use iogate_dma::Rights;
use iogate_pci::After;

const RAM: usize = 1 << 20;

/// Bytes as a source of decisions; zeros when they end.
struct Input<'b>(&'b [u8]);

impl Input<'_> {
    fn number<const N: usize>(&mut self) -> u64 {
        let (now, later) = self.0.split_at(N.min(self.0.len()));
        self.0 = later;
        let mut bytes = [0; 8];
        bytes[..now.len()].copy_from_slice(now);
        u64::from_le_bytes(bytes)
    }
}

/// The body: one session with one device. `fuzz/` runs it as well.
pub(crate) fn session(model: &str, bytes: &[u8]) {
    let properties = match model {
        "nvme" => Properties::from([("size".to_owned(), Value::Bytes(1 << 40))]),
        _ => Properties::new(),
    };
    let mut machine = Machine::new(model, &properties, RAM);
    machine.map(&[
        (0, 0x4_0000, Rights::READ_WRITE),
        (0x5_0000, 0x1_0000, Rights::READ),
        (0x7_0800, 0x9_0800 - 0x1000, Rights::READ_WRITE),
    ]);
    if model == "nvme" {
        // A controller that runs, with an admin queue of small memory.
        machine.write32(0x24, 15 << 16 | 15);
        machine.write64(0x28, 0x1000);
        machine.write64(0x30, 0x2000);
        machine.write32(0x14, 0x0046_0001);
    }
    if model == "virtio-net" {
        // A loopback that runs, with rings in small memory.
        machine.write(4, 0x08, &1_u32.to_le_bytes());
        machine.write(4, 0x0c, &1_u32.to_le_bytes());
        machine.write(4, 0x08, &0_u32.to_le_bytes());
        let features = bytes.first().map_or(0, |byte| u32::from(*byte) << 15);
        machine.write(4, 0x0c, &(features & 0x3046_8000).to_le_bytes());
        machine.write(4, 0x14, &[0x0b]);
        for queue in 0..3_u16 {
            machine.write(4, 0x16, &queue.to_le_bytes());
            machine.write(4, 0x18, &16_u16.to_le_bytes());
            for (at, place) in [(0x20, 0x1000_u64), (0x28, 0x2000), (0x30, 0x3000)] {
                let place = place + u64::from(queue) * 0x200;
                machine.write(4, at, &place.to_le_bytes());
            }
            machine.write(4, 0x1c, &1_u16.to_le_bytes());
        }
        machine.write(4, 0x14, &[0x0f]);
    }
    let bars: Vec<_> = machine.device.endpoint().bars().copied().collect();
    // Where what takes notifications stands.
    let doorbells = match model {
        "virtio-net" => 0x3000,
        _ => 0x1000,
    };
    let mut input = Input(bytes);
    let mut after = After::Nothing;
    let mut buffer = [0; 32];
    while !input.0.is_empty() {
        let kind = input.number::<1>();
        match kind & 7 {
            // A register: mostly where there are some, mostly of 4 bytes.
            0..=2 => {
                let length = match kind >> 3 & 7 {
                    0..=4 => 4,
                    5 => 8,
                    6 => 1,
                    _ => 32,
                };
                // The last BAR, which is that of the registers, mostly.
                let bar = match kind >> 3 & 7 {
                    4 => bars[0],
                    _ => bars[bars.len() - 1],
                };
                let (bar, size) = (bar.index, bar.size);
                let near = match kind >> 6 {
                    0 => input.number::<1>() & !3,
                    1 => doorbells + (input.number::<1>() & 0x3f) * 4,
                    2 => input.number::<1>(),
                    _ => input.number::<4>(),
                };
                let offset = near % (size - length + 1);
                let bytes = &mut buffer[..length as usize];
                if kind & 7 == 0 {
                    machine.device.read_bar(bar, offset, bytes);
                } else {
                    for byte in bytes.iter_mut() {
                        *byte = input.number::<1>() as u8;
                    }
                    after = after.or(machine.device.write_bar(bar, offset, bytes));
                }
            }
            // A command of small numbers, where the admin queue stands.
            3 => {
                let mut command = [0; 64];
                command[0] = input.number::<1>() as u8 & 0x0f;
                command[2] = input.number::<1>() as u8;
                command[4] = input.number::<1>() as u8 & 3;
                command[25] = input.number::<1>() as u8;
                command[26] = input.number::<1>() as u8 & 0xf;
                command[33] = input.number::<1>() as u8;
                command[34] = input.number::<1>() as u8 & 0xf;
                for at in [40, 42, 44, 46, 48, 49] {
                    command[at] = input.number::<1>() as u8;
                }
                let slot = input.number::<1>() & 15;
                machine.poke(0x1000 + slot * 64, &command);
            }
            // Memory: anywhere, or where rings stand.
            4 => {
                let near_rings = model == "virtio-net" && kind >> 3 & 1 != 0;
                let address = match near_rings {
                    false => input.number::<3>() % (RAM as u64 - 8),
                    true => 0x1000 + input.number::<2>() % 0x2600,
                };
                machine.poke(address, &input.number::<8>().to_le_bytes());
            }
            5 => after = machine.device.work(&mut machine.port),
            6 => {
                let offset = input.number::<2>();
                let bytes = &mut buffer[..(kind >> 4) as usize];
                match kind & 8 {
                    0 => machine.device.read_config(offset, bytes),
                    _ => after = after.or(machine.device.write_config(offset, bytes).1),
                }
            }
            _ => match kind >> 3 {
                0..=1 => machine.reset(),
                _ => machine.set_command(6),
            },
        }
    }
    machine.finish(after);
}

/// Xorshift of 64 bits.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn committed_accesses_are_survived() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut files = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for model in models() {
            session(model.name, &bytes);
        }
        files += 1;
    }
    assert!(files > 0);
}

#[test]
fn random_accesses_are_survived() {
    // IOGATE_SEED repeats a run.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = match std::env::var("IOGATE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => now.unwrap().as_nanos() as u64 | 1,
    };
    println!("IOGATE_SEED={seed}");
    let mut random = Random(seed);
    let begin = Instant::now();
    let mut sessions = 0;
    while begin.elapsed() < Duration::from_secs(2) {
        let length = random.next() % 2048;
        let bytes: Vec<u8> = (0..length).map(|_| (random.next() >> 32) as u8).collect();
        for model in models() {
            session(model.name, &bytes);
        }
        sessions += 1;
    }
    println!("{sessions} sessions");
}
