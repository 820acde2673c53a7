//! Memory of devices that programs map.
#![allow(missing_docs)]

use std::os::fd::AsRawFd;

use iogate_dma::{Memory, MemoryError, SharedMemory, Width};
use iogate_memory::{ClientMemory, DeviceMemory, Process};

const OFFSET: u64 = 1 << 52 | 2 << 40;
const SIZE: u64 = 1 << 20;

/// Maps the memory as a program would.
fn map(memory: &DeviceMemory, length: usize, offset: u64) -> *mut u8 {
    let (file, _) = memory.file().unwrap();
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            libc::off_t::try_from(offset).unwrap(),
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

#[test]
fn a_program_and_a_device_see_the_same_bytes() {
    let clients = ClientMemory::new().unwrap();
    let memory = clients.make_device_memory(OFFSET, SIZE).unwrap();
    let at = map(&memory, 8192, OFFSET + 4096);
    memory.write(4096, b"device").unwrap();
    // SAFETY: the mapping has two pages.
    unsafe {
        assert_eq!(std::slice::from_raw_parts(at, 6), b"device");
        at.add(4096)
            .copy_from_nonoverlapping(b"program!".as_ptr(), 8);
    }
    let word = u64::from_le_bytes(*b"program!");
    assert_eq!(memory.load(8192, Width::Qword), Ok(word));
    let own = Process::open(i32::try_from(std::process::id()).unwrap()).unwrap();
    let va = u64::try_from(at.addr()).unwrap();
    let vma = own.vma_at(va).unwrap();
    let range = clients.find_device_memory(&vma, va + 4096, 8).unwrap();
    let mut bytes = [0; 8];
    clients.read(range.address(), &mut bytes).unwrap();
    assert_eq!(&bytes, b"program!");
    assert!(
        clients.find_device_memory(&vma, va, SIZE).is_none(),
        "past its end"
    );
    // A range keeps the memory where it is.
    drop(memory);
    clients.write(range.address(), b"survives").unwrap();
    // SAFETY: as above.
    unsafe { assert_eq!(std::slice::from_raw_parts(at.add(4096), 8), b"survives") };
    // SAFETY: the mapping made above, which nothing refers to any more.
    unsafe { libc::munmap(at.cast(), 8192) };
}

#[test]
fn an_access_past_the_end_reaches_nothing() {
    let clients = ClientMemory::new().unwrap();
    let memory = clients.make_device_memory(OFFSET, 4096).unwrap();
    let other = clients.make_device_memory(OFFSET, 4096).unwrap();
    for (at, length) in [(4096, 1), (4095, 2), (u64::MAX, 1), (1 << 40, 8)] {
        let absent = Err(MemoryError::Absent { address: at });
        assert_eq!(memory.read(at, &mut vec![0; length]), absent);
        assert_eq!(memory.write(at, &vec![1; length]), absent);
    }
    let absent = MemoryError::Absent { address: 4096 };
    assert_eq!(memory.load(4096, Width::Byte), Err(absent));
    let mut bytes = [1; 4096];
    other.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4096]);
}

#[test]
fn a_program_cannot_change_the_size() {
    let clients = ClientMemory::new().unwrap();
    let memory = clients.make_device_memory(OFFSET, SIZE).unwrap();
    let (file, offset) = memory.file().unwrap();
    assert_eq!(offset, OFFSET);
    for size in [0, OFFSET, OFFSET + SIZE + 4096] {
        let refused = rustix::fs::ftruncate(file, size);
        assert_eq!(refused, Err(rustix::io::Errno::PERM));
    }
}

#[test]
fn memory_is_whole_pages_that_a_file_can_hold() {
    let clients = ClientMemory::new().unwrap();
    let refused = |offset, length| clients.make_device_memory(offset, length).err();
    for (offset, length) in [(0, 0), (1, 4096), (4096, 1), (u64::MAX - 4095, 4096)] {
        let errno = refused(offset, length).unwrap().raw_os_error();
        assert_eq!(errno, Some(libc::EINVAL), "{offset:#x} {length:#x}");
    }
    assert!(refused(1 << 63, 4096).is_some());
    assert!(refused(0, 1 << 50).is_some(), "no room");
}
