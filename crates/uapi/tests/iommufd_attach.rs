//! Binding and attaching by a device's own node: rules 6, 33, 34 and 40 of the
//! kernel, and how it keeps out of the group's way.

mod iommufd_world;

use iogate_host::Node;
use iogate_uapi::{Client, Errno};
use iommufd_world::*;

const ATTACH: u32 = 119;
const DETACH: u32 = 120;
const BIND: u32 = 118;

/// drivers/vfio/device_cdev.c, vfio_df_ioctl_bind_iommufd.
#[test]
fn the_checks_of_a_bind_come_in_the_kernels_order() {
    let world = World::new();
    let file = world.iommufd();
    let device = world.cdev(ALONE);
    let bind = |bytes: &mut [u8]| world.call(device, BIND, bytes);
    assert_eq!(world.raw(device, BIND, 0), Err(Errno::EFAULT));
    assert_eq!(
        bind(&mut pack!(15_u32, 0_u32, file.fd, 0_u32)),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        bind(&mut pack!(16_u32, 2_u32, file.fd, 0_u32)),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        bind(&mut pack!(16_u32, 0_u32, -1_i32, 0_u32)),
        Err(Errno::EINVAL)
    );
    let tail = &mut pack!(32_u32, 0_u32, file.fd, 0_u32, 0_u64, 1_u64);
    assert_eq!(bind(tail), Err(Errno::E2BIG));
    assert_eq!(
        bind(&mut pack!(16_u32, 0_u32, 999_i32, 0_u32)),
        Err(Errno::EBADF)
    );
    assert_eq!(
        bind(&mut pack!(16_u32, 0_u32, world.other(), 0_u32)),
        Err(Errno::EBADFD)
    );
    assert_eq!(
        bind(&mut pack!(16_u32, 0_u32, device.fd, 0_u32)),
        Err(Errno::EBADFD)
    );
    // A token that cannot be read, one that the device has no use for.
    let token = |at: u64| pack!(24_u32, 1_u32, file.fd, 0_u32, at);
    assert_eq!(bind(&mut token(0)), Err(Errno::EFAULT));
    assert_eq!(bind(&mut token(HEAP)), Err(Errno::EINVAL));
    assert_eq!(bind(&mut pack!(16_u32, 0_u32, file.fd, 0_u32)), Ok(0));
    // Bound before the descriptor is looked at, and so by another file.
    assert_eq!(
        bind(&mut pack!(16_u32, 0_u32, 999_i32, 0_u32)),
        Err(Errno::EINVAL)
    );
    let again = world.cdev(ALONE);
    assert_eq!(world.bind(again, file), Err(Errno::EINVAL));
    let mut bad = pack!(16_u32, 0_u32, 999_i32, 0_u32);
    assert_eq!(world.call(again, BIND, &mut bad), Err(Errno::EBADF));
}

/// drivers/vfio/device_cdev.c, vfio_df_ioctl_bind_iommufd: out_close_device.
#[test]
fn a_bind_whose_number_cannot_be_told_is_undone() {
    let world = World::new();
    let file = world.iommufd();
    let device = world.cdev(ALONE);
    world.give(0x30_0000, 555, true, true);
    let bytes = pack!(16_u32, 0_u32, file.fd, 0_u32);
    world.program.write(0x30_0000, &bytes).unwrap();
    world.give(0x30_0000, 555, false, true);
    assert_eq!(world.raw(device, BIND, 0x30_0000), Err(Errno::EFAULT));
    assert_eq!(world.attach(device, 1), Err(Errno::EINVAL), "not bound");
    assert!(world.open(Node::Group(2)).is_ok());
}

/// drivers/vfio/vfio_main.c, vfio_device_fops_unl_ioctl.
#[test]
fn a_device_that_is_not_bound_answers_nothing_but_bind() {
    let world = World::new();
    let device = world.cdev(ALONE);
    for number in [100, 107, 108, 117, ATTACH, DETACH, 0x7f] {
        let result = world.call(device, number, &mut pack!(64_u32, 0_u32));
        assert_eq!(result, Err(Errno::EINVAL), "{number}");
    }
    let file = world.iommufd();
    world.bind(device, file).unwrap();
    assert_eq!(world.detach(device), Ok(()));
}

/// drivers/vfio/group.c, vfio_device_block_group, vfio_group_fops_open.
#[test]
fn a_group_that_is_open_and_a_device_that_is_bound_exclude_each_other() {
    let world = World::new();
    let file = world.iommufd();
    let group = world.open(Node::Group(1)).unwrap();
    let device = world.cdev(TWIN_A);
    assert_eq!(world.bind(device, file), Err(Errno::EBUSY));
    // Busy even before the descriptor is looked at.
    let mut bad = pack!(16_u32, 0_u32, 999_i32, 0_u32);
    assert_eq!(world.call(device, BIND, &mut bad), Err(Errno::EBUSY));
    world.close(group);
    world.bind(device, file).unwrap();
    assert_eq!(world.open(Node::Group(1)).err(), Some(Errno::EBUSY));
    let (twin, _) = world.bound(TWIN_B, file);
    world.close(device);
    assert_eq!(world.open(Node::Group(1)).err(), Some(Errno::EBUSY));
    world.close(twin);
    assert!(world.open(Node::Group(1)).is_ok());
}

/// drivers/iommu/iommu.c, iommu_device_claim_dma_owner.
#[test]
fn a_group_is_owned_by_one_iommufd_at_a_time() {
    let world = World::new();
    let (one, two) = (world.iommufd(), world.iommufd());
    let (device, _) = world.bound(TWIN_A, one);
    let twin = world.cdev(TWIN_B);
    assert_eq!(world.bind(twin, two), Err(Errno::EPERM));
    world.close(device);
    assert_eq!(world.bind(twin, two), Ok(1));
    let taken = world.cdev(TAKEN);
    assert_eq!(world.bind(taken, one), Err(Errno::EPERM), "a host driver's");
    assert!(world.open(Node::Group(5)).is_ok(), "the bind left nothing");
}

/// drivers/vfio/device_cdev.c, vfio_df_ioctl_attach_pt, vfio_df_ioctl_detach_pt.
#[test]
fn the_arguments_of_attach_and_detach_are_checked() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, _) = world.bound(ALONE, file);
    let attach = |bytes: &mut [u8]| world.call(device, ATTACH, bytes);
    assert_eq!(world.raw(device, ATTACH, 0), Err(Errno::EFAULT));
    assert_eq!(attach(&mut pack!(11_u32, 0_u32, ioas)), Err(Errno::EINVAL));
    assert_eq!(attach(&mut pack!(12_u32, 2_u32, ioas)), Err(Errno::EINVAL));
    // PASID: the structure must have it, the object must exist.
    assert_eq!(attach(&mut pack!(12_u32, 1_u32, ioas)), Err(Errno::EINVAL));
    assert_eq!(
        attach(&mut pack!(16_u32, 1_u32, 99_u32, 5_u32)),
        Err(Errno::ENOENT)
    );
    assert_eq!(
        attach(&mut pack!(16_u32, 1_u32, ioas, 5_u32)),
        Err(Errno::EINVAL)
    );
    // What lies behind the structure does not matter.
    assert_eq!(attach(&mut pack!(64_u32, 0_u32, ioas, 9_u32)), Ok(0));
    let detach = |bytes: &mut [u8]| world.call(device, DETACH, bytes);
    assert_eq!(world.raw(device, DETACH, 0), Err(Errno::EFAULT));
    assert_eq!(detach(&mut pack!(7_u32, 0_u32)), Err(Errno::EINVAL));
    assert_eq!(detach(&mut pack!(8_u32, 2_u32)), Err(Errno::EINVAL));
    assert_eq!(detach(&mut pack!(8_u32, 1_u32)), Err(Errno::EINVAL));
    assert_eq!(
        detach(&mut pack!(12_u32, 1_u32, 5_u32)),
        Ok(0),
        "no such PASID, no error"
    );
    assert_eq!(detach(&mut pack!(8_u32, 0_u32)), Ok(0));
    assert_eq!(detach(&mut pack!(8_u32, 0_u32)), Ok(0), "once more");
}

/// drivers/iommu/iommufd/device.c, iommufd_device_auto_get_domain,
/// iommufd_hw_pagetable_put.
#[test]
fn an_attach_to_an_ioas_makes_one_page_table_that_goes_with_the_last_detach() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (one, _) = world.bound(TWIN_A, file);
    let (two, _) = world.bound(ALONE, file);
    let hwpt = world.attach(one, ioas).unwrap();
    assert_eq!(
        world.attach(two, ioas),
        Ok(hwpt),
        "the same for every unit that takes it"
    );
    assert_eq!(world.destroy(file, hwpt), Err(Errno::EBUSY));
    world.detach(one).unwrap();
    assert_eq!(world.destroy(file, hwpt), Err(Errno::EBUSY));
    world.detach(two).unwrap();
    assert_eq!(world.destroy(file, hwpt), Err(Errno::ENOENT));
    world.destroy(file, ioas).unwrap();
}

/// drivers/iommu/iommufd/device.c, iommufd_device_auto_get_domain.
#[test]
fn a_page_table_made_by_hand_is_never_chosen_and_never_goes_by_itself() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, id) = world.bound(ALONE, file);
    let manual = world.hwpt(file, id, ioas, 0).unwrap();
    let auto = world.attach(device, ioas).unwrap();
    assert_ne!(auto, manual);
    assert_eq!(world.attach(device, manual), Ok(manual));
    assert_eq!(
        world.destroy(file, auto),
        Err(Errno::ENOENT),
        "gone with the move"
    );
    world.detach(device).unwrap();
    world.destroy(file, manual).unwrap();
}

/// drivers/iommu/iommufd/device.c, iommufd_device_auto_get_domain: EINVAL
/// means that the domain does not take the device.
#[test]
fn a_unit_that_an_ioas_page_table_does_not_suit_gets_one_of_its_own() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (wide, id) = world.bound(ALONE, file);
    let (narrow, _) = world.bound(NARROW, file);
    let first = world.attach(wide, ioas).unwrap();
    let second = world.attach(narrow, ioas).unwrap();
    assert_ne!(first, second);
    assert_eq!(world.ranges(file, ioas).0[1], (0xfef0_0000, (1 << 39) - 1));
    // Both see the same mappings.
    world.program.write(HEAP, &[3]).unwrap();
    world
        .map(file, ioas, FIXED | R, (HEAP, PAGE), 0x9000)
        .unwrap();
    assert_eq!(world.dma_read(ALONE, 0x9000), Some(3));
    assert_eq!(world.dma_read(NARROW, 0x9000), Some(3));
    world.detach(narrow).unwrap();
    assert_eq!(world.ranges(file, ioas).0[1], (0xfef0_0000, (1 << 48) - 1));
    // By hand the mismatch is an error.
    let manual = world.hwpt(file, id, ioas, 0).unwrap();
    assert_eq!(world.attach(narrow, manual), Err(Errno::EINVAL));
    assert_eq!(world.dma_read(NARROW, 0x9000), None);
}

/// drivers/iommu/iommufd/hw_pagetable.c, iommufd_hwpt_paging_alloc:
/// enforce_cache_coherency.
#[test]
fn a_page_table_enforces_coherency_as_the_unit_it_was_made_for_can() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (usual, usual_id) = world.bound(ALONE, file);
    let (_, narrow_id) = world.bound(NARROW, file);
    let enforcing = world.hwpt(file, usual_id, ioas, 0).unwrap();
    let other = world.hwpt(file, narrow_id, ioas, 0).unwrap();
    assert_eq!(
        world.host.hwpt_enforces_coherency(file.file, enforcing),
        Ok(true)
    );
    assert_eq!(
        world.host.hwpt_enforces_coherency(file.file, other),
        Ok(false)
    );
    world.attach(usual, other).unwrap();
    assert_eq!(
        world.host.hwpt_enforces_coherency(file.file, other),
        Ok(false)
    );
}

/// drivers/iommu/iommufd/device.c, iommufd_hw_pagetable_attach.
#[test]
fn the_devices_of_a_group_share_one_page_table() {
    let world = World::new();
    let file = world.iommufd();
    let (here, there) = (world.ioas(file), world.ioas(file));
    let (one, id) = world.bound(TWIN_A, file);
    let (two, _) = world.bound(TWIN_B, file);
    world.program.write(HEAP, &[1]).unwrap();
    world.program.write(HEAP + PAGE, &[2]).unwrap();
    world
        .map(file, here, FIXED | R, (HEAP, PAGE), 0x1000)
        .unwrap();
    world
        .map(file, there, FIXED | R, (HEAP + PAGE, PAGE), 0x1000)
        .unwrap();
    let hwpt = world.attach(one, here).unwrap();
    assert_eq!(
        world.dma_read(TWIN_B, 0x1000),
        Some(1),
        "the group follows its first"
    );
    assert_eq!(world.attach(two, there), Err(Errno::EINVAL));
    let manual = world.hwpt(file, id, here, 0).unwrap();
    assert_eq!(world.attach(two, manual), Err(Errno::EINVAL));
    assert_eq!(world.attach(two, here), Ok(hwpt));
    // A move takes all of them along.
    let moved = world.attach(one, there).unwrap();
    assert_eq!(world.dma_read(TWIN_B, 0x1000), Some(2));
    assert_eq!(world.destroy(file, hwpt), Err(Errno::ENOENT));
    assert_eq!(world.attach(two, moved), Ok(moved), "where it is already");
    world.detach(one).unwrap();
    assert_eq!(
        world.dma_read(TWIN_A, 0x1000),
        Some(2),
        "the group stays for the other"
    );
    world.detach(two).unwrap();
    assert_eq!(world.dma_read(TWIN_A, 0x1000), None);
    assert_eq!(world.dma_read(TWIN_B, 0x1000), None);
}

/// drivers/iommu/iommufd/device.c, iommufd_device_do_replace: err_unresv.
#[test]
fn a_move_that_fails_leaves_the_old_attachment() {
    let world = World::new();
    let file = world.iommufd();
    let (here, bad, crowded) = (world.ioas(file), world.ioas(file), world.ioas(file));
    let (device, _) = world.bound(ALONE, file);
    world.program.write(HEAP, &[1]).unwrap();
    world
        .map(file, here, FIXED | R, (HEAP, PAGE), 0x1000)
        .unwrap();
    world
        .map(file, bad, FIXED | R, (0x4000, PAGE), 0x1000)
        .unwrap();
    world
        .map(file, crowded, FIXED | R, (HEAP, PAGE), 0xfee0_0000)
        .unwrap();
    let hwpt = world.attach(device, here).unwrap();
    world.diary.take();
    assert_eq!(world.attach(device, bad), Err(Errno::EFAULT));
    assert_eq!(world.attach(device, crowded), Err(Errno::EADDRINUSE));
    assert_eq!(world.attach(device, 99), Err(Errno::ENOENT));
    assert!(world.diary.take().is_empty());
    assert_eq!(world.dma_read(ALONE, 0x1000), Some(1));
    assert_eq!(world.ranges(file, bad), (vec![(0, u64::MAX)], 1));
    assert_eq!(world.ranges(file, crowded), (vec![(0, u64::MAX)], 1));
    assert_eq!(world.attach(device, here), Ok(hwpt));
    assert_eq!(world.pinned_frames(), 1);
}

/// drivers/iommu/iommufd/device.c, iommufd_group_do_replace_reserved_iova.
#[test]
fn a_move_takes_the_reserved_windows_along() {
    let world = World::new();
    let file = world.iommufd();
    let (here, there) = (world.ioas(file), world.ioas(file));
    let (one, _) = world.bound(TWIN_A, file);
    let (two, _) = world.bound(TWIN_B, file);
    world.attach(one, here).unwrap();
    world.attach(two, here).unwrap();
    let around = vec![(0, 0xfedf_ffff), (0xfef0_0000, (1 << 48) - 1)];
    assert_eq!(world.ranges(file, here).0, around);
    world.attach(two, there).unwrap();
    assert_eq!(world.ranges(file, here), (vec![(0, u64::MAX)], 1));
    assert_eq!(world.ranges(file, there).0, around);
    world.detach(two).unwrap();
    assert_eq!(
        world.ranges(file, there).0,
        around,
        "the twin still needs them"
    );
    world.detach(one).unwrap();
    assert_eq!(world.ranges(file, there), (vec![(0, u64::MAX)], 1));
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_table_enforce_dev_resv_regions.
#[test]
fn a_unit_with_both_kinds_of_interrupt_window_is_refused() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, _) = world.bound(CONTRARY, file);
    assert_eq!(world.attach(device, ioas), Err(Errno::EINVAL));
    assert_eq!(world.ranges(file, ioas), (vec![(0, u64::MAX)], 1));
    world.destroy(file, ioas).unwrap();
}

/// drivers/vfio/device_cdev.c, vfio_df_ioctl_attach_pt: out_detach.
#[test]
fn an_attach_whose_page_table_cannot_be_told_is_undone() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, _) = world.bound(ALONE, file);
    world.give(0x30_0000, 555, true, true);
    world
        .program
        .write(0x30_0000, &pack!(12_u32, 0_u32, ioas))
        .unwrap();
    world.give(0x30_0000, 555, false, true);
    assert_eq!(world.raw(device, ATTACH, 0x30_0000), Err(Errno::EFAULT));
    world.destroy(file, ioas).unwrap();
}

/// drivers/vfio/iommufd.c, vfio_iommufd_physical_unbind.
#[test]
fn closing_a_device_detaches_it_and_frees_its_number() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, id) = world.bound(ALONE, file);
    world
        .map(file, ioas, FIXED | R, (HEAP, PAGE), 0x1000)
        .unwrap();
    world.attach(device, ioas).unwrap();
    world.diary.take();
    world.close(device);
    assert_eq!(world.diary.take(), ["detached 0000:02:00.0"]);
    assert_eq!(world.pinned_frames(), 0);
    assert_eq!(world.bound(ALONE, file).1, id);
    world.destroy(file, ioas).unwrap();
}

/// drivers/iommu/iommufd/device.c, iommufd_hw_pagetable_attach.
#[test]
fn the_observer_hears_of_maps_and_attachments_in_order() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, _) = world.bound(ALONE, file);
    world
        .map(file, ioas, FIXED | RW, (HEAP, PAGE), 0x1000)
        .unwrap();
    world.attach(device, ioas).unwrap();
    world
        .copy(file, FIXED | R, (ioas, 0x1000), (ioas, 0x2000), PAGE)
        .unwrap();
    let memory = world.memory_file(&[5]);
    world
        .map_file(file, ioas, memory, (0, PAGE), 0x3000)
        .unwrap();
    world.unmap(file, ioas, 0x1000, PAGE).unwrap();
    world.close(device);
    world.close(file);
    assert_eq!(
        world.diary.take(),
        [
            "mapped 0x1000-0x1fff rw IOAS_MAP",
            "attached 0000:02:00.0",
            "mapped 0x2000-0x2fff ro IOAS_COPY",
            "mapped 0x3000-0x3fff rw IOAS_MAP_FILE",
            "unmapped 0x1000-0x1fff IOAS_UNMAP",
            "detached 0000:02:00.0",
            "unmapped 0x2000-0x2fff release",
            "unmapped 0x3000-0x3fff release",
        ]
    );
}
