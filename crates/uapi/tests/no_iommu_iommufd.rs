//! A device without IOMMU whose group's container is an iommufd: rule 48 of the
//! kernel.

mod iommufd_world;

use iogate_host::{ErrorKind, Node};
use iogate_uapi::Errno;
use iommufd_world::*;

const SET_IOMMU: u32 = 102;
const SET_CONTAINER: u32 = 104;
const NO_IOMMU: u64 = 8;

fn allow(world: &World, yes: bool) {
    *world.program.privileged.lock().unwrap() = yes;
}

/// The group of the device without IOMMU, opened.
fn group(world: &World) -> Opened {
    allow(world, true);
    world.open(Node::Group(10)).unwrap()
}

fn set(world: &World, group: Opened, file: Opened) -> Result<i64, Errno> {
    world.call(group, SET_CONTAINER, &mut file.fd.to_ne_bytes())
}

fn device(world: &World) -> Option<ErrorKind> {
    let name = world.host.config().devices[BARE].name.clone();
    let opened = world.host.device_file(10, name.as_bytes(), &world.program);
    opened.err().map(|failure| failure.error.kind)
}

/// drivers/iommu/iommufd/vfio_compat.c, iommufd_vfio_compat_set_no_iommu,
/// iommufd_vfio_compat_ioas_create, iommufd_vfio_set_iommu.
#[test]
fn an_iommufd_is_for_devices_with_an_iommu_or_without() {
    let world = World::new();
    let bare = group(&world);
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let vfio_ioas = |op: u16| pack!(12_u32, ioas, op, 0_u16);
    world.call(file, 0x88, &mut vfio_ioas(1)).unwrap();
    assert_eq!(set(&world, bare, file), Err(Errno::EINVAL));
    world.call(file, 0x88, &mut vfio_ioas(2)).unwrap();
    set(&world, bare, file).unwrap();
    let other = world.open(Node::Group(2)).unwrap();
    assert_eq!(set(&world, other, file), Err(Errno::EINVAL));
    assert_eq!(world.raw(file, 101, NO_IOMMU), Ok(1));
    assert_eq!(world.raw(file, SET_IOMMU, 3), Err(Errno::EINVAL));
    allow(&world, false);
    assert_eq!(world.raw(file, SET_IOMMU, NO_IOMMU), Err(Errno::EPERM));
    allow(&world, true);
    assert_eq!(world.raw(file, SET_IOMMU, NO_IOMMU), Ok(0));
    let plain = world.iommufd();
    assert_eq!(world.raw(plain, SET_IOMMU, NO_IOMMU), Err(Errno::EINVAL));
}

/// drivers/vfio/group.c, vfio_df_group_open.
#[test]
fn opening_the_device_wants_the_capability_and_no_ioas_for_vfio_calls() {
    let world = World::new();
    let bare = group(&world);
    let file = world.iommufd();
    set(&world, bare, file).unwrap();
    allow(&world, false);
    assert_eq!(device(&world), Some(ErrorKind::NotPermitted));
    allow(&world, true);
    let ioas = world.ioas(file);
    let mut vfio_ioas = pack!(12_u32, ioas, 1_u16, 0_u16);
    world.call(file, 0x88, &mut vfio_ioas).unwrap();
    assert_eq!(device(&world), Some(ErrorKind::NotPermitted));
    let mut clear = pack!(12_u32, ioas, 2_u16, 0_u16);
    world.call(file, 0x88, &mut clear).unwrap();
    assert_eq!(device(&world), None);
}
