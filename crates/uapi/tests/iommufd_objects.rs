//! Arguments, numbers and lives of an iommufd's objects: rules 21, 22, 30 and
//! 35 of the kernel.

mod iommufd_world;

use iogate_host::{Memlock, MemlockMode, Node};
use iogate_uapi::{Client, Errno};
use iommufd_world::*;

/// drivers/iommu/iommufd/main.c, iommufd_fops_ioctl.
#[test]
fn a_call_that_does_not_exist_is_enotty_whatever_its_argument() {
    let world = World::new();
    let file = world.iommufd();
    for number in [0, 0x67, 0x6f, 0x75, 0x7f, 0x95, 0x9f, 0xa0, 0xff] {
        assert_eq!(
            world.raw(file, number, 0),
            Err(Errno::ENOTTY),
            "{number:#x}"
        );
    }
    // The same number with a size and a direction is another call.
    let command = 0xc00c_3b81;
    let result = iogate_uapi::ioctl(&world.host, file.file, command, ARGUMENT, &world.program);
    assert_eq!(result.err(), Some(Errno::ENOTTY));
}

/// Each call's structure, up to what the first kernel that had it wanted.
const MINIMA: [(u32, u32); 21] = [
    (0x80, 8),
    (0x81, 12),
    (0x82, 24),
    (0x83, 40),
    (0x84, 32),
    (0x85, 40),
    (0x86, 24),
    (0x87, 24),
    (0x89, 24),
    (0x8a, 32),
    (0x8b, 16),
    (0x88, 12),
    (0x8c, 48),
    (0x8d, 32),
    (0x8f, 40),
    (0x8e, 16),
    (0x90, 24),
    (0x91, 24),
    (0x93, 28),
    (0x94, 40),
    (0x92, 8),
];

/// drivers/iommu/iommufd/main.c, iommufd_fops_ioctl.
#[test]
fn an_argument_that_is_absent_is_efault_and_one_too_small_einval() {
    let world = World::new();
    let file = world.iommufd();
    for (number, minimum) in MINIMA {
        assert_eq!(world.raw(file, number, 0), Err(Errno::EFAULT));
        assert_eq!(world.raw(file, number, u64::MAX), Err(Errno::EFAULT));
        for size in [0, 1, 4, minimum - 1] {
            let result = world.call(file, number, &mut pack!(size));
            assert_eq!(result, Err(Errno::EINVAL), "{number:#x} {size}");
        }
        // All of it lies below the end of the program's memory, save the last
        // byte.
        let at = ARGUMENT + 16 * PAGE - u64::from(minimum) + 1;
        world.program.write(at, &minimum.to_ne_bytes()).unwrap();
        assert_eq!(
            world.raw(file, number, at),
            Err(Errno::EFAULT),
            "{number:#x}"
        );
    }
}

/// lib/usercopy.c, copy_struct_from_user.
#[test]
fn a_larger_structure_is_taken_if_what_is_unknown_is_zero() {
    let world = World::new();
    let file = world.iommufd();
    for size in [13, 16, 4096, 8192] {
        let mut bytes = vec![0; size as usize];
        bytes[..4].copy_from_slice(&u32::to_ne_bytes(size));
        assert_eq!(world.call(file, 0x81, &mut bytes), Ok(0));
        *bytes.last_mut().unwrap() = 1;
        assert_eq!(world.call(file, 0x81, &mut bytes), Err(Errno::E2BIG));
    }
    world
        .program
        .write(ARGUMENT, &pack!(u32::MAX, 0_u32))
        .unwrap();
    let result = world.raw(file, 0x81, ARGUMENT);
    assert!(
        matches!(result, Err(Errno::EFAULT | Errno::E2BIG)),
        "{result:?}"
    );
    // Nothing was made by the refused ones.
    assert_eq!(world.ioas(file), 5);
}

/// drivers/iommu/iommufd/iommufd_private.h, iommufd_ucmd_respond.
#[test]
fn an_answer_is_never_longer_than_the_programs_structure() {
    let world = World::new();
    let file = world.iommufd();
    let (_, id) = world.bound(ALONE, file);
    let mut bytes = pack!(
        32_u32,
        0_u32,
        id,
        0_u32,
        0_u64,
        0_u32,
        0_u32,
        0x5555_5555_5555_5555_u64
    );
    assert_eq!(world.call(file, 0x8a, &mut bytes), Ok(0));
    assert_eq!(quad(&bytes, 32), 0x5555_5555_5555_5555);
}

/// drivers/iommu/iommufd/ioas.c, device.c, hw_pagetable.c, main.c.
#[test]
fn unknown_flags_and_reserved_fields_are_eopnotsupp() {
    let world = World::new();
    let file = world.iommufd();
    let (_, device) = world.bound(ALONE, file);
    let ioas = world.ioas(file);
    let hwpt = world.hwpt(file, device, ioas, 0).unwrap();
    let heap = HEAP;
    for bit in 0..32 {
        let flag = 1_u32 << bit;
        let no = Err(Errno::EOPNOTSUPP);
        assert_eq!(world.call(file, 0x81, &mut pack!(12_u32, flag, 0_u32)), no);
        if flag > 4 {
            let mut map = pack!(40_u32, RW | flag, ioas, 0_u32, heap, PAGE, 0_u64);
            assert_eq!(world.call(file, 0x85, &mut map), no);
            assert_eq!(world.call(file, 0x8f, &mut map), no);
            assert_eq!(world.call(file, 0x83, &mut map), no);
        }
        let mut map = pack!(40_u32, RW, ioas, flag, heap, PAGE, 0_u64);
        assert_eq!(world.call(file, 0x85, &mut map), no);
        let mut ranges = pack!(32_u32, ioas, 0_u32, flag, 0_u64, 0_u64);
        assert_eq!(world.call(file, 0x84, &mut ranges), no);
        assert_eq!(
            world.call(file, 0x82, &mut pack!(24_u32, ioas, 0_u32, flag, 0_u64)),
            no
        );
        // The one that names a fault queue is known.
        if flag != 4 {
            assert_eq!(world.hwpt(file, device, ioas, flag).map(|_| 0), no);
        }
        let mut queue = pack!(16_u32, flag, 0_u32, 0_u32);
        assert_eq!(world.call(file, 0x8e, &mut queue), no);
        let mut alloc = pack!(24_u32, 0_u32, device, ioas, 0_u32, flag);
        assert_eq!(world.call(file, 0x89, &mut alloc), no);
        let flags = if flag == 1 { 2 } else { flag };
        let mut info = pack!(40_u32, flags, device, 0_u32, 0_u64, 0_u64, 0_u64);
        assert_eq!(world.call(file, 0x8a, &mut info), no);
        let mut dirty = pack!(16_u32, flag, hwpt, 0_u32);
        assert_eq!(world.call(file, 0x8b, &mut dirty), no);
        let mut bitmap = pack!(48_u32, hwpt, flag, 0_u32, 0_u64, PAGE, PAGE, heap);
        assert_eq!(world.call(file, 0x8c, &mut bitmap), no);
    }
    let mut option = pack!(24_u32, 1_u32, 1_u16, 1_u16, ioas, 0_u64);
    assert_eq!(world.call(file, 0x87, &mut option), Err(Errno::EOPNOTSUPP));
}

/// drivers/iommu/iommufd/main.c, _iommufd_object_alloc.
#[test]
fn numbers_are_one_space_from_one_and_the_lowest_free_comes_next() {
    let world = World::new();
    let file = world.iommufd();
    assert_eq!((world.ioas(file), world.ioas(file)), (1, 2));
    let (_, device) = world.bound(ALONE, file);
    assert_eq!(device, 3);
    assert_eq!(world.hwpt(file, device, 2, 0), Ok(4));
    world.destroy(file, 1).unwrap();
    assert_eq!(world.ioas(file), 1);
    assert_eq!(
        world.ioas(world.iommufd()),
        1,
        "another iommufd counts for itself"
    );
}

/// drivers/iommu/iommufd/main.c, iommufd_get_object.
#[test]
fn a_number_of_another_type_is_enoent() {
    let world = World::new();
    let file = world.iommufd();
    let (opened, device) = world.bound(ALONE, file);
    let ioas = world.ioas(file);
    let hwpt = world.hwpt(file, device, ioas, 0).unwrap();
    for id in [0, device, hwpt, 99, u32::MAX] {
        let no = Err(Errno::ENOENT);
        assert_eq!(world.map(file, id, RW, (HEAP, PAGE), 0), no);
        assert_eq!(world.map_file(file, id, -1, (0, PAGE), 0), no);
        assert_eq!(world.unmap(file, id, 0, u64::MAX), no);
        assert_eq!(world.copy(file, RW, (id, 0), (ioas, 0), PAGE), no);
        assert_eq!(world.allow(file, id, &[]), Err(Errno::ENOENT));
        assert_eq!(world.option(file, (1, 1), id, 0), no);
        let mut ranges = pack!(32_u32, id, 0_u32, 0_u32, 0_u64, 0_u64);
        assert_eq!(world.call(file, 0x84, &mut ranges), Err(Errno::ENOENT));
    }
    for id in [0, ioas, hwpt, 99] {
        assert_eq!(world.hwpt(file, id, ioas, 0), Err(Errno::ENOENT));
        let mut info = pack!(40_u32, 0_u32, id, 0_u32, 0_u64, 0_u64, 0_u64);
        assert_eq!(world.call(file, 0x8a, &mut info), Err(Errno::ENOENT));
    }
    for id in [0, ioas, device, 99] {
        let result = world.call(file, 0x8b, &mut pack!(16_u32, 1_u32, id, 0_u32));
        assert_eq!(result, Err(Errno::ENOENT));
    }
    assert_eq!(world.attach(opened, 99), Err(Errno::ENOENT));
    assert_eq!(world.attach(opened, device), Err(Errno::EINVAL));
}

/// drivers/iommu/iommufd/main.c, iommufd_object_remove.
#[test]
fn an_object_that_is_used_is_busy_and_one_that_is_not_goes() {
    let world = World::new();
    let file = world.iommufd();
    let (opened, device) = world.bound(ALONE, file);
    let ioas = world.ioas(file);
    let hwpt = world.hwpt(file, device, ioas, 0).unwrap();
    assert_eq!(world.destroy(file, 99), Err(Errno::ENOENT));
    assert_eq!(world.destroy(file, 0), Err(Errno::ENOENT));
    assert_eq!(world.destroy(file, device), Err(Errno::EBUSY));
    assert_eq!(world.destroy(file, ioas), Err(Errno::EBUSY));
    world.attach(opened, hwpt).unwrap();
    assert_eq!(world.destroy(file, hwpt), Err(Errno::EBUSY));
    world.detach(opened).unwrap();
    world.destroy(file, hwpt).unwrap();
    assert_eq!(world.destroy(file, hwpt), Err(Errno::ENOENT));
    world.destroy(file, ioas).unwrap();
    world.close(opened);
    assert_eq!(world.destroy(file, device), Err(Errno::ENOENT));
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_destroy.
#[test]
fn a_destroyed_ioas_takes_its_mappings_with_it() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    world
        .map(file, ioas, FIXED | R, (HEAP, PAGE), 0x5000)
        .unwrap();
    world.diary.take();
    world.destroy(file, ioas).unwrap();
    assert_eq!(world.diary.take(), ["unmapped 0x5000-0x5fff release"]);
}

/// drivers/iommu/iommufd/device.c, iommufd_device_bind: iommufd_ctx_get.
#[test]
fn a_bound_device_keeps_the_iommufd_alive_after_its_last_descriptor() {
    let world = World::new();
    let file = world.iommufd();
    let (device, _) = world.bound(ALONE, file);
    let ioas = world.ioas(file);
    world.program.write(HEAP, &[0x5a]).unwrap();
    world
        .map(file, ioas, FIXED | RW, (HEAP, PAGE), 0x5000)
        .unwrap();
    world.attach(device, ioas).unwrap();
    world.close(file);
    assert_eq!(world.dma_read(ALONE, 0x5000), Some(0x5a));
    assert_eq!(world.pinned_frames(), 1);
    world.close(device);
    assert_eq!(world.dma_read(ALONE, 0x5000), None);
    assert_eq!(world.pinned_frames(), 0);
}

/// drivers/iommu/iommufd/main.c, iommufd_fops_release.
#[test]
fn closing_an_iommufd_lets_go_of_everything() {
    let world = World::new();
    let file = world.iommufd();
    let (device, id) = world.bound(TWIN_A, file);
    let ioas = world.ioas(file);
    world.map(file, ioas, RW, (HEAP, 8 * PAGE), 0).unwrap();
    world.hwpt(file, id, ioas, 0).unwrap();
    assert_eq!(world.pinned_frames(), 8);
    world.close(device);
    assert_eq!(world.pinned_frames(), 8, "the page table still stands");
    world.close(file);
    assert_eq!(world.pinned_frames(), 0);
}

/// drivers/iommu/iommufd/hw_pagetable.c, iommufd_hwpt_alloc.
#[test]
fn a_page_table_is_made_of_an_ioas_for_a_device_and_of_nothing_else() {
    let world = World::new();
    let file = world.iommufd();
    let (_, device) = world.bound(ALONE, file);
    let ioas = world.ioas(file);
    let hwpt = world.hwpt(file, device, ioas, 0).unwrap();
    assert_eq!(world.hwpt(file, device, 99, 0), Err(Errno::EINVAL));
    assert_eq!(world.hwpt(file, device, device, 0), Err(Errno::EINVAL));
    assert_eq!(world.hwpt(file, device, hwpt, 0), Err(Errno::EOPNOTSUPP));
    // Data without a type, a type without data.
    for (kind, length) in [(0_u32, 8_u32), (1, 0)] {
        let mut bytes = pack!(
            48_u32, 0_u32, device, ioas, 0_u32, 0_u32, kind, length, HEAP, 0_u64
        );
        assert_eq!(world.call(file, 0x89, &mut bytes), Err(Errno::EINVAL));
    }
    // A table of the program's own.
    let mut bytes = pack!(
        48_u32, 0_u32, device, ioas, 0_u32, 0_u32, 1_u32, 8_u32, HEAP, 0_u64
    );
    assert_eq!(world.call(file, 0x89, &mut bytes), Err(Errno::EOPNOTSUPP));
}

/// drivers/iommu/iommufd/hw_pagetable.c, iommufd_hwpt_paging_alloc.
#[test]
fn what_the_unit_cannot_is_refused_by_the_page_table_and_its_dirty_calls() {
    let world = World::new();
    let file = world.iommufd();
    let (_, device) = world.bound(ALONE, file);
    let ioas = world.ioas(file);
    for flags in [1, 2, 5, 8, 15] {
        assert_eq!(
            world.hwpt(file, device, ioas, flags),
            Err(Errno::EOPNOTSUPP)
        );
    }
    let hwpt = world.hwpt(file, device, ioas, 0).unwrap();
    for flags in [0_u32, 1] {
        let result = world.call(file, 0x8b, &mut pack!(16_u32, flags, hwpt, 0_u32));
        assert_eq!(result, Err(Errno::EOPNOTSUPP));
    }
    let mut bitmap = pack!(48_u32, hwpt, 0_u32, 0_u32, 0_u64, PAGE, PAGE, HEAP);
    assert_eq!(world.call(file, 0x8c, &mut bitmap), Err(Errno::EOPNOTSUPP));
}

/// drivers/iommu/iommufd/device.c, iommufd_get_hw_info.
#[test]
fn hardware_info_says_what_is_missing_and_zeroes_the_programs_buffer() {
    let world = World::new();
    let file = world.iommufd();
    let (_, device) = world.bound(ALONE, file);
    world.program.write(HEAP, &[0xff; 6000]).unwrap();
    let mut info = pack!(40_u32, 0_u32, device, 5000_u32, HEAP, 77_u32, 0_u32, 0_u64);
    assert_eq!(world.call(file, 0x8a, &mut info), Ok(0));
    assert_eq!(
        (word(&info, 12), word(&info, 24)),
        (0, 0),
        "no data, of no type"
    );
    assert_eq!(info[28], 0, "no PASID");
    assert_eq!(quad(&info, 32), 8, "no dirty tracking, no ATS");
    let mut buffer = [1; 5001];
    world.program.read(HEAP, &mut buffer).unwrap();
    assert!(buffer[..5000].iter().all(|byte| *byte == 0) && buffer[5000] == 0xff);

    let mut info = pack!(40_u32, 0_u32, device, 8_u32, 0_u64, 0_u32, 0_u32, 0_u64);
    assert_eq!(world.call(file, 0x8a, &mut info), Err(Errno::EFAULT));
    for (kind, result) in [(0, Ok(0)), (1, Err(Errno::EOPNOTSUPP))] {
        let mut info = pack!(
            40_u32,
            1_u32,
            device,
            0_u32,
            0_u64,
            kind as u32,
            0_u32,
            0_u64
        );
        assert_eq!(world.call(file, 0x8a, &mut info), result);
    }
}

/// drivers/iommu/iommufd/ioas.c, iommufd_option_rlimit_mode.
#[test]
fn the_accounting_mode_needs_privilege_and_an_empty_iommufd() {
    let world = World::new();
    let file = world.iommufd();
    const RLIMIT: u32 = 0;
    assert_eq!(world.option(file, (RLIMIT, 1), 0, 9), Ok(0));
    assert_eq!(world.option(file, (RLIMIT, 0), 0, 1), Err(Errno::EPERM));
    *world.program.privileged.lock().unwrap() = true;
    assert_eq!(world.option(file, (RLIMIT, 0), 0, 2), Err(Errno::EINVAL));
    assert_eq!(
        world.option(file, (RLIMIT, 0), 1, 1),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        world.option(file, (RLIMIT, 2), 0, 1),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(world.option(file, (2, 1), 0, 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(world.option(file, (RLIMIT, 0), 0, 1), Ok(1));
    assert_eq!(world.option(file, (RLIMIT, 1), 0, 9), Ok(1));
    let ioas = world.ioas(file);
    assert_eq!(world.option(file, (RLIMIT, 0), 0, 0), Err(Errno::EBUSY));
    world.destroy(file, ioas).unwrap();
    assert_eq!(world.option(file, (RLIMIT, 0), 0, 0), Ok(0));
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_option_huge_pages;
/// io_pagetable.c, iopt_disable_large_pages.
#[test]
fn huge_pages_are_turned_off_while_nothing_is_mapped_in_a_page_table() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    const HUGE: u32 = 1;
    assert_eq!(world.option(file, (HUGE, 1), ioas, 0), Ok(1));
    assert_eq!(world.option(file, (HUGE, 0), ioas, 2), Err(Errno::EINVAL));
    assert_eq!(
        world.option(file, (HUGE, 7), ioas, 0),
        Err(Errno::EOPNOTSUPP)
    );
    world.option(file, (HUGE, 0), ioas, 0).unwrap();
    assert_eq!(world.option(file, (HUGE, 1), ioas, 9), Ok(0));
    assert_eq!(world.ranges(file, ioas).1, PAGE);
    world.option(file, (HUGE, 0), ioas, 1).unwrap();
    assert_eq!(world.ranges(file, ioas).1, 1);
    // An area that is not of whole pages stands in the way.
    world.map(file, ioas, FIXED | R, (HEAP + 8, 8), 8).unwrap();
    assert_eq!(
        world.option(file, (HUGE, 0), ioas, 0),
        Err(Errno::EADDRINUSE)
    );
    assert_eq!(world.option(file, (HUGE, 1), ioas, 0), Ok(1));
    world.unmap(file, ioas, 8, 8).unwrap();
    world
        .map(file, ioas, FIXED | R, (HEAP, PAGE), PAGE)
        .unwrap();
    let (device, _) = world.bound(ALONE, file);
    world.attach(device, ioas).unwrap();
    assert_eq!(world.option(file, (HUGE, 0), ioas, 0), Err(Errno::EINVAL));
}

/// drivers/iommu/iommufd/pages.c, iopt_pages_update_pinned.
#[test]
fn pinned_memory_counts_against_the_limit_of_who_mapped_it() {
    let world = World::with_memlock(MemlockMode::Enforce);
    *world.program.memlock.lock().unwrap() = Memlock::Limit(4 * PAGE);
    let file = world.iommufd();
    let ioas = world.ioas(file);
    // Nothing is pinned yet, so nothing counts.
    world
        .map(file, ioas, FIXED | RW, (HEAP, 5 * PAGE), 0)
        .unwrap();
    let (device, _) = world.bound(ALONE, file);
    assert_eq!(world.attach(device, ioas), Err(Errno::ENOMEM));
    world.unmap(file, ioas, 0, u64::MAX).unwrap();
    world.attach(device, ioas).unwrap();
    world
        .map(file, ioas, FIXED | RW, (HEAP, 3 * PAGE), 0x10_0000)
        .unwrap();
    let two = (HEAP, 2 * PAGE);
    assert_eq!(
        world.map(file, ioas, FIXED | RW, two, 0x20_0000),
        Err(Errno::ENOMEM)
    );
    // A copy shares what is pinned.
    let source = (ioas, 0x10_0000);
    world
        .copy(file, FIXED | R, source, (ioas, 0x30_0000), 3 * PAGE)
        .unwrap();
    world.unmap(file, ioas, 0x10_0000, 3 * PAGE).unwrap();
    assert_eq!(
        world.map(file, ioas, FIXED | RW, two, 0x20_0000),
        Err(Errno::ENOMEM)
    );
    world.unmap(file, ioas, 0x30_0000, 3 * PAGE).unwrap();
    world.map(file, ioas, FIXED | RW, two, 0x20_0000).unwrap();
    *world.program.memlock.lock().unwrap() = Memlock::Exempt;
    world
        .map(file, ioas, FIXED | RW, (HEAP, 9 * PAGE), 0x40_0000)
        .unwrap();
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_alloc_ioctl: out_table.
#[test]
fn an_object_whose_number_cannot_be_told_was_never_made() {
    let world = World::new();
    let file = world.iommufd();
    world.give(0x30_0000, 555, true, true);
    world
        .program
        .write(0x30_0000, &pack!(12_u32, 0_u32, 0_u32))
        .unwrap();
    world.give(0x30_0000, 555, false, true);
    assert_eq!(world.raw(file, 0x81, 0x30_0000), Err(Errno::EFAULT));
    assert_eq!(world.ioas(file), 1);
}

/// drivers/iommu/iommufd/main.c, iommufd_fops_open.
#[test]
fn every_open_of_the_node_is_an_iommufd_of_its_own() {
    let world = World::new();
    let (one, two) = (world.iommufd(), world.open(Node::Iommufd).unwrap());
    assert_ne!(one.file, two.file);
    let ioas = world.ioas(one);
    assert_eq!(
        world.map(two, ioas, RW, (HEAP, PAGE), 0),
        Err(Errno::ENOENT)
    );
}

/// drivers/iommu/iommufd/pages.c, do_update_pinned, update_mm_locked_vm.
#[test]
fn who_is_exempt_pays_nothing_and_users_and_processes_pay_apart() {
    let world = World::with_memlock(MemlockMode::Enforce);
    let limit = |limit| *world.program.memlock.lock().unwrap() = limit;
    limit(Memlock::Limit(4 * PAGE));
    *world.program.privileged.lock().unwrap() = true;
    let context = |device: usize, by_process: bool| {
        let file = world.iommufd();
        if by_process {
            world.option(file, (0, 0), 0, 1).unwrap();
        }
        let ioas = world.ioas(file);
        let (device, _) = world.bound(device, file);
        world.attach(device, ioas).unwrap();
        (file, ioas)
    };
    let map = |(file, ioas): (Opened, u32), pages: u64, iova: u64| {
        world.map(file, ioas, FIXED | RW, (HEAP, pages * PAGE), iova)
    };
    let (one, other, process) = (
        context(ALONE, false),
        context(NARROW, false),
        context(FINE, true),
    );
    map(one, 3, 0x10_0000).unwrap();
    let more = map(other, 2, 0x10_0000);
    assert_eq!(more, Err(Errno::ENOMEM), "it is the same user");
    map(process, 4, 0x10_0000).unwrap();
    assert_eq!(map(process, 1, 0x20_0000), Err(Errno::ENOMEM));
    limit(Memlock::Exempt);
    map(other, 9, 0x10_0000).unwrap();
    map(process, 9, 0x20_0000).unwrap();
    limit(Memlock::Limit(4 * PAGE));
    map(other, 1, 0x20_0000).unwrap();
    assert_eq!(map(one, 1, 0x20_0000), Err(Errno::ENOMEM));
}
