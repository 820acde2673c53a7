//! A minimal NVMe driver.

use iogate_devices::Properties;

use super::Machine;

pub const CC: u64 = 0x14;
pub const CSTS: u64 = 0x1c;
/// Enable, with 64-byte commands and 16-byte completions.
pub const ENABLE: u32 = 6 << 16 | 4 << 20 | 1;
pub const RAM: usize = 8 << 20;
/// Where queues stand: submission at 64 KiB times the identifier plus 1,
/// completion 32 KiB behind it.
pub const QUEUES: u64 = 0x1_0000;
/// Where data stands.
pub const DATA: u64 = 0x20_0000;

/// One command; the rest of it is zero.
#[derive(Clone, Copy, Default)]
pub struct Command {
    pub opcode: u8,
    pub cid: u16,
    pub nsid: u32,
    pub prp1: u64,
    pub prp2: u64,
    pub cdw10: u32,
    pub cdw11: u32,
    pub cdw12: u32,
    /// Bits 8 to 15 of Dword 0: fused operation, PSDT.
    pub flags: u8,
}

impl Command {
    pub fn bytes(&self) -> [u8; 64] {
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
pub struct Completion {
    pub dw0: u32,
    pub sq_head: u16,
    pub sq: u16,
    pub cid: u16,
    /// Status code type and status code: 0x000 to 0x7ff.
    pub status: u16,
}

#[derive(Clone, Copy)]
pub struct Queue {
    pub size: u32,
    pub tail: u32,
    pub head: u32,
    pub phase: u16,
}

pub struct Driver {
    pub machine: Machine,
    pub queues: [Queue; 3],
}

impl Driver {
    pub fn new() -> Self {
        Self::with(&Properties::new())
    }

    pub fn with(properties: &Properties) -> Self {
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

    pub fn enable(&mut self) {
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
    pub fn create_pair(&mut self, id: u16) {
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
    pub fn put(&mut self, id: u16, command: Command) {
        let queue = &mut self.queues[usize::from(id)];
        let at = submission(id) + u64::from(queue.tail) * 64;
        queue.tail = (queue.tail + 1) % queue.size;
        self.machine.poke(at, &command.bytes());
    }

    pub fn ring(&mut self, id: u16) {
        let tail = self.queues[usize::from(id)].tail;
        self.machine.write32(0x1000 + u64::from(id) * 8, tail);
    }

    /// Takes a completion that has arrived.
    pub fn take(&mut self, id: u16) -> Option<Completion> {
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
    pub fn acknowledge(&mut self, id: u16) {
        let head = self.queues[usize::from(id)].head;
        self.machine.write32(0x1004 + u64::from(id) * 8, head);
    }

    pub fn run(&mut self, id: u16, command: Command) -> Completion {
        self.put(id, command);
        self.ring(id);
        let completion = self.take(id).expect("a completion");
        self.acknowledge(id);
        completion
    }

    pub fn admin(&mut self, command: Command) -> Completion {
        self.run(0, command)
    }

    pub fn identify(&mut self, cns: u32, nsid: u32) -> Vec<u8> {
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

pub fn submission(id: u16) -> u64 {
    QUEUES * (u64::from(id) + 1)
}

pub fn completion(id: u16) -> u64 {
    submission(id) + 0x8000
}

pub fn read_write(opcode: u8, slba: u32, blocks: u32, prp1: u64, prp2: u64) -> Command {
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

pub fn write(slba: u32, blocks: u32, prp1: u64, prp2: u64) -> Command {
    read_write(1, slba, blocks, prp1, prp2)
}

pub fn read(slba: u32, blocks: u32, prp1: u64, prp2: u64) -> Command {
    read_write(2, slba, blocks, prp1, prp2)
}

pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}
