//! Domains as others follow them.

use std::ops::ControlFlow;

use iogate_dma::{GuestDomains, Iova, Mapping, Rights, Scan, Source, Span};
use iogate_paging::Permissions;
use iogate_paging::vtd::{FirstStage, Levels, SecondStage};

use super::world::*;

fn scanned(world: &World, source: Source, span: Span) -> Vec<(u64, u64, u64, Rights)> {
    let mut all = Vec::new();
    let end = world
        .unit
        .scan(source, span, usize::MAX, &mut |mapping: Mapping| {
            let length = mapping.span.length().unwrap();
            all.push((
                mapping.span.first().0,
                mapping.output,
                length,
                mapping.rights,
            ));
            ControlFlow::Continue(())
        });
    assert_eq!(end, Scan::Whole);
    all
}

#[test]
fn a_scan_tells_joined_runs_of_what_a_domain_maps() {
    let mut world = World::legacy();
    assert_eq!(world.unit.domain(DEVICE.into()), None);
    assert_eq!(scanned(&world, DEVICE.into(), Span::whole()), []);
    let root = world.tables(
        SecondStage::new(Levels::Four),
        &[
            (0x1000, 0x8000, 0x3000, Permissions::ALL, 12),
            (
                0x4000,
                0xb000,
                0x1000,
                Permissions::new(true, false, true),
                12,
            ),
            (0x20_0000, 0x40_0000, 0x40_0000, Permissions::ALL, 21),
        ],
    );
    world.context(root | 1, 0x0702);
    let (key, id) = world.unit.domain(DEVICE.into()).unwrap();
    assert_eq!(id, 7);
    assert_eq!(
        scanned(&world, DEVICE.into(), Span::whole()),
        [
            (0x1000, 0x8000, 0x3000, Rights::READ_WRITE),
            (0x4000, 0xb000, 0x1000, Rights::READ),
            (0x20_0000, 0x40_0000, 0x40_0000, Rights::READ_WRITE),
        ]
    );
    let part = Span::new(Iova(0x2000), Iova(0x20_0fff)).unwrap();
    assert_eq!(
        scanned(&world, DEVICE.into(), part),
        [
            (0x2000, 0x9000, 0x2000, Rights::READ_WRITE),
            (0x4000, 0xb000, 0x1000, Rights::READ),
            (0x20_0000, 0x40_0000, 0x1000, Rights::READ_WRITE),
        ]
    );
    // FPD changes no mapping, another table does.
    world.context(root | 3, 0x0702);
    assert_eq!(world.unit.domain(DEVICE.into()).unwrap().0, key);
    world.context((root + 0x1000) | 1, 0x0702);
    assert_ne!(world.unit.domain(DEVICE.into()).unwrap().0, key);
}

#[test]
fn without_translation_and_in_pass_through_everything_is_mapped_to_itself() {
    let world = World::legacy();
    world.context(1 | 2 << 2, 2);
    let all = [(0, 0, 1 << 48, Rights::READ_WRITE)];
    assert_eq!(scanned(&world, DEVICE.into(), Span::whole()), all);
    world.unit.live.set_status(0);
    assert_eq!(scanned(&world, DEVICE.into(), Span::whole()), all);
}

#[test]
fn a_nested_scan_tells_what_both_stages_map_in_any_number_of_pieces() {
    let mut world = World::scalable();
    let root = world.tables(
        FirstStage::new(Levels::Four),
        &[
            (0x20_0000, 0x20_0000, 0x20_0000, Permissions::ALL, 21),
            (
                0x40_0000,
                0x9000,
                0x1000,
                Permissions::ALL.with_user(false),
                12,
            ),
            (0xffff_8000_0000_0000, 0x8000, 0x2000, Permissions::ALL, 12),
        ],
    );
    let second = world.tables(
        SecondStage::new(Levels::Four),
        &[
            (0x8000, 0x3_0000, 0x1000, Permissions::ALL, 12),
            (
                0x9000,
                0x3_1000,
                0x1000,
                Permissions::new(true, false, true),
                12,
            ),
            (0x20_1000, 0x4_0000, 0x2000, Permissions::ALL, 12),
            (0x10_0000, 0x10_0000, 0x10_0000, Permissions::ALL, 12),
        ],
    );
    world.pasid(3, &[second | 3 << 6 | 2 << 2 | 1, 9, root]);
    let expected = [
        (0x20_1000, 0x4_0000, 0x2000, Rights::READ_WRITE),
        (0xffff_8000_0000_0000, 0x3_0000, 0x1000, Rights::READ_WRITE),
        (0xffff_8000_0000_1000, 0x3_1000, 0x1000, Rights::READ),
    ];
    assert_eq!(scanned(&world, pasid(3), Span::whole()), expected);
    // In the smallest steps.
    let (mut from, mut all) = (0, Vec::new());
    for _ in 0..100 {
        let span = Span::new(Iova(from), Iova(u64::MAX)).unwrap();
        let end = world.unit.scan(pasid(3), span, 1, &mut |mapping: Mapping| {
            let length = mapping.span.length().unwrap();
            all.push((
                mapping.span.first().0,
                mapping.output,
                length,
                mapping.rights,
            ));
            ControlFlow::Continue(())
        });
        match end {
            Scan::Until(at) => from = at.0,
            Scan::Whole => break,
            Scan::Stopped => panic!(),
        }
    }
    assert_eq!(all, expected);
}
