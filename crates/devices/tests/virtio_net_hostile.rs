//! virtio-net under rings that make no sense: it asks for a reset, once, and
//! works again after it.
#![allow(missing_docs)]

mod common;

use common::virtio::*;
use iogate_dma::Rights;

const NEEDS_RESET: u8 = 0x4f;

/// A loopback with a receive buffer, done something to by `harm`; queue
/// `kicked` is notified.
fn hurt(features: u64, kicked: u16, harm: impl FnOnce(&mut Nic)) -> Nic {
    let mut nic = Nic::new(features);
    nic.machine.enable_msix();
    nic.write(0x10, &3_u16.to_le_bytes());
    harm(&mut nic);
    nic.kick(kicked);
    nic
}

/// Is broken, says so once by the configuration's vector, is silent, and
/// recovers.
fn is_broken(mut nic: Nic) {
    assert_eq!(nic.status(), NEEDS_RESET);
    assert_eq!(nic.machine.messages(), [3]);
    nic.kick(1);
    assert!(nic.machine.messages().is_empty());
    // A status that does not reset changes nothing of it.
    nic.write(STATUS, &[0x0f]);
    assert_eq!(nic.status(), NEEDS_RESET);
    let everything = (0, RAM as u64, Rights::READ_WRITE);
    nic.machine.map(&[everything]);
    nic.start(0, 3);
    nic.offer_buffer(0, 0, DATA + 0x8000, 2048);
    nic.offer_frame(1, 0, DATA, &[1; 60]);
    nic.kick(1);
    assert_eq!(nic.given(0), [(0, 72)]);
}

#[test]
fn descriptors_in_a_loop_are_found() {
    is_broken(hurt(0, 1, |nic| {
        nic.put(1, 0, DATA, 12, NEXT, 1);
        nic.put(1, 1, DATA, 12, NEXT, 0);
        nic.offer(1, 0);
    }));
    is_broken(hurt(INDIRECT, 1, |nic| {
        let table = DATA + 0x1000;
        nic.describe(table, 0, DATA, 12, NEXT, 1);
        nic.describe(table, 1, DATA, 12, NEXT, 0);
        nic.put(1, 0, table, 32, INDIRECT_FLAG, 0);
        nic.offer(1, 0);
    }));
    // A packet of empty descriptors in a loop, for the receive queue.
    is_broken(hurt(0, 1, |nic| {
        nic.put(0, 0, DATA, 0, NEXT | WRITE, 0);
        nic.offer(0, 0);
        nic.offer_frame(1, 0, DATA, &[1; 60]);
    }));
}

#[test]
fn indices_beyond_the_queue_are_found() {
    is_broken(hurt(0, 1, |nic| nic.offer(1, SIZE)));
    is_broken(hurt(0, 1, |nic| nic.offer(1, u16::MAX)));
    is_broken(hurt(0, 1, |nic| {
        nic.put(1, 0, DATA, 12, NEXT, SIZE);
        nic.offer(1, 0);
    }));
    is_broken(hurt(INDIRECT, 1, |nic| {
        nic.describe(DATA + 0x1000, 0, DATA, 12, NEXT, 1);
        nic.put(1, 0, DATA + 0x1000, 16, INDIRECT_FLAG, 0);
        nic.offer(1, 0);
    }));
    // More available than there are entries.
    for ahead in [SIZE + 1, 0x8000, u16::MAX] {
        is_broken(hurt(0, 1, |nic| {
            let (_, driver, _) = rings(1);
            nic.machine.poke(driver + 2, &ahead.to_le_bytes());
        }));
    }
}

#[test]
fn lengths_that_no_packet_has_are_found() {
    for length in [0, 11, 65549, 1 << 20, u32::MAX] {
        is_broken(hurt(0, 1, |nic| {
            nic.put(1, 0, DATA, length, 0, 0);
            nic.offer(1, 0);
        }));
    }
    // Sixteen times the largest length does not overflow.
    is_broken(hurt(0, 1, |nic| {
        for at in 0..SIZE {
            nic.put(
                1,
                at,
                DATA,
                u32::MAX,
                if at < 15 { NEXT } else { 0 },
                at + 1,
            );
        }
        nic.offer(1, 0);
    }));
}

#[test]
fn descriptors_that_pass_the_top_of_the_address_space_are_found() {
    for address in [u64::MAX, u64::MAX - 70] {
        is_broken(hurt(0, 1, |nic| {
            nic.put(1, 0, address, 72, 0, 0);
            nic.offer(1, 0);
        }));
    }
}

#[test]
fn descriptors_of_the_wrong_kind_are_found() {
    // To be written in a transmit queue, to be read in a receive queue.
    is_broken(hurt(0, 1, |nic| {
        nic.put(1, 0, DATA, 72, WRITE, 0);
        nic.offer(1, 0);
    }));
    is_broken(hurt(0, 1, |nic| {
        nic.put(0, 0, DATA, 2048, 0, 0);
        nic.offer(0, 0);
        nic.offer_frame(1, 0, DATA, &[1; 60]);
    }));
    // Indirect that was not negotiated, that is empty, odd, too long, in
    // itself, or goes on.
    let table = DATA + 0x1000;
    for (features, length, flags, inner) in [
        (0, 16, INDIRECT_FLAG, 0),
        (INDIRECT, 0, INDIRECT_FLAG, 0),
        (INDIRECT, 17, INDIRECT_FLAG, 0),
        (INDIRECT, 17 * 16, INDIRECT_FLAG, 0),
        (INDIRECT, u32::MAX, INDIRECT_FLAG, 0),
        (INDIRECT, 16, INDIRECT_FLAG, INDIRECT_FLAG),
        (INDIRECT, 16, INDIRECT_FLAG | NEXT, 0),
    ] {
        is_broken(hurt(features, 1, |nic| {
            nic.describe(table, 0, DATA, 72, inner, 0);
            nic.put(1, 0, table, length, flags, 1);
            nic.offer(1, 0);
        }));
    }
}

#[test]
fn commands_without_a_place_for_the_answer_or_too_long_are_found() {
    for (length, flags) in [(4, 0), (4097, NEXT), (u32::MAX, NEXT)] {
        is_broken(hurt(CTRL_VQ, 2, |nic| {
            nic.put(2, 0, DATA, length, flags, 1);
            nic.put(2, 1, DATA + 0x100, 1, WRITE, 0);
            nic.offer(2, 0);
        }));
    }
}

#[test]
fn rings_whose_memory_is_refused_are_reported_and_found() {
    let (table, driver, device) = rings(1);
    for hole in [table, driver, device] {
        let nic = hurt(0, 1, |nic| {
            nic.offer_frame(1, 0, DATA, &[1; 60]);
            let after = hole + 0x1000;
            nic.machine.map(&[
                (0, hole, Rights::READ_WRITE),
                (after, RAM as u64 - after, Rights::READ_WRITE),
            ]);
        });
        let reports = nic.machine.reports();
        assert!(reports[0].contains("not mapped"), "{reports:?}");
        assert_eq!(reports[1], "set DEVICE_NEEDS_RESET");
        is_broken(nic);
    }
}

#[test]
fn queues_that_cannot_be_are_refused_when_they_are_enabled() {
    let (table, driver, device) = rings(1);
    for (size, place) in [
        (0, (table, driver, device)),
        (3, (table, driver, device)),
        (2048, (table, driver, device)),
        (u16::MAX, (table, driver, device)),
        (16, (table + 8, driver, device)),
        (16, (table, driver + 1, device)),
        (16, (table, driver, device + 2)),
        (16, (u64::MAX - 15, driver, device)),
        (16, (table, u64::MAX - 1, device)),
        (16, (table, driver, u64::MAX - 3)),
    ] {
        let mut nic = Nic::unstarted(&[]);
        nic.start(0, 0);
        nic.set_up(1, size, place);
        assert_eq!(nic.status(), NEEDS_RESET, "{size} {place:x?}");
        nic.write(0x16, &1_u16.to_le_bytes());
        assert_eq!(nic.machine.read(BAR, 0x1c), [0, 0]);
    }
    // Enabled where nothing is mapped: found at the first look.
    let mut nic = Nic::unstarted(&[]);
    nic.start(0, 0);
    nic.set_up(1, 16, (1 << 40, 1 << 41, 1 << 42));
    nic.kick(1);
    assert_eq!(nic.status(), NEEDS_RESET);
}

#[test]
fn a_driver_that_never_stops_making_available_is_served_in_bounded_quanta() {
    let mut nic = Nic::new(MRG_RXBUF | EVENT_IDX);
    for round in 0..4096_u16 {
        let (_, driver, _) = rings(1);
        nic.put(1, round % SIZE, DATA, 72, 0, 0);
        nic.put(0, round % SIZE, DATA + 0x8000, 20, WRITE, 0);
        let index = round.wrapping_mul(16).to_le_bytes();
        nic.machine.poke(driver + 2, &index);
        nic.machine.poke(rings(0).1 + 2, &index);
        let after = nic.ring(1);
        assert!(nic.machine.finish(after) < 4);
        if nic.status() == NEEDS_RESET {
            nic.start(MRG_RXBUF | EVENT_IDX, 3);
        }
    }
}

#[test]
fn notifications_of_queues_that_there_are_not_do_nothing() {
    let mut nic = Nic::new(0);
    for at in [0x3000 + 4 * 3, 0x3000 + 4 * 31, 0x3000 + 4 * 32, 0x3ffc] {
        nic.write(at, &[0xff; 4]);
    }
    nic.write(0x3ffe, &[0, 0]);
    assert_eq!(nic.status(), 0x0f);
}
