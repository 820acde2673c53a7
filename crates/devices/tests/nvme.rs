//! nvme under a minimal driver. Numbers are those of NVM Express 1.4.
#![allow(missing_docs)]

mod common;

use common::Machine;
use iogate_devices::{Properties, Value};
use iogate_dma::{Access, Line, Rights};
use iogate_pci::{After, ResetKind};

const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
/// Enable, with 64-byte commands and 16-byte completions.
const ENABLE: u32 = 6 << 16 | 4 << 20 | 1;
const RAM: usize = 8 << 20;
/// Where queues stand: submission at 64 KiB times the identifier plus 1,
/// completion 32 KiB behind it.
const QUEUES: u64 = 0x1_0000;
/// Where data stands.
const DATA: u64 = 0x20_0000;

/// One command; the rest of it is zero.
#[derive(Clone, Copy, Default)]
struct Command {
    opcode: u8,
    cid: u16,
    nsid: u32,
    prp1: u64,
    prp2: u64,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    /// Bits 8 to 15 of Dword 0: fused operation, PSDT.
    flags: u8,
}

impl Command {
    fn bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = self.opcode;
        bytes[1] = self.flags;
        bytes[2..4].copy_from_slice(&self.cid.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.nsid.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.prp1.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.prp2.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.cdw10.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.cdw11.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.cdw12.to_le_bytes());
        bytes
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Completion {
    dw0: u32,
    sq_head: u16,
    sq: u16,
    cid: u16,
    /// Status code type and status code: 0x000 to 0x7ff.
    status: u16,
}

#[derive(Clone, Copy)]
struct Queue {
    size: u32,
    tail: u32,
    head: u32,
    phase: u16,
}

struct Driver {
    machine: Machine,
    queues: [Queue; 3],
}

impl Driver {
    fn new() -> Self {
        Self::with(&Properties::new())
    }

    fn with(properties: &Properties) -> Self {
        let machine = Machine::new("nvme", properties, RAM);
        let mut driver = Self {
            machine,
            queues: [Queue {
                size: 16,
                tail: 0,
                head: 0,
                phase: 1,
            }; 3],
        };
        driver.enable();
        driver
    }

    fn enable(&mut self) {
        let machine = &mut self.machine;
        machine.write32(0x24, 15 << 16 | 15);
        machine.write64(0x28, submission(0));
        machine.write64(0x30, completion(0));
        machine.write32(CC, ENABLE);
        assert_eq!(machine.read32(CSTS), 1);
        for queue in &mut self.queues {
            (queue.tail, queue.head, queue.phase) = (0, 0, 1);
        }
        machine.poke(QUEUES, &[0; 0x4_0000]);
    }

    /// Creates I/O queue pair `id` of 16 entries, on the vector of its number.
    fn create_pair(&mut self, id: u16) {
        let size = 15 << 16 | u32::from(id);
        let cq = Command {
            opcode: 5,
            prp1: completion(id),
            cdw10: size,
            cdw11: u32::from(id) << 16 | 3,
            ..Command::default()
        };
        assert_eq!(self.admin(cq).status, 0);
        let sq = Command {
            opcode: 1,
            prp1: submission(id),
            cdw10: size,
            cdw11: u32::from(id) << 16 | 1,
            ..Command::default()
        };
        assert_eq!(self.admin(sq).status, 0);
    }

    /// Puts a command into a queue without ringing.
    fn put(&mut self, id: u16, command: Command) {
        let queue = &mut self.queues[usize::from(id)];
        let at = submission(id) + u64::from(queue.tail) * 64;
        queue.tail = (queue.tail + 1) % queue.size;
        self.machine.poke(at, &command.bytes());
    }

    fn ring(&mut self, id: u16) {
        let tail = self.queues[usize::from(id)].tail;
        self.machine.write32(0x1000 + u64::from(id) * 8, tail);
    }

    /// Takes a completion that has arrived.
    fn take(&mut self, id: u16) -> Option<Completion> {
        let queue = &mut self.queues[usize::from(id)];
        let at = completion(id) + u64::from(queue.head) * 16;
        let bytes = self.machine.peek(at, 16);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if word(14) & 1 != queue.phase {
            return None;
        }
        queue.head = (queue.head + 1) % queue.size;
        queue.phase ^= u16::from(queue.head == 0);
        Some(Completion {
            dw0: u32::from(word(0)) | u32::from(word(2)) << 16,
            sq_head: word(8),
            sq: word(10),
            cid: word(12),
            status: word(14) >> 1 & 0x7ff,
        })
    }

    /// Tells the controller which completions were taken.
    fn acknowledge(&mut self, id: u16) {
        let head = self.queues[usize::from(id)].head;
        self.machine.write32(0x1004 + u64::from(id) * 8, head);
    }

    fn run(&mut self, id: u16, command: Command) -> Completion {
        self.put(id, command);
        self.ring(id);
        let completion = self.take(id).expect("a completion");
        self.acknowledge(id);
        completion
    }

    fn admin(&mut self, command: Command) -> Completion {
        self.run(0, command)
    }

    fn identify(&mut self, cns: u32, nsid: u32) -> Vec<u8> {
        let command = Command {
            opcode: 6,
            nsid,
            prp1: DATA,
            cdw10: cns,
            ..Command::default()
        };
        assert_eq!(self.admin(command).status, 0);
        self.machine.peek(DATA, 4096)
    }
}

fn submission(id: u16) -> u64 {
    QUEUES * (u64::from(id) + 1)
}

fn completion(id: u16) -> u64 {
    submission(id) + 0x8000
}

fn read_write(opcode: u8, slba: u32, blocks: u32, prp1: u64, prp2: u64) -> Command {
    Command {
        opcode,
        nsid: 1,
        prp1,
        prp2,
        cdw10: slba,
        cdw12: blocks - 1,
        ..Command::default()
    }
}

fn write(slba: u32, blocks: u32, prp1: u64, prp2: u64) -> Command {
    read_write(1, slba, blocks, prp1, prp2)
}

fn read(slba: u32, blocks: u32, prp1: u64, prp2: u64) -> Command {
    read_write(2, slba, blocks, prp1, prp2)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

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
