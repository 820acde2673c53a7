//! Everything that a guest and its devices can do, without sense: registers, queue contents, requests, messages, page
//! requests, states. Nothing panics, work is bounded, and a reset leads back. The body that seeds, property tests and the
//! fuzzer share.

use iogate_dma::{
    Access, Iova, Kind, Message, Outcome, Pasid, Privilege, Request, RequesterId, Source, Span,
    Translate as _,
};
use iogate_vtd::{Capabilities, Vtd};

use crate::guest::Guest;
use crate::naive::Choices;
use crate::naive::generate::{self, DATA, HOLE, MEMORY_END, TABLES};
use crate::structures::{self, QUEUE};

/// Accesses to memory that one piece of work may need: a quantum of descriptors of 32 bytes, and their status words.
const WORK: u64 = 2048;

/// Units with everything that structures do not need.
fn capabilities(choices: &mut Choices<'_>) -> Capabilities {
    let mut offered = structures::capabilities(choices);
    if choices.rarely(128) {
        offered = offered.interrupt_remapping();
        if choices.rarely(128) {
            offered = offered.extended_interrupt_mode();
        }
        if choices.rarely(128) {
            offered = offered.posted_interrupts();
        }
    }
    if offered.is_scalable() && choices.rarely(128) {
        offered = offered.device_tlb().page_requests();
    }
    let queued =
        offered.is_scalable() || offered.has_interrupt_remapping() || offered.has_device_tlb();
    if choices.rarely(16) && !queued {
        offered = offered.without_queued_invalidation();
    }
    offered.fault_records(choices.one_of(&[8, 1, 2, 222]))
}

/// Addresses that matter: tables, data, holes, the ends of everything.
fn address(choices: &mut Choices<'_>) -> u64 {
    let base = choices.one_of(&[
        TABLES,
        TABLES + 0x1000,
        TABLES + 0x2000,
        TABLES + 0x3000,
        QUEUE,
        DATA,
        MEMORY_END - 0x1000,
        MEMORY_END,
        HOLE,
        0,
        0xfee0_0000,
        0xfed9_0000,
        u64::MAX - 0xfff,
        1 << 47,
    ]);
    base.wrapping_add(choices.below(0x1000) & !choices.one_of(&[0xfff, 7, 0, 3]))
}

fn value(choices: &mut Choices<'_>) -> u64 {
    match choices.below(5) {
        0 => 0,
        1 => u64::MAX,
        2 => address(choices) | choices.below(16),
        3 => 1 << choices.below(64),
        _ => choices.word(),
    }
}

/// A register: one that is there, mostly.
fn offset(choices: &mut Choices<'_>) -> u64 {
    const THERE: [u64; 30] = [
        0x00, 0x08, 0x10, 0x18, 0x1c, 0x20, 0x28, 0x34, 0x38, 0x3c, 0x40, 0x44, 0x80, 0x88, 0x90,
        0x9c, 0xa0, 0xa4, 0xa8, 0xac, 0xb0, 0xb8, 0xc0, 0xc8, 0xd0, 0xdc, 0xe0, 0xe4, 0x100, 0x108,
    ];
    match choices.below(8) {
        0 => choices.below(0x1008),
        1 => 0x100 + choices.below(0x600),
        2 => value(choices),
        _ => choices.one_of(&THERE),
    }
}

fn request(guest: &mut Guest, choices: &mut Choices<'_>) {
    let source = Source {
        pasid: Pasid::new(choices.below(0x1_0000) as u32).filter(|_| choices.rarely(100)),
        ..Source::new(0, RequesterId(choices.below(0x1_0000) as u16))
    };
    let length = 1 + choices.below(0x1_0000);
    let Some(span) = Span::with_length(Iova(address(choices) ^ value(choices)), length) else {
        return;
    };
    let request = Request {
        source,
        span,
        access: choices.one_of(&[Access::Read, Access::Write, Access::Atomic, Access::Execute]),
        privilege: choices.one_of(&[Privilege::User, Privilege::Supervisor]),
        kind: choices.one_of(&[
            Kind::Untranslated,
            Kind::TranslationRequest,
            Kind::Translated,
        ]),
    };
    let mut participant = guest.unit.gate().join();
    let guard = participant.enter();
    if let Ok(Outcome::Memory(run)) = guest.unit.translate(&guard, &request) {
        assert!(
            run.length() >= 1 && run.length() <= span.last_offset() + 1,
            "{request:?}: {run:?}"
        );
        let mut byte = [0];
        // There may be nothing.
        let _ = run.read(&mut byte);
    }
}

/// A queue at a page, with descriptors of every kind in it, and its tail moved.
fn queue(guest: &Guest, choices: &mut Choices<'_>) {
    let at = QUEUE;
    let wide = choices.below(2);
    let count = choices.below(24);
    guest.memory.with(|plain| {
        for n in 0..count * 4 {
            let word = match choices.below(6) {
                0 => 0x25 | choices.word() << 32,
                1 => choices.below(16) | choices.word() << 4,
                2 => value(choices),
                3 => choices.below(16) | choices.below(4) << 4,
                _ => 0,
            };
            plain.set(at + 8 * n, word);
        }
    });
    guest.write(0x90, at | wide << 11 | choices.below(8));
    if choices.rarely(200) {
        guest.write_short(0x18, guest.read_short(0x1c) & 0x96ff_ffff | 1 << 26);
    }
    let tail = count * (16 << wide);
    guest.write(
        0x88,
        if choices.rarely(32) {
            value(choices)
        } else {
            tail
        },
    );
}

/// The state, or what is like it, back into the unit.
fn restore(guest: &Guest, choices: &mut Choices<'_>) {
    let mut state = guest.unit.save();
    for _ in 0..choices.below(4) {
        let length = state.len().max(1) as u64;
        let at = choices.below(length.min(0x1_0000)) as usize;
        match choices.below(3) {
            0 => state.truncate(at),
            1 => state.extend([choices.byte(), 0, 0xff]),
            _ => {
                if let Some(byte) = state.get_mut(at) {
                    *byte ^= 1 << choices.below(8);
                }
            }
        }
    }
    if guest.unit.restore(&state).is_ok() {
        // What was taken is what is given.
        let again = guest.unit.save();
        assert!(guest.unit.restore(&again).is_ok(), "its own state");
    }
}

/// The pending bit is that of the records.
fn faults_agree(guest: &Guest) {
    let status = guest.read_short(0x34);
    let cap = guest.read(0x8);
    let (records, count) = ((cap >> 24 & 0x3ff) * 16, (cap >> 40 & 0xff) + 1);
    let any = (0..count).any(|n| guest.read(records + 16 * n + 8) >> 63 != 0);
    assert_eq!(status & 2 != 0, any, "PPF, FSTS {status:#x}");
}

pub(crate) fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let offered = capabilities(&mut choices);
    let deferred = choices.rarely(100);
    let mut guest = if deferred {
        Guest::deferred(offered, generate::memory(), QUEUE)
    } else {
        Guest::new(offered, generate::memory(), QUEUE)
    };
    let fixed = [0x00, 0x08, 0x10].map(|at| guest.read(at));
    for _ in 0..256 {
        if choices.is_empty() {
            break;
        }
        match choices.below(12) {
            0..=3 => {
                let (at, value) = (offset(&mut choices), value(&mut choices));
                match choices.below(8) {
                    0 => guest
                        .unit
                        .write(at, &value.to_le_bytes()[..choices.below(9) as usize]),
                    1..=3 => guest.write(at, value),
                    _ => guest.write_short(at, value as u32),
                }
            }
            4 => {
                let mut into = [0; 16];
                let length = choices.below(17) as usize;
                guest.unit.read(offset(&mut choices), &mut into[..length]);
            }
            5 | 6 => {
                let at = address(&mut choices) & !7;
                let word = value(&mut choices);
                guest.memory.with(|plain| {
                    if plain.is_there(at) {
                        plain.set(at, word);
                    }
                });
            }
            7 => queue(&guest, &mut choices),
            8 | 9 => request(&mut guest, &mut choices),
            10 => {
                let message = Message {
                    address: 0xfee0_0000 | choices.word() & 0xf_ffff,
                    data: choices.word() as u32,
                };
                let source = RequesterId(choices.below(0x1_0000) as u16);
                guest.unit.send_msi(source, message);
            }
            _ if choices.rarely(64) => restore(&guest, &mut choices),
            _ => faults_agree(&guest),
        }
        work(&guest.unit, &guest);
    }
    assert_eq!(fixed, [0x00, 0x08, 0x10].map(|at| guest.read(at)));
    faults_agree(&guest);
    guest.unit.reset();
    assert_eq!(guest.read_short(0x1c), 0, "GSTS after a reset");
    assert_eq!(guest.read_short(0x34), 0, "FSTS after a reset");
}

/// Does what is deferred, a bounded piece at a time, and not for ever.
fn work(unit: &Vtd, guest: &Guest) {
    for _ in 0..4096 {
        guest.memory.take_accesses();
        let more = unit.work();
        let accesses = guest.memory.take_accesses();
        assert!(accesses <= WORK, "{accesses} accesses in one piece of work");
        if !more {
            return;
        }
    }
    panic!("work without an end");
}
