//! What a guest does with interrupt remapping, and what devices' messages then become, against the naive model: through
//! registers, queue and memory alone. An entry may be cached from when it was used until it is invalidated, so a message
//! may become what any state of its entry since then says.

#[path = "naive/interrupts.rs"]
mod naive;
mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use iogate_dma::{Message, RequesterId};
use iogate_vtd::{Capabilities, Vtd};
use naive::{Outcome, Remapping, post, remap};
use proptest::prelude::*;
use support::Words;

const MEMORY: u64 = 0x20_0000;
const TABLE: u64 = 0x10_0000;
const QUEUE: u64 = 0x1000;
const DESCRIPTORS: u64 = 0x8000;
/// Entries that are written; messages ask for others too.
const ENTRIES: u64 = 12;
const SOURCES: [u16; 6] = [0x0008, 0x0009, 0x000c, 0x0108, 0x4010, 0xffff];

#[derive(Clone, Debug)]
enum Deed {
    /// The entry becomes this.
    Entry(u64, u64, u64),
    /// A descriptor's word becomes this.
    Descriptor(u64, u64),
    /// The queue invalidates: all, or an index with its mask.
    Invalidate(Option<(u64, u64)>),
    /// GSTS.IRES, GSTS.CFIS, and what stands in IRTA_REG.
    Mode(bool, bool, u64),
    /// A source, by its place, writes a message.
    Send(usize, u64, u32),
}

fn entry() -> impl Strategy<Value = (u64, u64)> {
    let source = (0..SOURCES.len(), 0..4_u64, 0..4_u64, any::<bool>());
    let wrong = prop_oneof![6 => Just(None), 1 => (0..128_u32).prop_map(Some)];
    let fields = (any::<u16>(), any::<u8>(), any::<u32>(), any::<bool>());
    (
        fields,
        source,
        wrong,
        prop_oneof![5 => Just(1_u64), 1 => Just(0)],
    )
        .prop_map(
            |((low, vector, destination, wide), (id, qualifier, kind, range), wrong, present)| {
                let posted = low & 0x8000 != 0;
                let destination = u64::from(destination);
                let low = u64::from(low) & 0xffe | u64::from(vector) << 16 | present;
                let (low, high) = if posted {
                    let urgent = destination & 1;
                    let at =
                        (DESCRIPTORS + (destination >> 1 & 3) * 64) | (destination >> 31) << 30;
                    (low & !0xfc | 0x8000 | urgent << 14 | at << 32, 0)
                } else if wide {
                    (low | destination << 32, 0)
                } else {
                    (low | (destination & 0xff) << 40, 0)
                };
                let id = u64::from(SOURCES[id]);
                let id = if range { id >> 8 << 8 | 0x40 } else { id };
                let entry =
                    u128::from(low) | u128::from(high | id | qualifier << 16 | kind << 18) << 64;
                let entry = wrong.map_or(entry, |bit| entry ^ 1 << bit);
                (entry as u64, (entry >> 64) as u64)
            },
        )
}

fn deed() -> impl Strategy<Value = Deed> {
    let index = || prop_oneof![20 => 0..ENTRIES, 1 => 0..0x1_0000_u64];
    let table = prop_oneof![
        8 => (2..8_u64).prop_map(|size| TABLE | size),
        1 => Just(TABLE | 15),
        1 => Just(MEMORY | 7),
    ];
    let mode = (
        prop_oneof![9 => Just(true), 1 => Just(false)],
        any::<bool>(),
    );
    let message = (0..SOURCES.len(), index(), 0..20_u8, 0..0x2_0000_u32);
    prop_oneof![
        6 => (0..ENTRIES, entry()).prop_map(|(index, (low, high))| Deed::Entry(index, low, high)),
        2 => (0..32_u64, prop_oneof![
            any::<u16>().prop_map(|word| u64::from(word & 3 | word & 0xfc) & 3 | u64::from(word) << 32),
            Just(0), Just(0xf2_0000), Just(0xf2_0002), Just(1 << 20),
        ]).prop_map(|(word, value)| Deed::Descriptor(word, value)),
        2 => (0..ENTRIES, 0..6_u64).prop_map(|choice| Deed::Invalidate(Some(choice))),
        1 => Just(Deed::Invalidate(None)),
        1 => (mode, table, any::<bool>()).prop_map(|((on, cfi), table, extended)| {
            Deed::Mode(on, cfi, table | u64::from(extended) << 11)
        }),
        16 => message.prop_map(|(source, index, form, data)| {
            let (handle, data) = match form {
                // By a subhandle, with reserved bits now and then.
                0..4 => (index.wrapping_sub(u64::from(data & 7)) & 0xffff, data & 7 | data & 0x1_0000),
                _ => (index, data),
            };
            let format = match form { 19 => 0, 0..4 => 0x18, _ => 0x10 };
            let address = 0xfee0_0000 | (handle & 0x7fff) << 5 | (handle >> 15) << 2 | format;
            Deed::Send(source, address, data)
        }),
    ]
}

struct Bed {
    ram: Arc<Words>,
    unit: Arc<Vtd>,
    delivered: Arc<Mutex<Vec<Message>>>,
    model: Remapping,
    tail: u64,
    records: u64,
    /// What each entry has been since it was invalidated last, if more than what it is.
    past: BTreeMap<u64, Vec<(u64, u64)>>,
}

impl Bed {
    fn new(posts: bool) -> Self {
        let ram = Arc::new(Words::new(MEMORY));
        let delivered = Arc::<Mutex<Vec<Message>>>::default();
        let taken = Arc::clone(&delivered);
        let mut capabilities = Capabilities::default()
            .interrupt_remapping()
            .extended_interrupt_mode();
        if posts {
            capabilities = capabilities.posted_interrupts();
        }
        let unit = Vtd::builder(Arc::clone(&ram) as _)
            .capabilities(capabilities)
            .deliver(move |message| taken.lock().unwrap().push(message))
            .build()
            .unwrap();
        let mut bed = Self {
            ram,
            unit,
            delivered,
            model: Remapping {
                on: false,
                compatibility: false,
                table: 0,
                posts,
            },
            tail: 0,
            records: 0,
            past: BTreeMap::new(),
        };
        bed.records = (bed.read(0x8) >> 24 & 0x3ff) * 16;
        // IQA, then QIE.
        bed.unit.write(0x90, &QUEUE.to_le_bytes());
        bed.mode(true, false, TABLE | 3);
        bed
    }

    fn read(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.unit.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn command(&self, command: u32) {
        self.unit.write(0x18, &command.to_le_bytes());
        assert_eq!(
            self.read(0x18) >> 32 & 0x0680_0000,
            u64::from(command) & 0x0680_0000
        );
    }

    fn mode(&mut self, on: bool, compatibility: bool, table: u64) {
        let enabled =
            1 << 26 | u32::from(self.model.on) << 25 | u32::from(self.model.compatibility) << 23;
        self.unit.write(0xb8, &table.to_le_bytes());
        self.command(enabled | 1 << 24);
        self.command(1 << 26 | u32::from(on) << 25 | u32::from(self.model.compatibility) << 23);
        self.command(1 << 26 | u32::from(on) << 25 | u32::from(compatibility) << 23);
        self.model = Remapping {
            on,
            compatibility,
            table,
            ..self.model
        };
        // Software is to invalidate all then.
        self.invalidate(None);
    }

    fn invalidate(&mut self, selected: Option<(u64, u64)>) {
        let word = match selected {
            Some((index, mask)) => 4 | 1 << 4 | mask << 27 | index << 32,
            None => 4,
        };
        self.ram.set(QUEUE + self.tail, word);
        self.ram.set(QUEUE + self.tail + 8, 0);
        self.tail = (self.tail + 16) % 0x1000;
        self.unit.write(0x88, &self.tail.to_le_bytes());
        assert_eq!(self.read(0x80), self.tail);
        self.past.retain(|index, _| {
            selected.is_some_and(|(chosen, mask)| chosen >> mask != index >> mask)
        });
    }

    fn entry(&mut self, index: u64, low: u64, high: u64) {
        let at = TABLE + index * 16;
        let before = (self.ram.get(at).unwrap(), self.ram.get(at + 8).unwrap());
        self.past.entry(index).or_default().push(before);
        self.ram.set(at, low);
        self.ram.set(at + 8, high);
    }

    /// The fault that was recorded since, as reason, source and index.
    fn record(&self) -> Option<(u8, u16, u16)> {
        let mut found = None;
        for record in 0..8 {
            let at = self.records + record * 16;
            let high = self.read(at + 8);
            if high >> 63 != 0 {
                assert!(found.is_none(), "two faults of one message");
                found = Some((
                    (high >> 32) as u8,
                    high as u16,
                    (self.read(at) >> 48) as u16,
                ));
                self.unit.write(at + 12, &(1_u32 << 31).to_le_bytes());
            }
        }
        found
    }

    /// What a message may become, by every state that its entry may be cached in.
    fn expected(&self, source: u16, address: u64, data: u32) -> Vec<Outcome> {
        let now = |at| self.ram.get(at);
        let mut all = vec![remap(&self.model, now, source, address, data)];
        for (index, states) in &self.past {
            for &(low, high) in states {
                let at = TABLE + index * 16;
                let then = |asked| match asked {
                    asked if asked == at => Some(low),
                    asked if asked == at + 8 => Some(high),
                    asked => self.ram.get(asked),
                };
                all.push(remap(&self.model, then, source, address, data));
            }
        }
        all
    }

    fn send(&mut self, source: u16, address: u64, data: u32) -> Result<(), TestCaseError> {
        let expected = self.expected(source, address, data);
        let before: Vec<u64> = (0..32)
            .map(|n| self.ram.get(DESCRIPTORS + 8 * n).unwrap())
            .collect();
        self.unit
            .send_msi(RequesterId(source), Message { address, data });
        let delivered: Vec<(u64, u32)> = std::mem::take(&mut *self.delivered.lock().unwrap())
            .into_iter()
            .map(|message| (message.address, message.data))
            .collect();
        let record = self.record();
        let after: Vec<u64> = (0..32)
            .map(|n| self.ram.get(DESCRIPTORS + 8 * n).unwrap())
            .collect();
        let seen = (delivered, record, after);
        let agrees = expected
            .iter()
            .any(|outcome| seen == self.effect(outcome, source, &before));
        prop_assert!(agrees, "{seen:x?} is none of {expected:x?}");
        // What was posted elsewhere is taken back: `effect` counts on zeros there.
        for outcome in &expected {
            if let &Outcome::Post { descriptor, .. } = outcome
                && !(DESCRIPTORS..DESCRIPTORS + 32 * 8).contains(&descriptor)
            {
                for word in 0..8 {
                    self.ram.set(descriptor + word * 8, 0);
                }
            }
        }
        Ok(())
    }

    /// What is delivered, recorded, and in memory if a message becomes this.
    #[allow(clippy::type_complexity)]
    fn effect(
        &self,
        outcome: &Outcome,
        source: u16,
        before: &[u64],
    ) -> (Vec<(u64, u32)>, Option<(u8, u16, u16)>, Vec<u64>) {
        let mut after = before.to_vec();
        let fault = |reason, index, told: bool| told.then_some((reason, source, index));
        match *outcome {
            Outcome::Message { address, data } => (vec![(address, data)], None, after),
            Outcome::Blocked {
                reason,
                index,
                told,
            } => (vec![], fault(reason, index, told), after),
            Outcome::Post {
                descriptor,
                vector,
                urgent,
                index,
                told,
            } => {
                let first = (descriptor.wrapping_sub(DESCRIPTORS) / 8) as usize;
                let Some(words) = after.get_mut(first..first.saturating_add(8)) else {
                    // Elsewhere is nothing, or zeros.
                    let mut zeros = [0; 8];
                    return match self.ram.get(descriptor) {
                        None => (vec![], fault(0x27, index, told), after),
                        Some(_) => {
                            let sent = post(&self.model, &mut zeros, vector, urgent);
                            (sent.ok().flatten().into_iter().collect(), None, after)
                        }
                    };
                };
                let words: &mut [u64; 8] = words.try_into().unwrap();
                match post(&self.model, words, vector, urgent) {
                    Ok(sent) => (sent.into_iter().collect(), None, after),
                    Err(reason) => (vec![], fault(reason, index, told), after),
                }
            }
        }
    }
}

fn play(posts: bool, deeds: Vec<Deed>) -> Result<(), TestCaseError> {
    let mut bed = Bed::new(posts);
    for deed in deeds {
        match deed {
            Deed::Entry(index, low, high) => bed.entry(index, low, high),
            Deed::Descriptor(word, value) => bed.ram.set(DESCRIPTORS + 8 * word, value),
            Deed::Invalidate(selected) => bed.invalidate(selected),
            Deed::Mode(on, compatibility, table) => bed.mode(on, compatibility, table),
            Deed::Send(source, address, data) => bed.send(SOURCES[source], address, data)?,
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_become_what_the_model_says(
        posts in any::<bool>(),
        deeds in prop::collection::vec(deed(), 1..120),
    ) {
        play(posts, deeds)?;
    }
}
