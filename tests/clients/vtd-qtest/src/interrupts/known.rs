//! Where QEMU differs from the specification, as docs/vtd-differences.md lists it by the same names.

use crate::entries::World;
use crate::{Answer, Question};

/// The name of a difference that is listed, or none.
pub(crate) fn name(
    world: &World,
    question: &Question,
    expected: Answer,
    seen: Answer,
) -> Option<&'static str> {
    let Some(index) = World::index(question) else {
        let passed = Answer::Message {
            address: question.address,
            data: question.data,
        };
        return (reason(expected) == Some(0x25) && seen == passed)
            .then_some("compatibility-format-passes");
    };
    if index > 0xffff {
        return Some("index-wraps");
    }
    if reason(expected) == Some(0x20) {
        return match reason(seen) {
            Some(0x20) => Some("malformed-message-index"),
            Some(0x21..=0x26) => Some("message-checked-late"),
            None if seen == Answer::Nothing => Some("message-checked-late"),
            _ => None,
        };
    }
    let [low, high] = world.entry(index);
    if low & 1 == 0 {
        return None;
    }
    if low >> 15 & 1 != 0 && told(expected, low, 0x24) {
        return Some("posted-format-taken");
    }
    if !world.extended() && low & 0xffff_00ff_0000_0000 != 0 && told(expected, low, 0x24) {
        return Some("destination-reserved-ignored");
    }
    let [first, last] = (high as u16).to_be_bytes();
    let ranged = high >> 18 & 3 == 2 && first != last;
    let refused = |answer| told(answer, low, 0x26);
    (ranged && refused(expected) != refused(seen)).then_some("bus-range-reversed")
}

fn reason(answer: Answer) -> Option<u8> {
    match answer {
        Answer::Fault { reason, .. } => Some(reason),
        _ => None,
    }
}

/// Whether the answer is this reason, or nothing because the entry has it not recorded.
fn told(answer: Answer, low: u64, wanted: u8) -> bool {
    if low & 2 != 0 {
        answer == Answer::Nothing
    } else {
        reason(answer) == Some(wanted)
    }
}
