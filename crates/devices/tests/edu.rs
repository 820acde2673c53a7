//! edu against QEMU's documentation of its registers.
#![allow(missing_docs)]

mod common;

use std::sync::{Arc, Mutex};

use common::Machine;
use iogate_devices::{Properties, Value};
use iogate_dma::{Line, Message, Pasid, Rights};
use iogate_pci::{After, ResetKind};

const BUFFER: u64 = 0x40000;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const PASID: u64 = 0xa0;

fn edu() -> Machine {
    Machine::new("edu", &Properties::new(), 1 << 20)
}

fn transfer(edu: &mut Machine, source: u64, destination: u64, count: u64, command: u32) {
    edu.write64(SOURCE, source);
    edu.write64(DESTINATION, destination);
    edu.write64(COUNT, count);
    edu.write32(COMMAND, command);
}

#[test]
fn configuration_space_identifies_it() {
    let edu = edu();
    let mut config = [0; 16];
    edu.device.endpoint().read_config(0, &mut config);
    assert_eq!(config[..4], [0x34, 0x12, 0xe8, 0x11]);
    assert_eq!(config[8..12], [0x10, 0x00, 0xff, 0x00]);
    assert_eq!(edu.device.endpoint().bar(0).unwrap().size, 1 << 20);
    assert_eq!(edu.device.endpoint().msi_vectors(), 1);
}

#[test]
fn identification_and_liveness_answer() {
    let mut edu = edu();
    assert_eq!(edu.read32(0), 0x0100_00ed);
    edu.write32(0, 7);
    assert_eq!(edu.read32(0), 0x0100_00ed);
    edu.write32(4, 0x1234_5678);
    assert_eq!(edu.read32(4), !0x1234_5678);
}

#[test]
fn factorials_are_computed_by_the_worker_modulo_2_to_32() {
    let mut edu = edu();
    // 13! = 6227020800, 33! and 34! by Python's math.factorial % 2**32.
    for (n, factorial) in [
        (0, 1),
        (1, 1),
        (5, 120),
        (13, 1_932_053_504),
        (33, 2_147_483_648),
        (34, 0),
        (u32::MAX, 0),
    ] {
        let after = edu.device.write_bar(0, 8, &n.to_le_bytes());
        assert_eq!((after, edu.read32(0x20) & 1), (After::Work, 1));
        edu.finish(after);
        assert_eq!((edu.read32(8), edu.read32(0x20)), (factorial, 0), "{n}");
    }
    assert!(edu.messages().is_empty());
    assert_eq!(edu.line(), Line::Deasserted);
}

#[test]
fn a_factorial_interrupts_when_status_asks_for_it() {
    let mut edu = edu();
    edu.write32(0x20, 0xff);
    assert_eq!(edu.read32(0x20), 0x80);
    edu.write32(8, 3);
    assert_eq!((edu.read32(0x24), edu.line()), (1, Line::Asserted));
    edu.write32(0x64, 1);
    assert_eq!((edu.read32(0x24), edu.line()), (0, Line::Deasserted));
}

#[test]
fn interrupts_are_raised_and_acknowledged_bit_by_bit() {
    let mut edu = edu();
    edu.write32(0x60, 0x30);
    edu.write32(0x64, 0x10);
    assert_eq!((edu.read32(0x24), edu.line()), (0x20, Line::Asserted));
    edu.write32(0x64, 0x20);
    assert_eq!(edu.line(), Line::Deasserted);
}

#[test]
fn with_msi_enabled_interrupts_are_messages() {
    let mut edu = edu();
    let message = Message {
        address: 0xfee0_0000,
        data: 0x41,
    };
    edu.device.endpoint().enable_msi(1, message).unwrap();
    edu.write32(0x60, 1);
    edu.write32(0x60, 1);
    assert_eq!(edu.messages(), [0x41, 0x41]);
    assert_eq!(edu.line(), Line::Deasserted);
}

#[test]
fn accesses_of_other_sizes_read_ones_and_write_nothing() {
    let mut edu = edu();
    edu.write32(4, 0);
    let mut wide = [0; 8];
    edu.device.read_bar(0, 4, &mut wide);
    assert_eq!(wide, [0xff; 8]);
    let mut narrow = [0; 2];
    edu.device.read_bar(0, 0, &mut narrow);
    assert_eq!(narrow, [0xff; 2]);
    edu.write64(0, 0x55 << 32);
    assert_eq!(edu.read32(4), u32::MAX);
    assert_eq!(edu.read32(0x1000), u32::MAX);
    assert_eq!(edu.read32(0x40000), u32::MAX);
}

#[test]
fn dma_registers_take_4_or_8_bytes() {
    let mut edu = edu();
    edu.write64(SOURCE, 0x1122_3344_5566_7788);
    assert_eq!(edu.read64(SOURCE), 0x1122_3344_5566_7788);
    assert_eq!(edu.read32(SOURCE), 0x5566_7788);
    edu.write32(SOURCE, 0x99);
    assert_eq!(edu.read64(SOURCE), 0x99);
}

#[test]
fn data_goes_to_the_buffer_and_back() {
    let mut edu = edu();
    let data: Vec<u8> = (0..100).collect();
    edu.poke(0x1000, &data);
    transfer(&mut edu, 0x1000, BUFFER + 8, 100, 0b001);
    assert_eq!(edu.read32(COMMAND) & 1, 0);
    transfer(&mut edu, BUFFER + 8, 0x2000, 100, 0b111);
    assert_eq!(edu.peek(0x2000, 100), data);
    assert_eq!((edu.read32(0x24), edu.line()), (0x100, Line::Asserted));
    assert!(edu.reports().is_empty());
}

#[test]
fn a_transfer_out_of_the_buffer_moves_nothing_and_ends() {
    let mut edu = edu();
    edu.poke(0x1000, &[0xaa; 16]);
    for (source, count) in [
        (BUFFER + 4095, 2),
        (BUFFER - 1, 1),
        (0, 1),
        (u64::MAX, u64::MAX),
        (BUFFER, 4097),
        (BUFFER, u64::MAX),
    ] {
        transfer(&mut edu, source, 0x1000, count, 0b111);
        assert_eq!(edu.read32(COMMAND) & 1, 0);
        assert_eq!(edu.peek(0x1000, 16), [0xaa; 16]);
    }
    assert!(edu.reports().is_empty());
}

#[test]
fn a_refused_transfer_is_reported_and_ends() {
    let mut edu = edu();
    edu.map(&[(0x1000, 0x1000, Rights::READ)]);
    transfer(&mut edu, BUFFER, 0x1000, 64, 0b111);
    let reports = edu.reports();
    assert_eq!(
        reports[0],
        "DMA fault: 0000:01:00.0 write at 0x1000-0x103f: against the mapping's permission"
    );
    assert_eq!(reports[1], "ended the transfer; edu has no error status");
    assert_eq!((edu.read32(COMMAND) & 1, edu.read32(0x24)), (0, 0x100));
}

#[test]
fn addresses_are_cut_to_the_dma_mask() {
    let mut edu = edu();
    edu.poke(0x3000, b"mask");
    transfer(&mut edu, 0x1000_3000, BUFFER, 4, 0b001);
    transfer(&mut edu, BUFFER, 0x4000, 4, 0b011);
    assert_eq!(edu.peek(0x4000, 4), b"mask");

    let wide = Properties::from([("dma-mask".to_owned(), Value::Integer(u64::MAX))]);
    let mut edu = Machine::new("edu", &wide, 1 << 20);
    transfer(&mut edu, 0x1000_3000, BUFFER, 4, 0b001);
    assert_eq!(
        edu.reports()[0],
        "DMA fault: 0000:01:00.0 read at 0x10003000-0x10003003: not mapped"
    );
}

#[test]
fn without_bus_master_nothing_is_requested() {
    let mut edu = edu();
    edu.set_command(2);
    transfer(&mut edu, 0x1000, BUFFER, 4, 0b001);
    assert_eq!(
        edu.reports(),
        [
            "DMA fault: 0000:01:00.0 read at 0x1000-0x1003: bus mastering is disabled",
            "ended the transfer; edu has no error status"
        ]
    );
}

#[test]
fn a_reset_in_the_middle_of_a_transfer_ends_it_without_a_trace() {
    let mut edu = edu();
    edu.poke(0x1000, &[1; 16]);
    let device = edu.device.clone();
    edu.at_next_request(move |_| {
        device.endpoint().reset();
        device.reset(ResetKind::FunctionLevel);
    });
    transfer(&mut edu, 0x1000, BUFFER, 16, 0b101);
    assert_eq!(edu.read64(COMMAND), 0);
    assert_eq!((edu.read32(0x24), edu.line()), (0, Line::Deasserted));
    edu.set_command(6);
    transfer(&mut edu, BUFFER, 0x2000, 16, 0b011);
    assert_eq!(edu.peek(0x2000, 16), [0; 16]);
}

#[test]
fn a_reset_between_two_pieces_of_a_transfer_stops_the_second() {
    let mut edu = edu();
    edu.poke(0x1000, &[0xaa; 0x2000]);
    edu.map(&[
        (0x1000, 0x1000, Rights::READ_WRITE),
        (0x2000, 0x1000, Rights::READ_WRITE),
    ]);
    let device = edu.device.clone();
    edu.at_next_request(move |_| {
        device.endpoint().reset();
        device.reset(ResetKind::FunctionLevel);
    });
    transfer(&mut edu, BUFFER, 0x1f00, 0x200, 0b011);
    // The first was under way under its guard; a grace would wait for it.
    assert_eq!(edu.peek(0x1f00, 0x100), [0; 0x100]);
    assert_eq!(edu.peek(0x2000, 0x100), [0xaa; 0x100]);
    assert!(edu.reports().is_empty());
}

#[test]
fn a_transfer_carries_the_pasid_that_its_register_names() {
    let with = Properties::from([("pasid".to_owned(), Value::Bool(true))]);
    let mut edu = Machine::new("edu", &with, 1 << 20);
    edu.write32(PASID, 5);
    assert_eq!(edu.read32(PASID), u32::MAX, "nobody lets it send any");
    assert_eq!(edu.device.endpoint().enable_pasids(8), 8);
    let seen = Arc::new(Mutex::new(Vec::new()));
    for (written, kept, pasid) in [
        (0, 0, None),
        (5, 5, None),
        (1 << 31 | 5, 1 << 31 | 5, Some(5)),
        (u32::MAX, 1 << 31 | 0xff, Some(0xff)),
        (0, 0, None),
    ] {
        edu.write32(PASID, written);
        assert_eq!(edu.read32(PASID), kept);
        let at = Arc::clone(&seen);
        edu.at_next_request(move |request| {
            at.lock().unwrap().push(request.source.pasid);
        });
        transfer(&mut edu, BUFFER, 0x1000, 8, 3);
        let carried = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(carried, [pasid.and_then(Pasid::new)]);
    }
    edu.write32(PASID, 1 << 31);
    edu.device.endpoint().reset();
    edu.device.reset(ResetKind::FunctionLevel);
    assert_eq!(edu.read32(PASID), 0);
    assert_eq!(
        edu.device.endpoint().pasid_bits(),
        8,
        "as a kernel restores it"
    );
}

#[test]
fn an_edu_without_pasids_is_as_ever() {
    let edu = edu();
    let endpoint = edu.device.endpoint();
    assert_eq!((endpoint.enable_pasids(20), endpoint.pasid_bits()), (0, 0));
    assert_eq!(edu.read32(PASID), u32::MAX);
    let mut capability = [1; 4];
    endpoint.read_config(0x100, &mut capability);
    assert_eq!(capability, [0; 4]);
}
