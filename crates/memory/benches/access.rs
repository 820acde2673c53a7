//! What an access costs: scattered pages of a shared file against memcpy of
//! the same pages in the same run, and small ones by process memory; a guest's
//! memory by guest-physical address.

use std::fs::File;
use std::hint::black_box;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use iogate_dma::{Gpa, Memory, Rights, Span, Width};
use iogate_memory::{Backing, ClientMemory, GuestMemory, Process};

const PAGE: usize = 4096;
const FILE: usize = 64 << 20;
const BATCH: usize = 16;

/// Pages that no prefetcher guesses: 16 of the file, in no order.
fn scattered() -> [usize; BATCH] {
    std::array::from_fn(|index| (index * 7919 + 13) * 40_503 % (FILE / PAGE) * PAGE)
}

fn shared_file(criterion: &mut Criterion) {
    let memory = ClientMemory::new().unwrap();
    let fd = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(FILE as u64).unwrap();
    let range = memory.map_file(file.as_fd(), 0, FILE as u64, true).unwrap();
    memory.write(range.address(), &vec![1; FILE]).unwrap();
    // The same pages as memory of our own, for memcpy.
    // SAFETY: a new mapping that lives as long as the process.
    let own = unsafe {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_raw_fd();
        let at = libc::mmap(std::ptr::null_mut(), FILE, rights, libc::MAP_SHARED, fd, 0);
        assert_ne!(at, libc::MAP_FAILED);
        at.cast::<u8>()
    };
    let pages = scattered();
    let mut buffer = vec![0; BATCH * PAGE];
    let mut by_memory = |write: bool| {
        for (page, bytes) in pages.iter().zip(buffer.chunks_exact_mut(PAGE)) {
            let address = range.address() + *page as u64;
            if write {
                memory.write(address, black_box(bytes)).unwrap();
            } else {
                memory.read(address, black_box(bytes)).unwrap();
            }
        }
    };
    let mut copied = vec![0; BATCH * PAGE];
    let mut by_memcpy = |write: bool| {
        for (page, bytes) in pages.iter().zip(copied.chunks_exact_mut(PAGE)) {
            let bytes = black_box(bytes);
            // SAFETY: whole pages of the mapping and of the buffer.
            unsafe {
                let at = black_box(own.add(*page));
                if write {
                    at.copy_from_nonoverlapping(bytes.as_ptr(), PAGE);
                } else {
                    at.copy_to_nonoverlapping(bytes.as_mut_ptr(), PAGE);
                }
            }
        }
    };
    let mut group = criterion.benchmark_group("16 scattered pages of a shared file");
    group.throughput(Throughput::Bytes((BATCH * PAGE) as u64));
    group.bench_function("read", |bench| bench.iter(|| by_memory(false)));
    group.bench_function("memcpy out", |bench| bench.iter(|| by_memcpy(false)));
    group.bench_function("write", |bench| bench.iter(|| by_memory(true)));
    group.bench_function("memcpy in", |bench| bench.iter(|| by_memcpy(true)));
    group.finish();
    for write in [false, true] {
        let ratio = ratio(|| by_memory(write), || by_memcpy(write));
        let name = if write { "write" } else { "read" };
        println!("{name} has {:.0} % of the speed of memcpy", 100.0 * ratio);
    }

    let mut group = criterion.benchmark_group("small accesses to a shared file");
    let mut small = [0; 64];
    group.bench_function("read 16 bytes", |bench| {
        bench.iter(|| memory.read(black_box(range.address()), black_box(&mut small[..16])));
    });
    group.bench_function("read 64 bytes", |bench| {
        bench.iter(|| memory.read(black_box(range.address()), black_box(&mut small)));
    });
    group.bench_function("load 8 bytes", |bench| {
        bench.iter(|| memory.load(black_box(range.address()), Width::Qword));
    });
    group.bench_function("range of a file that is mapped", |bench| {
        bench.iter(|| memory.map_file(file.as_fd(), 0, 4096, true));
    });
    let us = Process::open(std::process::id().cast_signed()).unwrap();
    let vma = us.vma_at(own as u64).unwrap();
    group.bench_function("the same without its descriptor", |bench| {
        bench.iter(|| memory.find_file(&vma, own as u64, 4096, true).unwrap());
    });
    group.finish();
}

/// How often `ours` is done in the time of `theirs`, each at its best of many
/// rounds that alternate.
fn ratio(mut ours: impl FnMut(), mut theirs: impl FnMut()) -> f64 {
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..100).for_each(|_| work());
        start.elapsed()
    };
    let (mut our_best, mut their_best) = (Duration::MAX, Duration::MAX);
    for _ in 0..500 {
        our_best = our_best.min(time(&mut ours));
        their_best = their_best.min(time(&mut theirs));
    }
    their_best.as_secs_f64() / our_best.as_secs_f64()
}

fn process_memory(criterion: &mut Criterion) {
    let child = Ended(Command::new("sleep").arg("600").spawn().unwrap());
    std::thread::sleep(Duration::from_millis(100));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.0.id())).unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let end = stack.split(['-', ' ']).nth(1).unwrap();
    let va = u64::from_str_radix(end, 16).unwrap() - PAGE as u64;
    let memory = ClientMemory::new().unwrap();
    let process = Arc::new(Process::open(child.0.id().cast_signed()).unwrap());
    let slot = memory.add_process(Arc::clone(&process)).unwrap();
    let address = slot.address(va).unwrap();
    let mut bytes = [0; PAGE];
    let mut group = criterion.benchmark_group("memory of a process");
    for length in [64, PAGE] {
        group.bench_function(format!("DMA read {length} bytes"), |bench| {
            bench.iter(|| memory.read(address, &mut bytes[..length]).unwrap());
        });
        group.bench_function(format!("DMA write {length} bytes"), |bench| {
            bench.iter(|| memory.write(address, &bytes[..length]).unwrap());
        });
    }
    group.bench_function("argument write 64 bytes, checked", |bench| {
        bench.iter(|| process.write(va, &bytes[..64]).unwrap());
    });
    group.bench_function("mapping at an address", |bench| {
        bench.iter(|| process.vma_at(va).unwrap());
    });
    group.finish();
}

fn guest_memory(criterion: &mut Criterion) {
    let memory = Arc::new(GuestMemory::new().unwrap());
    let fd = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, FILE as u64).unwrap();
    let span = Span::with_length(Gpa(0), FILE as u64).unwrap();
    let backing = Backing::File {
        file: Arc::new(fd),
        offset: 0,
    };
    let _ram = memory.map(span, Rights::READ_WRITE, backing).unwrap();
    memory.write(0, &vec![1; FILE]).unwrap();
    let memory: Arc<dyn Memory> = memory;
    let mut group = criterion.benchmark_group("guest memory");
    let mut bytes = [0; PAGE];
    group.bench_function("load 8 bytes", |bench| {
        bench.iter(|| memory.load(black_box(0x1_2340), Width::Qword));
    });
    group.bench_function("read 64 bytes", |bench| {
        bench.iter(|| memory.read(black_box(0x1_2340), black_box(&mut bytes[..64])));
    });
    group.bench_function("read 4096 bytes", |bench| {
        bench.iter(|| memory.read(black_box(0x1_2000), black_box(&mut bytes)));
    });
    group.bench_function("load where there is nothing", |bench| {
        bench.iter(|| memory.load(black_box(1 << 32), Width::Qword));
    });
    group.finish();
    let load = || black_box(memory.load(black_box(0x1_2340), Width::Qword)).is_ok();
    println!("a load of guest memory: {:.2} ns at best", best(load));
    let own = AtomicU64::new(1);
    let load = || black_box(black_box(&own).load(Ordering::Acquire)) == 0;
    println!("a load of our own: {:.2} ns at best", best(load));
}

/// Nanoseconds of `work` in the best of many batches.
fn best(work: impl Fn() -> bool) -> f64 {
    const BATCH: u32 = 1000;
    let times = (0..2000).map(|_| {
        let start = Instant::now();
        for _ in 0..BATCH {
            black_box(work());
        }
        start.elapsed()
    });
    times.min().unwrap_or_default().as_secs_f64() * 1e9 / f64::from(BATCH)
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    shared_file(&mut criterion);
    process_memory(&mut criterion);
    guest_memory(&mut criterion);
    criterion.final_summary();
}
