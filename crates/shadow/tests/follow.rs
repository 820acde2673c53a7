//! What listeners are told of a guest's domains, by sentences.

mod support;

use std::sync::{Arc, mpsc};
use std::thread;

use iogate_dma::{Change, Gpa, Invalidated, Iova, Mapping, Pasid, Rights, Scope, Source, Span};
use iogate_shadow::{FollowError, Limits, Section, Shadow};
use support::{Device, Unit, source, span};

const RW: u64 = 3;
const ENOSPC: i32 = 28;
const EIO: i32 = 5;
/// The tables of the first domain: pages 0, 1, 2; of the second: 3, 4, 5.
const FIRST: (u64, u32) = (0, 7);
const SECOND: (u64, u32) = (0x3000, 8);

/// Two domains with a table for the first 2 MiB each, and nothing in it.
fn unit() -> Arc<Unit> {
    let unit = Unit::new(64);
    for (root, _) in [FIRST, SECOND] {
        unit.memory.set(root, (root + 0x1000) | RW);
        unit.memory.set(root + 0x1000, (root + 0x2000) | RW);
    }
    unit
}

/// The guest writes the entry of page `page` of a domain.
fn write(unit: &Unit, (root, _): (u64, u32), page: u64, entry: u64) {
    unit.memory.set(root + 0x2000 + page * 8, entry);
}

fn pages(first: u64, last: u64) -> Span<Iova> {
    span(first << 12, (last << 12) + 0xfff)
}

fn map(first: u64, last: u64, output: u64) -> Change {
    Change::Map(Mapping {
        span: pages(first, last),
        output: output << 12,
        rights: Rights::READ_WRITE,
    })
}

fn unmap(first: u64, last: u64) -> Change {
    Change::Unmap(pages(first, last))
}

#[test]
fn a_listener_is_handed_all_that_is_mapped_when_it_comes() {
    let unit = unit();
    for page in 0..512 {
        write(&unit, FIRST, page, (page + 100) << 12 | RW);
    }
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let shadow = Shadow::of(unit.clone());
    let following = shadow.follow(source(1), Section::ALL, device.clone());
    assert_eq!(device.take(), [[map(0, 511, 100)]]);
    drop(following);
    assert_eq!(device.take(), [[unmap(0, 511)]]);
}

#[test]
fn what_changes_nothing_is_told_to_nobody() {
    let unit = unit();
    write(&unit, FIRST, 3, 0x9000 | RW);
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let shadow = Shadow::of(unit.clone());
    let _following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    device.take();
    unit.invalidate_all();
    unit.invalidate_one(Scope::Domain(7), Span::whole());
    unit.invalidate_one(Scope::Entry(source(1)), Span::whole());
    assert_eq!(device.take().len(), 0);
}

#[test]
fn a_page_selective_invalidation_looks_at_its_pages_only() {
    let unit = unit();
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let shadow = Shadow::of(unit.clone());
    let _following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    unit.take_scans();
    write(&unit, FIRST, 5, 0x9000 | RW);
    write(&unit, FIRST, 6, 0xa000 | RW);
    write(&unit, FIRST, 7, 0xb000 | RW);
    unit.invalidate_one(Scope::Domain(7), pages(5, 6));
    assert_eq!(unit.take_scans(), [(source(1), pages(5, 6))]);
    assert_eq!(device.take(), [[map(5, 6, 9)]]);
    unit.invalidate_one(Scope::Domain(8), Span::whole());
    assert_eq!(unit.take_scans(), []);
}

#[test]
fn pieces_of_a_batch_that_touch_are_looked_at_once() {
    let unit = unit();
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let shadow = Shadow::of(unit.clone());
    let _following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    unit.take_scans();
    for page in 0..16 {
        write(&unit, FIRST, page, (page + 32) << 12 | RW);
    }
    let scope = Scope::Domain(7);
    let batch = (0..16).rev().map(|page| Invalidated {
        scope,
        span: pages(page, page),
    });
    unit.invalidate(&batch.collect::<Vec<_>>());
    assert_eq!(unit.take_scans(), [(source(1), pages(0, 15))]);
    assert_eq!(device.take(), [[map(0, 15, 32)]]);
}

#[test]
fn a_device_that_changes_its_domain_keeps_what_both_map_alike() {
    let unit = unit();
    for (domain, page, entry) in [
        (FIRST, 1, 0x9000),
        (FIRST, 2, 0xa000),
        (FIRST, 4, 0xb000),
        (SECOND, 2, 0xa000),
        (SECOND, 4, 0xf000),
        (SECOND, 9, 0xc000),
    ] {
        write(&unit, domain, page, entry | RW);
    }
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let shadow = Shadow::of(unit.clone());
    let _following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    device.take();
    unit.enter(source(1), Some(SECOND));
    unit.invalidate_one(Scope::Entry(source(2)), Span::whole());
    assert_eq!(device.take().len(), 0, "another device's entry");
    unit.invalidate_one(Scope::Entry(source(1)), Span::whole());
    let changes = vec![unmap(1, 1), unmap(4, 4), map(4, 4, 15), map(9, 9, 12)];
    assert_eq!(device.take(), [changes]);
    unit.enter(source(1), None);
    unit.invalidate_all();
    assert_eq!(device.take(), [[unmap(2, 2), unmap(4, 4), unmap(9, 9)]]);
}

#[test]
fn devices_of_one_domain_share_one_look_at_its_tables() {
    let unit = unit();
    write(&unit, FIRST, 3, 0x9000 | RW);
    let devices = [Device::new(), Device::new(), Device::new()];
    let shadow = Shadow::of(unit.clone());
    let _followings: Vec<_> = (0..)
        .zip(&devices)
        .map(|(number, device)| {
            unit.enter(source(number), Some(FIRST));
            shadow
                .follow(source(number), Section::ALL, device.clone())
                .unwrap()
        })
        .collect();
    assert_eq!(unit.take_scans().len(), 1);
    write(&unit, FIRST, 4, 0xa000 | RW);
    unit.invalidate_all();
    assert_eq!(unit.take_scans().len(), 1);
    for device in &devices {
        assert_eq!(device.take(), [[map(3, 3, 9)], [map(4, 4, 10)]]);
    }
}

#[test]
fn a_change_reaches_each_section_once_and_is_cut_at_its_borders() {
    let unit = unit();
    for page in 0..8 {
        write(&unit, FIRST, page, (page + 8) << 12 | RW);
    }
    unit.enter(source(1), Some(FIRST));
    let (low, high) = (Device::new(), Device::new());
    let shadow = Shadow::of(unit.clone());
    let _low = shadow.follow(source(1), pages(0, 2), low.clone()).unwrap();
    let high_part = pages(3, 1 << 20);
    let _high = shadow.follow(source(1), high_part, high.clone()).unwrap();
    assert_eq!(low.take(), [[map(0, 2, 8)]]);
    assert_eq!(high.take(), [[map(3, 7, 11)]]);
    for page in 2..6 {
        write(&unit, FIRST, page, 0);
    }
    unit.invalidate_all();
    assert_eq!(low.take(), [[unmap(2, 2)]]);
    assert_eq!(high.take(), [[unmap(3, 5)]]);
}

#[test]
fn a_listener_is_not_told_of_one_address_twice() {
    let unit = unit();
    let device = Device::new();
    let shadow = Shadow::of(unit.clone());
    let _low = shadow
        .follow(source(1), pages(0, 9), device.clone())
        .unwrap();
    let again = shadow.follow(source(2), pages(5, 20), device.clone());
    assert_eq!(again.err(), Some(FollowError::Overlaps(pages(5, 9))));
    let _high = shadow
        .follow(source(1), pages(10, 20), device.clone())
        .unwrap();
}

#[test]
fn a_refused_mapping_is_told_to_the_guest_once_and_tried_again() {
    let unit = unit();
    for page in [1, 3, 5] {
        write(&unit, FIRST, page, (page + 9) << 12 | 1);
    }
    unit.enter(source(1), Some(FIRST));
    let (device, other) = (Device::new(), Device::new());
    let is_third = |change: &Change| matches!(change, Change::Map(run) if run.span == pages(3, 3));
    device.refuse(move |change| is_third(change).then_some(EIO));
    let shadow = Shadow::of(unit.clone());
    let following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    unit.enter(source(2), Some(FIRST));
    let other_following = shadow
        .follow(source(2), Section::ALL, other.clone())
        .unwrap();
    let failure = following.failure().unwrap();
    assert_eq!((failure.span, failure.errno), (pages(3, 3), EIO));
    assert_eq!(other_following.failure(), None);
    let faults = unit.take_faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(
        (faults[0].source_id, faults[0].span),
        (source(1), pages(3, 3))
    );
    let has = |page: u64| device.page(page << 12).is_some();
    assert_eq!([has(1), has(3), has(5)], [true, false, true]);
    assert!(other.page(0x3000).is_some());

    unit.invalidate_one(Scope::Domain(7), pages(100, 100));
    assert_eq!(unit.take_faults(), [], "the guest knows");
    device.accept();
    device.take();
    unit.invalidate_one(Scope::Domain(7), pages(100, 100));
    assert_eq!(device.take().concat().len(), 1);
    assert!(has(3));
    assert_eq!(following.failure(), None);
}

#[test]
fn nothing_is_mapped_where_an_unmap_was_refused() {
    let unit = unit();
    write(&unit, FIRST, 1, 0x9000 | RW);
    write(&unit, FIRST, 2, 0xa000 | RW);
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let shadow = Shadow::of(unit.clone());
    let following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    device.refuse(|change| matches!(change, Change::Unmap(_)).then_some(EIO));
    write(&unit, FIRST, 1, 0xf000 | RW);
    write(&unit, FIRST, 4, 0xe000 | RW);
    unit.invalidate_all();
    assert_eq!(device.page(0x1000), Some((0x9000, 3)));
    assert_eq!(device.page(0x4000), Some((0xe000, 3)));
    assert_eq!(following.failure().unwrap().span, pages(1, 1));
    device.accept();
    unit.invalidate_all();
    assert_eq!(device.page(0x1000), Some((0xf000, 3)));
    assert_eq!(following.failure(), None);
}

#[test]
fn nothing_is_mapped_where_an_unmap_was_not_tried_any_more() {
    let unit = unit();
    for page in 0..40 {
        write(&unit, FIRST, 2 * page, (page + 9) << 12 | RW);
    }
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let shadow = Shadow::of(unit.clone());
    let _following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    device.refuse(|change| matches!(change, Change::Unmap(_)).then_some(EIO));
    for page in 0..40 {
        write(&unit, FIRST, 2 * page, (page + 99) << 12 | RW);
    }
    unit.invalidate_all();
    for page in 0..40 {
        assert_eq!(device.page(page << 13), Some(((page + 9) << 12, 3)));
    }
    device.accept();
    unit.invalidate_all();
    for page in 0..40 {
        assert_eq!(device.page(page << 13), Some(((page + 99) << 12, 3)));
    }
}

#[test]
fn a_listener_that_refuses_everything_is_asked_a_few_times_only() {
    let unit = unit();
    for page in 0..256 {
        write(&unit, FIRST, 2 * page, (page + 9) << 12 | RW);
    }
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    device.refuse(|_| Some(ENOSPC));
    let shadow = Shadow::of(unit.clone());
    let _following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    assert_eq!(device.take().len(), 16);
    assert_eq!(unit.take_faults().len(), 16);
    // All get their turn, those that come last too.
    let is_last =
        |change: &Change| matches!(change, Change::Map(run) if run.span == pages(510, 510));
    device.refuse(move |change| (!is_last(change)).then_some(ENOSPC));
    for _ in 0..16 {
        unit.invalidate_all();
    }
    assert!(device.page(510 << 12).is_some());
}

#[test]
fn a_listener_that_began_anew_is_handed_all_when_it_asks() {
    let unit = unit();
    write(&unit, FIRST, 1, 0x9000 | RW);
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let shadow = Shadow::of(unit.clone());
    let following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    device.forget();
    device.take();
    following.replay();
    assert_eq!(device.take(), [[map(1, 1, 9)]]);
}

#[test]
fn what_leads_to_memory_that_changed_is_mapped_anew() {
    let unit = unit();
    for page in 0..8 {
        write(&unit, FIRST, page, (page + 8) << 12 | RW);
    }
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let shadow = Shadow::of(unit.clone());
    let following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    device.take();
    following.resync(Span::new(Gpa(10 << 12), Gpa(0xbfff)).unwrap());
    assert_eq!(device.take(), [[unmap(2, 3), map(2, 3, 10)]]);
    following.resync(Span::new(Gpa(1 << 40), Gpa(1 << 41)).unwrap());
    assert_eq!(device.take().len(), 0);
}

#[test]
fn what_is_beyond_the_limit_of_runs_is_reported_and_comes_when_there_is_room() {
    let unit = unit();
    for page in [0, 2, 4, 6] {
        write(&unit, FIRST, page, (page + 8) << 12 | RW);
    }
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let limits = Limits {
        runs: 3,
        ..Limits::default()
    };
    let shadow = Shadow::with_limits(unit.clone(), limits);
    let following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    assert_eq!(
        device.take(),
        [[map(0, 0, 8), map(2, 2, 10), map(4, 4, 12)]]
    );
    let rest = span(0x6000, u64::MAX);
    let failure = following.failure().unwrap();
    assert_eq!((failure.span, failure.errno), (rest, ENOSPC));
    let faults: Vec<_> = unit.take_faults().iter().map(|fault| fault.span).collect();
    assert_eq!(faults, [rest]);
    // A new page does not push out one that is mapped.
    write(&unit, FIRST, 1, 0x20_f000 | RW);
    unit.invalidate_one(Scope::Domain(7), pages(1, 1));
    assert_eq!(device.take().len(), 0);
    write(&unit, FIRST, 0, 0);
    write(&unit, FIRST, 1, 0);
    unit.invalidate_one(Scope::Domain(7), pages(0, 0));
    assert_eq!(device.take(), [[unmap(0, 0), map(6, 6, 14)]]);
    assert_eq!(following.failure(), None);
}

#[test]
fn tables_that_contain_themselves_end() {
    let unit = Unit::new(2);
    for entry in 0..512 {
        unit.memory.set(entry * 8, RW);
    }
    unit.enter(source(1), Some((0, 7)));
    let device = Device::new();
    let limits = Limits {
        runs: 1000,
        tables: 64,
    };
    let shadow = Shadow::with_limits(unit.clone(), limits);
    let following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    assert_eq!(following.failure().unwrap().errno, ENOSPC);
    assert_eq!(device.take().concat().len(), 1000);
    unit.memory.set(0, 0);
    unit.invalidate_all();
    assert!(following.failure().is_some());
}

#[test]
fn a_budget_that_ends_goes_on_with_the_next_turn() {
    let unit = unit();
    for table in 0..40 {
        unit.memory
            .set(0x1000 + table * 8, (0x10_000 + table * 0x1000) | RW);
        unit.memory
            .set(0x10_000 + table * 0x1000, (table << 13) | RW);
    }
    unit.enter(source(1), Some(FIRST));
    let device = Device::new();
    let limits = Limits {
        tables: 12,
        ..Limits::default()
    };
    let shadow = Shadow::with_limits(unit.clone(), limits);
    let following = shadow
        .follow(source(1), Section::ALL, device.clone())
        .unwrap();
    assert_eq!(device.mapped.lock().unwrap().len(), 10);
    for _ in 0..3 {
        assert!(following.failure().is_some());
        unit.invalidate_one(Scope::Domain(7), pages(511, 511));
    }
    assert_eq!(device.mapped.lock().unwrap().len(), 40);
    assert_eq!(following.failure(), None);
}

#[test]
fn an_entry_that_changes_under_a_look_does_not_mislead_other_devices() {
    let unit = unit();
    write(&unit, FIRST, 1, 0x9000 | RW);
    write(&unit, SECOND, 2, 0xa000 | RW);
    let (one, two) = (Device::new(), Device::new());
    let shadow = Shadow::of(unit.clone());
    unit.enter(source(1), Some(FIRST));
    unit.enter(source(2), Some(FIRST));
    let _one = shadow.follow(source(1), Section::ALL, one.clone()).unwrap();
    let _two = shadow.follow(source(2), Section::ALL, two.clone()).unwrap();
    let guest = unit.clone();
    let change = move || guest.enter(source(1), Some(SECOND));
    *unit.meanwhile.lock().unwrap() = Some(Box::new(change));
    unit.invalidate_one(Scope::Domain(7), Span::whole());
    assert_eq!(two.page(0x1000), Some((0x9000, 3)));
    assert_eq!(two.page(0x2000), None);
    unit.invalidate_one(Scope::Entry(source(1)), Span::whole());
    assert_eq!(one.page(0x1000), None);
    assert_eq!(one.page(0x2000), Some((0xa000, 3)));
}

#[test]
fn a_process_address_space_is_a_source_of_its_own() {
    let unit = unit();
    write(&unit, FIRST, 1, 0x9000 | RW);
    write(&unit, SECOND, 1, 0xa000 | RW);
    let plain = source(1);
    let with = |pasid| Source {
        pasid: Pasid::new(pasid),
        ..plain
    };
    let shadow = Shadow::of(unit.clone());
    let devices = [Device::new(), Device::new()];
    let _plain = shadow
        .follow(plain, Section::ALL, devices[0].clone())
        .unwrap();
    let _other = shadow
        .follow(with(5), Section::ALL, devices[1].clone())
        .unwrap();
    unit.enter(plain, Some(FIRST));
    unit.enter(with(5), Some(SECOND));
    unit.invalidate_one(Scope::Entry(with(5)), Span::whole());
    assert_eq!(devices[0].take().len(), 0);
    assert_eq!(devices[1].take(), [[map(1, 1, 10)]]);
    unit.invalidate_one(Scope::Entry(plain), Span::whole());
    assert_eq!(devices[0].take(), [[map(1, 1, 9)]]);
}

#[test]
fn a_listener_that_takes_its_time_delays_only_other_turns() {
    let unit = unit();
    unit.enter(source(1), Some(FIRST));
    unit.enter(source(2), Some(SECOND));
    let (slow, quick) = (Device::new(), Device::new());
    let shadow = Shadow::of(unit.clone());
    let _slow = shadow
        .follow(source(1), Section::ALL, slow.clone())
        .unwrap();
    let (entered, is_entered) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel();
    slow.refuse(move |_| {
        entered.send(()).unwrap();
        may_leave.recv().unwrap();
        None
    });
    write(&unit, FIRST, 1, 0x9000 | RW);
    write(&unit, SECOND, 1, 0xa000 | RW);
    thread::scope(|scope| {
        scope.spawn(|| unit.invalidate_all());
        is_entered.recv().unwrap();
        // The unit's own answers do not wait for it.
        assert!(iogate_dma::GuestDomains::domain(&*unit, source(2)).is_some());
        let other = scope.spawn(|| {
            shadow
                .follow(source(2), Section::ALL, quick.clone())
                .unwrap()
        });
        leave.send(()).unwrap();
        let _quick = other.join().unwrap();
        assert_eq!(quick.page(0x1000), Some((0xa000, 3)));
    });
    slow.accept();
}

#[test]
fn listeners_come_and_go_while_the_guest_invalidates() {
    let unit = unit();
    unit.enter(source(1), Some(FIRST));
    let stays = Device::new();
    let shadow = Shadow::of(unit.clone());
    let _stays = shadow
        .follow(source(1), Section::ALL, stays.clone())
        .unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2000_u64 {
                write(&unit, FIRST, round % 8, (round % 3) << 13 | RW);
                unit.invalidate_one(Scope::Domain(7), pages(round % 8, round % 8));
            }
        });
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let device = Device::new();
                    let following = shadow.follow(source(1), Section::ALL, device.clone());
                    following.as_ref().unwrap().resync(Span::whole());
                    drop(following);
                    assert_eq!(*device.mapped.lock().unwrap(), []);
                }
            });
        }
    });
    for page in 0..8 {
        assert_eq!(stays.page(page << 12), unit.page(source(1), page << 12));
    }
}
