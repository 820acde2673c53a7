//! A minimal virtio network driver.

use iogate_devices::{Properties, Value};
use iogate_pci::After;

use super::Machine;

pub const BAR: u8 = 4;
pub const ISR: u64 = 0x1000;
pub const DEVICE: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;
pub const STATUS: u64 = 0x14;

pub const MRG_RXBUF: u64 = 1 << 15;
pub const CTRL_VQ: u64 = 1 << 17;
pub const MQ: u64 = 1 << 22;
pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT_FLAG: u16 = 4;

/// Entries of a queue.
pub const SIZE: u16 = 16;
pub const RAM: usize = 4 << 20;
/// Where data may stand.
pub const DATA: u64 = 0x10_0000;

/// Where queue `index` stands: descriptors, available ring, used ring.
pub fn rings(index: u16) -> (u64, u64, u64) {
    let base = 0x1_0000 + u64::from(index) * 0x4000;
    (base, base + 0x2000, base + 0x3000)
}

pub struct Nic {
    pub machine: Machine,
    /// Next available and next used index, by queue.
    available: Vec<u16>,
    used: Vec<u16>,
}

impl Nic {
    pub fn unstarted(properties: &[(&str, Value)]) -> Self {
        let named = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
        let properties: Properties = properties.iter().map(named).collect();
        Self {
            machine: Machine::new("virtio-net", &properties, RAM),
            available: vec![0; 17],
            used: vec![0; 17],
        }
    }

    /// A loopback that runs, with `features` beside version 1.
    pub fn new(features: u64) -> Self {
        let mut nic = Self::unstarted(&[]);
        nic.start(features, 3);
        nic
    }

    /// The same driver on another machine, to which the memory has gone.
    pub fn on(&self, machine: Machine) -> Self {
        machine.poke(0, &self.machine.peek(0, RAM));
        Self {
            machine,
            available: self.available.clone(),
            used: self.used.clone(),
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.machine.write(BAR, offset, bytes);
    }

    pub fn status(&self) -> u8 {
        let [status] = self.machine.read(BAR, STATUS);
        status
    }

    /// From reset to DRIVER_OK. Virtio 1.2 section 3.1.1.
    pub fn start(&mut self, features: u64, queues: u16) {
        self.write(STATUS, &[0]);
        assert_eq!(self.status(), 0);
        self.write(STATUS, &[1]);
        self.write(STATUS, &[3]);
        let features = features | VERSION_1;
        for half in 0..2_u32 {
            self.write(0x08, &half.to_le_bytes());
            self.write(0x0c, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.write(STATUS, &[0x0b]);
        assert_eq!(self.status(), 0x0b);
        self.available.fill(0);
        self.used.fill(0);
        for queue in 0..17 {
            let (_, driver, device) = rings(queue);
            self.machine.poke(driver, &[0; 0x100]);
            self.machine.poke(device, &[0; 0x100]);
        }
        for queue in 0..queues {
            self.set_up(queue, SIZE, rings(queue));
        }
        self.write(STATUS, &[0x0f]);
    }

    pub fn set_up(&mut self, queue: u16, size: u16, (table, driver, device): (u64, u64, u64)) {
        self.write(0x16, &queue.to_le_bytes());
        self.write(0x18, &size.to_le_bytes());
        self.write(0x1a, &queue.to_le_bytes());
        self.write(0x20, &table.to_le_bytes());
        self.write(0x28, &driver.to_le_bytes());
        self.write(0x30, &device.to_le_bytes());
        self.write(0x1c, &1_u16.to_le_bytes());
    }

    pub fn describe(&self, table: u64, at: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(address.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.machine.poke(table + u64::from(at) * 16, &bytes);
    }

    /// Puts a descriptor into a queue's table.
    pub fn put(&self, queue: u16, at: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.describe(rings(queue).0, at, address, length, flags, next);
    }

    /// Makes the chain at `head` available without a notification.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let (_, driver, _) = rings(queue);
        let index = &mut self.available[usize::from(queue)];
        let slot = driver + 4 + u64::from(*index % SIZE) * 2;
        *index = index.wrapping_add(1);
        let index = index.to_le_bytes();
        self.machine.poke(slot, &head.to_le_bytes());
        self.machine.poke(driver + 2, &index);
    }

    pub fn ring(&mut self, queue: u16) -> After {
        let at = NOTIFY + u64::from(queue) * 4;
        self.machine.device.write_bar(BAR, at, &queue.to_le_bytes())
    }

    pub fn kick(&mut self, queue: u16) {
        let after = self.ring(queue);
        self.machine.finish(after);
    }

    /// A receive buffer of one descriptor.
    pub fn offer_buffer(&mut self, queue: u16, at: u16, address: u64, length: u32) {
        self.put(queue, at, address, length, WRITE, 0);
        self.offer(queue, at);
    }

    /// Makes a packet of one descriptor available: a header and `frame`.
    pub fn offer_frame(&mut self, queue: u16, at: u16, address: u64, frame: &[u8]) {
        self.machine.poke(address, &[0xee; 12]);
        self.machine.poke(address + 12, frame);
        self.put(queue, at, address, frame.len() as u32 + 12, 0, 0);
        self.offer(queue, at);
    }

    /// What the device has given back since the last call: head, length.
    pub fn given(&mut self, queue: u16) -> Vec<(u32, u32)> {
        let (_, _, device) = rings(queue);
        let word = |bytes: Vec<u8>| u32::from_le_bytes(bytes.try_into().unwrap());
        let index = u16::from_le_bytes(self.machine.peek(device + 2, 2).try_into().unwrap());
        let seen = &mut self.used[usize::from(queue)];
        let mut given = Vec::new();
        while *seen != index {
            let slot = device + 4 + u64::from(*seen % SIZE) * 8;
            let head = word(self.machine.peek(slot, 4));
            given.push((head, word(self.machine.peek(slot + 4, 4))));
            *seen = seen.wrapping_add(1);
        }
        given
    }
}
