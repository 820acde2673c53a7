//! QEMU with an `intel-iommu`, driven as a guest and its devices would.

use std::io;
use std::path::Path;

use crate::naive::generate::DATA;
use crate::naive::{Access, Question};
use crate::qtest::Qtest;

/// The unit's registers. QEMU has no other place for them.
const UNIT: u64 = 0xfed9_0000;
/// The invalidation queue and the word that a wait writes: memory that no world uses.
const QUEUE: u64 = 0x0100_0000;
const STATUS: u64 = 0x0101_0000;
/// Where the writers look for what they wrote; nobody minds what they find.
const NOWHERE: u64 = DATA + 0xff_f000;
/// What they write.
const WRITTEN: u64 = 0x1234_5678;
/// Bytes of the queue: one page.
const QUEUE_BYTES: u64 = 0x1000;

/// Functions that write: `iommu-testdev` in these slots.
pub(crate) const WRITERS: [u16; 3] = [0x20, 0x30, 0x90];
/// The function that reads: `intel-hda`, whose command buffer is read when its write pointer is set.
pub(crate) const READER: u16 = 0x28;
const READER_BAR: u64 = 0xe010_0000;

/// What a device and the unit say after an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// At which of the places expected the bytes arrived.
    pub(crate) arrived: Option<usize>,
    pub(crate) record: Option<Record>,
}

/// A fault recording register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) reason: u8,
    pub(crate) source: u16,
    pub(crate) address: u64,
    pub(crate) read: bool,
    /// The PASID, if PV is set.
    pub(crate) pasid: Option<u32>,
}

/// A fault record's words as what they say. VT-d 4.1 section 11.4.7.7.
pub(crate) fn record(low: u64, high: u64) -> Option<Record> {
    (high >> 63 != 0).then_some(Record {
        reason: (high >> 32) as u8,
        source: high as u16,
        address: low & !0xfff,
        read: high >> 62 & 1 != 0,
        pasid: (high >> 31 & 1 != 0).then_some((high >> 40) as u32 & 0xf_ffff),
    })
}

pub(crate) struct Machine {
    qtest: Qtest,
    pub(crate) capabilities: (u64, u64),
    records: u64,
    tail: u64,
    waits: u32,
    /// The tag that the reader shows: that of the last read that reached one.
    shown: u8,
}

impl Machine {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let mut qtest = Qtest::connect(path)?;
        let capabilities = (qtest.read(UNIT + 0x8, 8)?, qtest.read(UNIT + 0x10, 8)?);
        for source in WRITERS {
            qtest.enable(source, 0, bar(source) as u32)?;
            qtest.write(bar(source) + 0xc, 4, 4)?;
        }
        qtest.enable(READER, 0, READER_BAR as u32)?;
        // Out of reset; the command buffer runs; its answers are not waited for.
        for (offset, bytes, value) in [(0x08, 4, 1), (0x4c, 1, 2), (0x5a, 2, 255)] {
            qtest.write(READER_BAR + offset, bytes, value)?;
        }
        let records = UNIT + (capabilities.0 >> 24 & 0x3ff) * 16;
        let mut machine = Self {
            qtest,
            capabilities,
            records,
            tail: 0,
            waits: 0,
            shown: 0,
        };
        // IQA, IQT, then QIE.
        machine.register(0x90, 8, QUEUE | machine.wide() << 11)?;
        machine.register(0x88, 8, 0)?;
        machine.register(0x18, 4, 1 << 26)?;
        Ok(machine)
    }

    /// Whether descriptors are of 256 bits: where there is scalable mode.
    fn wide(&self) -> u64 {
        self.capabilities.1 >> 43 & 1
    }

    fn register(&mut self, offset: u64, bytes: u32, value: u64) -> io::Result<()> {
        self.qtest.write(UNIT + offset, bytes, value)
    }

    /// Clears memory.
    pub(crate) fn clear(&mut self, address: u64, bytes: u64) -> io::Result<()> {
        self.qtest.fill(address, bytes, 0)
    }

    pub(crate) fn set_word(&mut self, address: u64, word: u64) -> io::Result<()> {
        self.qtest.write(address, 8, word)
    }

    pub(crate) fn word(&mut self, address: u64) -> io::Result<u64> {
        self.qtest.read(address, 8)
    }

    /// Sets the root table, forgets everything and turns translation on.
    pub(crate) fn begin(&mut self, root: u64, scalable: bool) -> io::Result<()> {
        self.register(0x20, 8, root)?;
        self.register(0x18, 4, 1 << 31 | 1 << 30 | 1 << 26)?;
        let mut all = vec![[0x11, 0]];
        if scalable {
            all.push([0x37, 0]);
        }
        all.push([0x12, 0]);
        self.invalidate(&all)
    }

    /// Has the queue do these and waits for its end.
    pub(crate) fn invalidate(&mut self, descriptors: &[[u64; 2]]) -> io::Result<()> {
        self.waits += 1;
        // Descriptors of 256 bits are what scalable mode wants.
        let bytes = 16 << self.wide();
        let wait = [u64::from(self.waits) << 32 | 0x25, STATUS];
        for descriptor in descriptors.iter().chain([&wait]) {
            let at = QUEUE + self.tail;
            for (n, word) in descriptor.iter().enumerate() {
                self.set_word(at + 8 * n as u64, *word)?;
            }
            self.tail = (self.tail + bytes) % QUEUE_BYTES;
        }
        self.register(0x88, 8, self.tail)?;
        let status = self.qtest.read(STATUS, 4)?;
        if status != u64::from(self.waits) {
            let faults = self.qtest.read(UNIT + 0x34, 4)?;
            return Err(io::Error::other(format!(
                "the queue did not come to its wait descriptor: {descriptors:x?}, FSTS {faults:#x}"
            )));
        }
        Ok(())
    }

    /// Has a device ask, with the bytes expected at one of `places`, of which there are few.
    pub(crate) fn ask(&mut self, question: &Question, places: &[u64]) -> io::Result<Seen> {
        let mut reads = Vec::new();
        match question.access {
            Access::Write => {
                let bar = bar(question.source);
                for &place in places {
                    self.qtest.write(place, 4, 0)?;
                }
                for (offset, value) in [
                    (0x04, question.address & 0xffff_ffff),
                    (0x08, question.address >> 32),
                    (0x1c, NOWHERE & 0xffff_ffff),
                    (0x20, NOWHERE >> 32),
                    (0x14, 1),
                ] {
                    self.qtest.write(bar + offset, 4, value)?;
                }
                // This read is the access.
                reads.push((bar, 4));
            }
            Access::Read => {
                let begin = question.address - 4;
                for (n, &place) in places.iter().enumerate() {
                    // Set stream and channel of node 2.
                    let set = 0x0027_0600 | u64::from(self.tag(n));
                    self.qtest.write(place, 4, set)?;
                }
                for (offset, bytes, value) in [
                    (0x40, 4, begin & 0xffff_ffff),
                    (0x44, 4, begin >> 32),
                    (0x4a, 2, 0),
                    (0x48, 2, 1),
                    // Ask for them by the registers for one command.
                    (0x60, 4, 0x002f_0600),
                    (0x68, 2, 1),
                ] {
                    self.qtest.write(READER_BAR + offset, bytes, value)?;
                }
                reads.push((READER_BAR + 0x64, 4));
            }
        }
        reads.extend([(UNIT + 0x34, 4), (self.records, 8), (self.records + 8, 8)]);
        if question.access == Access::Write {
            reads.extend(places.iter().map(|&place| (place, 4)));
        }
        let values = self.qtest.read_all(&reads)?;
        let arrived = match question.access {
            Access::Write => values[4..].iter().position(|&value| value == WRITTEN),
            Access::Read => {
                let shown = values[0] as u8;
                let arrived = (0..places.len()).find(|&n| self.tag(n) == shown);
                self.shown = shown;
                arrived
            }
        };
        let record = record(values[2], values[3]);
        if record.is_some() || values[1] != 0 {
            self.qtest.write(self.records + 12, 4, 1 << 31)?;
            self.register(0x34, 4, 0xff)?;
        }
        Ok(Seen { arrived, record })
    }

    /// A tag that the reader does not show.
    fn tag(&self, n: usize) -> u8 {
        self.shown.wrapping_add(1 + n as u8)
    }
}

fn bar(writer: u16) -> u64 {
    0xe000_0000 + u64::from(writer) * 0x1000
}
