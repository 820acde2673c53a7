//! What Linux's driver does, and what it relies on (drivers/iommu/intel/dmar.c,
//! iommu.c).

use iogate_dma::{Access, Iova, Message, Request, RequesterId, Span};

use super::guest::{Guest, QIE, SRTP, STATUS, TE, wait};
use crate::Capabilities;
use crate::fault::Refused;
use crate::spec::fault::Reason;
use crate::spec::registers::offset;

fn status_of(guest: &Guest) -> u32 {
    let mut bytes = [0; 4];
    iogate_dma::Memory::read(&*guest.ram, STATUS, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn a_legacy_boot_comes_to_enabled_translation() {
    let guest = Guest::new(Capabilities::default());
    guest.enable_queue(0);
    guest.write64(offset::RTADDR, 0x1_0000);
    guest.write32(offset::GCMD, QIE | SRTP);
    assert_eq!(guest.read32(offset::GSTS), QIE | SRTP);
    // Context-global and wait; IOTLB-global with draining, and wait.
    guest.submit(&[[1 << 4 | 1, 0], wait(2)]);
    assert_eq!(status_of(&guest), 2);
    guest.submit(&[[1 << 7 | 1 << 6 | 1 << 4 | 2, 0], wait(3)]);
    assert_eq!(status_of(&guest), 3);
    assert_eq!(guest.read64(offset::IQH), 0x40);
    guest.write32(offset::GCMD, QIE | TE);
    assert_eq!(guest.read32(offset::GSTS), QIE | SRTP | TE);
    assert_eq!(guest.read32(offset::FSTS), 0);
}

#[test]
fn a_scalable_boot_uses_wide_descriptors() {
    let guest = Guest::new(Capabilities::default().scalable());
    guest.enable_queue(1);
    guest.write64(offset::RTADDR, 0x1_0000 | 1 << 10);
    guest.write32(offset::GCMD, QIE | SRTP);
    guest.submit(&[
        [1 << 4 | 1, 0],
        [3 << 4 | 7, 0],
        [1 << 4 | 2, 0],
        [2 << 4 | 6 | 1 << 16, 0],
        wait(2),
    ]);
    assert_eq!(status_of(&guest), 2);
    assert_eq!(guest.read64(offset::IQH), 5 * 32);
}

#[test]
fn a_fault_is_found_where_the_fault_handler_looks() {
    let guest = Guest::new(Capabilities::default());
    let message = Message {
        address: 0xfee0_0000,
        data: 0x21,
    };
    guest.program(offset::FECTL, message);
    let span = Span::with_length(Iova(0x76_5432_1008), 4).unwrap();
    let request = Request::new(RequesterId(0x30).into(), span, Access::Write);
    guest
        .unit
        .record(&Refused::request(&request, Reason::NO_WRITE));
    assert_eq!(guest.messages(), [message]);
    assert_eq!(guest.read32(offset::FSTS), 2, "PPF, FRI 0");
    let (low, high) = guest.fault(0);
    assert_eq!(low, 0x76_5432_1000);
    assert_eq!(high, 1 << 63 | 5 << 32 | 0x30);
    // The handler clears F by its dword, then the rest.
    guest.write32(offset::FRCD + 12, 1 << 31);
    guest.write32(offset::FSTS, 0x83);
    assert_eq!(guest.read32(offset::FSTS), 0);
    assert_eq!(guest.fault(0).1 >> 63, 0);
}
