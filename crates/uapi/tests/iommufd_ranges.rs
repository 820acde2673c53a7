//! What addresses an IOAS has and which it gives out: rules 23, 25 and 29 of
//! the kernel.

mod iommufd_world;

use iogate_uapi::{Client, Errno};
use iommufd_world::*;

/// An iommufd with an IOAS and a device attached to it.
fn attached(world: &World) -> (Opened, u32, Opened) {
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, _) = world.bound(ALONE, file);
    world.attach(device, ioas).unwrap();
    (file, ioas, device)
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_init_table.
#[test]
fn a_fresh_ioas_has_every_address_and_no_page_size() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    assert_eq!(world.ranges(file, ioas), (vec![(0, u64::MAX)], 1));
    let odd = (HEAP + 3, 5);
    assert_eq!(
        world.map(file, ioas, FIXED | R, odd, 0x1_0001),
        Ok(0x1_0001)
    );
    assert_eq!(world.unmap(file, ioas, 0x1_0001, 5), Ok(5));
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_table_add_domain,
/// iopt_table_remove_domain.
#[test]
fn a_page_table_brings_its_aperture_its_page_size_and_a_device_its_windows() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (device, id) = world.bound(ALONE, file);
    let hwpt = world.hwpt(file, id, ioas, 0).unwrap();
    let aperture = (1 << 48) - 1;
    assert_eq!(world.ranges(file, ioas), (vec![(0, aperture)], PAGE));
    world.attach(device, hwpt).unwrap();
    let around = vec![(0, 0xfedf_ffff), (0xfef0_0000, aperture)];
    assert_eq!(world.ranges(file, ioas), (around, PAGE));
    world.detach(device).unwrap();
    world.destroy(file, hwpt).unwrap();
    assert_eq!(world.ranges(file, ioas), (vec![(0, u64::MAX)], 1));
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_check_iova_alignment.
#[test]
fn a_page_table_is_refused_if_an_area_does_not_fit_its_pages() {
    let world = World::new();
    let file = world.iommufd();
    let (_, id) = world.bound(ALONE, file);
    let misfits = [
        ((HEAP, PAGE), 0x1800),
        ((HEAP, 0x800), 0x1000),
        ((HEAP + 0x800, PAGE), 0x1000),
    ];
    for (memory, iova) in misfits {
        let ioas = world.ioas(file);
        world.map(file, ioas, FIXED | R, memory, iova).unwrap();
        assert_eq!(world.hwpt(file, id, ioas, 0), Err(Errno::EADDRINUSE));
        assert_eq!(world.ranges(file, ioas), (vec![(0, u64::MAX)], 1));
        world.unmap(file, ioas, 0, u64::MAX).unwrap();
        world.hwpt(file, id, ioas, 0).unwrap();
    }
    let ioas = world.ioas(file);
    let (coarse, id) = world.bound(COARSE, file);
    assert_eq!(
        world.hwpt(file, id, ioas, 0),
        Err(Errno::EINVAL),
        "pages of 64 KiB"
    );
    assert_eq!(world.attach(coarse, ioas), Err(Errno::EINVAL));
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_table_add_domain,
/// iopt_calculate_iova_alignment.
#[test]
fn the_alignment_is_the_largest_of_all_page_tables() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let (_, fine) = world.bound(FINE, file);
    let (_, usual) = world.bound(ALONE, file);
    let fine = world.hwpt(file, fine, ioas, 0).unwrap();
    assert_eq!(world.ranges(file, ioas).1, 0x800);
    let usual = world.hwpt(file, usual, ioas, 0).unwrap();
    assert_eq!(world.ranges(file, ioas).1, PAGE);
    world.destroy(file, usual).unwrap();
    assert_eq!(world.ranges(file, ioas).1, 0x800);
    world.destroy(file, fine).unwrap();
    assert_eq!(world.ranges(file, ioas).1, 1);
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_iova_ranges.
#[test]
fn iova_ranges_fill_what_fits_and_say_how_many_there_are() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    let at = ARGUMENT + PAGE;
    world.program.write(at, &[0xee; 64]).unwrap();
    for room in [0_u32, 1] {
        let mut bytes = pack!(32_u32, ioas, room, 0_u32, at, 0_u64);
        assert_eq!(world.call(file, 0x84, &mut bytes), Err(Errno::EMSGSIZE));
        assert_eq!((word(&bytes, 8), quad(&bytes, 24)), (2, PAGE));
    }
    let mut list = [0; 32];
    world.program.read(at, &mut list).unwrap();
    assert_eq!((quad(&list, 0), quad(&list, 8)), (0, 0xfedf_ffff));
    assert_eq!(list[16..], [0xee; 16]);
    let mut bytes = pack!(32_u32, ioas, 1_u32, 0_u32, 0_u64, 0_u64);
    assert_eq!(world.call(file, 0x84, &mut bytes), Err(Errno::EFAULT));
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_alloc_iova.
#[test]
fn an_automatic_address_is_the_lowest_that_suits_the_memory() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let map = |va, length| world.map(file, ioas, R, (va, length), 0x77);
    // Never address 0, nor anything else in the first page.
    assert_eq!(map(HEAP, PAGE), Ok(PAGE));
    // To the power of two that the length reaches.
    assert_eq!(map(HEAP, 3 * PAGE), Ok(4 * PAGE));
    assert_eq!(map(HEAP, PAGE), Ok(2 * PAGE), "the first gap that suits");
    // No further than the memory itself is aligned.
    assert_eq!(map(HEAP + PAGE, 4 * PAGE), Ok(7 * PAGE));
    // No further than 2 MiB.
    assert_eq!(map(1 << 40, 32 << 20), Ok(2 << 20));
    // The offset in the page is kept.
    assert_eq!(map(HEAP + 0x123, 0x10), Ok(3 * PAGE + 0x123));
    // Far more than half of all addresses.
    assert_eq!(map(0, 1 << 63), Err(Errno::EOVERFLOW));
}

/// drivers/iommu/iommufd/io_pagetable.c, iopt_alloc_iova.
#[test]
fn an_automatic_address_keeps_out_of_windows_and_into_the_allowed_ranges() {
    let world = World::new();
    let (file, ioas, _) = attached(&world);
    let map = |va, length| world.map(file, ioas, R, (va, length), 0);
    assert_eq!(
        map(HEAP + 0x10, PAGE),
        Err(Errno::EINVAL),
        "below the alignment"
    );
    world
        .allow(file, ioas, &[(0x2000, 0x2fff), (0x8000, 0xafff)])
        .unwrap();
    assert_eq!(map(HEAP, PAGE), Ok(0x2000));
    assert_eq!(map(HEAP, 2 * PAGE), Ok(0x8000));
    assert_eq!(map(HEAP, 2 * PAGE), Err(Errno::ENOSPC));
    assert_eq!(map(HEAP, PAGE), Ok(0xa000));
    assert_eq!(map(HEAP, PAGE), Err(Errno::ENOSPC));
    // A fixed address may lie elsewhere.
    let elsewhere = world.map(file, ioas, FIXED | R, (HEAP, PAGE), 0x1_0000);
    assert_eq!(elsewhere, Ok(0x1_0000));
    world.allow(file, ioas, &[]).unwrap();
    assert_eq!(map(HEAP, PAGE), Ok(0x1000));
    world
        .allow(file, ioas, &[(0xfedf_f000, 0xfedf_ffff)])
        .unwrap();
    assert_eq!(map(HEAP, 2 * PAGE), Err(Errno::ENOSPC));
}

/// drivers/iommu/iommufd/ioas.c, iommufd_ioas_load_iovas; io_pagetable.c,
/// iopt_set_allow_iova, iopt_reserve_iova.
#[test]
fn the_allow_list_is_replaced_as_a_whole_and_keeps_reservations_away() {
    let world = World::new();
    let file = world.iommufd();
    let ioas = world.ioas(file);
    let allow = |list: &[(u64, u64)]| world.allow(file, ioas, list);
    assert_eq!(allow(&[(5, 5)]), Err(Errno::EINVAL));
    assert_eq!(allow(&[(6, 5)]), Err(Errno::EINVAL));
    assert_eq!(allow(&[(0, 9), (9, 20)]), Err(Errno::EINVAL));
    let mut bytes = pack!(24_u32, ioas, 1_u32, 0_u32, 0_u64);
    assert_eq!(world.call(file, 0x82, &mut bytes), Err(Errno::EFAULT));
    let mut many = pack!(24_u32, ioas, u32::MAX, 0_u32, ARGUMENT + PAGE);
    assert!(world.call(file, 0x82, &mut many).is_err());
    allow(&[(20, 30), (0xfee0_0000, 0xfeef_ffff), (0, 9)]).unwrap();
    // The device's window hits the list.
    let (device, _) = world.bound(ALONE, file);
    assert_eq!(world.attach(device, ioas), Err(Errno::EADDRINUSE));
    // The aperture does.
    allow(&[(0, u64::MAX)]).unwrap();
    assert_eq!(world.attach(device, ioas), Err(Errno::EADDRINUSE));
    assert_eq!(world.ranges(file, ioas), (vec![(0, u64::MAX)], 1));
    allow(&[(0x1000, 0x1fff)]).unwrap();
    world.attach(device, ioas).unwrap();
    // A list that hits the window is refused, the old one stands.
    let refused = allow(&[(0x5000, 0x5fff), (0xfee0_0000, 0xfee0_0fff)]);
    assert_eq!(refused, Err(Errno::EADDRINUSE));
    assert_eq!(world.map(file, ioas, R, (HEAP, PAGE), 0), Ok(0x1000));
    assert_eq!(
        world.map(file, ioas, R, (HEAP, PAGE), 0),
        Err(Errno::ENOSPC)
    );
}
