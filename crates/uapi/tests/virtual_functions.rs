//! Virtual functions: rules 6 and 7 of the notes on the kernel's uAPI, and how
//! they come and go; each test's first line names the kernel's function, in
//! drivers/vfio/pci/vfio_pci_core.c where no file is named.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod legacy_world;

use iogate_host::{FileId, Node, Presence};
use iogate_uapi::{Attribute, Errno, store_attribute};

use legacy_world::{FIRST, HEAP, NAMES, NARROW, SECOND, TAKEN, World, group_of, number};

const NUM_VFS: Attribute = Attribute::NumVfs { device: FIRST };
const AUTOPROBE: Attribute = Attribute::DriversAutoprobe { device: FIRST };
const TOKEN: [u8; 16] = *b"0123456789abcdef";
const OTHER: [u8; 16] = *b"fedcba9876543210";
const TYPE1: u64 = 1;

/// SECOND and NARROW are FIRST's virtual functions.
fn world() -> World {
    let world = World::new();
    let functions = vec![SECOND, NARROW];
    world
        .host
        .add_virtual_functions(FIRST, functions, [7; 16])
        .unwrap();
    world
}

/// Writes an attribute; which device the write waits for.
fn write(world: &World, attribute: Attribute, text: &str) -> Result<Option<usize>, Errno> {
    let mut stored = store_attribute(&world.host, attribute, text.as_bytes())?;
    if let Some(grace) = stored.after.grace.take() {
        grace.wait();
    }
    Ok(stored.waits_for)
}

fn enable(world: &World, count: &str) {
    assert_eq!(write(world, NUM_VFS, count), Ok(None));
}

fn presence(world: &World) -> [Presence; 2] {
    [SECOND, NARROW].map(|device| world.host.presence(device))
}

/// VFIO_DEVICE_FEATURE_PCI_VF_TOKEN.
fn set_token(world: &World, device: FileId, flags: u32, token: &[u8]) -> Result<i64, Errno> {
    let argsz = u32::try_from(8 + token.len()).unwrap();
    let mut argument = pack!(argsz, flags);
    argument.extend(token);
    world.call(device, 17, &mut argument)
}

const SET: u32 = 1 << 17;
const GET: u32 = 1 << 16;
const PROBE: u32 = 1 << 18;

/// A device file by way of its group in a container of its own.
fn open(world: &World, device: usize, options: &str) -> Result<(FileId, FileId), Errno> {
    let (_, group) = world.container(device, TYPE1);
    let opened = world.device_fd(group, &format!("{}{options}", NAMES[device]));
    if opened.is_err() {
        world.close(group);
    }
    opened.map(|file| (group, file))
}

fn with(token: &[u8; 16]) -> String {
    let digits: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
    format!(" vf_token={a}-{b}-{c}-{d}-{e}")
}

/// sriov_numvfs_store, drivers/pci/iov.c.
#[test]
fn the_number_is_checked_before_anything_else_and_only_changes_from_or_to_0() {
    let world = world();
    assert_eq!(write(&world, NUM_VFS, "x"), Err(Errno::EINVAL));
    assert_eq!(write(&world, NUM_VFS, "70000"), Err(Errno::EINVAL));
    assert_eq!(write(&world, NUM_VFS, "3"), Err(Errno::ERANGE));
    assert_eq!(write(&world, NUM_VFS, "0\n"), Ok(None));
    enable(&world, "1\n");
    assert_eq!(presence(&world), [Presence::Bound, Presence::Absent]);
    enable(&world, "1");
    assert_eq!(write(&world, NUM_VFS, "2"), Err(Errno::EBUSY));
    assert_eq!(write(&world, NUM_VFS, "3"), Err(Errno::ERANGE));
    enable(&world, "0");
    assert_eq!(presence(&world), [Presence::Absent; 2]);
    let none = Attribute::NumVfs { device: TAKEN };
    assert_eq!(write(&world, none, "1"), Err(Errno::ENOENT));
}

/// sriov_drivers_autoprobe_store, drivers/pci/iov.c; pci_device_can_probe,
/// drivers/pci/pci-driver.c.
#[test]
fn without_autoprobe_functions_come_without_a_driver() {
    let world = world();
    assert_eq!(write(&world, AUTOPROBE, "maybe"), Err(Errno::EINVAL));
    assert_eq!(write(&world, AUTOPROBE, "0"), Ok(None));
    enable(&world, "2");
    assert_eq!(presence(&world), [Presence::Unbound; 2]);
    assert_eq!(world.open(Node::Device(SECOND)), Err(Errno::ENODEV));
    let group = Node::Group(group_of(SECOND));
    assert_eq!(world.open(group), Err(Errno::ENODEV));
    enable(&world, "0");
}

/// vfio_group_fops_open, drivers/vfio/group.c.
#[test]
fn what_is_not_there_cannot_be_opened() {
    let world = world();
    let group = Node::Group(group_of(SECOND));
    assert_eq!(world.open(group), Err(Errno::ENODEV));
    assert_eq!(world.open(Node::Device(SECOND)), Err(Errno::ENODEV));
    enable(&world, "2");
    world.open(group).unwrap();
    world.open(Node::Device(SECOND)).unwrap();
}

/// vfio_pci_core_match_token_uuid.
#[test]
fn a_virtual_function_wants_the_token_that_its_owner_was_opened_with() {
    let world = world();
    enable(&world, "2");
    let refused = |options: &str| open(&world, SECOND, options).unwrap_err();
    assert_eq!(refused(""), Errno::EACCES);
    assert_eq!(
        refused(&with(&TOKEN)),
        Errno::EACCES,
        "nobody knows the first"
    );
    let (owners_group, owner) = open(&world, FIRST, &with(&TOKEN)).unwrap();
    assert_eq!(refused(""), Errno::EACCES);
    assert_eq!(refused(&with(&OTHER)), Errno::EACCES);
    assert_eq!(refused(" vf_token=0"), Errno::EINVAL);
    open(&world, SECOND, &with(&TOKEN)).unwrap();
    // It persists after the owner's close.
    world.close(owner);
    world.close(owners_group);
    open(&world, NARROW, &with(&TOKEN)).unwrap();
}

/// vfio_pci_core_match_token_uuid.
#[test]
fn an_owner_needs_the_token_only_while_a_virtual_function_is_in_use() {
    let world = world();
    enable(&world, "1");
    let (group, owner) = open(&world, FIRST, &with(&TOKEN)).unwrap();
    let (users_group, user) = open(&world, SECOND, &with(&TOKEN)).unwrap();
    world.close(owner);
    world.close(group);
    let refused = |options: &str| open(&world, FIRST, options).unwrap_err();
    assert_eq!(refused(""), Errno::EACCES);
    assert_eq!(refused(&with(&OTHER)), Errno::EACCES);
    let (group, owner) = open(&world, FIRST, &with(&TOKEN)).unwrap();
    world.close(owner);
    world.close(group);
    world.close(user);
    world.close(users_group);
    open(&world, FIRST, "").unwrap();
}

/// vfio_pci_core_match_token_uuid.
#[test]
fn a_function_without_sr_iov_takes_no_token() {
    let world = world();
    let refused = open(&world, 5, &with(&TOKEN)).unwrap_err();
    assert_eq!(refused, Errno::EINVAL);
}

/// vfio_pci_core_feature_token, vfio_check_feature.
#[test]
fn the_token_is_set_by_a_feature_of_the_owner_and_never_got() {
    let world = world();
    enable(&world, "1");
    let (_, owner) = open(&world, FIRST, "").unwrap();
    assert_eq!(set_token(&world, owner, GET, &TOKEN), Err(Errno::EINVAL));
    assert_eq!(
        set_token(&world, owner, SET, &TOKEN[1..]),
        Err(Errno::EINVAL)
    );
    assert_eq!(set_token(&world, owner, SET | PROBE, &[]), Ok(0));
    assert_eq!(set_token(&world, owner, SET, &OTHER), Ok(0));
    let refused = open(&world, SECOND, &with(&TOKEN)).unwrap_err();
    assert_eq!(refused, Errno::EACCES);
    let (_, user) = open(&world, SECOND, &with(&OTHER)).unwrap();
    assert_eq!(set_token(&world, user, SET, &TOKEN), Err(Errno::ENOTTY));
    assert_eq!(
        set_token(&world, user, SET | PROBE, &[]),
        Err(Errno::ENOTTY)
    );
}

/// vfio_df_check_token, drivers/vfio/device_cdev.c.
#[test]
fn a_bind_by_the_own_node_gives_the_token_as_bytes() {
    let world = world();
    enable(&world, "1");
    let iommufd = world.open(Node::Iommufd).unwrap();
    let fd = world.program.fd(iommufd);
    let bind = |device: usize, flags: u32, token: u64| {
        let file = world.open(Node::Device(device)).unwrap();
        let argument = pack!(24_u32, flags, fd, 0_u32, token);
        let bound = world.ask(file, 18, argument);
        world.close(file);
        bound.map(drop)
    };
    world.program.poke(HEAP, &TOKEN);
    world.program.poke(HEAP + 16, &OTHER);
    assert_eq!(bind(FIRST, 1, 0x10), Err(Errno::EFAULT));
    assert_eq!(bind(FIRST, 1, HEAP), Ok(()));
    assert_eq!(bind(SECOND, 0, HEAP), Err(Errno::EACCES));
    assert_eq!(bind(SECOND, 1, HEAP + 16), Err(Errno::EACCES));
    assert_eq!(bind(SECOND, 1, HEAP), Ok(()));
    assert_eq!(bind(5, 1, HEAP), Err(Errno::EINVAL));
}

/// vfio_unregister_group_dev, drivers/vfio/vfio_main.c; pci_iov_remove_virtfn,
/// drivers/pci/iov.c; vfio_pci_core_request.
#[test]
fn a_function_in_use_is_asked_for_and_waited_for_and_later_ones_stay() {
    let world = world();
    enable(&world, "2");
    let (owners_group, owner) = open(&world, FIRST, &with(&TOKEN)).unwrap();
    let (_, user) = open(&world, SECOND, &with(&TOKEN)).unwrap();
    let (fd, requests) = world.program.eventfd_pair();
    // EVENTFD | TRIGGER of the request interrupt.
    world
        .set_irqs(user, 0x24, (4, 0, 1), &fd.to_ne_bytes())
        .unwrap();
    assert_eq!(write(&world, NUM_VFS, "0"), Ok(Some(SECOND)));
    assert_eq!(presence(&world), [Presence::Leaving, Presence::Bound]);
    assert_eq!(requests.0.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(write(&world, NUM_VFS, "0"), Ok(Some(SECOND)));
    assert_eq!(
        requests.0.load(std::sync::atomic::Ordering::SeqCst),
        1,
        "asked once for each"
    );
    assert_eq!(world.open(Node::Device(SECOND)), Err(Errno::ENODEV));
    let (third_group, third) = open(&world, NARROW, &with(&TOKEN)).unwrap();
    world.close(user);
    assert_eq!(write(&world, NUM_VFS, "0"), Ok(Some(NARROW)));
    assert_eq!(presence(&world), [Presence::Absent, Presence::Leaving]);
    world.close(third);
    world.close(third_group);
    assert_eq!(write(&world, NUM_VFS, "0"), Ok(None));
    assert_eq!(presence(&world), [Presence::Absent; 2]);
    world.close(owner);
    world.close(owners_group);
}

/// vfio_device_remove_group, drivers/vfio/group.c.
#[test]
fn the_file_of_a_group_that_has_gone_is_good_for_nothing() {
    let world = world();
    enable(&world, "1");
    let (container, group) = world.container(SECOND, TYPE1);
    world.map(container, 3, (HEAP, 0x1000, 0x1000)).unwrap();
    enable(&world, "0");
    let status = pack!(8_u32, 0_u32);
    assert_eq!(world.ask(group, 3, status), Err(Errno::ENODEV));
    assert_eq!(world.device_fd(group, NAMES[SECOND]), Err(Errno::ENODEV));
    // The container is empty again.
    assert_eq!(world.raw(container, number(2), TYPE1), Err(Errno::EINVAL));
    enable(&world, "1");
    let (_, again) = world.container(SECOND, TYPE1);
    world.close(group);
    let refused = world.device_fd(again, NAMES[SECOND]).unwrap_err();
    assert_eq!(
        refused,
        Errno::EACCES,
        "the old file has not closed the new one"
    );
}

/// vfio_pci_set_power_state.
#[test]
fn an_owner_stays_awake_while_virtual_functions_are_enabled() {
    let world = world();
    let (_, owner) = open(&world, FIRST, "").unwrap();
    let mut at = u64::from(world.config(owner, 0x34) & 0xff);
    while world.config(owner, at) & 0xff != 1 {
        at = u64::from(world.config(owner, at) >> 8 & 0xff);
        assert_ne!(at, 0, "the function has power management");
    }
    let control = at + 4;
    let sleep = || {
        world.set_config(owner, control, &[3]);
        world.config(owner, control) & 3
    };
    enable(&world, "1");
    assert_eq!(sleep(), 0);
    enable(&world, "0");
    assert_eq!(sleep(), 3);
    enable(&world, "1");
    assert_eq!(world.config(owner, control) & 3, 0, "and is woken for them");
}

/// __vfio_pci_memory_enabled, vfio_config_init, drivers/vfio/pci/
/// vfio_pci_config.c.
#[test]
fn the_memory_of_a_virtual_function_answers_whatever_its_command_register_says() {
    let world = world();
    enable(&world, "1");
    let (_, _owner) = open(&world, FIRST, &with(&TOKEN)).unwrap();
    let (_, user) = open(&world, SECOND, &with(&TOKEN)).unwrap();
    assert_eq!(world.config(user, 4) & 2, 2);
    world.set_config(user, 4, &[0, 0]);
    assert_eq!(world.config(user, 4) & 2, 0);
    assert_eq!(
        world.pread(user, world.region(0, 0), 4).map(|b| b.len()),
        Ok(4)
    );
}

/// vfio_pci_core_enable; PCI Express Base 6.0 section 9.2.2.2.
#[test]
fn a_reset_of_the_owner_resets_its_virtual_functions() {
    let world = world();
    enable(&world, "1");
    let (_, owner) = open(&world, FIRST, &with(&TOKEN)).unwrap();
    let (_, user) = open(&world, SECOND, &with(&TOKEN)).unwrap();
    let before = world.probes[SECOND].resets.lock().unwrap().len();
    world.set_config(user, 4, &[6, 0]);
    assert_eq!(world.raw(owner, number(11), 0), Ok(0));
    assert_eq!(
        world.probes[SECOND].resets.lock().unwrap().len(),
        before + 1
    );
    assert_eq!(world.config(user, 4) & 4, 0, "it is no bus master any more");
}
