//! The files that a virtual machine is told of: rule 47 of the kernel.

mod iommufd_world;

use iogate_host::{Coherency, Node};
use iogate_uapi::{Client, Errno};
use iommufd_world::*;

const FILE: u32 = 1;
const ADD: u64 = 1;
const DEL: u64 = 2;
const VM: u64 = 40;

fn ok() -> Option<Result<(), Errno>> {
    Some(Ok(()))
}

fn refused(errno: Errno) -> Option<Result<(), Errno>> {
    Some(Err(errno))
}

/// virt/kvm/vfio.c, kvm_vfio_set_attr, kvm_vfio_set_file; kvm_main.c,
/// kvm_device_ioctl_attr.
#[test]
fn unknown_attributes_are_enxio_and_absent_memory_is_efault() {
    let world = World::new();
    let group = world.open(Node::Group(1)).unwrap();
    for (set, attr) in [(0, ADD), (2, ADD), (FILE, 0), (FILE, 3), (FILE, 4)] {
        assert_eq!(world.kvm(VM, set, attr, group.fd), refused(Errno::ENXIO));
    }
    let answer = iogate_uapi::kvm_device_attr(&world.host, VM, 0, &world.program);
    assert_eq!(answer.err(), Some(Errno::EFAULT));
    let attr = pack!(0_u32, FILE, ADD, 0x30_0000_u64);
    world.program.write(ARGUMENT, &attr).unwrap();
    let answer = iogate_uapi::kvm_device_attr(&world.host, VM, ARGUMENT, &world.program);
    assert_eq!(answer.err(), Some(Errno::EFAULT));
}

/// virt/kvm/vfio.c, kvm_vfio_file_add, kvm_vfio_file_is_valid.
#[test]
fn groups_and_devices_are_added_once_and_nothing_else_of_ours() {
    let world = World::new();
    let group = world.open(Node::Group(1)).unwrap();
    let device = world.cdev(ALONE);
    assert_eq!(world.kvm(VM, FILE, ADD, 999), refused(Errno::EBADF));
    let container = world.open(Node::Container).unwrap();
    for file in [container, world.iommufd()] {
        assert_eq!(world.kvm(VM, FILE, ADD, file.fd), refused(Errno::EINVAL));
    }
    assert_eq!(world.kvm(VM, FILE, ADD, group.fd), ok());
    assert_eq!(world.kvm(VM, FILE, ADD, group.fd), refused(Errno::EEXIST));
    assert_eq!(world.kvm(VM, FILE, ADD, device.fd), ok(), "bound or not");
    assert_eq!(
        world.kvm(VM + 1, FILE, ADD, group.fd),
        ok(),
        "another machine"
    );
    // A descriptor that is none of ours is for the kernel to judge.
    assert_eq!(world.kvm(VM, FILE, ADD, world.other()), None);
    assert_eq!(world.kvm(VM, FILE, DEL, world.other()), None);
}

/// virt/kvm/vfio.c, kvm_vfio_file_del.
#[test]
fn only_what_was_added_is_removed() {
    let world = World::new();
    let group = world.open(Node::Group(1)).unwrap();
    assert_eq!(world.kvm(VM, FILE, DEL, 999), refused(Errno::EBADF));
    assert_eq!(world.kvm(VM, FILE, DEL, group.fd), refused(Errno::ENOENT));
    assert_eq!(world.kvm(VM, FILE, ADD, group.fd), ok());
    assert_eq!(
        world.kvm(VM + 1, FILE, DEL, group.fd),
        refused(Errno::ENOENT)
    );
    assert_eq!(world.kvm(VM, FILE, DEL, group.fd), ok());
    assert_eq!(world.kvm(VM, FILE, DEL, group.fd), refused(Errno::ENOENT));
}

/// virt/kvm/vfio.c, kvm_vfio_update_coherency; drivers/vfio/vfio_main.c,
/// vfio_file_enforced_coherent.
#[test]
fn a_machine_is_noncoherent_while_a_file_of_it_is() {
    let world = World::new();
    let coherency = || world.host.kvm_coherency(VM);
    assert_eq!(coherency(), Coherency::Coherent);
    let usual = world.cdev(ALONE);
    let (device, group) = (world.cdev(NARROW), world.open(Node::Group(3)).unwrap());
    assert_eq!(world.kvm(VM, FILE, ADD, usual.fd), ok());
    assert_eq!(coherency(), Coherency::Coherent);
    assert_eq!(world.kvm(VM, FILE, ADD, device.fd), ok());
    assert_eq!(coherency(), Coherency::Noncoherent);
    assert_eq!(world.kvm(VM, FILE, ADD, group.fd), ok());
    assert_eq!(world.kvm(VM, FILE, DEL, device.fd), ok());
    assert_eq!(
        coherency(),
        Coherency::Noncoherent,
        "the group of the same device"
    );
    assert_eq!(world.kvm(VM, FILE, DEL, group.fd), ok());
    assert_eq!(coherency(), Coherency::Coherent);
}

/// virt/kvm/vfio.c, kvm_vfio_release.
#[test]
fn a_machine_and_a_file_that_are_closed_are_forgotten() {
    let world = World::new();
    let device = world.cdev(NARROW);
    assert_eq!(world.kvm(VM, FILE, ADD, device.fd), ok());
    world.host.kvm_close(VM);
    assert_eq!(world.host.kvm_coherency(VM), Coherency::Coherent);
    assert_eq!(world.kvm(VM, FILE, ADD, device.fd), ok());
    assert_eq!(world.host.kvm_coherency(VM), Coherency::Noncoherent);
    world.close(device);
    assert_eq!(world.host.kvm_coherency(VM), Coherency::Coherent);
    let device = world.cdev(NARROW);
    assert_eq!(world.kvm(VM, FILE, DEL, device.fd), refused(Errno::ENOENT));
}

/// virt/kvm/vfio.c, kvm_vfio_file_add: the file, not the descriptor.
#[test]
fn another_open_of_the_same_device_is_another_file() {
    let world = World::new();
    let (one, two) = (world.cdev(ALONE), world.cdev(ALONE));
    assert_eq!(world.kvm(VM, FILE, ADD, one.fd), ok());
    assert_eq!(world.kvm(VM, FILE, DEL, two.fd), refused(Errno::ENOENT));
    assert_eq!(world.kvm(VM, FILE, ADD, two.fd), ok());
}
