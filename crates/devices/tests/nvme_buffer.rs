//! The controller memory buffer of nvme. Numbers are those of NVM Express 1.4
//! sections 3.1.1, 3.1.11 to 3.1.17 and 4.7.
#![allow(missing_docs)]

mod common;

use common::driver::{CC, CSTS, Command, DATA, Driver, ENABLE, read, write};
use iogate_devices::{Properties, Value};
use iogate_pci::ResetKind;

const CMBLOC: u64 = 0x38;
const CMBSZ: u64 = 0x3c;
const CMBMSC: u64 = 0x50;
const CMBSTS: u64 = 0x58;
/// Capabilities Registers Enabled, Controller Memory Space Enable.
const SHOWN: u64 = 1;
const USED: u64 = 3;
const SIZE: u64 = 1 << 20;
/// Where the buffer is put: no memory of the host is there.
const BASE: u64 = 0x10_0000_0000;

fn driver() -> Driver {
    Driver::with(&Properties::from([("cmb".to_owned(), Value::Bytes(SIZE))]))
}

fn poke(driver: &Driver, at: u64, bytes: &[u8]) {
    let _ = driver.machine.device.write_bar(2, at, bytes);
}

fn peek(driver: &Driver, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    driver.machine.device.read_bar(2, at, &mut bytes);
    bytes
}

#[test]
fn a_controller_without_a_buffer_shows_none() {
    let mut driver = Driver::new();
    driver.machine.write64(CMBMSC, USED | BASE);
    assert_eq!(driver.machine.read32(0x04) >> 25 & 1, 0, "CAP.CMBS");
    for at in [CMBLOC, CMBSZ, CMBMSC, CMBMSC + 4, CMBSTS] {
        assert_eq!(driver.machine.read32(at), 0, "{at:#x}");
    }
    assert!(driver.machine.device.endpoint().bar(2).is_none());
}

#[test]
fn a_buffer_is_shown_when_the_host_asks_for_its_registers() {
    let mut driver = driver();
    assert_eq!(driver.machine.read32(0x04) >> 25 & 1, 1, "CAP.CMBS");
    assert_eq!(
        (driver.machine.read32(CMBLOC), driver.machine.read32(CMBSZ)),
        (0, 0)
    );
    driver.machine.write64(CMBMSC, SHOWN);
    // BAR 2, any mix of locations; 256 units of 4 KiB for everything.
    assert_eq!(driver.machine.read32(CMBLOC), 2 | 1 << 3 | 1 << 5 | 1 << 6);
    assert_eq!(driver.machine.read32(CMBSZ), 0x1f | 256 << 12);
    assert_eq!(driver.machine.device.endpoint().bar(2).unwrap().size, SIZE);
}

#[test]
fn a_base_that_wraps_is_invalid() {
    let mut driver = driver();
    driver.machine.write64(CMBMSC, USED | 0xffff_ffff_fff0_0000);
    assert_eq!(driver.machine.read32(CMBSTS), 0, "the last place that fits");
    driver.machine.write64(CMBMSC, USED | 0xffff_ffff_fff0_1000);
    assert_eq!(driver.machine.read32(CMBSTS), 1);
}

#[test]
fn queues_lists_and_data_lie_in_the_buffer() {
    let mut driver = driver();
    driver.machine.write64(CMBMSC, USED | BASE);
    // A pair of queues of 16 entries: completions at 0x1000, commands at 0.
    for (opcode, prp1, cdw11) in [(5, BASE + 0x1000, 3), (1, BASE, 1 << 16 | 1)] {
        let command = Command {
            opcode,
            prp1,
            cdw10: 15 << 16 | 1,
            cdw11,
            ..Command::default()
        };
        assert_eq!(driver.admin(command).status, 0);
    }
    // 16 KiB whose list and pages lie there, the second page in the host's.
    let pages = [BASE + 0x5000, DATA, BASE + 0x6000];
    let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    poke(&driver, 0x3000, &list);
    let text: Vec<u8> = (0..0x4000_u32).map(|at| (at >> 4) as u8).collect();
    poke(&driver, 0x4000, &text[..0x1000]);
    poke(&driver, 0x5000, &text[0x1000..0x2000]);
    driver.machine.poke(DATA, &text[0x2000..0x3000]);
    poke(&driver, 0x6000, &text[0x3000..]);
    let prps = |command: Command| Command {
        prp1: BASE + 0x4000,
        prp2: BASE + 0x3000,
        ..command
    };
    for (tail, command) in [(1, write(0, 32, DATA, 0)), (2, read(0, 32, DATA, 0))] {
        poke(&driver, u64::from(tail - 1) * 64, &prps(command).bytes());
        if tail == 2 {
            for at in [0x4000, 0x5000, 0x6000] {
                poke(&driver, at, &[0; 4096]);
            }
            driver.machine.poke(DATA, &[0; 4096]);
        }
        driver.machine.write32(0x1008, tail);
        let completion = peek(&driver, 0x1000 + u64::from(tail - 1) * 16, 16);
        assert_eq!(completion[14..], [1, 0], "phase and status");
    }
    let back = [
        peek(&driver, 0x4000, 0x2000),
        driver.machine.peek(DATA, 0x1000).to_vec(),
        peek(&driver, 0x6000, 0x1000),
    ];
    assert!(back.concat() == text);
}

#[test]
fn a_buffer_that_is_not_enabled_leaves_addresses_to_the_bus() {
    let mut driver = driver();
    driver.machine.write64(CMBMSC, SHOWN | DATA);
    driver.create_pair(1);
    assert_eq!(driver.run(1, write(0, 8, DATA, 0)).status, 0);
    driver.machine.write64(CMBMSC, USED | DATA);
    poke(&driver, 0, &[0x5a; 4096]);
    assert_eq!(driver.run(1, read(0, 8, DATA, 0)).status, 0);
    assert!(
        peek(&driver, 0, 4096) == [0; 4096],
        "the blocks, in the buffer now"
    );
}

#[test]
fn a_controller_reset_leaves_the_buffer_where_it_is_and_a_function_reset_does_not() {
    let mut driver = driver();
    driver.machine.write64(CMBMSC, USED | BASE);
    driver.machine.write32(CC, 0);
    assert_eq!(driver.machine.read32(CSTS), 0);
    assert_eq!(driver.machine.read64(CMBMSC), USED | BASE);
    driver.machine.write32(CC, ENABLE);
    driver.machine.device.reset(ResetKind::FunctionLevel);
    assert_eq!(driver.machine.read64(CMBMSC), 0);
    assert_eq!(driver.machine.read32(CMBSZ), 0);
}

#[test]
fn a_buffer_has_a_size_that_a_bar_can_have() {
    for (size, fits) in [
        (2048, false),
        (4096, true),
        (12 << 10, false),
        (1 << 30, true),
        (1 << 31, false),
    ] {
        let properties = Properties::from([("cmb".to_owned(), Value::Bytes(size))]);
        let slot = iogate_devices::Slot {
            source: "0000:01:00.0".parse().unwrap(),
            interrupts: std::sync::Arc::new(common::Interrupted::default()),
            tap: None,
            memory: Some(std::sync::Arc::new(|_, _| {
                Ok(std::sync::Arc::new(common::Ram::default()))
            })),
        };
        let built = iogate_devices::build("nvme", &properties, slot);
        assert_eq!(built.is_ok(), fits, "{size}");
    }
}
