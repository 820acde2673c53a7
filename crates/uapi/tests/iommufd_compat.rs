//! The calls of a VFIO container on an iommufd: rule 46 of the kernel, and rule
//! 21 as far as it leads there.

mod iommufd_world;

use iogate_host::{ErrorKind, FileId, Node, Retired};
use iogate_uapi::Errno;
use iommufd_world::*;

const API_VERSION: u32 = 100;
const CHECK_EXTENSION: u32 = 101;
const SET_IOMMU: u32 = 102;
const GET_INFO: u32 = 112;
const MAP_DMA: u32 = 113;
const UNMAP_DMA: u32 = 114;
const VFIO_IOAS: u32 = 0x88;

const TYPE1: u64 = 1;
const TYPE1_V2: u64 = 3;
const COHERENT: u64 = 4;

fn set(world: &World, file: Opened, ioas: u32) {
    let mut bytes = pack!(12_u32, ioas, 1_u16, 0_u16);
    world.call(file, VFIO_IOAS, &mut bytes).unwrap();
}

/// An iommufd whose VFIO calls are about an IOAS that has a device.
fn with_device(world: &World, index: usize) -> (Opened, u32) {
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, _) = world.bound(index, file);
    world.attach(device, ioas).unwrap();
    set(world, file, ioas);
    (file, ioas)
}

fn map(world: &World, file: Opened, flags: u32, iova: u64, size: u64) -> Result<i64, Errno> {
    world.call(file, MAP_DMA, &mut pack!(32_u32, flags, HEAP, iova, size))
}

fn unmap(world: &World, file: Opened, flags: u32, iova: u64, size: u64) -> Result<u64, Errno> {
    let mut bytes = pack!(24_u32, flags, iova, size);
    world.call(file, UNMAP_DMA, &mut bytes)?;
    Ok(quad(&bytes, 16))
}

/// drivers/iommu/iommufd/vfio_compat.c, get_compat_ioas.
#[test]
fn without_an_ioas_every_call_about_one_is_enodev_after_its_own_checks() {
    let world = World::new();
    let file = world.iommufd();
    assert_eq!(world.raw(file, API_VERSION, 0), Ok(0));
    assert_eq!(world.raw(file, CHECK_EXTENSION, TYPE1_V2), Ok(1));
    assert_eq!(world.raw(file, CHECK_EXTENSION, 77), Ok(0));
    let none = Err(Errno::ENODEV);
    assert_eq!(world.raw(file, CHECK_EXTENSION, COHERENT), none);
    assert_eq!(world.raw(file, SET_IOMMU, TYPE1), none);
    assert_eq!(world.raw(file, SET_IOMMU, 9), Err(Errno::EINVAL));
    assert_eq!(map(&world, file, 3, 0, PAGE), none);
    assert_eq!(map(&world, file, 1 << 31, 0, PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(&world, file, 0, 0, PAGE), Err(Errno::ENODEV));
    assert_eq!(unmap(&world, file, 1 << 31, 0, 0), Err(Errno::EINVAL));
    let mut info = pack!(24_u32, 0_u32, 0_u64, 0_u32, 0_u32);
    assert_eq!(world.call(file, GET_INFO, &mut info), none);
    assert_eq!(
        world.raw(file, 117, 0),
        Err(Errno::ENOTTY),
        "no dirty pages"
    );
}

/// drivers/iommu/iommufd/vfio_compat.c, iommufd_vfio_ioas; main.c,
/// iommufd_object_remove.
#[test]
fn the_ioas_of_vfio_calls_is_set_read_cleared_and_forgotten_with_its_object() {
    let world = World::new();
    let file = world.iommufd();
    let call = |ioas: u32, op: u16| {
        let mut bytes = pack!(12_u32, ioas, op, 0_u16);
        world.call(file, VFIO_IOAS, &mut bytes)?;
        Ok(word(&bytes, 4))
    };
    assert_eq!(call(0, 0), Err(Errno::ENODEV));
    assert_eq!(call(5, 1), Err(Errno::ENOENT));
    let ioas = world.ioas(file);
    assert_eq!(call(ioas, 1), Ok(ioas));
    assert_eq!(call(0, 0), Ok(ioas));
    assert_eq!(call(0, 2), Ok(0));
    assert_eq!(call(0, 0), Err(Errno::ENODEV));
    assert_eq!(call(0, 3), Err(Errno::EOPNOTSUPP));
    set(&world, file, ioas);
    world.destroy(file, ioas).unwrap();
    assert_eq!(call(0, 0), Err(Errno::ENODEV));
}

/// drivers/iommu/iommufd/vfio_compat.c, iommufd_vfio_map_dma,
/// iommufd_vfio_unmap_dma.
#[test]
fn an_empty_unmap_succeeds_and_a_split_is_enoent() {
    let world = World::new();
    let (file, _) = with_device(&world, ALONE);
    assert_eq!(world.raw(file, SET_IOMMU, TYPE1_V2), Ok(0));
    assert_eq!(map(&world, file, 3, 0x1_0000, 2 * PAGE), Ok(0));
    assert_eq!(world.dma_read(ALONE, 0x1_0000 + PAGE), Some(0));
    assert_eq!(unmap(&world, file, 0, 0x1_0000, PAGE), Err(Errno::ENOENT));
    assert_eq!(unmap(&world, file, 0, 0x1_0000, 2 * PAGE), Ok(2 * PAGE));
    assert_eq!(unmap(&world, file, 0, 0x1_0000, 2 * PAGE), Ok(0));
    assert_eq!(world.dma_read(ALONE, 0x1_0000), None);
}

/// drivers/iommu/iommufd/vfio_compat.c, iommufd_vfio_unmap_dma.
#[test]
fn an_unmap_of_all_wants_no_range_and_no_other_flag_is_known() {
    let world = World::new();
    let (file, _) = with_device(&world, ALONE);
    map(&world, file, 3, 0x1_0000, PAGE).unwrap();
    map(&world, file, 3, 0x9_0000, PAGE).unwrap();
    assert_eq!(unmap(&world, file, 2, 0, PAGE), Err(Errno::EINVAL));
    for flag in [1, 4] {
        assert_eq!(unmap(&world, file, flag, 0, 0), Err(Errno::EINVAL));
    }
    assert_eq!(unmap(&world, file, 2, 0, 0), Ok(2 * PAGE));
    assert_eq!(unmap(&world, file, 2, 0, 0), Ok(0));
}

/// drivers/iommu/iommufd/vfio_compat.c, iommufd_vfio_map_dma.
#[test]
fn a_mapping_that_allows_nothing_is_made_all_the_same() {
    let world = World::new();
    let (file, _) = with_device(&world, ALONE);
    assert_eq!(map(&world, file, 0, 0x1_0000, PAGE), Ok(0));
    assert_eq!(world.dma_read(ALONE, 0x1_0000), None);
    assert_eq!(unmap(&world, file, 0, 0x1_0000, PAGE), Ok(PAGE));
}

/// drivers/iommu/iommufd/vfio_compat.c, iommufd_vfio_set_iommu.
#[test]
fn the_older_type_maps_by_single_pages() {
    let world = World::new();
    let (file, ioas) = with_device(&world, ALONE);
    assert_eq!(world.option(file, (1, 1), ioas, 3), Ok(1));
    assert_eq!(world.raw(file, SET_IOMMU, TYPE1), Ok(0));
    assert_eq!(world.option(file, (1, 1), ioas, 3), Ok(0));
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_cut_iova, iopt_area_split.
#[test]
fn the_older_type_unmaps_any_pages_of_a_mapping_and_devices_keep_the_others() {
    let world = World::new();
    let (file, _) = with_device(&world, ALONE);
    assert_eq!(world.raw(file, SET_IOMMU, TYPE1), Ok(0));
    assert_eq!(map(&world, file, 3, 0x1_0000, 16 * PAGE), Ok(0));
    for page in 0..16 {
        let at = 0x1_0000 + page * PAGE;
        assert!(world.dma_write(ALONE, at, page as u8 + 1));
    }
    let at = |page: u64| 0x1_0000 + page * PAGE;
    let invalid = Err(Errno::EINVAL);
    assert_eq!(unmap(&world, file, 0, at(4) + 0x800, PAGE), invalid);
    assert_eq!(unmap(&world, file, 0, at(4), 2 * PAGE), Ok(2 * PAGE));
    assert_eq!(unmap(&world, file, 0, at(0), PAGE), Ok(PAGE));
    assert_eq!(unmap(&world, file, 0, at(15), PAGE), Ok(PAGE));
    for page in 0..16 {
        let gone = [0, 4, 5, 15].contains(&page);
        let expected = (!gone).then_some(page as u8 + 1);
        assert_eq!(world.dma_read(ALONE, at(page)), expected, "{page}");
    }
    // Memory that the program takes away behind one part is that part's loss.
    world.take(HEAP + 7 * PAGE);
    assert_eq!(world.dma_read(ALONE, at(7)), None);
    assert_eq!(unmap(&world, file, 0, at(6), PAGE), Ok(PAGE));
    assert_eq!(world.dma_read(ALONE, at(7)), None);
    assert_eq!(world.dma_read(ALONE, at(8)), Some(9));
    world.take(HEAP + 9 * PAGE);
    assert_eq!(world.dma_read(ALONE, at(9)), None);
    assert_eq!(unmap(&world, file, 0, at(0), 16 * PAGE), Ok(11 * PAGE));
    assert_eq!(world.pinned_frames(), 0);
    assert_eq!(unmap(&world, file, 0, at(0), 16 * PAGE), Ok(0));
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_area_split.
#[test]
fn a_mapping_with_pages_that_an_access_pinned_is_not_cut() {
    let world = World::new();
    let (file, ioas) = with_device(&world, ALONE);
    assert_eq!(world.raw(file, SET_IOMMU, TYPE1), Ok(0));
    assert_eq!(map(&world, file, 3, 0x1_0000, 4 * PAGE), Ok(0));
    let mode = iogate_host::iommufd::AccessMode::Pins;
    let access = world.host.access_create(file.file, ioas, mode).unwrap();
    let span = iogate_dma::Span::with_length(iogate_dma::Iova(0x1_0000), PAGE).unwrap();
    let rights = iogate_dma::Rights::READ;
    let pinned = world.host.access_pin(access, span, rights).unwrap().id;
    assert_eq!(unmap(&world, file, 0, 0x1_0000, PAGE), Err(Errno::EINVAL));
    finish(world.host.access_unpin(access, pinned).unwrap());
    assert_eq!(unmap(&world, file, 0, 0x1_0000, PAGE), Ok(PAGE));
}

/// drivers/iommu/iommufd/vfio_compat.c, iommufd_vfio_cc_iommu.
#[test]
fn coherency_is_that_of_every_page_table() {
    let world = World::new();
    let (file, ioas) = with_device(&world, ALONE);
    assert_eq!(world.raw(file, CHECK_EXTENSION, COHERENT), Ok(1));
    let (device, _) = world.bound(NARROW, file);
    world.attach(device, ioas).unwrap();
    assert_eq!(world.raw(file, CHECK_EXTENSION, COHERENT), Ok(0));
}

/// drivers/iommu/iommufd/vfio_compat.c, iommufd_vfio_iommu_get_info.
#[test]
fn the_size_of_the_information_is_always_told_and_nothing_is_written_past_the_callers() {
    let world = World::new();
    let (file, _) = with_device(&world, ALONE);
    let whole = 24 + 16 + 16 + 2 * 16;
    for room in [16_u32, 20, 24, 48, 87, 88, 200] {
        let mut bytes = vec![0xaa; 256];
        bytes[..4].copy_from_slice(&room.to_ne_bytes());
        world.call(file, GET_INFO, &mut bytes).unwrap();
        assert_eq!(word(&bytes, 0), whole, "of {room}");
        assert_eq!(word(&bytes, 4), 3);
        assert_eq!(quad(&bytes, 8), 0x4020_1000);
        if room >= 24 {
            let offset = if room >= whole { 24 } else { 0 };
            assert_eq!(word(&bytes, 16), offset, "of {room}");
        }
        let end = room.min(whole) as usize;
        assert!(bytes[end..].iter().all(|byte| *byte == 0xaa), "{room}");
        if room >= whole {
            assert_eq!(word(&bytes, 24), 1 << 16 | 3, "mappings left come first");
            assert_eq!(word(&bytes, 32), u32::MAX);
            assert_eq!((word(&bytes, 28), word(&bytes, 40)), (40, 1 << 16 | 1));
            assert_eq!(word(&bytes, 48), 2);
        }
    }
    let mut short = pack!(15_u32, 0_u32, 0_u64);
    assert_eq!(world.call(file, GET_INFO, &mut short), Err(Errno::EINVAL));
}

const GROUP_GET_STATUS: u32 = 103;
const GROUP_SET_CONTAINER: u32 = 104;
const GROUP_UNSET_CONTAINER: u32 = 105;
/// The number of [`ALONE`]'s group, and of that of the twins.
const GROUP: u32 = 2;
const TWINS: u32 = 1;

fn in_iommufd(world: &World, number: u32, file: Opened) -> Opened {
    let group = world.open(Node::Group(number)).unwrap();
    let mut fd = file.fd.to_ne_bytes();
    world.call(group, GROUP_SET_CONTAINER, &mut fd).unwrap();
    group
}

fn device(world: &World, number: u32, index: usize) -> Result<FileId, ErrorKind> {
    let name = &world.host.config().devices[index].name;
    let opened = world
        .host
        .device_file(number, name.as_bytes(), &world.program);
    let (file, retired) = opened.map_err(|failure| failure.error.kind)?;
    finish(retired);
    Ok(file)
}

fn finish(retired: Retired) {
    retired.grace.into_iter().for_each(iogate_dma::Grace::wait);
    drop(retired.pages);
}

/// drivers/vfio/group.c, vfio_group_ioctl_set_container, vfio_df_group_open;
/// drivers/vfio/iommufd.c, vfio_iommufd_compat_attach_ioas.
#[test]
fn a_group_takes_an_iommufd_for_its_container_and_its_devices_use_the_ioas() {
    let world = World::new();
    let file = world.iommufd();
    let group = in_iommufd(&world, GROUP, file);
    assert_eq!(
        world.raw(file, SET_IOMMU, TYPE1_V2),
        Ok(0),
        "it has an IOAS"
    );
    let mut status = pack!(8_u32, 0_u32);
    world.call(group, GROUP_GET_STATUS, &mut status).unwrap();
    assert_eq!(word(&status, 4), 3);
    let mut fd = file.fd.to_ne_bytes();
    let again = world.call(group, GROUP_SET_CONTAINER, &mut fd);
    assert_eq!(again, Err(Errno::EINVAL));
    let opened = device(&world, GROUP, ALONE).unwrap();
    map(&world, file, 3, 0x1_0000, PAGE).unwrap();
    assert_eq!(world.dma_read(ALONE, 0x1_0000), Some(0));
    let second = device(&world, GROUP, ALONE).unwrap();
    let unset = || world.raw(group, GROUP_UNSET_CONTAINER, 0);
    assert_eq!(unset(), Err(Errno::EBUSY));
    finish(world.host.close(opened));
    assert_eq!(world.dma_read(ALONE, 0x1_0000), Some(0));
    finish(world.host.close(second));
    assert_eq!(world.dma_read(ALONE, 0x1_0000), None);
    assert_eq!(unset(), Ok(0));
    assert_eq!(unset(), Err(Errno::EINVAL));
    assert_eq!(device(&world, GROUP, ALONE), Err(ErrorKind::Invalid));
}

/// drivers/vfio/group.c, vfio_group_ioctl_set_container.
#[test]
fn a_group_holds_its_iommufd_and_lets_go_of_it_with_its_last_file() {
    let world = World::new();
    let file = world.iommufd();
    let group = in_iommufd(&world, GROUP, file);
    map(&world, file, 3, 0x1_0000, PAGE).unwrap();
    world.close(file);
    let opened = device(&world, GROUP, ALONE).unwrap();
    assert_eq!(world.dma_read(ALONE, 0x1_0000), Some(0));
    world.close(group);
    assert_eq!(world.dma_read(ALONE, 0x1_0000), Some(0));
    finish(world.host.close(opened));
    assert_eq!(world.dma_read(ALONE, 0x1_0000), None);
    assert_eq!(world.pinned_frames(), 0);
}

/// drivers/iommu/iommufd/vfio_compat.c, iommufd_vfio_compat_ioas_create,
/// iommufd_vfio_compat_ioas_get_id; drivers/vfio/group.c.
#[test]
fn what_an_iommufd_lacks_shows_when_a_device_is_opened() {
    let world = World::new();
    let file = world.iommufd();
    let own = world.ioas(file);
    set(&world, file, own);
    let group = in_iommufd(&world, TWINS, file);
    let mut cleared = pack!(12_u32, 0_u32, 2_u16, 0_u16);
    world.call(file, VFIO_IOAS, &mut cleared).unwrap();
    assert_eq!(device(&world, TWINS, TWIN_A), Err(ErrorKind::NoDevice));
    set(&world, file, own);
    let twins = [TWIN_A, TWIN_B].map(|index| device(&world, TWINS, index).unwrap());
    assert_eq!(world.destroy(file, own), Err(Errno::EBUSY));
    for twin in twins {
        finish(world.host.close(twin));
    }
    map(&world, file, 3, 0xfee0_0000, PAGE).unwrap();
    assert_eq!(device(&world, TWINS, TWIN_A), Err(ErrorKind::AddressInUse));
    world.close(group);
    let (bound, _) = world.bound(TWIN_A, world.iommufd());
    world.close(bound);
}

/// drivers/iommu/iommufd/vfio_compat.c, iommufd_vfio_map_dma; mm/gup.c,
/// check_vma_flags. The older container maps it: vfio_iommu_type1.c,
/// vaddr_get_pfns.
#[test]
fn a_mapping_of_a_device_file_is_refused_by_either_type() {
    for kind in [TYPE1, TYPE1_V2] {
        let world = World::new();
        let (file, _) = with_device(&world, ALONE);
        world.raw(file, SET_IOMMU, kind).unwrap();
        *world.program.process.device.lock().unwrap() = Some(HEAP / PAGE);
        assert_eq!(map(&world, file, 3, 0x1000, PAGE), Err(Errno::EFAULT));
        assert_eq!(world.pinned_frames(), 0);
    }
}
