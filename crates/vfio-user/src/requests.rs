//! What a client asks of a device.

use std::os::fd::{BorrowedFd, OwnedFd};

use iogate_dma::{Iova, Rights, Span};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::client::Client;
use crate::device::{DeviceInfo, FeatureOperation, IoKind, Irq, IrqAction, SubRegion};
use crate::error::Error;
use crate::stream::Message;
use crate::wire::{
    self, CAP_SPARSE_MMAP, CAP_TYPE, CapHeader, Command, DEVICE_PCI, DEVICE_RESET, DmaMap,
    DmaUnmap, FEATURE_GET, FEATURE_PROBE, FEATURE_SET, Feature, IO_FD_EVENT, IRQ_ACTION_MASK,
    IRQ_ACTION_TRIGGER, IRQ_ACTION_UNMASK, IRQ_DATA_BOOL, IRQ_DATA_EVENTFD, IRQ_DATA_NONE, IrqInfo,
    MAP_READ, MAP_WRITE, MigData, REGION_MMAP, REGION_READ, REGION_WRITE, RegionAccess, RegionInfo,
    RegionIoFds, RegionType, SetIrqs, SmallWrite, SparseArea, SparseMmap, UNMAP_ALL, WriteMulti,
};

/// More regions or interrupt types than this no server may claim to have.
const MOST: u32 = 256;
/// Room for the capabilities of a region that is first offered.
const CAPABILITIES: u32 = 256;

/// A region as a server describes it.
#[derive(Debug, Default)]
pub struct RemoteRegion {
    /// Its size in bytes.
    pub size: u64,
    /// What accesses it takes.
    pub rights: Rights,
    /// The file that holds it and where it begins there, if it can be mapped.
    pub file: Option<(OwnedFd, u64)>,
    /// The parts that can be mapped: offset and size; all of it if this is
    /// empty.
    pub areas: Vec<(u64, u64)>,
    /// Type and subtype of a device-specific region.
    pub kind: Option<(u32, u32)>,
}

/// Descriptors by which a region can be accessed past its client.
#[derive(Debug, Default)]
pub struct RemoteRegionIo {
    /// What goes through which of them.
    pub parts: Vec<SubRegion>,
    /// The descriptors.
    pub files: Vec<OwnedFd>,
}

/// Which interrupts are meant.
#[derive(Clone, Copy, Debug)]
pub enum IrqTarget<'a> {
    /// All of them.
    None,
    /// Those whose byte is not 0.
    Bool(&'a [u8]),
    /// Each gets its eventfd.
    Eventfds(&'a [BorrowedFd<'a>]),
    /// They lose those that they have.
    NoEventfds,
}

fn wrong(command: Command, what: &'static str) -> Error {
    Error::Answer { command, what }
}

fn head<T: FromBytes + KnownLayout + Immutable>(
    command: Command,
    body: &[u8],
) -> Result<(T, &[u8]), Error> {
    T::read_from_prefix(body).map_err(|_| wrong(command, "it is too short"))
}

fn short(length: usize) -> Result<u32, Error> {
    Ok(u32::try_from(length).map_err(|_| Errno::OVERFLOW)?)
}

/// The map request of a span, and the unmap request.
pub(crate) fn map_request(span: Span<Iova>, rights: Rights, offset: u64) -> Result<DmaMap, Error> {
    let mut flags = 0;
    if rights.can_read() {
        flags |= MAP_READ;
    }
    if rights.can_write() {
        flags |= MAP_WRITE;
    }
    Ok(DmaMap {
        argsz: short(size_of::<DmaMap>())?,
        flags,
        offset,
        address: span.first().0,
        size: span.length().ok_or(Errno::OVERFLOW)?,
    })
}

pub(crate) fn unmap_request(span: Span<Iova>) -> Result<DmaUnmap, Error> {
    Ok(DmaUnmap {
        argsz: short(size_of::<DmaUnmap>())?,
        flags: 0,
        address: span.first().0,
        size: span.length().ok_or(Errno::OVERFLOW)?,
    })
}

impl Client {
    /// What the device is.
    pub fn info(&self) -> Result<DeviceInfo, Error> {
        let command = Command::DeviceGetInfo;
        let request = wire::DeviceInfo {
            argsz: short(size_of::<wire::DeviceInfo>())?,
            ..wire::DeviceInfo::default()
        };
        self.call(command, &[request.as_bytes()], &[], |reply| {
            let (info, _) = head::<wire::DeviceInfo>(command, reply.body)?;
            if info.regions > MOST || info.irqs > MOST {
                return Err(wrong(command, "so much no device has"));
            }
            Ok(DeviceInfo {
                regions: info.regions,
                irqs: info.irqs,
                reset: info.flags & DEVICE_RESET != 0,
                pci: info.flags & DEVICE_PCI != 0,
            })
        })
    }

    /// What region `index` is.
    pub fn region(&self, index: u32) -> Result<RemoteRegion, Error> {
        let command = Command::DeviceGetRegionInfo;
        let mut argsz = short(size_of::<RegionInfo>())?.saturating_add(CAPABILITIES);
        loop {
            let request = RegionInfo {
                argsz,
                index,
                ..RegionInfo::default()
            };
            let (needed, region) = self.call(command, &[request.as_bytes()], &[], |reply| {
                let (info, _) = head::<RegionInfo>(command, reply.body)?;
                Ok((info.argsz, region(command, &info, reply)?))
            })?;
            if needed <= argsz {
                return Ok(region);
            }
            if needed > 1 << 16 {
                return Err(wrong(command, "so long no description is"));
            }
            argsz = needed;
        }
    }

    /// Descriptors by which region `index` can be accessed.
    pub fn region_io(&self, index: u32) -> Result<RemoteRegionIo, Error> {
        let command = Command::DeviceGetRegionIoFds;
        let request = RegionIoFds {
            argsz: 1 << 14,
            index,
            ..RegionIoFds::default()
        };
        self.call(command, &[request.as_bytes()], &[], |reply| {
            let (info, parts) = head::<RegionIoFds>(command, reply.body)?;
            let files = std::mem::take(&mut reply.files);
            let count = usize::try_from(info.count).map_err(|_| Errno::OVERFLOW)?;
            let least = size_of::<wire::SubRegion>();
            let each = parts.len().checked_div(count).unwrap_or(least);
            if each < least {
                return Err(wrong(command, "its parts are too short"));
            }
            let mut io = RemoteRegionIo {
                files,
                ..RemoteRegionIo::default()
            };
            for part in parts.chunks_exact(each).take(count) {
                let part = sub_region(command, part)?;
                let file = usize::try_from(part.file).unwrap_or(usize::MAX);
                if file >= io.files.len() {
                    return Err(wrong(command, "a part has no descriptor"));
                }
                io.parts.push(part);
            }
            Ok(io)
        })
    }

    /// What interrupt type `index` is.
    pub fn irq(&self, index: u32) -> Result<Irq, Error> {
        let command = Command::DeviceGetIrqInfo;
        let request = IrqInfo {
            argsz: short(size_of::<IrqInfo>())?,
            index,
            ..IrqInfo::default()
        };
        self.call(command, &[request.as_bytes()], &[], |reply| {
            let (info, _) = head::<IrqInfo>(command, reply.body)?;
            Ok(Irq {
                count: info.count,
                flags: info.flags,
            })
        })
    }

    /// Does something to interrupts `start` to `start + count` of type `index`.
    /// More eventfds than the server takes at once go in several messages.
    pub fn set_irqs(
        &self,
        index: u32,
        start: u32,
        count: u32,
        action: IrqAction,
        target: IrqTarget<'_>,
    ) -> Result<(), Error> {
        let action = match action {
            IrqAction::Mask => IRQ_ACTION_MASK,
            IrqAction::Unmask => IRQ_ACTION_UNMASK,
            IrqAction::Trigger => IRQ_ACTION_TRIGGER,
        };
        let set = |flags: u32, start, count, data: &[u8], files: &[BorrowedFd<'_>]| {
            let length = size_of::<SetIrqs>().saturating_add(data.len());
            let set = SetIrqs {
                argsz: short(length)?,
                flags: flags | action,
                index,
                start,
                count,
            };
            let command = Command::DeviceSetIrqs;
            self.call(command, &[set.as_bytes(), data], files, |_| Ok(()))
        };
        match target {
            IrqTarget::None => set(IRQ_DATA_NONE, start, count, &[], &[]),
            IrqTarget::Bool(bools) => set(IRQ_DATA_BOOL, start, count, bools, &[]),
            IrqTarget::NoEventfds => set(IRQ_DATA_EVENTFD, start, count, &[], &[]),
            IrqTarget::Eventfds(files) => {
                let limit = self.limits().max_msg_fds;
                let chunk = match usize::try_from(limit) {
                    Ok(chunk) if chunk > 0 => chunk,
                    _ => {
                        return Err(Error::TooMuch {
                            command: Command::DeviceSetIrqs,
                            count: 1,
                            limit: 0,
                        });
                    }
                };
                let mut start = start;
                for files in files.chunks(chunk) {
                    let count = short(files.len())?;
                    set(IRQ_DATA_EVENTFD, start, count, &[], files)?;
                    start = start.checked_add(count).ok_or(Errno::OVERFLOW)?;
                }
                Ok(())
            }
        }
    }

    fn transfer(&self, command: Command, count: usize) -> Result<u32, Error> {
        let limit = self.limits().max_data_xfer_size;
        match u32::try_from(count) {
            Ok(count) if count <= limit => Ok(count),
            _ => Err(Error::TooMuch {
                command,
                count: count as u64,
                limit: limit.into(),
            }),
        }
    }

    /// Fills `into` from `offset` of a region.
    pub fn region_read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let command = Command::RegionRead;
        let access = RegionAccess {
            offset,
            region,
            count: self.transfer(command, into.len())?,
        };
        self.call(command, &[access.as_bytes()], &[], |reply| {
            let (answer, data) = head::<RegionAccess>(command, reply.body)?;
            if answer.count != access.count || data.len() != into.len() {
                return Err(wrong(command, "it has another count"));
            }
            into.copy_from_slice(data);
            Ok(())
        })
    }

    /// Writes `from` to `offset` of a region and waits until it is done.
    pub fn region_write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Error> {
        let command = Command::RegionWrite;
        let access = RegionAccess {
            offset,
            region,
            count: self.transfer(command, from.len())?,
        };
        self.call(command, &[access.as_bytes(), from], &[], |_| Ok(()))
    }

    /// Writes `from` to `offset` of a region. It is done before anything that
    /// is asked later; whether it failed is not told.
    pub fn region_post(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Error> {
        let command = Command::RegionWrite;
        let access = RegionAccess {
            offset,
            region,
            count: self.transfer(command, from.len())?,
        };
        self.channel.post(command, &[access.as_bytes(), from])
    }

    /// Does several writes of at most 8 bytes each, (region, offset, data), in
    /// one message, and says how many were done.
    pub fn write_multi(&self, writes: &[(u32, u64, &[u8])]) -> Result<u64, Error> {
        let command = Command::RegionWriteMulti;
        if !self.limits().write_multiple {
            return Err(Error::NotNegotiated { command });
        }
        let count = writes.len() as u64;
        let mut body = WriteMulti { count }.as_bytes().to_vec();
        for (region, offset, from) in writes {
            let mut data = [0; 8];
            let Some(into) = data.get_mut(..from.len()) else {
                let count = from.len() as u64;
                let limit = 8;
                return Err(Error::TooMuch {
                    command,
                    count,
                    limit,
                });
            };
            into.copy_from_slice(from);
            let write = SmallWrite {
                offset: *offset,
                region: *region,
                count: short(from.len())?,
                data,
            };
            body.extend_from_slice(write.as_bytes());
        }
        self.call(command, &[&body], &[], |reply| {
            let (done, _) = head::<WriteMulti>(command, reply.body)?;
            Ok(done.count.min(count))
        })
    }

    /// Lets the device access `span`: `file` from the offset beside it on, or
    /// this client's [`memory`](crate::ClientOptions::memory).
    pub fn dma_map(
        &self,
        span: Span<Iova>,
        rights: Rights,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<(), Error> {
        let offset = file.map_or(0, |(_, offset)| offset);
        let request = map_request(span, rights, offset)?;
        let files = file.map(|(file, _)| file);
        let command = Command::DmaMap;
        self.call(command, &[request.as_bytes()], files.as_slice(), |_| Ok(()))
    }

    /// Takes back `span`, exactly as it was mapped. When this returns, the
    /// device accesses it no more.
    pub fn dma_unmap(&self, span: Span<Iova>) -> Result<(), Error> {
        let request = unmap_request(span)?;
        let command = Command::DmaUnmap;
        self.call(command, &[request.as_bytes()], &[], |_| Ok(()))
    }

    /// Takes back everything that is mapped.
    pub fn dma_unmap_all(&self) -> Result<(), Error> {
        let request = DmaUnmap {
            argsz: short(size_of::<DmaUnmap>())?,
            flags: UNMAP_ALL,
            ..DmaUnmap::default()
        };
        let command = Command::DmaUnmap;
        self.call(command, &[request.as_bytes()], &[], |_| Ok(()))
    }

    /// Puts the device into its initial state.
    pub fn reset(&self) -> Result<(), Error> {
        self.call(Command::DeviceReset, &[], &[], |_| Ok(()))
    }

    /// Gets, sets or probes feature `index`, with `data` as its argument, and
    /// gives back at most `room` bytes.
    pub fn feature(
        &self,
        index: u16,
        operation: FeatureOperation,
        data: &[u8],
        room: usize,
    ) -> Result<Vec<u8>, Error> {
        let command = Command::DeviceFeature;
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let operation = match operation {
            FeatureOperation::Get => FEATURE_GET,
            FeatureOperation::Set => FEATURE_SET,
            FeatureOperation::Probe { get, set } => {
                FEATURE_PROBE | flag(get, FEATURE_GET) | flag(set, FEATURE_SET)
            }
        };
        let room = room.max(data.len());
        let request = Feature {
            argsz: short(size_of::<Feature>().saturating_add(room))?,
            flags: u32::from(index) | operation,
        };
        self.call(command, &[request.as_bytes(), data], &[], |reply| {
            let (_, data) = head::<Feature>(command, reply.body)?;
            if data.len() > room {
                return Err(wrong(command, "it is longer than its room"));
            }
            Ok(data.to_vec())
        })
    }

    /// Fills `into` with the next bytes of the device's state; fewer than it
    /// holds mean that there are no more.
    pub fn migration_read(&self, into: &mut [u8]) -> Result<usize, Error> {
        let command = Command::MigDataRead;
        let size = self.transfer(command, into.len())?;
        let request = MigData {
            argsz: short(size_of::<MigData>().saturating_add(into.len()))?,
            size,
        };
        self.call(command, &[request.as_bytes()], &[], |reply| {
            let (answer, data) = head::<MigData>(command, reply.body)?;
            // libvfio-user's replies are as long as what was asked for.
            let size = usize::try_from(answer.size).map_err(|_| Errno::OVERFLOW)?;
            match (into.get_mut(..size), data.get(..size)) {
                (Some(into), Some(data)) => into.copy_from_slice(data),
                _ => return Err(wrong(command, "it has another size")),
            }
            Ok(size)
        })
    }

    /// Gives the device the next bytes of its state.
    pub fn migration_write(&self, from: &[u8]) -> Result<(), Error> {
        let command = Command::MigDataWrite;
        let request = MigData {
            argsz: short(size_of::<MigData>().saturating_add(from.len()))?,
            size: self.transfer(command, from.len())?,
        };
        self.call(command, &[request.as_bytes(), from], &[], |_| Ok(()))
    }
}

fn region(
    command: Command,
    info: &RegionInfo,
    reply: &mut Message<'_>,
) -> Result<RemoteRegion, Error> {
    let mut region = RemoteRegion {
        size: info.size,
        rights: Rights::new(
            info.flags & REGION_READ != 0,
            info.flags & REGION_WRITE != 0,
        ),
        ..RemoteRegion::default()
    };
    if info.flags & REGION_MMAP != 0 {
        region.file = reply.files.pop().map(|file| (file, info.offset));
    }
    let mut next = info.cap_offset;
    // Each step goes up, so the chain ends.
    while info.flags & wire::REGION_CAPS != 0 && next != 0 {
        let at = usize::try_from(next).ok();
        let rest = at.and_then(|at| reply.body.get(at..));
        let rest = rest.ok_or_else(|| wrong(command, "a capability lies outside"))?;
        let (cap, rest) = head::<CapHeader>(command, rest)?;
        match cap.id {
            CAP_SPARSE_MMAP => {
                let (sparse, mut rest) = head::<SparseMmap>(command, rest)?;
                for _ in 0..sparse.areas {
                    let (area, behind) = head::<SparseArea>(command, rest)?;
                    region.areas.push((area.offset, area.size));
                    rest = behind;
                }
            }
            CAP_TYPE => {
                let (kind, _) = head::<RegionType>(command, rest)?;
                region.kind = Some((kind.kind, kind.subtype));
            }
            _ => {}
        }
        if cap.next != 0 && cap.next <= next {
            return Err(wrong(command, "its capabilities go back"));
        }
        next = cap.next;
    }
    Ok(region)
}

/// A sub-region; libvfio-user's have 8 bytes more, in front of what is matched.
fn sub_region(command: Command, bytes: &[u8]) -> Result<SubRegion, Error> {
    let (part, rest) = head::<wire::SubRegion>(command, bytes)?;
    let data = match (part.kind, u64::read_from_prefix(rest)) {
        (IO_FD_EVENT, Ok((datamatch, _))) => datamatch,
        _ => part.data,
    };
    Ok(SubRegion {
        offset: part.offset,
        size: part.size,
        file: part.fd_index,
        kind: match part.kind {
            IO_FD_EVENT => IoKind::Event { datamatch: data },
            wire::IO_FD_REGION => IoKind::Region { user_data: data },
            _ => return Err(wrong(command, "a part is of no known kind")),
        },
        flags: part.flags,
    })
}
