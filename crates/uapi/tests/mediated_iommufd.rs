//! A mediated device in an iommufd: an access to an IOAS instead of a device
//! behind a page table. Rules 22, 23 and 32 of the kernel.

mod iommufd_world;

use iogate_host::Node;
use iogate_uapi::{Client, Errno};
use iommufd_world::*;

const ATTACH: u32 = 119;
const DETACH: u32 = 120;
const BOTH: u32 = FIXED | RW;

/// drivers/vfio/iommufd.c, vfio_iommufd_emulated_bind,
/// vfio_iommufd_emulated_attach_ioas; drivers/iommu/iommufd/device.c,
/// iommufd_access_change_ioas_id.
#[test]
fn a_mediated_device_is_attached_to_an_ioas_and_to_nothing_else() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (other, device_id) = world.bound(ALONE, file);
    let hwpt = world.hwpt(file, device_id, ioas, 0).unwrap();
    world.attach(other, hwpt).unwrap();
    let (device, id) = world.bound(MEDIATED, file);
    for wrong in [hwpt, device_id, id, 999] {
        assert_eq!(world.attach(device, wrong), Err(Errno::ENOENT), "{wrong}");
    }
    assert_eq!(world.attach(device, ioas), Ok(ioas));
    assert_eq!(world.attach(device, ioas), Ok(ioas));
    // It is no device of an IOMMU.
    assert_eq!(world.hwpt(file, id, ioas, 0), Err(Errno::ENOENT));
    let mut info = pack!(40_u32, 0_u32, id, 0_u32, 0_u64, 0_u32, 0_u32, 0_u64);
    assert_eq!(world.call(file, 0x8a, &mut info), Err(Errno::ENOENT));
    assert_eq!(world.destroy(file, id), Err(Errno::EBUSY));
    assert_eq!(world.destroy(file, ioas), Err(Errno::EBUSY));
}

/// drivers/vfio/device_cdev.c, vfio_df_ioctl_attach_pt, vfio_df_ioctl_detach_pt:
/// drivers of mediated devices have no operations with a PASID.
#[test]
fn a_mediated_device_has_no_pasids() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, _) = world.bound(MEDIATED, file);
    let unsupported = Err(Errno::EOPNOTSUPP);
    let mut with_pasid = pack!(16_u32, 1_u32, ioas, 1_u32);
    assert_eq!(world.call(device, ATTACH, &mut with_pasid), unsupported);
    let mut with_pasid = pack!(12_u32, 1_u32, 1_u32);
    assert_eq!(world.call(device, DETACH, &mut with_pasid), unsupported);
}

/// drivers/iommu/iommufd/device.c, iommufd_access_rw.
#[test]
fn its_view_of_memory_is_the_ioas_and_changes_with_it() {
    let world = World::new();
    let file = world.iommufd();
    let (first, second) = (world.ioas(file), world.ioas(file));
    world
        .map(file, first, BOTH, (HEAP, PAGE), 0x1_0000)
        .unwrap();
    let (device, _) = world.bound(MEDIATED, file);
    assert!(
        !world.dma_write(MEDIATED, 0x1_0000, 5),
        "attached to nothing"
    );
    world.attach(device, first).unwrap();
    assert!(world.dma_write(MEDIATED, 0x1_0000, 5));
    let mut byte = [0];
    world.program.read(HEAP, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    assert_eq!(world.pinned_frames(), 0);
    world.attach(device, second).unwrap();
    assert_eq!(world.dma_read(MEDIATED, 0x1_0000), None);
    world.attach(device, first).unwrap();
    assert_eq!(world.dma_read(MEDIATED, 0x1_0000), Some(5));
    world.unmap(file, first, 0x1_0000, PAGE).unwrap();
    assert_eq!(world.dma_read(MEDIATED, 0x1_0000), None);
    // A write-only mapping is enough for a write here.
    world
        .map(file, first, FIXED | W, (HEAP, PAGE), 0x1_0000)
        .unwrap();
    assert!(world.dma_write(MEDIATED, 0x1_0000, 6));
    assert_eq!(world.dma_read(MEDIATED, 0x1_0000), None);
    world.detach(device).unwrap();
    assert!(!world.dma_write(MEDIATED, 0x1_0000, 5));
    world.detach(device).unwrap();
    world.destroy(file, first).unwrap();
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_add_access: it may pin pages.
#[test]
fn mappings_have_to_be_of_whole_pages_for_a_mediated_device() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    world
        .map(file, ioas, BOTH, (HEAP + 8, 16), 0x1_0008)
        .unwrap();
    let (device, _) = world.bound(MEDIATED, file);
    assert_eq!(world.attach(device, ioas), Err(Errno::EADDRINUSE));
    world.unmap(file, ioas, 0x1_0008, 16).unwrap();
    world.attach(device, ioas).unwrap();
    assert_eq!(world.ranges(file, ioas).1, PAGE);
    assert_eq!(
        world.ranges(file, ioas).0,
        [(0, u64::MAX)],
        "no unit limits it"
    );
    world.detach(device).unwrap();
    assert_eq!(world.ranges(file, ioas).1, 1);
}

/// drivers/iommu/iommufd/device.c, iommufd_access_create: it holds the context;
/// no DMA is claimed, so that two iommufds may have devices of one machine.
#[test]
fn a_bound_mediated_device_keeps_the_iommufd_and_its_close_lets_go() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    world.map(file, ioas, BOTH, (HEAP, PAGE), 0x1_0000).unwrap();
    let (device, _) = world.bound(MEDIATED, file);
    world.attach(device, ioas).unwrap();
    assert_eq!(world.open(Node::Group(9)).err(), Some(Errno::EBUSY));
    world.close(file);
    assert!(world.dma_write(MEDIATED, 0x1_0000, 9));
    world.close(device);
    assert!(!world.dma_write(MEDIATED, 0x1_0000, 9));
    assert!(
        world
            .diary
            .take()
            .contains(&"detached ffff:00:00.0".to_owned())
    );
    assert!(world.open(Node::Group(9)).is_ok());
}

/// drivers/vfio/iommufd.c, vfio_iommufd_compat_attach_ioas.
#[test]
fn by_way_of_its_group_a_mediated_device_uses_the_ioas_for_vfio_calls() {
    let world = World::new();
    let file = world.iommufd();
    let group = world.open(Node::Group(9)).unwrap();
    let mut fd = file.fd.to_ne_bytes();
    world.call(group, 104, &mut fd).unwrap();
    let name = world.host.config().devices[MEDIATED].name.clone();
    let opened = world.host.device_file(9, name.as_bytes(), &world.program);
    let (device, retired) = opened.unwrap();
    assert!(retired.pages.is_empty());
    let mut map = pack!(32_u32, 3_u32, HEAP, 0x1_0000_u64, PAGE);
    world.call(file, 113, &mut map).unwrap();
    assert!(world.dma_write(MEDIATED, 0x1_0000, 3));
    let _ = world.host.close(device);
    assert!(!world.dma_write(MEDIATED, 0x1_0000, 3));
}
