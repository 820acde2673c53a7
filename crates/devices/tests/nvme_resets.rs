//! How lives of an nvme controller begin and end. Numbers are those of NVM
//! Express 1.4.
#![allow(missing_docs)]

mod common;

use common::Machine;
use common::driver::{
    CC, CSTS, Command, DATA, Driver, ENABLE, QUEUES, RAM, read, submission, write,
};
use iogate_devices::Properties;
use iogate_dma::{Access, Line, Rights};
use iogate_pci::{After, ResetKind};

#[test]
fn disabling_forgets_the_queues_and_enabling_begins_anew() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    driver.machine.poke(DATA, &[0x5a; 512]);
    driver.run(1, write(0, 1, DATA, 0));
    driver.machine.write32(CC, ENABLE & !1);
    assert_eq!(driver.machine.read32(CSTS), 0);
    assert_eq!(driver.machine.read64(0x28), submission(0));
    assert_eq!(driver.machine.line(), Line::Deasserted);
    // Doorbells of a disabled controller do nothing.
    let after = driver
        .machine
        .device
        .write_bar(0, 0x1000, &1_u32.to_le_bytes());
    assert_eq!(after, After::Nothing);
    driver.enable();
    driver.create_pair(1);
    driver.run(1, read(0, 1, DATA + 0x1000, 0));
    assert_eq!(driver.machine.peek(DATA + 0x1000, 512), [0x5a; 512]);
}

#[test]
fn a_disable_that_the_worker_has_not_seen_is_not_lost() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    let off = (ENABLE & !1).to_le_bytes();
    assert_eq!(driver.machine.device.write_bar(0, CC, &off), After::Work);
    driver.machine.write32(CC, ENABLE);
    assert_eq!(driver.machine.read32(CSTS), 1);
    for queue in &mut driver.queues {
        (queue.tail, queue.head, queue.phase) = (0, 0, 1);
    }
    driver.machine.poke(QUEUES, &[0; 0x4_0000]);
    // The pair is gone: it can be created again.
    driver.create_pair(1);
}

#[test]
fn shutdown_completes_and_is_left_by_a_reset() {
    let mut driver = Driver::new();
    driver.machine.write32(CC, ENABLE | 1 << 14);
    assert_eq!(driver.machine.read32(CSTS), 0b1001);
    driver.machine.write32(CC, ENABLE & !1);
    assert_eq!(driver.machine.read32(CSTS), 0);
    driver.enable();
}

#[test]
fn an_admin_queue_out_of_reach_is_fatal_until_reset() {
    let mut driver = Driver::new();
    driver.machine.map(&[(DATA, 0x1000, Rights::READ_WRITE)]);
    driver.put(0, Command::default());
    driver.ring(0);
    assert_eq!(driver.machine.read32(CSTS) & 2, 2);
    assert_eq!(
        driver.machine.reports(),
        [
            "DMA fault: 0000:01:00.0 read at 0x10000-0x1003f: not mapped",
            "set Controller Fatal Status (CSTS.CFS)",
        ]
    );
    driver.ring(0);
    assert!(driver.machine.reports().is_empty());
    driver.machine.map(&[(0, RAM as u64, Rights::READ_WRITE)]);
    driver.machine.write32(CC, ENABLE & !1);
    assert_eq!(driver.machine.read32(CSTS), 0);
    driver.enable();
    driver.identify(1, 0);
}

#[test]
fn configurations_that_are_not_supported_are_fatal() {
    for (aqa, cc) in [
        (15 << 16, ENABLE),
        (15, ENABLE),
        (15 << 16 | 15, ENABLE | 1 << 7),
        (15 << 16 | 15, ENABLE | 1 << 4),
        (15 << 16 | 15, ENABLE | 1 << 11),
    ] {
        let mut machine = Machine::new("nvme", &Properties::new(), RAM);
        machine.write32(0x24, aqa);
        machine.write32(CC, cc);
        assert_eq!(machine.read32(CSTS), 2, "{aqa:#x} {cc:#x}");
    }
}

#[test]
fn without_bus_master_nothing_is_requested() {
    let mut driver = Driver::new();
    driver.machine.set_command(2);
    driver.put(0, Command::default());
    driver.ring(0);
    assert_eq!(driver.machine.read32(CSTS) & 2, 2);
    assert_eq!(
        driver.machine.reports()[0],
        "DMA fault: 0000:01:00.0 read at 0x10000-0x1003f: bus mastering is disabled"
    );
}

#[test]
fn a_function_reset_in_the_middle_of_a_command_leaves_no_completion_and_no_interrupt() {
    for access in [Access::Read, Access::Write] {
        let mut driver = Driver::new();
        driver.machine.enable_msix();
        driver.create_pair(1);
        driver.machine.messages();
        driver.put(1, read(0, 8, DATA, 0));
        let device = driver.machine.device.clone();
        let space = driver.machine.space.clone();
        // Fetching the command, or writing its data.
        driver.machine.at_next_request(move |request| {
            if request.access == access {
                device.endpoint().reset();
                device.reset(ResetKind::FunctionLevel);
            } else {
                let device = device.clone();
                space.at_next_request(Box::new(move |_| {
                    device.endpoint().reset();
                    device.reset(ResetKind::FunctionLevel);
                }));
            }
        });
        driver.ring(1);
        assert_eq!(driver.take(1), None, "{access}");
        assert!(driver.machine.messages().is_empty());
        assert_eq!(
            (driver.machine.read32(CC), driver.machine.read32(CSTS)),
            (0, 0)
        );
        assert!(driver.machine.reports().is_empty());
        // A new life works.
        driver.machine.set_command(6);
        driver.enable();
        driver.identify(1, 0);
    }
}
