//! What the tables cost: bounded by what is mapped at once, and by a limit.

use std::sync::Arc;

use iogate_dma::{Access, Gate, Iova, Rights, Span};
use iogate_space::{AddressSpace, FillError, MapError, Miss, Segment};

fn page(first: u64) -> Span {
    Span::with_length(Iova(first), 4096).unwrap()
}

/// The same few million scattered pages every time.
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) & !0xfff
}

#[test]
fn a_million_scattered_maps_and_unmaps_leave_the_tables_small() {
    let space = AddressSpace::new(Arc::new(Gate::new()));
    for number in 0..1_000_000_u64 {
        space
            .map(page(scattered(number)), Rights::READ, ())
            .unwrap();
        if let Some(before) = number.checked_sub(8) {
            space.unmap(Iova(scattered(before))).unwrap();
        }
    }
    assert_eq!(space.area_count(), 8);
    assert!(space.table_bytes() < 2 << 20, "{}", space.table_bytes());
}

#[test]
fn tables_that_a_guard_may_still_read_are_not_used_again_before_it_leaves() {
    let gate = Arc::new(Gate::new());
    let space = AddressSpace::new(Arc::clone(&gate));
    let churn = |numbers: std::ops::Range<u64>| {
        for number in numbers {
            space
                .map(page(scattered(number)), Rights::READ, ())
                .unwrap();
            space.unmap(Iova(scattered(number))).unwrap();
        }
        space.table_bytes()
    };
    let before = churn(0..1000);
    let mut worker = gate.join();
    let guard = worker.enter();
    let held = churn(1000..2000);
    assert!(held > before + 1000 * 4096, "{before} {held}");
    drop(guard);
    assert_eq!(churn(2000..10_000), held);
}

#[test]
fn a_large_area_costs_a_few_tables_at_any_alignment() {
    for first in [0, 1, 0x800, 0x1000, 0x1f_f001, 0x20_0000, 0x7fff_ffff_ffff] {
        let space = AddressSpace::new(Arc::new(Gate::new()));
        let span = Span::with_length(Iova(first), 64 << 30).unwrap();
        space.map(span, Rights::READ, ()).unwrap();
        let nodes = space.table_bytes() / (20 << 9);
        assert!(nodes < 12, "{nodes} nodes at {first:#x}");
        assert_eq!(space.area_at(span.last()), Some((span, Rights::READ)));
    }
}

#[test]
fn one_area_may_be_the_whole_space() {
    let gate = Arc::new(Gate::new());
    let space = AddressSpace::new(Arc::clone(&gate));
    let whole = Span::<Iova>::whole();
    space.map(whole, Rights::READ_WRITE, ()).unwrap();
    assert_eq!(space.mapped_bytes(), u64::MAX);
    let half = Segment {
        length: 1 << 63,
        output: 0,
    };
    let upper = Segment {
        output: 1 << 63,
        ..half
    };
    space.fill(Iova(0), &[half, upper]).unwrap();
    let mut worker = gate.join();
    let guard = worker.enter();
    let hit = space.lookup(&guard, whole, Access::Atomic).unwrap();
    assert_eq!((hit.output, hit.length), (0, u64::MAX));
    let top = Span::with_length(Iova(u64::MAX), 1).unwrap();
    assert_eq!(
        space.lookup(&guard, top, Access::Read).unwrap().output,
        u64::MAX
    );
    space.revoke(top);
    assert_eq!(space.lookup(&guard, top, Access::Read), Err(Miss::Revoked));
    let hit = space.lookup(&guard, whole, Access::Read).unwrap();
    assert_eq!(hit.length, u64::MAX);
    assert_eq!(space.unmap(Iova(0)).map(|area| area.span), Some(whole));
    assert_eq!(
        space.lookup(&guard, whole, Access::Read),
        Err(Miss::NotMapped)
    );
}

#[test]
fn a_map_that_the_tables_have_no_room_for_leaves_nothing_behind() {
    let gate = Arc::new(Gate::new());
    let space = AddressSpace::with_table_limit(Arc::clone(&gate), 1 << 20);
    let full = (0..).find(|&number| {
        let result = space.map(page(scattered(number)), Rights::READ, number);
        if let Err((error, back)) = result {
            assert_eq!((error, back), (MapError::Full, number));
        }
        result.is_err()
    });
    let full = full.unwrap();
    assert!(full > 10 && space.table_bytes() <= 1 << 20);
    assert_eq!(space.area_count(), usize::try_from(full).unwrap());
    assert_eq!(space.area_at(Iova(scattered(full))), None);
    let mut worker = gate.join();
    assert_eq!(
        space.lookup(&worker.enter(), page(scattered(full)), Access::Read),
        Err(Miss::NotMapped)
    );
    for number in 0..full {
        let area = space.unmap(Iova(scattered(number))).unwrap();
        assert_eq!((area.span, area.payload), (page(scattered(number)), number));
    }
    assert_eq!(space.next_area(Iova(0)), None);
    for number in full..full * 2 - 1 {
        space
            .map(page(scattered(number)), Rights::READ, number)
            .unwrap();
    }
}

#[test]
fn with_no_room_to_cut_an_area_output_is_refused_and_withdrawal_takes_more() {
    let gate = Arc::new(Gate::new());
    let space = AddressSpace::with_table_limit(Arc::clone(&gate), 11_000);
    let large = Span::with_length(Iova(0), 0x20_0000).unwrap();
    space.map(large, Rights::READ, ()).unwrap();
    let fill = |first, length| space.fill(Iova(first), &[Segment { length, output: 0 }]);
    fill(0, 0x20_0000).unwrap();
    let mut worker = gate.join();
    let mut state = |at| {
        let byte = Span::with_length(Iova(at), 1).unwrap();
        space.lookup(&worker.enter(), byte, Access::Read).err()
    };
    for granule in 0..8 {
        let _ = fill(granule * 0x1000 + 1, 1);
    }
    assert_eq!(fill(0x9001, 1), Err(FillError::Full));
    assert_eq!(state(0x9001), Some(Miss::Unfilled));
    assert_eq!(state(0xa000), None);
    space.revoke(page(0xa800));
    assert_eq!(state(0xa800), Some(Miss::Revoked));
    assert_eq!(state(0xb7ff), Some(Miss::Revoked));
    assert_eq!(state(0xc000), None);
    space.unmap(Iova(0)).unwrap();
    assert_eq!(state(0xa800), Some(Miss::NotMapped));
}

#[test]
fn cutting_an_area_and_making_it_whole_again_leaves_the_tables_small() {
    let space = AddressSpace::new(Arc::new(Gate::new()));
    let large = Span::with_length(Iova(0x4000_0000), 0x4000_0000).unwrap();
    space.map(large, Rights::READ, ()).unwrap();
    for round in 0..5000 {
        let fill = |first: u64, length| {
            let output = 0;
            space
                .fill(Iova(first), &[Segment { length, output }])
                .unwrap();
        };
        fill(0x4000_0001 + (round << 12), 7);
        fill(0x4000_0000, 0x4000_0000);
    }
    assert!(space.table_bytes() < 2 << 20, "{}", space.table_bytes());
}

#[test]
fn an_area_in_place_of_smaller_ones_takes_over_their_tables() {
    let space = AddressSpace::new(Arc::new(Gate::new()));
    let large = Span::with_length(Iova(0x20_0000), 0x20_0000).unwrap();
    for _ in 0..5000 {
        for span in [page(0x20_0000), large] {
            space.map(span, Rights::READ, ()).unwrap();
            space.unmap(span.first()).unwrap();
        }
    }
    assert!(space.table_bytes() < 2 << 20, "{}", space.table_bytes());
}
