//! Migration as a program asks for it: states, the data descriptor, the log of
//! writes. Rules of Linux `drivers/vfio/vfio_main.c`, and of
//! `drivers/vfio/pci/mlx5` where drivers decide.
#![allow(missing_docs)]

mod legacy_world;

use std::sync::atomic::Ordering;

use iogate_host::{FileId, FileKind};
use iogate_uapi::Errno;
use legacy_world::{ARGUMENT, FIRST, HEAP, PAGE, SECOND, World, number, quad, word};

const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;

const ERROR: u32 = 0;
const STOP: u32 = 1;
const RUNNING: u32 = 2;
const STOP_COPY: u32 = 3;
const RESUMING: u32 = 4;
const RUNNING_P2P: u32 = 5;
const PRE_COPY: u32 = 6;
const PRE_COPY_P2P: u32 = 7;

struct Session {
    world: World,
    container: FileId,
    device: FileId,
    index: usize,
}

impl Session {
    fn new(index: usize) -> Self {
        let world = World::new();
        world.probes[index].moves.store(true, Ordering::SeqCst);
        let (container, _, device) = world.ready(index);
        Self {
            world,
            container,
            device,
            index,
        }
    }

    fn feature(&self, flags: u32, data: &[u8]) -> Result<Vec<u8>, Errno> {
        let argsz = u32::try_from(8 + data.len()).unwrap();
        let mut argument = pack!(argsz, flags);
        argument.extend(data);
        let answer = self.world.ask(self.device, 17, argument);
        answer.map(|bytes| bytes[8..].to_vec())
    }

    /// Goes to a state; the file of the data, if there is one.
    fn set(&self, state: u32) -> Result<Option<FileId>, Errno> {
        let answer = self.feature(SET | 2, &pack!(state, 77_i32))?;
        assert_eq!(word(&answer, 0), state);
        let fd = i32::from_ne_bytes(answer[4..8].try_into().unwrap());
        if fd == -1 {
            return Ok(None);
        }
        match iogate_uapi::Client::named(&*self.world.program, fd).unwrap() {
            iogate_uapi::Named::Ours(file) => Ok(Some(file)),
            iogate_uapi::Named::Other => panic!("not a file of ours"),
        }
    }

    fn state(&self) -> u32 {
        let answer = self.feature(GET | 2, &[0xee; 8]).unwrap();
        assert_eq!(answer[4..], (-1_i32).to_ne_bytes());
        word(&answer, 0)
    }

    fn read(&self, file: FileId, length: u64) -> Result<Vec<u8>, Errno> {
        let at = ARGUMENT + PAGE;
        let world = &self.world;
        let program = &*world.program;
        let result = iogate_uapi::read_stream(&world.host, file, &[(at, length)], program);
        let read = world.settle(result)?.value;
        let mut bytes = vec![0; usize::try_from(read).unwrap()];
        program.peek(at, &mut bytes);
        Ok(bytes)
    }

    fn write(&self, file: FileId, bytes: &[u8]) -> Result<i64, Errno> {
        let at = ARGUMENT + PAGE;
        let world = &self.world;
        world.program.poke(at, bytes);
        let pieces = [(at, bytes.len() as u64)];
        let result = iogate_uapi::write_stream(&world.host, file, &pieces, &*world.program);
        world.settle(result).map(|answer| answer.value)
    }

    fn all(&self, file: FileId) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.read(file, 33).unwrap() {
                part if part.is_empty() => return all,
                part => all.extend(part),
            }
        }
    }

    /// initial_bytes and dirty_bytes.
    fn precopy(&self, file: FileId) -> Result<(u64, u64), Errno> {
        let argument = pack!(24_u32, 0xabcd_u32, 1_u64, 2_u64);
        let answer = self.world.ask(file, 21, argument)?;
        Ok((quad(&answer, 8), quad(&answer, 16)))
    }

    fn is_at_rest(&self) -> bool {
        let probe = &self.world.probes[self.index];
        probe.at_rest.load(Ordering::SeqCst)
    }

    fn put(&self, bytes: &[u8]) {
        let bar = self.world.region(0, 0);
        self.world.pwrite(self.device, bar, bytes).unwrap();
    }

    fn get(&self) -> Vec<u8> {
        let bar = self.world.region(0, 0);
        self.world.pread(self.device, bar, 16).unwrap()
    }
}

/// vfio_ioctl_device_feature_migration, _mig_device_state,
/// _migration_data_size, _migration_precopy_info_v2.
#[test]
fn a_device_that_moves_has_all_optional_states_and_says_so() {
    let session = Session::new(FIRST);
    assert_eq!(
        session.feature(GET | 1, &[0; 8]),
        Ok(7_u64.to_ne_bytes().to_vec())
    );
    assert_eq!(
        session.feature(GET | 1, &[0; 7]),
        Err(Errno::EINVAL),
        "too short"
    );
    assert_eq!(session.feature(SET | 1, &[0; 8]), Err(Errno::EINVAL));
    for number in [1, 2, 8, 9] {
        assert!(session.feature(PROBE | GET | number, &[]).is_ok());
    }
    for number in [2, 6, 7, 12] {
        assert!(session.feature(PROBE | SET | number, &[]).is_ok());
    }
    assert_eq!(session.feature(PROBE | SET | 8, &[]), Err(Errno::EINVAL));
    assert_eq!(session.state(), RUNNING);
    let size = quad(&session.feature(GET | 9, &[0; 8]).unwrap(), 0);
    let file = session.set(STOP_COPY).unwrap().unwrap();
    assert_eq!(session.all(file).len() as u64, size);
}

/// mlx5vf_pci_set_device_state: each step of the way is taken, and only one
/// that is asked for gives a descriptor.
#[test]
fn every_state_is_reached_from_every_other_as_the_kernel_goes() {
    let saving = [STOP_COPY, PRE_COPY, PRE_COPY_P2P];
    let source = Session::new(FIRST);
    let file = source.set(STOP_COPY).unwrap().unwrap();
    let stream = source.all(file);
    for from in STOP..=PRE_COPY_P2P {
        for to in ERROR..=9 {
            let session = Session::new(FIRST);
            let file = session.set(from).unwrap();
            if let (RESUMING, Some(file)) = (from, file) {
                session.write(file, &stream).unwrap();
            }
            let refused = matches!(to, ERROR | 8 | 9)
                || from == STOP_COPY && matches!(to, PRE_COPY | PRE_COPY_P2P);
            let possible = !refused;
            let result = session.set(to);
            assert_eq!(result.is_ok(), possible, "{from} -> {to}");
            if !possible {
                assert_eq!(result, Err(Errno::EINVAL));
                assert_eq!(session.state(), from);
                continue;
            }
            assert_eq!(session.state(), to);
            let begins =
                from != to && (to == RESUMING || saving.contains(&to) && !saving.contains(&from));
            assert_eq!(result.unwrap().is_some(), begins, "{from} -> {to}");
            let works = [RUNNING, PRE_COPY].contains(&to);
            assert_eq!(session.is_at_rest(), !works, "{from} -> {to}");
        }
    }
}

#[test]
fn a_state_flows_from_one_device_to_another() {
    let source = Session::new(FIRST);
    source.put(b"sixteen bytes...");
    let early = source.set(PRE_COPY).unwrap().unwrap();
    let (initial, dirty) = source.precopy(early).unwrap();
    assert_eq!(dirty, 0);
    let mut stream = source.read(early, 10).unwrap();
    assert_eq!(source.precopy(early).unwrap(), (initial - 10, 0));
    stream.extend(source.read(early, 4000).unwrap());
    assert_eq!(stream.len() as u64, initial);
    // vfio.h: a temporary end of the stream.
    assert_eq!(source.read(early, 1), Err(Errno::ENOMSG));
    assert_eq!(source.read(early, 0), Ok(vec![]));
    source.put(b"SIXTEEN");
    assert_eq!(source.set(PRE_COPY_P2P), Ok(None), "the session goes on");
    assert_eq!(source.read(early, 1), Err(Errno::ENOMSG));
    assert_eq!(source.set(STOP_COPY), Ok(None));
    assert_eq!(source.precopy(early), Err(Errno::EINVAL));
    stream.extend(source.all(early));
    assert_eq!(source.read(early, 1), Ok(vec![]), "a permanent end");

    let target = Session::new(SECOND);
    let late = target.set(RESUMING).unwrap().unwrap();
    for part in stream.chunks(7) {
        assert_eq!(target.write(late, part), Ok(part.len() as i64));
    }
    assert_eq!(target.get(), [0; 16]);
    assert_eq!(target.set(RUNNING), Ok(None));
    assert_eq!(target.get(), b"SIXTEEN bytes...");
    assert!(!target.is_at_rest());
}

/// Whether there was something to read, each time that it was told.
#[derive(Default)]
struct Told(std::sync::Mutex<Vec<bool>>);

impl iogate_host::iommufd::Readiness for Told {
    fn filled(&self) {
        self.0.lock().unwrap().push(true);
    }
    fn drained(&self) {
        self.0.lock().unwrap().push(false);
    }
}

/// mlx5vf_save_poll.
#[test]
fn who_polls_is_told_of_bytes_of_the_end_and_of_a_transfer_that_is_over() {
    let session = Session::new(FIRST);
    let file = session.set(PRE_COPY).unwrap().unwrap();
    let told = std::sync::Arc::new(Told::default());
    session
        .world
        .host
        .migration_watch(file, told.clone())
        .unwrap();
    let last = || *told.0.lock().unwrap().last().unwrap();
    assert!(last(), "what is known early");
    session.read(file, 4000).unwrap();
    assert!(!last(), "a temporary end");
    session.set(PRE_COPY_P2P).unwrap();
    assert!(!last());
    session.set(STOP_COPY).unwrap();
    assert!(last());
    session.all(file);
    assert!(last(), "a permanent end");
    session.set(PRE_COPY).unwrap_err();
    let file = session
        .set(RUNNING)
        .and_then(|_| session.set(PRE_COPY))
        .unwrap()
        .unwrap();
    session
        .world
        .host
        .migration_watch(file, told.clone())
        .unwrap();
    session.read(file, 4000).unwrap();
    assert!(!last());
    session.set(RUNNING).unwrap();
    assert!(last(), "over");
}

/// mlx5vf_disable_fd, and the modes with which its files are opened.
#[test]
fn a_data_descriptor_belongs_to_one_transfer_and_one_way() {
    let session = Session::new(FIRST);
    let first = session.set(STOP_COPY).unwrap().unwrap();
    assert_eq!(session.write(first, b"x"), Err(Errno::EBADF));
    session.set(STOP).unwrap();
    assert_eq!(session.read(first, 1), Err(Errno::ENODEV));
    assert_eq!(session.read(first, 0), Err(Errno::ENODEV));
    let second = session.set(STOP_COPY).unwrap().unwrap();
    assert_ne!(first, second);
    assert_eq!(session.read(first, 1), Err(Errno::ENODEV));
    assert!(session.read(second, 1).is_ok());
    // In a PRE_COPY state of another transfer.
    session.set(RUNNING).unwrap();
    session.set(PRE_COPY).unwrap();
    assert_eq!(session.precopy(second), Err(Errno::ENODEV));
    let third = session.set(RESUMING).unwrap().unwrap();
    assert_eq!(session.read(third, 1), Err(Errno::EBADF));
    assert_eq!(session.precopy(third), Err(Errno::ENOTTY));
    session.world.close(third);
    assert_eq!(session.state(), RESUMING, "a close changes nothing");
    // stream_open: there are no offsets.
    assert_eq!(session.world.pread(second, 0, 1), Err(Errno::ESPIPE));
    assert_eq!(session.world.pwrite(second, 0, &[1]), Err(Errno::ESPIPE));
    assert_eq!(session.world.raw(second, number(7), 0), Err(Errno::ENOTTY));
}

/// vfio_check_precopy_ioctl.
#[test]
fn precopy_info_checks_its_argument_before_the_state_and_flags_mean_something_if_asked() {
    let session = Session::new(FIRST);
    let file = session.set(PRE_COPY).unwrap().unwrap();
    let world = &session.world;
    let ask = |argsz: u32| world.ask(file, 21, pack!(argsz, 5_u32, 1_u64, 2_u64));
    assert_eq!(ask(23), Err(Errno::EINVAL));
    assert_eq!(word(&ask(24).unwrap(), 4), 5, "as the program had them");
    assert_eq!(world.raw(file, number(21), 8), Err(Errno::EFAULT));
    assert!(session.feature(SET | 12, &[]).is_ok());
    assert_eq!(word(&ask(24).unwrap(), 4), 0);
    session.set(RUNNING).unwrap();
    assert_eq!(ask(23), Err(Errno::EINVAL));
    assert_eq!(world.raw(file, number(21), 8), Err(Errno::EFAULT));
    assert_eq!(ask(24), Err(Errno::EINVAL));
}

/// vfio.h, RESUMING -> STOP; mlx5vf_pci_aer_reset_done.
#[test]
fn a_state_that_cannot_be_loaded_is_an_error_that_only_a_reset_ends() {
    let source = Session::new(FIRST);
    source.put(&[0xff]);
    let file = source.set(STOP_COPY).unwrap().unwrap();
    let stream = source.all(file);
    for bytes in [&stream[..], &stream[..stream.len() - 1], &stream[..3], &[]] {
        let target = Session::new(FIRST);
        let file = target.set(RESUMING).unwrap().unwrap();
        assert_eq!(target.write(file, bytes), Ok(bytes.len() as i64));
        assert_eq!(target.set(RUNNING), Err(Errno::EINVAL));
        assert_eq!(target.state(), ERROR);
        assert_eq!(target.set(RUNNING), Err(Errno::EINVAL));
        assert_eq!(target.write(file, b"x"), Err(Errno::ENODEV));
        assert_eq!(target.world.raw(target.device, number(11), 0), Ok(0));
        assert_eq!(target.state(), RUNNING);
        assert!(!target.is_at_rest());
    }
}

#[test]
fn what_cannot_be_a_state_is_refused_by_the_write() {
    let session = Session::new(FIRST);
    let file = session.set(RESUMING).unwrap().unwrap();
    assert_eq!(session.write(file, b"IOGATEMG"), Ok(8));
    assert_eq!(session.write(file, b"\xff"), Err(Errno::EINVAL));
    assert_eq!(
        session.write(file, b"\x01"),
        Err(Errno::ENODEV),
        "no more is taken"
    );
    assert_eq!(session.set(STOP), Err(Errno::EINVAL));
    assert_eq!(session.state(), ERROR);
}

#[test]
fn a_device_that_does_not_come_to_rest_stays_where_it_is() {
    let session = Session::new(FIRST);
    let probe = &session.world.probes[FIRST];
    probe.restless.store(true, Ordering::SeqCst);
    assert_eq!(session.set(STOP), Err(Errno::EBUSY));
    assert_eq!(session.state(), RUNNING);
    probe.restless.store(false, Ordering::SeqCst);
    assert_eq!(session.set(STOP), Ok(None));
}

#[test]
fn the_answer_names_no_descriptor_when_the_state_is_refused() {
    let session = Session::new(FIRST);
    let argument = pack!(16_u32, SET | 2, 9_u32, 77_i32);
    session.world.program.poke(ARGUMENT, &argument);
    let result = session.world.raw(session.device, number(17), ARGUMENT);
    assert_eq!(result, Err(Errno::EINVAL));
    let mut answer = [0; 16];
    session.world.program.peek(ARGUMENT, &mut answer);
    assert_eq!(word(&answer, 8), 9);
    assert_eq!(word(&answer, 12), u32::MAX);
}

#[test]
fn the_last_close_ends_everything() {
    let session = Session::new(FIRST);
    let file = session.set(STOP_COPY).unwrap().unwrap();
    assert!(matches!(
        session.world.host.kind(file),
        Some(FileKind::Migration { .. })
    ));
    session.world.close(session.device);
    assert_eq!(session.read(file, 1), Err(Errno::ENODEV));
    assert!(!session.is_at_rest());
    session.world.close(file);
    assert_eq!(session.read(file, 1), Err(Errno::EBADF));
}

/// One range of the log, at ARGUMENT + 2 pages.
fn start(session: &Session, page_size: u64, ranges: &[(u64, u64)]) -> Result<Vec<u8>, Errno> {
    let at = ARGUMENT + 2 * PAGE;
    for (index, (iova, length)) in ranges.iter().enumerate() {
        let range = pack!(iova, length);
        session.world.program.poke(at + 16 * index as u64, &range);
    }
    let count = u32::try_from(ranges.len()).unwrap();
    session.feature(SET | 6, &pack!(page_size, count, 0_u32, at))
}

/// The bitmap of a report, of 8 bytes that were `before`.
fn report(
    session: &Session,
    iova: u64,
    length: u64,
    page_size: u64,
    before: u64,
) -> Result<u64, Errno> {
    let at = ARGUMENT + 3 * PAGE;
    session.world.program.poke(at, &before.to_ne_bytes());
    session.feature(GET | 8, &pack!(iova, length, page_size, at))?;
    let mut bytes = [0; 8];
    session.world.program.peek(at, &mut bytes);
    Ok(u64::from_ne_bytes(bytes))
}

/// vfio_ioctl_device_feature_logging_start.
#[test]
fn the_ranges_of_a_log_are_checked_in_their_order() {
    let session = Session::new(FIRST);
    let size = PAGE;
    assert_eq!(start(&session, size, &[]), Err(Errno::EINVAL));
    let many: Vec<(u64, u64)> = (0..257).map(|number| (number * PAGE, PAGE)).collect();
    assert_eq!(start(&session, size, &many), Err(Errno::E2BIG));
    assert_eq!(start(&session, size, &[(1, PAGE)]), Err(Errno::EINVAL));
    assert_eq!(start(&session, size, &[(0, 1)]), Err(Errno::EINVAL));
    let top = u64::MAX - PAGE + 1;
    assert_eq!(start(&session, size, &[(top, PAGE)]), Err(Errno::EOVERFLOW));
    let twice = [(0, 2 * PAGE), (PAGE, PAGE)];
    assert_eq!(start(&session, size, &twice), Err(Errno::EINVAL));
    let order = [(top, PAGE), (1, 1)];
    assert_eq!(start(&session, size, &order), Err(Errno::EOVERFLOW));
    let missing = pack!(size, 2_u32, 0_u32, ARGUMENT + 16 * PAGE - 16);
    session
        .world
        .program
        .poke(ARGUMENT + 16 * PAGE - 16, &pack!(1_u64, 1_u64));
    assert_eq!(session.feature(SET | 6, &missing), Err(Errno::EINVAL));
    session
        .world
        .program
        .poke(ARGUMENT + 16 * PAGE - 16, &pack!(0_u64, PAGE));
    assert_eq!(session.feature(SET | 6, &missing), Err(Errno::EFAULT));
    assert_eq!(
        report(&session, 0, PAGE, PAGE, 0),
        Err(Errno::EINVAL),
        "no log"
    );
    // 256 are a page of ranges; the size of pages is the log's choice.
    let answer = start(&session, 2 * PAGE, &[(0, 2 * PAGE)]).unwrap();
    assert_eq!(quad(&answer, 0), PAGE);
    assert_eq!(
        start(&session, size, &many[..256]),
        Err(Errno::EINVAL),
        "a second log"
    );
    for _ in 0..2 {
        assert!(session.feature(SET | 7, &[]).is_ok());
    }
    assert!(start(&session, size, &many[..256]).is_ok());
}

/// vfio_ioctl_device_feature_logging_report, iova_bitmap_set.
#[test]
fn a_report_says_which_pages_the_device_wrote_since_the_last() {
    let session = Session::new(FIRST);
    let world = &session.world;
    world
        .map(session.container, 3, (HEAP, 0x10_0000, 32 * PAGE))
        .unwrap();
    let write = |at: u64, length: usize| {
        world
            .dma_write(FIRST, 0x10_0000 + at, &vec![7; length])
            .unwrap();
    };
    write(0, 1);
    start(
        &session,
        PAGE,
        &[(0x10_0000, 8 * PAGE), (0x11_0000, 16 * PAGE)],
    )
    .unwrap();
    for (size, error) in [
        (0, Errno::EINVAL),
        (2048, Errno::EINVAL),
        (3 * PAGE, Errno::EINVAL),
    ] {
        assert_eq!(report(&session, 0, PAGE, size, 0), Err(error));
    }
    assert_eq!(
        report(&session, u64::MAX, PAGE, PAGE, 0),
        Err(Errno::EOVERFLOW)
    );
    let all = || report(&session, 0x10_0000, 32 * PAGE, PAGE, 0);
    assert_eq!(all(), Ok(0), "written before");
    write(PAGE - 1, 2);
    write(9 * PAGE, 1);
    write(17 * PAGE, 1);
    // Reads do not count, and what is not logged neither.
    world.dma(FIRST, 0x10_0000 + 5 * PAGE, &mut [0; 8]).unwrap();
    assert_eq!(all(), Ok(0b11 | 1 << 17));
    assert_eq!(all(), Ok(0), "taken");
    write(2 * PAGE, 1);
    write(3 * PAGE, 1);
    let one = report(&session, 0x10_0000 + 2 * PAGE, PAGE, PAGE, 1 << 40);
    assert_eq!(one, Ok(1 | 1 << 40), "bits are never cleared");
    // One bit for four pages.
    assert_eq!(report(&session, 0x10_0000, 32 * PAGE, 4 * PAGE, 0), Ok(1));
    // iova_bitmap_set: what the program has no memory for is lost.
    write(2 * PAGE, 1);
    let nowhere = pack!(0x10_0000_u64, 32 * PAGE, PAGE, 0x10_u64);
    assert!(session.feature(GET | 8, &nowhere).is_ok());
    assert_eq!(all(), Ok(0));
    // It ends with the last close.
    write(2 * PAGE, 1);
    world.close(session.device);
    assert!(world.host.device(FIRST).unwrap().attachment.log().is_none());
}

/// A log goes on while the device is reset or at rest.
#[test]
fn a_log_outlives_a_reset_and_changes_of_state() {
    let session = Session::new(FIRST);
    let world = &session.world;
    world.map(session.container, 3, (HEAP, 0, PAGE)).unwrap();
    start(&session, PAGE, &[(0, PAGE)]).unwrap();
    assert_eq!(world.raw(session.device, number(11), 0), Ok(0));
    session.set(STOP).unwrap();
    session.set(RUNNING_P2P).unwrap();
    session.set(RUNNING).unwrap();
    world.dma_write(FIRST, 0, &[1]).unwrap();
    assert_eq!(report(&session, 0, PAGE, PAGE, 0), Ok(1));
}
