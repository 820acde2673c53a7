//! A guest's domain followed into an IOAS: what devices then reach of the
//! guest's memory.

mod iommufd_world;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use iogate_dma::{
    Change, DomainKey, Fault, Gpa, GuestDomains, Invalidated, Iova, Listener, Mapping, Observer,
    Partial, RequesterId, Rights, Scan, Scope, Source, Span,
};
use iogate_host::iommufd::GuestSpace;
use iogate_shadow::{Section, Shadow};
use iogate_uapi::{Client, Errno, IoasListener};
use iommufd_world::*;

/// The guest's memory: 16 pages from guest-physical address 0 on, and 16 from
/// here on.
const HIGH: u64 = 0x1_0000_0000;

fn pages(first: u64, count: u64) -> Span {
    Span::with_length(Iova(first * PAGE), count * PAGE).unwrap()
}

fn map(first: u64, count: u64, output: u64) -> Change {
    Change::Map(Mapping {
        span: pages(first, count),
        output,
        rights: Rights::READ_WRITE,
    })
}

fn unmap(first: u64, count: u64) -> Change {
    Change::Unmap(pages(first, count))
}

struct Guest {
    world: World,
    file: Opened,
    space: GuestSpace,
}

impl Guest {
    /// A guest whose pages each hold their number, its upper ones for reading
    /// only; and the device [`ALONE`] in an IOAS for its domain.
    fn new() -> Self {
        let world = World::new();
        let file = world.iommufd();
        let (ram, ioas) = (world.ioas(file), world.ioas(file));
        for page in 0..32 {
            let number = [page as u8];
            world.program.write(HEAP + page * PAGE, &number).unwrap();
        }
        let low = (HEAP, 16 * PAGE);
        world.map(file, ram, FIXED | RW, low, 0).unwrap();
        let high = (HEAP + 16 * PAGE, 16 * PAGE);
        world.map(file, ram, FIXED | R, high, HIGH).unwrap();
        let (device, _) = world.bound(ALONE, file);
        world.attach(device, ioas).unwrap();
        let space = GuestSpace {
            file: file.file,
            ram,
            ioas,
        };
        Self { world, file, space }
    }

    fn listener(&self) -> IoasListener {
        IoasListener::new(Arc::clone(&self.world.host), self.space)
    }

    fn read(&self, page: u64) -> Option<u8> {
        self.world.dma_read(ALONE, page * PAGE)
    }
}

fn errno(result: Result<(), Partial>) -> (usize, Errno) {
    let partial = result.unwrap_err();
    (partial.applied, Errno(partial.errno))
}

#[test]
fn devices_reach_the_memory_that_the_guest_mapped() {
    let guest = Guest::new();
    let listener = guest.listener();
    assert_eq!(guest.world.pinned_frames(), 0, "guest memory is only named");
    listener.apply(&[map(100, 4, 5 * PAGE)]).unwrap();
    assert_eq!([guest.read(100), guest.read(103)], [Some(5), Some(8)]);
    assert_eq!(guest.read(104), None);
    assert_eq!(guest.world.pinned_frames(), 4);
    listener.apply(&[unmap(100, 4)]).unwrap();
    assert_eq!(guest.read(100), None);
    assert_eq!(guest.world.pinned_frames(), 0);
}

#[test]
fn a_mapping_can_be_cut_and_several_go_at_once() {
    let guest = Guest::new();
    let listener = guest.listener();
    listener
        .apply(&[map(100, 8, 0), map(108, 2, 12 * PAGE)])
        .unwrap();
    listener.apply(&[unmap(102, 2)]).unwrap();
    let read = |pages: [u64; 4]| pages.map(|page| guest.read(page));
    assert_eq!(read([101, 102, 103, 104]), [Some(1), None, None, Some(4)]);
    listener.apply(&[unmap(105, 4)]).unwrap();
    assert_eq!(read([104, 105, 108, 109]), [Some(4), None, None, Some(13)]);
    listener.apply(&[map(102, 2, 14 * PAGE)]).unwrap();
    assert_eq!(
        read([101, 102, 103, 104]),
        [Some(1), Some(14), Some(15), Some(4)]
    );
    listener.apply(&[unmap(100, 5), unmap(109, 1)]).unwrap();
    assert_eq!(guest.world.pinned_frames(), 0);
}

#[test]
fn where_the_guest_has_no_memory_nothing_is_mapped() {
    let guest = Guest::new();
    let listener = guest.listener();
    let whole = Mapping {
        span: Span::new(Iova(0), Iova((1 << 48) - 1)).unwrap(),
        output: 0,
        rights: Rights::READ_WRITE,
    };
    listener.apply(&[Change::Map(whole)]).unwrap();
    assert_eq!(
        [guest.read(0), guest.read(15), guest.read(16)],
        [Some(0), Some(15), None]
    );
    assert_eq!(guest.read(HIGH / PAGE + 1), Some(17));
    listener.apply(&[Change::Unmap(whole.span)]).unwrap();
    assert_eq!(guest.world.pinned_frames(), 0);
    listener.apply(&[map(5, 2, 1 << 40), unmap(5, 2)]).unwrap();
}

#[test]
fn a_mapping_allows_what_the_memory_does() {
    let guest = Guest::new();
    guest
        .listener()
        .apply(&[map(100, 1, HIGH), map(101, 1, 0)])
        .unwrap();
    assert!(!guest.world.dma_write(ALONE, 100 * PAGE, 1));
    assert!(guest.world.dma_write(ALONE, 101 * PAGE, 1));
    assert_eq!(guest.read(100), Some(16));
}

#[test]
fn what_cannot_be_mapped_is_refused_whole_with_its_errno() {
    let guest = Guest::new();
    let listener = guest.listener();
    // The unit's window for interrupt messages.
    let window = map(0xfee00, 1, 0);
    let result = listener.apply(&[map(1, 1, PAGE), window, map(2, 1, PAGE)]);
    assert_eq!(errno(result), (1, Errno::EINVAL));
    assert_eq!([guest.read(1), guest.read(2)], [Some(1), None]);
    assert_eq!(errno(listener.apply(&[map(1, 1, 0)])), (0, Errno::EEXIST));
    // The second of two pieces cannot be pinned: the first is taken back.
    guest
        .world
        .map(
            guest.file,
            guest.space.ram,
            FIXED | RW,
            (HEAP + 32 * PAGE, PAGE),
            16 * PAGE,
        )
        .unwrap();
    guest.world.take(HEAP + 32 * PAGE);
    let both = map(40, 2, 15 * PAGE);
    assert_eq!(errno(listener.apply(&[both])), (0, Errno::EFAULT));
    assert_eq!([guest.read(40), guest.read(41)], [None, None]);
    assert_eq!(guest.world.pinned_frames(), 1);
    let gone = GuestSpace {
        ram: 99,
        ..guest.space
    };
    let listener = IoasListener::new(Arc::clone(&guest.world.host), gone);
    assert_eq!(errno(listener.apply(&[map(9, 1, 0)])), (0, Errno::ENOENT));
}

/// A domain as a list, and who observes it.
#[derive(Default)]
struct Domain {
    mappings: Mutex<BTreeMap<u64, u64>>,
    observers: Mutex<Vec<Weak<dyn Observer>>>,
}

impl Domain {
    fn set(&self, page: u64, output: Option<u64>) {
        let mut mappings = self.mappings.lock().unwrap();
        match output {
            Some(output) => mappings.insert(page, output),
            None => mappings.remove(&page),
        };
        drop(mappings);
        let one = Invalidated {
            scope: Scope::Domain(1),
            span: pages(page, 1),
        };
        let observers = self.observers.lock().unwrap().clone();
        for observer in observers.iter().filter_map(Weak::upgrade) {
            observer.invalidated(&[one]);
        }
    }
}

impl GuestDomains for Domain {
    fn domain(&self, _: Source) -> Option<(DomainKey, u32)> {
        Some((DomainKey([0; 4]), 1))
    }
    fn scan(
        &self,
        _: Source,
        span: Span<Iova>,
        _: usize,
        tell: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> Scan {
        for (page, output) in self.mappings.lock().unwrap().iter() {
            let mapping = Mapping {
                span: pages(*page, 1),
                output: *output,
                rights: Rights::READ_WRITE,
            };
            if span.encloses(&mapping.span) && tell(mapping).is_break() {
                return Scan::Stopped;
            }
        }
        Scan::Whole
    }
    fn observe(&self, observer: Weak<dyn Observer>) {
        self.observers.lock().unwrap().push(observer);
    }
    fn report(&self, _: &Fault) {}
}

#[test]
fn a_device_follows_its_guest_and_never_reaches_what_is_unmapped() {
    let guest = Guest::new();
    let domain = Arc::new(Domain::default());
    let shadow = Shadow::of(domain.clone());
    let listener = Arc::new(guest.listener());
    let following = shadow
        .follow(RequesterId(8), Section::ALL, listener)
        .unwrap();
    let mut port = guest.world.worker(ALONE);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // The world counts every access to a frame that is not pinned.
        scope.spawn(|| {
            let mut byte = [0];
            while !stop.load(Ordering::Relaxed) {
                for page in 0..4 {
                    let _ = port.read(Iova((200 + page) * PAGE), &mut byte);
                }
            }
        });
        for round in 0..500 {
            let page = 200 + round % 4;
            domain.set(page, Some(round % 16 * PAGE));
            assert_eq!(guest.read(page), Some((round % 16) as u8));
            if round % 3 == 0 {
                domain.set(page, None);
                assert_eq!(guest.read(page), None);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(following);
    assert_eq!(guest.world.pinned_frames(), 0);
}

#[test]
fn memory_that_comes_and_goes_is_mapped_and_unmapped() {
    let guest = Guest::new();
    let domain = Arc::new(Domain::default());
    let added = HIGH + 32 * PAGE;
    domain.set(7, Some(added));
    domain.set(9, Some(0));
    let shadow = Shadow::of(domain);
    let listener = Arc::new(guest.listener());
    let following = shadow
        .follow(RequesterId(8), Section::ALL, listener)
        .unwrap();
    assert_eq!([guest.read(7), guest.read(9)], [None, Some(0)]);
    let memory = (HEAP + 3 * PAGE, PAGE);
    let (file, ram) = (guest.file, guest.space.ram);
    guest
        .world
        .map(file, ram, FIXED | RW, memory, added)
        .unwrap();
    let outputs = Span::with_length(Gpa(added), PAGE).unwrap();
    following.resync(outputs);
    assert_eq!(guest.read(7), Some(3));
    guest.world.unmap(file, ram, added, PAGE).unwrap();
    following.resync(outputs);
    assert_eq!([guest.read(7), guest.read(9)], [None, Some(0)]);
}
