//! Mappings of a container: rules 11 to 16 and 19 of the notes on the kernel's
//! uAPI, each as a test whose first line names the kernel's function. All are
//! in drivers/vfio/vfio_iommu_type1.c.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod legacy_world;

use std::sync::atomic::Ordering;

use iogate_dma::FaultReason;
use iogate_host::{FileId, MemlockMode};
use iogate_uapi::Errno;

use legacy_world::program::SHARED;
use legacy_world::{ARGUMENT, FIRST, HEAP, HEAP_PAGES, PAGE, World, number, quad, word};

const R: u32 = 1;
const RW: u32 = 3;
const VADDR: u32 = 4;
const ALL: u32 = 2;
const DIRTY: u32 = 1;

fn world() -> (World, FileId) {
    let world = World::new();
    let (container, _) = world.container(FIRST, 3);
    (world, container)
}

/// vfio_dma_do_map. Rule 11: each refused call would be refused by every later
/// check as well.
#[test]
fn a_mapping_is_checked_in_the_kernels_order() {
    let world = World::with(1, MemlockMode::Enforce);
    let (container, _) = world.container(FIRST, 3);
    let map = |flags, vaddr, iova, size| world.map(container, flags, (vaddr, iova, size));
    let top = u64::MAX;
    assert_eq!(map(0, 1, top, 0), Err(Errno::EINVAL));
    assert_eq!(map(0, 1, top, 2), Err(Errno::EOVERFLOW));
    assert_eq!(map(0, top, 1, 2), Err(Errno::EOVERFLOW));
    assert_eq!(map(0, 1, 1, 1), Err(Errno::EINVAL));
    assert_eq!(map(RW | VADDR, 1, 1, 1), Err(Errno::EINVAL));
    assert_eq!(map(RW, HEAP + 1, 0, PAGE), Err(Errno::EINVAL));
    assert_eq!(map(RW, HEAP, 1, PAGE), Err(Errno::EINVAL));
    assert_eq!(map(RW, HEAP, 0, PAGE + 1), Err(Errno::EINVAL));
    assert_eq!(map(RW, HEAP, 0x10_0000, PAGE), Ok(()));
    // It is the one mapping that there may be.
    assert_eq!(map(RW, 0, 0x10_0000 - PAGE, 2 * PAGE), Err(Errno::EEXIST));
    assert_eq!(map(RW, 0, 0xfee0_0000, PAGE), Err(Errno::ENOSPC));
    world.unmap(container, 0, 0x10_0000, PAGE).unwrap();
    world.program.memlock.store(PAGE, Ordering::SeqCst);
    assert_eq!(map(RW, 0, 0xfee0_0000, PAGE), Err(Errno::EINVAL));
    assert_eq!(map(RW, 0, 0xfedf_f000, 2 * PAGE), Err(Errno::EINVAL));
    assert_eq!(map(RW, 0, 1 << 48, PAGE), Err(Errno::EINVAL));
    assert_eq!(map(RW, 0, 0, PAGE), Err(Errno::EFAULT));
    assert_eq!(map(RW, HEAP, 0, 2 * PAGE), Err(Errno::ENOMEM));
    assert_eq!(map(RW, HEAP, 0, PAGE), Ok(()));
}

/// vfio_iommu_type1_map_dma.
#[test]
fn unknown_flags_and_short_arguments_are_refused() {
    let (world, container) = world();
    for bit in 3..32 {
        let flags = RW | 1 << bit;
        let map = world.map(container, flags, (HEAP, 0, PAGE));
        assert_eq!(map, Err(Errno::EINVAL), "map {bit}");
        let unmap = world.unmap(container, 1 << bit, 0, PAGE);
        assert_eq!(unmap, Err(Errno::EINVAL), "unmap {bit}");
    }
    for (n, minimum) in [(12, 16_u32), (13, 32), (14, 24), (17, 8)] {
        for argsz in [0, 1, minimum - 1] {
            let mut argument = pack!(argsz);
            argument.resize(64, 0);
            let answer = world.call(container, n, &mut argument);
            assert_eq!(answer, Err(Errno::EINVAL), "{n} {argsz}");
        }
        assert_eq!(world.raw(container, number(n), 0), Err(Errno::EFAULT));
        assert_eq!(
            world.raw(container, number(n), u64::MAX - 3),
            Err(Errno::EFAULT)
        );
    }
    // More room than anyone needs is no mistake.
    let mut argument = pack!(u32::MAX, RW, HEAP, 0_u64, PAGE);
    assert_eq!(world.call(container, 13, &mut argument), Ok(0));
}

/// vfio_pin_pages_remote: what a device may write, the program must be able to.
#[test]
fn pages_are_pinned_when_they_are_mapped() {
    let (world, container) = world();
    world.program.give(0x2000_0000, false);
    let map = |flags, vaddr, size| world.map(container, flags, (vaddr, 0, size));
    assert_eq!(map(RW, 0x2000_0000, PAGE), Err(Errno::EFAULT));
    assert_eq!(map(R, 0x2000_0000, 2 * PAGE), Err(Errno::EFAULT));
    assert_eq!(map(R, 0x2000_0000, PAGE), Ok(()));
    assert_eq!(
        world.dma_write(FIRST, 0, &[1]),
        Err(FaultReason::Permission)
    );
    assert!(world.dma(FIRST, 0, &mut [0]).is_ok());
    assert_eq!(
        world.dma(FIRST, PAGE, &mut [0]),
        Err(FaultReason::NotMapped)
    );
    assert_eq!(
        world.dma(FIRST, 0xfee0_0000, &mut [0]),
        Err(FaultReason::Reserved)
    );
    assert_eq!(
        world.dma_write(FIRST, 1 << 60, &[0]),
        Err(FaultReason::Reserved)
    );
    let message = world.message(FIRST, 0xfee0_0000, 5).unwrap();
    assert_eq!((message.address, message.data), (0xfee0_0000, 5));
}

/// vfio_lock_acct. Rule 11: with CAP_IPC_LOCK, or with enforcement off, nothing
/// is counted.
#[test]
fn locked_memory_is_limited_only_when_that_is_enforced() {
    for mode in [MemlockMode::Off, MemlockMode::Enforce] {
        let world = World::with(65_535, mode);
        let (container, _) = world.container(FIRST, 3);
        world.program.memlock.store(2 * PAGE, Ordering::SeqCst);
        let map = |iova, size| world.map(container, RW, (HEAP, iova, size));
        assert_eq!(map(0, 2 * PAGE), Ok(()));
        let more = map(0x10_0000, PAGE);
        match mode {
            MemlockMode::Off => assert_eq!(more, Ok(())),
            MemlockMode::Enforce => {
                assert_eq!(more, Err(Errno::ENOMEM));
                world.unmap(container, 0, 0, 2 * PAGE).unwrap();
                assert_eq!(map(0x10_0000, 2 * PAGE), Ok(()));
                // Another process has a limit of its own.
                world.program.address_space.store(2, Ordering::SeqCst);
                assert_eq!(map(0, 2 * PAGE), Ok(()));
                world.program.memlock.store(0, Ordering::SeqCst);
                assert_eq!(map(0x20_0000, 8 * PAGE), Ok(()));
            }
        }
    }
}

/// vfio_iommu_dma_avail_build_caps. Rule 12.
#[test]
fn a_container_holds_65535_mappings_and_not_one_more() {
    let (world, container) = world();
    let available = || {
        let mut argument = pack!(256_u32);
        argument.resize(256, 0);
        let info = world.ask(container, 12, argument).unwrap();
        // Migration is first, mappings available second.
        word(&info, 24 + 32 + 8)
    };
    assert_eq!(available(), 65_535);
    for index in 0..65_535 {
        let iova = index * PAGE;
        world.map(container, R, (HEAP, iova, PAGE)).unwrap();
    }
    assert_eq!(available(), 0);
    let more = |vaddr| world.map(container, R, (vaddr, 1 << 40, PAGE));
    assert_eq!(more(HEAP), Err(Errno::ENOSPC));
    assert_eq!(world.unmap(container, 0, 0, PAGE), Ok(PAGE));
    assert_eq!(more(0), Err(Errno::EFAULT));
    assert_eq!(more(HEAP), Ok(()));
    assert_eq!(world.unmap(container, ALL, 0, 0), Ok(65_535 * PAGE));
    assert_eq!(available(), 65_535);
    assert_eq!(world.program.pins.load(Ordering::SeqCst), 0);
}

/// vfio_iommu_type1_get_info. Rule 12's capabilities in the kernel's order, and
/// the way in which their size is asked for.
#[test]
fn info_tells_how_much_room_its_capabilities_need() {
    let (world, container) = world();
    let ask = |argsz: u32| {
        let mut argument = pack!(argsz);
        argument.resize(256, 0xee);
        world.ask(container, 12, argument).unwrap()
    };
    let needed = 24 + 32 + 16 + 16 + 2 * 16;
    for argsz in [16, 24, needed - 1] {
        let info = ask(argsz);
        assert_eq!(word(&info, 0), needed);
        assert_eq!(word(&info, 4), 3, "flags");
        let cap_offset = word(&info, 16);
        // Never past what the program said that it has room for.
        assert_eq!(cap_offset, if argsz == 16 { 0xeeee_eeee } else { 0 });
        assert_eq!(word(&info, 24), 0xeeee_eeee);
    }
    let info = ask(needed);
    assert_eq!(word(&info, 0), needed);
    let mut chain = Vec::new();
    let mut at = word(&info, 16) as usize;
    while at != 0 {
        chain.push((word(&info, at) & 0xffff, word(&info, at) >> 16));
        at = word(&info, at + 4) as usize;
    }
    assert_eq!(chain, [(2, 1), (3, 1), (1, 1)]);
    assert_eq!(quad(&info, 24 + 16), PAGE, "smallest page");
    assert_eq!(quad(&info, 24 + 24), 1 << 28, "largest bitmap");
}

/// vfio_dma_do_unmap. Rule 14, version 2.
#[test]
fn version_2_unmaps_whole_mappings_and_refuses_to_cut_one() {
    let (world, container) = world();
    for index in [0, 2, 3] {
        let iova = index * 2 * PAGE;
        world.map(container, RW, (HEAP, iova, 2 * PAGE)).unwrap();
    }
    let unmap = |iova, size| world.unmap(container, 0, iova, size);
    assert_eq!(unmap(PAGE, PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(0, PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(PAGE, 4 * PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(2 * PAGE, 3 * PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(2 * PAGE, 2 * PAGE), Ok(0));
    assert_eq!(unmap(0, 0), Err(Errno::EINVAL));
    assert_eq!(unmap(1, PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(0, 1), Err(Errno::EINVAL));
    assert_eq!(unmap(!0xfff, 2 * PAGE), Err(Errno::EOVERFLOW));
    assert_eq!(unmap(0, 6 * PAGE), Ok(4 * PAGE));
    assert_eq!(world.dma(FIRST, 0, &mut [0]), Err(FaultReason::NotMapped));
    assert!(world.dma(FIRST, 6 * PAGE, &mut [0]).is_ok());
}

/// vfio_dma_do_unmap. Rule 14, version 1.
#[test]
fn version_1_unmaps_what_begins_in_the_range_and_leaves_what_begins_before_it() {
    let world = World::new();
    let (container, _) = world.container(FIRST, 1);
    world.map(container, RW, (HEAP, 0, 4 * PAGE)).unwrap();
    world.map(container, RW, (HEAP, 4 * PAGE, PAGE)).unwrap();
    let unmap = |iova, size| world.unmap(container, 0, iova, size);
    assert_eq!(unmap(PAGE, PAGE), Ok(0));
    assert_eq!(unmap(PAGE, 4 * PAGE), Ok(0));
    assert_eq!(unmap(0, PAGE), Ok(4 * PAGE));
    assert_eq!(unmap(0, 8 * PAGE), Ok(PAGE));
}

/// vfio_dma_do_unmap. Rule 15.
#[test]
fn unmapping_all_takes_no_range_and_no_bitmap() {
    let (world, container) = world();
    world.map(container, RW, (HEAP, 0, PAGE)).unwrap();
    let top = (1 << 48) - PAGE;
    world.map(container, RW, (HEAP, top, PAGE)).unwrap();
    let unmap = |flags, iova, size| world.unmap(container, flags, iova, size);
    assert_eq!(unmap(ALL, PAGE, 0), Err(Errno::EINVAL));
    assert_eq!(unmap(ALL, 0, PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(ALL | DIRTY, 0, 0), Err(Errno::EINVAL));
    assert_eq!(unmap(ALL, 0, 0), Ok(2 * PAGE));
    assert_eq!(unmap(ALL, 0, 0), Ok(0));
}

/// vfio_dma_do_unmap and vfio_dma_do_map. Rule 16.
#[test]
fn addresses_are_invalidated_and_given_anew_without_unmapping() {
    let (world, container) = world();
    for index in 0..3 {
        let iova = index * PAGE;
        world.map(container, RW, (HEAP + iova, iova, PAGE)).unwrap();
    }
    let invalidate = |iova, size| world.unmap(container, VADDR, iova, size);
    let update = |iova, size| world.map(container, VADDR, (HEAP, iova, size));
    assert_eq!(update(0, PAGE), Err(Errno::EINVAL), "valid");
    assert_eq!(invalidate(PAGE, PAGE), Ok(PAGE));
    assert_eq!(invalidate(0, 3 * PAGE), Err(Errno::EINVAL));
    assert_eq!(update(0, PAGE), Err(Errno::EINVAL), "rolled back");
    assert_eq!(update(PAGE, 2 * PAGE), Err(Errno::EINVAL), "another size");
    assert_eq!(update(0x10_0000, PAGE), Err(Errno::ENOENT));
    assert!(world.dma(FIRST, PAGE, &mut [0]).is_ok(), "still reached");
    assert_eq!(update(PAGE, PAGE), Ok(()));
    assert_eq!(update(PAGE, PAGE), Err(Errno::EINVAL));
    assert_eq!(
        world.unmap(container, VADDR | ALL, 0, 0),
        Ok(3 * PAGE),
        "all at once"
    );
    assert_eq!(
        world.unmap(container, VADDR | DIRTY, 0, PAGE),
        Err(Errno::EINVAL)
    );
    // An invalid mapping can be unmapped, and is forgotten then.
    assert_eq!(world.unmap(container, ALL, 0, 0), Ok(3 * PAGE));
    world.map(container, RW, (HEAP, 0, PAGE)).unwrap();
    assert_eq!(invalidate(0, PAGE), Ok(PAGE));
}

/// vfio_dma_do_map with VFIO_DMA_MAP_FLAG_VADDR: the program promises that the
/// same memory is behind the new addresses, and private memory can only be
/// reached by them. Rule 16.
#[test]
fn an_update_moves_private_memory_to_its_new_addresses() {
    let (world, container) = world();
    world.program.poke(HEAP, &[1]);
    world.program.poke(HEAP + PAGE, &[2]);
    let read = || {
        let mut byte = [0];
        world.dma(FIRST, 0, &mut byte).map(|()| byte[0])
    };
    world.map(container, RW, (HEAP, 0, PAGE)).unwrap();
    assert_eq!(read(), Ok(1));
    world.unmap(container, VADDR, 0, PAGE).unwrap();
    world.program.take(HEAP);
    assert_eq!(read(), Err(FaultReason::Revoked));
    let to = |address| world.map(container, VADDR, (address, 0, PAGE));
    assert_eq!(to(HEAP + PAGE), Ok(()));
    assert_eq!(read(), Ok(2));
    world.program.take(HEAP + PAGE);
    assert_eq!(read(), Err(FaultReason::Revoked));
    // Addresses without memory are taken all the same.
    world.unmap(container, VADDR, 0, PAGE).unwrap();
    assert_eq!(to(0), Ok(()));
    assert_eq!(read(), Err(FaultReason::Revoked));
    assert_eq!(world.program.pins.load(Ordering::SeqCst), 1);
}

/// A dirty bitmap call: START 1, STOP 2, or GET 4 of a range.
fn dirty(
    world: &World,
    container: FileId,
    flags: u32,
    (iova, size): (u64, u64),
    (page, bytes, data): (u64, u64, u64),
) -> Result<(), Errno> {
    let argument = pack!(48_u32, flags, iova, size, page, bytes, data);
    world.ask(container, 17, argument).map(drop)
}

const BITMAP: u64 = ARGUMENT + 4 * PAGE;

/// vfio_iommu_type1_dirty_pages. Rule 19.
#[test]
fn dirty_pages_are_asked_for_with_exactly_one_flag_and_only_in_version_2() {
    let world = World::new();
    let (old, _) = world.container(FIRST, 1);
    assert_eq!(world.raw(old, number(17), 0), Err(Errno::EACCES));
    let (container, _) = world.container(5, 3);
    let none = (0, 0);
    let nothing = (0, 0, 0);
    for flags in [0, 3, 5, 6, 7, 8, 9, 1 << 31] {
        let answer = dirty(&world, container, flags, none, nothing);
        assert_eq!(answer, Err(Errno::EINVAL), "{flags}");
    }
    for flags in [1, 1, 2, 2] {
        assert_eq!(dirty(&world, container, flags, none, nothing), Ok(()));
    }
}

/// vfio_iova_dirty_bitmap. Rule 19.
#[test]
fn a_dirty_bitmap_reports_every_page_of_whole_mappings_while_tracking_is_on() {
    let (world, container) = world();
    world.map(container, RW, (HEAP, 0, 3 * PAGE)).unwrap();
    world.map(container, RW, (HEAP, 66 * PAGE, PAGE)).unwrap();
    let range = (0, 128 * PAGE);
    let get = |range, bitmap| dirty(&world, container, 4, range, bitmap);
    let good = (PAGE, 16, BITMAP);
    assert_eq!(get(range, good), Err(Errno::EINVAL), "tracking is off");
    dirty(&world, container, 1, (0, 0), (0, 0, 0)).unwrap();
    world.program.poke(BITMAP, &[0; 24]);
    assert_eq!(get(range, good), Ok(()));
    let mut bitmap = [0; 24];
    world.program.peek(BITMAP, &mut bitmap);
    assert_eq!((quad(&bitmap, 0), quad(&bitmap, 8)), (0b111, 0b100));
    assert_eq!(quad(&bitmap, 16), 0);
    for (range, bitmap, why) in [
        (range, (2 * PAGE, 16, BITMAP), "another page size"),
        (range, (0, 16, BITMAP), "no page size"),
        (range, (PAGE, 8, BITMAP), "bitmap too small"),
        (range, (PAGE, (1 << 28) + 8, BITMAP), "bitmap too large"),
        (range, (PAGE, 0, BITMAP), "no bitmap"),
        (range, (PAGE, 16, 1 << 47), "no such address"),
        ((1, PAGE), good, "address off the page"),
        ((0, PAGE + 1), good, "size off the page"),
        ((0, 0), good, "no range"),
        ((0, 2 * PAGE), good, "cuts the first mapping"),
        ((PAGE, 100 * PAGE), good, "cuts the first mapping"),
    ] {
        assert_eq!(get(range, bitmap), Err(Errno::EINVAL), "{why}");
    }
    assert_eq!(get(range, (PAGE, 16, 0x10)), Err(Errno::EFAULT));
    let short = pack!(47_u32, 4_u32, 0_u64, PAGE, PAGE, 8_u64, BITMAP);
    assert_eq!(world.ask(container, 17, short), Err(Errno::EINVAL));
}

/// update_user_bitmap: words are written whole, bits before a mapping's own are
/// kept.
#[test]
fn a_dirty_bitmap_keeps_the_bits_before_a_mapping_in_its_word() {
    let (world, container) = world();
    let pages = HEAP_PAGES;
    world
        .map(container, RW, (HEAP, 5 * PAGE, pages * PAGE))
        .unwrap();
    dirty(&world, container, 1, (0, 0), (0, 0, 0)).unwrap();
    world.program.poke(BITMAP, &[0xff; 24]);
    let range = (0, 128 * PAGE);
    dirty(&world, container, 4, range, (PAGE, 16, BITMAP)).unwrap();
    let mut bitmap = [0; 24];
    world.program.peek(BITMAP, &mut bitmap);
    assert_eq!((quad(&bitmap, 0), quad(&bitmap, 8)), (u64::MAX, 0b1_1111));
    assert_eq!(quad(&bitmap, 16), u64::MAX, "beyond the bitmap");
}

/// vfio_iommu_type1_unmap_dma. Rule 19.
#[test]
fn an_unmap_reports_its_dirty_pages_in_a_bitmap() {
    let (world, container) = world();
    world.map(container, RW, (HEAP, 0, 2 * PAGE)).unwrap();
    let unmap = |argsz: u32, page: u64, bytes: u64, data: u64| {
        let size = 2 * PAGE;
        world.ask(
            container,
            14,
            pack!(argsz, DIRTY, 0_u64, size, page, bytes, data),
        )
    };
    let fails = |answer: Result<Vec<u8>, Errno>, errno| assert_eq!(answer, Err(errno));
    fails(unmap(48, PAGE, 8, BITMAP), Errno::EINVAL);
    dirty(&world, container, 1, (0, 0), (0, 0, 0)).unwrap();
    fails(unmap(47, PAGE, 8, BITMAP), Errno::EINVAL);
    fails(unmap(48, 2 * PAGE, 8, BITMAP), Errno::EINVAL);
    fails(unmap(48, PAGE, 7, BITMAP), Errno::EINVAL);
    fails(unmap(48, PAGE, 8, 0), Errno::EFAULT);
    assert!(world.dma(FIRST, 0, &mut [0]).is_ok(), "not unmapped yet");
    world.program.poke(BITMAP, &[0; 8]);
    let answer = unmap(48, PAGE, 8, BITMAP).unwrap();
    assert_eq!(quad(&answer, 16), 2 * PAGE);
    let mut bitmap = [0; 8];
    world.program.peek(BITMAP, &mut bitmap);
    assert_eq!(quad(&bitmap, 0), 0b11);
    assert_eq!(world.dma(FIRST, 0, &mut [0]), Err(FaultReason::NotMapped));
}

/// Not the kernel's rule, but the project's: memory that only its process can
/// name is gone when the process unmaps it.
#[test]
fn private_memory_that_the_program_unmaps_is_dead_and_shared_memory_is_not() {
    let (world, container) = world();
    world.map(container, RW, (HEAP, 0, 4 * PAGE)).unwrap();
    world
        .map(container, RW, (HEAP + PAGE, 0x10_0000, PAGE))
        .unwrap();
    world.map(container, RW, (SHARED, 0x20_0000, PAGE)).unwrap();
    world.program.take(HEAP + PAGE);
    assert!(world.dma(FIRST, 0, &mut [0]).is_ok());
    assert_eq!(world.dma(FIRST, PAGE, &mut [0]), Err(FaultReason::Revoked));
    assert!(world.dma(FIRST, 2 * PAGE, &mut [0]).is_ok());
    assert_eq!(
        world.dma(FIRST, 0x10_0000, &mut [0]),
        Err(FaultReason::Revoked)
    );
    // New memory in the same place is not what was mapped.
    world.program.give(HEAP + PAGE, true);
    assert_eq!(world.dma(FIRST, PAGE, &mut [0]), Err(FaultReason::Revoked));
    world.program.take(HEAP + 2 * PAGE);
    world.program.take(HEAP + PAGE);
    assert_eq!(
        world.dma(FIRST, 2 * PAGE, &mut [0]),
        Err(FaultReason::Revoked)
    );
    let revoke = |first| world.host.revoke(1, first, first + PAGE - 1, None);
    assert!(revoke(SHARED).is_none(), "shared memory is not watched");
    world.unmap(container, ALL, 0, 0).unwrap();
    assert!(revoke(HEAP).is_none(), "nothing is left to revoke");
    world.program.give(HEAP + PAGE, true);
    world.map(container, RW, (HEAP + PAGE, 0, PAGE)).unwrap();
    assert!(world.dma(FIRST, 0, &mut [0]).is_ok());
}
