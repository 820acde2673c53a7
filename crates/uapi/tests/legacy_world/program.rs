//! A program: memory in pages, descriptors, credentials.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use iogate_dma::{Memory, MemoryError, Rights, Width};
use iogate_host::{Actor, Caller, Event, FileId, Host, Memlock, Pages, PinError, Pinned, Watch};
use iogate_interrupt::Signal;
use iogate_space::Segment;
use iogate_uapi::{BadAddress, Client, Errno, Named};

use super::{ARGUMENT, HEAP, HEAP_PAGES, PAGE};

/// Above this address memory of the program is shared, below private.
pub const SHARED: u64 = HEAP + HEAP_PAGES / 2 * PAGE;

#[derive(Default)]
pub struct Counter(pub AtomicU64);

impl Signal for Counter {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

enum Descriptor {
    Ours(FileId),
    Eventfd(Arc<Counter>),
    Other,
}

/// Page by page, what a program's memory holds and whether it can be written.
type Frames = Mutex<BTreeMap<u64, (Box<[u8]>, bool)>>;

pub struct Program {
    frames: Arc<Frames>,
    fds: Mutex<BTreeMap<i32, Descriptor>>,
    watches: Arc<Mutex<Vec<(u64, i32, Event)>>>,
    next_watch: AtomicU64,
    host: OnceLock<Weak<Host>>,
    /// Pins that are held.
    pub pins: Arc<AtomicU64>,
    pub address_space: AtomicU64,
    /// Bytes that may be locked; 0 for any number.
    pub memlock: AtomicU64,
    thread: AtomicU32,
    /// Whether it has CAP_SYS_RAWIO.
    pub has_raw_io: AtomicBool,
}

struct Watching {
    number: u64,
    list: Arc<Mutex<Vec<(u64, i32, Event)>>>,
}

impl Watch for Watching {}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut list = self.list.lock().unwrap();
        list.retain(|(number, _, _)| *number != self.number);
    }
}

impl Program {
    pub fn new() -> Self {
        let program = Self {
            frames: Arc::default(),
            fds: Mutex::default(),
            watches: Arc::default(),
            next_watch: AtomicU64::new(0),
            host: OnceLock::new(),
            pins: Arc::default(),
            address_space: AtomicU64::new(1),
            memlock: AtomicU64::new(0),
            thread: AtomicU32::new(4711),
            has_raw_io: AtomicBool::new(false),
        };
        for page in 0..16 {
            program.give(ARGUMENT + page * PAGE, true);
        }
        for page in 0..HEAP_PAGES {
            program.give(HEAP + page * PAGE, true);
        }
        program
    }

    pub fn set_host(&self, host: &Arc<Host>) {
        let _ = self.host.set(Arc::downgrade(host));
    }

    /// Maps a page into the program.
    pub fn give(&self, address: u64, writable: bool) {
        let page = (vec![0; 4096].into_boxed_slice(), writable);
        self.frames.lock().unwrap().insert(address / PAGE, page);
    }

    /// The program unmaps a page of its memory.
    pub fn take(&self, address: u64) {
        let host = self.host.get().unwrap().upgrade().unwrap();
        let space = self.address_space();
        if let Some(grace) = host.revoke(space, address, address + PAGE - 1, Some(self.actor())) {
            grace.wait();
        }
        self.frames.lock().unwrap().remove(&(address / PAGE));
    }

    pub fn poke(&self, address: u64, bytes: &[u8]) {
        Client::write(self, address, bytes).unwrap();
    }

    pub fn peek(&self, address: u64, into: &mut [u8]) {
        Client::read(self, address, into).unwrap();
    }

    fn enter(&self, descriptor: Descriptor) -> i32 {
        let mut fds = self.fds.lock().unwrap();
        let fd = fds.keys().next_back().map_or(3, |last| last + 1);
        fds.insert(fd, descriptor);
        fd
    }

    /// A descriptor for one of our files.
    pub fn fd(&self, file: FileId) -> i32 {
        self.enter(Descriptor::Ours(file))
    }

    pub fn other_fd(&self) -> i32 {
        self.enter(Descriptor::Other)
    }

    pub fn eventfd_pair(&self) -> (i32, Arc<Counter>) {
        let counter = Arc::new(Counter::default());
        (self.enter(Descriptor::Eventfd(counter.clone())), counter)
    }

    /// Signals an eventfd; says for which devices there is work.
    pub fn ring(&self, fd: i32) -> Vec<usize> {
        let host = self.host.get().unwrap().upgrade().unwrap();
        let events: Vec<Event> = {
            let watches = self.watches.lock().unwrap();
            let ours = watches.iter().filter(|(_, of, _)| *of == fd);
            ours.map(|(_, _, event)| *event).collect()
        };
        let work = events.into_iter().map(|event| host.event(event).work);
        work.flatten().collect()
    }

    pub fn watch_count(&self) -> usize {
        self.watches.lock().unwrap().len()
    }

    /// Walks `length` bytes page by page: `each` gets where a part is in the
    /// whole, and the part.
    fn walk(
        &self,
        address: u64,
        length: usize,
        mut each: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), u64> {
        let mut frames = self.frames.lock().unwrap();
        let mut done = 0;
        while done < length {
            let at = address.checked_add(done as u64).ok_or(address)?;
            let (page, _) = frames.get_mut(&(at / PAGE)).ok_or(at)?;
            let from = (at % PAGE) as usize;
            let size = (length - done).min(page.len() - from);
            each(done, &mut page[from..from + size]);
            done += size;
        }
        Ok(())
    }
}

impl Caller for Program {
    fn actor(&self) -> Actor {
        Actor {
            process: 4711,
            thread: self.thread.load(Ordering::SeqCst),
        }
    }
    fn address_space(&self) -> u64 {
        self.address_space.load(Ordering::SeqCst)
    }
    fn user(&self) -> u32 {
        1000
    }
    fn memlock(&self) -> Memlock {
        match self.memlock.load(Ordering::SeqCst) {
            0 => Memlock::Exempt,
            bytes => Memlock::Limit(bytes),
        }
    }
    fn has_raw_io(&self) -> bool {
        self.has_raw_io.load(Ordering::SeqCst)
    }
}

impl Client for Program {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), BadAddress> {
        self.walk(address, into.len(), |at, part| {
            into[at..at + part.len()].copy_from_slice(part);
        })
        .map_err(BadAddress)
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), BadAddress> {
        self.walk(address, from.len(), |at, part| {
            part.copy_from_slice(&from[at..at + part.len()]);
        })
        .map_err(BadAddress)
    }
    fn named(&self, fd: i32) -> Result<Named, Errno> {
        match self.fds.lock().unwrap().get(&fd) {
            Some(Descriptor::Ours(file)) => Ok(Named::Ours(*file)),
            Some(_) => Ok(Named::Other),
            None => Err(Errno::EBADF),
        }
    }
    fn eventfd(&self, fd: i32) -> Result<Arc<dyn Signal>, Errno> {
        match self.fds.lock().unwrap().get(&fd) {
            Some(Descriptor::Eventfd(counter)) => Ok(counter.clone()),
            Some(_) => Err(Errno::EINVAL),
            None => Err(Errno::EBADF),
        }
    }
    fn pages(&self, address: u64, length: u64) -> Arc<dyn Pages> {
        Arc::new(Range {
            start: address,
            length,
            frames: self.frames.clone(),
            pins: self.pins.clone(),
            address_space: self.address_space(),
        })
    }
    fn file_pages(&self, _: i32, _: u64, _: u64) -> Result<Arc<dyn Pages>, Errno> {
        Err(Errno::EINVAL)
    }
    fn install(&self, file: FileId) -> Result<i32, Errno> {
        Ok(self.fd(file))
    }
    fn watch(&self, fd: i32, event: Event) -> Result<Box<dyn Watch>, Errno> {
        self.eventfd(fd)?;
        let number = self.next_watch.fetch_add(1, Ordering::SeqCst);
        self.watches.lock().unwrap().push((number, fd, event));
        Ok(Box::new(Watching {
            number,
            list: self.watches.clone(),
        }))
    }
}

/// What devices reach is the program's memory, by its own addresses.
impl Memory for Program {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        self.walk(address, into.len(), |at, part| {
            into[at..at + part.len()].copy_from_slice(part);
        })
        .map_err(|address| MemoryError::Gone { address })
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.walk(address, from.len(), |at, part| {
            part.copy_from_slice(&from[at..at + part.len()]);
        })
        .map_err(|address| MemoryError::Gone { address })
    }
    fn load(&self, address: u64, _: Width) -> Result<u64, MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
    fn store(&self, address: u64, _: Width, _: u64) -> Result<(), MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
    fn compare_exchange(&self, at: u64, _: Width, _: u64, _: u64) -> Result<u64, MemoryError> {
        Err(MemoryError::NotAtomic { address: at })
    }
}

struct Range {
    start: u64,
    length: u64,
    frames: Arc<Frames>,
    pins: Arc<AtomicU64>,
    address_space: u64,
}

impl std::fmt::Debug for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}+{:#x}", self.start, self.length)
    }
}

struct Held {
    segments: [Segment; 1],
    private: Vec<(u64, u64)>,
    pins: Arc<AtomicU64>,
}

impl Pinned for Held {
    fn segments(&self) -> &[Segment] {
        &self.segments
    }
    fn private(&self) -> &[(u64, u64)] {
        &self.private
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pins.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pages for Range {
    fn pin(&self, offset: u64, length: u64, rights: Rights) -> Result<Box<dyn Pinned>, PinError> {
        let first = self.start + offset;
        let frames = self.frames.lock().unwrap();
        let mut at = first;
        while at <= first + (length - 1) {
            match frames.get(&(at / PAGE)) {
                Some((_, writable)) if *writable || !rights.can_write() => {}
                _ => return Err(PinError::Fault(at)),
            }
            at += PAGE - at % PAGE;
        }
        self.pins.fetch_add(1, Ordering::SeqCst);
        let end = (first + length).min(SHARED);
        let private = end.checked_sub(first).filter(|bytes| *bytes != 0);
        Ok(Box::new(Held {
            segments: [Segment {
                length,
                output: first,
            }],
            private: private.map(|bytes| (0, bytes)).into_iter().collect(),
            pins: self.pins.clone(),
        }))
    }
    fn start(&self) -> u64 {
        self.start
    }
    fn is_file(&self) -> bool {
        false
    }
    fn address_space(&self) -> u64 {
        self.address_space
    }
}
