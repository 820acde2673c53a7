//! rust-vmm's device code behind a VT-d unit that a guest has programmed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use iogate_dma::{RequesterId, Source};
use iogate_paging::vtd::{Levels, SecondStage};
use iogate_paging::{Builder, Permissions};
use iogate_vm_memory::{Compatible, DeviceSpace, Ram};
use iogate_vtd::Vtd;
use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, IommuMemory, Permissions as Wanted,
};

const RID: RequesterId = RequesterId(0x28);
const ROOT: u64 = 0x1000;
const CONTEXTS: u64 = 0x2000;
const TABLES: u64 = 0x10_0000;
/// The device's addresses begin here, away from RAM's own.
const IOVA: u64 = 0x7654_0000_0000;

struct Machine {
    ram: Arc<GuestMemoryMmap>,
    unit: Arc<Vtd>,
}

/// A guest in legacy mode: pages of the device's space, in order, are the
/// pages of RAM given.
fn machine(pages: &[(u64, Permissions)]) -> Machine {
    let ram = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
    let unit_ram = Arc::new(Ram::new(Arc::clone(&ram)));
    let mut free = TABLES;
    let page = || {
        free += 0x1000;
        Some(free)
    };
    let mut tables = Builder::new(SecondStage::new(Levels::Four), &*unit_ram, page).unwrap();
    for (iova, &(output, permissions)) in (IOVA..).step_by(0x1000).zip(pages) {
        tables.map(iova, output, 0x1000, permissions, 12).unwrap();
    }
    // Root and context entry: present; 4 levels (AW 2), domain 5.
    ram.write_obj(CONTEXTS | 1, GuestAddress(ROOT)).unwrap();
    let entry = GuestAddress(CONTEXTS + u64::from(RID.0) * 16);
    ram.write_obj([tables.root() | 1, 5 << 8 | 2], entry)
        .unwrap();
    let unit = Vtd::builder(unit_ram).scope([RID]).build().unwrap();
    unit.write(0x20, &ROOT.to_le_bytes());
    unit.write(0x18, &(1_u32 << 30).to_le_bytes());
    unit.write(0x18, &(1_u32 << 31).to_le_bytes());
    Machine { ram, unit }
}

impl Machine {
    fn space(&self) -> DeviceSpace<GuestMemoryMmap> {
        let (ram, unit) = (Arc::clone(&self.ram), Arc::clone(&self.unit));
        let worker = self.unit.gate().join();
        DeviceSpace::new(ram, unit, Source::from(RID), worker)
    }

    /// FSTS_REG.PPF: a fault is recorded.
    fn has_recorded(&self) -> bool {
        let mut status = [0; 4];
        self.unit.read(0x34, &mut status);
        u32::from_le_bytes(status) & 2 != 0
    }
}

const ALL: Permissions = Permissions::new(true, true, false);
const READ: Permissions = Permissions::new(true, false, false);

#[test]
fn an_access_over_scattered_pages_is_whole() {
    let machine = machine(&[(0x30_0000, ALL), (0x20_0000, ALL)]);
    let mut space = machine.space();
    let memory = space.enter();
    let text = b"over two pages that do not follow each other";
    let iova = GuestAddress(IOVA + 0xff0);
    memory.write_slice(text, iova).unwrap();
    let mut back = [0; 44];
    memory.read_slice(&mut back, iova).unwrap();
    assert_eq!(&back, text);
    let mut first = [0; 16];
    machine
        .ram
        .read_slice(&mut first, GuestAddress(0x30_0ff0))
        .unwrap();
    assert_eq!(&first, &text[..16]);
    let mut second = [0; 28];
    machine
        .ram
        .read_slice(&mut second, GuestAddress(0x20_0000))
        .unwrap();
    assert_eq!(&second, &text[16..]);
}

#[test]
fn what_the_guest_does_not_map_is_refused_and_recorded() {
    let machine = machine(&[(0x30_0000, READ)]);
    let mut space = machine.space();
    let memory = space.enter();
    assert!(memory.check_range(GuestAddress(IOVA), 0x1000, Wanted::Read));
    assert!(
        memory
            .load::<u64>(GuestAddress(IOVA), Ordering::Acquire)
            .is_ok()
    );
    assert!(!machine.has_recorded());
    assert!(
        memory
            .store(1_u64, GuestAddress(IOVA), Ordering::Release)
            .is_err()
    );
    assert!(machine.has_recorded());
    assert!(!memory.check_range(GuestAddress(IOVA), 8, Wanted::Write));
    assert!(!memory.check_range(GuestAddress(IOVA), 0x1001, Wanted::Read));
    assert!(!memory.check_range(GuestAddress(u64::MAX), 2, Wanted::Read));
}

#[test]
fn an_invalidation_waits_for_an_entered_space() {
    let machine = machine(&[(0x30_0000, ALL)]);
    let mut space = machine.space();
    let memory = space.enter();
    let unit = Arc::clone(&machine.unit);
    // IOTLB_REG: invalidate everything.
    let guest =
        std::thread::spawn(move || unit.write(0xf8, &(1_u64 << 63 | 1 << 60).to_le_bytes()));
    memory
        .store(7_u64, GuestAddress(IOVA), Ordering::Release)
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(!guest.is_finished());
    drop(memory);
    guest.join().unwrap();
}

/// A split virtqueue of 4 entries in the device's page 0; a buffer that the
/// device reads in pages 1 and 2, one that it writes in page 3.
#[test]
fn a_virtio_queue_runs_behind_the_unit() {
    let pages = [0x30_0000, 0x20_0000, 0x28_0000, 0x24_0000];
    let machine = machine(&pages.map(|page| (page, ALL)));
    let at = |offset: u64| GuestAddress(pages[0] + offset);
    let descriptor = |iova: u64, length: u32, flags: u16, next: u16| {
        (
            iova,
            u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48,
        )
    };
    let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    let ring = [
        descriptor(IOVA + 0x1ff8, 16, 1, 1),
        descriptor(IOVA + 0x3000, 16, write, 0),
    ];
    for (index, (low, high)) in (0_u64..).zip(ring) {
        machine.ram.write_obj([low, high], at(index * 16)).unwrap();
    }
    // The available ring at 0x100: flags, index 1, entry 0.
    machine.ram.write_obj([0_u16, 1, 0], at(0x100)).unwrap();
    machine
        .ram
        .write_slice(b"left", GuestAddress(pages[1] + 0xff8))
        .unwrap();
    machine
        .ram
        .write_slice(b"of it", GuestAddress(pages[2]))
        .unwrap();

    let mut queue = Queue::new(4).unwrap();
    queue.set_size(4);
    for (set, offset) in [
        (Queue::set_desc_table_address as fn(&mut Queue, _, _), 0),
        (Queue::set_avail_ring_address, 0x100),
        (Queue::set_used_ring_address, 0x200),
    ] {
        let address = IOVA + offset;
        let (low, high) = (address as u32, (address >> 32) as u32);
        set(&mut queue, Some(low), Some(high));
    }
    queue.set_ready(true);

    let mut space = machine.space();
    let memory = space.enter();
    assert!(queue.is_valid(&memory));
    let mut chain = queue.pop_descriptor_chain(&memory).unwrap();
    let (from, to) = (chain.next().unwrap(), chain.next().unwrap());
    assert!(!from.is_write_only() && to.is_write_only());
    let mut bytes = [0; 16];
    memory.read_slice(&mut bytes, from.addr()).unwrap();
    memory.write_slice(&bytes, to.addr()).unwrap();
    queue.add_used(&memory, chain.head_index(), 16).unwrap();

    let copied: [u8; 16] = machine.ram.read_obj(GuestAddress(pages[3])).unwrap();
    assert_eq!(&copied, b"left\0\0\0\0of it\0\0\0");
    let used: [u16; 2] = machine.ram.read_obj(at(0x200)).unwrap();
    assert_eq!(used, [0, 1]);
}

#[test]
fn the_same_through_the_iommu_of_vm_memory() {
    let machine = machine(&[(0x30_0000, ALL), (0x20_0000, READ)]);
    let gate = Arc::clone(machine.unit.gate());
    let unit = Compatible::new(Arc::clone(&machine.unit) as _, gate, Source::from(RID));
    let ram = GuestMemoryMmap::clone(&machine.ram);
    let memory = IommuMemory::new(ram, unit, true, ());
    memory
        .write_slice(b"hello", GuestAddress(IOVA + 8))
        .unwrap();
    let there: [u8; 5] = machine.ram.read_obj(GuestAddress(0x30_0008)).unwrap();
    assert_eq!(&there, b"hello");
    let mut over_both = [0; 0x1800];
    memory
        .read_slice(&mut over_both, GuestAddress(IOVA))
        .unwrap();
    assert!(
        memory
            .write_slice(b"no", GuestAddress(IOVA + 0x1000))
            .is_err()
    );
    for (iova, length) in [(u64::MAX, 1), (u64::MAX - 7, 8), (u64::MAX, 2)] {
        let slices = memory.get_slices(GuestAddress(iova), length, Wanted::Read);
        assert!(slices.is_err(), "{iova:#x}+{length}");
    }
    assert!(
        memory
            .get_slices(GuestAddress(IOVA), 0, Wanted::Read)
            .unwrap()
            .next()
            .is_none()
    );
}
