//! QEMU with an `intel-iommu`, and devices whose interrupt messages are programmed: `edu` by MSI, whose data has 16 bits,
//! and `e1000e` by MSI-X, whose data has 32.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::entries::{SOURCES, TABLE, WIDE, World};
use crate::qtest::Qtest;
use crate::{Answer, Question};

const UNIT: u64 = 0xfed9_0000;
/// Fault recording registers begin here, as CAP.FRO says.
const RECORD: u64 = UNIT + 0x220;
const QUEUE: u64 = 0x1000;
/// The bridge that leads to the last of the sources.
const PORT: u16 = 0x40;
const BEHIND: u64 = 0xe200_0000;
/// Registers and MSI-X table of the `e1000e`.
const WIDE_REGISTERS: u64 = 0xe100_0000;
const WIDE_TABLE: u64 = 0xe110_0000;
/// What the trace says of a message that is delivered.
const DELIVERED: &str = "vtd_ir_remap_msi (";

pub(crate) struct Theirs {
    qtest: Qtest,
    trace: File,
    /// The MSI capability of each source.
    capabilities: Vec<u8>,
    tail: u64,
}

impl Theirs {
    pub(crate) fn connect(socket: &Path, trace: &Path) -> io::Result<Self> {
        let mut theirs = Self {
            qtest: Qtest::connect(socket)?,
            trace: File::open(trace)?,
            capabilities: Vec::new(),
            tail: 0,
        };
        // Bus numbers and one MiB of memory behind the bridge.
        let bus = u32::from(SOURCES[SOURCES.len() - 1] >> 8);
        theirs
            .qtest
            .write_config(PORT, 0x18, 4, bus << 16 | bus << 8)?;
        let window = (BEHIND >> 16) as u32;
        theirs
            .qtest
            .write_config(PORT, 0x20, 4, window << 16 | window)?;
        theirs.qtest.write_config(PORT, 0x04, 2, 0x6)?;
        for (number, source) in SOURCES.into_iter().enumerate() {
            theirs.qtest.enable(source, 0, bar(number) as u32)?;
            let capability = theirs.capability(source, 0x05)?;
            theirs.qtest.write_config(source, capability + 2, 2, 1)?;
            theirs.capabilities.push(capability);
        }
        theirs.qtest.enable(WIDE, 3, WIDE_TABLE as u32)?;
        theirs.qtest.enable(WIDE, 0, WIDE_REGISTERS as u32)?;
        let capability = theirs.capability(WIDE, 0x11)?;
        theirs
            .qtest
            .write_config(WIDE, capability + 2, 2, 1 << 15)?;
        // IQA, IQT, QIE.
        theirs.qtest.write(UNIT + 0x90, 8, QUEUE)?;
        theirs.qtest.write(UNIT + 0x88, 8, 0)?;
        theirs.command(1 << 26)?;
        Ok(theirs)
    }

    fn wide(&mut self, offset: u64, value: u64) -> io::Result<()> {
        self.qtest.write(WIDE_REGISTERS + offset, 4, value)
    }

    fn command(&mut self, command: u64) -> io::Result<()> {
        self.qtest.write(UNIT + 0x18, 4, command)
    }

    /// Where the capability with this id begins.
    fn capability(&mut self, source: u16, id: u64) -> io::Result<u8> {
        let mut at = self.qtest.read_config(source, 0x34, 1)? as u8;
        for _ in 0..48 {
            let header = self.qtest.read_config(source, at, 2)?;
            if header & 0xff == id {
                return Ok(at);
            }
            at = (header >> 8) as u8;
        }
        let what = format!("the function {source:#x} has no capability {id:#x}");
        Err(io::Error::other(what))
    }

    pub(crate) fn begin(&mut self, world: &World) -> io::Result<()> {
        for &(index, entry) in &world.entries {
            for (word, at) in entry.into_iter().zip([0, 8]) {
                self.qtest.write(TABLE + 16 * index + at, 8, word)?;
            }
        }
        self.qtest.write(UNIT + 0xb8, 8, world.table)?;
        let on = 1 << 26 | 1 << 25 | u64::from(world.compatibility) << 23;
        self.command(on & !(1 << 23) | 1 << 24)?;
        self.command(on & !(1 << 23))?;
        self.command(on)?;
        self.qtest.write(QUEUE + self.tail, 8, 4)?;
        self.qtest.write(QUEUE + self.tail + 8, 8, 0)?;
        self.tail = (self.tail + 16) % 0x1000;
        self.qtest.write(UNIT + 0x88, 8, self.tail)?;
        self.qtest.settle()?;
        // What the I/O APIC makes of all that is nobody's answer.
        self.trace.seek(SeekFrom::End(0)).map(drop)
    }

    /// Has the source write the message.
    pub(crate) fn ask(&mut self, question: &Question) -> io::Result<Answer> {
        let address = question.address;
        match SOURCES.iter().position(|source| *source == question.source) {
            Some(number) => {
                let capability = self.capabilities[number];
                for (offset, bytes, value) in [
                    (4, 4, address as u32),
                    (8, 4, (address >> 32) as u32),
                    (12, 2, question.data),
                ] {
                    let offset = capability + offset;
                    self.qtest
                        .write_config(question.source, offset, bytes, value)?;
                }
                self.qtest.write(bar(number) + 0x60, 4, 1)?;
                self.qtest.write(bar(number) + 0x64, 4, 1)?;
            }
            None => {
                for (offset, value) in [
                    (0, address & 0xffff_ffff),
                    (4, address >> 32),
                    (8, u64::from(question.data)),
                    (12, 0),
                ] {
                    self.qtest.write(WIDE_TABLE + offset, 4, value)?;
                }
                // A reset by CTRL, since interrupts are spaced by a clock that stands still here. Then the cause "other"
                // has vector 0 by IVAR, is enabled by IMS and raised by ICS.
                self.wide(0x00, 1 << 26)?;
                self.wide(0xe4, 8 << 16)?;
                self.wide(0xd0, 1 << 24)?;
                self.wide(0xc8, 1 << 24)?;
            }
        }
        let words = self
            .qtest
            .read_all(&[(UNIT + 0x34, 4), (RECORD, 8), (RECORD + 8, 8)])?;
        let recorded = (words[2] >> 63 != 0).then(|| fault(words[1], words[2]));
        if recorded.is_some() || words[0] != 0 {
            self.qtest.write(RECORD + 12, 4, 1 << 31)?;
            self.qtest.write(UNIT + 0x34, 4, 0xff)?;
        }
        match (self.delivered()?, recorded) {
            (None, recorded) => Ok(recorded.unwrap_or(Answer::Nothing)),
            (Some(message), None) => Ok(message),
            (Some(message), Some(fault)) => {
                let what = format!("QEMU delivers {message:x?} and records {fault:x?}");
                Err(io::Error::other(what))
            }
        }
    }

    /// The message that the trace tells of since it was looked at last.
    fn delivered(&mut self) -> io::Result<Option<Answer>> {
        let mut text = String::new();
        self.trace.read_to_string(&mut text)?;
        let mut found = None;
        for line in text.lines() {
            let Some((_, told)) = line.split_once(DELIVERED) else {
                continue;
            };
            let unread = || io::Error::other(format!("an unknown form of trace: {line}"));
            let (_, after) = told.split_once("-> (").ok_or_else(unread)?;
            let mut numbers = after
                .trim_end_matches(')')
                .split(", ")
                .filter_map(|part| part.split_once("0x"))
                .filter_map(|(_, digits)| u64::from_str_radix(digits, 16).ok());
            let (Some(address), Some(data)) = (numbers.next(), numbers.next()) else {
                return Err(unread());
            };
            if found.is_some() {
                return Err(io::Error::other(format!("two messages of one: {text}")));
            }
            found = Some(Answer::Message {
                address,
                data: data as u32,
            });
        }
        Ok(found)
    }
}

/// Where the registers of a source stand.
fn bar(number: usize) -> u64 {
    match number {
        number if number + 1 == SOURCES.len() => BEHIND,
        number => 0xe000_0000 + 0x10_0000 * number as u64,
    }
}

/// A fault record of an interrupt. VT-d 4.1 section 11.4.7.7.
pub(crate) fn fault(low: u64, high: u64) -> Answer {
    Answer::Fault {
        reason: (high >> 32) as u8,
        source: high as u16,
        index: (low >> 48) as u16,
    }
}
