//! Devices without IOMMU in a container: rule 48 of the kernel.

mod legacy_world;

use std::sync::atomic::Ordering;

use iogate_dma::FaultReason;
use iogate_host::Node;
use iogate_uapi::Errno;
use legacy_world::{ARGUMENT, BARE, FIRST, HEAP, NAMES, PAGE, World, group_of, number, word};

const TYPE1: u64 = 1;
const TYPE1_V2: u64 = 3;
const NO_IOMMU: u64 = 8;

fn allow(world: &World, yes: bool) {
    world.program.has_raw_io.store(yes, Ordering::SeqCst);
}

/// drivers/vfio/group.c, vfio_group_fops_open; container.c,
/// vfio_container_attach_group, vfio_noiommu_open, vfio_group_use_container.
#[test]
fn every_step_towards_a_device_without_iommu_wants_cap_sys_rawio() {
    let world = World::new();
    let node = Node::Group(group_of(BARE));
    let denied = Some(Errno::EPERM);
    let container = world.open(Node::Container).unwrap();
    assert_eq!(world.open(node).err(), denied);
    allow(&world, true);
    let group = world.open(node).unwrap();
    allow(&world, false);
    // Also where it is open already.
    assert_eq!(world.open(node).err(), denied);
    assert_eq!(world.set_container(group, container).err(), denied);
    allow(&world, true);
    assert_eq!(world.open(node).err(), Some(Errno::EBUSY));
    world.set_container(group, container).unwrap();
    allow(&world, false);
    assert_eq!(world.raw(container, number(2), NO_IOMMU).err(), denied);
    assert_eq!(
        world.raw(container, number(2), TYPE1_V2),
        Err(Errno::ENODEV)
    );
    allow(&world, true);
    assert_eq!(world.device_fd(group, NAMES[BARE]), Err(Errno::EINVAL));
    world.raw(container, number(2), NO_IOMMU).unwrap();
    allow(&world, false);
    assert_eq!(world.device_fd(group, NAMES[BARE]).err(), denied);
    allow(&world, true);
    let device = world.device_fd(group, NAMES[BARE]).unwrap();
    world.config(device, 0);
    let status = world.ask(group, 3, pack!(8_u32, 0_u32)).unwrap();
    assert_eq!(word(&status, 4), 3);
}

/// drivers/vfio/container.c, vfio_noiommu_ioctl, vfio_iommu_driver_allowed,
/// vfio_container_ioctl_check_extension.
#[test]
fn a_container_of_devices_without_iommu_knows_nothing_else() {
    let world = World::new();
    allow(&world, true);
    let container = world.open(Node::Container).unwrap();
    let extension = |id| world.raw(container, number(1), id);
    assert_eq!([extension(TYPE1), extension(NO_IOMMU)], [Ok(1), Ok(1)]);
    let map = || world.map(container, 3, (HEAP, 0x1000, PAGE));
    let group = world.group(BARE);
    world.set_container(group, container).unwrap();
    assert_eq!([extension(TYPE1), extension(NO_IOMMU)], [Ok(0), Ok(1)]);
    assert_eq!(map(), Err(Errno::EINVAL));
    world.raw(container, number(2), NO_IOMMU).unwrap();
    let again = world.raw(container, number(2), NO_IOMMU);
    assert_eq!(again, Err(Errno::EINVAL));
    assert_eq!([extension(TYPE1), extension(NO_IOMMU)], [Ok(0), Ok(1)]);
    assert_eq!(map(), Err(Errno::ENOTTY));
    for n in [12, 14, 17] {
        let known = world.raw(container, number(n), ARGUMENT);
        assert_eq!(known, Err(Errno::ENOTTY), "{n}");
    }
    // Without a group the container is anybody's again.
    world.raw(group, number(5), 0).unwrap();
    let first = world.group(FIRST);
    world.set_container(first, container).unwrap();
    assert_eq!([extension(TYPE1), extension(NO_IOMMU)], [Ok(1), Ok(0)]);
    let wrong = world.raw(container, number(2), NO_IOMMU);
    assert_eq!(wrong, Err(Errno::ENODEV));
    world.raw(container, number(2), TYPE1_V2).unwrap();
    assert_eq!(extension(NO_IOMMU), Ok(0));
}

/// drivers/vfio/container.c, vfio_container_attach_group.
#[test]
fn devices_with_and_without_iommu_do_not_mix() {
    let world = World::new();
    allow(&world, true);
    let (container, _) = world.container(FIRST, TYPE1_V2);
    let bare = world.group(BARE);
    assert_eq!(world.set_container(bare, container), Err(Errno::EPERM));
    let other = world.open(Node::Container).unwrap();
    world.set_container(bare, other).unwrap();
    let second = world.group(legacy_world::SECOND);
    assert_eq!(world.set_container(second, other), Err(Errno::EPERM));
}

#[test]
fn a_physical_address_is_refused_because_nobody_has_named_what_is_there() {
    let world = World::new();
    assert_eq!(
        world.dma(BARE, 0x1000, &mut [0]),
        Err(FaultReason::Physical)
    );
}
