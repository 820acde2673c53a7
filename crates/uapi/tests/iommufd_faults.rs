//! Fault queues and their files: rule 45 of the kernel, and rules 22 and 35 as
//! far as they are about them. Linux `drivers/iommu/iommufd/eventq.c`.

mod iommufd_world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use iogate_dma::Iova;
use iogate_host::iommufd::{Features, Nodeless, PageFault, PasidChange, Readiness, Unit};
use iogate_host::{ErrorKind, FileId, Iommu, Retired};
use iogate_uapi::{Answer, Client, Errno, Named, read_stream, write_stream};
use iommufd_world::*;

const NEST_PARENT: u32 = 1;
const FAULT: u32 = 4;
const PASID: u32 = 8;
const SUCCESS: u32 = 0;
const INVALID: u32 = 1;
/// Bytes of a message.
const MESSAGE: usize = 40;
/// Where messages are read to and answers written from.
const BUFFER: u64 = ARGUMENT + 8 * PAGE;

/// Whether a queue's file has something to read, as it is shown.
#[derive(Default)]
struct Shown {
    is_readable: AtomicBool,
    times: AtomicUsize,
}

impl Readiness for Shown {
    fn filled(&self) {
        self.is_readable.store(true, Ordering::SeqCst);
        self.times.fetch_add(1, Ordering::SeqCst);
    }
    fn drained(&self) {
        self.is_readable.store(false, Ordering::SeqCst);
    }
}

/// An iommufd with an IOAS, a queue, and a device that asks for pages and uses
/// a page table with that queue.
struct Scene {
    world: World,
    file: Opened,
    ioas: u32,
    queue: u32,
    events: FileId,
    device: Nodeless,
    hwpt: u32,
    shown: Arc<Shown>,
}

fn finish(retired: Retired) {
    retired.grace.into_iter().for_each(iogate_dma::Grace::wait);
    drop(retired.pages);
}

fn unit(asks_for_pages: bool) -> Unit {
    let iommu = Iommu {
        index: usize::MAX,
        aperture_last: Iova(u64::MAX >> 1),
        page_sizes: 0x1000,
        reserved: Vec::new(),
        coherent: true,
        tracks_dirty: false,
        pasid_bits: 0,
    };
    Unit {
        features: Features {
            nests: true,
            takes_pasids: true,
            pasid_bits: 10,
            asks_for_pages,
            ..Features::default()
        },
        ..Unit::plain(&Arc::new(iommu))
    }
}

fn alloc(world: &World, file: Opened) -> Result<(u32, i32), Errno> {
    let mut bytes = pack!(16_u32, 0_u32, 0_u32, 0_u32);
    world.call(file, 0x8e, &mut bytes)?;
    Ok((word(&bytes, 8), word(&bytes, 12) as i32))
}

fn ours(world: &World, fd: i32) -> FileId {
    match world.program.named(fd) {
        Ok(Named::Ours(file)) => file,
        other => panic!("{other:?}"),
    }
}

fn hwpt(
    world: &World,
    file: Opened,
    (device, pt): (u32, u32),
    flags: u32,
    queue: u32,
) -> Result<u32, Errno> {
    let mut bytes = pack!(
        48_u32, flags, device, pt, 0_u32, 0_u32, 0_u32, 0_u32, 0_u64, queue, 0_u32
    );
    world.call(file, 0x89, &mut bytes)?;
    Ok(word(&bytes, 16))
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let file = world.iommufd();
        let ioas = world.ioas(file);
        let (queue, fd) = alloc(&world, file).unwrap();
        let events = ours(&world, fd);
        let made = world.host.nodeless_create(file.file, unit(true), ioas);
        let (device, retired) = made.unwrap();
        finish(retired);
        let flags = FAULT | PASID;
        let hwpt = hwpt(&world, file, (device.device, ioas), flags, queue).unwrap();
        let shown = Arc::new(Shown::default());
        world
            .host
            .fault_watch(events, Arc::clone(&shown) as Arc<dyn Readiness>)
            .unwrap();
        let scene = Self {
            world,
            file,
            ioas,
            queue,
            events,
            device,
            hwpt,
            shown,
        };
        scene.move_to(hwpt);
        scene
    }

    fn move_to(&self, pt: u32) {
        let moved = self
            .world
            .host
            .nodeless_replace(self.file.file, self.device.object, pt);
        finish(moved.unwrap().retired);
    }

    /// Has the device ask for pages at these addresses, together.
    fn ask_as(&self, pasid: Option<u32>, group: u32, addresses: &[u64]) -> bool {
        let fault = |address: &u64| PageFault {
            pasid,
            group,
            permissions: 2,
            address: *address,
        };
        let faults = addresses.iter().map(fault).collect();
        self.world
            .host
            .device_asks(self.file.file, self.device.device, faults)
            .unwrap()
    }

    fn ask(&self, group: u32, addresses: &[u64]) -> bool {
        self.ask_as(None, group, addresses)
    }

    /// read(2): the messages.
    fn read(&self, length: usize) -> Result<Vec<Vec<u8>>, Errno> {
        let pieces = [(BUFFER, length as u64)];
        let read = read_stream(&self.world.host, self.events, &pieces, &self.world.program);
        let length = read?.value as usize;
        let mut bytes = vec![0; length];
        self.world.program.read(BUFFER, &mut bytes).unwrap();
        Ok(bytes.chunks(MESSAGE).map(<[u8]>::to_vec).collect())
    }

    /// The cookies of the groups that a read of `length` bytes gets.
    fn cookies(&self, length: usize) -> Vec<u32> {
        let messages = self.read(length).unwrap();
        messages.iter().map(|one| word(one, 36)).collect()
    }

    /// write(2).
    fn write(&self, bytes: &[u8]) -> Result<i64, Errno> {
        self.world.program.write(BUFFER, bytes).unwrap();
        let pieces = [(BUFFER, bytes.len() as u64)];
        let written = write_stream(&self.world.host, self.events, &pieces, &self.world.program);
        written.map(|answer| answer.value)
    }

    fn answer(&self, cookie: u32, code: u32) -> Result<i64, Errno> {
        self.write(&pack!(cookie, code))
    }

    fn is_readable(&self) -> bool {
        self.shown.is_readable.load(Ordering::SeqCst)
    }
}

/// eventq.c, iommufd_fault_alloc.
#[test]
fn a_queue_is_a_number_and_a_descriptor_and_takes_no_flags() {
    let world = World::new();
    let file = world.iommufd();
    let (queue, fd) = alloc(&world, file).unwrap();
    assert_eq!(queue, 1);
    let events = ours(&world, fd);
    let mut flags = pack!(16_u32, 1_u32, 0_u32, 0_u32);
    assert_eq!(world.call(file, 0x8e, &mut flags), Err(Errno::EOPNOTSUPP));
    let mut short = pack!(15_u32, 0_u32, 0_u32, 0_u32);
    assert_eq!(world.call(file, 0x8e, &mut short), Err(Errno::EINVAL));
    // A descriptor that nobody can be told of is none.
    let unwritable = 0x5000_0000;
    world.give(unwritable, 5000, true, false);
    world
        .program
        .write(unwritable, &pack!(16_u32, 0_u32, 0_u32, 0_u32))
        .unwrap();
    world.give(unwritable, 5000, false, false);
    assert_eq!(world.raw(file, 0x8e, unwritable), Err(Errno::EFAULT));
    *world.program.fd_limit.lock().unwrap() = 0;
    assert_eq!(alloc(&world, file), Err(Errno::EMFILE));
    *world.program.fd_limit.lock().unwrap() = i32::MAX;
    assert_eq!(
        alloc(&world, file).map(|(id, _)| id),
        Ok(2),
        "no number is lost"
    );
    let opened = Opened { file: events, fd };
    assert_eq!(world.raw(opened, 0x81, ARGUMENT), Err(Errno::ENOTTY));
}

/// main.c, iommufd_object_remove; eventq.c, iommufd_eventq_init and
/// iommufd_eventq_fops_release.
#[test]
fn a_queue_is_busy_while_its_file_or_a_page_table_uses_it() {
    let Scene {
        world,
        file,
        ioas,
        queue,
        events,
        device,
        hwpt,
        ..
    } = Scene::new();
    assert_eq!(world.destroy(file, queue), Err(Errno::EBUSY));
    finish(world.host.close(events));
    assert_eq!(world.destroy(file, queue), Err(Errno::EBUSY));
    let moved = world.host.nodeless_replace(file.file, device.object, ioas);
    finish(moved.unwrap().retired);
    assert_eq!(world.destroy(file, queue), Err(Errno::EBUSY));
    assert_eq!(world.destroy(file, hwpt), Ok(()));
    assert_eq!(world.destroy(file, queue), Ok(()));
    assert_eq!(world.destroy(file, queue), Err(Errno::ENOENT));
}

/// eventq.c, iommufd_eventq_init: iommufd_ctx_get.
#[test]
fn the_file_of_a_queue_keeps_its_iommufd() {
    let scene = Scene::new();
    assert!(scene.ask(1, &[0x1000]));
    scene.world.close(scene.file);
    assert!(scene.ask(2, &[0x2000]), "the iommufd is there");
    assert_eq!(scene.cookies(2 * MESSAGE), [1, 2]);
    assert_eq!(scene.answer(1, SUCCESS), Ok(8));
    finish(scene.world.host.close(scene.events));
    let asked = scene
        .world
        .host
        .device_asks(scene.file.file, scene.device.device, Vec::new());
    assert_eq!(asked.map_err(|error| error.kind), Err(ErrorKind::Invalid));
    assert!(matches!(scene.read(MESSAGE), Err(Errno::EBADF)));
}

/// hw_pagetable.c, iommufd_hwpt_alloc and iommufd_hwpt_paging_alloc.
#[test]
fn a_page_table_names_a_queue_that_exists_and_is_no_parent_then() {
    let scene = Scene::new();
    let (world, file) = (&scene.world, scene.file);
    let make = |flags, queue| {
        let parents = (scene.device.device, scene.ioas);
        hwpt(world, file, parents, flags, queue)
    };
    assert_eq!(make(FAULT, 77), Err(Errno::ENOENT));
    assert_eq!(make(FAULT, scene.ioas), Err(Errno::ENOENT));
    let both = FAULT | NEST_PARENT;
    assert_eq!(make(both, scene.queue), Err(Errno::EOPNOTSUPP));
    assert_eq!(make(both, 77), Err(Errno::EOPNOTSUPP));
    assert!(make(FAULT, scene.queue).is_ok());
    assert!(make(0, 77).is_ok(), "not looked at without the flag");
}

/// intel/iommu.c, intel_iommu_enable_iopf.
#[test]
fn a_device_that_asks_for_no_pages_cannot_use_a_page_table_with_a_queue() {
    let scene = Scene::new();
    let (world, file) = (&scene.world, scene.file);
    let mute = world
        .host
        .nodeless_create(file.file, unit(false), scene.ioas);
    let (mute, retired) = mute.unwrap();
    finish(retired);
    let moved = world
        .host
        .nodeless_replace(file.file, mute.object, scene.hwpt);
    let kind = moved.map(drop).map_err(|failure| failure.error.kind);
    assert_eq!(kind, Err(ErrorKind::NoDevice));
    let asked = world.host.device_asks(file.file, mute.device, Vec::new());
    assert_eq!(asked, Ok(false), "it is where it was");
}

/// eventq.c, iommufd_compose_fault_message.
#[test]
fn a_message_says_who_wants_what_and_the_last_of_a_group_ends_it() {
    let scene = Scene::new();
    assert!(scene.ask(7, &[0x1000, 0x5000]));
    let messages = scene.read(4 * MESSAGE).unwrap();
    let device = scene.device.device;
    let message = |flags: u32, address: u64| {
        pack!(
            flags, device, 0_u32, 7_u32, 2_u32, 0_u32, address, 0_u32, 1_u32
        )
    };
    assert_eq!(messages, [message(0, 0x1000), message(2, 0x5000)]);
}

/// io-pgfault.c, find_fault_handler.
#[test]
fn a_request_with_a_pasid_goes_where_the_pasids_page_table_says() {
    let scene = Scene::new();
    let (world, file) = (&scene.world, scene.file);
    assert!(!scene.ask_as(Some(5), 1, &[0x1000]), "it has none");
    let object = scene.device.object;
    let how = PasidChange::Attach;
    let attached = world
        .host
        .pasid_attach(file.file, object, 5, scene.hwpt, how);
    finish(attached.unwrap());
    assert!(scene.ask_as(Some(5), 1, &[0x1000]));
    let messages = scene.read(MESSAGE).unwrap();
    assert_eq!((word(&messages[0], 0), word(&messages[0], 8)), (3, 5));
    finish(world.host.pasid_detach(file.file, object, 5).unwrap());
    assert_eq!(
        scene.answer(1, SUCCESS),
        Err(Errno::EINVAL),
        "it is answered"
    );
    assert!(!scene.ask_as(Some(5), 2, &[0x1000]));
    assert!(
        scene.ask(3, &[0x1000]),
        "the device's own is another matter"
    );
}

/// eventq.c, iommufd_fault_fops_read.
#[test]
fn reads_are_of_whole_groups_and_wait_for_nothing() {
    let scene = Scene::new();
    assert_eq!(scene.read(MESSAGE), Ok(vec![]), "nothing is there");
    assert_eq!(scene.read(0), Ok(vec![]));
    for length in [1, 39, 41, 79] {
        assert_eq!(scene.read(length), Err(Errno::ESPIPE), "{length}");
    }
    assert!(scene.ask(1, &[0x1000]) && scene.ask(2, &[0x2000, 0x3000]) && scene.ask(3, &[0x4000]));
    assert_eq!(scene.read(0), Err(Errno::EINVAL));
    assert_eq!(scene.cookies(2 * MESSAGE), [1], "the second does not fit");
    assert_eq!(scene.read(MESSAGE), Err(Errno::EINVAL));
    assert_eq!(scene.cookies(9 * MESSAGE), [2, 2, 3]);
    assert_eq!(scene.read(MESSAGE), Ok(vec![]));
}

/// eventq.c, iommufd_fault_fops_read: iommufd_fault_deliver_restore.
#[test]
fn what_cannot_be_told_is_told_by_the_next_read() {
    let scene = Scene::new();
    assert!(scene.ask(1, &[0x1000]) && scene.ask(2, &[0x2000]));
    let (host, program) = (&scene.world.host, &scene.world.program);
    let read = |at, length| read_stream(host, scene.events, &[(at, length)], program);
    let value = |answer: Result<Answer, Errno>| answer.map(|answer| answer.value);
    assert_eq!(value(read(0x6000_0000, 80)), Err(Errno::EFAULT));
    assert!(scene.is_readable());
    // Room for one message, then no memory.
    let edge = 0x6100_0000;
    scene.world.give(edge, 6100, true, false);
    assert_eq!(value(read(edge + PAGE - 40, 80)), Ok(40));
    assert_eq!(scene.answer(1, SUCCESS), Ok(8));
    assert_eq!(scene.cookies(MESSAGE), [1], "the number is free again");
    assert_eq!(scene.read(MESSAGE), Ok(vec![]));
}

/// fs/read_write.c, do_loop_readv_writev.
#[test]
fn each_buffer_of_a_vector_is_a_read_of_its_own() {
    let scene = Scene::new();
    let (host, program) = (&scene.world.host, &scene.world.program);
    let read = |pieces: &[(u64, u64)]| {
        let read = read_stream(host, scene.events, pieces, program);
        read.map(|answer| answer.value)
    };
    assert!(scene.ask(1, &[0x1000]) && scene.ask(2, &[0x2000]) && scene.ask(3, &[0x3000]));
    assert_eq!(read(&[(BUFFER, 40), (BUFFER + 40, 80)]), Ok(120));
    for group in 4..7 {
        assert!(scene.ask(group, &[0x1000]));
    }
    assert_eq!(read(&[(BUFFER, 20), (BUFFER, 20)]), Err(Errno::ESPIPE));
    assert_eq!(read(&[(BUFFER, 40), (BUFFER, 41)]), Ok(40));
    assert_eq!(
        read(&[(BUFFER, 120), (BUFFER, 40)]),
        Ok(80),
        "the first is not full"
    );
}

/// eventq.c, iommufd_fault_fops_write.
#[test]
fn responses_are_taken_one_after_the_other_until_one_is_wrong() {
    let scene = Scene::new();
    for group in 1..=4 {
        assert!(scene.ask(group, &[0x1000]));
    }
    assert_eq!(scene.answer(1, SUCCESS), Err(Errno::EINVAL), "not read yet");
    assert_eq!(scene.cookies(4 * MESSAGE), [1, 2, 3, 4]);
    for length in [1, 7, 12] {
        assert_eq!(scene.write(&vec![0; length]), Err(Errno::ESPIPE));
    }
    assert_eq!(scene.write(&[]), Ok(0));
    assert_eq!(scene.answer(1, 2), Err(Errno::EINVAL), "no such code");
    assert_eq!(
        scene.answer(9, SUCCESS),
        Err(Errno::EINVAL),
        "no such cookie"
    );
    assert_eq!(scene.answer(0, SUCCESS), Err(Errno::EINVAL));
    let several = pack!(
        3_u32, SUCCESS, 1_u32, INVALID, 1_u32, SUCCESS, 2_u32, SUCCESS
    );
    assert_eq!(scene.write(&several), Ok(16));
    assert_eq!(
        scene.answer(3, SUCCESS),
        Err(Errno::EINVAL),
        "answered already"
    );
    assert_eq!(scene.answer(2, SUCCESS), Ok(8));
    let (host, program) = (&scene.world.host, &scene.world.program);
    let nowhere = write_stream(host, scene.events, &[(0x6000_0000, 8)], program);
    assert_eq!(nowhere.map(drop), Err(Errno::EFAULT));
    assert!(scene.ask(5, &[0x1000]));
    assert_eq!(
        scene.cookies(MESSAGE),
        [1],
        "the lowest cookie that is free"
    );
}

/// eventq.c, iommufd_auto_response_faults; device.c,
/// iommufd_hwpt_replace_device.
#[test]
fn a_device_that_is_moved_or_detached_leaves_nothing_to_be_answered() {
    let scene = Scene::new();
    assert!(scene.ask(1, &[0x1000]) && scene.ask(2, &[0x2000]));
    assert_eq!(scene.cookies(MESSAGE), [1]);
    scene.move_to(scene.hwpt);
    assert!(scene.is_readable(), "to where it is");
    scene.move_to(scene.ioas);
    assert!(!scene.is_readable());
    assert_eq!(scene.read(MESSAGE), Ok(vec![]));
    assert_eq!(scene.answer(1, SUCCESS), Err(Errno::EINVAL));
    assert!(!scene.ask(3, &[0x3000]), "nobody is asked");
    scene.move_to(scene.hwpt);
    assert!(scene.ask(4, &[0x4000]));
    let (world, file) = (&scene.world, scene.file);
    assert_eq!(world.destroy(file, scene.device.object), Ok(()));
    assert_eq!(scene.read(MESSAGE), Ok(vec![]));
}

/// eventq.c, iommufd_eventq_fops_poll.
#[test]
fn a_file_is_readable_while_something_is_unread() {
    let scene = Scene::new();
    assert!(!scene.is_readable());
    assert!(scene.ask(1, &[0x1000]) && scene.is_readable());
    assert!(scene.ask(2, &[0x2000]));
    assert_eq!(
        scene.shown.times.load(Ordering::SeqCst),
        2,
        "each is told of"
    );
    assert_eq!(scene.cookies(MESSAGE), [1]);
    assert!(scene.is_readable(), "the second is there");
    assert_eq!(scene.cookies(MESSAGE), [2]);
    assert!(!scene.is_readable());
    assert!(scene.ask(3, &[0x3000]));
    let late = Arc::new(Shown::default());
    let watch = Arc::clone(&late) as Arc<dyn Readiness>;
    scene.world.host.fault_watch(scene.events, watch).unwrap();
    assert!(
        late.is_readable.load(Ordering::SeqCst),
        "told what is there"
    );
}

/// fs/read_write.c, ksys_pread64: the file was opened without offsets.
#[test]
fn a_stream_has_no_offsets_and_other_files_are_no_streams() {
    let scene = Scene::new();
    let (host, program) = (&scene.world.host, &scene.world.program);
    let at = iogate_uapi::read(host, scene.events, 0, &[(BUFFER, 40)], program);
    assert_eq!(at.map(drop), Err(Errno::ESPIPE));
    let at = iogate_uapi::write(host, scene.events, 0, &[(BUFFER, 8)], program);
    assert_eq!(at.map(drop), Err(Errno::ESPIPE));
    let map = iogate_uapi::mmap(host, scene.events, 0, PAGE, 1, 1);
    assert_eq!(map, Err(Errno::ENODEV));
    let other = read_stream(host, scene.file.file, &[(BUFFER, 40)], program);
    assert_eq!(other.map(drop), Err(Errno::EINVAL));
}

/// io-pgfault.c, iommu_report_device_fault: err_abort.
#[test]
fn a_queue_that_nobody_reads_does_not_grow_without_end() {
    let scene = Scene::new();
    for _ in 0..(1 << 14) + 5 {
        assert!(scene.ask(1, &[0x1000]));
    }
    let mut read = 0;
    while let Ok(messages) = scene.read(64 * MESSAGE)
        && !messages.is_empty()
    {
        read += messages.len();
    }
    assert_eq!(read, 1 << 14);
    assert!(scene.ask(1, &[0x1000]), "asked and refused");
    assert_eq!(scene.read(MESSAGE), Ok(vec![]));
}
