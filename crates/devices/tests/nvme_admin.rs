//! Registers and admin commands of nvme. Numbers are those of NVM
//! Express 1.4.
#![allow(missing_docs)]

mod common;

use common::Machine;
use common::driver::{CC, CSTS, Command, DATA, Driver, RAM};
use iogate_devices::{Properties, Value};

#[test]
fn registers_say_what_there_is() {
    let machine = Machine::new("nvme", &Properties::new(), RAM);
    let mut class = [0; 4];
    machine.device.endpoint().read_config(8, &mut class);
    assert_eq!(class[1..], [0x02, 0x08, 0x01]);
    let cap = machine.read64(0);
    // 1024 entries, contiguous, NVM command set, 4 KiB pages, stride 4.
    assert_eq!((cap & 0xffff, cap >> 16 & 1), (1023, 1));
    assert_eq!(
        (cap >> 37 & 1, cap >> 48 & 0xff, cap >> 32 & 0xf),
        (1, 0, 0)
    );
    assert_eq!(machine.read32(8), 0x0001_0400);
    assert_eq!((machine.read32(CC), machine.read32(CSTS)), (0, 0));
}

#[test]
fn identify_describes_controller_and_namespace() {
    let properties = Properties::from([
        ("size".to_owned(), Value::Bytes(1 << 40)),
        ("serial".to_owned(), Value::Text("S-1".to_owned())),
    ]);
    let mut driver = Driver::with(&properties);
    let controller = driver.identify(1, 0);
    assert_eq!(&controller[4..24], b"S-1                 ");
    assert_eq!(controller[77], 7);
    assert_eq!(controller[80..84], 0x0001_0400_u32.to_le_bytes());
    assert_eq!((controller[512], controller[513]), (0x66, 0x44));
    assert_eq!(controller[516..520], [1, 0, 0, 0]);
    assert!(controller[768..].starts_with(b"nqn.2014-08.org.nvmexpress:uuid:"));
    let namespace = driver.identify(0, 1);
    assert_eq!(namespace[..8], (1_u64 << 31).to_le_bytes());
    assert_eq!(namespace[128..132], [0, 0, 9, 0]);
    assert_eq!(driver.identify(2, 0)[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.identify(2, 1)[..4], [0; 4]);
    assert_eq!(driver.identify(3, 1)[..2], [3, 16]);
    for (cns, nsid, status) in [
        (0, 0, 0x00b),
        (0, 2, 0x00b),
        (3, 2, 0x00b),
        (2, u32::MAX, 0x00b),
        (0x77, 0, 0x002),
    ] {
        let command = Command {
            opcode: 6,
            nsid,
            prp1: DATA,
            cdw10: cns,
            ..Command::default()
        };
        assert_eq!(driver.admin(command).status, status, "{cns} {nsid}");
    }
}

#[test]
fn features_are_set_and_read() {
    let mut driver = Driver::new();
    let get = |id, cdw11| Command {
        opcode: 0x0a,
        cdw10: id,
        cdw11,
        ..Command::default()
    };
    let set = |id, cdw11| Command {
        opcode: 9,
        ..get(id, cdw11)
    };
    // 16 pairs, less one, however many are asked for.
    assert_eq!(driver.admin(set(7, 0x0003_0003)).dw0, 0x000f_000f);
    assert_eq!(driver.admin(set(7, 0xffff_0000)).status, 0x002);
    assert_eq!(driver.admin(get(7, 0)).dw0, 0x000f_000f);
    assert_eq!(driver.admin(get(6, 0)).dw0, 1);
    assert_eq!(driver.admin(set(6, 0)).status, 0);
    assert_eq!(driver.admin(get(6, 0)).dw0, 0);
    // The default, and what can be done with it.
    assert_eq!(driver.admin(get(6 | 1 << 8, 0)).dw0, 1);
    assert_eq!(driver.admin(get(6 | 3 << 8, 0)).dw0, 4);
    assert_eq!(driver.admin(set(4, 300)).status, 0);
    assert_eq!(driver.admin(set(4, 1 << 20 | 200)).status, 0);
    assert_eq!(driver.admin(get(4, 0)).dw0, 300);
    assert_eq!(driver.admin(get(4, 1 << 20)).dw0, 200);
    assert_eq!(driver.admin(set(9, 1 << 16 | 16)).status, 0);
    assert_eq!(driver.admin(get(9, 16)).dw0, 1 << 16 | 16);
    assert_eq!(driver.admin(get(9, 17)).status, 0x002);
    assert_eq!(driver.admin(set(2, 1)).status, 0x002);
    assert_eq!(driver.admin(set(6 | 1 << 31, 0)).status, 0x10d);
    assert_eq!(driver.admin(get(0x7e, 0)).status, 0x002);
    driver.create_pair(1);
    assert_eq!(driver.admin(set(7, 0)).status, 0x00c);
}

#[test]
fn log_pages_are_cut_padded_and_checked() {
    let mut driver = Driver::new();
    driver.machine.poke(DATA, &[0xee; 8192]);
    let log = |cdw10, cdw12| Command {
        opcode: 2,
        prp1: DATA,
        prp2: DATA + 0x1000,
        cdw10,
        cdw12,
        ..Command::default()
    };
    // 1025 dwords of a page of 512 bytes.
    assert_eq!(driver.admin(log(1024 << 16 | 3, 0)).status, 0);
    let page = driver.machine.peek(DATA, 4104);
    assert_eq!((page[0], &page[4090..4100]), (1, &[0; 10][..]));
    assert_eq!(page[4100..], [0xee; 4]);
    // One dword from offset 8: the firmware's name.
    assert_eq!(driver.admin(log(3, 8)).status, 0);
    assert_ne!(driver.machine.peek(DATA, 4), [1, 0, 0, 0]);
    assert_eq!(driver.admin(log(3, 2)).status, 0x002);
    assert_eq!(driver.admin(log(3, 516)).status, 0x002);
    let huge = Command {
        cdw11: 0xffff,
        ..log(0xffff << 16 | 3, 0)
    };
    assert_eq!(driver.admin(huge).status, 0x002);
    assert_eq!(driver.admin(log(0xc0, 0)).status, 0x109);
}
