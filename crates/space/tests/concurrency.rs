//! Readers translate while a writer maps, fills, cuts and unmaps. A cell that
//! an area's output names is spoiled only after the grace that follows its
//! withdrawal, so a reader that finds it spoiled under its guard was told of
//! an output that was no longer current.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iogate_dma::{Access, Gate, Iova, Participant, Rights, Span};
use iogate_space::{AddressSpace, Hit, Segment};

/// What a cell holds while no area has it.
const SPOILED: u64 = u64::MAX;
/// Bytes of a cell's output range, above those of any area.
const CELL: u64 = 1 << 40;

/// Areas that stand all the time between those that come and go: in the same
/// granule, the same node, and nodes that no one else needs.
const AREAS: [(u64, u64); 16] = [
    (0x0000, 0x800),
    (0x0800, 0x800),
    (0x1000, 0x1000),
    (0x2000, 0x1001),
    (0x3001, 0x1fff),
    (0x20_0000, 0x20_0000),
    (0x40_0000, 0x20_0000),
    (0x60_0000, 0x1000),
    (0x4000_0000, 0x1_0000),
    (0x7fff_ffff_f000, 0x1000),
    (0x8000_0000_0000, 0x8000_0000),
    (0x12_3456_7890_1000, 0x1000),
    (0x12_3456_7890_2000, 0x1000),
    (0x7000_0000_0000_0000, 0x40_0000_0000),
    (u64::MAX - 0xfff, 0x1000),
    (u64::MAX - 0x1fff, 0x1000),
];

struct Bench {
    gate: Arc<Gate>,
    space: AddressSpace<()>,
    cells: Vec<AtomicU64>,
    stop: AtomicBool,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Every fourth area never changes; its cell is its own number.
fn is_steady(area: usize) -> bool {
    area.is_multiple_of(4)
}

impl Bench {
    fn read(&self, seed: u64) -> u64 {
        let mut worker = self.gate.join();
        let mut random = Random(seed);
        let mut hits = 0;
        while !self.stop.load(Ordering::Relaxed) {
            hits += u64::from(self.read_one(&mut worker, &mut random));
        }
        hits
    }

    fn read_one(&self, worker: &mut Participant, random: &mut Random) -> bool {
        let area = random.below(AREAS.len() as u64) as usize;
        let (first, length) = AREAS[area];
        let offset = random.below(length);
        let from = Iova(first + offset);
        let span = Span::new(from, Iova(first + (length - 1))).unwrap();
        let guard = worker.enter();
        match self.space.lookup(&guard, span, Access::Write) {
            Ok(Hit { output, rights, .. }) => {
                assert_eq!(output % CELL, offset, "area {area} at {from}");
                assert_eq!(rights, Rights::READ_WRITE);
                let cell = &self.cells[(output / CELL) as usize];
                for _ in 0..random.below(40) {
                    assert_eq!(cell.load(Ordering::Relaxed), area as u64, "area {area}");
                }
                true
            }
            Err(miss) => {
                assert!(!is_steady(area), "area {area} at {from}: {miss}");
                false
            }
        }
    }

    fn map(&self, area: usize) {
        let (first, length) = AREAS[area];
        let span = Span::with_length(Iova(first), length).unwrap();
        self.space.map(span, Rights::READ_WRITE, ()).unwrap();
    }

    /// Output of the area in up to three segments, which continue each other
    /// but make the tables cut its slots.
    fn fill(&self, area: usize, cell: usize, random: &mut Random) {
        self.cells[cell].store(area as u64, Ordering::Relaxed);
        let (first, length) = AREAS[area];
        let mut segments = Vec::new();
        let mut done = 0;
        for _ in 0..random.below(3) {
            let piece = random.below(length - done).min(random.below(0x5000)).max(1);
            if done + piece < length {
                segments.push((done, piece));
                done += piece;
            }
        }
        segments.push((done, length - done));
        let segments: Vec<_> = segments
            .iter()
            .map(|&(offset, length)| Segment {
                length,
                output: cell as u64 * CELL + offset,
            })
            .collect();
        self.space.fill(Iova(first), &segments).unwrap();
    }

    fn spoil(&self, cell: usize) {
        self.gate.grace().wait();
        self.cells[cell].store(SPOILED, Ordering::Relaxed);
    }

    fn write(&self, time: Duration) {
        let mut random = Random(0x1234_5678_9abc_def1);
        let mut cell_of: Vec<Option<usize>> = (0..AREAS.len()).map(Some).collect();
        let mut free: Vec<usize> = (AREAS.len()..self.cells.len()).collect();
        let end = Instant::now() + time;
        while Instant::now() < end {
            let area = random.below(AREAS.len() as u64) as usize;
            if is_steady(area) {
                continue;
            }
            let (first, length) = AREAS[area];
            let span = Span::with_length(Iova(first), length).unwrap();
            match (cell_of[area], random.below(4)) {
                (None, choice) => {
                    self.map(area);
                    if choice != 0 {
                        let cell = free.remove(0);
                        self.fill(area, cell, &mut random);
                        cell_of[area] = Some(cell);
                    } else {
                        self.space.unmap(Iova(first)).unwrap();
                    }
                }
                (Some(old), 0) => {
                    let cell = free.remove(0);
                    self.fill(area, cell, &mut random);
                    cell_of[area] = Some(cell);
                    self.spoil(old);
                    free.push(old);
                }
                (Some(old), choice) => {
                    match choice {
                        1 => self.space.clear(span),
                        2 => self.space.revoke(span),
                        _ => {}
                    }
                    self.space.unmap(Iova(first)).unwrap();
                    self.spoil(old);
                    free.push(old);
                    cell_of[area] = None;
                }
            }
        }
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_reader_is_told_of_an_output_that_is_not_current_under_its_guard() {
    let gate = Arc::new(Gate::new());
    let bench = Bench {
        space: AddressSpace::new(Arc::clone(&gate)),
        gate,
        cells: (0..AREAS.len() + 8)
            .map(|_| AtomicU64::new(SPOILED))
            .collect(),
        stop: AtomicBool::new(false),
    };
    let mut random = Random(7);
    for area in 0..AREAS.len() {
        bench.map(area);
        bench.fill(area, area, &mut random);
    }
    let hits: u64 = std::thread::scope(|scope| {
        let readers: Vec<_> = (1..=3)
            .map(|seed| {
                scope.spawn({
                    let bench = &bench;
                    move || bench.read(seed)
                })
            })
            .collect();
        bench.write(Duration::from_secs(2));
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum()
    });
    assert!(hits > 1000, "{hits} hits");
}
