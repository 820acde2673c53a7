//! A remote device that follows an address space: what it has after each
//! batch is what a page-by-page model has.

mod common;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use iogate_dma::{Change, Gpa, Iova, Listener, Mapping, Partial, Rights, Span};
use iogate_vfio_user::{
    Client, ClientOptions, Connection, Device, DeviceInfo, DmaMap, Errno, Held, Irq, Limits, Peer,
    Region, RemoteListener, ServerOptions, SetIrqs,
};
use proptest::prelude::*;

const PAGE: u64 = 4096;

/// What a device has: length, offset in the file or `None`, rights.
type Maps = BTreeMap<u64, (u64, Option<u64>, Rights)>;

/// A device that takes exact unmaps only, as libvfio-user does.
#[derive(Default)]
struct Strict {
    maps: Mutex<Maps>,
    /// Messages that mapped, and that unmapped.
    messages: Mutex<(u64, u64)>,
    /// Addresses that it refuses to map.
    refused: Mutex<Option<Span<Iova>>>,
}

impl Device for Strict {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            regions: 0,
            irqs: 0,
            reset: false,
            pci: true,
        }
    }
    fn region(&self, _: u32) -> Result<Region<'_>, Errno> {
        Err(Errno::INVAL)
    }
    fn region_read(&self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }
    fn region_write(&self, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }
    fn irq(&self, _: u32) -> Result<Irq, Errno> {
        Err(Errno::INVAL)
    }
    fn set_irqs(&self, _: &Peer, _: SetIrqs<'_>) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }
    fn dma_map(&self, _: &Arc<Peer>, map: DmaMap) -> Result<(), Errno> {
        let refused = *self.refused.lock().unwrap();
        if refused.is_some_and(|refused| refused.overlaps(&map.span)) {
            return Err(Errno::NOMEM);
        }
        self.messages.lock().unwrap().0 += 1;
        let length = map.span.length().unwrap();
        let offset = map.file.map(|(_, offset)| offset);
        let mut maps = self.maps.lock().unwrap();
        maps.insert(map.span.first().0, (length, offset, map.rights));
        Ok(())
    }
    fn dma_unmap(&self, _: &Peer, span: Span<Iova>) {
        self.messages.lock().unwrap().1 += 1;
        let removed = self.maps.lock().unwrap().remove(&span.first().0);
        assert_eq!(removed.map(|(length, ..)| length), span.length());
    }
    fn reset(&self, _: &Peer) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }
}

impl Strict {
    /// What each page leads to.
    fn pages(&self) -> BTreeMap<u64, (Option<u64>, Rights)> {
        let mut pages = BTreeMap::new();
        for (first, (length, offset, rights)) in &*self.maps.lock().unwrap() {
            for page in (0..*length).step_by(PAGE as usize) {
                let offset = offset.map(|offset| offset + page);
                pages.insert(first + page, (offset, *rights));
            }
        }
        pages
    }
}

/// Guest memory: 16 MiB in two files' worth of one descriptor, a hole between
/// them, and 1 MiB without a descriptor behind.
fn pieces(file: &OwnedFd, run: Span<Gpa>, tell: &mut dyn FnMut(Span<Gpa>, Held<'_>)) {
    let held = [
        (0, 8 << 20, Some(1 << 30)),
        (9 << 20, 8 << 20, Some(0)),
        (17 << 20, 1 << 20, None),
    ];
    for (first, length, offset) in held {
        let all = Span::with_length(Gpa(first), length).unwrap();
        if let Some(part) = all.intersection(&run) {
            let skip = part.first().0 - first;
            let held = match offset {
                Some(offset) => Held::File(file.as_fd(), offset + skip),
                None => Held::Requests,
            };
            tell(part, held);
        }
    }
}

/// What `pieces` has for a page: in the file, by requests, or nothing.
fn backing(gpa: u64) -> Option<Option<u64>> {
    match gpa >> 20 {
        0..=7 => Some(Some(gpa + (1 << 30))),
        9..=16 => Some(Some(gpa - (9 << 20))),
        17 => Some(None),
        _ => None,
    }
}

fn follow(limits: Limits) -> (RemoteListener<impl iogate_vfio_user::Backing>, Arc<Strict>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let device = Arc::new(Strict::default());
    let serving = Arc::clone(&device);
    let options = ServerOptions {
        limits,
        ..ServerOptions::default()
    };
    std::thread::spawn(move || Connection::new(theirs.into(), options).serve(&*serving));
    let client = Client::from_socket(ours.into(), ClientOptions::default()).unwrap();
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let backing = move |run: Span<Gpa>, tell: &mut dyn FnMut(Span<Gpa>, Held<'_>)| {
        pieces(&file, run, tell);
    };
    (RemoteListener::new(Arc::new(client), backing), device)
}

fn span(first: u64, pages: u64) -> Span<Iova> {
    Span::with_length(Iova(first), pages * PAGE).unwrap()
}

fn map(first: u64, pages: u64, output: u64) -> Change {
    Change::Map(Mapping {
        span: span(first, pages),
        output,
        rights: Rights::READ_WRITE,
    })
}

#[test]
fn pages_that_continue_each_other_are_one_message() {
    let (listener, device) = follow(Limits::default());
    let pages: Vec<_> = (0..2048)
        .map(|page| map(page * PAGE, 1, page * PAGE))
        .collect();
    listener.apply(&pages).unwrap();
    assert_eq!(*device.messages.lock().unwrap(), (1, 0));
    assert_eq!(listener.mappings(), 1);
    let maps = device.maps.lock().unwrap().clone();
    assert_eq!(
        maps,
        [(0, (8 << 20, Some(1 << 30), Rights::READ_WRITE))].into()
    );
    let pages: Vec<_> = (0..2048)
        .map(|page| Change::Unmap(span(page * PAGE, 1)))
        .collect();
    listener.apply(&pages).unwrap();
    assert_eq!(*device.messages.lock().unwrap(), (1, 1));
}

#[test]
fn a_space_that_leads_everywhere_is_clipped_to_memory_that_is_there() {
    let (listener, device) = follow(Limits::default());
    let everything = Mapping {
        span: Span::whole(),
        output: 0,
        rights: Rights::READ,
    };
    listener.apply(&[Change::Map(everything)]).unwrap();
    let maps = device.maps.lock().unwrap().clone();
    let expected = [
        (0, (8 << 20, Some(1 << 30), Rights::READ)),
        (9 << 20, (8 << 20, Some(0), Rights::READ)),
        (17 << 20, (1 << 20, None, Rights::READ)),
    ];
    assert_eq!(maps, expected.into());
    listener.apply(&[Change::Unmap(Span::whole())]).unwrap();
    assert!(device.maps.lock().unwrap().is_empty());
}

#[test]
fn what_stays_of_a_piece_that_is_cut_is_mapped_again() {
    let (listener, device) = follow(Limits::default());
    listener
        .apply(&[map(0, 16, 0), map(0x100_0000, 1, 0)])
        .unwrap();
    *device.messages.lock().unwrap() = (0, 0);
    let cuts = [
        Change::Unmap(span(3 * PAGE, 1)),
        Change::Unmap(span(5 * PAGE, 2)),
    ];
    listener.apply(&cuts).unwrap();
    // One unmap, three pieces; the other mapping is not touched.
    assert_eq!(*device.messages.lock().unwrap(), (3, 1));
    let maps: Vec<_> = device.maps.lock().unwrap().keys().copied().collect();
    assert_eq!(maps, [0, 4 * PAGE, 7 * PAGE, 0x100_0000]);
}

#[test]
fn a_map_that_fails_leaves_what_came_before_it_and_nothing_else() {
    let (listener, device) = follow(Limits::default());
    *device.refused.lock().unwrap() = Some(span(0x50_0000, 1));
    let changes: Vec<_> = (0..10)
        .map(|index| map(index << 20, 1, index << 12))
        .collect();
    let errno = Errno::NOMEM.raw_os_error();
    let refused = Err(Partial { applied: 5, errno });
    assert_eq!(listener.apply(&changes), refused);
    let maps: Vec<_> = device.maps.lock().unwrap().keys().copied().collect();
    assert_eq!(maps, [0, 1 << 20, 2 << 20, 3 << 20, 4 << 20]);
    assert_eq!(listener.mappings(), 5);
    // Of a change that is several messages, none stays.
    *device.refused.lock().unwrap() = Some(span(17 << 20, 1));
    let whole = Mapping {
        span: Span::new(Iova(8 << 20), Iova((18 << 20) - 1)).unwrap(),
        output: 8 << 20,
        rights: Rights::READ_WRITE,
    };
    let more = [Change::Unmap(span(0, 1)), Change::Map(whole)];
    assert_eq!(listener.apply(&more), Err(Partial { applied: 1, errno }));
    let maps: Vec<_> = device.maps.lock().unwrap().keys().copied().collect();
    assert_eq!(maps, [1 << 20, 2 << 20, 3 << 20, 4 << 20]);
}

#[test]
fn no_more_is_mapped_than_the_server_takes() {
    let limits = Limits {
        max_dma_maps: 3,
        ..Limits::default()
    };
    let (listener, device) = follow(limits);
    let changes: Vec<_> = (0..5)
        .map(|index| map(index << 20, 4, index << 15))
        .collect();
    let errno = Errno::NOSPC.raw_os_error();
    assert_eq!(listener.apply(&changes), Err(Partial { applied: 3, errno }));
    assert_eq!(device.maps.lock().unwrap().len(), 3);
    // To cut one takes one more: refused, and nothing is changed.
    let cuts = [
        Change::Unmap(span(2 << 20, 1)),
        Change::Unmap(span((1 << 20) + PAGE, 1)),
    ];
    assert_eq!(listener.apply(&cuts), Err(Partial { applied: 1, errno }));
    assert_eq!(device.pages().len(), 11);
}

#[test]
fn what_stays_of_a_piece_is_mapped_as_its_memory_is_then() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let device = Arc::new(Strict::default());
    let serving = Arc::clone(&device);
    std::thread::spawn(move || {
        Connection::new(theirs.into(), ServerOptions::default()).serve(&*serving)
    });
    let client = Client::from_socket(ours.into(), ClientOptions::default()).unwrap();
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    // First and last page of each piece of memory.
    let memory = Arc::new(Mutex::new(vec![(0, 15)]));
    let held = Arc::clone(&memory);
    let backing = move |run: Span<Gpa>, tell: &mut dyn FnMut(Span<Gpa>, Held<'_>)| {
        for (first, last) in held.lock().unwrap().iter() {
            let all = Span::new(Gpa(first * PAGE), Gpa(last * PAGE + PAGE - 1)).unwrap();
            if let Some(part) = all.intersection(&run) {
                tell(part, Held::File(file.as_fd(), part.first().0));
            }
        }
    };
    let listener = RemoteListener::new(Arc::new(client), backing);
    listener.apply(&[map(0, 16, 0)]).unwrap();
    *memory.lock().unwrap() = vec![(0, 1), (3, 4), (9, 15)];
    listener
        .apply(&[Change::Unmap(span(10 * PAGE, 1))])
        .unwrap();
    let maps: Vec<_> = device
        .maps
        .lock()
        .unwrap()
        .keys()
        .map(|at| at / PAGE)
        .collect();
    assert_eq!(maps, [0, 3, 9, 11]);
    memory.lock().unwrap().clear();
    listener.apply(&[Change::Unmap(span(PAGE, 1))]).unwrap();
    let maps: Vec<_> = device
        .maps
        .lock()
        .unwrap()
        .keys()
        .map(|at| at / PAGE)
        .collect();
    assert_eq!(maps, [3, 9, 11]);
    assert_eq!(listener.mappings(), 3);
    listener.apply(&[Change::Unmap(Span::whole())]).unwrap();
    assert!(device.maps.lock().unwrap().is_empty());
}

#[test]
fn a_mapping_over_another_is_refused() {
    let (listener, _) = follow(Limits::default());
    listener.apply(&[map(0, 4, 0)]).unwrap();
    let errno = Errno::EXIST.raw_os_error();
    let changes = [map(0x10_0000, 1, 0), map(3 * PAGE, 1, 0)];
    assert_eq!(listener.apply(&changes), Err(Partial { applied: 1, errno }));
}

#[test]
fn nothing_is_said_to_be_in_force_when_the_device_is_gone() {
    let (listener, device) = follow(Limits::default());
    listener.apply(&[map(0, 4, 0)]).unwrap();
    listener.client().disconnect();
    let errno = Errno::NOTCONN.raw_os_error();
    let gone = Err(Partial { applied: 0, errno });
    assert_eq!(listener.apply(&[Change::Unmap(span(0, 4))]), gone);
    assert_eq!(listener.apply(&[map(0x10_0000, 1, 0)]), gone);
    assert_eq!(listener.mappings(), 0);
    while !device.maps.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
}

/// A page, a number of pages, where they lead; a map of what of it is free, or
/// an unmap.
fn operations() -> impl Strategy<Value = Vec<Vec<(bool, u64, u64, u64)>>> {
    let one = (any::<bool>(), 0..64_u64, 1..24_u64, 0..19_u64 * 256);
    prop::collection::vec(prop::collection::vec(one, 1..12), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_device_has_is_what_the_space_maps(batches in operations()) {
        let (listener, device) = follow(Limits::default());
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        for batch in batches {
            let mut changes = Vec::new();
            for (is_map, first, pages, to) in batch {
                let range = first..first + pages;
                if is_map {
                    for page in range {
                        let gpa = (to + page) * PAGE;
                        if let std::collections::btree_map::Entry::Vacant(free) = model.entry(page) {
                            free.insert(gpa);
                            changes.push(map(page * PAGE, 1, gpa));
                        }
                    }
                } else {
                    model.retain(|page, _| !range.contains(page));
                    changes.push(Change::Unmap(span(first * PAGE, pages)));
                }
            }
            listener.apply(&changes).unwrap();
            let expected: BTreeMap<_, _> = model
                .iter()
                .filter_map(|(page, gpa)| Some((page * PAGE, (backing(*gpa)?, Rights::READ_WRITE))))
                .collect();
            prop_assert_eq!(device.pages(), expected);
            prop_assert_eq!(listener.mappings(), device.maps.lock().unwrap().len());
        }
    }
}
