//! Device-TLB invalidation, and devices that do not answer it. VT-d 4.1
//! sections 6.5.2.5, 6.5.2.6, 6.5.2.10.

use std::sync::{Arc, Mutex, Weak};

use iogate_dma::{
    Atc, DeviceTlb, DeviceTlbError, Iova, Memory, Message, Pasid, RequesterId, Span, TlbScope,
};

use super::guest::{Guest, QIE, SRTP, STATUS, TE, wait};
use super::registers::Ear;
use crate::Capabilities;
use crate::spec::registers::offset;

const DEVICE: RequesterId = RequesterId(0x0128);

struct Device {
    answer: Mutex<Result<(), DeviceTlbError>>,
    dropped: Mutex<Vec<(TlbScope, Span)>>,
}

impl DeviceTlb for Device {
    fn invalidate(&self, scope: TlbScope, span: Span) -> Result<(), DeviceTlbError> {
        self.dropped.lock().unwrap().push((scope, span));
        *self.answer.lock().unwrap()
    }
}

fn guest() -> (Guest, Arc<Device>) {
    let guest = Guest::new(Capabilities::default().scalable().device_tlb());
    let device = Arc::new(Device {
        answer: Mutex::new(Ok(())),
        dropped: Mutex::default(),
    });
    let weak: Weak<Device> = Arc::downgrade(&device);
    guest.unit.set_device_tlb(DEVICE, weak);
    guest.enable_queue(0);
    (guest, device)
}

fn status_of(guest: &Guest) -> u32 {
    let mut bytes = [0; 4];
    guest.ram.read(STATUS, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

fn span(first: u64, last: u64) -> Span {
    Span::new(Iova(first), Iova(last)).unwrap()
}

/// A page of the device, whatever PASID.
const PAGE: [u64; 2] = [3 | 0x0128 << 32, 0x7000];

#[test]
fn the_device_drops_what_the_descriptor_says() {
    let (guest, device) = guest();
    let with_pasid = 8 | 0x0128 << 16 | 0x12345 << 32;
    for (descriptor, scope, expected) in [
        (PAGE, TlbScope::WithoutPasid, span(0x7000, 0x7fff)),
        // S: the lowest clear bit of the address is bit 14: 32 KiB.
        (
            [PAGE[0], 0x1_3001],
            TlbScope::WithoutPasid,
            span(0x1_0000, 0x1_7fff),
        ),
        ([PAGE[0], !0xffe], TlbScope::WithoutPasid, Span::whole()),
        (
            [with_pasid, 0x9000],
            TlbScope::Pasid(Pasid::new(0x12345).unwrap()),
            span(0x9000, 0x9fff),
        ),
        (
            [with_pasid, 0x8801],
            TlbScope::EveryPasid,
            span(0x8000, 0x9fff),
        ),
    ] {
        guest.submit(&[descriptor, wait(1)]);
        let dropped = std::mem::take(&mut *device.dropped.lock().unwrap());
        assert_eq!(dropped, [(scope, expected)], "{descriptor:x?}");
    }
}

#[test]
fn functions_that_keep_nothing_are_done_at_once() {
    let (guest, device) = guest();
    guest.submit(&[[3 | 0x0130 << 32, 0], wait(1)]);
    drop(device);
    guest.submit(&[PAGE, wait(2)]);
    assert_eq!(status_of(&guest), 2);
    assert_eq!(guest.read32(offset::FSTS), 0);
}

#[test]
fn a_device_that_does_not_answer_aborts_what_waits_for_it() {
    let (guest, device) = guest();
    let ear = Ear::of(&guest);
    let message = Message {
        address: 0xfee0_0000,
        data: 3,
    };
    guest.program(offset::FECTL, message);
    *device.answer.lock().unwrap() = Err(DeviceTlbError::TimedOut);
    guest.submit(&[PAGE, [1 << 4 | 2, 0], wait(1), wait(2)]);
    assert_eq!(guest.read32(offset::FSTS), 1 << 6, "ITE");
    assert_eq!(guest.read64(offset::IQERCD), 0x0128 << 32);
    assert_eq!(guest.messages(), [message]);
    assert_eq!(ear.heard().len(), 1, "what does not wait is done");
    assert_eq!(guest.read64(offset::IQH), 3 * 32, "and the queue stands");
    assert_eq!(status_of(&guest), 0);
    // It goes on after the wait that was aborted.
    guest.write32(offset::FSTS, 1 << 6);
    assert_eq!(status_of(&guest), 2);
    assert_eq!(guest.read64(offset::IQH), 4 * 32);
}

#[test]
fn the_wait_is_aborted_however_far_behind_it_stands() {
    let (guest, device) = guest();
    guest.write32(offset::GCMD, 0);
    guest.enable_queue(2);
    *device.answer.lock().unwrap() = Err(DeviceTlbError::TimedOut);
    let mut descriptors = vec![[1 << 4 | 2, 0]; 255];
    descriptors.extend([PAGE, wait(1), wait(2)]);
    guest.submit(&descriptors);
    assert_eq!(guest.read64(offset::IQH), 257 * 32);
    assert_eq!(status_of(&guest), 0);
    guest.write32(offset::FSTS, 1 << 6);
    assert_eq!(status_of(&guest), 2);
}

#[test]
fn an_unexpected_answer_is_told_and_stops_nothing() {
    let (guest, device) = guest();
    *device.answer.lock().unwrap() = Err(DeviceTlbError::Unexpected);
    guest.submit(&[PAGE, wait(1)]);
    assert_eq!(guest.read32(offset::FSTS), 1 << 5, "ICE");
    assert_eq!(guest.read64(offset::IQERCD), 0x0128 << 48);
    assert_eq!(status_of(&guest), 1);
    guest.write32(offset::FSTS, 1 << 5);
    assert_eq!(guest.read32(offset::FSTS), 0);
}

#[test]
fn the_unit_drops_its_own_translations_before_the_device_does() {
    struct Late(Mutex<Vec<usize>>, Arc<Ear>);
    impl DeviceTlb for Late {
        fn invalidate(&self, _: TlbScope, _: Span) -> Result<(), DeviceTlbError> {
            let told = self.1.0.lock().unwrap().len();
            self.0.lock().unwrap().push(told);
            Ok(())
        }
    }
    let (guest, _) = guest();
    let ear = Ear::of(&guest);
    let late = Arc::new(Late(Mutex::default(), Arc::clone(&ear)));
    let weak: Weak<Late> = Arc::downgrade(&late);
    guest.unit.set_device_tlb(DEVICE, weak);
    guest.submit(&[[1 << 4 | 2, 0], PAGE, wait(1)]);
    assert_eq!(*late.0.lock().unwrap(), [1]);
}

#[test]
fn a_port_that_keeps_translations_uses_them_until_its_device_tlb_is_invalidated() {
    let guest = Guest::new(Capabilities::default().device_tlb());
    let (root, context, tables) = (0x1_0000, 0x1_1000, [0x1_2000, 0x1_3000, 0x1_4000]);
    guest.put(root, &[context | 1, 0]);
    // TT 01b; domain 7, three levels.
    let entry = [tables[0] | 1 << 2 | 1, 7 << 8 | 1];
    guest.put(context + 16 * 0x28, &entry);
    guest.put(tables[0], &[tables[1] | 3]);
    guest.put(tables[1], &[tables[2] | 3]);
    let leaf = tables[2] + 8 * 5;
    for (page, content) in [(0x5_0000, 1), (0x6_0000, 2)] {
        guest.put(page, &[content]);
    }
    guest.put(leaf, &[0x5_0000 | 3]);
    guest.enable_queue(0);
    guest.write64(offset::RTADDR, root);
    guest.write32(offset::GCMD, QIE | SRTP);
    guest.write32(offset::GCMD, QIE | TE);
    let source = RequesterId(0x28);
    let atc = Arc::new(Atc::new());
    let weak: Weak<Atc> = Arc::downgrade(&atc);
    guest.unit.set_device_tlb(source, weak);
    atc.set_enabled(true);
    let mut port = guest.unit.port(source.into()).with_atc(atc);
    let mut read = || port.read_array::<1>(Iova(0x5000)).unwrap();
    assert_eq!(read(), [1]);
    guest.put(leaf, &[0x6_0000 | 3]);
    guest.submit(&[[7 << 16 | 3 << 4 | 2, 0x5000], wait(1)]);
    assert_eq!(read(), [1], "the device was not told");
    guest.submit(&[[3 | 0x28 << 32, 0x5000], wait(2)]);
    assert_eq!(read(), [2]);
    assert_eq!(guest.read32(offset::FSTS), 0);
}
