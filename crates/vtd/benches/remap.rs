//! `cargo bench -p iogate-vtd --bench remap`: interrupt messages through a
//! unit, one entry again and again and random ones of 65,536, and beside it,
//! in the same run, what nobody can do without: a load of 16 bytes and a
//! comparison.

use std::error::Error;
use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use iogate_dma::{Gpa, Memory, Message, RequesterId, Rights, Span, Width};
use iogate_memory::{Backing, GuestMemory, GuestRange};
use iogate_vtd::{Capabilities, Remapped, Vtd};

const TABLE: u64 = 0x10_0000;
const ENTRIES: u64 = 65_536;
const BYTES: u64 = TABLE + ENTRIES * 16;
const SOURCE: RequesterId = RequesterId(0x0128);

/// Messages of one round, and how many rounds of each are run; the best counts.
const ROUND: u32 = 1 << 14;
const ROUNDS: u32 = 1000;

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

fn entry(index: u64) -> [u64; 2] {
    let vector = 0x20 + index % 0xd0;
    let low = 1 | vector << 16 | (index & 0xff) << 40;
    [low, 1 << 18 | u64::from(SOURCE.0)]
}

/// A unit whose guest remaps interrupts by a table of 65,536 entries.
fn unit(ram: Arc<GuestMemory>) -> Result<Arc<Vtd>, Box<dyn Error>> {
    for index in 0..ENTRIES {
        let [low, high] = entry(index);
        ram.store(TABLE + index * 16, Width::Qword, low)?;
        ram.store(TABLE + index * 16 + 8, Width::Qword, high)?;
    }
    let unit = Vtd::builder(ram)
        .capabilities(Capabilities::default().interrupt_remapping())
        .scope([SOURCE])
        .deliver(|message| {
            black_box(message);
        })
        .build()?;
    // IRTA_REG; then GCMD_REG: SIRTP, IRE.
    unit.write(0xb8, &(TABLE | 15).to_le_bytes());
    unit.write(0x18, &(1_u32 << 24).to_le_bytes());
    unit.write(0x18, &(1_u32 << 25).to_le_bytes());
    for index in 0..ENTRIES {
        match unit.remap(SOURCE, message(index)) {
            Ok(Remapped::Message(to)) if to != message(index) => {}
            other => return Err(format!("entry {index}: {other:?}").into()),
        }
    }
    Ok(unit)
}

fn message(index: u64) -> Message {
    Message {
        address: 0xfee0_0010 | (index & 0x7fff) << 5 | (index >> 15) << 2,
        data: 0,
    }
}

/// Nanoseconds of one call of `work`, in the best round.
fn best(mut work: impl FnMut(u64)) -> f64 {
    (0..ROUNDS)
        .map(|_| {
            let mut index = 1_u64;
            let since = Instant::now();
            for _ in 0..ROUND {
                index = index.wrapping_mul(0x5_1235).wrapping_add(0x3039) % ENTRIES;
                work(index);
            }
            since.elapsed().as_secs_f64() * 1e9 / f64::from(ROUND)
        })
        .fold(f64::INFINITY, f64::min)
}

/// The same of as many threads as `threads` at once, each by itself.
fn best_of(threads: usize, work: impl Fn(u64) + Sync) -> f64 {
    let slowest = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(|| best(&work))).collect();
        all.into_iter()
            .map(|thread| thread.join().unwrap_or(f64::INFINITY))
            .fold(0.0, f64::max)
    });
    slowest / f64::from(u32::try_from(threads).unwrap_or(1))
}

fn row(name: &str, nanoseconds: f64, floor: f64) {
    let ratio = nanoseconds / floor;
    println!("{name:<44} {nanoseconds:6.2} ns  {ratio:5.2} x the floor");
}

fn main() -> Result<(), Box<dyn Error>> {
    let (ram, _range) = guest_memory()?;
    let unit = unit(ram)?;
    let bare: Vec<[u64; 2]> = (0..ENTRIES).map(entry).collect();
    let load = |index: u64| {
        let [low, high] = bare[usize::try_from(index).unwrap_or(0)];
        if black_box(high) & 0xffff == u64::from(SOURCE.0) {
            black_box(low);
        }
    };
    // As who sends it would: the parts are used, not the whole stored.
    let remap = |index| {
        if let Ok(Remapped::Message(to)) = unit.remap(SOURCE, message(black_box(index))) {
            black_box(to.address);
            black_box(to.data);
        }
    };
    let send = |index| unit.send_msi(SOURCE, message(black_box(index)));
    let hot = best(|_| load(black_box(0)));
    let random = best(load);
    row("floor: 16 bytes loaded, compared, hot", hot, hot);
    row("floor: the same, random of 65,536", random, random);
    row("remap, hot", best(|_| remap(black_box(0))), hot);
    row("remap, random of 65,536", best(remap), random);
    row("send_msi, random of 65,536", best(send), random);
    let one = best_of(1, remap);
    let two = best_of(2, remap);
    println!("two threads remap {:.2} times as much as one", one / two);
    Ok(())
}
