//! ioat as its drivers use it: chains, completions, interrupts, suspend and
//! reset, and what goes wrong.
#![allow(missing_docs)]

mod common;

use common::Machine;
use iogate_devices::Properties;
use iogate_dma::{Line, Rights};
use iogate_pci::{After, ResetKind};

const CHANCTRL: u64 = 0x80;
const CHANCMD: u64 = 0x84;
const DMACOUNT: u64 = 0x86;
const CHANSTS: u64 = 0x88;
const CHAINADDR: u64 = 0x90;
const CHANCMP: u64 = 0x98;
const CHANERR: u64 = 0xa8;

const SUSPEND: u8 = 0x04;
const RESUME: u8 = 0x10;
const RESET: u8 = 0x20;

const IDLE: u64 = 1;
const SUSPENDED: u64 = 2;
const HALTED: u64 = 3;
const ARMED: u64 = 4;

const INTERRUPT: u32 = 1;
const COMPLETION: u32 = 1 << 3;
const NULL: u32 = 1 << 5;
const FILL: u32 = 1 << 24;

const RING: u64 = 0x1000;
const STATUS: u64 = 0x800;

fn ioat() -> Machine {
    Machine::new("ioat", &Properties::new(), 1 << 20)
}

/// Descriptor `index` of a ring of 16.
fn descriptor(ioat: &Machine, index: u64, control: u32, size: u32, from: u64, to: u64) {
    let mut bytes = Vec::new();
    bytes.extend(size.to_le_bytes());
    bytes.extend(control.to_le_bytes());
    bytes.extend(from.to_le_bytes());
    bytes.extend(to.to_le_bytes());
    bytes.extend((RING + (index + 1) % 16 * 64).to_le_bytes());
    ioat.poke(RING + index * 64, &bytes);
}

fn begin(ioat: &mut Machine) {
    ioat.write64(CHAINADDR, RING);
    ioat.write64(CHANCMP, STATUS);
    // Abort on errors and say so at the completion address.
    ioat.write(0, CHANCTRL, &0x000d_u16.to_le_bytes());
}

fn submit(ioat: &mut Machine, count: u16) {
    ioat.write(0, DMACOUNT, &count.to_le_bytes());
}

#[test]
fn it_is_a_version_3_3_engine_of_one_channel_that_is_halted_at_first() {
    let ioat = ioat();
    assert_eq!(ioat.read::<1>(0, 0x00), [1]);
    assert_eq!(ioat.read::<1>(0, 0x01), [12]);
    assert_eq!(ioat.read::<1>(0, 0x08), [0x33]);
    assert_eq!(ioat.read32(0x10), 1 << 6);
    assert_eq!(ioat.read64(CHANSTS), HALTED);
    let mut id = [0; 4];
    ioat.device.endpoint().read_config(0, &mut id);
    assert_eq!(u32::from_le_bytes(id), 0x2021_8086);
}

#[test]
fn a_chain_is_copied_and_each_completion_is_written() {
    let mut ioat = ioat();
    ioat.poke(0x4000, &[0x5a; 4096]);
    descriptor(&ioat, 0, COMPLETION | NULL, 1, 0, 0);
    descriptor(&ioat, 1, COMPLETION, 4096, 0x4000, 0x6000);
    descriptor(&ioat, 2, FILL, 11, 0x8877_6655_4433_2211, 0x7000);
    begin(&mut ioat);
    assert_eq!(ioat.read64(CHANSTS), ARMED);
    submit(&mut ioat, 2);
    assert_eq!(ioat.peek(0x6000, 4096), [0x5a; 4096]);
    assert_eq!(ioat.peek64(STATUS), RING + 64 + IDLE);
    assert_eq!(ioat.read64(CHANSTS), RING + 64 + IDLE);
    submit(&mut ioat, 3);
    assert_eq!(
        ioat.peek(0x7000, 12),
        [
            0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x11, 0x22, 0x33, 0
        ]
    );
    // The fill asked for no completion.
    assert_eq!(ioat.peek64(STATUS), RING + 64 + IDLE);
    assert_eq!(ioat.read64(CHANSTS), RING + 128 + IDLE);
    assert!(ioat.reports().is_empty());
}

#[test]
fn the_count_goes_on_beyond_65535_descriptors() {
    let mut ioat = ioat();
    // One descriptor that follows itself.
    descriptor(&ioat, 15, NULL | COMPLETION, 1, 0, 0);
    ioat.poke(RING + 15 * 64 + 24, &(RING + 15 * 64).to_le_bytes());
    ioat.write64(CHAINADDR, RING + 15 * 64);
    ioat.write64(CHANCMP, STATUS);
    submit(&mut ioat, u16::MAX);
    assert_eq!(ioat.peek64(STATUS), RING + 15 * 64 + IDLE);
    let after = ioat.device.write_bar(0, DMACOUNT, &1_u16.to_le_bytes());
    assert_eq!((after, ioat.read64(CHANSTS) & 7), (After::Work, 0));
    assert_eq!(ioat.finish(after), 1);
    assert_eq!(ioat.read64(CHANSTS) & 7, IDLE);
}

#[test]
fn an_interrupt_comes_once_until_it_is_rearmed() {
    let mut ioat = ioat();
    ioat.enable_msix();
    for index in 0..4 {
        descriptor(&ioat, index, NULL | INTERRUPT, 1, 0, 0);
    }
    begin(&mut ioat);
    ioat.write(0, 0x03, &[0x08]);
    submit(&mut ioat, 2);
    assert_eq!(ioat.messages(), [0]);
    assert_eq!(ioat.read::<2>(0, CHANCTRL), [0x0d, 0]);
    ioat.write(0, CHANCTRL, &[0x0d, 0]);
    assert_eq!(ioat.read::<2>(0, CHANCTRL), [0x0c, 0]);
    submit(&mut ioat, 4);
    assert_eq!(ioat.messages(), [0]);
}

#[test]
fn the_pin_is_asserted_until_attention_is_read() {
    let mut ioat = ioat();
    descriptor(&ioat, 0, NULL | INTERRUPT, 1, 0, 0);
    begin(&mut ioat);
    ioat.write(0, 0x03, &[0x01]);
    submit(&mut ioat, 1);
    assert_eq!(ioat.line(), Line::Asserted);
    // Reading takes Master Interrupt Enable away.
    assert_eq!(ioat.read::<1>(0, 0x03), [0x07]);
    assert_eq!(ioat.line(), Line::Deasserted);
    assert_eq!(ioat.read32(0x04), 1);
    ioat.write(0, 0x03, &[0x01]);
    assert_eq!((ioat.read32(0x04), ioat.line()), (0, Line::Deasserted));
}

#[test]
fn suspended_it_does_nothing_until_it_resumes_or_a_new_chain_begins() {
    let mut ioat = ioat();
    descriptor(&ioat, 0, NULL, 1, 0, 0);
    descriptor(&ioat, 1, NULL, 1, 0, 0);
    begin(&mut ioat);
    submit(&mut ioat, 1);
    ioat.write(0, CHANCMD, &[SUSPEND]);
    submit(&mut ioat, 2);
    assert_eq!(ioat.read64(CHANSTS), RING + SUSPENDED);
    ioat.write(0, CHANCMD, &[RESUME]);
    assert_eq!(ioat.read64(CHANSTS), RING + 64 + IDLE);
    ioat.write(0, CHANCMD, &[SUSPEND]);
    ioat.write64(CHAINADDR, RING);
    submit(&mut ioat, 1);
    assert_eq!(ioat.read64(CHANSTS), RING + IDLE);
}

#[test]
fn every_error_halts_with_its_cause_and_reset_recovers() {
    let mut ioat = ioat();
    ioat.map(&[
        (0, 0x8000, Rights::READ_WRITE),
        (0x8000, 0x1000, Rights::READ),
    ]);
    for (control, size, from, to, error) in [
        (COMPLETION, 64, 0x10_0000, 0x4000, 1 << 0),
        (COMPLETION, 64, 0x4000, 0x8000, 1 << 1),
        (COMPLETION, 64, 0x7fe0, 0x10_0000, 1 << 1),
        (0x87 << 24, 64, 0x4000, 0x5000, 1 << 10),
        (0, 0, 0x4000, 0x5000, 1 << 11),
        (0, 4097, 0x4000, 0x5000, 1 << 11),
        (FILL, u32::MAX, 0x4000, 0x5000, 1 << 11),
    ] {
        descriptor(&ioat, 0, NULL | COMPLETION, 1, 0, 0);
        descriptor(&ioat, 1, control, size, from, to);
        begin(&mut ioat);
        submit(&mut ioat, 2);
        assert_eq!(ioat.read64(CHANSTS), RING + HALTED);
        assert_eq!(ioat.peek64(STATUS), RING + HALTED);
        assert_eq!(ioat.read32(CHANERR), error);
        assert!(!ioat.reports().is_empty());
        ioat.write32(CHANERR, error);
        assert_eq!(ioat.read32(CHANERR), 0);
        ioat.write(0, CHANCMD, &[RESET]);
        assert_eq!(ioat.read::<1>(0, CHANCMD), [0]);
        assert_eq!(ioat.read64(CHANSTS), HALTED);
    }
}

#[test]
fn addresses_of_chains_and_completions_that_lead_nowhere_are_errors() {
    for (chain, completion, error) in [
        (RING + 8, STATUS, 1 << 4),
        (0x20_0000, STATUS, 1 << 4),
        (u64::MAX, STATUS, 1 << 4),
        (RING, 0x20_0000, 1 << 12),
        (RING, u64::MAX, 1 << 12),
    ] {
        let mut ioat = ioat();
        descriptor(&ioat, 0, NULL | COMPLETION, 1, 0, 0);
        ioat.write64(CHANCMP, completion);
        ioat.write64(CHAINADDR, chain);
        submit(&mut ioat, 1);
        assert_eq!(ioat.read32(CHANERR), error, "{chain:#x} {completion:#x}");
        assert_eq!(ioat.read64(CHANSTS) & 7, HALTED);
    }
    let mut ioat = ioat();
    descriptor(&ioat, 0, NULL, 1, 0, 0);
    ioat.poke(RING + 24, &0x20_0000_u64.to_le_bytes());
    begin(&mut ioat);
    submit(&mut ioat, 2);
    assert_eq!(ioat.read32(CHANERR), 1 << 2);
}

#[test]
fn a_channel_reset_waits_for_the_descriptor_under_way_and_then_takes_a_chain() {
    let mut ioat = ioat();
    descriptor(&ioat, 0, 0, 64, 0x4000, 0x5000);
    descriptor(&ioat, 1, 0, 64, 0x4000, 0x6000);
    ioat.poke(0x4000, &[7; 64]);
    let device = ioat.device.clone();
    ioat.at_next_request(move |_| {
        assert_eq!(device.write_bar(0, CHANCMD, &[RESET]), After::Work);
        let mut command = [0];
        device.read_bar(0, CHANCMD, &mut command);
        assert_eq!(command, [RESET]);
        let chain = (RING + 64).to_le_bytes();
        let _ = device.write_bar(0, CHAINADDR, &chain);
    });
    begin(&mut ioat);
    submit(&mut ioat, 1);
    assert_eq!(ioat.peek(0x5000, 64), [7; 64]);
    assert_eq!(ioat.read::<1>(0, CHANCMD), [0]);
    assert_eq!(ioat.read64(CHANSTS), ARMED);
    submit(&mut ioat, 1);
    assert_eq!(ioat.peek(0x6000, 64), [7; 64]);
}

#[test]
fn a_function_reset_in_the_middle_ends_everything() {
    let mut ioat = ioat();
    descriptor(&ioat, 0, COMPLETION, 64, 0x4000, 0x5000);
    ioat.poke(0x4000, &[7; 64]);
    let device = ioat.device.clone();
    ioat.at_next_request(move |_| {
        device.endpoint().reset();
        device.reset(ResetKind::FunctionLevel);
    });
    begin(&mut ioat);
    submit(&mut ioat, 1);
    assert_eq!(ioat.read64(CHANSTS), HALTED);
    assert_eq!(ioat.peek(0x5000, 64), [0; 64]);
    assert_eq!(ioat.peek64(STATUS), 0);
    assert!(ioat.reports().is_empty());
}

#[test]
fn a_quantum_is_bounded() {
    let mut ioat = ioat();
    descriptor(&ioat, 0, NULL, 1, 0, 0);
    ioat.poke(RING + 24, &RING.to_le_bytes());
    ioat.write64(CHAINADDR, RING);
    let after = ioat.device.write_bar(0, DMACOUNT, &[0xff, 0xff]);
    assert_eq!(ioat.finish(after), 1024);
}
