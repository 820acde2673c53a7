//! Guest memory: ranges of files and of others, over each other, while they
//! come and go.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use iogate_dma::{Gpa, Memory, MemoryError, Rights, Span, Width};
use iogate_memory::{Backing, GuestMemory, GuestRange, MapError, Remote};
use proptest::prelude::*;
use rustix::fs::MemfdFlags;

const PAGE: u64 = 4096;

/// A file of `pages` pages, each full of words that name the file and the page.
fn file(name: u64, pages: u64) -> Arc<OwnedFd> {
    let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    for page in 0..pages {
        let bytes = word(name, page).to_le_bytes().repeat(512);
        rustix::io::pwrite(&file, &bytes, page * PAGE).unwrap();
    }
    Arc::new(file)
}

fn word(name: u64, page: u64) -> u64 {
    name << 32 | page
}

fn pages(first: u64, count: u64) -> Span<Gpa> {
    Span::with_length(Gpa(first * PAGE), count * PAGE).unwrap()
}

fn of(file: &Arc<OwnedFd>, page: u64) -> Backing {
    Backing::File {
        file: Arc::clone(file),
        offset: page * PAGE,
    }
}

fn guest() -> Arc<GuestMemory> {
    Arc::new(GuestMemory::new().unwrap())
}

fn absent(address: u64) -> MemoryError {
    MemoryError::Absent { address }
}

const RW: Rights = Rights::READ_WRITE;

/// Memory behind a range without a file.
struct Held {
    base: u64,
    bytes: Mutex<Vec<u8>>,
}

impl Held {
    fn new(first: u64, count: u64) -> Arc<Self> {
        let bytes = vec![0x5a; usize::try_from(count * PAGE).unwrap()];
        Arc::new(Self {
            base: first * PAGE,
            bytes: Mutex::new(bytes),
        })
    }
}

impl Remote for Held {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let at = usize::try_from(at.0 - self.base).unwrap();
        into.copy_from_slice(&self.bytes.lock().unwrap()[at..at + into.len()]);
        Ok(())
    }
    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let at = usize::try_from(at.0 - self.base).unwrap();
        self.bytes.lock().unwrap()[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
}

#[test]
fn an_access_reaches_the_file_at_its_address_and_nothing_beside_it() {
    let (memory, ram) = (guest(), file(1, 8));
    let _low = memory.map(pages(16, 4), RW, of(&ram, 2)).unwrap();
    assert_eq!(memory.load(18 * PAGE + 8, Width::Qword), Ok(word(1, 4)));
    memory.write(17 * PAGE - 2, &[1, 2, 3, 4]).unwrap();
    let mut four = [0; 4];
    rustix::io::pread(&ram, &mut four, 3 * PAGE - 2).unwrap();
    assert_eq!(four, [1, 2, 3, 4]);
    let mut over = [0; 16];
    assert_eq!(
        memory.read(20 * PAGE - 8, &mut over),
        Err(absent(20 * PAGE))
    );
    assert_eq!(memory.load(15 * PAGE, Width::Dword), Err(absent(15 * PAGE)));
    assert_eq!(
        memory.store(u64::MAX - 7, Width::Qword, 1),
        Err(absent(u64::MAX - 7))
    );
    assert!(memory.read(u64::MAX - 7, &mut over).is_err());
    let misaligned = memory.load(16 * PAGE + 1, Width::Word);
    assert!(matches!(misaligned, Err(MemoryError::Misaligned { .. })));
    let swapped = memory.compare_exchange(16 * PAGE, Width::Qword, word(1, 2), 7);
    assert_eq!(swapped, Ok(word(1, 2)));
    assert_eq!(memory.load(16 * PAGE, Width::Qword), Ok(7));
}

#[test]
fn one_access_may_span_ranges_of_every_kind() {
    let (memory, ram) = (guest(), file(1, 8));
    let held = Held::new(5, 1);
    let ranges = [
        memory.map(pages(4, 1), RW, of(&ram, 0)).unwrap(),
        memory
            .map(pages(5, 1), RW, Backing::Remote(held.clone()))
            .unwrap(),
        memory.map(pages(6, 1), RW, of(&ram, 7)).unwrap(),
    ];
    let from: Vec<u8> = (0..2 * PAGE)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    memory.write(4 * PAGE + 2048, &from).unwrap();
    let mut into = vec![0; from.len()];
    memory.read(4 * PAGE + 2048, &mut into).unwrap();
    assert_eq!(into, from);
    assert_eq!(held.bytes.lock().unwrap()[..], from[2048..2048 + 4096]);
    assert_eq!(
        memory.load(5 * PAGE, Width::Byte),
        Ok(u64::from(from[2048]))
    );
    memory.store(5 * PAGE, Width::Dword, 0x0403_0201).unwrap();
    assert_eq!(
        memory.load(5 * PAGE, Width::Qword).unwrap() & 0xffff_ffff,
        0x0403_0201
    );
    let atomic = memory.compare_exchange(5 * PAGE, Width::Dword, 1, 2);
    assert_eq!(atomic, Err(MemoryError::NotAtomic { address: 5 * PAGE }));
    drop(ranges);
    assert_eq!(memory.read(4 * PAGE, &mut into), Err(absent(4 * PAGE)));
}

#[test]
fn a_range_for_reading_takes_no_writes() {
    let (memory, ram) = (guest(), file(1, 1));
    let _rom = memory
        .map(pages(240, 1), Rights::READ, of(&ram, 0))
        .unwrap();
    assert_eq!(memory.load(240 * PAGE, Width::Qword), Ok(word(1, 0)));
    assert_eq!(memory.write(240 * PAGE, &[1]), Err(absent(240 * PAGE)));
    assert_eq!(
        memory.store(240 * PAGE, Width::Dword, 1),
        Err(absent(240 * PAGE))
    );
}

#[test]
fn memory_above_the_window_is_reached_too() {
    let (memory, ram) = (guest(), file(1, 4));
    let high = 1 << 36;
    let _high = memory.map(pages(high, 2), RW, of(&ram, 1)).unwrap();
    let at = high * PAGE;
    assert_eq!(memory.load(at + PAGE, Width::Qword), Ok(word(1, 2)));
    memory.store(at, Width::Qword, 9).unwrap();
    assert_eq!(memory.compare_exchange(at, Width::Qword, 9, 10), Ok(9));
    let mut both = [0; 16];
    memory.read(at + PAGE - 8, &mut both).unwrap();
    assert_eq!(both[8..], word(1, 2).to_le_bytes());
    assert_eq!(
        memory.read(at + 2 * PAGE - 8, &mut both),
        Err(absent(at + 2 * PAGE))
    );
    rustix::fs::ftruncate(&*ram, 0).unwrap();
    let gone = Err(MemoryError::Gone { address: at + 8 });
    assert_eq!(memory.load(at + 8, Width::Qword), gone);
}

#[test]
fn memory_whose_file_shrinks_is_gone_and_nothing_dies() {
    let (memory, ram) = (guest(), file(1, 4));
    let _ram = memory.map(pages(0, 4), RW, of(&ram, 0)).unwrap();
    rustix::fs::ftruncate(&*ram, PAGE).unwrap();
    assert_eq!(memory.load(0, Width::Qword), Ok(word(1, 0)));
    let gone = MemoryError::Gone { address: PAGE };
    assert_eq!(memory.load(PAGE, Width::Qword), Err(gone));
    assert_eq!(memory.write(PAGE - 4, &[0; 8]), Err(gone));
}

#[test]
fn equal_ranges_are_one_until_the_last_is_dropped() {
    let (memory, ram) = (guest(), file(1, 4));
    let one = memory.map(pages(0, 4), RW, of(&ram, 0)).unwrap();
    // Another socket: its descriptor is another one of the same file.
    let again = Arc::new(ram.as_fd().try_clone_to_owned().unwrap());
    let two = memory.map(pages(0, 4), RW, of(&again, 0)).unwrap();
    drop(one);
    assert_eq!(memory.load(0, Width::Qword), Ok(word(1, 0)));
    drop(two);
    assert_eq!(memory.load(0, Width::Qword), Err(absent(0)));
}

#[test]
fn who_hands_memory_on_is_told_of_each_change_once() {
    #[derive(Default)]
    struct Told(Mutex<Vec<Span<Gpa>>>);
    impl iogate_memory::RangeWatcher for Told {
        fn changed(&self, span: Span<Gpa>) {
            self.0.lock().unwrap().push(span);
        }
    }
    let (memory, ram, told) = (guest(), file(1, 4), Arc::new(Told::default()));
    let watcher: Arc<dyn iogate_memory::RangeWatcher> = told.clone();
    memory.watch(Arc::downgrade(&watcher));
    let one = memory.map(pages(0, 4), RW, of(&ram, 0)).unwrap();
    let two = memory.map(pages(0, 4), RW, of(&ram, 0)).unwrap();
    drop(one);
    assert_eq!(told.0.lock().unwrap().len(), 1);
    drop(two);
    assert_eq!(*told.0.lock().unwrap(), [pages(0, 4); 2]);
    drop((watcher, told));
    let _range = memory.map(pages(0, 1), RW, of(&ram, 0)).unwrap();
}

#[test]
fn an_older_range_shows_again_when_the_newer_one_goes() {
    let (memory, ram, rom) = (guest(), file(1, 8), file(2, 2));
    let _ram = memory.map(pages(0, 8), RW, of(&ram, 0)).unwrap();
    let shadow = memory.map(pages(3, 2), Rights::READ, of(&rom, 0)).unwrap();
    let at = |page: u64| memory.load(page * PAGE, Width::Qword).unwrap();
    assert_eq!(
        [at(2), at(3), at(4), at(5)],
        [word(1, 2), word(2, 0), word(2, 1), word(1, 5)]
    );
    drop(shadow);
    assert_eq!(
        [at(2), at(3), at(4), at(5)],
        [2, 3, 4, 5].map(|page| word(1, page))
    );
}

#[test]
fn what_cannot_be_mapped_is_refused_and_changes_nothing() {
    let (memory, ram) = (guest(), file(1, 2));
    let odd = Span::with_length(Gpa(0), 100).unwrap();
    let refused = memory.map(odd, RW, of(&ram, 0)).unwrap_err();
    assert!(matches!(refused, MapError::Malformed(_)));
    let refused = memory
        .map(pages(0, 1), Rights::NONE, of(&ram, 0))
        .unwrap_err();
    assert!(matches!(refused, MapError::Malformed(_)));
    let late = memory.map(pages(0, 3), RW, of(&ram, 0)).unwrap_err();
    assert!(late.to_string().contains("ends before"), "{late}");
    let (pipe, _other) = std::io::pipe().unwrap();
    let pipe = OwnedFd::from(pipe);
    let pipe = memory
        .map(pages(0, 1), RW, of(&Arc::new(pipe), 0))
        .unwrap_err();
    assert!(pipe.to_string().contains("no regular file"), "{pipe}");
    let read_only = std::fs::File::open("/proc/self/exe").unwrap();
    let read_only = Arc::new(OwnedFd::from(read_only));
    let refused = memory.map(pages(0, 1), RW, of(&read_only, 0)).unwrap_err();
    assert!(matches!(refused, MapError::Refused { .. }), "{refused}");
    assert_eq!(memory.load(0, Width::Byte), Err(absent(0)));
    assert!(memory.backed_from(Gpa(0)).is_none());
}

#[test]
fn pieces_of_a_file_of_huge_pages_are_reached_though_they_begin_anywhere() {
    let memory = guest();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let huge = Arc::new(rustix::fs::memfd_create("huge", flags).unwrap());
    rustix::fs::ftruncate(&*huge, 8 << 20).unwrap();
    let low = memory.map(pages(0, 160), RW, of(&huge, 0)).unwrap();
    let _high = memory.map(pages(256, 1024), RW, of(&huge, 256)).unwrap();
    // Without huge pages in the machine's pool the memory cannot be had, but
    // it is not absent.
    for at in [0, 159 * PAGE, 256 * PAGE, 512 * PAGE, 1279 * PAGE] {
        let loaded = memory.load(at, Width::Qword);
        let there = [Ok(0), Err(MemoryError::Gone { address: at })];
        assert!(there.contains(&loaded), "{at:#x}: {loaded:?}");
    }
    for at in [160 * PAGE, 255 * PAGE, 1280 * PAGE] {
        assert_eq!(memory.load(at, Width::Qword), Err(absent(at)));
    }
    // A newer range in the middle of huge pages.
    let rom = file(2, 1);
    let over = memory.map(pages(600, 1), RW, of(&rom, 0)).unwrap();
    assert_eq!(memory.load(600 * PAGE, Width::Qword), Ok(word(2, 0)));
    assert_ne!(
        memory.load(601 * PAGE, Width::Qword),
        Err(absent(601 * PAGE))
    );
    drop((over, low));
    assert_ne!(memory.load(600 * PAGE, Width::Qword), Ok(word(2, 0)));
    assert_eq!(memory.load(0, Width::Qword), Err(absent(0)));
}

#[test]
fn accesses_that_meet_changes_end_with_old_bytes_new_bytes_or_an_error() {
    let (memory, one, two) = (guest(), file(1, 16), file(2, 16));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut page = vec![0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    for at in 0..16 {
                        match memory.load(at * PAGE, Width::Qword) {
                            Ok(found) => assert!([word(1, at), word(2, at)].contains(&found)),
                            Err(error) => assert_eq!(error, absent(at * PAGE)),
                        }
                        // It may stop anywhere, and it never hangs or dies.
                        let _ = memory.read(at * PAGE, &mut page);
                    }
                }
            });
        }
        for round in 0..2000 {
            let file = if round % 2 == 0 { &one } else { &two };
            let _range = memory
                .map(pages(round % 5, 11), RW, of(file, round % 5))
                .unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(memory.changes(), 4000);
}

/// What is added or dropped.
#[derive(Clone, Copy, Debug)]
enum Step {
    Map {
        first: u64,
        count: u64,
        file: usize,
        page: u64,
    },
    Drop(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let map = (0_u64..24, 1_u64..12, 0_usize..3, 0_u64..4);
    let map = map.prop_map(|(first, count, file, page)| Step::Map {
        first,
        count,
        file,
        page,
    });
    let step = prop_oneof![3 => map, 2 => (0_usize..16).prop_map(Step::Drop)];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The naive model is the list of what is mapped: the last that covers a
    /// page counts; an equal range keeps its place in the list.
    #[test]
    fn what_is_shown_is_what_was_added_last_and_is_still_there(steps in steps()) {
        let memory = guest();
        let files = [file(1, 16), file(2, 16), file(3, 16)];
        let mut model: Vec<((u64, u64, usize, u64), usize)> = Vec::new();
        let mut held: Vec<((u64, u64, usize, u64), GuestRange)> = Vec::new();
        for step in steps {
            match step {
                Step::Map { first, count, file, page } => {
                    let what = (first, count, file, page);
                    let range = memory.map(pages(first, count), RW, of(&files[file], page));
                    held.push((what, range.unwrap()));
                    match model.iter_mut().find(|(known, _)| *known == what) {
                        Some((_, users)) => *users += 1,
                        None => model.push((what, 1)),
                    }
                }
                Step::Drop(index) if index < held.len() => {
                    let (what, range) = held.swap_remove(index);
                    drop(range);
                    model.iter_mut().find(|(known, _)| *known == what).unwrap().1 -= 1;
                    model.retain(|(_, users)| *users > 0);
                }
                Step::Drop(_) => {}
            }
            let mut backed = Vec::new();
            let mut from = Gpa(0);
            while let Some(piece) = memory.backed_from(from) {
                let first = piece.span.first().0 / PAGE;
                let count = piece.span.length().unwrap() / PAGE;
                for page in 0..count {
                    let mut word = [0; 8];
                    rustix::io::pread(&*piece.file, &mut word, piece.offset + page * PAGE).unwrap();
                    backed.push((first + page, u64::from_le_bytes(word)));
                }
                from = Gpa(piece.span.last().0 + 1);
            }
            let mut expected = Vec::new();
            for at in 0..40 {
                let top = model.iter().rev().find(|((first, count, ..), _)| {
                    (*first..first + count).contains(&at)
                });
                let shown = memory.load(at * PAGE, Width::Qword);
                match top {
                    Some(((first, _, file, page), _)) => {
                        let word = word(*file as u64 + 1, page + at - first);
                        prop_assert_eq!(shown, Ok(word));
                        expected.push((at, word));
                    }
                    None => prop_assert_eq!(shown, Err(absent(at * PAGE))),
                }
            }
            prop_assert_eq!(backed, expected);
        }
    }
}
