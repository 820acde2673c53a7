//! Edits, invalidations by queue and by register, and requests in between: every answer must be explained by what the
//! structures said since it was last invalidated. The body that seeds, property tests and the fuzzer share.

use std::collections::VecDeque;

use crate::guest::{Became, Guest};
use crate::naive::generate::{self, Malice, World};
use crate::naive::history::{Event, History};
use crate::naive::{Answer, Choices, Question, Unit};
use crate::structures::{QUEUE, SOURCES, capabilities};

/// Ask what was asked last.
const AGAIN: u64 = 5;
/// States of memory that are kept apart; then everything is invalidated.
const MOMENTS: usize = 12;

/// Says how many answers were those of an older state.
pub(crate) fn run(bytes: &[u8]) -> u64 {
    let mut choices = Choices::new(bytes);
    let offered = capabilities(&mut choices);
    let mut guest = Guest::new(offered, generate::memory(), QUEUE);
    let (cap, ecap) = (guest.read(0x8), guest.read(0x10));
    let unit = Unit::new(cap, ecap, u32::from(offered.width()).clamp(48, 52));
    let scalable = unit.scalable && choices.rarely(200);
    let mut world = World::build(&mut choices, &unit, &SOURCES, scalable, Malice::NONE);
    guest.memory.with(|plain| *plain = world.memory.clone());
    world.unit.root = world.root;
    world.unit.translates = true;
    guest.begin(world.root);
    let mut history = History::new(&world);
    let mut moments = 1;
    let mut old = 0;
    let mut asked: Vec<Question> = Vec::new();
    let mut next: VecDeque<u64> = VecDeque::new();
    for _ in 0..128 {
        let step = next.pop_front().unwrap_or_else(|| choices.below(6));
        if step == 2 {
            // An edit, an invalidation, and the question that both are about.
            next.extend([0, 1, AGAIN]);
            continue;
        }
        match step {
            0 if moments < MOMENTS => {
                world.memory = guest.memory.with(|plain| plain.clone());
                if let Some((at, kind)) = world.edit(&mut choices, asked.last()) {
                    let word = world.memory.word(at).unwrap_or(0);
                    guest.memory.with(|plain| plain.set(at, word));
                    history.edited(world.memory.clone(), kind);
                    moments += 1;
                }
            }
            0 | 1 => {
                let near = match asked.last() {
                    Some(last) if choices.below(4) != 0 => *last,
                    _ => world.question(&mut choices),
                };
                let event = Event::choose(&mut choices, &history, &near);
                guest.invalidate(&[event.descriptor()]);
                history.invalidated(event);
                moments += 1;
                if moments >= MOMENTS {
                    guest.forget();
                    history.forget();
                    moments = 1;
                }
            }
            _ => {
                // Mostly what was asked before: it may be cached.
                let again = !asked.is_empty() && (step == AGAIN || choices.below(4) != 0);
                let question = if again {
                    let last = asked.len() - 1;
                    let index = choices.below(asked.len() as u64) as usize;
                    asked[if step == AGAIN { last } else { index }]
                } else {
                    world.question(&mut choices)
                };
                asked.push(question);
                old += ask(&mut guest, &mut history, &question);
            }
        }
        if choices.is_empty() {
            break;
        }
    }
    guest.forget();
    history.forget();
    for question in &asked {
        ask(&mut guest, &mut history, question);
    }
    old
}

/// 1 if the answer is none of now.
fn ask(guest: &mut Guest, history: &mut History, question: &Question) -> u64 {
    let fresh = history.fresh(question);
    let became = guest.request(question, 4);
    let record = guest.take_record();
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
        Answer::Message => became == Became::Message && record.is_none(),
        Answer::Fault { found, told } => {
            let reason = record.map(|record| record.reason);
            let same = match reason {
                Some(reason) => *told && (reason == found.reason || found.or.contains(&reason)),
                None => !told,
            };
            same && matches!(became, Became::Refused(_))
        }
    };
    let older = if agrees(&fresh) {
        Vec::new()
    } else {
        history.older(question, false)
    };
    history.touched(guest.memory.with(|plain| plain.clone()));
    if agrees(&fresh) {
        return 0;
    }
    let explained = older.iter().any(|(answer, _)| agrees(answer));
    assert!(
        explained,
        "{question:x?}: {became:x?}, {record:x?}, which is neither {fresh:x?} nor one of {:x?}",
        older.iter().map(|(answer, _)| answer).collect::<Vec<_>>()
    );
    1
}
