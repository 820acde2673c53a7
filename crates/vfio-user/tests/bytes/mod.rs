//! A client's whole stream, made of bytes, against a server; every byte that
//! comes back, everything the device is told and the end are the naive
//! model's.
#![allow(unreachable_pub, reason = "a fuzz target may include this file")]

mod model;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use iogate_dma::{Iova, Rights, Span};
use iogate_vfio_user::{
    Connection, Device, DeviceInfo, DmaMap, Ended, Errno, FeatureCall, FeatureOperation, Irq,
    IrqAction, IrqData, Limits, Peer, Region, ServerOptions, SetIrqs, Violation,
};
use model::{IRQS, MAX_MAPS, Model, REGIONS, TRANSFER, Told};

/// A client that names every capability.
pub const ALL: &str = r#"{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1,"max_dma_maps":1,"pgsizes":1,"write_multiple":false}}"#;

/// No stream is longer: it lies in the socket whole before it is served.
const LONGEST: usize = 100 << 10;

struct Plain {
    memory: Mutex<Vec<u8>>,
    told: Mutex<Vec<Told>>,
}

impl Plain {
    fn tell(&self, told: Told) {
        self.told.lock().unwrap().push(told);
    }
}

impl Device for Plain {
    fn disconnected(&self, _: &Peer) {
        self.tell(Told::Gone);
    }
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            regions: 3,
            irqs: 2,
            reset: true,
            pci: true,
        }
    }
    fn region(&self, index: u32) -> Result<Region<'_>, Errno> {
        let rights = [Rights::READ_WRITE, Rights::READ, Rights::NONE];
        Ok(Region {
            size: REGIONS[index as usize] as u64,
            rights: rights[index as usize],
            ..Region::default()
        })
    }
    fn region_read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let from = offset as usize;
        match region {
            0 => into.copy_from_slice(&self.memory.lock().unwrap()[from..][..into.len()]),
            _ => (from..).zip(into).for_each(|(at, byte)| *byte = at as u8),
        }
        Ok(())
    }
    fn region_write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.memory.lock().unwrap()[offset as usize..][..from.len()].copy_from_slice(from);
        self.tell(Told::Write(region, offset, from.to_vec()));
        Ok(())
    }
    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        let count = IRQS[index as usize];
        Ok(Irq { count, flags: 1 })
    }
    fn set_irqs(&self, _: &Peer, set: SetIrqs<'_>) -> Result<(), Errno> {
        let action = match set.action {
            IrqAction::Mask => 1,
            IrqAction::Unmask => 2,
            IrqAction::Trigger => 4,
        };
        let data = match set.data {
            IrqData::None => None,
            IrqData::Bool(bools) => Some(bools.to_vec()),
            IrqData::Eventfds(files) => Some(vec![1; files.len()]),
        };
        self.tell(Told::Irqs(set.index, set.start, set.count, action, data));
        Ok(())
    }
    fn dma_map(&self, _: &Arc<Peer>, map: DmaMap) -> Result<(), Errno> {
        assert!(map.file.is_none());
        let (first, last) = (map.span.first().0, map.span.last().0);
        self.tell(Told::Map(first, last, map.rights.bits()));
        Ok(())
    }
    fn dma_unmap(&self, _: &Peer, span: Span<Iova>) {
        self.tell(Told::Unmap(span.first().0, span.last().0));
    }
    fn reset(&self, _: &Peer) -> Result<(), Errno> {
        self.tell(Told::Reset);
        Ok(())
    }
    fn feature(&self, _: &Peer, call: FeatureCall<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        if call.index != 1 {
            return Err(Errno::NOTTY);
        }
        let operation = match call.operation {
            FeatureOperation::Get => 1,
            FeatureOperation::Set => 2,
            FeatureOperation::Probe { get, set } => 4 | u32::from(get) | u32::from(set) << 1,
        };
        self.tell(Told::Feature(operation, call.data.to_vec()));
        if operation == 1 {
            reply.extend([3, 4]);
        }
        Ok(())
    }
    fn migration_read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let given = into.len().min(5);
        into[..given].fill(7);
        Ok(given)
    }
    fn migration_write(&self, from: &[u8]) -> Result<(), Errno> {
        self.tell(Told::State(from.to_vec()));
        Ok(())
    }
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    /// A number near what matters: small, a page, an end.
    fn number(&mut self) -> u64 {
        let choice = self.byte();
        let near = u64::from(choice & 7);
        match choice >> 3 {
            0..=9 => near,
            10..=15 => near << 12,
            16..=19 => u64::from(self.byte()),
            20 => 64 - 4 + near,
            21 => 0x9000 - 4 + near,
            22 => TRANSFER - 4 + near,
            23 => (1 << 16) - 4 + near,
            24 => (1 << 32) - 4 + near,
            25 => (1 << 63) - 4 + near,
            26 => u64::MAX - near,
            27 => u64::MAX - (near << 12) - 0xfff,
            28 => u64::from(u32::MAX) - near,
            _ => 8 << near,
        }
    }

    fn word(&mut self) -> u32 {
        self.number() as u32
    }

    fn data(&mut self, most: usize) -> Vec<u8> {
        let length = (self.number() as usize).min(most);
        let fill = self.byte();
        (0..length)
            .map(|at| (at as u8).wrapping_mul(3) ^ fill)
            .collect()
    }
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect()
}

fn longs(numbers: &[u64]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect()
}

fn access(bytes: &mut Bytes<'_>, count: u32) -> Vec<u8> {
    let offset = bytes.number();
    let region = match bytes.byte() {
        0..200 => 0,
        200..240 => 1,
        _ => bytes.word(),
    };
    [longs(&[offset]), words(&[region, count])].concat()
}

/// The number and the payload of a command that is about right.
fn command(bytes: &mut Bytes<'_>) -> (u16, Vec<u8>) {
    let number = u16::from(bytes.byte() % 21);
    let argsz = match bytes.byte() {
        0..200 => 64,
        _ => bytes.word(),
    };
    let body = match number {
        2 => {
            let flags = if bytes.byte() < 240 { 3 } else { bytes.word() };
            let offset = if bytes.byte() < 240 {
                0
            } else {
                bytes.number()
            };
            [
                words(&[argsz, flags]),
                longs(&[offset, bytes.number(), bytes.number()]),
            ]
            .concat()
        }
        3 => {
            let flags = if bytes.byte() < 200 { 0 } else { bytes.word() };
            let mut body = [
                words(&[argsz, flags]),
                longs(&[bytes.number(), bytes.number()]),
            ]
            .concat();
            if flags == 1 {
                body.extend(longs(&[bytes.number(), bytes.number()]));
            }
            body
        }
        4 | 6 | 7 => words(&[argsz, 0, bytes.word(), 0]),
        5 => [words(&[argsz, 0, bytes.word(), 0]), longs(&[0, 0])].concat(),
        8 => {
            let flags = match bytes.byte() {
                choice @ 0..240 => 1 << (choice % 3) | 8 << (choice / 3 % 3),
                _ => bytes.word(),
            };
            let index = if bytes.byte() < 230 { 0 } else { bytes.word() };
            let set = words(&[argsz, flags, index, bytes.word(), bytes.word()]);
            [set, bytes.data(16)].concat()
        }
        9 => {
            let count = bytes.word();
            access(bytes, count)
        }
        10 => {
            let data = bytes.data(0x9000);
            [access(bytes, data.len() as u32), data].concat()
        }
        14 => {
            let range = longs(&[
                bytes.number(),
                bytes.number(),
                bytes.number(),
                bytes.number(),
            ]);
            [words(&[argsz, bytes.word()]), range].concat()
        }
        15 => {
            let count = bytes.byte() % 4;
            let mut body = longs(&[count.into()]);
            for _ in 0..count {
                let small = bytes.word();
                body.extend(access(bytes, small));
                body.extend([bytes.byte(); 8]);
            }
            body
        }
        16 => {
            let operation = u32::from(bytes.byte() % 9) << 16;
            let index = if bytes.byte() < 200 {
                1
            } else {
                bytes.word() & 0xffff
            };
            [words(&[argsz, operation | index]), bytes.data(64)].concat()
        }
        17 => words(&[argsz, bytes.word()]),
        18 => {
            let data = bytes.data(0x9000);
            [words(&[argsz, data.len() as u32]), data].concat()
        }
        _ => bytes.data(200),
    };
    (number, body)
}

fn message(bytes: &mut Bytes<'_>, stream: &mut Vec<u8>) {
    let (number, mut body) = command(bytes);
    let flags = match bytes.byte() {
        0..200 => 0,
        200..240 => 0x10,
        240..250 => 1,
        250..253 => 0x11,
        _ => bytes.word(),
    };
    // What is wrong with it, if anything.
    match bytes.byte() {
        0 => body.truncate(usize::from(bytes.byte())),
        1 => body.extend(bytes.data(100)),
        2 => {
            let at = usize::from(bytes.byte());
            let with = bytes.byte();
            if let Some(byte) = body.get_mut(at) {
                *byte ^= with;
            }
        }
        _ => {}
    }
    let size = match bytes.byte() {
        0..250 => 16 + body.len() as u32,
        _ => bytes.word(),
    };
    let id = u16::from(bytes.byte());
    stream.extend(id.to_ne_bytes());
    stream.extend(number.to_ne_bytes());
    stream.extend(words(&[size, flags, 0]));
    stream.extend(body);
}

fn session(mut bytes: Bytes<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    let version = match bytes.byte() {
        0..100 => String::from("\0\0\0\0"),
        100..130 => String::from("\0\0\x05\0{}\0"),
        130..240 => format!("\0\0\0\0{ALL}\0"),
        240 => format!("\x01\0\0\0{ALL}\0"),
        241 => format!("\0\0\0\0{ALL}"),
        242 => String::from("\0\0\0\0{\"capabilities\":[]}\0"),
        243 => String::from("\0\0"),
        _ => String::new(),
    };
    if !version.is_empty() {
        stream.extend([9, 0]);
        stream.extend(1_u16.to_ne_bytes());
        stream.extend(words(&[16 + version.len() as u32, 0, 0]));
        stream.extend(version.into_bytes());
    }
    while !bytes.0.is_empty() && stream.len() < LONGEST - (0x9000 + 100) {
        if bytes.byte() == 255 {
            stream.extend(bytes.data(100));
        } else {
            message(&mut bytes, &mut stream);
        }
    }
    stream
}

/// Runs the session in `bytes`; panics where the server and the model part.
pub fn run(bytes: &[u8]) {
    let stream = session(Bytes(bytes));
    let mut model = Model::default();
    let expected = model.run(&stream);

    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&stream).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let limits = Limits {
        max_data_xfer_size: TRANSFER as u32,
        max_dma_maps: MAX_MAPS as u32,
        ..Limits::default()
    };
    let options = ServerOptions {
        limits,
        queue: usize::MAX,
        ..ServerOptions::default()
    };
    let device = Plain {
        memory: Mutex::new(vec![0; REGIONS[0]]),
        told: Mutex::default(),
    };
    let ended = Connection::new(theirs.into(), options).serve(&device);
    let mut replies = Vec::new();
    let _ = ours.read_to_end(&mut replies);

    let ended = match ended {
        Ended::Disconnected => model::Ended::Disconnected,
        Ended::Violation(Violation::Short(_)) => model::Ended::Short,
        Ended::Violation(Violation::Long(_)) => model::Ended::Long,
        Ended::Violation(Violation::Type(_)) => model::Ended::Type,
        Ended::Violation(Violation::Torn) => model::Ended::Torn,
        Ended::Violation(Violation::Version(_)) => model::Ended::Version,
        other => panic!("{other:?}"),
    };
    assert_eq!(ended, expected);
    assert_eq!(device.told.into_inner().unwrap(), model.told);
    assert_eq!(device.memory.into_inner().unwrap(), model.memory);
    // What the socket did not hold when the stream ended is lost.
    let held = replies.len().min(model.replies.len());
    assert!(held == model.replies.len() || held > 100 << 10);
    if replies != model.replies[..held] {
        let at = (0..held).find(|at| replies.get(*at) != model.replies.get(*at));
        panic!(
            "replies part at byte {at:?} of {} and {held}",
            replies.len()
        );
    }
}
