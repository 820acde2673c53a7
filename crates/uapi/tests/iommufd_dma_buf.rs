//! Parts of BARs as buffers: VFIO_DEVICE_FEATURE_DMA_BUF, and rule 31 of the
//! kernel.

mod iommufd_world;

use iogate_uapi::Errno;
use iommufd_world::*;

const FEATURE: u32 = 117;
/// VFIO_DEVICE_FEATURE_DMA_BUF, to be got.
const GET: u32 = 11 | 1 << 16;
const AT: u64 = 0x10_0000;

fn request(region: u32, parts: &[(u64, u64)]) -> Vec<u8> {
    let argsz = 24 + 16 * parts.len() as u32;
    let mut bytes = pack!(argsz, GET, region, 0_u32, 0_u32, parts.len() as u32);
    for (offset, length) in parts {
        bytes.extend(pack!(*offset, *length));
    }
    bytes
}

fn refused(world: &World, device: Opened, mut bytes: Vec<u8>) -> Errno {
    world.call(device, FEATURE, &mut bytes).unwrap_err()
}

/// A buffer, and a descriptor of it.
fn export(world: &World, device: Opened, region: u32, parts: &[(u64, u64)]) -> i32 {
    let file = world.install(device, FEATURE, &request(region, parts));
    world.named(iogate_uapi::Named::Ours(file))
}

fn map(world: &World, file: Opened, ioas: u32, fd: i32, start: u64) -> Result<u64, Errno> {
    world.map_file(file, ioas, fd, (start, PAGE), AT)
}

fn command(world: &World, device: Opened, value: u16) {
    let at = iogate_uapi::region_offset(7) + 4;
    world.pwrite(device, at, &value.to_le_bytes());
}

/// drivers/vfio/pci/vfio_pci_dmabuf.c, vfio_pci_core_feature_dma_buf,
/// validate_dmabuf_input, vfio_pci_core_fill_phys_vec.
#[test]
fn the_checks_of_an_export_come_in_the_kernels_order() {
    let world = World::new();
    let file = world.iommufd();
    let (device, _) = world.bound(WITH_BARS, file);
    let page = [(0, PAGE)];
    assert_eq!(refused(&world, device, request(6, &[])), Errno::EINVAL);
    assert_eq!(refused(&world, device, request(6, &page)), Errno::ENODEV);
    let mut flags = request(0, &page);
    flags[16] = 1;
    assert_eq!(refused(&world, device, flags), Errno::EINVAL);
    for part in [(0, 0), (1, PAGE), (0, 1), (0, 3 * PAGE), (2 * PAGE, PAGE)] {
        let errno = refused(&world, device, request(0, &[part]));
        assert_eq!(errno, Errno::EINVAL, "{part:?}");
    }
    let wraps = [(!0xfff, 2 * PAGE)];
    assert_eq!(
        refused(&world, device, request(0, &wraps)),
        Errno::EOVERFLOW
    );
    for absent in [1, 3] {
        let errno = refused(&world, device, request(absent, &page));
        assert_eq!(errno, Errno::EINVAL, "ports, or no BAR at all");
    }
    let mut probe = pack!(8_u32, 11_u32 | 1 << 16 | 1 << 18);
    assert_eq!(world.call(device, FEATURE, &mut probe), Ok(0));
    let mut set = pack!(64_u32, 11_u32 | 1 << 17);
    assert_eq!(world.call(device, FEATURE, &mut set), Err(Errno::EINVAL));
    let mut short = pack!(20_u32, GET, 0_u32);
    assert_eq!(world.call(device, FEATURE, &mut short), Err(Errno::EINVAL));
}

/// drivers/iommu/iommufd/pages.c, iopt_map_dmabuf, iopt_revoke_notify;
/// drivers/vfio/pci/vfio_pci_dmabuf.c, vfio_pci_dma_buf_move.
#[test]
fn another_device_reaches_an_exported_bar_until_it_is_taken_back() {
    let world = World::new();
    let file = world.iommufd();
    let (device, _) = world.bound(WITH_BARS, file);
    let fd = export(&world, device, 0, &[(PAGE, PAGE)]);
    let ioas = world.ioas(file);
    let (peer, _) = world.bound(ALONE, file);
    world.attach(peer, ioas).unwrap();
    map(&world, file, ioas, fd, 0).unwrap();
    assert!(world.dma_write(ALONE, AT + 5, 0x5a));
    assert_eq!(world.dma_read(ALONE, AT + 5), Some(0x5a));
    assert_eq!(world.bar_byte(PAGE + 5), 0x5a);
    command(&world, device, 0);
    assert_eq!(world.dma_read(ALONE, AT + 5), None);
    assert_eq!(map(&world, file, ioas, fd, 0), Err(Errno::ENODEV));
    command(&world, device, 2);
    assert_eq!(world.dma_read(ALONE, AT + 5), None, "gone for good");
    assert_eq!(
        map(&world, file, ioas, fd, 0),
        Err(Errno::EEXIST),
        "the area stays"
    );
    world.unmap(file, ioas, AT, PAGE).unwrap();
    map(&world, file, ioas, fd, 0).unwrap();
    assert_eq!(world.dma_read(ALONE, AT + 5), Some(0x5a));
    world.raw(device, 111, 0).unwrap();
    assert_eq!(world.dma_read(ALONE, AT + 5), None, "after a reset");
    world.unmap(file, ioas, AT, PAGE).unwrap();
    map(&world, file, ioas, fd, 0).unwrap();
    world.close(device);
    assert_eq!(world.dma_read(ALONE, AT + 5), None, "after its close");
    world.unmap(file, ioas, AT, PAGE).unwrap();
    let (again, _) = world.bound(WITH_BARS, file);
    command(&world, again, 2);
    assert_eq!(map(&world, file, ioas, fd, 0), Err(Errno::ENODEV));
}

/// drivers/vfio/pci/vfio_pci_core.c, vfio_pci_runtime_pm_entry,
/// vfio_pci_runtime_pm_exit.
#[test]
fn a_device_in_low_power_has_taken_its_buffers_back() {
    let world = World::new();
    let file = world.iommufd();
    let (device, _) = world.bound(WITH_BARS, file);
    let fd = export(&world, device, 0, &[(0, PAGE)]);
    let ioas = world.ioas(file);
    let (peer, _) = world.bound(ALONE, file);
    world.attach(peer, ioas).unwrap();
    map(&world, file, ioas, fd, 0).unwrap();
    assert!(world.dma_write(ALONE, AT, 0x5a));
    let set = |feature: u32| world.call(device, FEATURE, &mut pack!(8_u32, feature | 1 << 17));
    set(3).unwrap();
    assert_eq!(world.dma_read(ALONE, AT), None);
    world.unmap(file, ioas, AT, PAGE).unwrap();
    assert_eq!(map(&world, file, ioas, fd, 0), Err(Errno::ENODEV));
    set(5).unwrap();
    map(&world, file, ioas, fd, 0).unwrap();
    assert_eq!(world.dma_read(ALONE, AT), Some(0x5a));
}

/// drivers/iommu/iommufd/pages.c, iopt_pages_rw_access: EINVAL.
#[test]
fn a_mediated_device_does_not_reach_a_buffer_that_a_device_reaches() {
    let world = World::new();
    let file = world.iommufd();
    let (device, _) = world.bound(WITH_BARS, file);
    let fd = export(&world, device, 0, &[(0, PAGE)]);
    let ioas = world.ioas(file);
    map(&world, file, ioas, fd, 0).unwrap();
    let (mediated, _) = world.bound(MEDIATED, file);
    world.attach(mediated, ioas).unwrap();
    assert_eq!(world.dma_read(MEDIATED, AT), None);
    let (peer, _) = world.bound(ALONE, file);
    world.attach(peer, ioas).unwrap();
    assert_eq!(world.dma_read(ALONE, AT), Some(0));
    assert_eq!(world.dma_read(MEDIATED, AT), None);
    assert!(!world.dma_write(MEDIATED, AT, 1));
}

/// drivers/vfio/pci/vfio_pci_dmabuf.c, vfio_pci_dma_buf_iommufd_map.
#[test]
fn only_a_buffer_of_one_part_is_mapped_and_not_past_its_end() {
    let world = World::new();
    let file = world.iommufd();
    let (device, _) = world.bound(WITH_BARS, file);
    let ioas = world.ioas(file);
    let two = export(&world, device, 0, &[(0, PAGE), (PAGE, PAGE)]);
    assert_eq!(map(&world, file, ioas, two, 0), Err(Errno::EOPNOTSUPP));
    let one = export(&world, device, 0, &[(0, PAGE)]);
    assert_eq!(map(&world, file, ioas, one, PAGE), Err(Errno::EINVAL));
}

/// drivers/iommu/iommufd/pages.c, iopt_area_fill_domain: what was taken back
/// meanwhile is left out.
#[test]
fn a_buffer_that_was_taken_back_before_a_device_comes_is_out_of_its_reach() {
    let world = World::new();
    let file = world.iommufd();
    let (device, _) = world.bound(WITH_BARS, file);
    let fd = export(&world, device, 0, &[(0, PAGE)]);
    let ioas = world.ioas(file);
    map(&world, file, ioas, fd, 0).unwrap();
    command(&world, device, 0);
    command(&world, device, 2);
    let (peer, _) = world.bound(ALONE, file);
    world.attach(peer, ioas).unwrap();
    assert_eq!(world.dma_read(ALONE, AT), None);
}
