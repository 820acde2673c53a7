//! rust-vmm's memory as a unit's RAM.

use std::sync::Arc;

use iogate_dma::{Memory, MemoryError, Width};
use iogate_vm_memory::Ram;
use vm_memory::{GuestAddress, GuestMemoryMmap};

fn ram() -> Ram<GuestMemoryMmap> {
    let regions = [(GuestAddress(0), 0x1000), (GuestAddress(0x2000), 0x1000)];
    Ram::new(Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap()))
}

#[test]
fn bytes_and_words_are_the_same_memory() {
    let ram = ram();
    ram.write(0x10, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    assert_eq!(ram.load(0x10, Width::Qword), Ok(0x0807_0605_0403_0201));
    assert_eq!(ram.load(0x12, Width::Word), Ok(0x0403));
    ram.store(0x14, Width::Dword, 0xaabb_ccdd).unwrap();
    let mut bytes = [0; 8];
    ram.read(0x10, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 0xdd, 0xcc, 0xbb, 0xaa]);
}

#[test]
fn an_exchange_happens_only_over_what_was_expected() {
    let ram = ram();
    ram.store(0x40, Width::Qword, 7).unwrap();
    assert_eq!(ram.compare_exchange(0x40, Width::Qword, 8, 9), Ok(7));
    assert_eq!(ram.compare_exchange(0x40, Width::Qword, 7, 9), Ok(7));
    assert_eq!(ram.load(0x40, Width::Qword), Ok(9));
}

#[test]
fn an_error_names_the_first_byte_that_failed() {
    let ram = ram();
    let absent = |address| Err(MemoryError::Absent { address });
    assert_eq!(ram.read(0x1000, &mut [0; 4]), absent(0x1000));
    assert_eq!(ram.write(0xffe, &[0; 4]), absent(0x1000));
    assert_eq!(
        ram.compare_exchange(0x1000, Width::Byte, 0, 0),
        Err(MemoryError::Absent { address: 0x1000 })
    );
    assert_eq!(
        ram.load(0x11, Width::Word),
        Err(MemoryError::Misaligned {
            address: 0x11,
            width: Width::Word
        })
    );
}
