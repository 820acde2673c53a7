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

#[test]
fn an_area_that_is_cut_says_the_same_and_its_halves_go_apart() {
    let gate = Arc::new(Gate::new());
    let space = AddressSpace::new(Arc::clone(&gate));
    let mut worker = gate.join();
    // Large enough for slots of 2 MiB and more, at an odd place.
    let whole = Span::with_length(Iova(0x12_3000), 0x4000_0000).unwrap();
    space.map(whole, Rights::READ, 1).unwrap();
    let segment = Segment {
        length: 0x4000_0000,
        output: 0x9_0000_0000,
    };
    space.fill(whole.first(), &[segment]).unwrap();
    let output = |worker: &mut iogate_dma::Participant, at: u64| {
        let guard = worker.enter();
        let span = Span::with_length(Iova(at), 1).unwrap();
        let hit = space.lookup(&guard, span, Access::Read);
        hit.ok().map(|hit| hit.output)
    };
    let cuts = [0x12_4000, 0x20_0000, 0x3f21_f000, 0x4012_2000];
    for (number, at) in (2..).zip(cuts) {
        space.split(Iova(at), |_| number).unwrap();
        for probe in [0x12_3000, at - 1, at, at + 1, 0x4012_2fff] {
            let expected = 0x9_0000_0000 + (probe - 0x12_3000);
            assert_eq!(output(&mut worker, probe), Some(expected), "{probe:#x}");
        }
        let (span, _) = space.area_at(Iova(at)).unwrap();
        assert_eq!((span.first(), span.last()), (Iova(at), whole.last()));
        let payload = space.with_area(Iova(at), |area| area.payload);
        assert_eq!(payload, Some(number));
    }
    assert_eq!((space.area_count(), space.mapped_bytes()), (5, 0x4000_0000));
    let part = space.unmap(Iova(0x20_0000)).unwrap();
    assert_eq!(part.span.last(), Iova(0x3f21_efff));
    assert_eq!(output(&mut worker, 0x20_0000), None);
    assert_eq!(output(&mut worker, 0x1f_ffff), Some(0x9_000d_cfff));
    assert_eq!(output(&mut worker, 0x3f21_f000), Some(0x9_3f0f_c000));
    // Where an area starts, and where none is, there is nothing to cut.
    space.split(Iova(0x3f21_f000), |_| 9).unwrap();
    space.split(Iova(0x5000_0000), |_| 9).unwrap();
    assert_eq!(space.area_count(), 4);
}
