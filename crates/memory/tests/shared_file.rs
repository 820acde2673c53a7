//! Shared files of real processes: mapped once, growing, shrinking, unmapped.

mod common;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Child, PAGE, Pages, address_space, memfd, punch};
use iogate_dma::{Memory, MemoryError, Width};
use iogate_memory::{ClientMemory, FileRange, Process};

const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

fn whole(memory: &ClientMemory, file: &File) -> FileRange {
    let length = file.metadata().unwrap().len();
    memory.map_file(file.as_fd(), 0, length, true).unwrap()
}

/// How many of our own mappings have `name` in their line.
fn mappings_of(name: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(name)).count()
}

#[test]
fn both_sides_see_what_the_other_writes() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("both", 2 * PAGE);
    let pages = Pages::of(&file, 2, 0);
    let range = whole(&memory, &file);
    let mut child = Child::fork(|turns| {
        pages.set(5, 1);
        turns.pause();
        if pages.get(PAGE + 6) != 2 {
            return 1;
        }
        0
    });
    let mut byte = [0];
    memory.read(range.address() + 5, &mut byte).unwrap();
    assert_eq!(byte, [1]);
    memory
        .write(range.address() + PAGE as u64 + 6, &[2])
        .unwrap();
    child.next();
    assert_eq!(child.reap(), 0);
}

#[test]
fn memory_stays_when_its_client_has_unmapped_it_and_gone() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("stays", PAGE);
    let range = whole(&memory, &file);
    let mut child = Child::fork(|turns| {
        let pages = Pages::of(&file, 1, 0);
        pages.set(0, 7);
        pages.unmap(0, 1);
        turns.pause();
        0
    });
    drop(file);
    child.next();
    child.reap();
    let mut byte = [0];
    memory.read(range.address(), &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn a_shrunk_file_is_gone_from_the_first_missing_page_on_and_back_when_it_grows() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("shrinks", 4 * PAGE);
    let range = whole(&memory, &file);
    memory.write(range.address(), &[9; 4 * PAGE]).unwrap();
    file.set_len(2 * PAGE as u64).unwrap();
    let page = PAGE as u64;
    let gone = MemoryError::Gone {
        address: range.address() + 2 * page,
    };
    let mut bytes = [0; 2 * PAGE];
    for before in [0, 1, 3, 7, 8, 9, 100] {
        let address = range.address() + 2 * page - before;
        memory.write(range.address(), &[9; 2 * PAGE]).unwrap();
        bytes.fill(0);
        assert_eq!(memory.read(address, &mut bytes), Err(gone), "{before}");
        assert!(bytes[..before as usize].iter().all(|byte| *byte == 9));
        assert_eq!(memory.write(address, &[8; PAGE]), Err(gone), "{before}");
    }
    for width in WIDTHS {
        let address = range.address() + 2 * page;
        assert_eq!(memory.load(address, width), Err(gone));
        assert_eq!(memory.store(address, width, 1), Err(gone));
        assert_eq!(memory.compare_exchange(address, width, 0, 1), Err(gone));
    }
    file.set_len(4 * page).unwrap();
    memory.read(range.address() + 2 * page, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 2 * PAGE]);
}

#[test]
fn a_file_that_shrinks_and_grows_all_the_time_harms_nobody() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("flickers", 8 * PAGE);
    let range = whole(&memory, &file);
    let stop = AtomicBool::new(false);
    let (mut done, mut gone) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                file.set_len(PAGE as u64).unwrap();
                file.set_len(8 * PAGE as u64).unwrap();
            }
        });
        let mut bytes = [0; 8 * PAGE];
        for round in 0..200_000 {
            let result = if round % 2 == 0 {
                memory.read(range.address(), &mut bytes)
            } else {
                memory.write(range.address(), &bytes)
            };
            match result {
                Ok(()) => done += 1,
                Err(MemoryError::Gone { address }) if address >= range.address() + PAGE as u64 => {
                    gone += 1;
                }
                Err(other) => panic!("{other}"),
            }
            if done > 50 && gone > 50 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(done > 0 && gone > 0, "{done} done, {gone} gone");
}

#[test]
fn a_punched_hole_reads_as_zeros_and_can_be_written() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("holes", 3 * PAGE);
    let range = whole(&memory, &file);
    memory.write(range.address(), &[5; 3 * PAGE]).unwrap();
    punch(&file, PAGE, PAGE);
    let mut bytes = [1; 3 * PAGE];
    memory.read(range.address(), &mut bytes).unwrap();
    assert_eq!(bytes[..PAGE], [5; PAGE]);
    assert_eq!(bytes[PAGE..2 * PAGE], [0; PAGE]);
    memory
        .store(range.address() + PAGE as u64, Width::Qword, 6)
        .unwrap();
    assert_eq!(Pages::of(&file, 3, 0).get(PAGE), 6);
}

#[test]
fn a_file_that_grows_keeps_its_mapping() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("iogate-grows", PAGE);
    let first = whole(&memory, &file);
    file.set_len(100 * PAGE as u64).unwrap();
    let second = memory
        .map_file(file.as_fd(), 99 * PAGE as u64, PAGE as u64, true)
        .unwrap();
    assert_eq!(second.address(), first.address() + 99 * PAGE as u64);
    memory.write(second.address(), &[3]).unwrap();
    assert_eq!(Pages::of(&file, 100, 0).get(99 * PAGE), 3);
    assert_eq!(mappings_of("iogate-grows"), 2);
}

#[test]
fn a_file_that_outgrows_its_room_is_mapped_again_and_old_ranges_stay() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("iogate-outgrows", PAGE);
    let old = whole(&memory, &file);
    let length = 1 << 30;
    file.set_len(length).unwrap();
    let new = memory.map_file(file.as_fd(), 0, length, true).unwrap();
    assert_ne!(old.address(), new.address());
    memory.write(old.address(), &[1]).unwrap();
    assert_eq!(memory.load(new.address(), Width::Byte), Ok(1));
    memory.write(new.address() + length - 1, &[2]).unwrap();
    assert_eq!(mappings_of("iogate-outgrows"), 2);
    drop(new);
    assert_eq!(memory.load(old.address(), Width::Byte), Ok(1));
    assert_eq!(mappings_of("iogate-outgrows"), 1);
}

#[test]
fn seventy_thousand_ranges_of_a_file_are_one_mapping() {
    let memory = ClientMemory::new().unwrap();
    let count = 70_000;
    let file = memfd("iogate-many", count * PAGE);
    let ranges: Vec<_> = (0..count)
        .map(|index| {
            let offset = (index * PAGE) as u64;
            memory
                .map_file(file.as_fd(), offset, PAGE as u64, true)
                .unwrap()
        })
        .collect();
    assert_eq!(mappings_of("iogate-many"), 1);
    for (index, range) in ranges.iter().enumerate() {
        assert_eq!(range.address(), ranges[0].address() + (index * PAGE) as u64);
        assert_eq!(range.length(), PAGE as u64);
    }
    drop(ranges);
    assert_eq!(mappings_of("iogate-many"), 0);
}

#[test]
fn a_file_that_is_mapped_is_found_by_the_mapping_of_a_process() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("found", 8 * PAGE);
    let pages = Pages::of(&file, 4, 2 * PAGE);
    let private = Pages::private(1);
    let child = Child::fork(|turns| {
        turns.pause();
        0
    });
    let process = Process::open(child.pid).unwrap();
    let vma = process.vma_at(pages.va()).unwrap();
    let page = PAGE as u64;
    let va = pages.va() + page;
    let find = |length| memory.find_file(&vma, va, length, true);
    assert!(find(page).is_none());
    let range = whole(&memory, &file);
    let found = find(page).unwrap();
    assert_eq!(found.address(), range.address() + 3 * page);
    assert_eq!(found.length(), page);
    // The mapping has three pages from there on.
    assert!(find(3 * page).is_some());
    assert!(find(3 * page + 1).is_none());
    assert!(find(0).is_none() && find(u64::MAX).is_none());
    assert!(memory.find_file(&vma, vma.start - 1, 1, true).is_none());
    // The file loses its second half.
    file.set_len(4 * page).unwrap();
    assert!(find(page).is_some());
    assert!(find(page + 1).is_none());
    let other = process.vma_at(private.va()).unwrap();
    assert!(memory.find_file(&other, private.va(), 1, false).is_none());
    // What was found keeps the file.
    drop(range);
    assert_eq!(memory.load(found.address(), Width::Byte), Ok(0));
    drop(found);
    assert!(find(page).is_none());
}

#[test]
fn the_last_range_that_is_dropped_unmaps_the_file() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("last", 2 * PAGE);
    let first = whole(&memory, &file);
    let second = memory.map_file(file.as_fd(), PAGE as u64, 1, true).unwrap();
    let address = second.address();
    drop(first);
    assert_eq!(memory.load(address, Width::Byte), Ok(0));
    drop(second);
    let absent = Err(MemoryError::Absent { address });
    assert_eq!(memory.load(address, Width::Byte), absent);
    assert_eq!(memory.write(address, &[0; 16]).map(|()| 0), absent);
    let again = whole(&memory, &file);
    assert_eq!(memory.load(again.address(), Width::Byte), Ok(0));
}

#[test]
fn ranges_outlive_the_object_that_made_them() {
    let memory = ClientMemory::new().unwrap();
    let range = whole(&memory, &memfd("outlives", PAGE));
    drop(memory);
    drop(range);
}

#[test]
fn a_file_opened_for_reading_cannot_be_written() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("reading", PAGE);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let reading = OpenOptions::new().read(true).open(path).unwrap();
    let refused = memory.map_file(reading.as_fd(), 0, 1, true).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    let range = memory.map_file(reading.as_fd(), 0, 64, false).unwrap();
    let absent = Err(MemoryError::Absent {
        address: range.address(),
    });
    assert_eq!(memory.read(range.address(), &mut [0; 64]), Ok(()));
    assert_eq!(memory.write(range.address(), &[1; 64]), absent);
    assert_eq!(memory.store(range.address(), Width::Dword, 1), absent);
    // The same file wanted writable gets a mapping of its own.
    let writable = whole(&memory, &file);
    memory.write(writable.address(), &[4]).unwrap();
    assert_eq!(memory.load(range.address(), Width::Byte), Ok(4));
    // And whoever only reads shares that one from then on.
    drop(range);
    let range = memory.map_file(reading.as_fd(), 0, 1, false).unwrap();
    assert_eq!(range.address(), writable.address());
}

#[test]
fn ranges_that_are_no_part_of_a_file_are_refused() {
    let memory = ClientMemory::new().unwrap();
    let file = memfd("refused", PAGE);
    let error = |offset, length| {
        let refused = memory.map_file(file.as_fd(), offset, length, true);
        refused.unwrap_err().raw_os_error()
    };
    assert_eq!(error(0, 0), Some(libc::EINVAL));
    assert_eq!(error(u64::MAX, 2), Some(libc::EINVAL));
    assert_eq!(error(1, PAGE as u64), Some(libc::EFAULT));
    assert_eq!(error(PAGE as u64, 1), Some(libc::EFAULT));
    let null = File::open("/dev/null").unwrap();
    let refused = memory.map_file(null.as_fd(), 0, 1, false).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
    let huge = memfd("huge", 0);
    huge.set_len(1 << 60).unwrap();
    let refused = memory.map_file(huge.as_fd(), 0, 1, true).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOMEM));
}

#[test]
fn every_length_and_alignment_is_copied_exactly() {
    let memory = ClientMemory::new().unwrap();
    let range = whole(&memory, &memfd("copies", PAGE));
    let mut model = [0; PAGE];
    let mut value = 0_u8;
    for length in (0..130).chain([255, 1000, 2049]) {
        for start in (0..17).chain([1023, 2047]) {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    value = value.wrapping_mul(5).wrapping_add(1);
                    value
                })
                .collect();
            memory
                .write(range.address() + start as u64, &bytes)
                .unwrap();
            model[start..start + length].copy_from_slice(&bytes);
            let mut seen = vec![0; length];
            memory
                .read(range.address() + start as u64, &mut seen)
                .unwrap();
            assert_eq!(seen, bytes, "{length} bytes at {start}");
        }
    }
    let mut all = [0; PAGE];
    memory.read(range.address(), &mut all).unwrap();
    assert_eq!(all, model);
}

#[test]
fn atomic_accesses_have_their_width_and_their_alignment() {
    let memory = ClientMemory::new().unwrap();
    let range = whole(&memory, &memfd("atomics", PAGE));
    for width in WIDTHS {
        let at = range.address() + 64;
        let mask = u64::MAX >> (64 - 8 * width.bytes());
        let pattern = 0x8877_6655_4433_2211_u64;
        memory.write(at, &[0xff; 16]).unwrap();
        memory.store(at, width, pattern).unwrap();
        assert_eq!(memory.load(at, width), Ok(pattern & mask));
        let mut expected = [0xff; 16];
        let bytes = width.bytes() as usize;
        expected[..bytes].copy_from_slice(&pattern.to_le_bytes()[..bytes]);
        let mut seen = [0; 16];
        memory.read(at, &mut seen).unwrap();
        assert_eq!(seen, expected);
        // Stands there: replaced. Does not: left alone, and told.
        let swap = |current, new| memory.compare_exchange(at, width, current, new);
        assert_eq!(swap(pattern & mask, 3), Ok(pattern & mask));
        assert_eq!(swap(pattern & mask, 4), Ok(3));
        assert_eq!(memory.load(at, width), Ok(3));
        if width != Width::Byte {
            let address = at + 1;
            let misaligned = Err(MemoryError::Misaligned { address, width });
            assert_eq!(memory.load(address, width), misaligned);
            assert_eq!(memory.store(address, width, 0).map(|()| 0), misaligned);
            assert_eq!(memory.compare_exchange(address, width, 0, 0), misaligned);
        }
    }
}

#[test]
fn exchanges_of_two_processes_lose_nothing() {
    const ROUNDS: u64 = 50_000;
    let memory = ClientMemory::new().unwrap();
    let file = memfd("exchanges", PAGE);
    let range = whole(&memory, &file);
    let add = |memory: &ClientMemory| {
        for _ in 0..ROUNDS {
            let mut current = memory.load(range.address(), Width::Qword).unwrap();
            loop {
                let seen = memory
                    .compare_exchange(range.address(), Width::Qword, current, current + 1)
                    .unwrap();
                if seen == current {
                    break;
                }
                current = seen;
            }
        }
    };
    // The child has a copy of our window, with the same shared file in it.
    let mut child = Child::fork(|turns| {
        turns.pause();
        add(&memory);
        0
    });
    std::thread::scope(|scope| {
        scope.spawn(|| add(&memory));
        child.next();
    });
    assert_eq!(child.reap(), 0);
    assert_eq!(memory.load(range.address(), Width::Qword), Ok(2 * ROUNDS));
}

#[test]
fn whoever_sees_the_end_of_a_short_write_sees_all_of_it() {
    const ROUNDS: u64 = 200_000;
    let memory = ClientMemory::new().unwrap();
    let file = memfd("ordered", PAGE);
    let range = whole(&memory, &file);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 1..=ROUNDS {
                let entry = [round.to_le_bytes(); 8];
                memory.write(range.address(), entry.as_flattened()).unwrap();
            }
        });
        while !writer.is_finished() {
            let last = memory.load(range.address() + 56, Width::Qword).unwrap();
            let mut entry = [0; 64];
            memory.read(range.address(), &mut entry).unwrap();
            for word in entry.as_chunks::<8>().0 {
                let word = u64::from_le_bytes(*word);
                assert!((last..=ROUNDS).contains(&word), "{word} after {last}");
            }
        }
    });
}

#[test]
fn threads_map_and_release_files_without_disturbing_each_other() {
    let memory = ClientMemory::new().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let memory = &memory;
            scope.spawn(move || {
                let file = memfd("threads", PAGE);
                for round in 0..500_u16 {
                    let range = whole(memory, &file);
                    let bytes = [thread, round.to_le_bytes()[0]];
                    memory.write(range.address(), &bytes).unwrap();
                    drop(range);
                    let range = whole(memory, &file);
                    let mut seen = [0; 2];
                    memory.read(range.address(), &mut seen).unwrap();
                    assert_eq!(seen, bytes);
                }
            });
        }
    });
}

#[test]
fn less_address_space_makes_a_smaller_window() {
    let file = memfd("small", PAGE);
    let mut child = Child::fork(|_| {
        let limit = libc::rlimit {
            rlim_cur: address_space() + (8 << 30),
            rlim_max: address_space() + (8 << 30),
        };
        // SAFETY: lowers a limit of the child.
        unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
        let Ok(memory) = ClientMemory::new() else {
            return 1;
        };
        let Ok(range) = memory.map_file(file.as_fd(), 0, 1, true) else {
            return 2;
        };
        i32::from(memory.write(range.address(), &[1]).is_err())
    });
    assert_eq!(child.reap(), 0);
}

#[test]
fn huge_pages_are_shared_and_neither_lengthened_nor_reserved() {
    const HUGE: u64 = 2 << 20;
    // SAFETY: a new descriptor, owned here.
    let file = unsafe {
        let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
        let fd = libc::memfd_create(c"iogate-huge".as_ptr(), flags);
        if fd < 0 {
            eprintln!("this kernel has no huge pages of 2 MiB: nothing to test");
            return;
        }
        File::from_raw_fd(fd)
    };
    file.set_len(2 * HUGE).unwrap();
    let free = || {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let number = |key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        (number("HugePages_Free"), number("HugePages_Rsvd"))
    };
    let before = free();
    let memory = ClientMemory::new().unwrap();
    let range = memory.map_file(file.as_fd(), 0, 2 * HUGE, true).unwrap();
    assert_eq!(range.address() % HUGE, 0);
    assert_eq!(file.metadata().unwrap().len(), 2 * HUGE);
    assert_eq!(free(), before);
    if before.0 == before.1 {
        // The pool is empty: the pages cannot come into being.
        let address = range.address();
        let gone = Err(MemoryError::Gone { address });
        assert_eq!(memory.write(address, &[1]), gone);
        return;
    }
    memory.write(range.address(), &[1]).unwrap();
    assert_eq!(memory.load(range.address(), Width::Byte), Ok(1));
    file.set_len(0).unwrap();
    let address = range.address() + 5;
    assert_eq!(
        memory.read(address, &mut [0]),
        Err(MemoryError::Gone { address })
    );
    file.set_len(3 * HUGE).unwrap();
    let third = memory.map_file(file.as_fd(), 2 * HUGE, HUGE, true).unwrap();
    assert_eq!(third.address(), range.address() + 2 * HUGE);
    assert_eq!(mappings_of("iogate-huge"), 1);
}
