//! Queues, doorbells, events and interrupts of nvme. Numbers are those of NVM
//! Express 1.4.
#![allow(missing_docs)]

mod common;

use common::driver::{Command, DATA, Driver, completion, read, submission};
use iogate_dma::Line;

#[test]
fn queues_wrap_and_phases_alternate() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    for round in 0..100 {
        let command = Command {
            cid: round,
            ..read(0, 1, DATA, 0)
        };
        let completion = driver.run(1, command);
        assert_eq!((completion.cid, completion.status), (round, 0));
        assert_eq!(u32::from(completion.sq_head), (u32::from(round) + 1) % 16);
    }
}

#[test]
fn commands_wait_while_their_completion_queue_is_full() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    for cid in 0..15 {
        let command = Command {
            cid,
            ..read(0, 1, DATA, 0)
        };
        driver.put(1, command);
    }
    driver.ring(1);
    // Another 3, while 15 completions stand unacknowledged: no room.
    for cid in 15..18 {
        let command = Command {
            cid,
            ..read(0, 1, DATA, 0)
        };
        driver.put(1, command);
    }
    driver.ring(1);
    for cid in 0..15 {
        assert_eq!(driver.take(1).unwrap().cid, cid);
    }
    assert_eq!(driver.take(1), None);
    driver.acknowledge(1);
    for cid in 15..18 {
        assert_eq!(driver.take(1).unwrap().cid, cid);
    }
}

#[test]
fn a_quantum_takes_32_commands_or_stops_after_1_mib() {
    let mut driver = Driver::new();
    driver.queues[1].size = 64;
    let entries = 63 << 16 | 1;
    for (opcode, prp1, cdw11) in [(5, completion(1), 3), (1, submission(1), 1 << 16 | 1)] {
        let command = Command {
            opcode,
            prp1,
            cdw10: entries,
            cdw11,
            ..Command::default()
        };
        assert_eq!(driver.admin(command).status, 0);
    }
    for _ in 0..63 {
        driver.put(1, read(0, 1, DATA, 0));
    }
    let after = driver
        .machine
        .device
        .write_bar(0, 0x1008, &63_u32.to_le_bytes());
    assert_eq!(driver.machine.finish(after), 2);
    while driver.take(1).is_some() {}
    driver.acknowledge(1);
    // 512 KiB each, whose pages continue each other.
    for index in 0..127 {
        let page = DATA + 0x1000 + index * 0x1000;
        driver
            .machine
            .poke(0x18_0000 + index * 8, &page.to_le_bytes());
    }
    for _ in 0..8 {
        driver.put(1, read(0, 1024, DATA, 0x18_0000));
    }
    let tail = driver.queues[1].tail.to_le_bytes();
    let after = driver.machine.device.write_bar(0, 0x1008, &tail);
    assert_eq!(driver.machine.finish(after), 4);
    for _ in 0..8 {
        assert_eq!(driver.take(1).unwrap().status, 0);
    }
}

#[test]
fn creating_and_deleting_queues_is_checked() {
    let mut driver = Driver::new();
    let pair = |opcode: u8, id: u32, last: u32, prp1: u64, cdw11: u32| Command {
        opcode,
        prp1,
        cdw10: last << 16 | id,
        cdw11,
        ..Command::default()
    };
    driver.create_pair(1);
    let (cq, sq) = (completion(2), submission(2));
    for (command, status, why) in [
        (pair(5, 0, 15, cq, 3), 0x101, "completion queue 0"),
        (pair(5, 1, 15, cq, 3), 0x101, "it exists"),
        (pair(5, 17, 15, cq, 3), 0x101, "more than there are"),
        (pair(5, 2, 0, cq, 3), 0x102, "one entry"),
        (pair(5, 2, 1024, cq, 3), 0x102, "more entries than CAP.MQES"),
        (pair(5, 2, 15, cq + 8, 3), 0x013, "not at a page"),
        (pair(5, 2, 15, cq, 2), 0x002, "not contiguous"),
        (pair(5, 2, 15, cq, 17 << 16 | 3), 0x108, "no such vector"),
        (pair(1, 1, 15, sq, 1 << 16 | 1), 0x101, "it exists"),
        (
            pair(1, 2, 15, sq, 2 << 16 | 1),
            0x100,
            "no such completion queue",
        ),
        (pair(1, 2, 15, sq, 1), 0x100, "the admin completion queue"),
        (pair(0, 2, 0, 0, 0), 0x101, "delete what is not there"),
        (pair(0, 0, 0, 0, 0), 0x101, "delete the admin queue"),
        (pair(4, 2, 0, 0, 0), 0x101, "delete what is not there"),
        (pair(4, 1, 0, 0, 0), 0x10c, "delete a queue in use"),
        (pair(0, 1, 0, 0, 0), 0, "delete the submission queue"),
        (pair(4, 1, 0, 0, 0), 0, "then the completion queue"),
    ] {
        assert_eq!(driver.admin(command).status, status, "{why}");
    }
}

#[test]
fn commands_that_wait_in_a_deleted_queue_are_gone() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    driver.put(1, read(0, 1, DATA, 0));
    driver.put(1, read(0, 1, DATA, 0));
    let delete = Command {
        opcode: 0,
        cdw10: 1,
        ..Command::default()
    };
    driver.put(0, delete);
    // Both doorbells before the worker: by turns it takes one read, the
    // deletion, and finds the queue gone.
    let tail = driver.queues[0].tail.to_le_bytes();
    let _ = driver.machine.device.write_bar(0, 0x1000, &tail);
    driver.ring(1);
    assert_eq!(driver.take(0).unwrap().status, 0);
    assert_eq!(driver.take(1).unwrap().status, 0);
    assert_eq!(driver.take(1), None);
}

#[test]
fn a_bad_doorbell_is_told_to_whoever_asked_for_events() {
    let mut driver = Driver::new();
    let request = |cid| Command {
        opcode: 0x0c,
        cid,
        ..Command::default()
    };
    for cid in 100..104 {
        driver.put(0, request(cid));
    }
    driver.ring(0);
    assert_eq!(driver.take(0), None);
    // A fifth is one too many; a held identifier cannot be used again.
    assert_eq!(driver.admin(request(104)).status, 0x105);
    assert_eq!(driver.admin(request(100)).status, 0x003);
    driver.machine.write32(0x1000 + 8 * 16, 1);
    let told = driver.take(0).unwrap();
    assert_eq!((told.cid, told.status, told.dw0), (100, 0, 0x0001_0000));
    // Silent until the log page is read.
    driver.machine.write32(0x1004, 16);
    assert_eq!(driver.take(0), None);
    let log = Command {
        opcode: 2,
        cid: 1,
        prp1: DATA,
        cdw10: 15 << 16 | 1,
        ..Command::default()
    };
    driver.put(0, log);
    driver.ring(0);
    assert_eq!(driver.take(0).unwrap().cid, 1);
    let told = driver.take(0).unwrap();
    assert_eq!((told.cid, told.dw0), (101, 0x0001_0100));
    driver.acknowledge(0);
    let abort = |cid: u32| Command {
        opcode: 8,
        cid: 2,
        cdw10: cid << 16,
        ..Command::default()
    };
    driver.put(0, abort(102));
    driver.ring(0);
    let aborted = driver.take(0).unwrap();
    assert_eq!((aborted.cid, aborted.status), (102, 0x007));
    assert_eq!(driver.take(0).unwrap().dw0, 0);
    assert_eq!(driver.admin(abort(55)).dw0, 1);
}

#[test]
fn completions_interrupt_by_the_vector_of_their_queue() {
    let mut driver = Driver::new();
    driver.machine.enable_msix();
    driver.create_pair(2);
    assert_eq!(driver.machine.messages(), [0, 0]);
    driver.run(2, read(0, 1, DATA, 0));
    assert_eq!(driver.machine.messages(), [2]);
    let endpoint = driver.machine.device.endpoint();
    endpoint.msix().unwrap().mask(2);
    driver.run(2, read(0, 1, DATA, 0));
    assert!(driver.machine.messages().is_empty());
    driver.machine.device.endpoint().msix().unwrap().unmask(2);
    assert_eq!(driver.machine.messages(), [2]);
    assert_eq!(driver.machine.line(), Line::Deasserted);
}

#[test]
fn without_messages_the_pin_is_asserted_until_completions_are_taken() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    assert_eq!(driver.machine.line(), Line::Deasserted);
    driver.put(1, read(0, 1, DATA, 0));
    driver.ring(1);
    assert_eq!(driver.machine.line(), Line::Asserted);
    // Masked and unmasked by INTMS and INTMC.
    driver.machine.write32(0x0c, 1 << 1);
    assert_eq!(driver.machine.read32(0x0c), 2);
    assert_eq!(driver.machine.line(), Line::Deasserted);
    driver.machine.write32(0x10, 1 << 1);
    assert_eq!(driver.machine.line(), Line::Asserted);
    driver.take(1).unwrap();
    driver.acknowledge(1);
    assert_eq!(driver.machine.line(), Line::Deasserted);
}
