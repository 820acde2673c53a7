//! First stage, second stage and both: VT-d 4.1 sections 3.6 to 3.8.

use iogate_dma::{Access, Kind, Rights};
use iogate_paging::Permissions;
use iogate_paging::vtd::{FirstStage, Levels, SecondStage};

use super::world::*;
use crate::spec::fault::Reason;

const FIRST: u64 = 1 << 6 | 1;
const SECOND: u64 = 2 << 6 | 2 << 2 | 1;
const NESTED: u64 = 3 << 6 | 2 << 2 | 1;

fn first_stage() -> FirstStage {
    FirstStage::new(Levels::Four)
}

fn read_only() -> Permissions {
    Permissions::new(true, false, true)
}

fn supervisor() -> Permissions {
    Permissions::ALL.with_user(false)
}

#[test]
fn the_first_stage_checks_canonical_form_and_privilege() {
    let mut world = World::scalable();
    let root = world.tables(
        first_stage(),
        &[
            (0x1000, 0x8000, 0x1000, read_only(), 12),
            (0x2000, 0x9000, 0x1000, supervisor(), 12),
            (0xffff_8000_0000_0000, 0xa000, 0x1000, Permissions::ALL, 12),
        ],
    );
    // SRE.
    world.pasid(5, &[FIRST, 3, root | 1]);
    world.pasid(6, &[FIRST, 3, root]);
    let read = |iova| request(pasid(5), iova, 8, Access::Read);
    let write = |iova| request(pasid(5), iova, 8, Access::Write);
    assert_eq!(world.ask(&read(0x1000)).unwrap(), (0x8000, 8, Rights::READ));
    assert_eq!(world.reason(&write(0x1000)), Reason::SM_NO_WRITE);
    assert_eq!(world.reason(&read(0x2000)), Reason::NOT_USER);
    assert_eq!(world.reason(&write(0x2000)), Reason::NOT_USER);
    assert_eq!(world.ask(&privileged(read(0x2000))).unwrap().0, 0x9000);
    // WPE is clear.
    assert_eq!(world.ask(&privileged(write(0x1000))).unwrap().0, 0x8000);
    let other = privileged(request(pasid(6), 0x2000, 8, Access::Read));
    assert_eq!(world.reason(&other), Reason::SM_NO_SUPERVISOR);
    assert_eq!(world.ask(&read(0xffff_8000_0000_0000)).unwrap().0, 0xa000);
    assert_eq!(world.reason(&read(0x8000_0000_0000)), Reason::NOT_CANONICAL);
    assert_eq!(world.reason(&read(0x3000)), Reason::FIRST_ABSENT);
}

#[test]
fn first_stage_tables_in_holes_and_reserved_bits_have_their_reasons() {
    let mut world = World::scalable();
    let root = world.tables(
        first_stage(),
        &[(0x1000, 0x8000, 0x1000, Permissions::ALL, 12)],
    );
    world.pasid(0, &[FIRST, 3, root]);
    let saved = world.ram.get(root);
    world.ram.set(root, &[saved | 1 << 7]);
    assert_eq!(world.read_reason(0x1000), Reason::FIRST_RESERVED);
    world.ram.set(root, &[SIZE | 7]);
    assert_eq!(world.read_reason(0x1000), Reason::FIRST_ACCESS);
    world.pasid(0, &[FIRST, 3, SIZE]);
    assert_eq!(world.read_reason(0x1000), Reason::FIRST_ROOT_ACCESS);
    // A table that is its own lower levels leads to itself.
    world.pasid(0, &[FIRST, 3, root]);
    world.ram.set(root, &[root | 7]);
    assert_eq!(world.access(0x10, Access::Read).unwrap(), root + 0x10);
}

#[test]
fn nested_tables_and_their_output_pass_the_second_stage() {
    let mut world = World::scalable();
    // The first stage's tables stand where the second stage says, one MiB up.
    let host = 0x10_0000;
    let root = world.tables(
        first_stage(),
        &[
            (0x1000, 0x8000, 0x1000, Permissions::ALL, 12),
            (0x2000, 0x9000, 0x1000, Permissions::ALL, 12),
            (0x3000, 0x50_0000_0000, 0x1000, Permissions::ALL, 12),
            (0x4000, 0x7fff_ffff_f000, 0x1000, Permissions::ALL, 12),
            (0x20_0000, 0x20_0000, 0x20_0000, Permissions::ALL, 21),
        ],
    );
    let second = world.tables(
        SecondStage::new(Levels::Three),
        &[
            (0x8000, 0x3_0000, 0x1000, Permissions::ALL, 12),
            (0x9000, 0x3_1000, 0x1000, read_only(), 12),
            (0x20_0000, 0x4_0000, 0x2000, Permissions::ALL, 12),
            (host, host, 0x10_0000, Permissions::ALL, 12),
        ],
    );
    let width = 3 << 6 | 1 << 2 | 1;
    world.pasid(0, &[second | width, 9, root]);
    assert_eq!(world.access(0x1010, Access::Write).unwrap(), 0x3_0010);
    assert_eq!(world.access(0x2010, Access::Read).unwrap(), 0x3_1010);
    let write = request(DEVICE, 0x2010, 8, Access::Write);
    assert_eq!(world.reason(&write), Reason::SM_NO_WRITE);
    assert_eq!(world.read_reason(0x3000), Reason::SM_SECOND_ABSENT);
    assert_eq!(world.read_reason(0x4000), Reason::SM_NESTED_WIDTH);
    // The smaller of both pages bounds the run.
    let long = request(DEVICE, 0x20_0800, 0x4000, Access::Read);
    assert_eq!(world.ask(&long).unwrap().1, 0x800);
    world.pasid(0, &[second | width, 9, 0x6000]);
    assert_eq!(world.read_reason(0x1000), Reason::FIRST_ROOT_NO_READ);
    world.pasid(0, &[second | width, 9, 0x7fff_ffff_f000]);
    assert_eq!(world.read_reason(0x1000), Reason::FIRST_TABLE_WIDTH);
    world.ram.set(root, &[0x6000 | 7]);
    world.pasid(0, &[second | width, 9, root]);
    assert_eq!(world.read_reason(0x1000), Reason::FIRST_NO_READ);
    world.pasid(0, &[SIZE | NESTED, 9, root]);
    assert_eq!(world.read_reason(0x1000), Reason::SM_SECOND_ROOT_ACCESS);
}

#[test]
fn flags_of_a_first_stage_behind_a_read_only_second_cannot_be_set() {
    let mut world = World::scalable();
    let root = world.tables(
        first_stage(),
        &[(0x1000, 0x8000, 0x1000, Permissions::ALL, 12)],
    );
    let second = world.tables(
        SecondStage::new(Levels::Four),
        &[
            (0x8000, 0x3_0000, 0x1000, Permissions::ALL, 12),
            (0x10_0000, 0x10_0000, 0x10_0000, read_only(), 12),
        ],
    );
    world.pasid(0, &[second | NESTED, 9, root]);
    assert_eq!(world.read_reason(0x1000), Reason::FIRST_NO_WRITE);
}

#[test]
fn accessed_and_dirty_flags_are_set_where_the_entry_asks_for_them() {
    let mut world = World::scalable();
    let root = world.tables(
        first_stage(),
        &[(0x1000, 0x8000, 0x1000, Permissions::ALL, 12)],
    );
    // EAFE.
    world.pasid(0, &[FIRST, 3, root | 1 << 7]);
    let leaf = |world: &World| {
        let mut table = root;
        for _ in 0..3 {
            table = world.ram.get(table) & 0xf_ffff_f000;
        }
        world.ram.get(table + 8)
    };
    let ats = of_kind(
        request(DEVICE, 0x1000, 8, Access::Read),
        Kind::TranslationRequest,
    );
    // Who has not announced a write must not write behind the dirty flag.
    assert_eq!(world.ask(&ats).unwrap().2, Rights::READ);
    assert_eq!(leaf(&world) & (1 << 5 | 1 << 6 | 1 << 10), 1 << 5 | 1 << 10);
    world.access(0x1000, Access::Write).unwrap();
    assert_eq!(leaf(&world) & 1 << 6, 1 << 6);
    assert_eq!(world.ask(&ats).unwrap().2, Rights::READ_WRITE);
    let map = (0x1000, 0x8000, 0x1000, Permissions::ALL, 12);
    let root = world.tables(SecondStage::new(Levels::Four), &[map]);
    for (ssade, flags) in [(0, 0), (1 << 9, 1 << 8)] {
        world.pasid(0, &[root | SECOND | ssade, 3, 0]);
        world.access(0x1000, Access::Read).unwrap();
        assert_eq!(world.ram.get(root) & (1 << 8 | 1 << 9), flags);
    }
}

#[test]
fn output_in_the_interrupt_range_is_refused_and_a_large_page_stops_before_it() {
    let mut world = World::scalable();
    let map = (0xfec0_0000, 0xfec0_0000, 0x40_0000, Permissions::ALL, 21);
    let root = world.tables(SecondStage::new(Levels::Four), &[map]);
    world.pasid(1, &[root | SECOND, 3, 0]);
    let across = request(pasid(1), 0xfedf_fff0, 64, Access::Read);
    assert_eq!(
        world.ask(&across).unwrap(),
        (0xfedf_fff0, 16, Rights::READ_WRITE)
    );
    let inside = request(pasid(1), 0xfee0_0000, 4, Access::Write);
    assert!(world.ask(&inside).is_err());
    // Without a PASID a write is an interrupt.
    let gate = std::sync::Arc::new(iogate_dma::Gate::new());
    let mut participant = gate.join();
    let guard = participant.enter();
    let interrupt = request(DEVICE, 0xfee0_1000, 4, Access::Write);
    let outcome = iogate_dma::Translate::translate(&*world.unit, &guard, &interrupt).unwrap();
    let message = outcome.message(0x31).unwrap();
    assert_eq!((message.address, message.data), (0xfee0_1000, 0x31));
}
