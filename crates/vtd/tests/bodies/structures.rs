//! Structures and requests, by the unit and by the naive model: the body that seeds, property tests and the fuzzer share.

use crate::guest::{Became, Guest};
use crate::naive::generate::{self, Malice, World};
use crate::naive::{Answer, Choices, Question, Unit, translate};
use iogate_vtd::Capabilities;

/// A page that no world uses, and the next one.
pub(crate) const QUEUE: u64 = 0x1fff_0000;
pub(crate) const SOURCES: [u16; 5] = [0x0020, 0x0028, 0x0090, 0x03f8, 0xff80];

/// One of the units that can be had.
pub(crate) fn capabilities(choices: &mut Choices<'_>) -> Capabilities {
    let mut offered = Capabilities::default().address_width(choices.one_of(&[48, 39, 57]));
    let options: [fn(Capabilities) -> Capabilities; 4] = [
        Capabilities::snoop_control,
        Capabilities::without_pass_through,
        Capabilities::without_1g_pages,
        Capabilities::device_tlb,
    ];
    for option in options {
        if choices.rarely(64) {
            offered = option(offered);
        }
    }
    if choices.rarely(170) {
        offered = offered.scalable();
        if choices.rarely(170) {
            offered = offered.nested();
        }
        if choices.rarely(64) {
            offered = offered.first_stage_5_level();
        }
        if choices.rarely(64) {
            offered = offered.execute_requests();
        }
    }
    offered
}

/// Builds a unit and its structures and asks about them, both ways.
pub(crate) fn run(bytes: &[u8]) -> [u64; 3] {
    let mut choices = Choices::new(bytes);
    let offered = capabilities(&mut choices);
    let mut guest = Guest::new(offered, generate::memory(), QUEUE);
    let (cap, ecap) = (guest.read(0x8), guest.read(0x10));
    let unit = Unit::new(cap, ecap, u32::from(offered.width()).clamp(48, 52));
    let scalable = unit.scalable && choices.rarely(200);
    let malice = choices.one_of(&[Malice::SOME, Malice::SOME, Malice::NONE]);
    let mut world = World::build(&mut choices, &unit, &SOURCES, scalable, malice);
    guest.memory.with(|plain| *plain = world.memory.clone());
    world.unit.root = world.root;
    world.unit.translates = true;
    guest.begin(world.root);
    let mut counts = [0; 3];
    for _ in 0..64 {
        let mut question = world.question(&mut choices);
        if choices.rarely(10) {
            question.address = 0xfee0_0000 | question.address & 0xf_fffc;
        }
        if question.pasid.is_some() && unit.supervisor_requests {
            question.privileged = choices.rarely(64);
        }
        let length = 1 << choices.below(14);
        counts[ask(&mut guest, &mut world, &question, length)] += 1;
        if choices.is_empty() {
            break;
        }
    }
    counts
}

/// Asks both; 0 for memory, 1 for a fault told, 2 for one that is not.
fn ask(guest: &mut Guest, world: &mut World, question: &Question, length: u64) -> usize {
    let (expected, touched) = translate(&world.unit, &world.memory, question);
    let became = guest.request(question, length);
    let record = guest.take_record();
    let made = format!("{:x?}", world.memory.words);
    let context = || {
        format!("{question:x?}\nmodel {expected:x?}\nunit {became:x?}, record {record:x?}\n{made}")
    };
    let kind = match &expected {
        Answer::Memory {
            address,
            size,
            read,
            write,
        } => {
            let may = became.may(question.access, *read, *write);
            assert!(may, "rights: {}", context());
            let Became::Memory {
                address: at,
                length: bytes,
                ..
            } = became
            else {
                panic!("{}", context());
            };
            assert_eq!(at, *address, "{}", context());
            // As far as the page goes, and not into the interrupt range.
            let page = if *size == 0 {
                u64::MAX
            } else {
                size - (question.address & (size - 1))
            };
            assert!(bytes >= 1 && bytes <= length.min(page), "{}", context());
            let whole = length.min(page);
            let near = |address: u64| address < 0xfee0_0000 && address + whole > 0xfee0_0000;
            if !near(*address) && !near(question.address) {
                assert_eq!(bytes, whole, "{}", context());
            }
            assert_eq!(record, None, "{}", context());
            0
        }
        Answer::Message => {
            assert_eq!(became, Became::Message, "{}", context());
            assert_eq!(record, None, "{}", context());
            0
        }
        Answer::Fault { found, told } => {
            assert!(matches!(became, Became::Refused(_)), "{}", context());
            match record {
                None => assert!(!told, "not recorded: {}", context()),
                Some(record) => {
                    assert!(*told, "recorded: {}", context());
                    let reason = record.reason;
                    let agrees = reason == found.reason || found.or.contains(&reason);
                    assert!(agrees, "{}", context());
                    assert_eq!(record.source, question.source, "{}", context());
                    assert_eq!(record.address, question.address & !0xfff, "{}", context());
                    assert_eq!(record.pasid, question.pasid, "{}", context());
                    let read = question.access == crate::naive::Access::Read;
                    assert_eq!(record.read, read, "{}", context());
                }
            }
            if *told { 1 } else { 2 }
        }
    };
    for (entry, bits) in touched {
        let word = world.memory.word(entry).unwrap_or(0);
        world.memory.set(entry, word | bits);
    }
    world.memory.missed.take();
    guest.memory.with(|plain| {
        for (at, word) in &world.memory.words {
            let is = plain.words.get(at).copied().unwrap_or(0);
            assert_eq!(is, *word, "flags of the entry at {at:#x}: {}", context());
        }
    });
    kind
}
