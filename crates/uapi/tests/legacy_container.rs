//! Containers and groups: rules 1 to 5, 7, 8, 17, 18 and 20 of the notes on the
//! kernel's uAPI, each as a test whose first line names the kernel's function.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod legacy_world;

use iogate_dma::FaultReason;
use iogate_host::Node;
use iogate_uapi::Errno;

use legacy_world::{
    ARGUMENT, FIRST, HEAP, NAMES, NARROW, PAGE, PLAIN, SECOND, TAKEN, TWIN, World, group_of,
    number, quad, word,
};

const VIABLE: u32 = 1;
const CONTAINER_SET: u32 = 2;

fn status(world: &World, group: iogate_host::FileId) -> u32 {
    word(&world.ask(group, 3, pack!(8_u32, 0_u32)).unwrap(), 4)
}

fn extension(world: &World, container: iogate_host::FileId, id: u64) -> i64 {
    world.raw(container, number(1), id).unwrap()
}

/// drivers/vfio/group.c, vfio_group_fops_open. Rule 1.
#[test]
fn a_group_has_one_opener_and_none_while_a_device_of_it_is_bound_by_its_own_node() {
    let world = World::new();
    let group = world.group(FIRST);
    assert_eq!(world.open(Node::Group(group_of(FIRST))), Err(Errno::EBUSY));
    world.close(group);
    let device = world.open(Node::Device(FIRST)).unwrap();
    let iommufd = world.open(Node::Iommufd).unwrap();
    let fd = world.program.fd(iommufd);
    world
        .call(device, 18, &mut pack!(16_u32, 0_u32, fd, 0_u32))
        .unwrap();
    assert_eq!(world.open(Node::Group(group_of(FIRST))), Err(Errno::EBUSY));
    world.close(device);
    world.group(FIRST);
    assert_eq!(world.open(Node::Group(99)), Err(Errno::ENODEV));
}

/// drivers/vfio/group.c, vfio_group_ioctl_set_container. Rule 2.
#[test]
fn a_group_is_set_to_a_container_once_and_only_if_nobody_else_does_its_dma() {
    let world = World::new();
    let container = world.open(Node::Container).unwrap();
    let group = world.group(FIRST);
    let set = |argument: i32| world.call(group, 4, &mut pack!(argument));
    assert_eq!(set(-1), Err(Errno::EBADF));
    assert_eq!(set(999), Err(Errno::EBADF));
    assert_eq!(set(world.program.other_fd()), Err(Errno::EBADFD));
    assert_eq!(set(world.program.fd(group)), Err(Errno::EBADFD));
    assert_eq!(world.raw(group, number(4), 0), Err(Errno::EFAULT));
    let fd = world.program.fd(container);
    assert_eq!(set(fd), Ok(0));
    assert_eq!(set(fd), Err(Errno::EINVAL));
    // That it has one is seen before what the descriptor is.
    assert_eq!(set(world.program.other_fd()), Err(Errno::EINVAL));
    let taken = world.group(TAKEN);
    assert_eq!(world.set_container(taken, container), Err(Errno::EPERM));
    assert_eq!(status(&world, taken), 0);
}

/// drivers/vfio/group.c, vfio_group_ioctl_get_status.
#[test]
fn the_status_tells_of_viability_and_container() {
    let world = World::new();
    let container = world.open(Node::Container).unwrap();
    let group = world.group(FIRST);
    assert_eq!(status(&world, group), VIABLE);
    world.set_container(group, container).unwrap();
    assert_eq!(status(&world, group), VIABLE | CONTAINER_SET);
    assert_eq!(
        world.call(group, 3, &mut pack!(7_u32, 0_u32)),
        Err(Errno::EINVAL)
    );
    assert_eq!(world.raw(group, number(3), 8), Err(Errno::EFAULT));
}

/// drivers/vfio/container.c, vfio_container_detach_group. Rule 3.
#[test]
fn the_last_group_out_takes_the_iommu_and_all_mappings_with_it() {
    let world = World::new();
    let (container, group) = world.container(FIRST, 3);
    assert_eq!(world.call(group, 5, &mut []), Ok(0));
    assert_eq!(world.call(group, 5, &mut []), Err(Errno::EINVAL));
    world.set_container(group, container).unwrap();
    world.raw(container, number(2), 3).unwrap();
    world.map(container, 3, (HEAP, 0, PAGE)).unwrap();
    let device = world.device_fd(group, NAMES[FIRST]).unwrap();
    assert_eq!(world.call(group, 5, &mut []), Err(Errno::EBUSY));
    assert!(world.dma(FIRST, 0, &mut [0]).is_ok());
    world.close(device);
    assert_eq!(world.call(group, 5, &mut []), Ok(0));
    assert_eq!(world.dma(FIRST, 0, &mut [0]), Err(FaultReason::Blocked));
    let pins = &world.program.pins;
    assert_eq!(pins.load(std::sync::atomic::Ordering::SeqCst), 0);
    // The container is as new.
    assert_eq!(world.raw(container, number(12), 0), Err(Errno::EINVAL));
    assert_eq!(world.raw(container, number(2), 3), Err(Errno::EINVAL));
    assert_eq!(status(&world, group), VIABLE);
}

/// drivers/vfio/group.c, vfio_group_fops_release. Rule 4.
#[test]
fn a_device_file_keeps_its_group_open_whatever_is_closed_first() {
    let world = World::new();
    let (container, group, device) = world.ready(FIRST);
    let again = world.device_fd(group, NAMES[FIRST]).unwrap();
    world.map(container, 3, (HEAP, 0, PAGE)).unwrap();
    world.close(container);
    world.close(group);
    assert!(world.dma(FIRST, 0, &mut [0]).is_ok());
    assert_eq!(world.open(Node::Group(group_of(FIRST))), Err(Errno::EBUSY));
    world.close(device);
    assert_eq!(world.open(Node::Group(group_of(FIRST))), Err(Errno::EBUSY));
    assert!(world.pread(again, world.region(7, 0), 4).is_ok());
    world.close(again);
    assert_eq!(world.dma(FIRST, 0, &mut [0]), Err(FaultReason::Blocked));
    world.group(FIRST);
}

/// drivers/vfio/container.c, vfio_fops_unl_ioctl. Rule 5.
#[test]
fn a_container_knows_little_before_its_iommu_is_set() {
    let world = World::new();
    let container = world.open(Node::Container).unwrap();
    assert_eq!(world.raw(container, number(0), 0), Ok(0));
    for n in [12, 13, 14, 17, 99] {
        assert_eq!(world.raw(container, number(n), 0), Err(Errno::EINVAL));
    }
    assert_eq!(world.raw(container, 0x1234_5678, 0), Err(Errno::EINVAL));
    let (container, group) = world.container(FIRST, 1);
    for n in [3, 15, 16, 18, 99] {
        assert_eq!(world.raw(container, number(n), 0), Err(Errno::ENOTTY));
    }
    assert_eq!(world.raw(group, number(0), 0), Err(Errno::ENOTTY));
}

/// drivers/vfio/vfio_main.c, vfio_device_fops_unl_ioctl. Rule 5.
#[test]
fn an_unbound_device_file_answers_nothing_but_being_bound() {
    let world = World::new();
    let device = world.open(Node::Device(FIRST)).unwrap();
    for n in [7, 8, 9, 10, 11, 12, 13, 16, 17, 19, 20, 99] {
        assert_eq!(world.raw(device, number(n), ARGUMENT), Err(Errno::EINVAL));
    }
    let at = world.region(7, 0);
    assert_eq!(world.pread(device, at, 4), Err(Errno::EINVAL));
    assert_eq!(world.pwrite(device, at, &[0]), Err(Errno::EINVAL));
    let mapped = iogate_uapi::mmap(&world.host, device, world.region(2, 0), PAGE, 3, 1);
    assert_eq!(mapped, Err(Errno::EINVAL));
}

/// drivers/vfio/container.c, vfio_ioctl_set_iommu.
#[test]
fn an_iommu_is_set_once_a_group_is_there_and_only_as_a_type() {
    let world = World::new();
    let container = world.open(Node::Container).unwrap();
    let set = |kind| world.raw(container, number(2), kind);
    assert_eq!(set(1), Err(Errno::EINVAL));
    let group = world.group(FIRST);
    world.set_container(group, container).unwrap();
    for kind in [0, 2, 4, 5, 6, 7, 8, 10, u64::MAX] {
        assert_eq!(set(kind), Err(Errno::ENODEV), "{kind}");
    }
    // The driver knows the extension, but it is no type.
    assert_eq!(set(9), Err(Errno::EINVAL));
    assert_eq!(set(1), Ok(0));
    assert_eq!(set(3), Err(Errno::EINVAL));
}

/// drivers/vfio/group.c, vfio_df_group_open, and
/// drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_match. Rule 8.
#[test]
fn a_device_is_opened_by_name_and_only_with_an_iommu() {
    let world = World::new();
    let group = world.group(TWIN);
    let open = |name: &str| world.device_fd(group, name).map(drop);
    let name = NAMES[TWIN];
    assert_eq!(open(name), Err(Errno::EINVAL));
    let container = world.open(Node::Container).unwrap();
    world.set_container(group, container).unwrap();
    assert_eq!(open(name), Err(Errno::EINVAL));
    world.raw(container, number(2), 3).unwrap();
    for wrong in [
        "",
        "0000:04:00",
        "0000:04:00.2",
        "0000:04:00.00",
        NAMES[FIRST],
    ] {
        assert_eq!(open(wrong), Err(Errno::ENODEV), "{wrong}");
    }
    assert_eq!(open(&format!("{name} colour=red")), Err(Errno::EINVAL));
    assert_eq!(open(&format!("{name} ")), Ok(()));
    assert_eq!(open(name), Ok(()));
    assert_eq!(world.raw(group, number(6), 8), Err(Errno::EFAULT));
    let long = "x".repeat(4096);
    assert_eq!(open(&long), Err(Errno::EINVAL));
    let member = world.device_fd(group, NAMES[TWIN + 1]);
    assert!(member.is_ok());
}

/// drivers/vfio/pci/vfio_pci_core.c, vfio_pci_validate_vf_token. Rule 7.
#[test]
fn a_token_is_refused_by_a_device_that_has_no_virtual_functions() {
    let world = World::new();
    let (_, group) = world.container(FIRST, 3);
    let name = NAMES[FIRST];
    for options in [
        "vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3",
        "vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f",
        "vf_token=bd8d9d2b15a5f-4f5a-a211-f591514ba1f3",
        "vf_token=",
    ] {
        let name = format!("{name} {options}");
        assert_eq!(world.device_fd(group, &name), Err(Errno::EINVAL));
    }
}

fn ranges(world: &World, container: iogate_host::FileId) -> Vec<(u64, u64)> {
    let mut argument = pack!(4096_u32);
    argument.resize(4096, 0);
    let info = world.ask(container, 12, argument).unwrap();
    let mut at = word(&info, 16) as usize;
    while word(&info, at) & 0xffff != 1 {
        at = word(&info, at + 4) as usize;
    }
    let count = word(&info, at + 8) as usize;
    let pair = |at: usize| (quad(&info, at), quad(&info, at + 8));
    (0..count).map(|index| pair(at + 16 + 16 * index)).collect()
}

const WIDE: [(u64, u64); 2] = [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 48) - 1)];

/// drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_attach_group. Rules 17 and
/// 18: relaxable ranges are not excluded, a software window always is.
#[test]
fn a_group_that_joins_shrinks_the_ranges_and_one_that_leaves_expands_them() {
    let world = World::new();
    let (container, _first) = world.container(FIRST, 3);
    assert_eq!(ranges(&world, container), WIDE);
    let narrow = world.group(NARROW);
    world.map(container, 3, (HEAP, 1 << 40, PAGE)).unwrap();
    assert_eq!(world.set_container(narrow, container), Err(Errno::EINVAL));
    world.unmap(container, 0, 1 << 40, PAGE).unwrap();
    world.map(container, 3, (HEAP, 0x800_0000, PAGE)).unwrap();
    assert_eq!(world.set_container(narrow, container), Err(Errno::EINVAL));
    assert_eq!(ranges(&world, container), WIDE);
    assert_eq!(status(&world, narrow), VIABLE);
    world.unmap(container, 2, 0, 0).unwrap();
    world.map(container, 3, (HEAP, 0, PAGE)).unwrap();
    world.set_container(narrow, container).unwrap();
    let both = [
        (0, 0x7ff_ffff),
        (0x810_0000, 0xfedf_ffff),
        (0xfef0_0000, (1 << 39) - 1),
    ];
    assert_eq!(ranges(&world, container), both);
    // Both groups share one address space.
    assert!(world.dma(NARROW, 0, &mut [0]).is_ok());
    assert!(world.dma(FIRST, 0, &mut [0]).is_ok());
    world.call(narrow, 5, &mut []).unwrap();
    assert_eq!(ranges(&world, container), WIDE);
    assert_eq!(world.dma(NARROW, 0, &mut [0]), Err(FaultReason::Blocked));
    assert!(world.dma(FIRST, 0, &mut [0]).is_ok());
}

/// drivers/vfio/vfio_iommu_type1.c, vfio_update_pgsize_bitmap. Rule 13.
#[test]
fn page_sizes_are_those_of_all_groups_and_never_below_the_processors() {
    let world = World::new();
    let sizes = |container| {
        let info = world.ask(container, 12, pack!(16_u32, 0_u32, 0_u64));
        quad(&info.unwrap(), 8)
    };
    let (container, _group) = world.container(FIRST, 3);
    assert_eq!(sizes(container), 0x4020_1000);
    let narrow = world.group(NARROW);
    world.set_container(narrow, container).unwrap();
    assert_eq!(sizes(container), 0x20_1000);
    let (other, _group) = world.container(PLAIN, 3);
    assert_eq!(sizes(other), 0x4020_1000);
}

/// drivers/vfio/vfio_iommu_type1.c, vfio_domains_have_enforce_cache_coherency
/// and vfio_iommu_type1_check_extension. Rule 20.
#[test]
fn extensions_depend_on_what_is_in_the_container() {
    let world = World::new();
    let container = world.open(Node::Container).unwrap();
    let known = |container| -> Vec<u64> {
        let ids = 0..20;
        ids.filter(|id| extension(&world, container, *id) == 1)
            .collect()
    };
    assert_eq!(known(container), [1, 3, 8, 9]);
    let group = world.group(FIRST);
    world.set_container(group, container).unwrap();
    world.raw(container, number(2), 3).unwrap();
    assert_eq!(known(container), [1, 3, 4, 9, 10]);
    let narrow = world.group(NARROW);
    world.set_container(narrow, container).unwrap();
    assert_eq!(known(container), [1, 3, 9, 10]);
    assert_eq!(extension(&world, container, u64::MAX), 0);
}

/// drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_attach_group. Rule 16.
#[test]
fn no_group_joins_while_addresses_are_invalid() {
    let world = World::new();
    let (container, _group) = world.container(FIRST, 3);
    world.map(container, 3, (HEAP, 0, PAGE)).unwrap();
    world.unmap(container, 4, 0, PAGE).unwrap();
    let second = world.group(SECOND);
    assert_eq!(world.set_container(second, container), Err(Errno::EBUSY));
    world.map(container, 4, (HEAP + PAGE, 0, PAGE)).unwrap();
    assert_eq!(world.set_container(second, container), Ok(0));
}

/// drivers/vfio/container.c, vfio_container_put: a group holds its container.
#[test]
fn a_container_outlives_its_file_while_it_has_a_group() {
    let world = World::new();
    let (container, group) = world.container(FIRST, 3);
    world.map(container, 3, (HEAP, 0, PAGE)).unwrap();
    world.close(container);
    assert!(world.dma(FIRST, 0, &mut [0]).is_ok());
    assert!(world.device_fd(group, NAMES[FIRST]).is_ok());
    let fresh = world.open(Node::Container).unwrap();
    assert_ne!(fresh, container);
    assert_eq!(world.raw(container, number(0), 0), Err(Errno::EBADF));
}
