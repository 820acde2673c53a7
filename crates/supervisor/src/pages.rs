//! A client's memory as mappings name it: pinned by walking its mappings, never
//! its pages. Shared files are mapped here, once; private memory is reached
//! through its process.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iogate_dma::Rights;
use iogate_host::{Pages, PinError, Pinned};
use iogate_memory::{ClientMemory, FileRange, Vma};
use iogate_space::Segment;

use crate::client_process::ClientProcess;
use crate::held::DeviceFiles;
use crate::shared::SharedFiles;

/// Where pinned memory is entered.
#[derive(Clone)]
pub(crate) struct Ledger {
    pub(crate) memory: Arc<ClientMemory>,
    pub(crate) files: Arc<SharedFiles>,
    /// The files whose mappings are of devices.
    pub(crate) devices: Arc<DeviceFiles>,
    /// Pins of private memory of all processes.
    pub(crate) private: Arc<AtomicUsize>,
}

/// A range of addresses of a process.
pub(crate) struct ProcessPages {
    pub(crate) ledger: Ledger,
    pub(crate) process: Arc<ClientProcess>,
    pub(crate) start: u64,
}

impl fmt::Debug for ProcessPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (process, start) = (self.process.id(), self.start);
        write!(f, "ProcessPages({process}, {start:#x})")
    }
}

impl Pages for ProcessPages {
    fn pin(&self, offset: u64, length: u64, rights: Rights) -> Result<Box<dyn Pinned>, PinError> {
        let start = self.start;
        let first = start.checked_add(offset).ok_or(PinError::Fault(start))?;
        let end = first.checked_add(length).ok_or(PinError::Fault(first))?;
        let mut pins = Pins::new(self.ledger.private.clone(), Arc::clone(&self.process));
        let mut at = first;
        while at < end {
            let fault = PinError::Fault(at);
            let vma = self.process.memory().vma_at(at).map_err(|_| fault)?;
            // A device that may write makes the kernel ask for writable
            // pages; only one that may not makes it ask for readable ones.
            let allowed = match rights.can_write() {
                true => vma.rights.can_write(),
                false => vma.rights.can_read(),
            };
            if !allowed {
                return Err(fault);
            }
            if vma.is_file() && self.ledger.devices.contains(&vma) {
                pins.device.get_or_insert(at);
            }
            let piece = end.min(vma.end).saturating_sub(at);
            match self.map(&vma, at, piece, rights) {
                Some(range) => pins.add_file(range),
                None => {
                    let output = self.process.reach(&self.ledger.memory, at).ok_or(fault)?;
                    pins.add_private(at.saturating_sub(first), piece, output);
                }
            }
            at = vma.end;
        }
        Ok(pins.finish())
    }

    fn start(&self) -> u64 {
        self.start
    }

    fn is_file(&self) -> bool {
        false
    }

    fn address_space(&self) -> u64 {
        self.process.space()
    }
}

impl ProcessPages {
    /// Maps the part of a shared file that the process has at `at`, if it is
    /// one whose pages are all there is to it.
    fn map(&self, vma: &Vma, at: u64, length: u64, rights: Rights) -> Option<FileRange> {
        let (memory, process) = (&self.ledger.memory, self.process.directory());
        let (part, write) = ((at, length), rights.can_write());
        self.ledger.files.map(memory, process, vma, part, write)
    }
}

/// A range of a file.
pub(crate) struct FilePages {
    pub(crate) ledger: Ledger,
    pub(crate) process: Arc<ClientProcess>,
    pub(crate) file: OwnedFd,
    pub(crate) start: u64,
}

impl fmt::Debug for FilePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilePages({:#x})", self.start)
    }
}

impl Pages for FilePages {
    fn pin(&self, offset: u64, length: u64, rights: Rights) -> Result<Box<dyn Pinned>, PinError> {
        let first = self
            .start
            .checked_add(offset)
            .ok_or(PinError::Fault(self.start))?;
        let mapped =
            self.ledger
                .memory
                .map_file(self.file.as_fd(), first, length, rights.can_write());
        let range = mapped.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOMEM) => PinError::NoMemory,
            _ => PinError::Fault(first),
        })?;
        let mut pins = Pins::new(self.ledger.private.clone(), Arc::clone(&self.process));
        pins.add_file(range);
        Ok(pins.finish())
    }

    fn start(&self) -> u64 {
        self.start
    }

    fn is_file(&self) -> bool {
        true
    }

    fn address_space(&self) -> u64 {
        self.process.space()
    }
}

/// Pinned memory, while it is collected and afterwards.
struct Pins {
    segments: Vec<Segment>,
    private: Vec<(u64, u64)>,
    files: Vec<FileRange>,
    /// The first address that is of a device file.
    device: Option<u64>,
    counter: Arc<AtomicUsize>,
    process: Arc<ClientProcess>,
    counted: bool,
}

impl Pins {
    fn new(counter: Arc<AtomicUsize>, process: Arc<ClientProcess>) -> Self {
        Self {
            segments: Vec::new(),
            private: Vec::new(),
            files: Vec::new(),
            device: None,
            counter,
            process,
            counted: false,
        }
    }

    fn add_file(&mut self, range: FileRange) {
        self.add(range.length(), range.address());
        self.files.push(range);
    }

    fn add_private(&mut self, offset: u64, length: u64, output: u64) {
        self.add(length, output);
        match self.private.last_mut() {
            Some(last) if last.0.saturating_add(last.1) == offset => {
                last.1 = last.1.saturating_add(length);
            }
            _ => self.private.push((offset, length)),
        }
    }

    fn add(&mut self, length: u64, output: u64) {
        match self.segments.last_mut() {
            Some(last) if last.output.checked_add(last.length) == Some(output) => {
                last.length = last.length.saturating_add(length);
            }
            _ => self.segments.push(Segment { length, output }),
        }
    }

    fn finish(mut self) -> Box<dyn Pinned> {
        if !self.private.is_empty() {
            self.counted = true;
            self.counter.fetch_add(1, Ordering::SeqCst);
            self.process.private().fetch_add(1, Ordering::SeqCst);
        }
        Box::new(self)
    }
}

impl Pinned for Pins {
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

impl Drop for Pins {
    fn drop(&mut self) {
        if self.counted {
            self.counter.fetch_sub(1, Ordering::SeqCst);
            self.process.private().fetch_sub(1, Ordering::SeqCst);
        }
    }
}
