//! Mapping, copying and unmapping in an IOAS: rules 24 and 26 to 28 of the kernel.

mod iommufd_world;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use iogate_dma::Iova;
use iogate_uapi::{Client, Errno};
use iommufd_world::*;

/// An iommufd with an IOAS and a device attached to it.
fn attached(world: &World) -> (Opened, u32, Opened) {
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, _) = world.bound(ALONE, file);
    world.attach(device, ioas).unwrap();
    (file, ioas, device)
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_map; io_pagetable.c,
/// iopt_map_user_pages, iopt_alloc_area_pages, iopt_check_iova.
#[test]
fn the_checks_of_a_fixed_mapping_come_in_the_kernels_order() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    let one = (HEAP, PAGE);
    world.map(file, ioas, FIXED | RW, one, 0x10_0000).unwrap();
    let map = |flags, memory, iova| world.map(file, ioas, flags, memory, iova);
    let max = u64::MAX;
    // A bad flag before a number, a number before no rights, these before the
    // id, the id before the memory.
    let bad = 0x80;
    assert_eq!(map(bad | FIXED, (HEAP, max), 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(map(FIXED, (HEAP, max), 0), Err(Errno::EOVERFLOW));
    assert_eq!(map(FIXED, one, max), Err(Errno::EOVERFLOW));
    assert_eq!(world.map(file, 99, FIXED, one, 0), Err(Errno::EINVAL));
    assert_eq!(
        world.map(file, 99, FIXED | R, (HEAP, 0), 0),
        Err(Errno::ENOENT)
    );
    assert_eq!(map(FIXED | R, (max - 8, PAGE), 1), Err(Errno::EOVERFLOW));
    assert_eq!(map(FIXED | R, (HEAP, 0), 1), Err(Errno::EINVAL));
    assert_eq!(map(FIXED | R, (0, max - 1), 0), Err(Errno::EINVAL));
    // Alignment, wrap, reserved, overlap, memory.
    assert_eq!(map(FIXED | R, (HEAP, 0x800), 0), Err(Errno::EINVAL));
    assert_eq!(map(FIXED | R, one, 0x800), Err(Errno::EINVAL));
    let high = max - PAGE + 1;
    assert_eq!(
        map(FIXED | R, (HEAP, 2 * PAGE), high),
        Err(Errno::EOVERFLOW)
    );
    assert_eq!(
        map(FIXED | R, one, high),
        Err(Errno::EINVAL),
        "above the aperture"
    );
    assert_eq!(map(FIXED | R, one, 0xfee0_0000), Err(Errno::EINVAL));
    assert_eq!(map(FIXED | R, one, 0x10_0000), Err(Errno::EEXIST));
    assert_eq!(
        map(FIXED | R, (HEAP, 3 * PAGE), 0xf_f000),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        map(FIXED | R, (HEAP + 8, PAGE), 0x20_0000),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        map(FIXED | R, (0x4000, PAGE), 0x20_0000),
        Err(Errno::EFAULT)
    );
    let end = HEAP + (HEAP_PAGES - 1) * PAGE;
    assert_eq!(
        map(FIXED | R, (end, 2 * PAGE), 0x20_0000),
        Err(Errno::EFAULT)
    );
    // Nothing of all this left anything.
    assert_eq!(world.pinned_frames(), 1);
    assert_eq!(world.unmap(file, ioas, 0, max), Ok(PAGE));
    assert_eq!(world.pinned_frames(), 0);
}

/// drivers/iommu/iommufd/pages.c, pfn_reader_user_pin: FOLL_WRITE.
#[test]
fn memory_that_cannot_be_written_is_mapped_for_reading_only() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    world.give(0x7000, 9, false, true);
    let one = (0x7000, PAGE);
    assert_eq!(
        world.map(file, ioas, FIXED | RW, one, 0),
        Err(Errno::EFAULT)
    );
    world.map(file, ioas, FIXED | R, one, 0).unwrap();
    assert_eq!(world.dma_read(ALONE, 0), Some(0));
    assert!(!world.dma_write(ALONE, 0, 1));
}

/// drivers/iommu/iommufd/ioas.c, conv_iommu_prot.
#[test]
fn a_mapping_allows_what_its_flags_say() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    world.program.write(HEAP, &[7]).unwrap();
    for (at, flags, reads, writes) in [
        (0, R, true, false),
        (1, W, false, true),
        (2, RW, true, true),
    ] {
        let iova = at * PAGE;
        world
            .map(file, ioas, FIXED | flags, (HEAP, PAGE), iova)
            .unwrap();
        assert_eq!(world.dma_read(ALONE, iova).is_some(), reads);
        assert_eq!(world.dma_write(ALONE, iova, 7), writes);
    }
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_area_fill_domains,
/// iopt_fill_domain, iopt_unfill_domain.
#[test]
fn memory_is_pinned_while_a_page_table_shows_it() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    world
        .map(file, ioas, FIXED | RW, (HEAP, 2 * PAGE), 0x1000)
        .unwrap();
    assert_eq!(world.pinned_frames(), 0);
    let (_, one) = world.bound(ALONE, file);
    let (_, two) = world.bound(FINE, file);
    let one = world.hwpt(file, one, ioas, 0).unwrap();
    assert_eq!(world.pinned_frames(), 2);
    let two = world.hwpt(file, two, ioas, 0).unwrap();
    world.destroy(file, one).unwrap();
    assert_eq!(world.pinned_frames(), 2);
    world
        .map(file, ioas, FIXED | RW, (HEAP + 4 * PAGE, PAGE), 0x8000)
        .unwrap();
    assert_eq!(world.pinned_frames(), 3);
    world.destroy(file, two).unwrap();
    assert_eq!(world.pinned_frames(), 0);
    assert_eq!(world.unmap(file, ioas, 0, u64::MAX), Ok(3 * PAGE));
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_fill_domain: out_unfill.
#[test]
fn absent_memory_shows_at_the_attach_and_leaves_nothing_pinned() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, id) = world.bound(ALONE, file);
    world
        .map(file, ioas, FIXED | RW, (HEAP, PAGE), 0x1000)
        .unwrap();
    world
        .map(file, ioas, FIXED | RW, (0x4000, PAGE), 0x2000)
        .unwrap();
    assert_eq!(world.hwpt(file, id, ioas, 0), Err(Errno::EFAULT));
    assert_eq!(world.attach(device, ioas), Err(Errno::EFAULT));
    assert_eq!(world.pinned_frames(), 0);
    assert_eq!(world.ranges(file, ioas), (vec![(0, u64::MAX)], 1));
    assert_eq!(world.dma_read(ALONE, 0x1000), None);
    world.give(0x4000, 77, true, true);
    world.attach(device, ioas).unwrap();
    assert_eq!(world.dma_read(ALONE, 0x2000), Some(0));
}

/// drivers/iommu/iommufd/pages.c, pfn_reader_user_pin; mm/gup.c,
/// check_vma_flags: VM_IO and VM_PFNMAP.
#[test]
fn a_mapping_of_a_device_file_is_never_reached_by_devices() {
    let world = World::new();
    let (file, ioas, device) = attached(&world);
    *world.program.process.device.lock().unwrap() = Some(HEAP / PAGE + 1);
    let map = |ioas, memory, iova| world.map(file, ioas, FIXED | RW, memory, iova);
    let bar = (HEAP + PAGE, PAGE);
    assert_eq!(map(ioas, bar, 0x1000), Err(Errno::EFAULT));
    assert_eq!(map(ioas, (HEAP, 3 * PAGE), 0x1000), Err(Errno::EFAULT));
    map(ioas, (HEAP, PAGE), 0x1000).unwrap();
    assert_eq!(world.pinned_frames(), 1);
    let other = world.ioas(file);
    map(other, bar, 0x8000).unwrap();
    let copied = world.copy(file, FIXED | R, (other, 0x8000), (ioas, 0x9000), PAGE);
    assert_eq!(copied, Err(Errno::EFAULT));
    assert_eq!(world.attach(device, other), Err(Errno::EFAULT));
    assert_eq!(world.dma_read(ALONE, 0x1000), Some(0), "attached as before");
    assert_eq!(world.pinned_frames(), 1);
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_copy; io_pagetable.c,
/// iopt_get_pages.
#[test]
fn a_copy_needs_a_source_without_holes_and_may_take_a_part_of_areas() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    let other = world.ioas(file);
    for page in [0, 1, 3] {
        let memory = (HEAP + page * PAGE, PAGE);
        world
            .map(file, other, FIXED | RW, memory, (0x10 + page) * PAGE)
            .unwrap();
        world.program.write(memory.0, &[page as u8]).unwrap();
    }
    let copy = |flags, source, iova, length| {
        world.copy(file, flags, (other, source), (ioas, iova), length)
    };
    let max = u64::MAX;
    assert_eq!(copy(8 | R, max, 0, 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(copy(R, max, 0, PAGE), Err(Errno::EOVERFLOW));
    assert_eq!(copy(R, 0, max, PAGE), Err(Errno::EOVERFLOW));
    assert_eq!(copy(R, 0, 0, max), Err(Errno::EOVERFLOW));
    assert_eq!(copy(FIXED, 0x1_0000, 0, PAGE), Err(Errno::EINVAL));
    assert_eq!(copy(FIXED | R, 0x1_0000, 0, 0), Err(Errno::EINVAL));
    assert_eq!(copy(FIXED | R, max - 1, 0, PAGE), Err(Errno::EOVERFLOW));
    for (source, length) in [(0xf000, PAGE), (0x1_1000, 2 * PAGE), (0x1_1000, 3 * PAGE)] {
        assert_eq!(copy(FIXED | R, source, 0x5000, length), Err(Errno::ENOENT));
    }
    let gone = world.copy(file, FIXED | R, (other, 0x1_0000), (99, 0), PAGE);
    assert_eq!(gone, Err(Errno::ENOENT));
    assert_eq!(copy(FIXED | R, 0x1_0000, 0x5000, 2 * PAGE), Ok(0x5000));
    assert_eq!(world.dma_read(ALONE, 0x5000), Some(0));
    assert_eq!(world.dma_read(ALONE, 0x6000), Some(1));
    assert!(
        !world.dma_write(ALONE, 0x6000, 9),
        "the copy has its own rights"
    );
    assert_eq!(copy(FIXED | R, 0x1_3000, 0x5000, PAGE), Err(Errno::EEXIST));
    assert_eq!(copy(FIXED | R, 0x1_3000, 0x5800, PAGE), Err(Errno::EINVAL));
    assert_eq!(copy(FIXED | R, 0x1_3000, 0x8000, 0x800), Err(Errno::EINVAL));
    assert_eq!(copy(FIXED | R, 0x1_3800, 0x8000, 0x800), Err(Errno::EINVAL));
    // Two areas were made of two.
    assert_eq!(world.unmap(file, ioas, 0x5000, PAGE), Ok(PAGE));
    assert_eq!(copy(R, 0x1_0000, 0, PAGE), Ok(0x1000), "automatic");
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_insert_area.
#[test]
fn a_copy_may_not_write_pages_that_were_named_for_reading() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    world
        .map(file, ioas, FIXED | R, (HEAP, PAGE), 0x1000)
        .unwrap();
    let copy =
        |flags, from: u64| world.copy(file, flags | FIXED, (ioas, from), (ioas, 0x8000), PAGE);
    assert_eq!(copy(RW, 0x1000), Err(Errno::EPERM));
    assert_eq!(copy(W, 0x1000), Err(Errno::EPERM));
    assert_eq!(copy(R, 0x1000), Ok(0x8000));
    world.unmap(file, ioas, 0, 0x1_0000).unwrap();
    // A copy of a copy that reads is judged by the pages, not by the copy.
    world
        .map(file, ioas, FIXED | RW, (HEAP, PAGE), 0x1000)
        .unwrap();
    world
        .copy(file, FIXED | R, (ioas, 0x1000), (ioas, 0x2000), PAGE)
        .unwrap();
    assert_eq!(copy(RW, 0x2000), Ok(0x8000));
}

/// drivers/iommu/iommufd/pages.c, struct iopt_pages.
#[test]
fn a_copy_shares_the_pinned_pages_and_outlives_its_source() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    let memory = (HEAP, 4 * PAGE);
    world.program.write(HEAP + 2 * PAGE, &[0x42]).unwrap();
    world
        .map(file, ioas, FIXED | RW, memory, 0x10_0000)
        .unwrap();
    world
        .copy(file, FIXED | RW, (ioas, 0x10_2000), (ioas, 0x20_0000), PAGE)
        .unwrap();
    let pins = world
        .program
        .process
        .pins
        .lock()
        .unwrap()
        .values()
        .sum::<u32>();
    assert_eq!(pins, 4, "once each");
    // Shared memory stays what it was, also when the program replaces it.
    world.take(HEAP + 2 * PAGE);
    world.give(HEAP + 2 * PAGE, 4242, true, true);
    assert_eq!(world.unmap(file, ioas, 0x10_0000, 4 * PAGE), Ok(4 * PAGE));
    assert_eq!(world.dma_read(ALONE, 0x20_0000), Some(0x42));
    world.unmap(file, ioas, 0, u64::MAX).unwrap();
    assert_eq!(world.pinned_frames(), 0);
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_unmap; io_pagetable.c,
/// iopt_unmap_iova_range.
#[test]
fn an_unmap_that_cuts_an_area_has_removed_the_whole_ones_before_it() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    for at in [0x1000, 0x4000, 0x8000] {
        world
            .map(file, ioas, FIXED | RW, (HEAP, 2 * PAGE), at)
            .unwrap();
    }
    world.diary.take();
    let unmap = |iova, length| world.unmap(file, ioas, iova, length);
    assert_eq!(
        unmap(0x2000, 2 * PAGE),
        Err(Errno::ENOENT),
        "cuts at its start"
    );
    assert!(world.diary.take().is_empty());
    assert_eq!(unmap(0, 0x9000), Err(Errno::ENOENT), "cuts at its end");
    assert_eq!(
        world.diary.take(),
        [
            "unmapped 0x1000-0x2fff IOAS_UNMAP",
            "unmapped 0x4000-0x5fff IOAS_UNMAP"
        ]
    );
    assert_eq!(world.dma_read(ALONE, 0x1000), None);
    assert_eq!(world.dma_read(ALONE, 0x9000), Some(0));
    assert_eq!(unmap(0, 0x8000), Err(Errno::ENOENT), "empty");
    assert_eq!(unmap(0x7000, 0x1_0000), Ok(2 * PAGE), "a superset");
    assert_eq!(world.pinned_frames(), 0);
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_unmap; io_pagetable.c,
/// iopt_unmap_iova, iopt_unmap_all.
#[test]
fn the_numbers_of_an_unmap_are_checked_and_all_of_nothing_is_nothing() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let unmap = |iova, length| world.unmap(file, ioas, iova, length);
    let max = u64::MAX;
    assert_eq!(unmap(0, max), Ok(0));
    assert_eq!(unmap(1, max), Err(Errno::EOVERFLOW));
    assert_eq!(unmap(max, 1), Err(Errno::EOVERFLOW));
    assert_eq!(unmap(max - 1, 3), Err(Errno::EOVERFLOW));
    assert_eq!(unmap(0x1000, 0), Err(Errno::EINVAL));
    assert_eq!(unmap(0, max - 1), Err(Errno::ENOENT));
    world
        .map(file, ioas, FIXED | R, (HEAP, PAGE), max - PAGE)
        .unwrap();
    world.map(file, ioas, FIXED | R, (HEAP, 1), 0).unwrap();
    assert_eq!(unmap(0, max), Ok(PAGE + 1));
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_map_file.
#[test]
fn a_file_is_mapped_by_descriptor_and_offset() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    let fd = world.memory_file(&[70, 71, 72]);
    let map = |fd, start, length, iova| world.map_file(file, ioas, fd, (start, length), iova);
    assert_eq!(map(-1, 0, PAGE, 0x1000), Err(Errno::EBADF));
    assert_eq!(map(world.other(), 0, PAGE, 0x1000), Err(Errno::EINVAL));
    assert_eq!(map(fd, u64::MAX - 1, PAGE, 0x1000), Err(Errno::EOVERFLOW));
    assert_eq!(map(fd, 0, 0, 0x1000), Err(Errno::EINVAL));
    assert_eq!(
        map(fd, 0, 4 * PAGE, 0x1000),
        Err(Errno::EINVAL),
        "longer than the file"
    );
    assert_eq!(map(fd, PAGE, 2 * PAGE, 0x1000), Ok(0x1000));
    assert!(world.dma_write(ALONE, 0x2fff, 0x99));
    world.give(0x9000, 72, true, true);
    let mut byte = [0];
    world.program.read(0x9fff, &mut byte).unwrap();
    assert_eq!(byte, [0x99]);
}

/// design.md: private memory is dead once unmapped; shared memory is not.
#[test]
fn private_memory_that_the_program_unmaps_is_dead_in_every_copy() {
    let world = World::new();
    let (file, ioas, device) = attached(&world);
    let other = world.ioas(file);
    // The first page is shared, the second is private.
    world
        .map(file, ioas, FIXED | RW, (HEAP, 2 * PAGE), 0x1000)
        .unwrap();
    world
        .copy(file, FIXED | RW, (ioas, 0x2000), (ioas, 0x8000), PAGE)
        .unwrap();
    world.diary.take();
    world.take(HEAP);
    world.take(HEAP + PAGE);
    let mut told = world.diary.take();
    told.sort();
    assert_eq!(told, ["revoked 0x2000-0x2fff", "revoked 0x8000-0x8fff"]);
    assert!(world.dma_read(ALONE, 0x1000).is_some());
    assert_eq!(world.dma_read(ALONE, 0x2000), None);
    assert_eq!(world.dma_read(ALONE, 0x8000), None);
    // Pinned anew, they mean what the addresses mean then.
    world.give(HEAP, 90, true, true);
    world.give(HEAP + PAGE, 91, true, false);
    world.attach(device, other).unwrap();
    world.attach(device, ioas).unwrap();
    assert_eq!(world.dma_read(ALONE, 0x2000), Some(0));
    assert_eq!(world.dma_read(ALONE, 0x8000), Some(0));
}

/// The kernel's copy would share the pages that stay pinned; here they are
/// gone with the program's unmap.
#[test]
fn a_copy_of_memory_that_is_dead_is_of_what_is_there_now() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    let private = HEAP + PAGE;
    world
        .map(file, ioas, FIXED | RW, (private, PAGE), 0x1000)
        .unwrap();
    world.take(private);
    let copy = |iova| world.copy(file, FIXED | RW, (ioas, 0x1000), (ioas, iova), PAGE);
    assert_eq!(copy(0x2000), Err(Errno::EFAULT));
    world.give(private, 4711, true, false);
    world.program.write(private, &[0x33]).unwrap();
    assert_eq!(copy(0x2000), Ok(0x2000));
    assert_eq!(world.dma_read(ALONE, 0x2000), Some(0x33));
    assert_eq!(world.dma_read(ALONE, 0x1000), None);
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Documentation/userspace-api/iommufd.rst: after an unmap, a detach or a
/// destroy no DMA reaches the memory.
#[test]
fn no_worker_reaches_memory_after_the_call_that_unpins_it() {
    let world = World::new();
    let file = world.iommufd();
    let (one, two) = (world.ioas(file), world.ioas(file));
    let (device, id) = world.bound(ALONE, file);
    let stop = AtomicBool::new(false);
    let reads = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut port = world.worker(ALONE);
            let mut byte = [0];
            while !stop.load(Ordering::Relaxed) {
                for page in 1..5 {
                    let hit = port.read(Iova(page * PAGE), &mut byte).is_ok();
                    reads.fetch_add(u32::from(hit), Ordering::Relaxed);
                }
            }
        });
        // Also if something below fails: the worker must end.
        let _end = SetOnDrop(&stop);
        let mut round = 0_u64;
        while round < 300 || (reads.load(Ordering::Relaxed) < 1000 && round < 30_000) {
            let (ioas, other) = if round.is_multiple_of(2) {
                (one, two)
            } else {
                (two, one)
            };
            let at = (1 + round % 4) * PAGE;
            let memory = (HEAP + (round % 8) * PAGE, PAGE);
            world.map(file, ioas, FIXED | RW, memory, at).unwrap();
            world.attach(device, ioas).unwrap();
            let copied = world.copy(file, FIXED | R, (ioas, at), (other, at), PAGE);
            match round % 5 {
                0 => world.detach(device).unwrap(),
                1 => drop(world.attach(device, other).unwrap()),
                2 => drop(world.unmap(file, ioas, 0, u64::MAX)),
                3 => {
                    let hwpt = world.hwpt(file, id, ioas, 0).unwrap();
                    world.attach(device, hwpt).unwrap();
                    world.detach(device).unwrap();
                    world.destroy(file, hwpt).unwrap();
                }
                _ => {}
            }
            copied.unwrap();
            world.unmap(file, one, 0, u64::MAX).unwrap();
            world.unmap(file, two, 0, u64::MAX).unwrap();
            assert_eq!(world.pinned_frames(), 0);
            round += 1;
        }
    });
}
