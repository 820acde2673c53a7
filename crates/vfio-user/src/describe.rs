//! The commands about the device itself: what it is, its interrupts, its
//! features and its state.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::device::{FeatureCall, FeatureOperation, IoKind, IrqAction, IrqData, Region, SetIrqs};
use crate::serve::{Session, head};
use crate::wire::{
    self, CAP_SPARSE_MMAP, CAP_TYPE, CapHeader, DEVICE_PCI, DEVICE_RESET, DeviceInfo, FEATURE_GET,
    FEATURE_MASK, FEATURE_PROBE, FEATURE_SET, Feature, IO_FD_EVENT, IO_FD_REGION, IRQ_ACTION_MASK,
    IRQ_ACTION_TRIGGER, IRQ_ACTION_UNMASK, IRQ_DATA_BOOL, IRQ_DATA_EVENTFD, IRQ_DATA_NONE, IrqInfo,
    MigData, REGION_CAPS, REGION_MMAP, REGION_READ, REGION_WRITE, RegionInfo, RegionIoFds,
    RegionType, SparseArea, SparseMmap, SubRegion,
};

/// Whether an answer of `length` bytes fits what a client has room for.
fn fits(argsz: u32, length: usize) -> bool {
    usize::try_from(argsz).is_ok_and(|argsz| length <= argsz)
}

fn short(length: usize) -> Result<u32, Errno> {
    u32::try_from(length).map_err(|_| Errno::OVERFLOW)
}

/// The capabilities of a region, as they lie behind its information.
fn capabilities(region: &Region<'_>) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    if region.file.is_some() && !region.areas.is_empty() {
        let length = size_of::<CapHeader>()
            .saturating_add(size_of::<SparseMmap>())
            .saturating_add(region.areas.len().saturating_mul(size_of::<SparseArea>()));
        let next = if region.kind.is_some() {
            short(size_of::<RegionInfo>().saturating_add(length))?
        } else {
            0
        };
        let cap = CapHeader {
            id: CAP_SPARSE_MMAP,
            version: 1,
            next,
        };
        bytes.extend_from_slice(cap.as_bytes());
        let sparse = SparseMmap {
            areas: short(region.areas.len())?,
            reserved: 0,
        };
        bytes.extend_from_slice(sparse.as_bytes());
        for (offset, size) in &region.areas {
            let area = SparseArea {
                offset: *offset,
                size: *size,
            };
            bytes.extend_from_slice(area.as_bytes());
        }
    }
    if let Some((kind, subtype)) = region.kind {
        let cap = CapHeader {
            id: CAP_TYPE,
            version: 1,
            next: 0,
        };
        bytes.extend_from_slice(cap.as_bytes());
        bytes.extend_from_slice(RegionType { kind, subtype }.as_bytes());
    }
    Ok(bytes)
}

impl Session<'_> {
    pub(crate) fn device_info(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (request, _) = head::<DeviceInfo>(body)?;
        if !fits(request.argsz, size_of::<DeviceInfo>()) {
            return Err(Errno::INVAL);
        }
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let info = DeviceInfo {
            argsz: short(size_of::<DeviceInfo>())?,
            flags: flag(self.info.reset, DEVICE_RESET) | flag(self.info.pci, DEVICE_PCI),
            regions: self.info.regions,
            irqs: self.info.irqs,
        };
        self.reply.extend_from_slice(info.as_bytes());
        Ok(())
    }

    /// With too little room for the capabilities the reply has only the rest,
    /// no descriptor, and says how much room it takes.
    pub(crate) fn region_info(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (request, _) = head::<RegionInfo>(body)?;
        if !fits(request.argsz, size_of::<RegionInfo>()) || request.index >= self.info.regions {
            return Err(Errno::INVAL);
        }
        let region = self.device.region(request.index)?;
        let caps = capabilities(&region)?;
        let whole = size_of::<RegionInfo>().saturating_add(caps.len());
        let all = fits(request.argsz, whole);
        let mut info = RegionInfo {
            argsz: short(whole)?,
            index: request.index,
            size: region.size,
            ..RegionInfo::default()
        };
        if region.rights.can_read() {
            info.flags |= REGION_READ;
        }
        if region.rights.can_write() {
            info.flags |= REGION_WRITE;
        }
        if let Some((file, offset)) = region.file {
            info.flags |= REGION_MMAP;
            info.offset = offset;
            if all {
                let file = file.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
                self.reply_files.push(file);
            }
        }
        if !caps.is_empty() {
            info.flags |= REGION_CAPS;
            if all {
                info.cap_offset = short(size_of::<RegionInfo>())?;
            }
        }
        self.reply.extend_from_slice(info.as_bytes());
        if all {
            self.reply.extend_from_slice(&caps);
        }
        Ok(())
    }

    pub(crate) fn region_io(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (request, _) = head::<RegionIoFds>(body)?;
        if !fits(request.argsz, size_of::<RegionIoFds>())
            || request.flags != 0
            || request.count != 0
            || request.index >= self.info.regions
        {
            return Err(Errno::INVAL);
        }
        let io = self.device.region_io(request.index)?;
        let most = usize::try_from(self.peer.limits().max_msg_fds).unwrap_or(usize::MAX);
        if io.files.len() > most {
            return Err(Errno::TOOBIG);
        }
        let whole = size_of::<RegionIoFds>()
            .saturating_add(io.parts.len().saturating_mul(size_of::<SubRegion>()));
        let info = RegionIoFds {
            argsz: short(whole)?,
            flags: 0,
            index: request.index,
            count: short(io.parts.len())?,
        };
        self.reply.extend_from_slice(info.as_bytes());
        if !fits(request.argsz, whole) {
            return Ok(());
        }
        for part in &io.parts {
            let (kind, data) = match part.kind {
                IoKind::Event { datamatch } => (IO_FD_EVENT, datamatch),
                IoKind::Region { user_data } => (IO_FD_REGION, user_data),
            };
            let part = SubRegion {
                offset: part.offset,
                size: part.size,
                fd_index: part.file,
                kind,
                flags: part.flags,
                padding: 0,
                data,
            };
            self.reply.extend_from_slice(part.as_bytes());
        }
        for file in io.files {
            let file = file.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
            self.reply_files.push(file);
        }
        Ok(())
    }

    pub(crate) fn irq_info(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (request, _) = head::<IrqInfo>(body)?;
        if !fits(request.argsz, size_of::<IrqInfo>()) || request.index >= self.info.irqs {
            return Err(Errno::INVAL);
        }
        let irq = self.device.irq(request.index)?;
        let info = IrqInfo {
            argsz: short(size_of::<IrqInfo>())?,
            flags: irq.flags,
            index: request.index,
            count: irq.count,
        };
        self.reply.extend_from_slice(info.as_bytes());
        Ok(())
    }

    /// The checks are those of `vfio_set_irqs_validate_and_prepare`
    /// (drivers/vfio/vfio_main.c), with descriptors beside the message.
    pub(crate) fn set_irqs(&mut self, body: &[u8], files: Vec<OwnedFd>) -> Result<(), Errno> {
        let (set, data) = head::<wire::SetIrqs>(body)?;
        if set.index >= self.info.irqs || !fits(set.argsz, size_of::<wire::SetIrqs>()) {
            return Err(Errno::INVAL);
        }
        let action = match set.flags & !(IRQ_DATA_NONE | IRQ_DATA_BOOL | IRQ_DATA_EVENTFD) {
            IRQ_ACTION_MASK => IrqAction::Mask,
            IRQ_ACTION_UNMASK => IrqAction::Unmask,
            IRQ_ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(Errno::INVAL),
        };
        let known = self.device.irq(set.index)?.count;
        let end = set.start.checked_add(set.count).ok_or(Errno::INVAL)?;
        if set.start >= known || end > known {
            return Err(Errno::INVAL);
        }
        let count = usize::try_from(set.count).map_err(|_| Errno::INVAL)?;
        let kind = set.flags & (IRQ_DATA_NONE | IRQ_DATA_BOOL | IRQ_DATA_EVENTFD);
        if kind != IRQ_DATA_EVENTFD && !files.is_empty() {
            return Err(Errno::INVAL);
        }
        let data = match kind {
            IRQ_DATA_NONE => IrqData::None,
            IRQ_DATA_BOOL if count > 0 => IrqData::Bool(data.get(..count).ok_or(Errno::INVAL)?),
            IRQ_DATA_EVENTFD if count > 0 && (files.is_empty() || files.len() == count) => {
                IrqData::Eventfds(files)
            }
            _ => return Err(Errno::INVAL),
        };
        let set = SetIrqs {
            index: set.index,
            start: set.start,
            count: set.count,
            action,
            data,
        };
        self.device.set_irqs(self.peer, set)
    }

    pub(crate) fn reset(&mut self, body: &[u8]) -> Result<(), Errno> {
        if !self.info.reset || !body.is_empty() {
            return Err(Errno::INVAL);
        }
        self.device.reset(self.peer)
    }

    /// The checks are those of `vfio_ioctl_device_feature` and
    /// `vfio_check_feature` (drivers/vfio/vfio_main.c, include/linux/vfio.h).
    pub(crate) fn feature(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (request, data) = head::<Feature>(body)?;
        let head = size_of::<Feature>();
        let room = usize::try_from(request.argsz)
            .ok()
            .and_then(|argsz| argsz.checked_sub(head))
            .ok_or(Errno::INVAL)?;
        let room = room.min(self.transfer(u64::from(self.limits.max_data_xfer_size))?);
        let (get, set) = (
            request.flags & FEATURE_GET != 0,
            request.flags & FEATURE_SET != 0,
        );
        let probe = request.flags & FEATURE_PROBE != 0;
        let known = FEATURE_MASK | FEATURE_GET | FEATURE_SET | FEATURE_PROBE;
        if request.flags & !known != 0 {
            return Err(Errno::INVAL);
        }
        let operation = match (probe, get, set) {
            (true, get, set) => FeatureOperation::Probe { get, set },
            (false, true, false) => FeatureOperation::Get,
            (false, false, true) => FeatureOperation::Set,
            _ => return Err(Errno::INVAL),
        };
        let call = FeatureCall {
            index: u16::try_from(request.flags & FEATURE_MASK).map_err(|_| Errno::INVAL)?,
            operation,
            data,
            room,
        };
        let mut answer = Vec::new();
        self.device.feature(self.peer, call, &mut answer)?;
        let answer = match operation {
            FeatureOperation::Probe { .. } => data,
            FeatureOperation::Set if answer.is_empty() => data,
            _ => answer.as_slice(),
        };
        if operation == FeatureOperation::Get && answer.len() > room {
            return Err(Errno::INVAL);
        }
        let reply = Feature {
            argsz: short(head.saturating_add(answer.len()))?,
            flags: request.flags,
        };
        self.reply.extend_from_slice(reply.as_bytes());
        self.reply.extend_from_slice(answer);
        Ok(())
    }

    pub(crate) fn migration_read(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (request, rest) = head::<MigData>(body)?;
        let size = self.transfer(request.size.into())?;
        let head = size_of::<MigData>();
        if !rest.is_empty() || !fits(request.argsz, size.saturating_add(head)) {
            return Err(Errno::INVAL);
        }
        self.reply.resize(head.saturating_add(size), 0);
        let into = self.reply.get_mut(head..).unwrap_or_default();
        let read = self.device.migration_read(into)?.min(size);
        let whole = head.saturating_add(read);
        self.reply.truncate(whole);
        let answer = MigData {
            argsz: short(whole)?,
            size: short(read)?,
        };
        if let Some(at) = self.reply.get_mut(..head) {
            at.copy_from_slice(answer.as_bytes());
        }
        Ok(())
    }

    pub(crate) fn migration_write(&mut self, body: &[u8]) -> Result<(), Errno> {
        let (request, data) = head::<MigData>(body)?;
        if data.len() != self.transfer(request.size.into())? {
            return Err(Errno::INVAL);
        }
        self.device.migration_write(data)
    }
}
