//! `cargo bench -p iogate-shadow`: first sync, and invalidations by the queue
//! of a VT-d unit, of 65,536 pages, against the scan alone that they cannot do
//! without.

#[path = "../tests/support/guest.rs"]
mod vtd;

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, criterion_group, criterion_main};
use iogate_dma::{Change, GuestDomains, Listener, Partial, RequesterId, Span};
use iogate_shadow::{Section, Shadow};
use iogate_vtd::Capabilities;
use vtd::{Guest, Tables, everything, of_pages};

const PAGES: u64 = 65_536;
const BASE: u64 = 0x1_0000_0000;
const FUNCTION: RequesterId = RequesterId(3 << 3);

/// Counts what it is told.
#[derive(Default)]
struct Counter(AtomicU64);

impl Listener for Counter {
    fn apply(&self, changes: &[Change]) -> Result<(), Partial> {
        let changes = black_box(changes).len() as u64;
        self.0.fetch_add(changes, Ordering::Relaxed);
        Ok(())
    }
}

/// A guest with `PAGES` pages mapped; `scattered` ones share no neighbour.
fn guest(scattered: bool) -> (Guest, Tables) {
    let guest = Guest::new(Capabilities::default());
    let tables = guest.domain(5);
    for page in 0..PAGES {
        let output = if scattered { page << 13 } else { page << 12 };
        guest.map(tables, BASE + (page << 12), output | 3);
    }
    guest.enter(3, Some(tables));
    (guest, tables)
}

fn figures(c: &mut Criterion) {
    for (name, scattered) in [("contiguous", false), ("nothing contiguous", true)] {
        let (guest, tables) = guest(scattered);
        let mut group = c.benchmark_group(format!("65,536 pages, {name}"));
        group.bench_function("scan alone", |b| {
            b.iter(|| {
                let mut sum = 0;
                let budget = usize::MAX;
                guest
                    .unit
                    .scan(FUNCTION.into(), Span::whole(), budget, &mut |run| {
                        sum ^= run.output;
                        ControlFlow::Continue(())
                    });
                sum
            });
        });
        let counter = Arc::new(Counter::default());
        let shadow = Shadow::of(guest.unit.clone());
        group.bench_function("first sync, and all unmapped again", |b| {
            b.iter(|| {
                shadow
                    .follow(FUNCTION, Section::ALL, Arc::clone(&counter) as _)
                    .is_ok()
            });
        });
        let before = counter.0.load(Ordering::Relaxed);
        let following = shadow.follow(FUNCTION, Section::ALL, Arc::clone(&counter) as _);
        let first = counter.0.load(Ordering::Relaxed) - before;
        println!("65,536 pages, {name}: the first sync is {first} changes");
        group.bench_function("global invalidation, nothing changed", |b| {
            b.iter(|| guest.submit(&[everything()]));
        });
        group.bench_function("one page invalidated, nothing changed", |b| {
            b.iter(|| guest.submit(&[of_pages(tables, BASE + 0x123_4000, 0)]));
        });
        assert_eq!(counter.0.load(Ordering::Relaxed) - before, first);
        // Beside the others, so that no other run moves.
        let beside = BASE + (PAGES << 12) + 0x10_0000;
        group.bench_function("one page mapped, and unmapped", |b| {
            b.iter(|| {
                for entry in [0x1_2345_6003, 0] {
                    guest.map(tables, beside, entry);
                    guest.submit(&[of_pages(tables, beside, 0)]);
                }
            });
        });
        let middle = BASE + (PAGES << 11);
        group.bench_function("one page in the middle unmapped, and mapped", |b| {
            b.iter(|| {
                let output = if scattered { PAGES << 12 } else { PAGES << 11 };
                for entry in [0, output | 3] {
                    guest.map(tables, middle, entry);
                    guest.submit(&[of_pages(tables, middle, 0)]);
                }
            });
        });
        group.finish();
        drop(following);
    }
}

criterion_group!(benches, figures);
criterion_main!(benches);
