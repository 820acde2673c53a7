//! `cargo bench -p iogate-shadow`: first sync, and invalidations that change
//! nothing, of 65,536 pages, against the scan alone that they cannot do
//! without.

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iogate_dma::{Change, GuestDomains, Listener, Partial, Scope, Span};
use iogate_shadow::{Section, Shadow};
use support::{Unit, source, span};

const PAGES: u64 = 65_536;

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

/// A unit whose source 1 maps `PAGES` pages; `scattered` ones share no
/// neighbour.
fn unit(scattered: bool) -> Arc<Unit> {
    let unit = Unit::new(160);
    unit.memory.set(0, 0x1000 | 3);
    for page in 0..PAGES {
        let table = 0x2000 + (page >> 9 << 12);
        unit.memory.set(0x1000 + (page >> 9) * 8, table | 3);
        let output = if scattered { page << 13 } else { page << 12 };
        unit.memory.set(table + (page & 511) * 8, output | 3);
    }
    unit.enter(source(1), Some((0, 7)));
    unit
}

fn figures(c: &mut Criterion) {
    for (name, scattered) in [("contiguous", false), ("nothing contiguous", true)] {
        let unit = unit(scattered);
        let mut group = c.benchmark_group(format!("65,536 pages, {name}"));
        group.throughput(Throughput::Elements(PAGES));
        group.bench_function("scan alone", |b| {
            b.iter(|| {
                unit.take_scans();
                let mut sum = 0;
                unit.scan(source(1), Span::whole(), usize::MAX, &mut |run| {
                    sum ^= run.output;
                    ControlFlow::Continue(())
                });
                sum
            });
        });
        let counter = Arc::new(Counter::default());
        group.bench_function("first sync, and unmapped again", |b| {
            b.iter(|| {
                unit.take_scans();
                let shadow = Shadow::of(unit.clone());
                shadow
                    .follow(source(1), Section::ALL, Arc::clone(&counter) as _)
                    .is_ok()
            });
        });
        let shadow = Shadow::of(unit.clone());
        let following = shadow.follow(source(1), Section::ALL, Arc::clone(&counter) as _);
        let before = counter.0.load(Ordering::Relaxed);
        group.bench_function("global invalidation, nothing changed", |b| {
            b.iter(|| {
                unit.take_scans();
                unit.invalidate_all();
            });
        });
        group.bench_function("one page invalidated, nothing changed", |b| {
            b.iter(|| {
                unit.take_scans();
                unit.invalidate_one(Scope::Domain(7), span(0x123_4000, 0x123_4fff));
            });
        });
        assert_eq!(
            counter.0.load(Ordering::Relaxed),
            before,
            "changes were told"
        );
        group.bench_function("one page in the middle mapped and unmapped", |b| {
            b.iter(|| {
                for entry in [0, 0x1_2345_6003] {
                    unit.take_scans();
                    unit.memory.set(0x2000 + 0x40_000 + 0x100, entry);
                    unit.invalidate_one(Scope::Domain(7), span(0x802_0000, 0x802_0fff));
                }
            });
        });
        group.finish();
        drop(following);
    }
}

criterion_group!(benches, figures);
criterion_main!(benches);
