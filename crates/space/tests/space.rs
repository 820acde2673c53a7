//! Single properties that a random sequence seldom comes across.

use std::sync::Arc;

use iogate_dma::{Access, Gate, Iova, Rights, Span};
use iogate_space::{AddressSpace, Segment};

fn page(first: u64) -> Span {
    Span::with_length(Iova(first), 4096).unwrap()
}

#[test]
fn neighbours_make_one_run_only_with_equal_rights_and_contiguous_output() {
    let gate = Arc::new(Gate::new());
    let space = AddressSpace::new(Arc::clone(&gate));
    let areas = [
        (0x1000, Rights::READ_WRITE, 0x8000),
        (0x2000, Rights::READ_WRITE, 0x9000),
        (0x3000, Rights::READ, 0xa000),
        (0x4000, Rights::READ, 0xc000),
    ];
    for (iova, rights, output) in areas {
        space.map(page(iova), rights, ()).unwrap();
        let length = 0x1000;
        space
            .fill(Iova(iova), &[Segment { length, output }])
            .unwrap();
    }
    let mut worker = gate.join();
    let guard = worker.enter();
    let run = |first: u64| {
        let rest = Span::new(Iova(first), Iova(u64::MAX)).unwrap();
        let hit = space.lookup(&guard, rest, Access::Read).unwrap();
        (hit.output, hit.length)
    };
    assert_eq!(run(0x1010), (0x8010, 0x1ff0));
    assert_eq!(run(0x3000), (0xa000, 0x1000));
    assert_eq!(run(0x4000), (0xc000, 0x1000));
}

#[test]
fn what_an_unmap_frees_is_found_again_even_with_the_free_bytes_before_it() {
    let space = AddressSpace::new(Arc::new(Gate::new()));
    let find = || space.find_free(0x2000, 0x1000, 0).map(|found| found.0);
    space.map(page(0x2000), Rights::READ, ()).unwrap();
    space.map(page(0x3000), Rights::READ, ()).unwrap();
    assert_eq!(find(), Some(0x4000));
    space.unmap(Iova(0x2000)).unwrap();
    assert_eq!(find(), Some(0x1000));
}

#[test]
fn an_allow_list_bounds_placement_and_an_empty_one_does_not() {
    let space = AddressSpace::<()>::new(Arc::new(Gate::new()));
    let find = || space.find_free(0x1000, 0x1000, 0x10).map(|found| found.0);
    assert_eq!(find(), Some(0x1010));
    let high = Span::new(Iova(0x10_0000), Iova(0x10_2000)).unwrap();
    space.set_allowed(&[high]).unwrap();
    assert_eq!(find(), Some(0x10_0010));
    space.set_allowed(&[page(0x10_0000)]).unwrap();
    assert_eq!(find(), None);
    space.set_allowed(&[]).unwrap();
    assert_eq!(find(), Some(0x1010));
}

#[test]
fn placement_never_takes_the_first_or_the_last_page() {
    let space = AddressSpace::<()>::new(Arc::new(Gate::new()));
    assert_eq!(space.find_free(1, 1, 0), Some(Iova(0x1000)));
    let last = Iova(u64::MAX - 0x1000);
    let top = Span::new(Iova(0), Iova(last.0 - 1)).unwrap();
    space.map(top, Rights::READ, ()).unwrap();
    assert_eq!(space.find_free(1, 1, 0), Some(last));
    assert_eq!(space.find_free(2, 1, 0), None);
    assert_eq!(space.find_free(0, 1, 0), None);
    assert_eq!(space.find_free(1, 0, 0), None);
    assert_eq!(space.find_free(1, 8, 8), None);
}

#[test]
fn an_owner_changes_the_payload_and_nothing_else() {
    let space = AddressSpace::new(Arc::new(Gate::new()));
    space.map(page(0), Rights::READ, 1).unwrap();
    space.with_area(Iova(5), |area| {
        area.payload = 2;
        area.rights = Rights::READ_WRITE;
        area.span = page(0x1000);
    });
    let area = space.unmap(Iova(0)).unwrap();
    assert_eq!(
        (area.span, area.rights, area.payload),
        (page(0), Rights::READ, 2)
    );
}

#[test]
fn usable_is_what_no_one_reserves_in_as_few_spans_as_can_be() {
    let space = AddressSpace::<()>::new(Arc::new(Gate::new()));
    let span = |first, last| Span::new(Iova(first), Iova(last)).unwrap();
    assert_eq!(space.usable(), [Span::whole()]);
    space.reserve(1, span(0, 0xfff)).unwrap();
    space.reserve(1, span(0x4000, 0x4fff)).unwrap();
    space.reserve(2, span(0x5000, 0x5fff)).unwrap();
    space.reserve(2, span(0x4800, 0x4fff)).unwrap();
    let (low, high) = (span(0x1000, 0x3fff), span(0x6000, u64::MAX));
    assert_eq!(space.usable(), [low, high]);
    space.release(1);
    assert_eq!(space.usable(), [span(0, 0x47ff), high]);
    assert!(space.is_reserved(page(0x4000)) && !space.is_reserved(page(0x3000)));
}
