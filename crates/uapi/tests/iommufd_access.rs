//! Accesses of software, dirty pages, PASIDs and who pays: rules 22, 23, 30,
//! 32, 37 and 38 of the kernel.

mod iommufd_world;

use std::sync::Arc;

use iogate_dma::{Iova, Rights, Span};
use iogate_host::iommufd::{AccessMode, DirtyRange, Features, Nodeless, PasidChange, Unit};
use iogate_host::{ErrorKind, FileId, Iommu, Memlock, MemlockMode, Retired};
use iogate_uapi::{Client, Errno, Named};
use iommufd_world::*;

fn span(first: u64, length: u64) -> Span {
    Span::with_length(Iova(first), length).unwrap()
}

fn finish(retired: Retired) {
    retired.grace.into_iter().for_each(iogate_dma::Grace::wait);
    drop(retired.pages);
}

fn kind<T>(result: Result<T, iogate_host::Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind)
}

fn pin(world: &World, access: FileId, first: u64, length: u64) -> Result<u32, ErrorKind> {
    let pinned = world
        .host
        .access_pin(access, span(first, length), Rights::READ);
    pinned
        .map(|pages| pages.id)
        .map_err(|failure| failure.error.kind)
}

/// An iommufd with an IOAS that has 4 pages at 0x1_0000, and an access.
fn accessed(world: &World, mode: AccessMode) -> (Opened, u32, FileId) {
    let file = world.iommufd();
    let ioas = world.ioas(file);
    world
        .map(file, ioas, FIXED | RW, (HEAP, 4 * PAGE), 0x1_0000)
        .unwrap();
    let access = world.host.access_create(file.file, ioas, mode).unwrap();
    (file, ioas, access)
}

/// drivers/iommu/iommufd/device.c, iommufd_access_rw.
#[test]
fn an_access_reads_and_writes_across_pages_what_no_device_reaches() {
    let world = World::new();
    let (file, _, access) = accessed(&world, AccessMode::Copies);
    let sent: Vec<u8> = (0..100).collect();
    let at = Iova(0x1_0000 + PAGE - 50);
    world.host.access_write(access, at, &sent).unwrap();
    let mut memory = [0; 100];
    world.program.read(HEAP + PAGE - 50, &mut memory).unwrap();
    assert_eq!(memory, *sent);
    let mut got = [0; 100];
    world.host.access_read(access, at, &mut got).unwrap();
    assert_eq!(got, *sent);
    let past = Iova(0x1_0000 + 4 * PAGE - 1);
    let read = world.host.access_read(access, past, &mut got);
    assert_eq!(kind(read), Some(ErrorKind::NotFound));
    assert_eq!(world.pinned_frames(), 0);
    finish(world.host.close(access));
    world.close(file);
}

/// drivers/iommu/iommufd/pages.c, iopt_pages_rw_access, which copies by the
/// process's addresses, and iopt_pages_fill_xarray, which pins.
#[test]
fn an_access_copies_from_a_mapping_of_a_device_file_and_pins_none() {
    let world = World::new();
    let (_, _, access) = accessed(&world, AccessMode::Pins);
    *world.program.process.device.lock().unwrap() = Some(HEAP / PAGE);
    let refused = pin(&world, access, 0x1_0000, PAGE);
    assert_eq!(refused, Err(ErrorKind::Fault));
    let at = Iova(0x1_0000);
    world.host.access_write(access, at, &[5]).unwrap();
    let mut byte = [0];
    world.host.access_read(access, at, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    assert_eq!(world.pinned_frames(), 0);
}

/// drivers/iommu/iommufd/device.c, iommufd_access_pin_pages.
#[test]
fn a_pin_wants_all_of_its_range_mapped_and_allowed_and_an_access_that_pins() {
    let world = World::new();
    let (file, ioas, access) = accessed(&world, AccessMode::Pins);
    assert_eq!(
        pin(&world, access, 0x1_0000, 5 * PAGE),
        Err(ErrorKind::NotFound)
    );
    world
        .map(file, ioas, FIXED | R, (HEAP, PAGE), 0x9_0000)
        .unwrap();
    let write = world
        .host
        .access_pin(access, span(0x9_0000, PAGE), Rights::WRITE);
    assert_eq!(
        write.map_err(|failure| failure.error.kind),
        Err(ErrorKind::NotPermitted)
    );
    let copies = world
        .host
        .access_create(file.file, ioas, AccessMode::Copies)
        .unwrap();
    assert_eq!(pin(&world, copies, 0x1_0000, PAGE), Err(ErrorKind::Invalid));
    let pages = pin(&world, access, 0x1_0000, 2 * PAGE).unwrap();
    assert_eq!(world.pinned_frames(), 2);
    finish(world.host.access_unpin(access, pages).unwrap());
    assert_eq!(world.pinned_frames(), 0);
    let again = world.host.access_unpin(access, pages);
    assert_eq!(kind(again), Some(ErrorKind::NotFound));
}

/// drivers/iommu/iommufd/device.c, iommufd_access_notify_unmap.
#[test]
fn an_unmap_takes_the_pins_of_accesses_first() {
    let world = World::new();
    let (file, ioas, access) = accessed(&world, AccessMode::Pins);
    world
        .map(file, ioas, FIXED | RW, (HEAP + 8 * PAGE, PAGE), 0x8_0000)
        .unwrap();
    let gone = pin(&world, access, 0x1_0000 + PAGE, PAGE).unwrap();
    let kept = pin(&world, access, 0x8_0000, PAGE).unwrap();
    assert_eq!(world.unmap(file, ioas, 0x1_0000, 4 * PAGE), Ok(4 * PAGE));
    assert_eq!(world.pinned_frames(), 1);
    let unpin = world.host.access_unpin(access, gone);
    assert_eq!(kind(unpin), Some(ErrorKind::NotFound));
    finish(world.host.access_unpin(access, kept).unwrap());
}

/// drivers/iommu/iommufd/device.c, iommufd_access_change_ioas.
#[test]
fn an_access_that_changes_its_ioas_lets_go_of_everything() {
    let world = World::new();
    let (file, ioas, access) = accessed(&world, AccessMode::Pins);
    let pages = pin(&world, access, 0x1_0000, PAGE).unwrap();
    let replace = |ioas| world.host.access_replace(access, ioas);
    assert_eq!(kind(replace(77)), Some(ErrorKind::NotFound));
    finish(replace(ioas).unwrap());
    assert_eq!(world.pinned_frames(), 1, "the same is no change");
    let other = world.ioas(file);
    finish(replace(other).unwrap());
    assert_eq!(world.pinned_frames(), 0);
    let unpin = world.host.access_unpin(access, pages);
    assert_eq!(kind(unpin), Some(ErrorKind::NotFound));
    assert_eq!(world.destroy(file, other), Err(Errno::EBUSY));
    assert_eq!(world.destroy(file, ioas), Ok(()));
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_add_access.
#[test]
fn an_access_that_pins_wants_mappings_of_whole_pages() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let create = |mode| world.host.access_create(file.file, ioas, mode);
    world
        .map(file, ioas, FIXED | RW, (HEAP, 0x800), 0x1_0000)
        .unwrap();
    assert_eq!(
        kind(create(AccessMode::Pins)),
        Some(ErrorKind::AddressInUse)
    );
    let copies = create(AccessMode::Copies).unwrap();
    assert_eq!(world.ranges(file, ioas).1, 1);
    world.unmap(file, ioas, 0x1_0000, 0x800).unwrap();
    let pins = create(AccessMode::Pins).unwrap();
    assert_eq!(world.ranges(file, ioas).1, PAGE);
    let map = world.map(file, ioas, FIXED | RW, (HEAP, 0x800), 0x1_0000);
    assert_eq!(map, Err(Errno::EINVAL));
    finish(world.host.close(pins));
    assert_eq!(world.ranges(file, ioas).1, 1);
    finish(world.host.close(copies));
}

/// drivers/iommu/iommufd/main.c, iommufd_fops_release; device.c,
/// iommufd_access_create.
#[test]
fn an_access_keeps_the_iommufd_alive() {
    let world = World::new();
    let (file, _, access) = accessed(&world, AccessMode::Pins);
    world.close(file);
    let mut byte = [1];
    world
        .host
        .access_read(access, Iova(0x1_0000), &mut byte)
        .unwrap();
    pin(&world, access, 0x1_0000, PAGE).unwrap();
    finish(world.host.close(access));
    assert_eq!(world.pinned_frames(), 0);
}

/// A device behind a unit that can everything, attached to `pt`.
fn able(world: &World, file: Opened, pt: u32, features: Features) -> Result<Nodeless, ErrorKind> {
    let iommu = Arc::new(Iommu {
        index: 99,
        aperture_last: Iova(u64::MAX >> 1),
        page_sizes: !0x7ff,
        reserved: Vec::new(),
        coherent: true,
        tracks_dirty: true,
        pasid_bits: 0,
    });
    let unit = Unit {
        features,
        aperture_first: Iova(0x1000),
        ..Unit::plain(&iommu)
    };
    let made = world.host.nodeless_create(file.file, unit, pt);
    let (made, retired) = made.map_err(|failure| failure.error.kind)?;
    finish(retired);
    Ok(made)
}

const ABLE: Features = Features {
    tracks_dirty: true,
    nests: true,
    takes_pasids: true,
    data_kind: 0,
    asks_for_pages: false,
    pasid_bits: 10,
};
const DIRTY_TRACKING: u32 = 2;
const PASID: u32 = 8;

fn dirty_bits(world: &World, file: Opened, hwpt: u32, flags: u32) -> Result<[u8; 4], Errno> {
    let at = ARGUMENT + PAGE + 1;
    world.program.write(at, &[0x80, 0, 0, 0]).unwrap();
    let mut bytes = pack!(
        48_u32,
        hwpt,
        flags,
        0_u32,
        0x1_0000_u64,
        4 * PAGE,
        0x800_u64,
        at
    );
    world.call(file, 0x8c, &mut bytes)?;
    let mut bits = [0; 4];
    world.program.read(at, &mut bits).unwrap();
    Ok(bits)
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_read_and_clear_dirty_data;
/// iova_bitmap.c, iova_bitmap_set.
#[test]
fn written_pages_set_bits_of_any_bitmap_and_clear_none() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let device = able(&world, file, ioas, ABLE).unwrap();
    let hwpt = world
        .hwpt(file, device.device, ioas, DIRTY_TRACKING)
        .unwrap();
    world
        .map(file, ioas, FIXED | RW, (HEAP, 3 * PAGE), 0x1_0000)
        .unwrap();
    let track = |on: u32| world.call(file, 0x8b, &mut pack!(16_u32, on, hwpt, 0_u32));
    let wrote = |iova| world.host.hwpt_set_dirty(file.file, hwpt, &[Iova(iova)]);
    assert_eq!(kind(wrote(0x1_0000)), Some(ErrorKind::Invalid), "it is off");
    assert_eq!(track(1), Ok(0));
    wrote(0x1_0000).unwrap();
    wrote(0x1_0000 + PAGE + 0x801).unwrap();
    wrote(0x1_0000 + 3 * PAGE).unwrap();
    let told = [0x80 | 0b1001, 0, 0, 0];
    assert_eq!(dirty_bits(&world, file, hwpt, 1), Ok(told), "holes are not");
    assert_eq!(dirty_bits(&world, file, hwpt, 0), Ok(told));
    assert_eq!(dirty_bits(&world, file, hwpt, 0), Ok([0x80, 0, 0, 0]));
    wrote(0x1_0000).unwrap();
    assert_eq!(track(1), Ok(0), "which forgets what was written");
    assert_eq!(dirty_bits(&world, file, hwpt, 0), Ok([0x80, 0, 0, 0]));
    assert_eq!(track(2), Err(Errno::EOPNOTSUPP));
    let plain = world.hwpt(file, device.device, ioas, 0).unwrap();
    assert_eq!(dirty_bits(&world, file, plain, 0), Err(Errno::EOPNOTSUPP));
}

/// drivers/iommu/iommufd/io_pagetable.c, iommufd_check_iova_range.
#[test]
fn a_look_for_dirty_pages_wants_whole_pages() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let device = able(&world, file, ioas, ABLE).unwrap().device;
    let hwpt = world.hwpt(file, device, ioas, DIRTY_TRACKING).unwrap();
    let look = |iova, length, page_size| {
        let range = DirtyRange {
            iova,
            length,
            page_size,
            keep: false,
        };
        kind(
            world
                .host
                .hwpt_dirty_pages(file.file, hwpt, range)
                .map(drop),
        )
    };
    assert_eq!(look(0x1000, 0x800, 0x800), None);
    assert_eq!(look(0x1000, 0, 0x800), Some(ErrorKind::Overflow));
    assert_eq!(look(u64::MAX, 2, 0x800), Some(ErrorKind::Overflow));
    assert_eq!(look(0x1000, 0x800, 0), Some(ErrorKind::Invalid));
    assert_eq!(look(0x1400, 0x800, 0x400), Some(ErrorKind::Invalid));
    assert_eq!(look(0x1000, 0x800, 0x1000), Some(ErrorKind::Invalid));
}

/// drivers/iommu/iommufd/hw_pagetable.c, iommufd_hwpt_paging_alloc.
#[test]
fn a_page_table_for_dirty_tracking_refuses_a_device_that_cannot() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let device = able(&world, file, ioas, ABLE).unwrap().device;
    let hwpt = world.hwpt(file, device, ioas, DIRTY_TRACKING).unwrap();
    let unable = Features {
        tracks_dirty: false,
        ..ABLE
    };
    assert_eq!(able(&world, file, hwpt, unable), Err(ErrorKind::Invalid));
    let device = able(&world, file, ioas, unable).unwrap().device;
    assert_eq!(
        world.hwpt(file, device, ioas, DIRTY_TRACKING),
        Err(Errno::EOPNOTSUPP)
    );
}

/// drivers/iommu/iommufd/device.c, iommufd_hwpt_pasid_compat,
/// iommufd_device_attach, iommufd_device_replace, iommufd_device_detach.
#[test]
fn a_pasid_wants_page_tables_that_were_made_for_it() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let device = able(&world, file, ioas, ABLE).unwrap();
    let hwpt = |flags| world.hwpt(file, device.device, ioas, flags).unwrap();
    let (fit, other, plain) = (hwpt(PASID), hwpt(PASID), hwpt(0));
    let change = |pasid, pt, how| {
        let object = device.object;
        let done = world.host.pasid_attach(file.file, object, pasid, pt, how);
        done.map(finish).map_err(|error| error.kind)
    };
    let attach = |pasid, pt| change(pasid, pt, PasidChange::Attach);
    let replace = |pasid, pt| change(pasid, pt, PasidChange::Replace);
    let own = |pt| {
        let moved = world.host.nodeless_replace(file.file, device.object, pt);
        moved
            .map(|attached| finish(attached.retired))
            .map_err(|failure| failure.error.kind)
    };
    assert_eq!(attach(5, fit), Err(ErrorKind::Invalid), "the device's own");
    own(fit).unwrap();
    assert_eq!(attach(5, plain), Err(ErrorKind::Invalid));
    assert_eq!(attach(5, ioas), Err(ErrorKind::Invalid));
    assert_eq!(attach(1 << 10, fit), Err(ErrorKind::Invalid));
    assert_eq!(replace(5, fit), Err(ErrorKind::Invalid), "it has none");
    assert_eq!(attach(5, fit), Ok(()));
    assert_eq!(attach(5, fit), Err(ErrorKind::Busy));
    assert_eq!(own(plain), Err(ErrorKind::Invalid), "a PASID is in use");
    assert_eq!(replace(5, other), Ok(()));
    assert_eq!(world.destroy(file, other), Err(Errno::EBUSY));
    let of = |pasid| world.host.pasid_hwpt(file.file, device.object, pasid);
    assert_eq!(of(5), Ok(Some(other)));
    for _ in 0..2 {
        let detached = world.host.pasid_detach(file.file, device.object, 5);
        finish(detached.unwrap());
    }
    assert_eq!(of(5), Ok(None));
    assert_eq!(world.destroy(file, other), Ok(()));
    assert_eq!(own(plain), Ok(()));
}

/// drivers/iommu/iommufd/main.c, iommufd_object_remove; selftest.c.
#[test]
fn the_object_of_a_device_without_a_node_takes_the_device_with_it() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let made = able(&world, file, ioas, ABLE).unwrap();
    assert!(made.object < made.device && made.device < made.hwpt);
    assert_eq!(world.destroy(file, made.device), Err(Errno::EBUSY));
    assert_eq!(world.destroy(file, ioas), Err(Errno::EBUSY));
    let (ranges, alignment) = world.ranges(file, ioas);
    assert_eq!((ranges, alignment), (vec![(0x1000, u64::MAX >> 1)], 0x800));
    assert_eq!(world.destroy(file, made.object), Ok(()));
    assert_eq!(world.destroy(file, made.device), Err(Errno::ENOENT));
    assert_eq!(world.destroy(file, made.hwpt), Err(Errno::ENOENT));
    assert_eq!(world.ranges(file, ioas), (vec![(0, u64::MAX)], 1));
    assert_eq!(able(&world, file, 77, ABLE), Err(ErrorKind::NotFound));
    assert_eq!(world.ioas(file), made.object, "nothing is left of it");
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_change_process.
#[test]
fn another_process_pays_for_files_and_not_for_addresses() {
    let world = World::with_memlock(MemlockMode::Enforce);
    let limit = |bytes| *world.program.memlock.lock().unwrap() = Memlock::Limit(bytes);
    let user = |id| *world.program.user.lock().unwrap() = id;
    limit(2 * PAGE);
    let file = world.iommufd();
    let change = |world: &World| world.call(file, 0x92, &mut pack!(8_u32, 0_u32));
    assert_eq!(change(&world), Ok(0), "of nothing");
    let ioas = world.ioas(file);
    let (device, _) = world.bound(ALONE, file);
    world.attach(device, ioas).unwrap();
    let fd = world.memory_file(&[70, 71]);
    world
        .map_file(file, ioas, fd, (0, 2 * PAGE), 0x1_0000)
        .unwrap();
    user(2);
    assert_eq!(change(&world), Ok(0));
    user(1000);
    let more = |iova| world.map(file, ioas, FIXED | RW, (HEAP, 2 * PAGE), iova);
    assert_eq!(more(0x2_0000), Ok(0x2_0000), "who paid pays no more");
    assert_eq!(change(&world), Err(Errno::EINVAL), "addresses of a process");
    world.unmap(file, ioas, 0x2_0000, 2 * PAGE).unwrap();
    user(2);
    limit(3 * PAGE);
    let more = world.map(file, ioas, FIXED | RW, (HEAP, 2 * PAGE), 0x2_0000);
    assert_eq!(more, Err(Errno::ENOMEM), "who pays now has it counted");
    user(3);
    limit(PAGE);
    assert_eq!(change(&world), Err(Errno::ENOMEM));
    assert_eq!(
        world.call(file, 0x92, &mut pack!(8_u32, 1_u32)),
        Err(Errno::EOPNOTSUPP)
    );
}

/// drivers/iommu/iommufd/pages.c, iopt_alloc_dmabuf_pages, iopt_revoke_notify;
/// device.c, iommufd_access_rw.
#[test]
fn a_buffer_that_its_device_took_back_is_not_mapped_and_software_reads_none() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let buffer = world.host.buffer_create(4 * PAGE).unwrap();
    let fd = world.named(Named::Ours(buffer));
    let map = |start, length, iova| world.map_file(file, ioas, fd, (start, length), iova);
    assert_eq!(map(0, 0, 0x1_0000), Err(Errno::EINVAL));
    assert_eq!(map(PAGE, 4 * PAGE, 0x1_0000), Err(Errno::EINVAL));
    assert_eq!(map(0, 4 * PAGE, 0x1_0000), Ok(0x1_0000));
    world.host.buffer_revoke(buffer, true).unwrap();
    assert_eq!(map(0, PAGE, 0x9_0000), Err(Errno::ENODEV));
    let (device, _) = world.bound(ALONE, file);
    assert!(world.attach(device, ioas).is_ok());
    assert_eq!(world.dma_read(ALONE, 0x1_0000), None);
    world.host.buffer_revoke(buffer, false).unwrap();
    assert_eq!(map(0, PAGE, 0x9_0000), Ok(0x9_0000));
    let access = world
        .host
        .access_create(file.file, ioas, AccessMode::Copies)
        .unwrap();
    let read = world.host.access_read(access, Iova(0x1_0000), &mut [0]);
    assert_eq!(kind(read), Some(ErrorKind::Invalid));
    let change = world.call(file, 0x92, &mut pack!(8_u32, 0_u32));
    assert_eq!(change, Err(Errno::EINVAL));
    let other = world.host.buffer_revoke(file.file, true);
    assert_eq!(kind(other), Some(ErrorKind::Invalid));
}
