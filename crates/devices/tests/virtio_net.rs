//! virtio-net as a driver uses it: set up, packets, interrupts, commands.
#![allow(missing_docs)]

mod common;

use common::virtio::*;
use iogate_devices::Value;
use iogate_dma::{Line, Rights};
use iogate_pci::{After, ConfigEffect, ResetKind};

/// Frames go around, one at a time.
fn exchange(nic: &mut Nic, rounds: u16) {
    for round in 0..rounds {
        let frame: Vec<u8> = (0..60).map(|byte| byte as u8 ^ round as u8).collect();
        let (at, buffer) = (round % SIZE, DATA + 0x8000);
        nic.offer_buffer(0, at, buffer, 2048);
        nic.offer_frame(1, at, DATA, &frame);
        nic.kick(1);
        assert_eq!(nic.given(1), [(u32::from(at), 0)]);
        assert_eq!(nic.given(0), [(u32::from(at), 72)]);
        let header = nic.machine.peek(buffer, 12);
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(nic.machine.peek(buffer + 12, 60), frame);
    }
    assert!(nic.machine.reports().is_empty());
}

#[test]
fn it_is_a_modern_device_whose_capabilities_say_where_everything_is() {
    let nic = Nic::unstarted(&[]);
    let endpoint = nic.machine.device.endpoint();
    let mut config = [0; 256];
    endpoint.read_config(0, &mut config);
    assert_eq!(config[..4], [0xf4, 0x1a, 0x41, 0x10]);
    assert_eq!(config[8..12], [1, 0x00, 0x00, 0x02]);
    let mut at = usize::from(config[0x34]);
    let mut found = Vec::new();
    while at != 0 {
        if config[at] == 9 {
            let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
            found.push((config[at + 3], config[at + 4], word(at + 8), word(at + 12)));
            if config[at + 3] == 2 {
                assert_eq!((config[at + 2], word(at + 16)), (20, 4));
            }
        }
        at = usize::from(config[at + 1]);
    }
    assert_eq!(
        found,
        [
            (1, 4, 0, 56),
            (2, 4, 0x3000, 0x1000),
            (3, 4, 0x1000, 1),
            (4, 4, 0x2000, 12),
            (5, 0, 0, 0)
        ]
    );
    assert_eq!(endpoint.bar(4).unwrap().size, 0x4000);
}

#[test]
fn a_transmitted_frame_is_received_on_the_same_pair() {
    for features in [0, MRG_RXBUF, EVENT_IDX, INDIRECT | EVENT_IDX | MRG_RXBUF] {
        exchange(&mut Nic::new(features), 3);
    }
}

#[test]
fn rings_wrap_and_so_do_their_indices() {
    let mut nic = Nic::new(0);
    exchange(&mut nic, 100);
    // 65536 descriptors of each ring, in steps of 8.
    for round in 0..(65536 / 8) {
        for at in 0..8 {
            nic.offer_buffer(0, at, DATA + 0x8000, 2048);
            nic.offer_frame(1, at, DATA, &[1; 20]);
        }
        nic.kick(1);
        let given = nic.given(0);
        assert_eq!((given.len(), given[7]), (8, (7, 32)), "{round}");
        assert_eq!(nic.given(1).len(), 8);
    }
}

#[test]
fn the_driver_s_choice_of_features_is_checked() {
    for (features, accepted) in [
        (VERSION_1, true),
        (VERSION_1 | CTRL_VQ | 1 << 18 | 1 << 33, true),
        (0, false),
        (VERSION_1 | 1 << 34, false),
        (VERSION_1 | 1, false),
        // One pair: no MQ. And MQ wants a control queue.
        (VERSION_1 | CTRL_VQ | MQ, false),
        (VERSION_1 | 1 << 18, false),
    ] {
        let mut nic = Nic::unstarted(&[]);
        for half in 0..2_u32 {
            nic.write(0x08, &half.to_le_bytes());
            nic.write(0x0c, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        nic.write(STATUS, &[0x0b]);
        assert_eq!(nic.status() & 8 != 0, accepted, "{features:#x}");
    }
}

#[test]
fn registers_hold_what_was_written_and_no_more() {
    let mut nic = Nic::unstarted(&[("queues", Value::Integer(2))]);
    assert_eq!(nic.machine.read(BAR, 0x12), [5, 0]);
    nic.write(0x10, &[5, 0]);
    assert_eq!(nic.machine.read(BAR, 0x10), [5, 0]);
    // Six vectors: 0 to 5.
    nic.write(0x10, &[6, 0]);
    assert_eq!(nic.machine.read(BAR, 0x10), [0xff, 0xff]);
    nic.write(0x16, &[3, 0]);
    assert_eq!(nic.machine.read(BAR, 0x18), [0, 1]);
    assert_eq!(nic.machine.read(BAR, 0x1e), [3, 0]);
    nic.write(0x20, &[1, 2, 3, 4, 5, 6, 7, 8]);
    nic.write(0x24, &[9]);
    assert_eq!(nic.machine.read(BAR, 0x20), [1, 2, 3, 4, 9, 6, 7, 8]);
    // There is no queue 5.
    nic.write(0x16, &[5, 0]);
    assert_eq!(nic.machine.read(BAR, 0x18), [0, 0]);
    nic.write(0x18, &[16, 0]);
    assert_eq!(nic.machine.read(BAR, 0x18), [0, 0]);
    // The device configuration: link up, two pairs.
    assert_eq!(nic.machine.read(BAR, DEVICE + 6), [1, 0, 2, 0]);
    let mac: [u8; 6] = nic.machine.read(BAR, DEVICE);
    assert_eq!(mac, [0x02, 0x69, 0x6f, 0, 1, 0]);
}

#[test]
fn a_frame_over_many_descriptors_is_put_together_and_spread() {
    let mut nic = Nic::new(INDIRECT);
    let table = DATA + 0x1_0000;
    nic.machine.poke(DATA, &[0; 12]);
    nic.machine.poke(DATA + 12, b"in three pieces");
    nic.put(1, 3, DATA, 7, NEXT, 9);
    nic.put(1, 9, DATA + 7, 8, NEXT, 4);
    nic.put(1, 4, DATA + 15, 12, 0, 0);
    nic.describe(table, 0, DATA + 0x8000, 12, WRITE | NEXT, 2);
    nic.describe(table, 2, DATA + 0x9000, 8, WRITE | NEXT, 1);
    nic.describe(table, 1, DATA + 0xa000, 100, WRITE, 0);
    nic.put(0, 5, table, 48, INDIRECT_FLAG, 0);
    nic.offer(0, 5);
    nic.offer(1, 3);
    nic.kick(1);
    assert_eq!(nic.given(0), [(5, 27)]);
    assert_eq!(nic.machine.peek(DATA + 0x9000, 8), b"in three");
    assert_eq!(nic.machine.peek(DATA + 0xa000, 8), b" pieces\0");
}

#[test]
fn a_frame_larger_than_a_buffer_takes_several_if_they_may_be_merged() {
    let mut nic = Nic::new(MRG_RXBUF);
    let frame: Vec<u8> = (0..100).collect();
    for at in 0..3 {
        nic.offer_buffer(0, at, DATA + 0x8000 + u64::from(at) * 0x1000, 50);
    }
    nic.offer_frame(1, 0, DATA, &frame);
    nic.kick(1);
    assert_eq!(nic.given(0), [(0, 50), (1, 50), (2, 12)]);
    assert_eq!(nic.machine.peek(DATA + 0x800a, 2), [3, 0]);
    assert_eq!(nic.machine.peek(DATA + 0x9000, 50), frame[38..88]);

    // Too few: dropped, and the buffer waits for the next.
    nic.offer_buffer(0, 0, DATA + 0x8000, 50);
    nic.offer_frame(1, 0, DATA, &frame);
    nic.kick(1);
    assert_eq!((nic.given(0), nic.given(1).len()), (vec![], 2));
    nic.offer_frame(1, 0, DATA, &[7; 20]);
    nic.kick(1);
    assert_eq!(nic.given(0), [(0, 32)]);

    let mut nic = Nic::new(0);
    nic.offer_buffer(0, 0, DATA + 0x8000, 50);
    nic.offer_buffer(0, 1, DATA + 0x8000, 50);
    nic.offer_frame(1, 0, DATA, &frame);
    nic.kick(1);
    assert_eq!((nic.given(0), nic.given(1)), (vec![], vec![(0, 0)]));
}

#[test]
fn without_receive_buffers_frames_are_dropped() {
    let mut nic = Nic::new(0);
    for at in 0..SIZE {
        nic.offer_frame(1, at, DATA, &[1; 60]);
    }
    nic.kick(1);
    assert_eq!((nic.given(1).len(), nic.given(0).len()), (16, 0));
}

#[test]
fn each_queue_interrupts_by_its_vector_unless_the_driver_asks_not_to() {
    let mut nic = Nic::new(0);
    nic.machine.enable_msix();
    exchange(&mut nic, 1);
    assert_eq!(nic.machine.messages(), [0, 1]);
    assert_eq!(nic.machine.read(BAR, ISR), [0]);
    let (_, driver, _) = rings(1);
    nic.machine.poke(driver, &[1, 0]);
    exchange(&mut nic, 1);
    assert_eq!(nic.machine.messages(), [0]);
    assert_eq!(nic.machine.line(), Line::Deasserted);
}

#[test]
fn with_events_an_interrupt_comes_when_the_used_index_passes_the_event() {
    let mut nic = Nic::new(EVENT_IDX);
    nic.machine.enable_msix();
    let (_, driver, device) = rings(1);
    nic.machine.poke(driver + 4 + 2 * u64::from(SIZE), &[2, 0]);
    for packets in 1..=3_u16 {
        nic.offer_frame(1, 0, DATA, &[1; 60]);
        nic.kick(1);
        let interrupted = !nic.machine.messages().is_empty();
        assert_eq!(interrupted, packets == 3, "{packets}");
        // And the device wants to be notified of the next.
        let event = nic.machine.peek(device + 4 + 8 * u64::from(SIZE), 2);
        assert_eq!(event, packets.to_le_bytes());
    }
}

#[test]
fn without_messages_isr_status_tells_and_reading_clears_it() {
    let mut nic = Nic::new(0);
    exchange(&mut nic, 1);
    assert_eq!(nic.machine.line(), Line::Asserted);
    assert_eq!(nic.machine.read(BAR, ISR), [1]);
    assert_eq!(nic.machine.line(), Line::Deasserted);
    assert_eq!(nic.machine.read(BAR, ISR), [0]);
}

#[test]
fn in_a_loopback_receive_buffers_need_no_notification_and_transmit_queues_do_when_idle() {
    let mut nic = Nic::new(0);
    exchange(&mut nic, 1);
    let flags = |nic: &Nic, queue| nic.machine.peek(rings(queue).2, 2);
    assert_eq!((flags(&nic, 0), flags(&nic, 1)), (vec![1, 0], vec![0, 0]));
    let after = nic.ring(0);
    assert_eq!(nic.machine.finish(after), 1);
}

#[test]
fn a_quantum_is_bounded_by_packets() {
    let mut nic = Nic::unstarted(&[]);
    nic.start(0, 0);
    // Queue 1 of 1024 entries, all of them packets.
    let (driver, device) = (0x2_0000, 0x3_0000);
    nic.set_up(1, 1024, (0x1_0000, driver, device));
    for at in 0..1024_u16 {
        nic.describe(0x1_0000, at, DATA, 72, 0, 0);
        let slot = driver + 4 + u64::from(at) * 2;
        nic.machine.poke(slot, &at.to_le_bytes());
    }
    nic.machine.poke(driver + 2, &1024_u16.to_le_bytes());
    let after = nic.ring(1);
    assert_eq!(nic.machine.finish(after), 4);
    assert_eq!(nic.machine.peek(device + 2, 2), 1024_u16.to_le_bytes());
}

/// Sends a command; the device's answer.
fn command(nic: &mut Nic, queue: u16, bytes: &[u8]) -> u8 {
    nic.machine.poke(DATA, bytes);
    nic.machine.poke(DATA + 0x100, &[0xaa]);
    nic.put(queue, 0, DATA, 2, NEXT, 1);
    nic.put(queue, 1, DATA + 2, bytes.len() as u32 - 2, NEXT, 2);
    nic.put(queue, 2, DATA + 0x100, 1, WRITE, 0);
    nic.offer(queue, 0);
    nic.kick(queue);
    assert_eq!(nic.given(queue), [(0, 1)]);
    nic.machine.peek(DATA + 0x100, 1)[0]
}

#[test]
fn commands_choose_the_pairs_and_what_is_unknown_is_refused() {
    let mut nic = Nic::unstarted(&[("queues", Value::Integer(2))]);
    nic.start(CTRL_VQ | MQ | 1 << 18, 5);
    let around = |nic: &mut Nic| {
        nic.offer_buffer(2, 0, DATA + 0x8000, 100);
        nic.offer_frame(3, 0, DATA + 0x1000, &[5; 60]);
        nic.kick(3);
        assert_eq!(nic.given(3).len(), 1);
        nic.given(2).len()
    };
    assert_eq!(around(&mut nic), 0);
    assert_eq!(command(&mut nic, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(around(&mut nic), 1);
    for refused in [
        &[4, 0, 3, 0][..],
        &[4, 0, 0, 0],
        &[4, 1, 1, 0],
        &[9, 0, 0],
        &[4, 0, 1],
    ] {
        assert_eq!(command(&mut nic, 4, refused), 1);
    }
    assert_eq!(command(&mut nic, 4, &[0, 0, 1]), 0);
    // Without MQ the control queue is the third.
    nic.start(CTRL_VQ | 1 << 18, 3);
    assert_eq!(command(&mut nic, 2, &[0, 1, 1]), 0);
    assert_eq!(command(&mut nic, 2, &[4, 0, 1, 0]), 1);
}

#[test]
fn a_reset_by_the_driver_forgets_everything_and_starts_anew() {
    let mut nic = Nic::new(0);
    exchange(&mut nic, 5);
    nic.start(EVENT_IDX, 3);
    exchange(&mut nic, 5);
}

#[test]
fn a_reset_by_the_driver_in_the_middle_is_done_when_the_quantum_is() {
    let mut nic = Nic::new(0);
    nic.offer_buffer(0, 0, DATA + 0x8000, 2048);
    nic.offer_frame(1, 0, DATA, &[1; 60]);
    let device = nic.machine.device.clone();
    nic.machine.at_next_request(move |_| {
        assert_eq!(device.write_bar(BAR, STATUS, &[0]), After::Nothing);
        let mut status = [0];
        device.read_bar(BAR, STATUS, &mut status);
        assert_eq!(status, [0x0f]);
    });
    nic.kick(1);
    assert_eq!(nic.status(), 0);
    nic.start(0, 3);
    exchange(&mut nic, 1);
}

#[test]
fn a_function_reset_in_the_middle_ends_everything() {
    let mut nic = Nic::new(0);
    nic.offer_buffer(0, 0, DATA + 0x8000, 2048);
    nic.offer_frame(1, 0, DATA, &[1; 60]);
    let device = nic.machine.device.clone();
    nic.machine.at_next_request(move |_| {
        device.endpoint().reset();
        device.reset(ResetKind::FunctionLevel);
    });
    nic.kick(1);
    assert_eq!((nic.given(0), nic.given(1)), (vec![], vec![]));
    assert_eq!(nic.status(), 0);
    nic.machine.set_command(6);
    nic.start(0, 3);
    exchange(&mut nic, 1);
}

#[test]
fn the_window_in_configuration_space_leads_to_the_registers() {
    let mut nic = Nic::new(0);
    let device = nic.machine.device.clone();
    let mut config = [0; 256];
    device.read_config(0, &mut config);
    let window = (0x40..0xf0)
        .step_by(4)
        .find(|at| config[*at] == 9 && config[at + 3] == 5);
    let window = window.unwrap() as u64;
    let aim = |bar: u8, offset: u32, length: u32| {
        for (at, value) in [(8, offset), (12, length), (4, bar.into())] {
            let (effect, after) = device.write_config(window + at, &value.to_le_bytes());
            assert_eq!((effect, after), (ConfigEffect::None, After::Nothing));
        }
    };
    let data = || {
        let mut data = [0; 4];
        device.read_config(window + 16, &mut data);
        data
    };
    aim(4, 0x14, 1);
    assert_eq!(data()[0], 0x0f);
    aim(4, 0x2000, 4);
    assert_eq!(data(), [0x02, 0x69, 0x6f, 0]);
    nic.offer_buffer(0, 0, DATA + 0x8000, 2048);
    nic.offer_frame(1, 0, DATA, &[1; 60]);
    aim(4, 0x3004, 2);
    let (_, after) = device.write_config(window + 16, &[1, 0]);
    assert_eq!(after, After::Work);
    nic.machine.finish(after);
    assert_eq!(nic.given(0).len(), 1);
    // Nothing is there, it passes the end, it is not aligned.
    for (bar, offset, length) in [
        (0, 0, 4),
        (7, 0, 4),
        (4, 0x4000, 4),
        (4, 0xffff_ffff, 1),
        (4, 2, 4),
        (4, 0, 3),
        (4, 0, 0),
    ] {
        aim(bar, offset, length);
        let _ = data();
        let (_, after) = device.write_config(window + 16, &[0; 4]);
        assert_eq!(after, After::Nothing);
    }
    assert_eq!(nic.status(), 0x0f);
}

#[test]
fn a_frame_whose_memory_is_refused_is_dropped_and_the_next_is_not() {
    let mut nic = Nic::new(0);
    nic.machine.map(&[
        (0, DATA + 0x9000, Rights::READ_WRITE),
        (DATA + 0x9000, 0x1000, Rights::READ),
    ]);
    // Not readable, then not writable.
    nic.put(1, 0, DATA + 0x10_0000, 72, 0, 0);
    nic.offer(1, 0);
    nic.offer_buffer(0, 0, DATA + 0x9000, 100);
    nic.offer_frame(1, 1, DATA, &[1; 60]);
    nic.kick(1);
    assert_eq!((nic.given(1).len(), nic.given(0)), (2, vec![(0, 0)]));
    let reports = nic.machine.reports();
    assert_eq!(reports[1], "dropped the packet to transmit");
    assert_eq!(
        reports[3],
        "dropped the received packet: gave its buffers back empty"
    );
    exchange(&mut nic, 1);
}
