//! The operations of the test interface as a program makes them: where their
//! fields are, and what they come to. Linux
//! `drivers/iommu/iommufd/iommufd_test.h` and `selftest.c`.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

#[path = "../../uapi/tests/iommufd_world/mod.rs"]
mod iommufd_world;

use std::sync::Arc;

use iogate_host::FileId;
use iogate_iommu_test::TestInterface;
use iogate_uapi::{Client, Errno, Named, read_stream, write_stream};
use iommufd_world::*;

/// Where mock devices' page tables begin.
const FIRST: u64 = 1 << 24;
const FAULT: u32 = 4;
const DIRTY_TRACKING: u32 = 2;
const PASID: u32 = 8;
const INVALID: Result<(), Errno> = Err(Errno::EINVAL);
const ABSENT: Result<(), Errno> = Err(Errno::ENOENT);

struct Scene {
    world: World,
    file: Opened,
    ioas: u32,
}

/// A mock device: its object, its page table, its number.
#[derive(Clone, Copy)]
struct Mock {
    object: u32,
    hwpt: u32,
    device: u32,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        world.host.extend(Arc::new(TestInterface::new()));
        let file = world.iommufd();
        let ioas = world.ioas(file);
        Self { world, file, ioas }
    }

    /// Operation `number` on object `id` with these fields from byte 16 on:
    /// what it returns, and the structure afterwards.
    fn run(&self, number: u32, id: u32, fields: &[u8]) -> Result<(i64, Vec<u8>), Errno> {
        let mut bytes = pack!(72_u32, number, id, 0_u32);
        bytes.extend(fields);
        bytes.resize(72, 0);
        let value = self.world.call(self.file, 0xa0, &mut bytes)?;
        Ok((value, bytes))
    }

    fn op(&self, number: u32, id: u32, fields: &[u8]) -> Result<(), Errno> {
        self.run(number, id, fields).map(drop)
    }

    fn mock(&self, pt: u32, flags: u32) -> Result<Mock, Errno> {
        let fields = pack!(0_u32, 0_u32, 0_u32, flags);
        let (_, bytes) = self.run(12, pt, &fields)?;
        Ok(Mock {
            object: word(&bytes, 16),
            hwpt: word(&bytes, 20),
            device: word(&bytes, 24),
        })
    }

    fn map(&self, pages: u64, iova: u64) {
        let memory = (HEAP, pages * PAGE);
        self.world
            .map(self.file, self.ioas, FIXED | RW, memory, iova)
            .unwrap();
    }

    fn refs(&self, address: u64, pages: u64, count: u32) -> Result<(), Errno> {
        self.op(4, 0, &pack!(pages * PAGE, address, count))
    }

    fn access(&self, flags: u32) -> Result<i32, Errno> {
        let (_, bytes) = self.run(5, self.ioas, &pack!(0_u32, flags))?;
        Ok(word(&bytes, 16).cast_signed())
    }

    fn ours(&self, fd: i32) -> FileId {
        match self.world.program.named(fd) {
            Ok(Named::Ours(file)) => file,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn without_the_interface_there_is_no_such_call_and_unknown_operations_are_unsupported() {
    let world = World::new();
    let file = world.iommufd();
    assert_eq!(world.call(file, 0xa0, &mut [72; 72]), Err(Errno::ENOTTY));
    let scene = Scene::new();
    for number in [0, 24, u32::MAX] {
        assert_eq!(scene.op(number, 0, &[]), Err(Errno::EOPNOTSUPP));
    }
    let mut short = pack!(67_u32, 9_u32);
    short.resize(72, 0);
    let short = scene.world.call(scene.file, 0xa0, &mut short);
    assert_eq!(short, Err(Errno::EINVAL));
}

/// selftest.c, iommufd_test_mock_domain, iommufd_test_mock_domain_replace.
#[test]
fn a_mock_device_has_an_object_a_page_table_and_a_number_and_can_be_moved() {
    let scene = Scene::new();
    let (_, bytes) = scene.run(2, scene.ioas, &[]).unwrap();
    let object = word(&bytes, 16);
    assert_eq!((object, word(&bytes, 24)), (scene.ioas + 1, object + 1));
    assert_eq!(
        scene.world.ranges(scene.file, scene.ioas).0,
        [(FIRST, (1 << 31) - 1)]
    );
    for flags in [2, 8, 1 << 31] {
        assert_eq!(scene.mock(scene.ioas, flags).map(drop), INVALID);
    }
    assert_eq!(scene.mock(77, 0).map(drop), ABSENT);
    let other = scene.world.ioas(scene.file);
    let (_, moved) = scene.run(10, object, &pack!(other)).unwrap();
    assert_ne!(word(&moved, 16), word(&bytes, 20));
    assert_eq!(scene.op(10, object, &pack!(77_u32)), ABSENT);
    assert_eq!(scene.op(10, 77, &pack!(other)), ABSENT);
    assert_eq!(scene.world.destroy(scene.file, object), Ok(()));
    assert_eq!(scene.world.destroy(scene.file, scene.ioas), Ok(()));
}

/// selftest.c, mock_domain_hw_info, mock_domain_capable,
/// iommufd_test_dev_check_cache.
#[test]
fn a_mock_device_says_what_it_can() {
    let scene = Scene::new();
    let at = ARGUMENT + PAGE;
    let info = |flags| {
        let mock = scene.mock(scene.ioas, flags).unwrap();
        let mut bytes = pack!(40_u32, 0_u32, mock.device, 8_u32, at, 0_u32, 0_u32, 0_u64);
        scene.world.call(scene.file, 0x8a, &mut bytes).unwrap();
        (word(&bytes, 24), bytes[28], quad(&bytes, 32), mock)
    };
    let (kind, pasid, capabilities, mock) = info(0);
    let mut register = [0; 8];
    scene.world.program.read(at, &mut register).unwrap();
    assert_eq!((kind, word(&register, 4)), (0xfeed_beef, 0xdead_beef));
    assert_eq!((pasid, capabilities & 1), (0, 1));
    let (_, pasid, capabilities, _) = info(1 | 4);
    assert_eq!((pasid, capabilities & 1), (20, 0));
    let cache = |word: u32, value: u32| scene.op(16, mock.device, &pack!(word, value));
    assert_eq!(cache(3, 0xba_ddad), Ok(()));
    assert_eq!(cache(4, 0xba_ddad), INVALID);
    assert_eq!(cache(0, 1), INVALID);
    assert_eq!(scene.op(16, 77, &pack!(0_u32, 0xba_ddad_u32)), ABSENT);
}

/// selftest.c, iommufd_test_md_check_pa and iommufd_test_md_check_refs.
#[test]
fn where_a_page_table_leads_and_how_often_pages_are_pinned_can_be_checked() {
    let scene = Scene::new();
    scene.map(4, FIRST);
    assert_eq!(scene.refs(HEAP, 4, 0), Ok(()), "nothing is pinned yet");
    let mock = scene.mock(scene.ioas, 0).unwrap();
    let leads = |iova: u64, pages: u64, address: u64| {
        scene.op(3, mock.hwpt, &pack!(iova, pages * PAGE, address))
    };
    assert_eq!(leads(FIRST, 4, HEAP), Ok(()));
    assert_eq!(leads(FIRST + PAGE, 2, HEAP + PAGE), Ok(()));
    assert_eq!(leads(FIRST, 1, HEAP + PAGE), INVALID);
    assert_eq!(leads(FIRST, 5, HEAP), INVALID, "less is mapped");
    assert_eq!(leads(FIRST + 1, 1, HEAP), INVALID);
    assert_eq!(leads(FIRST, 1, 0x7000_0000), Err(Errno::EFAULT));
    assert_eq!(scene.op(3, 77, &pack!(FIRST, PAGE, HEAP)), ABSENT);
    assert_eq!(scene.refs(HEAP, 4, 1), Ok(()));
    assert_eq!(scene.refs(HEAP, 4, 2), Err(Errno::EIO));
    assert_eq!(
        scene.refs(HEAP, 5, 1),
        Err(Errno::EIO),
        "one of them is not"
    );
    assert_eq!(scene.refs(HEAP + 1, 1, 1), INVALID);
    scene.map(1, FIRST + 8 * PAGE);
    assert_eq!(scene.refs(HEAP, 1, 2), Ok(()));
}

/// selftest.c, iommufd_test_create_access, iommufd_test_access_pages,
/// iommufd_test_access_item_destroy, iommufd_test_access_rw,
/// iommufd_test_access_replace_ioas.
#[test]
fn accesses_pin_compare_read_write_and_change_their_ioas() {
    let scene = Scene::new();
    scene.map(4, FIRST);
    assert_eq!(scene.access(2), Err(Errno::EOPNOTSUPP));
    let fd = scene.access(1).unwrap().cast_unsigned();
    let pin = |flags: u32, iova: u64, address: u64| {
        let fields = pack!(flags, 0_u32, iova, PAGE, address);
        scene.run(7, fd, &fields).map(|(_, bytes)| word(&bytes, 20))
    };
    let first = pin(1, FIRST, HEAP).unwrap();
    let second = pin(0, FIRST, 0).unwrap();
    assert_ne!(first, second);
    assert_eq!(scene.refs(HEAP, 1, 2), Ok(()));
    assert_eq!(
        pin(0, FIRST, HEAP + PAGE).map(drop),
        INVALID,
        "other memory"
    );
    assert_eq!(scene.refs(HEAP, 1, 2), Ok(()), "it was let go of");
    assert_eq!(pin(2, FIRST, 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(scene.op(6, fd, &pack!(first)), Ok(()));
    assert_eq!(scene.op(6, fd, &pack!(first)), ABSENT);
    let (program, buffer) = (&scene.world.program, ARGUMENT + 2 * PAGE);
    program.write(buffer, b"words").unwrap();
    let copy = |flags: u32, iova: u64| scene.op(8, fd, &pack!(iova, 5_u64, buffer, flags));
    assert_eq!(copy(1, FIRST + PAGE - 2), Ok(()));
    program.write(buffer, b"-----").unwrap();
    assert_eq!(copy(0, FIRST + PAGE - 2), Ok(()));
    let mut words = [0; 5];
    program.read(buffer, &mut words).unwrap();
    assert_eq!(&words, b"words");
    assert_eq!(copy(2, FIRST), Err(Errno::EOPNOTSUPP));
    assert_eq!(copy(0, FIRST + 4 * PAGE), ABSENT);
    assert_eq!(scene.op(11, fd, &pack!(77_u32)), ABSENT);
    let other = scene.world.ioas(scene.file);
    assert_eq!(scene.op(11, fd, &pack!(other)), Ok(()));
    assert_eq!(scene.refs(HEAP, 4, 0), Ok(()));
    assert_eq!(copy(0, FIRST), ABSENT, "it looks elsewhere now");
    assert_eq!(scene.op(6, 9999, &pack!(0_u32)), Err(Errno::EBADF));
}

/// selftest.c, iommufd_test_add_reserved and the memory limit.
#[test]
fn a_range_is_reserved_where_nothing_is_and_a_limit_is_not_too_low() {
    let scene = Scene::new();
    scene.map(1, FIRST);
    let reserve = |start: u64, length: u64| scene.op(1, scene.ioas, &pack!(start, length));
    assert_eq!(reserve(FIRST, PAGE), Err(Errno::EADDRINUSE));
    assert_eq!(reserve(u64::MAX, 2), Err(Errno::EOVERFLOW));
    assert_eq!(reserve(0x1000, 0x1000), Ok(()));
    let below = (0x2000, u64::MAX);
    assert_eq!(
        scene.world.ranges(scene.file, scene.ioas).0,
        [(0, 0xfff), below]
    );
    assert_eq!(scene.op(1, 77, &pack!(0_u64, 1_u64)), ABSENT);
    assert_eq!(scene.op(9, 0, &pack!(11_u32)), INVALID);
    assert_eq!(scene.op(9, 0, &pack!(65536_u32)), Ok(()));
}

/// selftest.c, iommufd_test_dirty, mock_domain_alloc_pgtable; iova_bitmap.c.
#[test]
fn what_a_mock_device_writes_is_dirty_by_the_pages_of_its_page_table() {
    let scene = Scene::new();
    let (world, file) = (&scene.world, scene.file);
    let mock = scene.mock(scene.ioas, 0).unwrap();
    let table = |length: u32, kind: u32| {
        let at = ARGUMENT + 4 * PAGE;
        world.program.write(at, &pack!(0_u32, kind, 1_u32)).unwrap();
        let flags = DIRTY_TRACKING;
        let data = (0xdead_u32, length);
        let mut bytes = pack!(
            48_u32,
            flags,
            mock.device,
            scene.ioas,
            0_u32,
            0_u32,
            data.0,
            data.1,
            at,
            0_u64
        );
        world.call(file, 0x89, &mut bytes)?;
        Ok(word(&bytes, 16))
    };
    assert_eq!(table(3, 0), Err(Errno::EINVAL));
    assert_eq!(table(12, 0), Err(Errno::EINVAL));
    assert_eq!(table(8, 2), Err(Errno::EOPNOTSUPP));
    let (small, huge) = (table(4, 1).unwrap(), table(8, 1).unwrap());
    scene.map(64, FIRST);
    let (bits, told) = (ARGUMENT + 5 * PAGE, ARGUMENT + 6 * PAGE);
    let length = 64 * PAGE;
    let dirty = |hwpt: u32, flags: u32| {
        let fields = pack!(flags, 0_u32, FIRST, length, PAGE, bits);
        scene
            .run(13, hwpt, &fields)
            .map(|(_, bytes)| quad(&bytes, 56))
    };
    let look = |hwpt: u32| {
        world.program.write(told, &[0; 8]).unwrap();
        let mut bytes = pack!(48_u32, hwpt, 0_u32, 0_u32, FIRST, length, PAGE, told);
        world.call(file, 0x8c, &mut bytes).unwrap();
        let mut map = [0; 8];
        world.program.read(told, &mut map).unwrap();
        u64::from_ne_bytes(map)
    };
    world.program.write(bits, &pack!(0x8001_u64)).unwrap();
    assert_eq!(dirty(small, 0).map(drop), INVALID, "tracking is off");
    for hwpt in [small, huge] {
        let mut track = pack!(16_u32, 1_u32, hwpt, 0_u32);
        world.call(file, 0x8b, &mut track).unwrap();
        assert_eq!(dirty(hwpt, 0), Ok(2));
    }
    assert_eq!(dirty(small, 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(look(small), 0x8001);
    assert_eq!(look(small), 0);
    assert_eq!(look(huge), u64::MAX, "one page of 1 MiB");
    assert_eq!(look(huge), 0);
}

/// selftest.c, iommufd_test_trigger_iopf.
#[test]
fn a_mock_device_asks_for_a_page_by_the_queue_of_its_page_table() {
    let scene = Scene::new();
    let (world, file) = (&scene.world, scene.file);
    let mock = scene.mock(scene.ioas, 4).unwrap();
    let mut queue = pack!(16_u32, 0_u32, 0_u32, 0_u32);
    world.call(file, 0x8e, &mut queue).unwrap();
    let events = scene.ours(word(&queue, 12).cast_signed());
    let mut table = pack!(
        48_u32,
        FAULT | PASID,
        mock.device,
        scene.ioas,
        0_u32,
        0_u32,
        0_u32,
        0_u32,
        0_u64,
        word(&queue, 8),
        0_u32
    );
    world.call(file, 0x89, &mut table).unwrap();
    let hwpt = word(&table, 16);
    let ask = |device: u32, pasid: u32| {
        scene.op(15, 0, &pack!(device, pasid, 5_u32, 3_u32, 0x12_3000_u64))
    };
    let buffer = ARGUMENT + 7 * PAGE;
    let read = || {
        let read = read_stream(&world.host, events, &[(buffer, 80)], &world.program);
        read.unwrap().value
    };
    assert_eq!(ask(mock.device, 0), Ok(()));
    assert_eq!(read(), 0, "its page table has none");
    scene.op(10, mock.object, &pack!(hwpt)).unwrap();
    assert_eq!(ask(mock.device, 0), Ok(()));
    assert_eq!(ask(mock.device, 9), Ok(()));
    assert_eq!(read(), 40, "the process has no page table");
    let mut message = [0; 40];
    world.program.read(buffer, &mut message).unwrap();
    let device = mock.device;
    let expected = pack!(
        2_u32,
        device,
        0_u32,
        5_u32,
        3_u32,
        0_u32,
        0x12_3000_u64,
        0_u32,
        1_u32
    );
    assert_eq!(message, *expected);
    world.program.write(buffer, &pack!(1_u32, 0_u32)).unwrap();
    let answer = write_stream(&world.host, events, &[(buffer, 8)], &world.program);
    assert_eq!(answer.unwrap().value, 8);
    assert_eq!(ask(77, 0), ABSENT);
    let (_, real) = world.bound(ALONE, file);
    assert_eq!(ask(real, 0), INVALID);
}

/// selftest.c, get_md_pagetable_nested and iommufd_test_trigger_vevent.
#[test]
fn nothing_is_known_of_nested_page_tables_and_virtual_iommus() {
    let scene = Scene::new();
    let mock = scene.mock(scene.ioas, 0).unwrap();
    assert_eq!(scene.op(14, mock.hwpt, &pack!(0_u32, 0_u32)), ABSENT);
    assert_eq!(scene.op(17, 0, &pack!(mock.device)), ABSENT);
    assert_eq!(scene.op(17, 0, &pack!(77_u32)), ABSENT);
}

/// selftest.c, iommufd_test_pasid_attach and what follows it.
#[test]
fn a_pasid_of_a_mock_device_gets_another_and_no_page_table() {
    let scene = Scene::new();
    let mock = scene.mock(scene.ioas, 4).unwrap();
    let (world, file, ioas) = (&scene.world, scene.file, scene.ioas);
    let table = || world.hwpt(file, mock.device, ioas, PASID).unwrap();
    let (one, other) = (table(), table());
    scene.op(10, mock.object, &pack!(one)).unwrap();
    let pasid = |number: u32, hwpt: u32| scene.op(number, mock.object, &pack!(100_u32, hwpt));
    assert_eq!(pasid(19, one), INVALID, "nothing to replace");
    assert_eq!(pasid(18, one), Ok(()));
    assert_eq!(pasid(18, one), Err(Errno::EBUSY));
    assert_eq!(pasid(21, one), Ok(()));
    assert_eq!(pasid(19, other), Ok(()));
    assert_eq!(pasid(21, one), INVALID);
    assert_eq!(pasid(21, other), Ok(()));
    assert_eq!(pasid(20, 0), Ok(()));
    assert_eq!(pasid(21, 0), Ok(()));
    let wide = scene.op(18, mock.object, &pack!(1_u32 << 20, one));
    assert_eq!(wide, INVALID);
}

/// selftest.c, iommufd_test_dmabuf_get and iommufd_test_dmabuf_revoke.
#[test]
fn a_buffer_is_a_descriptor_that_is_returned_and_can_be_taken_back() {
    let scene = Scene::new();
    let (fd, _) = scene.run(22, 0, &pack!(2 * 4096_u32, 0_u32)).unwrap();
    let fd = i32::try_from(fd).unwrap();
    let map = || {
        let memory = (0, PAGE);
        scene
            .world
            .map_file(scene.file, scene.ioas, fd, memory, FIRST)
    };
    assert_eq!(scene.op(22, 0, &pack!(0_u32)), INVALID);
    assert_eq!(scene.op(23, 0, &pack!(fd, 1_u32)), Ok(()));
    assert_eq!(map(), Err(Errno::ENODEV));
    assert_eq!(scene.op(23, 0, &pack!(fd, 0_u32)), Ok(()));
    assert_eq!(map(), Ok(FIRST));
    let other = scene.world.other();
    assert_eq!(scene.op(23, 0, &pack!(other, 1_u32)), INVALID);
}
