//! `cargo bench -p iogate-paging`: walks and scans of 65,536 pages, against
//! the loads alone that a walk cannot do without.

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::ops::ControlFlow;

use criterion::{Criterion, criterion_group, criterion_main};
use iogate_dma::{Access, Memory, Privilege};
use iogate_paging::vtd::{Levels, SecondStage};
use iogate_paging::{Builder, Permissions, scan, walk};
use support::Flat;

const PAGES: u64 = 65_536;
const BASE: u64 = 1 << 32;

/// Tables that map `PAGES` pages; `scattered` ones share no neighbour.
fn tables(scattered: bool) -> (Flat, u64) {
    let memory = Flat::pages(160);
    let mut next = 0;
    let mut tables = Builder::new(SecondStage::new(Levels::Four), &memory, || {
        next += 1;
        Some((next - 1) << 12)
    })
    .expect("a root table");
    for page in 0..PAGES {
        let output = if scattered { page << 13 } else { page << 12 };
        tables
            .map(BASE + (page << 12), output, 4096, Permissions::ALL, 12)
            .expect("room for tables");
    }
    let root = tables.root();
    (memory, root)
}

fn walks(c: &mut Criterion) {
    let format = SecondStage::new(Levels::Four);
    let (memory, root) = tables(true);
    let direct: &dyn Memory = &memory;
    let mut group = c.benchmark_group("walk");
    let mut page = 0_u64;
    group.bench_function("iogate, 4 levels, independent", |b| {
        b.iter(|| {
            page = page.wrapping_mul(5).wrapping_add(12_345) % PAGES;
            let at = BASE + (page << 12);
            walk(
                &format,
                root,
                &direct,
                black_box(at),
                Access::Read,
                Privilege::User,
            )
        });
    });
    let mut page = 0_u64;
    group.bench_function("iogate, 4 levels, dependent", |b| {
        b.iter(|| {
            let at = BASE + (page << 12);
            let found = walk(
                &format,
                root,
                &direct,
                black_box(at),
                Access::Read,
                Privilege::User,
            );
            page = (found.map_or(0, |found| found.output >> 13) * 5 + 12_345) % PAGES;
            page
        });
    });
    let mut page = 0_u64;
    group.bench_function("four dependent loads", |b| {
        b.iter(|| {
            let at = black_box(BASE + (page << 12));
            let mut table = root;
            for shift in [39, 30, 21, 12] {
                table = memory.get(table + (at >> shift & 511) * 8).unwrap_or(0) & !0xfff;
            }
            page = ((table >> 13) * 5 + 12_345) % PAGES;
            page
        });
    });
    group.finish();
}

fn scans(c: &mut Criterion) {
    let format = SecondStage::new(Levels::Four);
    let mut group = c.benchmark_group("scan of 65,536 entries");
    for (name, scattered) in [("contiguous", false), ("nothing contiguous", true)] {
        let (memory, root) = tables(scattered);
        let direct: &dyn Memory = &memory;
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut sum = 0_u64;
                scan(&format, root, &direct, (0, u64::MAX), usize::MAX, |run| {
                    sum = sum.wrapping_add(run.output);
                    ControlFlow::Continue(())
                });
                sum
            });
        });
    }
    group.finish();
}

criterion_group!(benches, walks, scans);
criterion_main!(benches);
