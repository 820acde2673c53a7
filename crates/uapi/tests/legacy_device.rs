//! Devices: what they say of themselves, their regions and resets. Rule 9 of
//! the notes on the kernel's uAPI and the calls' own rules; each test's first
//! line names the kernel's function, in drivers/vfio/pci/vfio_pci_core.c where
//! no file is named.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod legacy_world;

use iogate_host::{FileId, Node};
use iogate_pci::ResetKind;
use iogate_uapi::Errno;

use legacy_world::{
    ARGUMENT, FIRST, HEAP, NAMES, PAGE, PLAIN, SECOND, TWIN, World, group_of, number, quad, word,
};

/// The Command register.
const COMMAND: u64 = 4;
const MEMORY: u16 = 2;
const MASTER: u16 = 4;
const INTX_DISABLE: u16 = 1 << 10;

/// Index, flags, size and offset of a region.
fn region_info(world: &World, device: FileId, index: u32) -> Result<(u32, u64, u64), Errno> {
    let argument = pack!(32_u32, 0_u32, index, 0_u32, 7_u64, 7_u64);
    let info = world.ask(device, 8, argument)?;
    Ok((word(&info, 4), quad(&info, 16), quad(&info, 24)))
}

fn set_command(world: &World, device: FileId, command: u16) {
    world.set_config(device, COMMAND, &command.to_le_bytes());
}

fn command(world: &World, device: FileId) -> u16 {
    let [a, b, _, _] = world.config(device, COMMAND).to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// Where a capability is in configuration space, and what it says after id and
/// next.
fn capability(world: &World, device: FileId, id: u32) -> Option<u64> {
    let mut at = u64::from(world.config(device, 0x34) & 0xff);
    while at != 0 {
        let header = world.config(device, at);
        if header & 0xff == id {
            return Some(at);
        }
        at = u64::from(header >> 8 & 0xff);
    }
    None
}

/// vfio_pci_ioctl_get_info.
#[test]
fn a_device_says_what_it_is() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let mut argument = pack!(64_u32);
    argument.resize(32, 0xee);
    let info = world.ask(device, 7, argument).unwrap();
    let words: Vec<u32> = (0..5).map(|index| word(&info, index * 4)).collect();
    assert_eq!(words, [64, 3, 9, 5, 0]);
    assert_eq!(word(&info, 24), 0xeeee_eeee);
    let short = world.ask(device, 7, pack!(15_u32, 0_u32, 0_u64));
    assert_eq!(short, Err(Errno::EINVAL));
    let mut argument = pack!(16_u32);
    argument.resize(32, 0xee);
    let info = world.ask(device, 7, argument).unwrap();
    assert_eq!(word(&info, 16), 0xeeee_eeee, "no room for the offset");
    assert_eq!(world.raw(device, number(7), 0), Err(Errno::EFAULT));
    for n in [14, 15, 18 + 3, 99] {
        assert_eq!(world.raw(device, number(n), ARGUMENT), Err(Errno::ENOTTY));
    }
}

/// vfio_pci_ioctl_get_region_info.
#[test]
fn regions_have_flags_sizes_and_offsets() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let info = |index| region_info(&world, device, index);
    let at = |index| iogate_uapi::region_offset(index);
    assert_eq!(info(0), Ok((3, 0x1000, at(0))));
    assert_eq!(info(1), Ok((3, 0x20, at(1))));
    assert_eq!(info(3), Ok((0, 0, at(3))), "the upper half of BAR 2");
    assert_eq!(info(4), Ok((0, 0, at(4))));
    assert_eq!(info(6), Ok((0, 0, at(6))), "no ROM");
    assert_eq!(info(7), Ok((3, 4096, at(7))));
    for index in [8, 9, 10, u32::MAX] {
        assert_eq!(info(index), Err(Errno::EINVAL), "{index}");
    }
    let (_, _, plain) = world.ready(PLAIN);
    assert_eq!(region_info(&world, plain, 7), Ok((3, 256, at(7))));
    assert_eq!(region_info(&world, plain, 0), Ok((3, 256, at(0))));
    let short = world.ask(device, 8, pack!(31_u32, 0_u32, 0_u64, 0_u64, 0_u64));
    assert_eq!(short, Err(Errno::EINVAL));
}

/// msix_mmappable_cap.
#[test]
fn a_mappable_bar_with_the_msix_table_says_so_in_a_capability() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let ask = |argsz: u32| {
        let mut argument = pack!(argsz, 0_u32, 2_u32, 9_u32);
        argument.resize(64, 0xee);
        world.ask(device, 8, argument).unwrap()
    };
    let info = ask(32);
    assert_eq!((word(&info, 0), word(&info, 4)), (40, 0b1111));
    assert_eq!(word(&info, 12), 0);
    assert_eq!(word(&info, 32), 0xeeee_eeee);
    let info = ask(40);
    assert_eq!((word(&info, 0), word(&info, 12)), (40, 32));
    assert_eq!((word(&info, 32), word(&info, 36)), (3 | 1 << 16, 0));
}

/// vfio_pci_ioctl_get_irq_info.
#[test]
fn interrupts_have_counts_and_flags() {
    let world = World::new();
    let ask = |device, index: u32| {
        let info = world.ask(device, 9, pack!(16_u32, 0_u32, index, 77_u32))?;
        Ok((word(&info, 4), word(&info, 12)))
    };
    let (_, _, device) = world.ready(FIRST);
    let all: Vec<_> = (0..6).map(|index| ask(device, index)).collect();
    let bad = Err(Errno::EINVAL);
    let express = [
        Ok((7, 1)),
        Ok((9, 4)),
        Ok((1, 8)),
        Ok((9, 1)),
        Ok((9, 1)),
        bad,
    ];
    assert_eq!(all, express);
    let (_, _, plain) = world.ready(PLAIN);
    let all: Vec<_> = (0..6).map(|index| ask(plain, index)).collect();
    assert_eq!(
        all,
        [Ok((7, 1)), Ok((9, 0)), Ok((1, 0)), bad, Ok((9, 1)), bad]
    );
}

/// drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_core_do_io_rw. Rule 9.
#[test]
fn memory_answers_only_while_it_is_enabled_and_ports_always() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let bar = world.region(0, 0x10);
    assert_eq!(command(&world, device), 3, "opened enabled, no bus master");
    assert_eq!(world.pwrite(device, bar, &[1, 2, 3, 4]), Ok(4));
    assert_eq!(world.pread(device, bar, 4), Ok(vec![1, 2, 3, 4]));
    set_command(&world, device, 0);
    assert_eq!(world.pread(device, bar, 4), Err(Errno::EIO));
    assert_eq!(world.pwrite(device, bar, &[0; 4]), Err(Errno::EIO));
    assert_eq!(world.pwrite(device, world.region(1, 0), &[5]), Ok(1));
    assert_eq!(world.pread(device, world.region(1, 0), 1), Ok(vec![5]));
    set_command(&world, device, MEMORY);
    assert_eq!(world.pread(device, bar, 4), Ok(vec![1, 2, 3, 4]));
}

/// drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_bar_rw. Rule 9.
#[test]
fn an_access_past_a_bar_is_refused_and_one_across_its_end_is_cut() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let read = |index, at, length| {
        let bytes = world.pread(device, world.region(index, at), length)?;
        Ok(bytes.len())
    };
    assert_eq!(read(0, 0xffe, 8), Ok(2));
    assert_eq!(read(0, 0x1000, 1), Err(Errno::EINVAL));
    assert_eq!(read(0, 1 << 39, 1), Err(Errno::EINVAL));
    assert_eq!(read(0, 0, 0), Ok(0));
    assert_eq!(read(3, 0, 4), Err(Errno::EINVAL), "no such BAR");
    assert_eq!(read(6, 0, 4), Err(Errno::EINVAL), "no ROM");
    assert_eq!(read(8, 0, 4), Err(Errno::EINVAL), "no VGA");
    assert_eq!(read(9, 0, 4), Err(Errno::EINVAL));
    assert_eq!(world.pread(device, u64::MAX, 1), Err(Errno::EINVAL));
    assert_eq!(read(2, 0, 0x9000), Ok(0x9000), "several pieces");
    assert_eq!(world.pwrite(device, world.region(0, 0xffe), &[9; 8]), Ok(2));
}

/// drivers/vfio/pci/vfio_pci_config.c, vfio_config_do_rw. Rule 9.
#[test]
fn configuration_space_is_never_read_past_its_end() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let read = |at, length| world.pread(device, world.region(7, at), length);
    assert_eq!(read(0, 4), Ok(vec![0x34, 0x12, 0xe8, 0x11]));
    assert_eq!(read(0, 4096).unwrap().len(), 4096);
    assert_eq!(read(4095, 1).unwrap().len(), 1);
    assert_eq!(read(4095, 2), Err(Errno::EFAULT));
    assert_eq!(read(4096, 1), Err(Errno::EFAULT));
    let (_, _, plain) = world.ready(PLAIN);
    let at = world.region(7, 255);
    assert_eq!(world.pread(plain, at, 2), Err(Errno::EFAULT));
}

/// drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_core_do_io_rw.
#[test]
fn a_long_access_reaches_the_device_in_naturally_aligned_pieces() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let probe = &world.probes[FIRST];
    probe.take_accesses();
    world.pread(device, world.region(0, 3), 18).unwrap();
    let pieces: Vec<_> = probe.take_accesses();
    let expected = [(3, 1), (4, 4), (8, 8), (16, 4), (20, 1)];
    let expected: Vec<_> = expected.map(|(at, len)| (0, at, len, false)).into();
    assert_eq!(pieces, expected);
}

/// drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_core_do_io_rw: x_start, x_end.
#[test]
fn the_msix_table_reads_as_ones_and_takes_no_writes() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let probe = &world.probes[FIRST];
    probe.take_accesses();
    let end = 0x2000 + 8 * 16;
    let bytes = world
        .pread(device, world.region(2, 0x1ffc), 8 + 128)
        .unwrap();
    assert_eq!(bytes[..4], [0; 4]);
    assert!(bytes[4..132].iter().all(|byte| *byte == 0xff));
    assert_eq!(bytes[132..], [0; 4]);
    let seen = [(2, 0x1ffc, 4, false), (2, end, 4, false)];
    assert_eq!(probe.take_accesses(), seen);
    let written = world.pwrite(device, world.region(2, 0x2000), &[1; 16]);
    assert_eq!(written, Ok(16));
    assert!(probe.take_accesses().is_empty());
}

/// fs/read_write.c, do_loop_readv_writev.
#[test]
fn a_vector_call_moves_one_piece_after_the_other_and_ends_at_the_first_short_one() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let read = |at, pieces: &[(u64, u64)]| {
        let answer = iogate_uapi::read(&world.host, device, at, pieces, &*world.program);
        answer.map(|answer| answer.value)
    };
    let bar = world.region(0, 0xff0);
    assert_eq!(read(bar, &[(ARGUMENT, 4), (ARGUMENT + 64, 4)]), Ok(8));
    assert_eq!(read(bar, &[(ARGUMENT, 12), (ARGUMENT + 64, 8)]), Ok(16));
    let across = [(ARGUMENT, 12), (ARGUMENT + 64, 8), (ARGUMENT + 128, 8)];
    assert_eq!(read(bar, &across), Ok(16));
    assert_eq!(read(bar, &[(ARGUMENT, 4), (0x10, 4)]), Ok(4));
    assert_eq!(read(bar, &[(0x10, 4), (ARGUMENT, 4)]), Err(Errno::EFAULT));
    assert_eq!(read(bar, &[]), Ok(0));
    assert_eq!(read(bar, &[(ARGUMENT, 1); 1025]), Err(Errno::EINVAL));
    let endless = [(ARGUMENT, u64::MAX), (ARGUMENT, 2)];
    assert_eq!(read(bar, &endless), Err(Errno::EINVAL));
    let huge = [(ARGUMENT, 1 << 63)];
    assert_eq!(read(bar, &huge), Err(Errno::EINVAL));
    let container = world.open(Node::Container).unwrap();
    let answer = iogate_uapi::read(&world.host, container, 0, &[], &*world.program);
    assert_eq!(answer.err(), Some(Errno::EINVAL));
}

/// A doorbell leaves work for the device's worker, and only a doorbell.
#[test]
fn a_write_says_whether_the_worker_has_work() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let work = |at| {
        let pieces = [(ARGUMENT, 4)];
        let at = world.region(0, at);
        let answer = iogate_uapi::write(&world.host, device, at, &pieces, &*world.program);
        answer.unwrap().after.work
    };
    assert_eq!(work(0xff8), None);
    assert_eq!(work(0xffc), Some(FIRST));
}

/// vfio_pci_core_mmap. Rule 9.
#[test]
fn only_mappable_bars_are_mapped_shared_and_within_their_size() {
    let world = World::new();
    let (container, group, device) = world.ready(FIRST);
    let map = |file, index, at, length, flags| {
        let at = world.region(index, at);
        iogate_uapi::mmap(&world.host, file, at, length, 3, flags)
    };
    const SHARED: u32 = 1;
    const PRIVATE: u32 = 2;
    const VALIDATE: u32 = 3;
    assert_eq!(map(device, 2, 0, 0x1_0000, SHARED), Ok(()));
    assert_eq!(map(device, 2, 0xf000, PAGE, VALIDATE | 0x8000), Ok(()));
    let bad = Err(Errno::EINVAL);
    assert_eq!(map(device, 2, 0, PAGE, PRIVATE), bad);
    assert_eq!(map(device, 2, 0, 0x1_1000, SHARED), bad);
    assert_eq!(map(device, 2, 0x1_0000, PAGE, SHARED), bad);
    assert_eq!(map(device, 2, 0, 0, SHARED), bad);
    assert_eq!(map(device, 0, 0, PAGE, SHARED), bad, "registers");
    for index in [1, 3, 4, 6, 7, 8, 9] {
        assert_eq!(map(device, index, 0, PAGE, SHARED), bad, "{index}");
    }
    assert_eq!(map(group, 2, 0, PAGE, SHARED), Err(Errno::ENODEV));
    assert_eq!(map(container, 2, 0, PAGE, SHARED), Err(Errno::ENODEV));
}

/// As on real devices, whose registers are mapped as all of a memory BAR is.
#[test]
fn registers_are_mapped_where_accesses_are_executed_for_the_program() {
    let world = World::new();
    let (container, _, device) = world.ready(FIRST);
    assert!(!world.host.maps_registers());
    world.host.map_registers(FIRST).unwrap();
    assert!(world.host.maps_registers());
    let info = world.ask(device, 8, pack!(32_u32, 0_u32, 0_u32, 0_u32, 0_u64, 0_u64));
    assert_eq!(word(&info.unwrap(), 4), 0b111);
    let map = |index| {
        let at = world.region(index, 0);
        iogate_uapi::mmap(&world.host, device, at, PAGE, 3, 1)
    };
    assert_eq!(map(0), Ok(()));
    assert_eq!(map(1), Err(Errno::EINVAL), "ports");

    let (at, mut bytes) = (world.region(0, 0x10), [0; 4]);
    let by = iogate_host::Actor {
        process: 1,
        thread: 1,
    };
    let stored = iogate_uapi::store(&world.host, device, at, &[1, 2, 3, 4], by);
    assert_eq!(stored.unwrap().value, 4);
    iogate_uapi::load(&world.host, device, at, &mut bytes, by).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);
    let load = |file, at| iogate_uapi::load(&world.host, file, at, &mut [0; 4], by).map(|_| ());
    assert_eq!(load(device, world.region(0, PAGE - 2)), Err(Errno::EINVAL));
    assert_eq!(load(device, world.region(1, 0)), Err(Errno::EINVAL));
    assert_eq!(load(container, at), Err(Errno::EINVAL));
}

/// drivers/vfio/pci/vfio_pci_config.c, vfio_basic_config_write and
/// vfio_bar_fixup.
#[test]
fn bars_are_sized_by_writing_ones_and_come_back_at_the_next_open() {
    let world = World::new();
    let (_, group, device) = world.ready(FIRST);
    let before = world.config(device, 0x10);
    world.set_config(device, 0x10, &[0xff; 4]);
    assert_eq!(world.config(device, 0x10), 0xffff_f000);
    world.set_config(device, 0x14, &[0xff; 4]);
    assert_eq!(world.config(device, 0x14), 0xffff_ffe1);
    world.set_config(device, 0x18, &[0xff; 8]);
    assert_eq!(world.config(device, 0x18), 0xffff_0004);
    assert_eq!(world.config(device, 0x1c), 0xffff_ffff);
    world.set_config(device, 0x30, &[0xff; 4]);
    assert_eq!(world.config(device, 0x30), 0, "no ROM");
    world.set_config(device, 0, &[0; 4]);
    assert_eq!(world.config(device, 0), 0x11e8_1234);
    world.close(device);
    let device = world.device_fd(group, NAMES[FIRST]).unwrap();
    assert_eq!(world.config(device, 0x10), before);
}

/// drivers/vfio/pci/vfio_pci_config.c, vfio_cap_init.
#[test]
fn a_capability_that_nobody_knows_is_left_out_of_the_list() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let endpoint = iogate_pci::Function::endpoint(&*world.probes[FIRST]);
    let unknown = u64::from(endpoint.capability(4).unwrap());
    assert_eq!(capability(&world, device, 4), None);
    for id in [0x01, 0x05, 0x10, 0x11] {
        assert!(capability(&world, device, id).is_some(), "{id}");
    }
    assert_ne!(world.config(device, unknown), 0, "its bytes are there");
}

/// drivers/vfio/pci/vfio_pci_config.c, vfio_exp_config_write, and
/// drivers/pci/pci.c, pci_dev_save_and_disable.
#[test]
fn a_function_level_reset_by_config_write_keeps_the_command_register() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let probe = &world.probes[FIRST];
    let control = capability(&world, device, 0x10).unwrap() + 8;
    set_command(&world, device, MEMORY | MASTER);
    world
        .pwrite(device, world.region(0, 0), &[1, 2, 3, 4])
        .unwrap();
    probe.resets.lock().unwrap().clear();
    let value = world.config(device, control) | 1 << 15;
    world.set_config(device, control, &value.to_le_bytes()[..2]);
    assert_eq!(*probe.resets.lock().unwrap(), [ResetKind::FunctionLevel]);
    assert_eq!(world.pread(device, world.region(0, 0), 4), Ok(vec![0; 4]));
    assert_eq!(command(&world, device), MEMORY | MASTER);
    assert_eq!(world.config(device, control) & 1 << 15, 0);
}

/// drivers/vfio/pci/vfio_pci_config.c, vfio_pm_config_write, and
/// __vfio_pci_memory_enabled.
#[test]
fn memory_does_not_answer_in_d3hot() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let control = capability(&world, device, 1).unwrap() + 4;
    let bar = world.region(0, 0);
    world.set_config(device, control, &[3, 0]);
    assert_eq!(world.pread(device, bar, 4), Err(Errno::EIO));
    assert!(world.pread(device, world.region(7, 0), 4).is_ok());
    world.set_config(device, control, &[0, 0]);
    assert!(world.pread(device, bar, 4).is_ok());
    world.set_config(device, control, &[3, 0]);
    world.raw(device, number(11), 0).unwrap();
    assert!(world.pread(device, bar, 4).is_ok(), "a reset wakes it");
}

/// vfio_pci_core_enable and vfio_pci_core_disable.
#[test]
fn the_first_open_and_the_last_close_reset_the_device() {
    let world = World::new();
    let (_, group, device) = world.ready(FIRST);
    let again = world.device_fd(group, NAMES[FIRST]).unwrap();
    set_command(&world, device, MEMORY | MASTER | INTX_DISABLE);
    world.pwrite(device, world.region(0, 0), &[1]).unwrap();
    world.close(device);
    assert_eq!(world.pread(again, world.region(0, 0), 1), Ok(vec![1]));
    world.close(again);
    let endpoint = iogate_pci::Function::endpoint(&*world.probes[FIRST]);
    assert!(!endpoint.command().bus_master());
    let device = world.device_fd(group, NAMES[FIRST]).unwrap();
    assert_eq!(world.pread(device, world.region(0, 0), 1), Ok(vec![0]));
    assert_eq!(command(&world, device), 3);
}

/// vfio_pci_ioctl_get_pci_hot_reset_info.
#[test]
fn hot_reset_info_lists_the_devices_on_the_bus_or_says_how_many() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    let ask = |argsz: u32| {
        let mut argument = pack!(argsz, 9_u32, 9_u32);
        argument.resize(32, 0);
        let result = world.call(device, 12, &mut argument);
        (result, argument)
    };
    let (result, info) = ask(27);
    assert_eq!(result, Err(Errno::ENOSPC));
    assert_eq!((word(&info, 4), word(&info, 8)), (0, 2));
    let (result, info) = ask(28);
    assert_eq!(result, Ok(0));
    assert_eq!((word(&info, 4), word(&info, 8)), (0, 2));
    assert_eq!(word(&info, 12), group_of(FIRST));
    assert_eq!(info[16..20], [0, 0, 1, 0]);
    assert_eq!(word(&info, 20), group_of(SECOND));
    assert_eq!(info[24..28], [0, 0, 1, 1]);
    assert_eq!(ask(11).0, Err(Errno::EINVAL));
    let (_, _, plain) = world.ready(PLAIN);
    let root = world.ask(plain, 12, pack!(64_u32, 0_u32, 0_u32));
    assert_eq!(root, Err(Errno::ENODEV), "a root bus");
}

/// vfio_pci_ioctl_pci_hot_reset.
#[test]
fn a_hot_reset_takes_the_groups_of_all_devices_on_the_bus() {
    let world = World::new();
    let (container, first, device) = world.ready(FIRST);
    let second = world.group(SECOND);
    world.set_container(second, container).unwrap();
    let fd = |file| world.program.fd(file);
    let reset = |flags: u32, fds: &[i32]| {
        let count = u32::try_from(fds.len()).unwrap();
        let mut argument = pack!(12 + 4 * count, flags, count);
        argument.extend(fds.iter().flat_map(|fd| fd.to_ne_bytes()));
        world.call(device, 13, &mut argument)
    };
    let (a, b) = (fd(first), fd(second));
    let bad = Err(Errno::EINVAL);
    assert_eq!(reset(0, &[]), bad, "names no group");
    assert_eq!(reset(1, &[a, b]), bad);
    assert_eq!(reset(0, &[a, b, b]), bad, "more than there can be");
    assert_eq!(reset(0, &[a]), bad, "not all");
    assert_eq!(reset(0, &[a, fd(container)]), bad);
    assert_eq!(reset(0, &[a, world.program.other_fd()]), bad);
    assert_eq!(reset(0, &[a, 999]), Err(Errno::EBADF));
    for index in [FIRST, SECOND] {
        world.probes[index].resets.lock().unwrap().clear();
    }
    assert_eq!(reset(0, &[a, b]), Ok(0));
    for index in [FIRST, SECOND] {
        let resets = world.probes[index].resets.lock().unwrap();
        assert_eq!(*resets, [ResetKind::Bus]);
    }
    let (_, plain_group, plain) = world.ready(PLAIN);
    let argument = pack!(16_u32, 0_u32, 1_u32, fd(plain_group));
    assert_eq!(world.ask(plain, 13, argument), Err(Errno::ENODEV));
}

/// vfio_pci_fill_devs and vfio_pci_dev_set_hot_reset.
#[test]
fn a_device_of_its_own_node_hot_resets_what_its_iommufd_owns() {
    let world = World::new();
    let iommufd = world.open(Node::Iommufd).unwrap();
    let fd = world.program.fd(iommufd);
    let bind = |index, fd: i32| {
        let device = world.open(Node::Device(index)).unwrap();
        let argument = pack!(16_u32, 0_u32, fd, 0_u32);
        let answer = world.ask(device, 18, argument).unwrap();
        (device, word(&answer, 12))
    };
    let (device, id) = bind(TWIN, fd);
    let info = |device| {
        let mut argument = pack!(64_u32, 0_u32, 0_u32);
        argument.resize(64, 0);
        world.ask(device, 12, argument).unwrap()
    };
    let both = info(device);
    assert_eq!((word(&both, 4), word(&both, 8)), (3, 2));
    // The other is in the same group, hence owned, but not bound.
    assert_eq!((word(&both, 12), word(&both, 20)), (id, 0));
    let reset = |device, count: u32| world.ask(device, 13, pack!(12_u32, 0_u32, count));
    assert_eq!(reset(device, 1), Err(Errno::EINVAL));
    assert!(reset(device, 0).is_ok());
    // On the other bus nobody owns the second.
    let (device, id) = bind(FIRST, fd);
    let both = info(device);
    assert_eq!((word(&both, 4), word(&both, 8)), (1, 2));
    assert_eq!((word(&both, 12), word(&both, 20)), (id, u32::MAX));
    assert_eq!(reset(device, 0), Err(Errno::EINVAL));
}

/// vfio_pci_ioctl_ioeventfd and drivers/vfio/pci/vfio_pci_rdwr.c,
/// vfio_pci_ioeventfd.
#[test]
fn an_eventfd_makes_a_register_write() {
    let world = World::new();
    let (_, group, device) = world.ready(FIRST);
    let (fd, _) = world.program.eventfd_pair();
    let set = |flags: u32, offset: u64, data: u64, fd: i32| {
        let argument = pack!(32_u32, flags, offset, data, fd, 0_u32);
        world.ask(device, 16, argument).map(drop)
    };
    let doorbell = world.region(0, 0xffc);
    let bad = Err(Errno::EINVAL);
    for flags in [0, 3, 16, 1 << 31] {
        assert_eq!(set(flags, doorbell, 1, fd), bad, "{flags}");
    }
    assert_eq!(set(4, doorbell, 1, -2), bad);
    assert_eq!(set(8, doorbell - 4, 1, fd), bad, "8 bytes");
    assert_eq!(set(4, world.region(0, 0xffd), 1, fd), bad, "across the end");
    assert_eq!(set(4, world.region(7, 0), 1, fd), bad, "no BAR");
    assert_eq!(set(4, world.region(3, 0), 1, fd), bad, "no such BAR");
    assert_eq!(set(4, world.region(2, 0x207c), 1, fd), bad, "MSI-X table");
    assert_eq!(set(4, doorbell, 1, -1), Err(Errno::ENODEV));
    assert_eq!(set(4, doorbell, 1, 999), Err(Errno::EBADF));
    assert_eq!(set(4, doorbell, 1, world.program.other_fd()), bad);
    assert_eq!(set(4, doorbell, 0x0102_0304, fd), Ok(()));
    assert_eq!(set(4, doorbell, 0x0102_0304, fd), Err(Errno::EEXIST));
    assert_eq!(set(2, doorbell, 0x0102_0304, fd), Ok(()));
    assert_eq!(set(2, doorbell, 0x0102_0304, -1), Ok(()));
    assert_eq!(world.program.ring(fd), [FIRST]);
    assert_eq!(world.pread(device, doorbell, 4), Ok(vec![4, 3, 2, 1]));
    world.pwrite(device, doorbell, &[0; 4]).unwrap();
    set_command(&world, device, 0);
    assert!(world.program.ring(fd).is_empty(), "memory does not answer");
    set_command(&world, device, MEMORY);
    assert_eq!(world.pread(device, doorbell, 4), Ok(vec![0; 4]));
    assert_eq!(set(4, doorbell, 0x0102_0304, -1), Ok(()));
    assert!(world.program.ring(fd).is_empty());
    for index in 0..1000 {
        assert_eq!(set(1, world.region(0, index), 0, fd), Ok(()));
    }
    assert_eq!(set(1, world.region(0, 1000), 0, fd), Err(Errno::ENOSPC));
    world.close(device);
    world.close(group);
    assert_eq!(world.program.watch_count(), 0);
}

/// drivers/vfio/vfio_main.c, vfio_ioctl_device_feature and vfio_check_feature.
#[test]
fn features_are_probed_before_they_are_looked_for() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    const GET: u32 = 1 << 16;
    const SET: u32 = 1 << 17;
    const PROBE: u32 = 1 << 18;
    let feature = |argsz: u32, flags: u32| {
        let argument = pack!(argsz, flags, -1_i32, 0_u32);
        world.ask(device, 17, argument).map(drop)
    };
    let bad = Err(Errno::EINVAL);
    assert_eq!(feature(7, PROBE), bad);
    for bit in 19..32 {
        assert_eq!(feature(8, PROBE | 1 << bit), bad, "{bit}");
    }
    // Both at once are refused even for a feature that nobody has.
    assert_eq!(feature(8, GET | SET | 1), bad);
    let others = (0..=0xffff).filter(|number| !(3..=5).contains(number));
    for number in others.step_by(7).chain([0, 1, 2, 6, 7, 8, 9, 10, 13]) {
        assert_eq!(feature(8, PROBE | GET | number), Err(Errno::ENOTTY));
    }
    // vfio_ioctl_device_feature_migration_precopy_info_v2.
    assert_eq!(feature(8, PROBE | SET | 12), bad, "no PRE_COPY");
    for number in 3..=5 {
        assert_eq!(feature(8, number), bad, "neither");
        assert_eq!(feature(8, GET | number), bad);
        assert_eq!(feature(8, PROBE | GET | number), bad);
        assert_eq!(feature(8, PROBE | SET | number), Ok(()));
        assert_eq!(feature(8, PROBE | number), Ok(()));
    }
    assert_eq!(feature(8, SET | 4), bad, "no room for the eventfd");
    assert_eq!(feature(16, SET | 4), Err(Errno::EBADF));
}

/// vfio_pci_runtime_pm_entry and vfio_pci_core_runtime_resume.
#[test]
fn memory_does_not_answer_in_low_power_and_an_access_may_wake() {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    const SET: u32 = 1 << 17;
    let bar = world.region(0, 0);
    let set = |number: u32, fd: i32| {
        let argument = pack!(16_u32, SET | number, fd, 0_u32);
        world.ask(device, 17, argument).map(drop)
    };
    assert_eq!(set(3, 0), Ok(()));
    assert_eq!(set(3, 0), Err(Errno::EINVAL), "twice");
    assert_eq!(world.pread(device, bar, 4), Err(Errno::EIO));
    assert_eq!(set(5, 0), Ok(()));
    assert_eq!(set(5, 0), Ok(()), "leaving twice is no mistake");
    assert!(world.pread(device, bar, 4).is_ok());
    let (fd, wakeup) = world.program.eventfd_pair();
    assert_eq!(set(4, fd), Ok(()));
    assert!(world.pread(device, bar, 4).is_ok(), "woken");
    assert_eq!(wakeup.0.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(set(3, 0), Ok(()), "left by waking");
}

/// vfio_pci_ioctl_reset: mappings stay, the device's registers do not.
#[test]
fn a_reset_clears_registers_and_leaves_mappings() {
    let world = World::new();
    let (container, _, device) = world.ready(FIRST);
    world.map(container, 3, (HEAP, 0, PAGE)).unwrap();
    world.pwrite(device, world.region(0, 0), &[1]).unwrap();
    assert_eq!(world.raw(device, number(11), 0), Ok(0));
    assert_eq!(world.pread(device, world.region(0, 0), 1), Ok(vec![0]));
    assert!(world.dma(FIRST, 0, &mut [0]).is_ok());
}
