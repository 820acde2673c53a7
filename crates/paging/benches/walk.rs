//! `cargo bench -p iogate-paging`: walks and scans of 65,536 pages, against
//! the loads alone that a walk cannot do without.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use iogate_dma::{Access, Gpa, Memory, Privilege, Rights, Span, Width};
use iogate_memory::{Backing, GuestMemory, GuestRange};
use iogate_paging::vtd::{Levels, SecondStage};
use iogate_paging::{Builder, Permissions, scan, walk};

const PAGES: u64 = 65_536;
const BASE: u64 = 1 << 32;

/// A guest's memory, as a unit reads it.
fn guest_memory() -> (Arc<GuestMemory>, GuestRange) {
    let bytes = 160 << 12;
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::memfd_create("ram", flags).expect("a file");
    rustix::fs::ftruncate(&file, bytes).expect("its length");
    let memory = Arc::new(GuestMemory::new().expect("a window"));
    let span = Span::with_length(Gpa(0), bytes).expect("a span");
    let backing = Backing::File {
        file: Arc::new(file),
        offset: 0,
    };
    let mapped = memory.map(span, Rights::READ_WRITE, backing);
    (Arc::clone(&memory), mapped.expect("a mapping"))
}

/// Tables that map `PAGES` pages: `output` tells where, and what is added to
/// an entry; a page that leads nowhere is left out.
fn tables(output: impl Fn(u64) -> Option<(u64, u64)>) -> (Arc<GuestMemory>, GuestRange, u64) {
    let (memory, range) = guest_memory();
    let mut next = 0;
    let mut tables = Builder::new(SecondStage::new(Levels::Four), &*memory, || {
        next += 1;
        Some((next - 1) << 12)
    })
    .expect("a root table");
    for page in 0..PAGES {
        let Some((output, flags)) = output(page) else {
            continue;
        };
        let slot = tables
            .slot(BASE + (page << 12), 1)
            .expect("room for tables");
        let stored = memory.store(slot, Width::Qword, output | flags);
        stored.expect("memory for an entry");
    }
    let root = tables.root();
    (memory, range, root)
}

fn walks(c: &mut Criterion) {
    let format = SecondStage::new(Levels::Four);
    let (memory, _range, root) = tables(|page| Some((page << 13, 3)));
    let direct: &dyn Memory = &*memory;
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
                table = memory
                    .load(table + (at >> shift & 511) * 8, Width::Qword)
                    .unwrap_or(0)
                    & !0xfff;
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
    type Output = fn(u64) -> Option<(u64, u64)>;
    let kinds: [(&str, Output); 5] = [
        ("contiguous", |page| Some((page << 12, 3))),
        ("nothing contiguous", |page| Some((page << 13, 3))),
        ("contiguous by twos", |page| {
            Some(((page << 12) + (page >> 1 << 13), 3))
        }),
        ("nothing contiguous, every third absent", |page| {
            (page % 3 != 2).then_some((page << 13, 3))
        }),
        ("nothing contiguous, every other read-only", |page| {
            Some((page << 13, 1 | (page & 1) << 1))
        }),
    ];
    let (memory, _range, root) = tables(|page| Some((page << 12, 3)));
    group.bench_function("the copy of the tables alone", |b| {
        let mut table = [0; 4096];
        b.iter(|| {
            for page in 0..PAGES >> 9 {
                let _ = black_box(memory.read(root + (page << 12), &mut table));
            }
        });
    });
    for (name, output) in kinds {
        let (memory, _range, root) = tables(output);
        let direct: &dyn Memory = &*memory;
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut sum = 0_u64;
                scan(
                    &format,
                    root,
                    &direct,
                    (0, u64::MAX),
                    Permissions::ALL,
                    usize::MAX,
                    |run| {
                        sum = sum.wrapping_add(run.output);
                        ControlFlow::Continue(())
                    },
                );
                sum
            });
        });
    }
    group.finish();
}

criterion_group!(benches, walks, scans);
criterion_main!(benches);
