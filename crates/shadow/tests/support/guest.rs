//! A guest with a VT-d unit: its memory is a file, its driver writes registers,
//! tables and the invalidation queue as the specification has them.

#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iogate_dma::{Gpa, Iova, Memory, Rights, Span, Width};
use iogate_memory::{Backing, GuestMemory, GuestRange};
use iogate_vtd::{Capabilities, Vtd};
use rustix::fs::MemfdFlags;

const ROOT: u64 = 0x1000;
const CONTEXTS: u64 = 0x2000;
const QUEUE: u64 = 0x3000;
const STATUS: u64 = 0x4000;
/// Tables of scalable mode begin here: of each function a context entry's
/// worth of directory and table.
const PASIDS: u64 = 0x1_0000;
/// Tables of pages come from here on.
const TABLES: u64 = 0x10_0000;
const BYTES: u64 = 8 << 20;

const GCMD: u64 = 0x18;
const RTADDR: u64 = 0x20;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;
const QIE: u32 = 1 << 26;

pub(crate) struct Guest {
    pub(crate) ram: Arc<GuestMemory>,
    pub(crate) unit: Arc<Vtd>,
    wide: bool,
    next: AtomicU64,
    waits: AtomicU64,
    _range: GuestRange,
}

/// A domain of the guest: four levels of second-stage tables.
#[derive(Clone, Copy)]
pub(crate) struct Tables {
    pub(crate) root: u64,
    pub(crate) number: u16,
}

impl Guest {
    pub(crate) fn new(capabilities: Capabilities) -> Self {
        let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, BYTES).unwrap();
        let backing = Backing::File {
            file: Arc::new(file),
            offset: 0,
        };
        let ram = Arc::new(GuestMemory::new().unwrap());
        let span = Span::with_length(Gpa(0), BYTES).unwrap();
        let range = ram.map(span, Rights::READ_WRITE, backing).unwrap();
        let unit = Vtd::builder(ram.clone()).capabilities(capabilities);
        let guest = Self {
            unit: unit.build().unwrap(),
            ram,
            wide: capabilities.is_scalable(),
            next: AtomicU64::new(TABLES),
            waits: AtomicU64::new(0),
            _range: range,
        };
        guest.begin();
        guest
    }

    fn begin(&self) {
        self.put(ROOT, CONTEXTS | 1);
        let wide = u64::from(self.wide);
        self.write64(RTADDR, ROOT | wide << 10);
        self.write32(GCMD, SRTP);
        self.write64(IQA, QUEUE | wide << 11);
        self.write32(GCMD, QIE);
        self.write32(GCMD, QIE | TE);
        assert_eq!(self.read32(0x1c), QIE | SRTP | TE);
    }

    /// Turns translation off.
    pub(crate) fn end(&self) {
        self.write32(GCMD, QIE);
    }

    pub(crate) fn read32(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.unit.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn read64(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.unit.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn write32(&self, at: u64, value: u32) {
        self.unit.write(at, &value.to_le_bytes());
    }

    fn write64(&self, at: u64, value: u64) {
        self.unit.write(at, &value.to_le_bytes());
    }

    pub(crate) fn put(&self, at: u64, entry: u64) {
        self.ram.store(at, Width::Qword, entry).unwrap();
    }

    pub(crate) fn get(&self, at: u64) -> u64 {
        self.ram.load(at, Width::Qword).unwrap()
    }

    fn table(&self) -> u64 {
        let page = self.next.fetch_add(0x1000, Ordering::Relaxed);
        assert!(page < BYTES, "no room for tables");
        page
    }

    /// A domain that maps nothing.
    pub(crate) fn domain(&self, number: u16) -> Tables {
        let root = self.table();
        Tables { root, number }
    }

    /// The guest maps the page at `iova`, or takes it away.
    pub(crate) fn map(&self, tables: Tables, iova: u64, entry: u64) {
        let mut table = tables.root;
        for shift in [39, 30, 21] {
            let at = table + (iova >> shift & 511) * 8;
            if self.get(at) == 0 {
                self.put(at, self.table() | 3);
            }
            table = self.get(at) & !0xfff;
        }
        self.put(table + (iova >> 12 & 511) * 8, entry);
    }

    /// The function 0:`device`.0 is in this domain, or in none.
    pub(crate) fn enter(&self, device: u64, tables: Option<Tables>) {
        let at = CONTEXTS + device * 8 * 16;
        let (low, high) = tables.map_or((0, 0), |tables| {
            (tables.root | 1, u64::from(tables.number) << 8 | 2)
        });
        self.put(at, 0);
        self.put(at + 8, high);
        self.put(at, low);
    }

    /// The requests of 0:`device`.0 with `pasid` are in this domain, in
    /// scalable mode; those without a PASID are those with PASID 0.
    pub(crate) fn enter_pasid(&self, device: u64, pasid: u64, tables: Option<Tables>) {
        let (directory, table) = (PASIDS + device * 0x2000, PASIDS + device * 0x2000 + 0x1000);
        let context = CONTEXTS + device * 8 * 32;
        self.put(context + 8, 0);
        self.put(context, directory | 1 << 3 | 1);
        self.put(directory, table | 1);
        let at = table + pasid * 64;
        let (low, high) = tables.map_or((0, 0), |tables| {
            // PGTT second-stage only, AW four levels.
            (tables.root | 2 << 6 | 2 << 2 | 1, u64::from(tables.number))
        });
        self.put(at, 0);
        self.put(at + 8, high);
        self.put(at, low);
    }

    /// Has requests of 0:`device`.0 with `pasid` pass the first stage at `first`
    /// before this domain. It must be in the domain already.
    pub(crate) fn nest(&self, device: u64, pasid: u64, first: u64) {
        let at = PASIDS + device * 0x2000 + 0x1000 + pasid * 64;
        self.put(at + 16, first);
        // PGTT nested.
        self.put(at, self.get(at) & !(7 << 6) | 3 << 6);
    }

    /// Puts descriptors into the queue, then one that waits for them.
    pub(crate) fn submit(&self, descriptors: &[(u64, u64)]) {
        let wait = self.waits.fetch_add(1, Ordering::Relaxed) + 1;
        let wait = (wait << 32 | 1 << 5 | 5, STATUS);
        let (width, size) = if self.wide { (32, 4096) } else { (16, 4096) };
        let mut tail = self.read64(IQT);
        for &(low, high) in descriptors.iter().chain([&wait]) {
            self.put(QUEUE + tail, low);
            self.put(QUEUE + tail + 8, high);
            tail = (tail + width) % size;
        }
        self.write64(IQT, tail);
    }

    /// How many batches the unit has said to be done.
    pub(crate) fn done(&self) -> u64 {
        self.ram.load(STATUS, Width::Dword).unwrap()
    }

    /// How many the guest has asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }
}

/// Invalidates all translations.
pub(crate) fn everything() -> (u64, u64) {
    (1 << 4 | 2, 0)
}

/// Invalidates the translations of a domain.
pub(crate) fn of_domain(tables: Tables) -> (u64, u64) {
    (u64::from(tables.number) << 16 | 2 << 4 | 2, 0)
}

/// Invalidates `1 << order` pages of a domain.
pub(crate) fn of_pages(tables: Tables, iova: u64, order: u64) -> (u64, u64) {
    (u64::from(tables.number) << 16 | 3 << 4 | 2, iova | order)
}

/// Invalidates the context entry of 0:`device`.0.
pub(crate) fn of_context(device: u64) -> (u64, u64) {
    (device << (32 + 3) | 3 << 4 | 1, 0)
}

/// Invalidates all PASID-table entries.
pub(crate) fn of_pasids() -> (u64, u64) {
    (3 << 4 | 7, 0)
}

pub(crate) fn page(first: u64) -> Span<Iova> {
    Span::with_length(Iova(first), 0x1000).unwrap()
}
