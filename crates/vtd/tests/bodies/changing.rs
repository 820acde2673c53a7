//! Structures that a processor changes while the unit reads them: an answer is that of before or that of after. The body
//! that seeds, property tests and the fuzzer share.

use crate::guest::{Became, Guest};
use crate::naive::generate::{self, Malice, World};
use crate::naive::{Answer, Choices, Unit, translate};
use crate::structures::{QUEUE, SOURCES, capabilities};

/// Says how many requests met the change on their way.
pub(crate) fn run(bytes: &[u8]) -> u64 {
    let mut choices = Choices::new(bytes);
    let offered = capabilities(&mut choices);
    let mut guest = Guest::new(offered, generate::memory(), QUEUE);
    let (cap, ecap) = (guest.read(0x8), guest.read(0x10));
    let unit = Unit::new(cap, ecap, u32::from(offered.width()).clamp(48, 52));
    let scalable = unit.scalable && choices.rarely(200);
    let mut world = World::build(&mut choices, &unit, &SOURCES, scalable, Malice::SOME);
    guest.memory.with(|plain| *plain = world.memory.clone());
    world.unit.root = world.root;
    world.unit.translates = true;
    guest.begin(world.root);
    let mut met = 0;
    for _ in 0..48 {
        let question = world.question(&mut choices);
        world.memory = guest.memory.with(|plain| plain.clone());
        let (before, _) = translate(&world.unit, &world.memory, &question);
        let Some((at, _)) = world.edit(&mut choices, Some(&question)) else {
            continue;
        };
        let (after, _) = translate(&world.unit, &world.memory, &question);
        let word = world.memory.word(at).unwrap_or(0);
        guest.memory.change_later(choices.below(24), at, word);
        let became = guest.request(&question, 4);
        let record = guest.take_record();
        guest.memory.change_now();
        let agrees = |answer: &Answer| match answer {
            Answer::Memory {
                address,
                read,
                write,
                ..
            } => {
                let same = matches!(became, Became::Memory { address: at, .. } if at == *address);
                same && became.may(question.access, *read, *write) && record.is_none()
            }
            Answer::Message => became == Became::Message,
            Answer::Fault { found, told } => {
                matches!(became, Became::Refused(_))
                    && match record.map(|record| record.reason) {
                        Some(reason) => {
                            *told && (reason == found.reason || found.or.contains(&reason))
                        }
                        None => !told,
                    }
            }
        };
        // An entry of the second stage below the first is read several times, and flags are set by a second walk: there
        // each look may find another state.
        let once = !unit.nested && !world.unit.second_accessed && !unit.first_stage;
        assert!(
            !once || agrees(&before) || agrees(&after),
            "{question:x?}: {became:x?}, {record:x?}, before {before:x?}, after {after:x?}"
        );
        met += u64::from(before != after);
        guest.forget();
    }
    met
}
