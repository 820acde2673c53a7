//! The program: its memory, what of it is pinned, its descriptors.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use iogate_dma::{Memory, MemoryError, Rights, Width};
use iogate_host::{Actor, Caller, Event, FileId, Memlock, Pages, PinError, Pinned, Watch};
use iogate_interrupt::Signal;
use iogate_space::Segment;
use iogate_uapi::{BadAddress, Client, Errno, Named};

use super::PAGE;

/// Physical memory: 4 KiB frames, made when first written.
#[derive(Default)]
pub struct Ram(Mutex<BTreeMap<u64, Vec<u8>>>);

impl Memory for Ram {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let mut frames = self.0.lock().unwrap();
        for (at, byte) in (address..).zip(into) {
            let frame = frames.entry(at / PAGE).or_insert_with(|| vec![0; 4096]);
            *byte = frame[(at % PAGE) as usize];
        }
        Ok(())
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let mut frames = self.0.lock().unwrap();
        for (at, byte) in (address..).zip(from) {
            let frame = frames.entry(at / PAGE).or_insert_with(|| vec![0; 4096]);
            frame[(at % PAGE) as usize] = *byte;
        }
        Ok(())
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

#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub frame: u64,
    pub writable: bool,
    pub shared: bool,
}

/// What of a program its mappings refer to.
#[derive(Default, Debug)]
pub struct Process {
    pub pages: Mutex<BTreeMap<u64, Page>>,
    /// How often each frame is pinned.
    pub pins: Mutex<BTreeMap<u64, u32>>,
    /// The page that is a mapping of a device file, if there is one.
    pub device: Mutex<Option<u64>>,
    /// Memory files by descriptor: their frames.
    pub(super) files: Mutex<BTreeMap<i32, Vec<u64>>>,
    pub(super) fds: Mutex<BTreeMap<i32, Named>>,
}

#[derive(Debug)]
struct Range {
    process: Arc<Process>,
    /// Frames of a memory file; `None`: the process's own memory.
    file: Option<Vec<u64>>,
    start: u64,
    length: u64,
}

struct Held {
    process: Arc<Process>,
    frames: Vec<u64>,
    segments: Vec<Segment>,
    private: Vec<(u64, u64)>,
    device: Option<u64>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut pins = self.process.pins.lock().unwrap();
        for frame in &self.frames {
            let count = pins.get_mut(frame).unwrap();
            *count -= 1;
            if *count == 0 {
                pins.remove(frame);
            }
        }
    }
}

impl Pinned for Held {
    fn segments(&self) -> &[Segment] {
        &self.segments
    }
    fn private(&self) -> &[(u64, u64)] {
        &self.private
    }
    fn device_address(&self) -> Option<u64> {
        self.device
    }
}

impl Pages for Range {
    fn pin(&self, offset: u64, length: u64, rights: Rights) -> Result<Box<dyn Pinned>, PinError> {
        assert!(offset + length <= self.length && length > 0);
        let mut held = Held {
            process: Arc::clone(&self.process),
            frames: Vec::new(),
            segments: Vec::new(),
            private: Vec::new(),
            device: None,
        };
        let first = self.start + offset;
        let mut at = first;
        while at < first + length {
            let end = (at / PAGE + 1) * PAGE;
            let piece = end.min(first + length) - at;
            let page = match &self.file {
                Some(frames) => frames.get((at / PAGE) as usize).map(|frame| Page {
                    frame: *frame,
                    writable: true,
                    shared: true,
                }),
                None => self
                    .process
                    .pages
                    .lock()
                    .unwrap()
                    .get(&(at / PAGE))
                    .copied(),
            };
            let page = page
                .filter(|page| page.writable || !rights.can_write())
                .ok_or(PinError::Fault(at))?;
            if *self.process.device.lock().unwrap() == Some(at / PAGE) {
                held.device = Some(at);
            }
            let mut pins = self.process.pins.lock().unwrap();
            *pins.entry(page.frame).or_default() += 1;
            held.frames.push(page.frame);
            held.segments.push(Segment {
                length: piece,
                output: page.frame * PAGE + at % PAGE,
            });
            if !page.shared {
                held.private.push((at - first, piece));
            }
            at += piece;
        }
        Ok(Box::new(held))
    }
    fn start(&self) -> u64 {
        self.start
    }
    fn is_file(&self) -> bool {
        self.file.is_some()
    }
    fn address_space(&self) -> u64 {
        1
    }
}

/// The program: one process with its capabilities.
pub struct Program {
    pub process: Arc<Process>,
    pub ram: Arc<Ram>,
    pub memlock: Mutex<Memlock>,
    pub privileged: Mutex<bool>,
    pub user: Mutex<u32>,
    /// Descriptors that are installed have numbers below this.
    pub fd_limit: Mutex<i32>,
}

impl Caller for Program {
    fn actor(&self) -> Actor {
        Actor {
            process: 7,
            thread: 8,
        }
    }
    fn address_space(&self) -> u64 {
        1
    }
    fn user(&self) -> u32 {
        *self.user.lock().unwrap()
    }
    fn memlock(&self) -> Memlock {
        *self.memlock.lock().unwrap()
    }
    fn has_raw_io(&self) -> bool {
        *self.privileged.lock().unwrap()
    }
    fn has_sys_resource(&self) -> bool {
        *self.privileged.lock().unwrap()
    }
}

impl Client for Program {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), BadAddress> {
        for (offset, byte) in into.iter_mut().enumerate() {
            let at = address
                .checked_add(offset as u64)
                .ok_or(BadAddress(address))?;
            let pages = self.process.pages.lock().unwrap();
            let page = pages.get(&(at / PAGE)).ok_or(BadAddress(at))?;
            let mut one = [0];
            let _ = self.ram.read(page.frame * PAGE + at % PAGE, &mut one);
            [*byte] = one;
        }
        Ok(())
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), BadAddress> {
        for (offset, byte) in from.iter().enumerate() {
            let at = address
                .checked_add(offset as u64)
                .ok_or(BadAddress(address))?;
            let pages = self.process.pages.lock().unwrap();
            let page = pages.get(&(at / PAGE)).filter(|page| page.writable);
            let page = page.ok_or(BadAddress(at))?;
            let _ = self.ram.write(page.frame * PAGE + at % PAGE, &[*byte]);
        }
        Ok(())
    }
    fn named(&self, fd: i32) -> Result<Named, Errno> {
        let fds = self.process.fds.lock().unwrap();
        fds.get(&fd).copied().ok_or(Errno::EBADF)
    }
    fn eventfd(&self, _: i32) -> Result<Arc<dyn Signal>, Errno> {
        Err(Errno::EINVAL)
    }
    fn pages(&self, address: u64, length: u64) -> Arc<dyn Pages> {
        Arc::new(Range {
            process: Arc::clone(&self.process),
            file: None,
            start: address,
            length,
        })
    }
    fn file_pages(&self, fd: i32, offset: u64, length: u64) -> Result<Arc<dyn Pages>, Errno> {
        self.named(fd)?;
        let files = self.process.files.lock().unwrap();
        Ok(Arc::new(Range {
            process: Arc::clone(&self.process),
            file: Some(files.get(&fd).ok_or(Errno::EINVAL)?.clone()),
            start: offset,
            length,
        }))
    }
    fn install(&self, file: FileId) -> Result<i32, Errno> {
        let mut fds = self.process.fds.lock().unwrap();
        let last = fds.keys().copied().max();
        let fd = last.map_or(1000, |last| 1000.max(last + 1));
        if fd >= *self.fd_limit.lock().unwrap() {
            return Err(Errno::EMFILE);
        }
        fds.insert(fd, Named::Ours(file));
        Ok(fd)
    }
    fn watch(&self, _: i32, _: Event) -> Result<Box<dyn Watch>, Errno> {
        Err(Errno::EINVAL)
    }
}
