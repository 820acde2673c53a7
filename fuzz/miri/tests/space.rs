//! An address space at the size of Miri: the naive model, and readers beside
//! a writer.

#[path = "../../../crates/space/tests/model/mod.rs"]
mod model;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iogate_dma::{Access, Gate, Iova, Rights, Span};
use iogate_space::{AddressSpace, Miss, Segment};

#[test]
fn a_short_sequence_does_what_the_naive_model_does() {
    let corpus = include_bytes!("../../../crates/space/tests/corpus/mixed-1");
    model::run(&corpus[..100]);
}

/// An area comes and goes beside one that stays, in the same slot of the
/// tables; each time it leads to another cell, which is spoiled after it.
#[test]
fn no_reader_is_told_of_an_output_that_is_not_current_under_its_guard() {
    const ROUNDS: u64 = 12;
    const SPOILED: u64 = u64::MAX;
    let gate = Arc::new(Gate::new());
    let space = AddressSpace::new(Arc::clone(&gate));
    let cells: Vec<_> = (0..=ROUNDS).map(AtomicU64::new).collect();
    let stop = AtomicBool::new(false);
    let area = |first| Span::with_length(Iova(first), 0x800).unwrap();
    let map = |first, cell| {
        space.map(area(first), Rights::READ_WRITE, ()).unwrap();
        let segment = Segment {
            length: 0x800,
            output: cell << 32,
        };
        space.fill(Iova(first), &[segment]).unwrap();
    };
    map(0, 0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut worker = gate.join();
            let (space, cells, stop) = (&space, &cells, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for first in [0, 0x800] {
                        let guard = worker.enter();
                        match space.lookup(&guard, area(first), Access::Write) {
                            Ok(hit) => {
                                let cell = hit.output >> 32;
                                let held = cells[cell as usize].load(Ordering::Relaxed);
                                assert_eq!(held, cell);
                            }
                            Err(miss) => {
                                assert_ne!(first, 0, "the area that stays: {miss}");
                                assert!(matches!(miss, Miss::NotMapped | Miss::Unfilled));
                            }
                        }
                    }
                }
            });
        }
        for cell in 1..=ROUNDS {
            map(0x800, cell);
            if cell % 3 == 0 {
                space.clear(area(0x800));
            }
            space.unmap(Iova(0x800)).unwrap();
            gate.grace().wait();
            cells[cell as usize].store(SPOILED, Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
