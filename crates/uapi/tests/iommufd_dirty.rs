//! Dirty pages of what real devices write: rules 35 and 38 of the kernel on
//! units of the machine.

mod iommufd_world;

use iogate_dma::Iova;
use iogate_uapi::{Client, Errno};
use iommufd_world::*;

/// IOMMU_HWPT_ALLOC_DIRTY_TRACKING.
const DIRTY: u32 = 2;
const AT: u64 = 0x10_0000;
const BITMAP: u64 = ARGUMENT + 0x2000;

/// A device attached to a page table that tracks, with 8 pages mapped.
fn tracked(world: &World) -> (Opened, Opened, u32, u32) {
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, id) = world.bound(FINE, file);
    let hwpt = world.hwpt(file, id, ioas, DIRTY).unwrap();
    world.attach(device, hwpt).unwrap();
    world
        .map(file, ioas, FIXED | RW, (HEAP, 8 * PAGE), AT)
        .unwrap();
    (file, device, ioas, hwpt)
}

fn track(world: &World, file: Opened, hwpt: u32, on: u32) -> Result<i64, Errno> {
    world.call(file, 0x8b, &mut pack!(16_u32, on, hwpt, 0_u32))
}

/// The first bits from `AT` on, each of `page` bytes.
fn bits(world: &World, file: Opened, hwpt: u32, flags: u32, page: u64) -> Result<u16, Errno> {
    world.program.write(BITMAP, &[0; 2]).unwrap();
    let mut get = pack!(48_u32, hwpt, flags, 0_u32, AT, 8 * PAGE, page, BITMAP);
    world.call(file, 0x8c, &mut get)?;
    let mut bits = [0; 2];
    world.program.read(BITMAP, &mut bits).unwrap();
    Ok(u16::from_le_bytes(bits))
}

/// drivers/iommu/iommufd/hw_pagetable.c, iommufd_hwpt_set_dirty_tracking,
/// iommufd_hwpt_get_dirty_bitmap; io_pagetable.c,
/// iopt_read_and_clear_dirty_data.
#[test]
fn what_a_device_writes_while_it_is_tracked_is_dirty_until_somebody_looks() {
    let world = World::new();
    let (file, _, _, hwpt) = tracked(&world);
    assert!(world.dma_write(FINE, AT, 1));
    assert_eq!(bits(&world, file, hwpt, 0, 2048), Ok(0), "not tracked yet");
    track(&world, file, hwpt, 1).unwrap();
    assert!(world.dma_write(FINE, AT + 2048, 1));
    assert!(world.dma_write(FINE, AT + 5 * PAGE, 1));
    assert_eq!(world.dma_read(FINE, AT + PAGE), Some(0));
    assert!(!world.dma_write(FINE, AT + 8 * PAGE, 1), "not mapped");
    assert_eq!(bits(&world, file, hwpt, 1, PAGE), Ok(0b10_0001), "kept");
    assert_eq!(bits(&world, file, hwpt, 0, 2048), Ok(1 << 10 | 1 << 1));
    assert_eq!(bits(&world, file, hwpt, 0, 2048), Ok(0));
    assert!(world.dma_write(FINE, AT, 1));
    track(&world, file, hwpt, 0).unwrap();
    assert!(world.dma_write(FINE, AT + PAGE, 1));
    assert_eq!(bits(&world, file, hwpt, 1, PAGE), Ok(1));
    track(&world, file, hwpt, 1).unwrap();
    assert_eq!(bits(&world, file, hwpt, 1, PAGE), Ok(0));
}

/// A write of several pages, in and out of one piece of memory.
#[test]
fn every_page_of_a_long_write_is_dirty() {
    let world = World::new();
    let (file, _, _, hwpt) = tracked(&world);
    track(&world, file, hwpt, 1).unwrap();
    let mut worker = world.worker(FINE);
    worker.write(Iova(AT + PAGE + 1), &[7; 0x2000]).unwrap();
    assert_eq!(bits(&world, file, hwpt, 0, PAGE), Ok(0b1110));
}

/// drivers/iommu/iommufd/hw_pagetable.c, iommufd_hwpt_get_dirty_bitmap: what is
/// read and cleared is in memory when the caller looks, as after the flush of
/// the unit's cache.
#[test]
fn looking_waits_for_writes_that_were_marked_before() {
    let world = World::new();
    let (file, _, _, hwpt) = tracked(&world);
    let mut worker = world.participant();
    let guard = worker.enter();
    for (number, argument) in [
        (0x8b_u32, pack!(16_u32, 1_u32, hwpt, 0_u32)),
        (
            0x8c,
            pack!(48_u32, hwpt, 0_u32, 0_u32, AT, 8 * PAGE, PAGE, BITMAP),
        ),
    ] {
        world.program.write(ARGUMENT, &argument).unwrap();
        let command = 0x3b00 | number;
        let answer = iogate_uapi::ioctl(&world.host, file.file, command, ARGUMENT, &world.program);
        let mut grace = answer.unwrap().after.grace.unwrap();
        assert!(!grace.has_passed(), "{number:#x}");
    }
    drop(guard);
}

/// drivers/iommu/iommufd/device.c, iommufd_get_hw_info; hw_pagetable.c,
/// iommufd_hwpt_paging_alloc.
#[test]
fn only_a_unit_that_can_tracks_and_says_so() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    for (index, capabilities, made) in [(FINE, 9, true), (ALONE, 8, false)] {
        let (_, id) = world.bound(index, file);
        let mut info = pack!(40_u32, 0_u32, id, 0_u32, 0_u64, 0_u32, 0_u32, 0_u64);
        world.call(file, 0x8a, &mut info).unwrap();
        assert_eq!(quad(&info, 32), capabilities);
        let hwpt = world.hwpt(file, id, ioas, DIRTY);
        assert_eq!(hwpt.is_ok(), made);
        if !made {
            assert_eq!(hwpt, Err(Errno::EOPNOTSUPP));
        }
    }
}

/// drivers/iommu/iommufd/device.c, iommufd_device_do_replace.
#[test]
fn a_device_that_moves_is_dirty_where_it_wrote() {
    let world = World::new();
    let (file, device, ioas, hwpt) = tracked(&world);
    let id = 2;
    track(&world, file, hwpt, 1).unwrap();
    let other = world.hwpt(file, id, ioas, DIRTY).unwrap();
    track(&world, file, other, 1).unwrap();
    assert!(world.dma_write(FINE, AT, 1));
    world.attach(device, other).unwrap();
    assert!(world.dma_write(FINE, AT + PAGE, 1));
    let plain = world.hwpt(file, id, ioas, 0).unwrap();
    world.attach(device, plain).unwrap();
    assert!(world.dma_write(FINE, AT + 2 * PAGE, 1));
    assert_eq!(bits(&world, file, hwpt, 0, PAGE), Ok(0b01));
    assert_eq!(bits(&world, file, other, 0, PAGE), Ok(0b10));
    assert_eq!(bits(&world, file, plain, 0, PAGE), Err(Errno::EOPNOTSUPP));
}
