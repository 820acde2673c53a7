//! PASIDs of devices of the machine: rule 37 of the kernel, by VFIO's calls.

mod iommufd_world;

use iogate_dma::{DmaError, FaultReason, Iova, Pasid, Port};
use iogate_uapi::{Client, Errno};
use iommufd_world::*;

/// IOMMU_HWPT_ALLOC_PASID.
const FIT: u32 = 8;
const AT: u64 = 0x10_0000;

/// An iommufd with the sender bound to it, and its number.
struct Scene {
    world: World,
    file: Opened,
    device: Opened,
    id: u32,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let file = world.iommufd();
        let (device, id) = world.bound(SENDER, file);
        Self {
            world,
            file,
            device,
            id,
        }
    }

    /// A page table with the flags, of an IOAS that shows a page of the heap.
    fn table(&self, page: u64, flags: u32) -> u32 {
        let ioas = self.world.ioas(self.file);
        let memory = (HEAP + page * PAGE, PAGE);
        let mapped = self.world.map(self.file, ioas, FIXED | RW, memory, AT);
        mapped.unwrap();
        self.world.hwpt(self.file, self.id, ioas, flags).unwrap()
    }

    fn attach(&self, pasid: u32, pt: u32) -> Result<u32, Errno> {
        attach(&self.world, self.device, pasid, pt)
    }

    fn detach(&self, pasid: u32) -> Result<i64, Errno> {
        let mut bytes = pack!(12_u32, 1_u32, pasid);
        self.world.call(self.device, 120, &mut bytes)
    }

    /// Writes a byte with or without a PASID.
    fn write(&self, port: &mut Port, pasid: Option<u32>, byte: u8) -> Result<(), FaultReason> {
        port.set_pasid(pasid.map(|raw| Pasid::new(raw).unwrap()));
        port.write(Iova(AT), &[byte]).map_err(|error| match error {
            DmaError::Refused(fault) => {
                assert_eq!(fault.source_id.pasid.map(Pasid::as_u32), pasid);
                fault.reason
            }
            other => panic!("{other}"),
        })
    }

    fn byte(&self, page: u64) -> u8 {
        let mut byte = [0];
        let at = HEAP + page * PAGE;
        self.world.program.read(at, &mut byte).unwrap();
        byte[0]
    }
}

fn attach(world: &World, device: Opened, pasid: u32, pt: u32) -> Result<u32, Errno> {
    let mut bytes = pack!(16_u32, 1_u32, pt, pasid);
    world.call(device, 119, &mut bytes)?;
    Ok(word(&bytes, 8))
}

/// drivers/iommu/iommufd/device.c, iommufd_get_hw_info; drivers/iommu/iommu.c,
/// dev_iommu_get_max_pasids.
#[test]
fn a_device_tells_of_the_pasids_that_both_it_and_its_unit_know() {
    let scene = Scene::new();
    let (_, silent) = scene.world.bound(SILENT, scene.file);
    for (device, bits) in [(scene.id, 8), (silent, 0)] {
        let mut info = pack!(40_u32, 0_u32, device, 0_u32, 0_u64, 0_u32, 0_u32, 0_u64);
        assert_eq!(scene.world.call(scene.file, 0x8a, &mut info), Ok(0));
        assert_eq!(info[28], bits);
        assert_eq!(
            quad(&info, 32),
            8,
            "it asks for no execution and no privilege"
        );
    }
}

/// drivers/iommu/iommufd/hw_pagetable.c, iommufd_hwpt_paging_alloc.
#[test]
fn page_tables_for_pasids_are_the_units_to_make() {
    let scene = Scene::new();
    let (world, file) = (&scene.world, scene.file);
    let ioas = world.ioas(file);
    let (_, silent) = world.bound(SILENT, file);
    let (_, alone) = world.bound(ALONE, file);
    assert!(world.hwpt(file, silent, ioas, FIT).is_ok());
    assert_eq!(world.hwpt(file, alone, ioas, FIT), Err(Errno::EOPNOTSUPP));
}

/// drivers/iommu/iommufd/device.c, iommufd_hwpt_pasid_compat;
/// drivers/iommu/iommu.c, iommu_attach_device_pasid; lib/idr.c,
/// ida_alloc_range.
#[test]
fn a_pasid_wants_page_tables_for_pasids_and_a_device_that_sends_it() {
    let scene = Scene::new();
    let (world, file) = (&scene.world, scene.file);
    let (fit, plain) = (scene.table(0, FIT), scene.table(1, 0));
    let ioas = world.ioas(file);
    assert_eq!(scene.attach(5, 99), Err(Errno::ENOENT));
    assert_eq!(scene.attach(5, scene.id), Err(Errno::EINVAL), "a device");
    assert_eq!(scene.attach(5, plain), Err(Errno::EINVAL));
    assert_eq!(scene.attach(5, ioas), Err(Errno::EINVAL));
    assert_eq!(scene.attach(0, fit), Err(Errno::EINVAL));
    assert_eq!(scene.attach(1 << 8, fit), Err(Errno::EINVAL));
    assert_eq!(scene.attach(1 << 31, fit), Err(Errno::ENOSPC));
    let (silent, _) = world.bound(SILENT, file);
    assert_eq!(attach(world, silent, 5, fit), Err(Errno::EINVAL));

    world.attach(scene.device, plain).unwrap();
    assert_eq!(scene.attach(5, fit), Err(Errno::EINVAL), "the device's own");
    world.detach(scene.device).unwrap();
    assert_eq!(scene.attach(5, fit), Ok(fit), "it may have none");
    assert_eq!(world.attach(scene.device, plain), Err(Errno::EINVAL));
    assert_eq!(world.attach(scene.device, ioas), Err(Errno::EINVAL));
    assert_eq!(world.attach(scene.device, fit), Ok(fit));
}

/// drivers/vfio/iommufd.c, vfio_iommufd_physical_pasid_attach_ioas,
/// vfio_iommufd_physical_pasid_detach_ioas.
#[test]
fn a_second_attach_of_a_pasid_moves_it_and_a_detach_of_none_is_silent() {
    let scene = Scene::new();
    let (one, two) = (scene.table(0, FIT), scene.table(1, FIT));
    assert_eq!(scene.detach(5), Ok(0));
    assert_eq!(scene.attach(5, one), Ok(one));
    assert_eq!(scene.world.destroy(scene.file, one), Err(Errno::EBUSY));
    assert_eq!(scene.attach(5, two), Ok(two));
    assert_eq!(scene.world.destroy(scene.file, one), Ok(()));
    assert_eq!(scene.attach(5, one), Err(Errno::ENOENT), "and stays");
    assert_eq!(scene.world.destroy(scene.file, two), Err(Errno::EBUSY));
    for _ in 0..2 {
        assert_eq!(scene.detach(5), Ok(0));
    }
    assert_eq!(scene.world.destroy(scene.file, two), Ok(()));
}

/// drivers/iommu/iommu.c, __iommu_set_group_pasid; PCI Express Base 6.0 section
/// 6.20: an address space per PASID.
#[test]
fn requests_enter_the_space_of_their_pasid_and_no_other() {
    let scene = Scene::new();
    let mut port = scene.world.worker(SENDER);
    let (own, five, six) = (
        scene.table(0, FIT),
        scene.table(1, FIT),
        scene.table(2, FIT),
    );
    let blocked = Err(FaultReason::Blocked);
    let nothing = Err(FaultReason::NoPasid);
    assert_eq!(scene.write(&mut port, None, 1), blocked);
    scene.world.attach(scene.device, own).unwrap();
    assert_eq!(scene.write(&mut port, Some(5), 1), nothing);
    scene.attach(5, five).unwrap();
    scene.attach(6, six).unwrap();
    for (pasid, byte) in [(None, 10), (Some(5), 11), (Some(6), 12)] {
        assert_eq!(scene.write(&mut port, pasid, byte), Ok(()));
    }
    assert_eq!([0, 1, 2].map(|page| scene.byte(page)), [10, 11, 12]);
    scene.attach(6, five).unwrap();
    assert_eq!(scene.write(&mut port, Some(6), 13), Ok(()));
    assert_eq!([1, 2].map(|page| scene.byte(page)), [13, 12]);
    scene.detach(5).unwrap();
    assert_eq!(scene.write(&mut port, Some(5), 14), nothing);
    scene.world.detach(scene.device).unwrap();
    assert_eq!(
        scene.write(&mut port, Some(6), 15),
        Ok(()),
        "it needs no own"
    );
    assert_eq!(scene.write(&mut port, None, 16), blocked);
    assert_eq!(scene.byte(1), 15);
}

/// drivers/vfio/iommufd.c, vfio_iommufd_physical_unbind.
#[test]
fn the_last_close_takes_all_pasids_their_page_tables() {
    let scene = Scene::new();
    let mut port = scene.world.worker(SENDER);
    let table = scene.table(0, FIT);
    scene.attach(5, table).unwrap();
    scene.attach(6, table).unwrap();
    scene.world.diary.take();
    scene.world.close(scene.device);
    assert_eq!(
        scene.world.diary.take(),
        [
            "detached 0000:0b:00.0 pasid 0x5",
            "detached 0000:0b:00.0 pasid 0x6"
        ]
    );
    for pasid in [5, 6] {
        let refused = scene.write(&mut port, Some(pasid), 1);
        assert_eq!(refused, Err(FaultReason::Blocked));
    }
    assert_eq!(scene.world.destroy(scene.file, table), Ok(()));
}

/// drivers/vfio/pci/vfio_pci_config.c, vfio_ecap_init.
#[test]
fn the_pasid_capability_is_the_kernels_and_not_shown() {
    let scene = Scene::new();
    let endpoint = scene.world.host.device(SENDER).unwrap();
    let endpoint = endpoint.function.endpoint();
    let mut capability = [0; 8];
    endpoint.read_config(0x100, &mut capability);
    // Its id, version 1, alone; 20 bits, enabled.
    assert_eq!(capability, [0x1b, 0, 1, 0, 0, 20, 1, 0]);
    let config = 7_u64 << 40;
    let pieces = [(ARGUMENT, 4)];
    let (host, program) = (&scene.world.host, &scene.world.program);
    let read = iogate_uapi::read(host, scene.device.file, config + 0x100, &pieces, program);
    assert_eq!(read.unwrap().value, 4);
    let mut header = [1; 4];
    program.read(ARGUMENT, &mut header).unwrap();
    assert_eq!(header, [0; 4]);
}
