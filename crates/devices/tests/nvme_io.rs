//! I/O commands of nvme and where their data lies. Numbers are those of NVM
//! Express 1.4.
#![allow(missing_docs)]

mod common;

use common::driver::{Command, Completion, DATA, Driver, RAM, pattern, read, write};
use iogate_devices::{Properties, Value};
use iogate_dma::Rights;

#[test]
fn what_is_written_is_read_back() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    let data = pattern(4096);
    driver.machine.poke(DATA, &data);
    let completion = driver.run(1, write(8, 8, DATA, 0));
    assert_eq!(
        completion,
        Completion {
            dw0: 0,
            sq_head: 1,
            sq: 1,
            cid: 0,
            status: 0
        }
    );
    assert_eq!(driver.run(1, read(8, 8, DATA + 0x10000, 0)).status, 0);
    assert_eq!(driver.machine.peek(DATA + 0x10000, 4096), data);
    // The block before was never written.
    assert_eq!(driver.run(1, read(7, 1, DATA + 0x10000, 0)).status, 0);
    assert_eq!(driver.machine.peek(DATA + 0x10000, 512), [0; 512]);
    // Flush of one and of all namespaces.
    for nsid in [1, u32::MAX] {
        let flush = Command {
            nsid,
            ..Command::default()
        };
        assert_eq!(driver.run(1, flush).status, 0);
    }
    assert!(driver.machine.reports().is_empty());
}

#[test]
fn data_begins_anywhere_in_a_page_and_goes_on_in_the_second_entry() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    let data = pattern(4096);
    driver.machine.poke(DATA + 0xc00, &data[..0x400]);
    driver.machine.poke(DATA + 0x5000, &data[0x400..]);
    let command = write(0, 8, DATA + 0xc00, DATA + 0x5000);
    assert_eq!(driver.run(1, command).status, 0);
    assert_eq!(driver.run(1, read(0, 8, DATA + 0x8000, 0)).status, 0);
    assert_eq!(driver.machine.peek(DATA + 0x8000, 4096), data);
}

#[test]
fn a_list_of_pages_may_begin_anywhere_and_go_on_in_another() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    // 512 KiB, the most of one command, from pages in descending order.
    let data = pattern(512 << 10);
    let page = |index: u64| DATA + (200 - index) * 0x1000;
    for (index, bytes) in data.chunks(4096).enumerate() {
        driver.machine.poke(page(index as u64), bytes);
    }
    // 127 entries: two at the end of one page, the third slot links to the
    // rest.
    let (first, second) = (0x18_0fe8, 0x18_1000);
    driver.machine.poke(first, &page(1).to_le_bytes());
    driver.machine.poke(first + 8, &page(2).to_le_bytes());
    driver.machine.poke(first + 16, &u64::to_le_bytes(second));
    for index in 3..128 {
        let at = second + (index - 3) * 8;
        driver.machine.poke(at, &page(index).to_le_bytes());
    }
    let command = write(100, 1024, page(0), first);
    assert_eq!(driver.run(1, command).status, 0);
    // Read back by one list of pages in ascending order.
    for index in 1..128 {
        let at = second + (index - 1) * 8;
        let page = DATA + 0x20_0000 + index * 0x1000;
        driver.machine.poke(at, &page.to_le_bytes());
    }
    let command = read(100, 1024, DATA + 0x20_0000, second);
    assert_eq!(driver.run(1, command).status, 0);
    assert_eq!(driver.machine.peek(DATA + 0x20_0000, data.len()), data);
}

#[test]
fn entries_with_an_offset_are_refused() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    driver.machine.poke(0x18_0000, &(DATA + 8).to_le_bytes());
    for (command, why) in [
        (read(0, 1, DATA + 2, 0), "prp1 is not aligned to a dword"),
        (read(0, 16, DATA, DATA + 0x100), "prp2 has an offset"),
        (
            read(0, 24, DATA, 0x18_0004),
            "a list is not aligned to a qword",
        ),
        (
            read(0, 24, DATA, 0x18_0000),
            "an entry of a list has an offset",
        ),
    ] {
        assert_eq!(driver.run(1, command).status, 0x013, "{why}");
    }
}

#[test]
fn a_chain_of_lists_that_point_to_themselves_ends() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    // The last slot of a page, as a list, holds nothing but a link.
    driver.machine.poke(0x18_0ff8, &0x18_0000_u64.to_le_bytes());
    driver.machine.poke(0x18_0000, &[0; 4096]);
    driver.machine.poke(0x18_0ff8, &0x18_0ff8_u64.to_le_bytes());
    assert_eq!(driver.run(1, read(0, 1024, DATA, 0x18_0ff8)).status, 0x013);
}

#[test]
fn a_refused_data_access_ends_the_command_with_data_transfer_error() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    driver
        .machine
        .map(&[(0, DATA, Rights::READ_WRITE), (DATA, 0x1000, Rights::READ)]);
    let command = Command {
        cid: 17,
        ..read(0, 8, DATA, 0)
    };
    let completion = driver.run(1, command);
    assert_eq!((completion.cid, completion.status), (17, 0x004));
    assert_eq!(
        driver.machine.reports(),
        [
            "DMA fault: 0000:01:00.0 write at 0x200000-0x200fff: against the mapping's permission",
            "answered NVMe status 0x04, sq 1 cid 17",
        ]
    );
    let list = read(0, 24, DATA, 0x40_0000);
    assert_eq!(driver.run(1, list).status, 0x004);
    assert_eq!(driver.run(1, write(0, 8, DATA, 0)).status, 0);
    // The error log has the last one; the SMART log counts both.
    driver.machine.map(&[(0, RAM as u64, Rights::READ_WRITE)]);
    let log = |id: u32| Command {
        opcode: 2,
        nsid: u32::MAX,
        prp1: DATA,
        cdw10: 127 << 16 | id,
        ..Command::default()
    };
    assert_eq!(driver.admin(log(1)).status, 0);
    let error = driver.machine.peek(DATA, 64);
    assert_eq!(error[..8], 2_u64.to_le_bytes());
    assert_eq!(error[8..10], 1_u16.to_le_bytes());
    assert_eq!(driver.admin(log(2)).status, 0);
    assert_eq!(driver.machine.peek64(DATA + 176), 2);
}

#[test]
fn commands_out_of_range_or_unknown_get_their_status() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    let blocks = (64 << 20) / 512;
    let zeroes = |slba, blocks| Command {
        opcode: 8,
        ..read(slba, blocks, 0, 0)
    };
    for (command, status, why) in [
        (read(blocks, 1, DATA, 0), 0x080, "beyond the end"),
        (read(blocks - 1, 2, DATA, 0), 0x080, "across the end"),
        (zeroes(blocks - 1, 2), 0x080, "zeroes across the end"),
        (read(0, 1025, DATA, DATA), 0x002, "more than MDTS"),
        (
            Command {
                cdw11: u32::MAX,
                ..read(u32::MAX, 1, DATA, 0)
            },
            0x080,
            "the highest address",
        ),
        (
            Command {
                nsid: 2,
                ..read(0, 1, DATA, 0)
            },
            0x00b,
            "namespace 2",
        ),
        (
            Command {
                nsid: 0,
                ..read(0, 1, DATA, 0)
            },
            0x00b,
            "namespace 0",
        ),
        (
            Command {
                nsid: u32::MAX,
                ..read(0, 1, DATA, 0)
            },
            0x00b,
            "all namespaces",
        ),
        (
            Command {
                opcode: 5,
                ..read(0, 1, DATA, 0)
            },
            0x001,
            "compare",
        ),
        (
            Command {
                opcode: 0xff,
                ..read(0, 1, DATA, 0)
            },
            0x001,
            "opcode ff",
        ),
        (
            Command {
                flags: 0x40,
                ..read(0, 1, DATA, 0)
            },
            0x002,
            "SGL",
        ),
        (
            Command {
                flags: 0x01,
                ..read(0, 1, DATA, 0)
            },
            0x002,
            "fused",
        ),
    ] {
        assert_eq!(driver.run(1, command).status, status, "{why}");
    }
    let unknown = Command {
        opcode: 0x7f,
        ..Command::default()
    };
    assert_eq!(driver.admin(unknown).status, 0x001);
    assert!(driver.machine.reports().is_empty());
}

#[test]
fn zeroed_blocks_read_as_zeros_and_their_neighbours_stay() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    driver.machine.poke(DATA, &[0xaa; 4096]);
    assert_eq!(driver.run(1, write(0, 8, DATA, 0)).status, 0);
    let zeroes = Command {
        opcode: 8,
        ..read(1, 6, 0, 0)
    };
    assert_eq!(driver.run(1, zeroes).status, 0);
    assert_eq!(driver.run(1, read(0, 8, DATA, 0)).status, 0);
    let mut expected = vec![0xaa; 4096];
    expected[512..3584].fill(0);
    assert_eq!(driver.machine.peek(DATA, 4096), expected);
}

#[test]
fn a_file_is_the_namespace() {
    let path = std::env::temp_dir().join(format!("iogate-nvme-{}", std::process::id()));
    std::fs::write(&path, pattern(8192)).unwrap();
    let text = path.to_str().unwrap().to_owned();
    let properties = Properties::from([("file".to_owned(), Value::Text(text))]);
    let mut driver = Driver::with(&properties);
    driver.create_pair(1);
    assert_eq!(driver.identify(0, 1)[..8], 16_u64.to_le_bytes());
    assert_eq!(driver.run(1, read(8, 8, DATA, 0)).status, 0);
    assert_eq!(driver.machine.peek(DATA, 4096), pattern(8192)[4096..]);
    driver.machine.poke(DATA, &[3; 512]);
    assert_eq!(driver.run(1, write(0, 1, DATA, 0)).status, 0);
    assert_eq!(std::fs::read(&path).unwrap()[..512], [3; 512]);
    // A file that shrinks under the device is a medium that fails.
    std::fs::write(&path, []).unwrap();
    assert_eq!(driver.run(1, read(8, 8, DATA, 0)).status, 0x281);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn deallocated_ranges_are_read_from_memory_and_checked() {
    let mut driver = Driver::new();
    driver.create_pair(1);
    driver.machine.poke(DATA, &[0xaa; 4096]);
    assert_eq!(driver.run(1, write(0, 8, DATA, 0)).status, 0);
    let range = |at: u64, slba: u64, blocks: u32| {
        driver.machine.poke(at + 4, &blocks.to_le_bytes());
        driver.machine.poke(at + 8, &slba.to_le_bytes());
    };
    let last = (64 << 20) / 512;
    range(DATA + 0x1ff0, 0, 1024);
    range(DATA + 0x3000, last, 0);
    let command = Command {
        opcode: 9,
        nsid: 1,
        prp1: DATA + 0x1ff0,
        prp2: DATA + 0x3000,
        cdw10: 1,
        cdw11: 4,
        ..Command::default()
    };
    assert_eq!(driver.run(1, command).status, 0);
    // This device gives whole chunks back, which then read as zeros.
    assert_eq!(driver.run(1, read(0, 8, DATA, 0)).status, 0);
    assert_eq!(driver.machine.peek(DATA, 4096), [0; 4096]);
    driver.machine.poke(DATA + 0x3004, &[1]);
    assert_eq!(driver.run(1, command).status, 0x080);
    driver.machine.map(&[(0, DATA, Rights::READ_WRITE)]);
    assert_eq!(driver.run(1, command).status, 0x004);
}
