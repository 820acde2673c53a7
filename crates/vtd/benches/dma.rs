//! DMA of sixteen scattered pages through a unit against memcpy of the same
//! pages in the same run.

use std::fs::File;
use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iogate_dma::{Gpa, Iova, Memory, RequesterId, Rights, Source, Span};
use iogate_memory::{Backing, GuestMemory};
use iogate_paging::vtd::{Levels, SecondStage};
use iogate_paging::{Builder, Permissions};
use iogate_vtd::Vtd;
use rustix::mm::{MapFlags, ProtFlags};

const PAGE: usize = 4096;
const RAM: usize = 128 << 20;
const PAGES: usize = 16;
const RID: RequesterId = RequesterId(0x28);
const IOVA: u64 = 0x1_0000_0000;

/// Pages that no prefetcher guesses: 16 of the upper half of RAM.
fn scattered() -> [usize; PAGES] {
    let half = RAM / 2;
    std::array::from_fn(|index| half + (index * 7919 + 13) * 40_503 % (half / PAGE) * PAGE)
}

/// A legacy-mode unit whose only domain maps the pages one behind the other.
fn unit(ram: &Arc<GuestMemory>) -> Arc<Vtd> {
    let (root, contexts) = (0x1000_u64, 0x2000_u64);
    let mut free = 0x10_0000_u64;
    let page = || {
        free += 0x1000;
        Some(free)
    };
    let mut tables = Builder::new(SecondStage::new(Levels::Four), &**ram, page).unwrap();
    let all = Permissions::new(true, true, false);
    for (iova, output) in (IOVA..).step_by(PAGE).zip(scattered()) {
        let (output, length) = (output as u64, PAGE as u64);
        tables.map(iova, output, length, all, 12).unwrap();
    }
    ram.write(root, &(contexts | 1).to_le_bytes()).unwrap();
    let entry = contexts + u64::from(RID.0) * 16;
    ram.write(entry, &(tables.root() | 1).to_le_bytes())
        .unwrap();
    ram.write(entry + 8, &(5_u64 << 8 | 2).to_le_bytes())
        .unwrap();
    let unit = Vtd::builder(Arc::clone(ram) as _).scope([RID]).build();
    let unit = unit.unwrap();
    unit.write(0x20, &root.to_le_bytes());
    unit.write(0x18, &(1_u32 << 30).to_le_bytes());
    unit.write(0x18, &(1_u32 << 31).to_le_bytes());
    unit
}

fn main() {
    let fd = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(RAM as u64).unwrap();
    let ram = Arc::new(GuestMemory::new().unwrap());
    let span = Span::with_length(Gpa(0), RAM as u64).unwrap();
    let backing = Backing::File {
        file: Arc::new(file.as_fd().try_clone_to_owned().unwrap()),
        offset: 0,
    };
    let _range = ram.map(span, Rights::READ_WRITE, backing).unwrap();
    ram.write(0, &vec![0; RAM]).unwrap();
    // The same pages as memory of our own, for memcpy.
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping that lives as long as the process.
    let own = unsafe {
        let at = std::ptr::null_mut();
        rustix::mm::mmap(at, RAM, rights, MapFlags::SHARED, &file, 0).unwrap()
    };
    let own = own.cast::<u8>();
    let unit = unit(&ram);
    let mut port = unit.port(Source::from(RID));
    let mut buffer = vec![0; PAGES * PAGE];
    let mut copied = vec![0; PAGES * PAGE];
    let pages = scattered();
    for write in [false, true] {
        let by_port = || {
            let bytes = black_box(&mut buffer[..]);
            let done = match write {
                false => port.read(Iova(IOVA), bytes),
                true => port.write(Iova(IOVA), bytes),
            };
            done.unwrap();
        };
        let by_memcpy = || {
            for (page, bytes) in pages.iter().zip(copied.chunks_exact_mut(PAGE)) {
                let bytes = black_box(bytes);
                // SAFETY: whole pages of the mapping and of the buffer.
                unsafe {
                    let at = black_box(own.add(*page));
                    match write {
                        false => at.copy_to_nonoverlapping(bytes.as_mut_ptr(), PAGE),
                        true => at.copy_from_nonoverlapping(bytes.as_ptr(), PAGE),
                    }
                }
            }
        };
        let name = if write { "write" } else { "read" };
        let ratio = ratio(by_port, by_memcpy);
        println!(
            "DMA {name} of 16 scattered pages has {ratio:.2} of the speed of memcpy (aim 0.85)"
        );
    }
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
