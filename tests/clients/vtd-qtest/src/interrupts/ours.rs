//! iogate's unit, as a guest programs it and devices write to it.

use std::sync::{Arc, Mutex};

use iogate_dma::{Message, RequesterId};
use iogate_vtd::{Capabilities, Vtd};

use crate::entries::World;
use crate::support::Words;
use crate::{Answer, Question};

/// Enough for the largest table.
const MEMORY: u64 = 0x20_0000;
const QUEUE: u64 = 0x1000;

pub(crate) struct Ours {
    ram: Arc<Words>,
    unit: Arc<Vtd>,
    delivered: Arc<Mutex<Vec<Message>>>,
    records: u64,
    tail: u64,
}

impl Ours {
    pub(crate) fn new(extended: bool) -> Self {
        let ram = Arc::new(Words::new(MEMORY));
        let delivered = Arc::<Mutex<Vec<Message>>>::default();
        let taken = Arc::clone(&delivered);
        let mut capabilities = Capabilities::default().interrupt_remapping();
        if extended {
            capabilities = capabilities.extended_interrupt_mode();
        }
        let unit = Vtd::builder(Arc::clone(&ram) as _)
            .capabilities(capabilities)
            .deliver(move |message| taken.lock().unwrap().push(message))
            .build()
            .unwrap();
        let mut ours = Self {
            ram,
            unit,
            delivered,
            records: 0,
            tail: 0,
        };
        ours.records = (ours.read(0x8) >> 24 & 0x3ff) * 16;
        ours.unit.write(0x90, &QUEUE.to_le_bytes());
        ours.command(1 << 26);
        ours
    }

    fn read(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.unit.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn command(&self, command: u32) {
        self.unit.write(0x18, &command.to_le_bytes());
    }

    pub(crate) fn begin(&mut self, world: &World) {
        for &(index, entry) in &world.entries {
            for (word, at) in entry.into_iter().zip([0, 8]) {
                self.ram.set(crate::entries::TABLE + 16 * index + at, word);
            }
        }
        self.unit.write(0xb8, &world.table.to_le_bytes());
        let on = 1 << 26 | 1 << 25 | u32::from(world.compatibility) << 23;
        // One change a command: VT-d 4.1 section 11.4.4.1.
        self.command(on & !(1 << 23) | 1 << 24);
        self.command(on & !(1 << 23));
        self.command(on);
        // Everything, then nothing is cached.
        self.ram.set(QUEUE + self.tail, 4);
        self.tail = (self.tail + 16) % 0x1000;
        self.unit.write(0x88, &self.tail.to_le_bytes());
    }

    pub(crate) fn ask(&self, question: &Question) -> Answer {
        let message = Message {
            address: question.address,
            data: question.data,
        };
        self.unit.send_msi(RequesterId(question.source), message);
        if let Some(message) = self.delivered.lock().unwrap().pop() {
            return Answer::Message {
                address: message.address,
                data: message.data,
            };
        }
        for record in 0..8 {
            let at = self.records + 16 * record;
            let high = self.read(at + 8);
            if high >> 63 != 0 {
                let low = self.read(at);
                self.unit.write(at + 12, &(1_u32 << 31).to_le_bytes());
                return crate::theirs::fault(low, high);
            }
        }
        Answer::Nothing
    }
}
