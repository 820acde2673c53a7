//! A mediated device in a container: rules 16, 17, 19 and 20 of the kernel as
//! far as they are about devices without a unit.

mod legacy_world;

use iogate_dma::FaultReason;
use iogate_host::FileId;
use iogate_uapi::Errno;
use legacy_world::{
    ARGUMENT, FIRST, HEAP, HEAP_PAGES, MEDIATED, NAMES, PAGE, World, number, quad, word,
};

const READ: u32 = 1;
const WRITE: u32 = 2;
const BOTH: u32 = READ | WRITE;
const IOVA: u64 = 0x10_0000;

/// Extensions of VFIO_CHECK_EXTENSION.
const COHERENT: u64 = 4;
const UPDATE_VADDR: u64 = 10;

fn extension(world: &World, container: FileId, id: u64) -> Result<i64, Errno> {
    world.raw(container, number(1), id)
}

/// The ids of VFIO_IOMMU_GET_INFO's capabilities, and the page sizes.
fn info(world: &World, container: FileId) -> (Vec<u32>, u64) {
    let mut argument = pack!(512_u32, 0_u32, 0_u64, 0_u32, 0_u32);
    argument.resize(512, 0);
    let answer = world.ask(container, 12, argument).unwrap();
    let mut ids = Vec::new();
    let mut at = word(&answer, 16) as usize;
    while at != 0 {
        ids.push(word(&answer, at) & 0xffff);
        at = word(&answer, at + 4) as usize;
    }
    (ids, quad(&answer, 8))
}

/// The bitmap of `pages` pages from `iova` on.
fn dirty(world: &World, container: FileId, iova: u64, pages: u64) -> Result<u64, Errno> {
    let bitmap = ARGUMENT + 0x1000;
    world.program.poke(bitmap, &u64::MAX.to_ne_bytes());
    let get = pack!(56_u32, 4_u32, iova, pages * PAGE, PAGE, 8_u64, bitmap);
    world.ask(container, 17, get)?;
    let mut bits = [0; 8];
    world.program.peek(bitmap, &mut bits);
    Ok(u64::from_ne_bytes(bits))
}

/// drivers/vfio/vfio_main.c, vfio_dma_rw; vfio_iommu_type1.c,
/// vfio_iommu_type1_dma_rw_chunk.
#[test]
fn a_mediated_device_reads_and_writes_what_is_mapped_as_it_is_then() {
    let world = World::new();
    let (container, ..) = world.ready(MEDIATED);
    world.map(container, BOTH, (HEAP, IOVA, 2 * PAGE)).unwrap();
    world
        .map(container, READ, (HEAP, IOVA + 2 * PAGE, PAGE))
        .unwrap();
    world
        .map(container, WRITE, (HEAP, IOVA + 3 * PAGE, PAGE))
        .unwrap();
    world.program.poke(HEAP + PAGE - 2, b"abcd");
    let mut bytes = [0; 4];
    world.dma(MEDIATED, IOVA + PAGE - 2, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcd");
    world.dma_write(MEDIATED, IOVA + PAGE - 2, b"wxyz").unwrap();
    world.program.peek(HEAP + PAGE - 2, &mut bytes);
    assert_eq!(&bytes, b"wxyz");
    assert_eq!(
        world.program.pins.load(std::sync::atomic::Ordering::SeqCst),
        0
    );
    let refused = |iova| world.dma_write(MEDIATED, iova, &[1]);
    assert_eq!(refused(IOVA - 1), Err(FaultReason::NotMapped));
    assert_eq!(refused(IOVA + 2 * PAGE), Err(FaultReason::Permission));
    // A write takes a mapping that can be read, too.
    assert_eq!(refused(IOVA + 3 * PAGE), Err(FaultReason::Permission));
    // What the program has at the address, whatever it was before.
    world.program.take(HEAP);
    assert_eq!(refused(IOVA), Err(FaultReason::Revoked));
    world.program.give(HEAP, true);
    assert_eq!(refused(IOVA), Ok(()));
    assert_eq!(world.unmap(container, 0, IOVA, 2 * PAGE), Ok(2 * PAGE));
    assert_eq!(refused(IOVA), Err(FaultReason::NotMapped));
}

/// drivers/vfio/vfio_iommu_type1.c, vfio_dma_do_map, vfio_iommu_iova_dma_valid,
/// vfio_iommu_iova_build_caps.
#[test]
fn without_a_unit_nothing_is_pinned_and_nothing_limits_where_mappings_lie() {
    let world = World::new();
    let (container, _) = world.container(MEDIATED, 3);
    let end = HEAP + HEAP_PAGES * PAGE;
    world
        .map(container, BOTH, (end, 0xfee0_0000, PAGE))
        .unwrap();
    world
        .map(container, BOTH, (HEAP, 0_u64.wrapping_sub(2 * PAGE), PAGE))
        .unwrap();
    let (ids, page_sizes) = info(&world, container);
    assert_eq!(ids, [2, 3], "no ranges are reported");
    assert_eq!(page_sizes, !0xfff);
    assert_eq!(extension(&world, container, COHERENT), Ok(1));
}

/// drivers/vfio/vfio_iommu_type1.c, vfio_dma_do_unmap,
/// vfio_iommu_type1_check_extension.
#[test]
fn addresses_cannot_be_updated_while_a_mediated_device_may_use_them() {
    let world = World::new();
    let (container, mediated) = world.container(MEDIATED, 3);
    let first = world.group(FIRST);
    world.set_container(first, container).unwrap();
    world.map(container, BOTH, (HEAP, IOVA, PAGE)).unwrap();
    assert_eq!(extension(&world, container, UPDATE_VADDR), Ok(0));
    assert_eq!(world.unmap(container, 4, IOVA, PAGE), Err(Errno::EBUSY));
    assert_eq!(world.unmap(container, 4, 1, PAGE), Err(Errno::EBUSY));
    world.raw(mediated, number(5), 0).unwrap();
    assert_eq!(extension(&world, container, UPDATE_VADDR), Ok(1));
    assert_eq!(world.unmap(container, 4, IOVA, PAGE), Ok(PAGE));
    // One that comes meanwhile might want to pin.
    let fresh = world.set_container(mediated, container);
    assert_eq!(fresh, Err(Errno::EBUSY));
}

/// drivers/vfio/vfio_iommu_type1.c, update_user_bitmap, vfio_iova_dirty_bitmap.
#[test]
fn only_what_mediated_devices_wrote_is_dirty_until_a_unit_shows_the_mappings() {
    let world = World::new();
    let (container, _) = world.container(MEDIATED, 3);
    world.map(container, BOTH, (HEAP, IOVA, 4 * PAGE)).unwrap();
    world
        .map(container, BOTH, (HEAP, IOVA + 4 * PAGE, 4 * PAGE))
        .unwrap();
    world.dma_write(MEDIATED, IOVA, &[1]).unwrap();
    world.ask(container, 17, pack!(8_u32, 1_u32)).unwrap();
    assert_eq!(
        dirty(&world, container, IOVA, 8),
        Ok(0),
        "not written since"
    );
    world
        .dma_write(MEDIATED, IOVA + PAGE, &[1; 0x1001])
        .unwrap();
    world.dma_write(MEDIATED, IOVA + 5 * PAGE, &[1]).unwrap();
    world.dma(MEDIATED, IOVA, &mut [0; 0x1000]).unwrap();
    assert_eq!(dirty(&world, container, IOVA, 8), Ok(0b10_0110));
    assert_eq!(dirty(&world, container, IOVA, 8), Ok(0), "looking clears");
    world.dma_write(MEDIATED, IOVA + 4 * PAGE, &[1]).unwrap();
    let bitmap = ARGUMENT + 0x1000;
    world.program.poke(bitmap, &[0xff; 8]);
    let unmap = pack!(
        48_u32,
        1_u32,
        IOVA + 4 * PAGE,
        4 * PAGE,
        PAGE,
        8_u64,
        bitmap
    );
    world.ask(container, 14, unmap).unwrap();
    let mut bits = [0; 8];
    world.program.peek(bitmap, &mut bits);
    assert_eq!(u64::from_ne_bytes(bits), 1);
    let first = world.group(FIRST);
    world.set_container(first, container).unwrap();
    assert_eq!(dirty(&world, container, IOVA, 4), Ok(0xf));
}

/// drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_attach_group,
/// vfio_iommu_replay, vfio_iommu_unmap_unpin_reaccount.
#[test]
fn the_first_unit_has_all_mappings_pinned_and_the_last_lets_go_of_them() {
    let world = World::new();
    let pins = || world.program.pins.load(std::sync::atomic::Ordering::SeqCst);
    let (container, mediated) = world.container(MEDIATED, 3);
    world.map(container, BOTH, (HEAP, IOVA, PAGE)).unwrap();
    let absent = HEAP + HEAP_PAGES * PAGE;
    world
        .map(container, BOTH, (absent, IOVA + PAGE, PAGE))
        .unwrap();
    let first = world.group(FIRST);
    assert_eq!(world.set_container(first, container), Err(Errno::EFAULT));
    assert_eq!(pins(), 0);
    world.unmap(container, 0, IOVA + PAGE, PAGE).unwrap();
    world
        .map(container, BOTH, (HEAP, 0xfee0_0000, PAGE))
        .unwrap();
    assert_eq!(world.set_container(first, container), Err(Errno::EINVAL));
    world.unmap(container, 0, 0xfee0_0000, PAGE).unwrap();
    world.set_container(first, container).unwrap();
    assert_eq!(pins(), 1);
    world.dma_write(FIRST, IOVA, &[7]).unwrap();
    let mut byte = [0];
    world.dma(MEDIATED, IOVA, &mut byte).unwrap();
    assert_eq!(byte, [7]);
    let refused = world.map(container, BOTH, (HEAP, 0xfee0_0000, PAGE));
    assert_eq!(refused, Err(Errno::EINVAL));
    world.raw(first, number(5), 0).unwrap();
    assert_eq!(pins(), 0);
    world.dma(MEDIATED, IOVA, &mut byte).unwrap();
    assert_eq!(byte, [7]);
    assert_eq!(world.dma(FIRST, IOVA, &mut byte), Err(FaultReason::Blocked));
    world.raw(mediated, number(5), 0).unwrap();
    assert_eq!(
        world.dma(MEDIATED, IOVA, &mut byte),
        Err(FaultReason::Blocked)
    );
}

/// drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_dma_rw and vfio_remove_dma
/// exclude each other.
#[test]
fn an_unmap_waits_for_the_access_of_a_mediated_device() {
    let world = World::new();
    let (container, ..) = world.ready(MEDIATED);
    world.map(container, BOTH, (HEAP, IOVA, PAGE)).unwrap();
    let mut worker = world.worker();
    let guard = worker.enter();
    let unmap = pack!(24_u32, 0_u32, IOVA, PAGE);
    world.program.poke(ARGUMENT, &unmap);
    let answer = iogate_uapi::ioctl(
        &world.host,
        container,
        number(14),
        ARGUMENT,
        &*world.program,
    );
    let mut grace = answer.unwrap().after.grace.unwrap();
    assert!(!grace.has_passed());
    drop(guard);
    assert!(grace.has_passed());
}

/// drivers/vfio/group.c, vfio_device_get_from_name; samples/vfio-mdev/mtty.c,
/// mtty_ioctl.
#[test]
fn a_mediated_device_goes_by_its_uuid_and_knows_no_calls_of_pci_functions() {
    let world = World::new();
    let (_, group, device) = world.ready(MEDIATED);
    let uuid = NAMES[MEDIATED];
    let token = format!("{uuid} vf_token=01234567-89ab-cdef-0123-456789abcdef");
    assert_eq!(world.device_fd(group, &token), Err(Errno::ENODEV));
    assert_eq!(
        world.device_fd(group, &format!("{uuid} ")),
        Err(Errno::ENODEV)
    );
    for (call, argument) in [
        (12, pack!(12_u32, 0_u32, 0_u32)),
        (13, pack!(12_u32, 0_u32, 0_u32)),
        (16, pack!(32_u32, 0_u32, 0_u64, 0_u64, 0_i32, 0_u32)),
        (17, pack!(8_u32, 5_u32 | 1 << 18)),
    ] {
        assert_eq!(
            world.ask(device, call, argument),
            Err(Errno::ENOTTY),
            "{call}"
        );
    }
    let info = world
        .ask(device, 7, pack!(24_u32, 0_u32, 0_u32, 0_u32, 0_u64))
        .unwrap();
    assert_eq!(word(&info, 4) & 3, 3, "it can be reset and is like PCI");
    assert_eq!(world.raw(device, number(11), 0), Ok(0));
}
