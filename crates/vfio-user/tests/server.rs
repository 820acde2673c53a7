//! A server, as a client that writes raw messages sees it. Beside the
//! specification: what the checklist of bad inputs names for vfio-user, and
//! what the `vfio_user` crate 0.1.7 was found to do wrong.

mod common;

use std::io::Write;
use std::time::Duration;

use common::{Leak, Served, Told, message, receive, send_files, serve, serve_with};
use iogate_dma::Rights;
use iogate_vfio_user::wire::{
    self, Bitmap, Command, DmaMap, DmaUnmap, Feature, MigData, RegionAccess, RegionInfo, SetIrqs,
    SmallWrite, WriteMulti,
};
use iogate_vfio_user::{
    Ended, Errno, FeatureOperation, IrqAction, Limits, ServerOptions, Violation,
};
use zerocopy::{FromBytes, IntoBytes};

const EINVAL: i32 = Errno::INVAL.raw_os_error();
const ENOSYS: i32 = Errno::NOSYS.raw_os_error();
const EEXIST: i32 = Errno::EXIST.raw_os_error();
const ENOENT: i32 = Errno::NOENT.raw_os_error();
const ENOSPC: i32 = Errno::NOSPC.raw_os_error();

fn ready() -> Served {
    let mut served = serve();
    served.version();
    served
}

fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    let access = RegionAccess {
        offset,
        region,
        count,
    };
    access.as_bytes().to_vec()
}

fn write(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut body = access(region, offset, data.len() as u32);
    body.extend_from_slice(data);
    body
}

fn map(address: u64, size: u64, offset: u64) -> Vec<u8> {
    let map = DmaMap {
        argsz: 32,
        flags: wire::MAP_READ | wire::MAP_WRITE,
        offset,
        address,
        size,
    };
    map.as_bytes().to_vec()
}

fn unmap(flags: u32, address: u64, size: u64) -> Vec<u8> {
    let unmap = DmaUnmap {
        argsz: 24,
        flags,
        address,
        size,
    };
    unmap.as_bytes().to_vec()
}

fn irqs(flags: u32, start: u32, count: u32) -> Vec<u8> {
    let set = SetIrqs {
        argsz: 20,
        flags,
        index: 0,
        start,
        count,
    };
    set.as_bytes().to_vec()
}

/// Serving goes on, and what comes next is the reply to what is asked next.
fn still_serves(served: &mut Served) {
    let read = served.call(Command::RegionRead, &access(1, 0, 2)).unwrap();
    assert_eq!(read[16..], [0x11, 0x11]);
}

#[test]
fn a_region_is_written_and_read_back() {
    let mut served = ready();
    let data = write(0, 8, &[1, 2, 3, 4]);
    let replied = served.call(Command::RegionWrite, &data).unwrap();
    assert_eq!(replied, access(0, 8, 4));
    let read = served.call(Command::RegionRead, &access(0, 8, 4)).unwrap();
    assert_eq!(read, data);
    let (ended, told) = served.close();
    assert_eq!(ended, Ended::Disconnected);
    let write = Told::Write(0, 8, vec![1, 2, 3, 4]);
    assert_eq!(told, [Told::Connected, write, Told::Disconnected]);
}

#[test]
fn a_message_shorter_than_its_header_ends_the_connection() {
    for size in [0_u32, 1, 15] {
        let mut served = ready();
        let mut bytes = message(1, 9, 0, &[]);
        bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        served.stream.write_all(&bytes).unwrap();
        let ended = served.thread.join().unwrap();
        assert_eq!(ended, Ended::Violation(Violation::Short(size)));
    }
}

#[test]
fn a_message_longer_than_any_may_be_ends_the_connection() {
    for size in [u32::MAX, (1 << 20) + (64 << 10) + 17] {
        let mut served = ready();
        let mut bytes = message(1, 9, 0, &[]);
        bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        served.stream.write_all(&bytes).unwrap();
        let ended = served.thread.join().unwrap();
        assert_eq!(ended, Ended::Violation(Violation::Long(size)));
    }
}

#[test]
fn a_message_that_is_neither_command_nor_reply_ends_the_connection() {
    let mut served = ready();
    served.send(1, Command::RegionRead, 2, &access(0, 0, 4));
    let ended = served.thread.join().unwrap();
    assert_eq!(ended, Ended::Violation(Violation::Type(2)));
}

#[test]
fn messages_may_come_a_byte_at_a_time_or_many_at_once() {
    let mut served = ready();
    for byte in message(1, Command::RegionRead.number(), 0, &access(1, 0, 1)) {
        served.stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(receive(&mut served.stream).1.len(), 17);
    let mut bytes = Vec::new();
    for id in 0..300 {
        let data = write(0, u64::from(id), &[id as u8]);
        bytes.extend(message(id, Command::RegionWrite.number(), 0, &data));
    }
    served.stream.write_all(&bytes).unwrap();
    for id in 0..300 {
        let (header, body) = receive(&mut served.stream);
        assert_eq!((header.id, body), (id, access(0, id.into(), 1)));
    }
    let read = served
        .call(Command::RegionRead, &access(0, 255, 2))
        .unwrap();
    assert_eq!(read[16..], [255, 0]);
}

#[test]
fn a_client_that_goes_within_a_message_leaves_nothing_behind() {
    let mut served = ready();
    let leak = Leak::new();
    let files = [leak.file()];
    served
        .call_with(Command::DmaMap, &map(0x1000, 0x1000, 0), &files)
        .unwrap();
    served
        .stream
        .write_all(&message(1, 9, 0, &access(0, 0, 4))[..20])
        .unwrap();
    let (ended, told) = served.close();
    assert_eq!(ended, Ended::Violation(Violation::Torn));
    let mapped = Told::Map(0x1000, 0x1000, Rights::READ_WRITE, Some(0));
    let unmapped = Told::Unmap(0x1000, 0x1000);
    assert_eq!(
        told,
        [Told::Connected, mapped, unmapped, Told::Disconnected]
    );
    leak.wait_until_closed();
}

#[test]
fn the_body_of_an_unknown_command_is_passed_over() {
    let mut served = ready();
    for number in [0, 11, 12, 19, 0xffff] {
        served
            .stream
            .write_all(&message(5, number, 0, &[0xaa; 4096]))
            .unwrap();
        let (header, _) = receive(&mut served.stream);
        assert_eq!((header.id, header.command), (5, number));
        assert_eq!(header.error, ENOSYS as u32);
    }
    still_serves(&mut served);
}

#[test]
fn a_version_that_cannot_be_read_is_refused_and_ends_the_connection() {
    let versions: [&[u8]; 9] = [
        &[],
        &[0, 0, 0],
        &[1, 0, 0, 0],
        b"\0\0\0\0{}",
        b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":8}}",
        b"\0\0\0\0{\0",
        b"\0\0\0\0[]\0",
        b"\0\0\0\0{\"capabilities\":7}\0",
        b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":\"many\"}}\0",
    ];
    for version in versions {
        let mut served = serve();
        assert_eq!(served.call(Command::Version, version), Err(EINVAL));
        let (ended, told) = served.close();
        assert!(matches!(ended, Ended::Violation(Violation::Version(_))));
        assert_eq!(told, []);
    }
}

#[test]
fn nothing_is_served_before_the_version() {
    let mut served = serve();
    let refused = served.call(Command::RegionRead, &access(0, 0, 4));
    assert_eq!(refused, Err(EINVAL));
    let (ended, _) = served.close();
    assert!(matches!(ended, Ended::Violation(Violation::Version(_))));
}

#[test]
fn a_second_version_is_refused() {
    let mut served = ready();
    assert_eq!(served.call(Command::Version, &[0; 4]), Err(EINVAL));
    still_serves(&mut served);
}

#[test]
fn the_reply_names_only_capabilities_that_the_client_named() {
    let cases: [(&[u8], &str); 5] = [
        (b"", "{}"),
        (b"\0", "{}"),
        (b"{}\0", "{}"),
        (
            b"{\"capabilities\":{\"twin_socket\":{\"supported\":true}}}\0",
            "{}",
        ),
        (
            b"{\"capabilities\":{\"max_msg_fds\":3,\"write_multiple\":false}}\0",
            r#"{"max_msg_fds":16,"write_multiple":true}"#,
        ),
    ];
    for (json, capabilities) in cases {
        let mut served = serve();
        let mut version = vec![0, 0, 7, 0];
        version.extend_from_slice(json);
        let reply = served.call(Command::Version, &version).unwrap();
        let expected = format!("\0\0\0\0{{\"capabilities\":{capabilities}}}\0");
        assert_eq!(String::from_utf8(reply).unwrap(), expected);
        still_serves(&mut served);
    }
}

#[test]
fn what_is_less_than_a_client_assumes_is_named_without_being_asked() {
    let limits = Limits {
        max_data_xfer_size: 4096,
        max_dma_maps: 7,
        ..Limits::default()
    };
    let mut served = serve_with(ServerOptions {
        limits,
        ..ServerOptions::default()
    });
    let reply = served.call(Command::Version, &[0; 4]).unwrap();
    let json = std::str::from_utf8(&reply[4..reply.len() - 1]).unwrap();
    assert_eq!(
        json,
        r#"{"capabilities":{"max_data_xfer_size":4096,"max_dma_maps":7}}"#
    );
}

/// QEMU's proxy takes no reply that is longer than its request, no more than
/// 16 descriptors, 64 MiB, 65,535 mappings, and no page size below 4 KiB
/// (hw/vfio-user/proxy.c).
#[test]
fn the_reply_is_one_that_qemu_takes() {
    let qemu = br#"{"capabilities": {"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, "pgsizes": 4096, "write_multiple": true}}"#;
    let mut version = vec![0; 4];
    version.extend_from_slice(qemu);
    version.push(0);
    let mut served = serve();
    let reply = served.call(Command::Version, &version).unwrap();
    assert!(reply.len() <= version.len());
    let json = std::str::from_utf8(&reply[4..reply.len() - 1]).unwrap();
    let expected = r#"{"capabilities":{"max_data_xfer_size":1048576,"max_dma_maps":65535,"max_msg_fds":16,"pgsizes":4096,"write_multiple":true}}"#;
    assert_eq!(json, expected);
}

#[test]
fn an_access_past_a_region_a_limit_or_a_right_is_refused() {
    let mut served = ready();
    for (region, offset, count) in [
        (0, 0xfffe, 4),
        (0, 0x10000, 1),
        (0, u64::MAX, 2),
        (0, u64::MAX - 3, 4),
        (0, 0, 512 << 20),
        (0, 0, u32::MAX),
        (2, 0, 1),
        (3, 0, 1),
        (u32::MAX, 0, 1),
    ] {
        let refused = served.call(Command::RegionRead, &access(region, offset, count));
        assert_eq!(refused, Err(EINVAL), "{region} {offset:#x} {count}");
    }
    assert_eq!(
        served.call(Command::RegionWrite, &write(1, 0, &[1])),
        Err(EINVAL)
    );
    assert_eq!(
        served.call(Command::RegionWrite, &write(0, 0xffff, &[1, 2])),
        Err(EINVAL)
    );
    // The count is not that of the data.
    let mut data = access(0, 0, 8);
    data.extend_from_slice(&[1; 4]);
    assert_eq!(served.call(Command::RegionWrite, &data), Err(EINVAL));
    data[12] = 3;
    assert_eq!(served.call(Command::RegionWrite, &data), Err(EINVAL));
    assert_eq!(served.call(Command::RegionRead, &data), Err(EINVAL));
    assert_eq!(served.call(Command::RegionRead, &data[..15]), Err(EINVAL));
    let whole = served
        .call(Command::RegionRead, &access(0, 0, 0x10000))
        .unwrap();
    assert_eq!(whole.len(), 16 + 0x10000);
    assert_eq!(
        served
            .call(Command::RegionRead, &access(0, 0x10000, 0))
            .unwrap()
            .len(),
        16
    );
    assert_eq!(served.close().1, [Told::Connected, Told::Disconnected]);
}

#[test]
fn what_wants_no_reply_gets_none_not_even_for_an_error() {
    let mut served = ready();
    let quiet = wire::flags::NO_REPLY;
    served.send(1, Command::RegionWrite, quiet, &write(0, 0, &[9]));
    served.send(2, Command::RegionWrite, quiet, &write(0, u64::MAX, &[9]));
    served.send(3, Command::RegionRead, quiet, &access(0, 0, 4));
    served
        .stream
        .write_all(&message(4, 99, quiet, &[1; 64]))
        .unwrap();
    let read = served.call(Command::RegionRead, &access(0, 0, 1)).unwrap();
    assert_eq!(read[16..], [9]);
}

#[test]
fn a_mapping_may_not_overlap_another() {
    let mut served = ready();
    served
        .call(Command::DmaMap, &map(0x2000, 0x2000, 0))
        .unwrap();
    for (address, size) in [
        (0x2000, 0x2000),
        (0x1000, 0x1001),
        (0x3fff, 1),
        (0, 0x10000),
    ] {
        let refused = served.call(Command::DmaMap, &map(address, size, 0));
        assert_eq!(refused, Err(EEXIST), "{address:#x} {size:#x}");
    }
    served
        .call(Command::DmaMap, &map(0x1000, 0x1000, 0))
        .unwrap();
    served
        .call(Command::DmaMap, &map(0x4000, 0x1000, 0))
        .unwrap();
    assert_eq!(
        served
            .call(Command::DmaUnmap, &unmap(0, 0x2000, 0x2000))
            .unwrap(),
        unmap(0, 0x2000, 0x2000)
    );
    served
        .call(Command::DmaMap, &map(0x2000, 0x1000, 0))
        .unwrap();
}

#[test]
fn a_mapping_that_wraps_or_is_empty_is_refused() {
    let mut served = ready();
    for (address, size, offset) in [
        (0, 0, 0),
        (u64::MAX, 2, 0),
        (0x1000, u64::MAX, 0),
        (0x1000, 0x1000, 0x1000),
    ] {
        let refused = served.call(Command::DmaMap, &map(address, size, offset));
        assert_eq!(refused, Err(EINVAL), "{address:#x} {size:#x} {offset:#x}");
    }
    let leak = Leak::new();
    let past = served.call_with(
        Command::DmaMap,
        &map(0, 0x1000, u64::MAX - 0xff),
        &[leak.file()],
    );
    assert_eq!(past, Err(EINVAL));
    leak.wait_until_closed();
    let mut unknown = map(0, 0x1000, 0);
    unknown[4] |= 1 << 4;
    assert_eq!(served.call(Command::DmaMap, &unknown), Err(EINVAL));
    let mut small = map(0, 0x1000, 0);
    small[0] = 31;
    assert_eq!(served.call(Command::DmaMap, &small), Err(EINVAL));
    assert_eq!(
        served.call(Command::DmaMap, &map(0, 0x1000, 0)[..31]),
        Err(EINVAL)
    );
    served
        .call(Command::DmaMap, &map(u64::MAX - 0xfff, 0x1000, 0))
        .unwrap();
}

#[test]
fn no_more_can_be_mapped_than_was_agreed() {
    let limits = Limits {
        max_dma_maps: 2,
        ..Limits::default()
    };
    let mut served = serve_with(ServerOptions {
        limits,
        ..ServerOptions::default()
    });
    served.version();
    served.call(Command::DmaMap, &map(0, 0x1000, 0)).unwrap();
    served
        .call(Command::DmaMap, &map(0x1000, 0x1000, 0))
        .unwrap();
    assert_eq!(
        served.call(Command::DmaMap, &map(0x2000, 0x1000, 0)),
        Err(ENOSPC)
    );
    served
        .call(Command::DmaUnmap, &unmap(0, 0, 0x1000))
        .unwrap();
    served
        .call(Command::DmaMap, &map(0x2000, 0x1000, 0))
        .unwrap();
}

/// The specification wants exact unmaps; QEMU sends enclosing ones.
#[test]
fn an_unmap_may_enclose_mappings_but_not_cut_one() {
    let mut served = ready();
    for address in [0x1000, 0x2000, 0x5000] {
        served
            .call(Command::DmaMap, &map(address, 0x1000, 0))
            .unwrap();
    }
    served.device.told();
    assert_eq!(
        served.call(Command::DmaUnmap, &unmap(0, 0x1800, 0x4800)),
        Err(EINVAL)
    );
    assert_eq!(
        served.call(Command::DmaUnmap, &unmap(0, 0x1000, 0x1800)),
        Err(EINVAL)
    );
    assert_eq!(
        served.call(Command::DmaUnmap, &unmap(0, 0x8000, 0x1000)),
        Err(ENOENT)
    );
    assert_eq!(served.call(Command::DmaUnmap, &unmap(0, 0, 0)), Err(EINVAL));
    assert_eq!(
        served.call(Command::DmaUnmap, &unmap(0, u64::MAX, 2)),
        Err(EINVAL)
    );
    assert_eq!(served.device.told(), []);
    served
        .call(Command::DmaUnmap, &unmap(0, 0, 0x4000))
        .unwrap();
    let both = [Told::Unmap(0x1000, 0x1000), Told::Unmap(0x2000, 0x1000)];
    assert_eq!(served.device.told(), both);
    served
        .call(Command::DmaUnmap, &unmap(0, 0x5000, 0x1000))
        .unwrap();
}

#[test]
fn everything_is_unmapped_at_once_if_neither_address_nor_size_is_given() {
    let mut served = ready();
    served.call(Command::DmaMap, &map(0, 0x1000, 0)).unwrap();
    let top = u64::MAX - 0xfff;
    served.call(Command::DmaMap, &map(top, 0x1000, 0)).unwrap();
    served.device.told();
    let all = wire::UNMAP_ALL;
    assert_eq!(
        served.call(Command::DmaUnmap, &unmap(all, 0, 0x1000)),
        Err(EINVAL)
    );
    assert_eq!(
        served.call(Command::DmaUnmap, &unmap(all, 0x1000, 0)),
        Err(EINVAL)
    );
    assert_eq!(
        served.call(Command::DmaUnmap, &unmap(all | 1, 0, 0)),
        Err(EINVAL)
    );
    served.call(Command::DmaUnmap, &unmap(all, 0, 0)).unwrap();
    assert_eq!(
        served.device.told(),
        [Told::Unmap(0, 0x1000), Told::Unmap(top, 0x1000)]
    );
    served.call(Command::DmaUnmap, &unmap(all, 0, 0)).unwrap();
}

#[test]
fn dirty_pages_are_refused_unless_the_bitmap_has_room_for_them() {
    let mut served = ready();
    served.call(Command::DmaMap, &map(0, 0x41000, 0)).unwrap();
    let get = |argsz: u32, page_size, size| {
        let mut body = unmap(wire::UNMAP_GET_DIRTY, 0, 0x41000);
        body[..4].copy_from_slice(&argsz.to_ne_bytes());
        body.extend_from_slice(Bitmap { page_size, size }.as_bytes());
        body
    };
    for body in [
        get(56, 4096, 8),
        get(55, 4096, 16),
        get(56, 4095, 16),
        get(56, 0, 16),
        get(u32::MAX, 4096, 1 << 40),
    ] {
        assert_eq!(served.call(Command::DmaUnmap, &body), Err(EINVAL));
    }
    // Room enough; this device logs nothing.
    let errno = Errno::NOTSUP.raw_os_error();
    assert_eq!(
        served.call(Command::DmaUnmap, &get(56, 4096, 16)),
        Err(errno)
    );
    served
        .call(Command::DmaUnmap, &unmap(0, 0, 0x41000))
        .unwrap();
}

#[test]
fn descriptors_that_a_command_does_not_take_are_closed() {
    let mut served = ready();
    let leak = Leak::new();
    let one = [leak.file()];
    let two = [leak.file(), leak.file()];
    assert_eq!(
        served.call_with(Command::RegionRead, &access(0, 0, 4), &one),
        Err(EINVAL)
    );
    assert_eq!(
        served.call_with(Command::DeviceReset, &[], &two),
        Err(EINVAL)
    );
    assert_eq!(
        served.call_with(Command::DmaMap, &map(0, 0x1000, 0), &two),
        Err(EINVAL)
    );
    let unknown = message(3, 4711, 0, &[0; 100]);
    send_files(&served.stream, &unknown, &one);
    receive(&mut served.stream);
    let quiet = message(
        3,
        Command::RegionRead.number(),
        wire::flags::NO_REPLY,
        &access(0, 0, 4),
    );
    send_files(&served.stream, &quiet, &one);
    let reply = message(9, Command::DmaRead.number(), wire::flags::REPLY, &[0; 24]);
    send_files(&served.stream, &reply, &one);
    still_serves(&mut served);
    leak.wait_until_closed();
}

#[test]
fn more_descriptors_than_were_agreed_are_refused_and_closed() {
    let mut served = ready();
    let leak = Leak::new();
    let many = vec![leak.file(); 17];
    let flags = wire::IRQ_DATA_EVENTFD | wire::IRQ_ACTION_TRIGGER;
    assert_eq!(
        served.call_with(Command::DeviceSetIrqs, &irqs(flags, 0, 4), &many),
        Err(EINVAL)
    );
    leak.wait_until_closed();
    still_serves(&mut served);
}

#[test]
fn descriptors_belong_to_the_message_that_they_were_sent_with() {
    let mut served = ready();
    // The server may read all of this at once.
    let first = message(1, Command::RegionRead.number(), 0, &access(1, 0, 1));
    served.stream.write_all(&first).unwrap();
    let leaks = [Leak::new(), Leak::new()];
    for (index, leak) in leaks.iter().enumerate() {
        let map = map(0x1000 * index as u64, 0x1000, 0x5000 * index as u64);
        send_files(
            &served.stream,
            &message(2, Command::DmaMap.number(), 0, &map),
            &[leak.file()],
        );
    }
    served.stream.write_all(&first).unwrap();
    for id in [1, 2, 2, 1] {
        let (header, _) = receive(&mut served.stream);
        assert_eq!((header.id, header.flags), (id, wire::flags::REPLY));
    }
    let maps = [
        Told::Map(0, 0x1000, Rights::READ_WRITE, Some(0)),
        Told::Map(0x1000, 0x1000, Rights::READ_WRITE, Some(0x5000)),
    ];
    assert_eq!(served.device.told()[1..], maps);
    served.close();
    for leak in leaks {
        leak.wait_until_closed();
    }
}

/// The order and the errno of `vfio_set_irqs_validate_and_prepare`
/// (drivers/vfio/vfio_main.c).
#[test]
fn interrupts_that_do_not_exist_cannot_be_set() {
    let mut served = ready();
    let none = wire::IRQ_DATA_NONE | wire::IRQ_ACTION_TRIGGER;
    for (start, count) in [
        (0, 5),
        (4, 0),
        (4, 1),
        (3, 2),
        (u32::MAX, 1),
        (1, u32::MAX),
        (2, u32::MAX - 1),
    ] {
        let refused = served.call(Command::DeviceSetIrqs, &irqs(none, start, count));
        assert_eq!(refused, Err(EINVAL), "{start} {count}");
    }
    let mut other = irqs(none, 0, 1);
    other[8] = 1;
    assert_eq!(served.call(Command::DeviceSetIrqs, &other), Err(EINVAL));
    other[8] = 2;
    assert_eq!(served.call(Command::DeviceSetIrqs, &other), Err(EINVAL));
    assert_eq!(
        served.call(Command::DeviceSetIrqs, &irqs(none, 0, 4)[..19]),
        Err(EINVAL)
    );
    assert_eq!(served.device.told(), [Told::Connected]);
}

#[test]
fn interrupts_are_set_by_one_kind_of_data_and_one_action() {
    let mut served = ready();
    let (none, bools, events) = (
        wire::IRQ_DATA_NONE,
        wire::IRQ_DATA_BOOL,
        wire::IRQ_DATA_EVENTFD,
    );
    let trigger = wire::IRQ_ACTION_TRIGGER;
    for flags in [
        0,
        none,
        trigger,
        none | bools | trigger,
        none | trigger | wire::IRQ_ACTION_MASK,
        1 << 6 | none | trigger,
    ] {
        assert_eq!(
            served.call(Command::DeviceSetIrqs, &irqs(flags, 0, 1)),
            Err(EINVAL),
            "{flags:#x}"
        );
    }
    // Bytes that are missing, descriptors too few or too many.
    assert_eq!(
        served.call(Command::DeviceSetIrqs, &irqs(bools | trigger, 0, 2)),
        Err(EINVAL)
    );
    assert_eq!(
        served.call(Command::DeviceSetIrqs, &irqs(events | trigger, 0, 0)),
        Err(EINVAL)
    );
    let leak = Leak::new();
    for count in [1, 3] {
        let files = [leak.file(), leak.file()];
        let refused = served.call_with(
            Command::DeviceSetIrqs,
            &irqs(events | trigger, 0, count),
            &files,
        );
        assert_eq!(refused, Err(EINVAL));
    }
    assert_eq!(
        served.call_with(
            Command::DeviceSetIrqs,
            &irqs(none | trigger, 0, 1),
            &[leak.file()]
        ),
        Err(EINVAL)
    );
    leak.wait_until_closed();
    served.device.told();

    served
        .call(Command::DeviceSetIrqs, &irqs(none | trigger, 0, 0))
        .unwrap();
    let mut two = irqs(bools | wire::IRQ_ACTION_MASK, 1, 2);
    two.extend_from_slice(&[0, 1]);
    served.call(Command::DeviceSetIrqs, &two).unwrap();
    let leak = Leak::new();
    let files = [leak.file(), leak.file(), leak.file()];
    served
        .call_with(
            Command::DeviceSetIrqs,
            &irqs(events | trigger, 1, 3),
            &files,
        )
        .unwrap();
    served
        .call(
            Command::DeviceSetIrqs,
            &irqs(events | wire::IRQ_ACTION_UNMASK, 0, 4),
        )
        .unwrap();
    let told = [
        Told::Irqs(0, 0, 0, IrqAction::Trigger, "none", 0),
        Told::Irqs(0, 1, 2, IrqAction::Mask, "bool", 1),
        Told::Irqs(0, 1, 3, IrqAction::Trigger, "eventfd", 3),
        Told::Irqs(0, 0, 4, IrqAction::Unmask, "eventfd", 0),
    ];
    assert_eq!(served.device.told(), told);
    served.close();
    leak.wait_until_closed();
}

#[test]
fn a_client_that_never_reads_its_answers_loses_its_connection() {
    let options = ServerOptions {
        queue: 256 << 10,
        ..ServerOptions::default()
    };
    let mut served = serve_with(options);
    served.version();
    let read = message(1, Command::RegionRead.number(), 0, &access(0, 0, 0x10000));
    while served.stream.write_all(&read).is_ok() {}
    assert_eq!(served.thread.join().unwrap(), Ended::NotReading);
}

#[test]
fn answers_that_a_slow_client_left_arrive_in_their_order() {
    let mut served = ready();
    let mut bytes = Vec::new();
    for id in 0..40 {
        bytes.extend(message(
            id,
            Command::RegionRead.number(),
            0,
            &access(0, 0, 0x10000),
        ));
    }
    served.stream.write_all(&bytes).unwrap();
    for id in 0..40 {
        let (header, body) = receive(&mut served.stream);
        assert_eq!((header.id, body.len()), (id, 16 + 0x10000));
    }
    still_serves(&mut served);
}

#[test]
fn replies_that_nobody_waits_for_are_passed_over() {
    let mut served = ready();
    for id in [0, 1, 63, 64, u16::MAX] {
        served.send(id, Command::DmaRead, wire::flags::REPLY, &[7; 500]);
        served.send(
            id,
            Command::DmaWrite,
            wire::flags::REPLY | wire::flags::ERROR,
            &[],
        );
    }
    still_serves(&mut served);
}

#[test]
fn several_writes_in_one_message_are_done_in_their_order() {
    let mut served = ready();
    let multi = |writes: &[(u32, u64, u32)]| {
        let count = writes.len() as u64;
        let mut body = WriteMulti { count }.as_bytes().to_vec();
        for (index, (region, offset, count)) in writes.iter().enumerate() {
            let write = SmallWrite {
                offset: *offset,
                region: *region,
                count: *count,
                data: [index as u8; 8],
            };
            body.extend_from_slice(write.as_bytes());
        }
        body
    };
    let reply = served
        .call(
            Command::RegionWriteMulti,
            &multi(&[(0, 0, 8), (0, 4, 1), (0, 6, 2)]),
        )
        .unwrap();
    assert_eq!(reply, 3_u64.to_ne_bytes());
    let read = served.call(Command::RegionRead, &access(0, 0, 8)).unwrap();
    assert_eq!(read[16..], [0, 0, 0, 0, 1, 0, 2, 2]);
    // It ends with the first that cannot be done.
    let reply = served
        .call(
            Command::RegionWriteMulti,
            &multi(&[(0, 0, 1), (1, 0, 1), (0, 0, 1)]),
        )
        .unwrap();
    assert_eq!(reply, 1_u64.to_ne_bytes());
    assert_eq!(
        served.call(Command::RegionWriteMulti, &multi(&[(0, 0, 9)])),
        Err(EINVAL)
    );
    let mut more = multi(&[(0, 0, 1)]);
    more[..8].copy_from_slice(&u64::MAX.to_ne_bytes());
    assert_eq!(served.call(Command::RegionWriteMulti, &more), Err(EINVAL));
    more[..8].copy_from_slice(&((u64::MAX / 24) + 2).to_ne_bytes());
    assert_eq!(served.call(Command::RegionWriteMulti, &more), Err(EINVAL));
}

#[test]
fn information_needs_room_for_its_fixed_part() {
    let mut served = ready();
    let info = |argsz: u32| wire::DeviceInfo {
        argsz,
        ..Default::default()
    };
    assert_eq!(
        served.call(Command::DeviceGetInfo, info(15).as_bytes()),
        Err(EINVAL)
    );
    assert_eq!(
        served.call(Command::DeviceGetInfo, &info(16).as_bytes()[..12]),
        Err(EINVAL)
    );
    let reply = served
        .call(Command::DeviceGetInfo, info(100).as_bytes())
        .unwrap();
    let expected = wire::DeviceInfo {
        argsz: 16,
        flags: 3,
        regions: 3,
        irqs: 2,
    };
    assert_eq!(reply, expected.as_bytes());
    let region = |argsz, index| RegionInfo {
        argsz,
        index,
        ..Default::default()
    };
    assert_eq!(
        served.call(Command::DeviceGetRegionInfo, region(31, 0).as_bytes()),
        Err(EINVAL)
    );
    assert_eq!(
        served.call(Command::DeviceGetRegionInfo, region(32, 3).as_bytes()),
        Err(EINVAL)
    );
    let reply = served
        .call(Command::DeviceGetRegionInfo, region(32, 1).as_bytes())
        .unwrap();
    let expected = RegionInfo {
        argsz: 32,
        flags: 1,
        index: 1,
        size: 4096,
        ..Default::default()
    };
    assert_eq!(RegionInfo::read_from_bytes(&reply).unwrap(), expected);
    let irq = |argsz, index| wire::IrqInfo {
        argsz,
        index,
        ..Default::default()
    };
    assert_eq!(
        served.call(Command::DeviceGetIrqInfo, irq(15, 0).as_bytes()),
        Err(EINVAL)
    );
    assert_eq!(
        served.call(Command::DeviceGetIrqInfo, irq(16, 2).as_bytes()),
        Err(EINVAL)
    );
    let reply = served
        .call(Command::DeviceGetIrqInfo, irq(16, 0).as_bytes())
        .unwrap();
    assert_eq!(wire::IrqInfo::read_from_bytes(&reply).unwrap().count, 4);
    let io = wire::RegionIoFds {
        argsz: 16,
        ..Default::default()
    };
    let reply = served
        .call(Command::DeviceGetRegionIoFds, io.as_bytes())
        .unwrap();
    assert_eq!(wire::RegionIoFds::read_from_bytes(&reply).unwrap().count, 0);
}

/// The checks are those of `vfio_check_feature` (include/linux/vfio.h).
#[test]
fn a_feature_is_got_set_or_probed() {
    let mut served = ready();
    let feature = |argsz, flags| Feature { argsz, flags }.as_bytes().to_vec();
    let (get, set, probe) = (wire::FEATURE_GET, wire::FEATURE_SET, wire::FEATURE_PROBE);
    for (argsz, flags) in [
        (7, 2 | get),
        (16, 2),
        (16, 2 | get | set),
        (16, 2 | get | 1 << 19),
        (15, 2 | get),
    ] {
        assert_eq!(
            served.call(Command::DeviceFeature, &feature(argsz, flags)),
            Err(EINVAL),
            "{argsz} {flags:#x}"
        );
    }
    let unknown = served.call(Command::DeviceFeature, &feature(16, 3 | get));
    assert_eq!(unknown, Err(Errno::NOTTY.raw_os_error()));
    served.device.told();
    let got = served
        .call(Command::DeviceFeature, &feature(16, 2 | get))
        .unwrap();
    assert_eq!(got, [feature(16, 2 | get), vec![1; 8]].concat());
    let both = feature(8, 2 | probe | get | set);
    assert_eq!(served.call(Command::DeviceFeature, &both).unwrap(), both);
    let state = [feature(16, 2 | set), vec![5; 8]].concat();
    assert_eq!(served.call(Command::DeviceFeature, &state).unwrap(), state);
    let probed = FeatureOperation::Probe {
        get: true,
        set: true,
    };
    let told = [
        Told::Feature(2, FeatureOperation::Get, vec![]),
        Told::Feature(2, probed, vec![]),
        Told::Feature(2, FeatureOperation::Set, vec![5; 8]),
    ];
    assert_eq!(served.device.told(), told);
}

#[test]
fn migration_data_is_a_stream_in_both_directions() {
    let mut served = ready();
    let data = |argsz, size| MigData { argsz, size }.as_bytes().to_vec();
    let read = served.call(Command::MigDataRead, &data(72, 64)).unwrap();
    assert_eq!(read, [data(72, 64), vec![7; 64]].concat());
    let last = served
        .call(Command::MigDataRead, &data(4096, 1000))
        .unwrap();
    assert_eq!(last, [data(108, 100), vec![7; 100]].concat());
    assert_eq!(
        served.call(Command::MigDataRead, &data(71, 64)),
        Err(EINVAL)
    );
    assert_eq!(
        served.call(Command::MigDataRead, &data(u32::MAX, u32::MAX)),
        Err(EINVAL)
    );
    let write = [data(12, 4), vec![1, 2, 3, 4]].concat();
    assert!(
        served
            .call(Command::MigDataWrite, &write)
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        served.call(Command::MigDataWrite, &write[..11]),
        Err(EINVAL)
    );
    let told = [Told::Connected, Told::MigrationWrite(vec![1, 2, 3, 4])];
    assert_eq!(served.device.told(), told);
}

#[test]
fn nothing_is_left_waiting_when_serving_is_stopped() {
    let dir = std::env::temp_dir().join(format!("iogate-wire-{}-stop", std::process::id()));
    let server = iogate_vfio_user::Server::bind(&dir, ServerOptions::default()).unwrap();
    let stop = server.stop();
    let device = common::Noting::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| server.run(&*device, |_| {})))
            .collect();
        let stream = std::os::unix::net::UnixStream::connect(&dir).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        stop.stop();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Ok(()));
        }
        drop(stream);
    });
    drop(server);
    assert!(!dir.exists());
}
