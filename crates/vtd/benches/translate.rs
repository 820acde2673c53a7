//! `cargo bench -p iogate-vtd --bench translate`: requests to 65,536 scattered
//! pages of 4 KiB through a unit, from source to run. Beside it, in the same
//! run: four dependent loads in a bare array, which a walk cannot do without;
//! vm-memory's `Iotlb` and a `BTreeMap`, which know neither sources nor tables.

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use iogate_dma::{
    Access, Gpa, InFlight, Iova, Memory, Outcome, Request, RequesterId, Rights, Source, Span,
    Translate, Width,
};
use iogate_memory::{Backing, GuestMemory, GuestRange};
use iogate_paging::vtd::{Levels, SecondStage};
use iogate_paging::{Builder, Permissions};
use iogate_vtd::Vtd;
use vm_memory::GuestAddress;
use vm_memory::iommu::Iotlb;

const PAGES: u64 = 65_536;
const BYTES: u64 = 16 << 20;
const ROOT: u64 = 0x1000;
const CONTEXT: u64 = 0x2000;
/// Where tables are.
const TABLES: u64 = 0x10_0000;
/// The first input address.
const BASE: u64 = 0x70_0000_0000;
/// Functions in the domain, a power of two. All of them together have many times more
/// translations than a unit remembers, so that nearly every request walks.
const FUNCTIONS: u64 = 128;

/// Pages whose translations fit into a processor's second-level cache.
const FEW: u64 = 4096;

/// Requests of one round, and how many rounds of each are run; the best counts.
const ROUND: u32 = 1 << 13;
const ROUNDS: u32 = 1000;

/// No two pages make a run.
fn output(page: u64) -> u64 {
    (page * 40_503 % PAGES) << 13
}

fn guest_memory() -> Result<(Arc<GuestMemory>, GuestRange), Box<dyn Error>> {
    let file: OwnedFd = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, BYTES)?;
    let memory = Arc::new(GuestMemory::new()?);
    let span = Span::with_length(Gpa(0), BYTES).ok_or("no span")?;
    let backing = Backing::File {
        file: Arc::new(file),
        offset: 0,
    };
    let range = memory.map(span, Rights::READ_WRITE, backing)?;
    Ok((memory, range))
}

/// A unit that translates in legacy mode, and the second stage's root table.
fn unit(ram: &Arc<GuestMemory>) -> Result<(Arc<Vtd>, u64), Box<dyn Error>> {
    let mut next = TABLES;
    let mut tables = Builder::new(SecondStage::new(Levels::Four), &**ram, || {
        next += 0x1000;
        Some(next - 0x1000)
    })?;
    for page in 0..PAGES {
        tables.map(
            BASE + (page << 12),
            output(page),
            4096,
            Permissions::ALL,
            12,
        )?;
    }
    let root = tables.root();
    ram.store(ROOT, Width::Qword, CONTEXT | 1)?;
    for function in 0..FUNCTIONS {
        let entry = CONTEXT + function * 16;
        ram.store(entry, Width::Qword, root | 1)?;
        ram.store(entry + 8, Width::Qword, 7 << 8 | 2)?;
    }
    let unit = Vtd::builder(Arc::clone(ram) as _).build()?;
    // RTADDR_REG; then GCMD_REG: SRTP, TE.
    unit.write(0x20, &ROOT.to_le_bytes());
    unit.write(0x18, &(1_u32 << 30).to_le_bytes());
    unit.write(0x18, &(1_u32 << 31).to_le_bytes());
    Ok((unit, root))
}

/// Where a request for 64 bytes leads.
fn translate(unit: &Vtd, guard: &InFlight<'_>, function: u64, page: u64) -> u64 {
    let function = RequesterId(u16::try_from(function).unwrap_or(0));
    let iova = Iova(BASE + (page << 12));
    let span = Span::with_length(iova, 64).unwrap_or(Span::whole());
    let request = Request::new(Source::from(function), span, Access::Read);
    match unit.translate(guard, black_box(&request)) {
        Ok(Outcome::Memory(run)) => run.address(),
        _ => panic!("page {page} of {function} leads nowhere"),
    }
}

fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Nanoseconds of one call of `work`, in the best round. It gets a random
/// number; if `chained`, one that depends on what the last call returned.
fn best(chained: bool, mut work: impl FnMut(u64) -> u64) -> f64 {
    let mut seed = 1;
    (0..ROUNDS)
        .map(|_| {
            let (mut sum, mut chain) = (0_u64, 0);
            let since = Instant::now();
            for _ in 0..ROUND {
                let done = work(next(&mut seed).wrapping_add(chain));
                sum = sum.wrapping_add(done);
                chain = if chained { done } else { 0 };
            }
            black_box(sum);
            since.elapsed().as_secs_f64() * 1e9 / f64::from(ROUND)
        })
        .fold(f64::INFINITY, f64::min)
}

/// Requests of `functions` functions to `pages` pages, by one worker.
fn worker(unit: &Arc<Vtd>, functions: u64, pages: u64, chained: bool) -> f64 {
    let mut participant = unit.gate().join();
    let guard = participant.enter();
    for page in 0..PAGES {
        translate(unit, &guard, 0, page);
    }
    best(chained, |random| {
        translate(
            unit,
            &guard,
            (random / PAGES) & (functions - 1),
            random % pages,
        )
    })
}

/// The same of two workers at once: how many times as much they do.
fn two(unit: &Arc<Vtd>, functions: u64) -> f64 {
    let one = worker(unit, functions, PAGES, false);
    let both = std::thread::scope(|scope| {
        let all = [0, 1].map(|_| scope.spawn(|| worker(unit, functions, PAGES, false)));
        all.map(|thread| thread.join().unwrap_or(f64::INFINITY))
    });
    one * both.iter().map(|time| time.recip()).sum::<f64>()
}

fn row(name: &str, nanoseconds: f64, floor: f64) {
    let ratio = nanoseconds / floor;
    println!("{name:<52} {nanoseconds:7.2} ns  {ratio:6.2} x the floor");
}

fn main() -> Result<(), Box<dyn Error>> {
    let (ram, _range) = guest_memory()?;
    let (unit, root) = unit(&ram)?;

    let bare: Vec<u64> = (0..BYTES / 8)
        .map(|index| ram.load(index * 8, Width::Qword))
        .collect::<Result<_, _>>()?;
    let loads = |random: u64| {
        let at = BASE + ((random % PAGES) << 12);
        let mut table = root;
        for shift in [39, 30, 21, 12] {
            let entry = (table >> 3) + (at >> shift & 511);
            table = bare.get(usize::try_from(entry).unwrap_or(0)).unwrap_or(&0) & !0xfff;
        }
        table
    };
    let floor = best(false, loads);
    let chained_floor = best(true, |random| loads(random) >> 12);
    row("floor: four dependent loads in an array", floor, floor);
    row(
        "floor, each for the result of the last",
        chained_floor,
        chained_floor,
    );

    row("hit", worker(&unit, 1, PAGES, false), floor);
    row(
        "hit, among 4,096 pages",
        worker(&unit, 1, FEW, false),
        floor,
    );
    row(
        "hit, each for the result of the last",
        worker(&unit, 1, PAGES, true),
        chained_floor,
    );
    row(
        "walk of 4 levels, missing",
        worker(&unit, FUNCTIONS, PAGES, false),
        floor,
    );

    let mut tree = BTreeMap::new();
    let mut iotlb = Iotlb::new();
    for page in 0..PAGES {
        let (from, to) = (BASE + (page << 12), output(page));
        tree.insert(from, (from + 0xfff, to, Rights::READ_WRITE));
        let (from, to) = (GuestAddress(from), GuestAddress(to));
        iotlb.set_mapping(from, to, 4096, vm_memory::Permissions::ReadWrite)?;
    }
    let by_tree = best(false, |random| {
        let at = BASE + ((random % PAGES) << 12);
        let found = tree.range(..=at).next_back();
        let found = found.filter(|(_, (last, _, rights))| at + 63 <= *last && rights.can_read());
        found.map_or(0, |(first, (_, to, _))| to + (at - first))
    });
    row("BTreeMap, searched by range", by_tree, floor);
    let by_iotlb = best(false, |random| {
        let at = GuestAddress(BASE + ((random % PAGES) << 12));
        let found = Iotlb::lookup(&iotlb, at, 64, vm_memory::Permissions::Read);
        let found = found.ok().and_then(|mut found| found.next());
        found.map_or(0, |found| found.base.0)
    });
    row("vm-memory's Iotlb", by_iotlb, floor);

    println!("two workers hit {:.2} times as much as one", two(&unit, 1));
    println!(
        "two workers walk {:.2} times as much as one",
        two(&unit, FUNCTIONS)
    );
    Ok(())
}
