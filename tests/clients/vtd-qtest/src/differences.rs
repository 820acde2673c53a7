//! Where QEMU differs from the specification, as docs/vtd-differences.md lists it by the same names.

use crate::machine::Seen;
use crate::naive::generate::World;
use crate::naive::{Access, Answer, Question};

/// What the structures on a question's way say that decides about a difference.
#[derive(Default)]
struct Facts {
    scalable: bool,
    /// The half of the root entry for the other devices of the bus has a reserved bit.
    other_half: bool,
    pass_through: bool,
    /// DTE, PASIDE, PRE or RID_PRIV of a scalable context entry.
    features: bool,
    /// PGTT and AW of the PASID entry, NXE and WPE.
    kind: u64,
    width: u64,
    no_execute: bool,
    /// The path's entries of tables, with their levels.
    entries: Vec<(u32, u64)>,
}

/// The name of a difference that is listed, or none.
pub(crate) fn known(
    world: &World,
    question: &Question,
    expected: &Answer,
    seen: &Seen,
) -> Option<&'static str> {
    let (facts, _) = path(world, question);
    let told = match expected {
        Answer::Fault { found, told: true } => found.reason,
        _ => 0,
    };
    let silent = matches!(expected, Answer::Fault { told: false, .. });
    let recorded = seen.record.map(|record| record.reason);
    let beyond = question.address >> world.unit.guest_bits != 0;
    let all_ones = facts.entries.iter().any(|&(_, entry)| entry == u64::MAX);
    let snoop = |&(level, entry): &(u32, u64)| {
        let leaf = level == 1 || entry >> 7 & 1 != 0;
        !leaf && entry >> 11 & 1 != 0
    };
    let snoop = facts.entries.iter().any(snoop);
    let snoop_leaf = facts
        .entries
        .last()
        .is_some_and(|last| last.1 >> 11 & 1 != 0);
    let forbids = facts.entries.iter().any(|&(_, entry)| entry >> 63 != 0);
    let width = (30 + 9 * facts.width as u32).min(63);
    let upper = question.address >> (width - 1);
    let canonical = upper == 0 || upper == u64::MAX >> (width - 1);
    match (told, recorded) {
        (0x04 | 0x83, None) if beyond && facts.pass_through => Some("pass-through-width"),
        (0, Some(0x0b)) if silent && !facts.scalable => Some("context-reserved-recorded"),
        (0, Some(0x0e | 0x87)) if !silent => Some("interrupt-range-page"),
        (_, Some(0x0c) | None) if seen.arrived.is_none() && snoop && facts.kind != 1 => {
            Some("snoop-in-table-entry")
        }
        (0x7a, _) if snoop_leaf && !world.unit.snoop => Some("snoop-in-scalable-mode"),
        (0, _) if silent && snoop_leaf && facts.scalable && !world.unit.snoop => {
            Some("snoop-in-scalable-mode")
        }
        (_, Some(0x0a)) if facts.other_half => Some("root-other-half"),
        (0, Some(0x0b | 0x51 | 0x52 | 0x58 | 0x59 | 0x5b)) if silent && facts.scalable => {
            Some("disable-seen-late")
        }
        (0x59, Some(0x5b)) => Some("absent-pasid-entry-checked"),
        (0x42, reason) if facts.features && reason != Some(0x0b) => Some("absent-features-ignored"),
        (0, reason) if silent && facts.features && reason != Some(0x0b) => {
            Some("absent-features-ignored")
        }
        (0x52 | 0x5a, _) => Some("pasid-reserved-ignored"),
        (0x72, _) if forbids && !facts.no_execute => Some("execute-disable-ignored"),
        (_, Some(0x80) | None) if seen.arrived.is_none() && facts.kind == 1 && !canonical => {
            Some("first-stage-by-second-width")
        }
        (_, Some(0x03 | 0x07 | 0x70 | 0x73 | 0x78 | 0x7b)) if all_ones => Some("all-ones"),
        // The legacy mode's reasons in scalable mode.
        (0x38, Some(0x08))
        | (0x39, Some(0x01))
        | (0x3a, Some(0x0a))
        | (0x40, Some(0x09))
        | (0x41, Some(0x02))
        | (0x42, Some(0x0b))
        | (0x78, Some(0x05..=0x07))
        | (0x7a, Some(0x05 | 0x06 | 0x0c))
        | (0x7b, Some(0x03))
        | (0x79, Some(0x05 | 0x06))
        | (0x83, Some(0x04))
        | (0x85, Some(0x05))
        | (0x86, Some(0x06))
            if facts.scalable =>
        {
            Some("legacy-reasons")
        }
        _ => None,
    }
}

/// The same, of what happens only when something is cached.
pub(crate) fn known_of_caches(expected: &Answer, seen: &Seen) -> Option<&'static str> {
    match expected {
        // Whatever the entry says is used.
        Answer::Fault { found, .. } if matches!(found.reason, 0x50..=0x5b) => {
            let recorded = seen.record.map(|record| record.reason);
            (recorded != Some(found.reason)).then_some("cached-context-unchecked")
        }
        _ => None,
    }
}

/// The entries on the way of a question, for a person.
pub(crate) fn lines(world: &World, question: &Question) -> Vec<String> {
    path(world, question).1
}

fn path(world: &World, question: &Question) -> (Facts, Vec<String>) {
    let memory = &world.memory;
    let word = |at: u64| memory.word(at).unwrap_or(0);
    let page = |word: u64| word & 0x000f_ffff_ffff_f000;
    let mut facts = Facts {
        scalable: world.root >> 10 & 3 == 1,
        ..Facts::default()
    };
    let mut lines = Vec::new();
    let mut line = |name: &str, at: u64, count: u64| {
        let words: Vec<_> = (0..count).map(|n| memory.word(at + 8 * n)).collect();
        lines.push(format!("{name} at {at:#x}: {words:x?}"));
        words[0].unwrap_or(0)
    };
    let devfn = u64::from(question.source & 0xff);
    let at = page(world.root) + 16 * u64::from(question.source >> 8);
    let half = if facts.scalable && devfn >= 0x80 {
        8
    } else {
        0
    };
    let reserved = 0xffe | u64::MAX << world.unit.host_bits;
    facts.other_half = facts.scalable && word(at + 8 - half) & reserved != 0;
    let root = line("root", at + half, 1);
    let (mut table, mut levels);
    if facts.scalable {
        let at = page(root) + 32 * (devfn & 0x7f);
        let context = line("context", at, 4);
        facts.features = context & 0x1c != 0 || word(at + 8) >> 20 & 1 != 0;
        let directory = line("directory", page(context), 1);
        let pasid = line("PASID", page(directory), 8);
        let third = word(page(directory) + 16);
        facts.kind = pasid >> 6 & 7;
        facts.width = pasid >> 2 & 7;
        facts.pass_through = facts.kind == 4;
        facts.no_execute = third >> 5 & 1 != 0;
        (table, levels) = match facts.kind {
            1 => (page(third), 4),
            _ => (page(pasid), facts.width + 2),
        };
    } else {
        let at = page(root) + 16 * devfn;
        let low = line("context", at, 2);
        facts.pass_through = low >> 2 & 3 == 2;
        (table, levels) = (page(low), (word(at + 8) & 7) + 2);
    }
    levels = levels.min(5);
    for level in (1..=levels as u32).rev() {
        let at = table + 8 * (question.address >> (12 + 9 * (level - 1)) & 0x1ff);
        let entry = line(&format!("level {level}"), at, 1);
        facts.entries.push((level, entry));
        if entry & 3 == 0 || entry >> 7 & 1 != 0 {
            break;
        }
        table = page(entry);
    }
    if question.access == Access::Write {
        lines.push("a write".to_owned());
    }
    (facts, lines)
}
