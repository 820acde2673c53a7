//! The private memory of real processes that write, unmap, protect, execute,
//! exit and are replaced by others of their number.

mod common;

use std::os::linux::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Child, PAGE, Pages, memfd};
use iogate_dma::{Memory, MemoryError, Rights, Width};
use iogate_memory::{ClientMemory, Process};

fn absent<T>(address: u64) -> Result<T, MemoryError> {
    Err(MemoryError::Absent { address })
}

fn gone<T>(address: u64) -> Result<T, MemoryError> {
    Err(MemoryError::Gone { address })
}

/// A child that only waits, with a copy of this process's pages.
fn waiting() -> Child {
    Child::fork(|turns| {
        turns.pause();
        0
    })
}

#[test]
fn private_memory_of_a_child_is_read_and_written() {
    let pages = Pages::private(3);
    let mut child = Child::fork(|turns| {
        pages.set(PAGE - 1, 1);
        pages.set(PAGE, 2);
        turns.pause();
        i32::from(pages.get(2 * PAGE - 1) != 3 || pages.get(2 * PAGE) != 4)
    });
    let process = Process::open(child.pid).unwrap();
    let mut bytes = [0; 2];
    process
        .read(pages.va() + PAGE as u64 - 1, &mut bytes)
        .unwrap();
    assert_eq!(bytes, [1, 2]);
    process
        .write(pages.va() + 2 * PAGE as u64 - 1, &[3, 4])
        .unwrap();
    child.next();
    assert_eq!(child.reap(), 0);
    assert_eq!(pages.get(2 * PAGE), 0, "the test has its own copy");
}

#[test]
fn a_process_that_has_exited_is_gone() {
    let pages = Pages::private(1);
    let mut child = waiting();
    let process = Process::open(child.pid).unwrap();
    child.next();
    // Not reaped yet: its number still exists.
    let deadline = Instant::now() + Duration::from_secs(10);
    while process.read(pages.va(), &mut [0]).is_ok() {
        assert!(Instant::now() < deadline);
    }
    for _ in 0..2 {
        assert_eq!(process.read(pages.va(), &mut [0; 8]), gone(pages.va()));
        assert_eq!(process.write(pages.va(), &[0; 8]), gone(pages.va()));
        assert_eq!(process.read_string(pages.va(), 8), gone(pages.va()));
        assert_eq!(process.vma_at(pages.va()), gone(pages.va()));
        assert_eq!(process.check(pages.va(), 1, Rights::READ), gone(pages.va()));
        if Process::open(child.pid).is_err() {
            return;
        }
        child.reap();
    }
    assert!(Process::open(child.pid).is_err());
}

#[test]
fn a_process_that_executes_another_program_is_gone() {
    let pages = Pages::private(1);
    let mut child = Child::fork(|turns| {
        turns.pause();
        // SAFETY: valid, NUL-terminated arguments.
        unsafe {
            let (path, argument) = (c"/bin/sleep".as_ptr(), c"60".as_ptr());
            libc::execl(path, path, argument, std::ptr::null::<libc::c_char>())
        };
        101
    });
    let memory = ClientMemory::new().unwrap();
    let process = Arc::new(Process::open(child.pid).unwrap());
    let slot = memory.add_process(Arc::clone(&process)).unwrap();
    let address = slot.address(pages.va()).unwrap();
    memory.write(address, &[1]).unwrap();
    assert!(!child.next());
    assert_eq!(process.read(pages.va(), &mut [0]), gone(pages.va()));
    assert_eq!(memory.read(address, &mut [0]), gone(address));
    assert_eq!(memory.write(address, &[0]), gone(address));
    // The same number is a living process, which can be opened anew.
    let process = Process::open(child.pid).unwrap();
    assert!(
        process
            .vma_at(0)
            .is_err_and(|error| error == MemoryError::Absent { address: 0 })
    );
}

/// `struct clone_args` up to `set_tid_size`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    unused: [u64; 4],
    exit_signal: u64,
    unused_too: [u64; 3],
    set_tid: u64,
    set_tid_size: u64,
}

#[test]
fn a_process_is_not_mistaken_for_the_next_one_of_its_number() {
    let pages = Pages::private(1);
    pages.set(0, 1);
    let mut child = waiting();
    let process = Process::open(child.pid).unwrap();
    process.read(pages.va(), &mut [0]).unwrap();
    child.next();
    child.reap();
    let tid = child.pid;
    let arguments = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: (&raw const tid) as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    // SAFETY: forks; the child only waits to be killed.
    let next = unsafe {
        let size = size_of::<CloneArgs>();
        match libc::syscall(libc::SYS_clone3, &raw const arguments, size) {
            0 => loop {
                libc::pause();
            },
            next => next,
        }
    };
    if next < 0 {
        let error = std::io::Error::last_os_error();
        // Only root may choose a number; another process may have taken it.
        assert!(
            matches!(error.raw_os_error(), Some(libc::EPERM | libc::EEXIST)),
            "{error}"
        );
        eprintln!("the number could not be chosen: {error}");
        return;
    }
    assert_eq!(next, tid.into());
    let again = Process::open(tid).unwrap();
    let mut byte = [0];
    again.read(pages.va(), &mut byte).unwrap();
    assert_eq!(byte, [1]);
    assert_eq!(process.read(pages.va(), &mut byte), gone(pages.va()));
    assert_eq!(process.write(pages.va(), &[2]), gone(pages.va()));
    assert_eq!(process.vma_at(pages.va()), gone(pages.va()));
    // SAFETY: the child made above.
    unsafe {
        libc::kill(tid, libc::SIGKILL);
        libc::waitpid(tid, std::ptr::null_mut(), 0);
    }
}

#[test]
fn a_page_that_was_unmapped_is_absent_from_its_first_byte_on() {
    let pages = Pages::private(4);
    let mut child = Child::fork(|turns| {
        turns.pause();
        pages.unmap(2, 1);
        turns.pause();
        0
    });
    let process = Process::open(child.pid).unwrap();
    process.write(pages.va(), &[7; 4 * PAGE]).unwrap();
    child.next();
    let hole = pages.va() + 2 * PAGE as u64;
    let mut bytes = [0; 4 * PAGE];
    assert_eq!(process.read(pages.va(), &mut bytes), absent(hole));
    assert_eq!(bytes[..2 * PAGE], [7; 2 * PAGE]);
    assert_eq!(process.write(pages.va(), &[8; 4 * PAGE]), absent(hole));
    assert_eq!(process.read(hole + PAGE as u64, &mut bytes[..1]), Ok(()));
    let check = |first, length| process.check(first, length, Rights::READ_WRITE);
    assert_eq!(check(pages.va(), 2 * PAGE as u64), Ok(()));
    assert_eq!(check(pages.va(), 2 * PAGE as u64 + 1), absent(hole));
    assert_eq!(check(u64::MAX, 2), absent(u64::MAX));
    assert_eq!(check(0, 0), Ok(()));
}

#[test]
fn what_the_process_may_not_write_is_written_by_devices_only() {
    let pages = Pages::private(3);
    pages.set(PAGE, 5);
    let mut child = Child::fork(|turns| {
        pages.protect(1, libc::PROT_READ);
        pages.protect(2, libc::PROT_NONE);
        turns.pause();
        i32::from(pages.get(PAGE) != 6)
    });
    let memory = ClientMemory::new().unwrap();
    let process = Arc::new(Process::open(child.pid).unwrap());
    let slot = memory.add_process(Arc::clone(&process)).unwrap();
    let va = pages.va() + PAGE as u64;
    assert_eq!(process.write(pages.va(), &[1; PAGE + 1]), absent(va));
    assert_eq!(process.check(va, 1, Rights::WRITE), absent(va));
    assert_eq!(process.check(va, 1, Rights::READ), Ok(()));
    let none = va + PAGE as u64;
    assert_eq!(
        process.check(va, PAGE as u64 + 1, Rights::READ),
        absent(none)
    );
    // The page was writable when the device's mapping was made, and pinned.
    memory.write(slot.address(va).unwrap(), &[6]).unwrap();
    child.next();
    assert_eq!(child.reap(), 0);
}

#[test]
fn strings_end_at_their_nul_and_at_the_limit() {
    let pages = Pages::private(2);
    let write = |at: usize, text: &[u8]| {
        for (index, byte) in text.iter().enumerate() {
            pages.set(at + index, *byte);
        }
    };
    write(10, b"short\0rest");
    let long = [b'x'; 1000];
    write(100, &long);
    write(PAGE - 4, b"end\0");
    write(2 * PAGE - 4, b"open");
    let child = waiting();
    let process = Process::open(child.pid).unwrap();
    let string = |at: usize, limit| {
        let string = process.read_string(pages.va() + at as u64, limit)?;
        Ok::<_, MemoryError>(string.map(std::ffi::CString::into_bytes))
    };
    assert_eq!(string(10, 6), Ok(Some(b"short".to_vec())));
    assert_eq!(string(10, 5), Ok(None));
    assert_eq!(string(10, 0), Ok(None));
    assert_eq!(string(15, 9), Ok(Some(vec![])));
    assert_eq!(string(100, 2000), Ok(Some(long.to_vec())));
    assert_eq!(string(100, 1000), Ok(None));
    assert_eq!(string(PAGE - 4, 4096), Ok(Some(b"end".to_vec())));
    let end = 2 * PAGE - 4;
    assert_eq!(string(end, 4), Ok(None));
    // What comes after the pages may be mapped; far above nothing is.
    let nowhere = 0x7fff_ffff_f000;
    assert_eq!(process.read_string(nowhere, 4), absent(nowhere));
}

#[test]
fn mappings_say_what_they_are() {
    let private = Pages::private(2);
    let file = memfd("described", 4 * PAGE);
    let shared = Pages::of(&file, 2, PAGE);
    let child = Child::fork(|turns| {
        shared.protect(1, libc::PROT_READ);
        turns.pause();
        0
    });
    let process = Process::open(child.pid).unwrap();
    let vma = process.vma_at(private.va() + 5).unwrap();
    assert!(vma.start <= private.va() && vma.end >= private.va() + 2 * PAGE as u64);
    assert_eq!((vma.rights, vma.shared), (Rights::READ_WRITE, false));
    assert!(!vma.is_file());
    assert_eq!((vma.device, vma.inode, vma.offset), ((0, 0), 0, 0));
    let metadata = file.metadata().unwrap();
    let device = metadata.st_dev();
    let device = (libc::major(device), libc::minor(device));
    for (page, rights) in [(0, Rights::READ_WRITE), (1, Rights::READ)] {
        let va = shared.va() + (page * PAGE) as u64;
        let vma = process.vma_at(va + 9).unwrap();
        assert_eq!((vma.start, vma.end), (va, va + PAGE as u64));
        assert_eq!(
            (vma.rights, vma.shared, vma.is_file()),
            (rights, true, true)
        );
        assert_eq!((vma.device, vma.inode), (device, metadata.st_ino()));
        let offset = ((page + 1) * PAGE) as u64;
        assert_eq!(
            (vma.offset, vma.file_offset(va + 9)),
            (offset, Some(offset + 9))
        );
    }
    assert_eq!(process.vma_at(1), absent(1));
    assert_eq!(process.vma_at(u64::MAX), absent(u64::MAX));
}

#[test]
fn addresses_of_a_slot_reach_its_process_until_it_is_given_back() {
    let pages = Pages::private(1);
    let memory = ClientMemory::new().unwrap();
    let children = [1, 2, 3].map(|value| {
        let pages = &pages;
        Child::fork(move |turns| {
            pages.set(0, value);
            turns.pause();
            0
        })
    });
    let open = |child: &Child| Arc::new(Process::open(child.pid).unwrap());
    let mut slots: Vec<_> = children
        .iter()
        .map(|child| memory.add_process(open(child)).unwrap())
        .collect();
    let addresses: Vec<_> = slots
        .iter()
        .map(|slot| slot.address(pages.va()).unwrap())
        .collect();
    for (index, address) in addresses.iter().enumerate() {
        let number = slots[index].number();
        assert_ne!(number, 0);
        assert_eq!(*address, u64::from(number) << 48 | pages.va());
        assert_eq!(memory.load(*address, Width::Byte), Ok(index as u64 + 1));
    }
    assert_eq!(slots[0].address(1 << 48), None);
    drop(slots.remove(1));
    assert_eq!(memory.load(addresses[1], Width::Byte), absent(addresses[1]));
    assert_eq!(memory.load(addresses[2], Width::Byte), Ok(3));
    let again = memory.add_process(open(&children[1])).unwrap();
    let again = again.address(pages.va()).unwrap();
    assert_eq!(memory.load(again, Width::Byte), Ok(2));
    assert!(!addresses[..1].contains(&again) && again != addresses[2]);
    // Slots that never existed, and an access over the end of one.
    let never = u64::from(u16::MAX) << 48;
    assert_eq!(memory.write(never, &[0]), absent(never));
    let last = again | ((1 << 48) - 1);
    assert_eq!(memory.read(last, &mut [0; 2]), absent(last));
}

#[test]
fn words_in_a_process_are_loaded_and_stored_but_not_exchanged() {
    let pages = Pages::private(1);
    let child = waiting();
    let memory = ClientMemory::new().unwrap();
    let process = Arc::new(Process::open(child.pid).unwrap());
    let slot = memory.add_process(process).unwrap();
    let address = slot.address(pages.va() + 8).unwrap();
    for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
        memory.write(address, &[0xff; 8]).unwrap();
        memory.store(address, width, 0x8877_6655_4433_2211).unwrap();
        let mask = u64::MAX >> (64 - 8 * width.bytes());
        assert_eq!(
            memory.load(address, width),
            Ok(0x8877_6655_4433_2211 & mask)
        );
        let all = memory.load(address, Width::Qword).unwrap();
        assert_eq!(all, 0x8877_6655_4433_2211 & mask | !mask);
        let refused = memory.compare_exchange(address, width, 0, 0);
        assert_eq!(refused, Err(MemoryError::NotAtomic { address }));
        if width != Width::Byte {
            let address = address + 1;
            let misaligned = Err(MemoryError::Misaligned { address, width });
            assert_eq!(memory.load(address, width), misaligned);
            assert_eq!(memory.store(address, width, 0).map(|()| 0), misaligned);
            assert_eq!(memory.compare_exchange(address, width, 0, 0), misaligned);
        }
    }
}

#[test]
fn a_process_killed_in_the_middle_of_a_copy_ends_it() {
    let size = 16_384 * PAGE;
    let pages = Pages::private(16_384);
    let mut child = waiting();
    let process = Process::open(child.pid).unwrap();
    let va = pages.va();
    std::thread::scope(|scope| {
        let copies = scope.spawn(|| {
            let mut bytes = vec![1; size];
            let mut copies = 0;
            loop {
                let result = if copies % 2 == 0 {
                    process.write(va, &bytes)
                } else {
                    process.read(va, &mut bytes)
                };
                if let Err(error) = result {
                    return error;
                }
                copies += 1;
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        child.kill();
        assert!(matches!(
            copies.join().unwrap(),
            MemoryError::Gone { .. } | MemoryError::Absent { .. }
        ));
    });
    child.reap();
    assert_eq!(process.read(va, &mut [0]), gone(va));
}

#[test]
fn a_process_is_opened_by_any_of_its_threads_and_not_without_one() {
    let error = |tid| Process::open(tid).unwrap_err().raw_os_error();
    assert!(matches!(error(0), Some(libc::ENOENT | libc::ESRCH)));
    assert!(matches!(error(-1), Some(libc::ENOENT | libc::ESRCH)));
    assert!(matches!(error(i32::MAX), Some(libc::ENOENT | libc::ESRCH)));
    let value = 77_u8;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: only asks.
            let process = Process::open(unsafe { libc::gettid() }).unwrap();
            let mut byte = [0];
            process.read((&raw const value) as u64, &mut byte).unwrap();
            assert_eq!(byte, [77]);
        });
    });
}
