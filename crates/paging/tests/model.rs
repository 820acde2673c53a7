//! The walker and the scanner against a translation written entry by entry.

mod support;

use std::ops::ControlFlow;

use iogate_dma::{Access, Memory, Privilege};
use iogate_paging::vtd::{FirstStage, Levels, SecondStage, SupervisorWrites};
use iogate_paging::{Entry, Format, Mapped, Permissions, Reason, Scanned, scan, walk};
use proptest::prelude::*;
use support::{Flat, Naive, first_stage, second_stage};

const PAGES: u64 = 12;
const HAW: u32 = 40;

/// Few indices, so that paths meet: the low three, and the last.
fn index() -> impl Strategy<Value = u64> {
    prop_oneof![0..3_u64, Just(511_u64)]
}

fn address() -> impl Strategy<Value = u64> {
    let bits = (index(), index(), index(), index(), index(), 0..4096_u64);
    let upper = prop_oneof![8 => Just(0_u64), 1 => Just(0x7f_u64), 1 => Just(1_u64)];
    (bits, upper).prop_map(|((a, b, c, d, e, low), upper)| {
        let address = a << 48 | b << 39 | c << 30 | d << 21 | e << 12 | low;
        address | upper << 57
    })
}

/// Addresses with equal bits above the lower `bits`.
fn canonical(address: u64, bits: u32) -> u64 {
    ((address << (64 - bits)).cast_signed() >> (64 - bits)).cast_unsigned()
}

fn entry() -> impl Strategy<Value = u64> {
    let table = (1..PAGES, 0..8_u64).prop_map(|(page, low)| page << 12 | low);
    let page = (0..64_u64, 0..0x1000_u64).prop_map(|(page, low)| page << 30 | low | 0x80);
    let flip = prop_oneof![6 => Just(0_u64), 1 => (0..64_u32).prop_map(|bit| 1 << bit)];
    (prop_oneof![3 => table, 1 => page, 1 => any::<u64>()], flip).prop_map(|(a, b)| a ^ b)
}

/// Tables in the first pages; page 0 is the root.
fn tables() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    prop::collection::vec((0..PAGES, index(), entry()), 0..64)
}

fn fill(entries: &[(u64, u64, u64)]) -> Flat {
    let memory = Flat::pages(PAGES as usize);
    for &(page, index, entry) in entries {
        memory.set(page << 12 | index << 3, entry);
    }
    memory
}

fn walked<F: Format>(format: &F, memory: &Flat, address: u64, access: Access) -> Option<Naive> {
    let memory: &dyn Memory = memory;
    match walk(format, 0, &memory, address, access, Privilege::User) {
        Ok(found) => {
            let rights = found.permissions.rights(Privilege::User);
            Some(Naive::Page {
                output: found.output,
                size: found.mask + 1,
                read: rights.can_read(),
                write: rights.can_write(),
            })
        }
        Err(stop) => match stop.reason {
            Reason::Address => Some(Naive::Address),
            Reason::Absent => Some(Naive::Absent { level: stop.level }),
            Reason::Reserved => Some(Naive::Reserved { level: stop.level }),
            Reason::Table(_) => Some(Naive::Unreadable { level: stop.level }),
            Reason::Permission => None,
            Reason::Unsteady => panic!("nobody else changes these tables"),
        },
    }
}

fn same(naive: Naive, read: Option<Naive>, write: Option<Naive>) {
    if let Naive::Page {
        read: r, write: w, ..
    } = naive
    {
        assert_eq!(read, r.then_some(naive));
        assert_eq!(write, w.then_some(naive));
    } else {
        assert_eq!((read, write), (Some(naive), Some(naive)));
    }
}

const fn levels(count: u8) -> Levels {
    match count {
        3 => Levels::Three,
        4 => Levels::Four,
        _ => Levels::Five,
    }
}

/// A lowest table whose entries lead on or elsewhere, or are absent, and whose
/// flags, ignored bits and reserved bits go on for a while and then change.
fn lowest_table() -> impl Strategy<Value = Vec<u64>> {
    let flags = prop_oneof![
        4 => Just(3_u64),
        1 => 0..4_u64,
        1 => 4..8_u64,
        1 => any::<u64>().prop_map(|bits| bits & !(bits_of(12, 51))),
        1 => (0..64_u32).prop_map(|bit| 7 | 1 << bit),
    ];
    // The last address below HAW comes up, after which there are reserved bits.
    let start = prop_oneof![4 => 0..16_u64, 1 => (1_u64 << (HAW - 12)) - 40..1 << (HAW - 12)];
    let step = prop_oneof![3 => Just(1_u64), 2 => Just(2_u64), 1 => Just(0_u64)];
    let ignored = prop_oneof![Just(0_u64), Just(1 << 9), Just(1 << 10), Just(1 << 52)];
    let piece = (1..40_usize, start, step, flags, ignored);
    prop::collection::vec(piece, 1..40).prop_map(|pieces| {
        let mut table = Vec::new();
        for (length, start, step, flags, ignored) in pieces {
            for index in 0..length as u64 {
                let other = if index % 3 == 1 { ignored } else { 0 };
                table.push((start + index * step) << 12 | flags ^ other);
            }
        }
        table.resize(512, 0);
        table
    })
}

/// Bits `first` to `last`.
const fn bits_of(first: u32, last: u32) -> u64 {
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

/// Checks that a scan tells of each page what its own entry says, in runs that
/// cannot be joined.
fn told_as_walked<F: Format>(format: &F, table: &[u64], base: u64, asked: Permissions) {
    let memory = Flat::pages(16);
    for level in 0..u64::from(format.top()) - 1 {
        memory.set(level << 12, (level + 1) << 12 | 7);
    }
    for (index, &entry) in table.iter().enumerate() {
        memory.set(base | (index as u64) << 3, entry);
    }
    let direct: &dyn Memory = &memory;
    let mut found = Vec::new();
    for (first, last) in [(0, (512 << 12) - 1), (0x1800, (300 << 12) + 0x7ff)] {
        found.clear();
        scan(
            format,
            0,
            &direct,
            (first, last),
            asked,
            usize::MAX,
            |run: Mapped| {
                found.push(run);
                ControlFlow::Continue(())
            },
        );
        let mut expected: Vec<Mapped> = Vec::new();
        for (index, &entry) in table.iter().enumerate() {
            let at = (index as u64) << 12;
            let Entry::Leaf {
                address,
                permissions,
                ..
            } = format.decode(entry, 1)
            else {
                continue;
            };
            let (low, high) = (at.max(first), (at | 0xfff).min(last));
            if low > high {
                continue;
            }
            let output = address + (low - at);
            let permissions = permissions & asked;
            match expected.last_mut() {
                Some(run)
                    if run.last + 1 == low
                        && run.output + (low - run.first) == output
                        && run.permissions == permissions =>
                {
                    run.last = high;
                }
                _ => expected.push(Mapped {
                    first: low,
                    last: high,
                    output,
                    permissions,
                }),
            }
        }
        assert_eq!(found, expected);
    }
}

fn second(count: u8) -> SecondStage {
    let mut format = SecondStage::new(levels(count));
    format.output_bits = HAW;
    format
}

fn first(count: u8) -> FirstStage {
    let mut format = FirstStage::new(levels(count));
    format.output_bits = HAW;
    format
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn a_second_stage_walk_says_what_the_specification_says(
        entries in tables(), address in address(), count in 3..=5_u8,
    ) {
        let memory = fill(&entries);
        let naive = second_stage(&memory, 0, count, HAW, address);
        let format = second(count);
        same(
            naive,
            walked(&format, &memory, address, Access::Read),
            walked(&format, &memory, address, Access::Write),
        );
    }

    #[test]
    fn a_first_stage_walk_says_what_the_specification_says(
        entries in tables(), address in address(), count in 4..=5_u8, sign in any::<bool>(),
    ) {
        let memory = fill(&entries);
        let width = 12 + 9 * u32::from(count);
        let address = if sign { canonical(address, width) } else { address };
        let naive = first_stage(&memory, 0, count, HAW, address);
        let format = first(count);
        let read = walked(&format, &memory, address, Access::Read);
        // Flags that the read set do not change what a write finds.
        same(naive, read, walked(&format, &memory, address, Access::Write));
    }

    #[test]
    fn a_scan_tells_the_leaves_of_a_second_stage_as_each_is_decoded(
        table in lowest_table(), snoop_control in any::<bool>(), execute in any::<bool>(),
        all in any::<bool>(),
    ) {
        let mut format = second(4);
        format.snoop_control = snoop_control;
        format.execute = execute;
        let asked = if all { Permissions::ALL } else { Permissions::USER_DATA };
        told_as_walked(&format, &table, 3 << 12, asked);
    }

    #[test]
    fn a_scan_tells_the_leaves_of_a_first_stage_as_each_is_decoded(
        table in lowest_table(), no_execute in any::<bool>(), refused in any::<bool>(),
        all in any::<bool>(),
    ) {
        let mut format = first(4);
        format.no_execute = no_execute;
        if !refused {
            format.supervisor_writes = SupervisorWrites::Allowed;
        }
        let asked = if all { Permissions::ALL } else { Permissions::USER_DATA };
        told_as_walked(&format, &table, 3 << 12, asked);
    }

    #[test]
    fn what_a_format_says_of_its_leaves_is_what_it_decodes(
        one in entry(), other in any::<u64>(), level in 1..=3_u8, options in any::<[bool; 3]>(),
        width in 30..=52_u32,
    ) {
        let mut format = second(4);
        format.output_bits = width;
        format.snoop_control = options[0];
        format.execute = options[1];
        leaves_are_alike(&format, one, other, level);
        let mut format = first(4);
        format.output_bits = width;
        format.no_execute = options[2];
        leaves_are_alike(&format, one, other, level);
    }

    #[test]
    fn a_scan_finds_what_walks_find(
        entries in tables(), from in address(), pages in 1..3_000_u64, count in 3..=5_u8,
        budget in prop_oneof![Just(usize::MAX), 1..4_usize],
    ) {
        let memory = fill(&entries);
        let format = second(count);
        let end = 1_u64 << (12 + 9 * u32::from(count));
        let from = (from % end) & !0xfff;
        let to = (from + (pages << 12) - 1).min(end - 1);
        let found = scanned(&format, &memory, (from, to), budget);
        let mut runs = found.iter().copied().peekable();
        for page in (from..=to).step_by(4096) {
            while runs.next_if(|run| run.last < page).is_some() {}
            let run = runs.peek().filter(|run| run.first <= page);
            let walked = second_stage(&memory, 0, count, HAW, page);
            match (run, walked) {
                (None, Naive::Page { .. }) => prop_assert!(false, "{page:#x} was not found"),
                (Some(run), Naive::Page { output, read, write, .. }) => {
                    prop_assert_eq!(run.output + (page - run.first), output);
                    let rights = run.permissions.rights(Privilege::User);
                    prop_assert_eq!((rights.can_read(), rights.can_write()), (read, write));
                }
                (Some(run), other) => prop_assert!(false, "{run:?} at {page:#x}: {other:?}"),
                (None, _) => {}
            }
        }
        if budget == usize::MAX {
            for (a, b) in found.iter().zip(found.iter().skip(1)) {
                let joined = a.last + 1 == b.first
                    && a.output + (a.last - a.first + 1) == b.output
                    && a.permissions == b.permissions;
                prop_assert!(a.last < b.first && !joined, "{a:?} {b:?}");
            }
        }
    }
}

/// Checks the contract of [`Format::leaves`] on an entry with the flags of
/// `one` and all other bits of `other`.
fn leaves_are_alike<F: Format>(format: &F, one: u64, other: u64, level: u8) {
    let leaves = format.leaves(level).unwrap();
    assert_eq!(leaves.address & leaves.flags, 0);
    assert_eq!(format.decode(other & !leaves.flags, level), Entry::Absent);
    let like = other & !leaves.flags | one & leaves.flags;
    if let Entry::Leaf {
        permissions, shift, ..
    } = format.decode(one, level)
    {
        assert_eq!(shift, format.shape(level).shift);
        let address = like & leaves.address;
        let expected = Entry::Leaf {
            address,
            shift,
            permissions,
        };
        assert_eq!(format.decode(like, level), expected);
    }
}

/// All runs of a range, by as many scans as the budget needs.
fn scanned(format: &SecondStage, memory: &Flat, span: (u64, u64), budget: usize) -> Vec<Mapped> {
    let memory: &dyn Memory = memory;
    let mut found = Vec::new();
    let mut from = span.0;
    loop {
        let end = scan(
            format,
            0,
            &memory,
            (from, span.1),
            Permissions::ALL,
            budget,
            |run| {
                found.push(run);
                ControlFlow::Continue(())
            },
        );
        match end {
            Scanned::Whole => return found,
            Scanned::Until(at) => {
                assert!(at > from, "a scan that goes on makes progress");
                from = at;
            }
            Scanned::Stopped => panic!("nobody stopped it"),
        }
    }
}
