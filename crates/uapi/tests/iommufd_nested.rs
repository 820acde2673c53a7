//! Calls that want nested page tables or a virtual IOMMU, which no unit has:
//! what is refused before that shows, in the kernel's order. Rules 36, 39 and
//! 41 to 44 of the kernel as far as that.

mod iommufd_world;

use iogate_uapi::Errno;
use iommufd_world::*;

/// hw_pagetable.c, iommufd_hwpt_alloc and iommufd_hwpt_nested_alloc.
#[test]
fn a_page_table_on_top_of_another_is_not_supported() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (_, device) = world.bound(ALONE, file);
    let parent = world.hwpt(file, device, ioas, 0).unwrap();
    assert_eq!(world.hwpt(file, device, parent, 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(world.hwpt(file, device, device, 0), Err(Errno::EINVAL));
    assert_eq!(world.hwpt(file, device, 77, 0), Err(Errno::EINVAL));
    assert_eq!(world.hwpt(file, 77, 77, 0), Err(Errno::ENOENT));
    let described = |kind: u32, length: u32| {
        let mut bytes = pack!(
            48_u32, 0_u32, 77_u32, parent, 0_u32, 0_u32, kind, length, HEAP, 0_u64
        );
        world.call(file, 0x89, &mut bytes)
    };
    assert_eq!(described(1, 0), Err(Errno::EINVAL), "before the device");
    assert_eq!(described(0, 8), Err(Errno::EINVAL));
    assert_eq!(described(1, 8), Err(Errno::ENOENT));
}

/// hw_pagetable.c, iommufd_hwpt_invalidate.
#[test]
fn an_invalidation_says_how_many_were_done_even_when_refused() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (_, device) = world.bound(ALONE, file);
    let hwpt = world.hwpt(file, device, ioas, 0).unwrap();
    let invalidate = |id: u32, data: u64, length: u32, number: u32, reserved: u32| {
        let mut bytes = pack!(32_u32, id, data, 1_u32, length, number, reserved);
        let result = world.call(file, 0x8d, &mut bytes);
        assert_eq!(word(&bytes, 24), 0);
        result
    };
    let invalid = Err(Errno::EINVAL);
    assert_eq!(invalidate(hwpt, HEAP, 8, 2, 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(invalidate(77, 0, 8, 2, 0), invalid, "no entries");
    assert_eq!(invalidate(77, HEAP, 0, 2, 0), invalid);
    assert_eq!(invalidate(77, HEAP, 4097, 2, 0), invalid);
    assert_eq!(invalidate(77, HEAP, 8, (1 << 19) + 1, 0), invalid);
    assert_eq!(invalidate(77, HEAP, 8, 2, 0), Err(Errno::ENOENT));
    assert_eq!(invalidate(77, 0, 0, 0, 0), Err(Errno::ENOENT));
    assert_eq!(invalidate(hwpt, HEAP, 8, 2, 0), invalid);
}

/// viommu.c, iommufd_viommu_alloc_ioctl, iommufd_vdevice_alloc_ioctl and
/// iommufd_hw_queue_alloc_ioctl; eventq.c, iommufd_veventq_alloc.
#[test]
fn there_are_no_virtual_iommus_and_nothing_that_belongs_to_one() {
    let world = World::new();
    let file = world.iommufd();
    let (_, device) = world.bound(ALONE, file);
    let (unsupported, none) = (Err(Errno::EOPNOTSUPP), Err(Errno::ENOENT));
    let viommu = |flags: u32, kind: u32, device: u32| {
        let mut bytes = pack!(24_u32, flags, kind, device, 7_u32, 0_u32);
        world.call(file, 0x90, &mut bytes)
    };
    assert_eq!(viommu(1, 1, 77), unsupported);
    assert_eq!(viommu(0, 0, 77), unsupported);
    assert_eq!(viommu(0, 1, 77), none);
    assert_eq!(viommu(0, 1, device), unsupported);
    let vdevice = world.call(
        file,
        0x91,
        &mut pack!(32_u32, 7_u32, device, 0_u32, 5_u64, 0_u64),
    );
    assert_eq!(vdevice, none);
    let events = |flags: u32, kind: u32, depth: u32, reserved: u32| {
        let mut bytes = pack!(32_u32, flags, 7_u32, kind, depth, 0_u32, 0_u32, reserved);
        world.call(file, 0x93, &mut bytes)
    };
    assert_eq!(events(1, 1, 0, 0), unsupported);
    assert_eq!(events(0, 0, 0, 0), unsupported);
    assert_eq!(events(0, 1, 0, 1), unsupported);
    assert_eq!(events(0, 1, 0, 0), Err(Errno::EINVAL));
    assert_eq!(events(0, 1, (1 << 19) + 1, 0), Err(Errno::EINVAL));
    assert_eq!(events(0, 1, 1 << 19, 0), none);
    let queue = |flags: u32, kind: u32, iova: u64, length: u64| {
        let mut bytes = pack!(40_u32, flags, 7_u32, kind, 0_u32, 0_u32, iova, length);
        world.call(file, 0x94, &mut bytes)
    };
    assert_eq!(queue(1, 1, 0, 0), unsupported);
    assert_eq!(queue(0, 0, 0, 0), unsupported);
    assert_eq!(queue(0, 1, u64::MAX, 0), Err(Errno::EINVAL));
    assert_eq!(queue(0, 1, u64::MAX, 2), Err(Errno::EOVERFLOW));
    assert_eq!(queue(0, 1, u64::MAX, 1), none);
}
