//! Queued invalidation. VT-d 4.1 section 6.5.2.

use std::sync::Arc;

use iogate_dma::{Memory, Message, RequesterId, Scope};

use super::guest::{Guest, HOLE, QIE, QUEUE, SRTP, STATUS, wait};
use super::registers::Ear;
use crate::Capabilities;
use crate::spec::registers::offset;

fn status_of(guest: &Guest) -> u32 {
    let mut bytes = [0; 4];
    guest.ram.read(STATUS, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// IQEI of an error that stands; no error else.
fn error(guest: &Guest) -> Option<u64> {
    (guest.read32(offset::FSTS) & 1 << 4 != 0).then(|| guest.read64(offset::IQERCD) & 0xf)
}

fn all() -> Capabilities {
    Capabilities::default()
        .scalable()
        .device_tlb()
        .page_requests()
        .interrupt_remapping()
}

#[test]
fn the_head_goes_around_at_exactly_the_end() {
    for (capabilities, size) in [
        (Capabilities::default(), 0),
        (Capabilities::default(), 2),
        (Capabilities::default().scalable(), 1),
    ] {
        let guest = Guest::new(capabilities);
        guest.enable_queue(size);
        let entries = (4096 << size) / guest.width();
        for round in 0..entries * 2 + 3 {
            guest.submit(&[wait(round as u32 + 1)]);
            assert_eq!(status_of(&guest), round as u32 + 1);
            let expected = (round + 1) % entries * guest.width();
            assert_eq!(guest.read64(offset::IQH), expected);
        }
        assert_eq!(error(&guest), None);
    }
}

#[test]
fn a_full_queue_is_done_in_quanta() {
    let guest = Guest::new(Capabilities::default());
    guest.enable_queue(7);
    for at in 0..32767 {
        guest.put(QUEUE + at * 16, &[1 << 4 | 2, 0]);
    }
    guest.write32(offset::IQT, 0x7_fff0);
    assert_eq!(guest.read64(offset::IQH), 0x7_fff0);
}

#[test]
fn a_quantum_is_bounded() {
    let ram = super::guest::Ram::new();
    for at in 0..1024 {
        ram.write(QUEUE + at * 16, &[0x12]).unwrap();
    }
    let unit = crate::Vtd::builder(Arc::clone(&ram) as _)
        .deferred(|| {})
        .build()
        .unwrap();
    unit.write(offset::IQA.into(), &(QUEUE | 2).to_le_bytes());
    unit.write(offset::GCMD.into(), &QIE.to_le_bytes());
    assert!(!unit.work());
    unit.write(offset::IQT.into(), &(1000_u32 * 16).to_le_bytes());
    let mut heads = Vec::new();
    loop {
        let more = unit.work();
        let mut head = [0; 4];
        unit.read(offset::IQH.into(), &mut head);
        heads.push(u32::from_le_bytes(head) / 16);
        if !more {
            break;
        }
    }
    assert_eq!(heads, [256, 512, 768, 1000]);
}

#[test]
fn what_stands_before_a_wait_is_one_batch() {
    let guest = Guest::new(Capabilities::default());
    let ear = Ear::of(&guest);
    guest.enable_queue(0);
    // Domain 3; 4 pages at 0x1000000 of domain 9; the device 01:02.x.
    guest.submit(&[
        [3 << 16 | 2 << 4 | 2, 0],
        [9 << 16 | 3 << 4 | 2, 0x100_0000 | 1 << 6 | 2],
        [9 << 16 | 0x0110 << 32 | 3 << 48 | 3 << 4 | 1, 0],
        wait(1),
    ]);
    let heard = ear.heard();
    assert_eq!(heard[0].scope, Scope::Domain(3));
    assert_eq!(heard[1].scope, Scope::Domain(9));
    assert_eq!(heard[1].span.length(), Some(0x4000));
    let functions: Vec<_> = heard[2..].iter().map(|one| one.scope).collect();
    let all = (0x110..0x118).map(|id| Scope::Entry(RequesterId(id).into()));
    assert_eq!(functions, all.collect::<Vec<_>>());
}

#[test]
fn a_wait_may_raise_the_invalidation_event() {
    let guest = Guest::new(Capabilities::default());
    let message = Message {
        address: 0x12_fee0_3000,
        data: 0x1_2345,
    };
    guest.program(offset::IECTL, message);
    guest.enable_queue(0);
    let interrupting = [1 << 4 | 5, 0];
    guest.submit(&[interrupting]);
    assert_eq!(guest.read32(offset::ICS), 1);
    assert_eq!(guest.messages(), [message]);
    guest.submit(&[interrupting]);
    assert_eq!(guest.messages(), [], "IWC is still set");
    guest.write32(offset::ICS, 1);
    assert_eq!(guest.read32(offset::ICS), 0);
    guest.submit(&[interrupting]);
    assert_eq!(guest.messages(), [message]);
    assert_eq!(status_of(&guest), 0, "no status was asked for");
}

#[test]
fn descriptors_that_cannot_be_done_stop_the_queue_at_themselves() {
    let types = 3;
    let reserved = 4;
    for (descriptor, info) in [
        // Types: none, beyond the last, what is not offered, Type[6:4].
        ([0, 0], types),
        ([10, 0], types),
        ([3 | 0x10 << 32, 0x1000], types),
        ([4, 0], types),
        ([6 | 2 << 4, 0], types),
        ([7 | 3 << 4, 0], types),
        ([8, 0], types),
        ([9, 0], types),
        ([5 | 1 << 9, 0], types),
        // Reserved bits and values.
        ([1, 0], reserved),
        ([1 | 1 << 4 | 1 << 6, 0], reserved),
        ([1 | 1 << 4 | 1 << 50, 0], reserved),
        ([1 | 1 << 4, 1], reserved),
        ([2, 0], reserved),
        ([2 | 1 << 4 | 1 << 8, 0], reserved),
        ([2 | 1 << 4 | 1 << 32, 0], reserved),
        ([2 | 1 << 4, 1 << 7], reserved),
        ([2 | 3 << 4, 0x1000 | 19], reserved),
        ([5 | 1 << 8, 0], reserved),
        ([5 | 1 << 12, 0], reserved),
        ([5, 1], reserved),
        ([5 | 1 << 7, 0], reserved),
    ] {
        let guest = Guest::new(Capabilities::default());
        guest.enable_queue(0);
        guest.submit(&[wait(1), descriptor, wait(2)]);
        let case = format!("{descriptor:x?}");
        assert_eq!(error(&guest), Some(info), "{case}");
        assert_eq!(guest.read64(offset::IQH), 16, "{case}");
        assert_eq!(status_of(&guest), 1, "{case}");
        // It goes on where it stopped, with what stands there now.
        guest.put(QUEUE + 16, &[1 << 4 | 2, 0]);
        guest.write32(offset::FSTS, 1 << 4);
        assert_eq!(error(&guest), None, "{case}");
        assert_eq!(status_of(&guest), 2, "{case}");
    }
}

#[test]
fn every_type_is_done_where_it_is_offered() {
    let guest = Guest::new(all());
    guest.enable_queue(1);
    for (at, descriptor) in [
        [1 << 4 | 1, 0],
        [1 << 4 | 2, 0],
        [3 | 0x10 << 32 | 0xf << 12 | 0xfff << 52 | 0x1f << 16, 1],
        [4, 0],
        [4 | 1 << 4 | 31 << 27 | 0xffff << 32, 0],
        [1 << 7 | 5, 0],
        [2 << 4 | 6 | 0xf_ffff << 32, 0],
        [3 << 4 | 6, 63],
        [7, 0],
        [1 << 4 | 7, 0],
        [3 << 4 | 7, 0],
        [8 | u64::MAX << 12 | 0x1f << 4, !0x7fe],
        [9 | 1 << 4 | 0xf << 12, 0xffc],
    ]
    .into_iter()
    .enumerate()
    {
        guest.submit(&[descriptor, wait(at as u32 + 1)]);
        assert_eq!(error(&guest), None, "{descriptor:x?}");
        assert_eq!(status_of(&guest), at as u32 + 1, "{descriptor:x?}");
    }
}

#[test]
fn wide_descriptors_have_reserved_values_and_halves_too() {
    for (descriptor, upper) in [
        ([6, 0], 0),
        ([1 << 4 | 6, 0], 0),
        ([2 << 4 | 6 | 1 << 6, 0], 0),
        ([3 << 4 | 6, 1 << 7], 0),
        ([2 << 4 | 7, 0], 0),
        ([3 << 4 | 7, 1], 0),
        ([3 | 1 << 4, 0], 0),
        ([3, 2], 0),
        ([4 | 1 << 5, 0], 0),
        ([8, 2], 0),
        ([9 | 1 << 5, 0], 0),
        ([9, 1], 0),
        ([1 << 4 | 1, 0], 1),
        ([1 << 5 | 5, STATUS], 1 << 63),
    ] {
        let guest = Guest::new(all());
        guest.enable_queue(0);
        guest.put(QUEUE, &[descriptor[0], descriptor[1], 0, upper]);
        guest.write32(offset::IQT, 32);
        assert_eq!(error(&guest), Some(4), "{descriptor:x?} {upper:x}");
    }
}

#[test]
fn a_tail_outside_of_the_queue_is_an_error() {
    let guest = Guest::new(Capabilities::default());
    guest.enable_queue(0);
    guest.write32(offset::IQT, 4096);
    assert_eq!(error(&guest), Some(1));
    // It stays one while the tail is what it is.
    guest.write32(offset::FSTS, 1 << 4);
    assert_eq!(error(&guest), Some(1));
    guest.write32(offset::IQT, 0);
    guest.write32(offset::FSTS, 1 << 4);
    assert_eq!(error(&guest), None);
}

#[test]
fn a_tail_within_a_wide_descriptor_is_an_error() {
    let guest = Guest::new(all());
    guest.enable_queue(0);
    guest.write32(offset::IQT, 0x10);
    assert_eq!(error(&guest), Some(6));
}

#[test]
fn scalable_mode_needs_wide_descriptors() {
    let guest = Guest::new(all());
    guest.write64(offset::RTADDR, 0x1000 | 1 << 10);
    guest.write32(offset::GCMD, SRTP);
    guest.write64(offset::IQA, QUEUE);
    guest.write32(offset::GCMD, QIE);
    guest.write32(offset::IQT, 0x10);
    assert_eq!(error(&guest), Some(5));
}

#[test]
fn a_reserved_root_table_type_stops_the_queue() {
    let guest = Guest::new(all());
    guest.write64(offset::RTADDR, 0x1000 | 2 << 10);
    guest.write32(offset::GCMD, SRTP);
    guest.enable_queue(0);
    guest.submit(&[wait(1)]);
    assert_eq!(error(&guest), Some(7));
    assert_eq!(status_of(&guest), 0);
}

#[test]
fn a_queue_where_no_memory_is_is_an_error() {
    for address in [HOLE.start, !0xfff] {
        let guest = Guest::new(Capabilities::default());
        guest.write64(offset::IQA, address | 7);
        guest.write32(offset::GCMD, QIE);
        guest.write32(offset::IQT, 0x7_0000);
        assert_eq!(error(&guest), Some(2), "{address:x}");
        assert_eq!(guest.read64(offset::IQH), 0, "{address:x}");
    }
}

#[test]
fn a_status_where_no_memory_is_is_lost_and_the_queue_goes_on() {
    let guest = Guest::new(Capabilities::default());
    guest.enable_queue(0);
    for address in [HOLE.start, !3, 0xfee0_0000] {
        guest.submit(&[[1 << 5 | 5, address]]);
    }
    guest.submit(&[wait(7)]);
    assert_eq!((status_of(&guest), error(&guest)), (7, None));
}

#[test]
fn the_queue_address_is_in_force_from_enabling_on() {
    let guest = Guest::new(Capabilities::default());
    guest.enable_queue(0);
    guest.write64(offset::IQA, HOLE.start);
    guest.put(QUEUE, &wait(5));
    guest.write32(offset::IQT, 16);
    assert_eq!((status_of(&guest), error(&guest)), (5, None));
}

#[test]
fn a_disabled_queue_begins_anew() {
    let guest = Guest::new(Capabilities::default());
    guest.enable_queue(0);
    guest.submit(&[wait(1), wait(2)]);
    guest.write32(offset::GCMD, 0);
    assert_eq!(guest.read64(offset::IQH), 0);
    guest.put(QUEUE, &wait(3));
    guest.write32(offset::IQT, 16);
    assert_eq!(status_of(&guest), 2, "nothing is fetched");
    guest.write32(offset::GCMD, QIE);
    assert_eq!(status_of(&guest), 3);
}

#[test]
fn an_error_raises_the_fault_event_once() {
    let guest = Guest::new(Capabilities::default());
    let message = Message {
        address: 0xfee0_0000,
        data: 1,
    };
    guest.program(offset::FECTL, message);
    guest.enable_queue(0);
    guest.submit(&[[0, 0]]);
    assert_eq!(guest.messages(), [message]);
    guest.submit(&[[0, 0]]);
    assert_eq!(guest.messages(), []);
}
