//! The host: what is open, and the one lock of the object model.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use iogate_dma::{Span, Translate};

use crate::bars::Bars;
use crate::cdev::Binding;
use crate::container::Container;
use crate::iommufd::{Buffer, CompatDevice, Context, Extension, OpenQueue};
use crate::kvm::Machines;
use crate::ledger::{Charge, Ledger, Payer};
use crate::no_iommu::{PhysicalMemory, check_raw_io};
use crate::private::{Piece, PrivateMemory};
use crate::slot::Slot;
use crate::sriov::SrIov;
use crate::{
    Actor, Caller, Device, Direction, Error, ErrorKind, FileId, Group, HostConfig, Interpose, Ioas,
    Memlock, MemlockMode, Presence, Retired, SpaceId,
};

/// What can be opened by name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Node {
    /// `/dev/vfio/vfio`.
    Container,
    /// `/dev/vfio/N`, by N.
    Group(u32),
    /// `/dev/vfio/devices/vfioN`, by index of the device.
    Device(usize),
    /// `/dev/iommu`.
    Iommufd,
}

/// What an open file is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileKind {
    /// A container.
    Container,
    /// A group, by number.
    Group(u32),
    /// A device, by index.
    Device(usize),
    /// An iommufd.
    Iommufd,
    /// An access of software to an IOAS.
    Access,
    /// A buffer of a device's own memory.
    Buffer,
    /// The data of a device's migration.
    Migration {
        /// Its index.
        device: usize,
        /// Which way the data flows.
        direction: Direction,
    },
    /// Page requests of devices.
    FaultQueue,
    /// A group that is there no more.
    Revoked,
}

/// How a device file came to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// By GROUP_GET_DEVICE_FD.
    Group,
    /// By its own node.
    Cdev,
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File {
    pub(crate) kind: FileKind,
    /// For device files.
    pub(crate) path: Path,
    /// Whether a device file gives access yet: one of its own node does once
    /// it is bound.
    pub(crate) usable: bool,
}

/// Everything that the one lock protects.
pub(crate) struct State {
    pub(crate) groups: BTreeMap<u32, Group>,
    pub(crate) containers: BTreeMap<FileId, Container>,
    pub(crate) iommufds: BTreeMap<FileId, Context>,
    /// Files of devices' own nodes that are bound, and to what.
    pub(crate) bindings: BTreeMap<FileId, Binding>,
    /// Devices that are open by way of a group whose container is an iommufd.
    pub(crate) compat_devices: BTreeMap<usize, CompatDevice>,
    /// Files of accesses: the iommufd and the number there.
    pub(crate) accesses: BTreeMap<FileId, (FileId, u32)>,
    pub(crate) buffers: BTreeMap<FileId, Buffer>,
    pub(crate) fault_queues: BTreeMap<FileId, OpenQueue>,
    /// Virtual machines that were told of files.
    pub(crate) machines: Machines,
    pub(crate) private: PrivateMemory,
    /// Physical functions, by index.
    pub(crate) sr_iov: BTreeMap<usize, SrIov>,
    /// Every address space there is.
    pub(crate) spaces: BTreeMap<SpaceId, Arc<Ioas>>,
    next_space: u64,
    bars: Arc<Bars>,
    /// Pinned bytes, while RLIMIT_MEMLOCK is enforced.
    pub(crate) ledger: Arc<Ledger>,
}

/// The kernel's object model of one machine. Methods may be called from any
/// thread; region accesses of different devices do not wait for each other.
pub struct Host {
    pub(crate) config: HostConfig,
    interposer: Option<Arc<dyn Interpose>>,
    pub(crate) slots: Arc<[Slot]>,
    bars: Arc<Bars>,
    /// Whether a part of a BAR was ever given out as a buffer.
    pub(crate) exports: AtomicBool,
    files: RwLock<BTreeMap<FileId, File>>,
    next_file: AtomicU64,
    extension: OnceLock<Arc<dyn Extension>>,
    state: Mutex<State>,
}

impl Host {
    /// A host on which nothing is open.
    pub fn new(config: HostConfig) -> Arc<Self> {
        Self::interposed(config, None)
    }

    /// As [`new`](Self::new); `interposer` is asked before calls are run.
    pub fn interposed(config: HostConfig, interposer: Option<Arc<dyn Interpose>>) -> Arc<Self> {
        let mut groups: BTreeMap<u32, Group> = config
            .groups
            .iter()
            .map(|group| (group.number, Group::new(group.number, group.viable)))
            .collect();
        for device in &config.devices {
            let group = groups.entry(device.group);
            let group = group.or_insert_with(|| Group::new(device.group, true));
            group.members.push(device.index);
        }
        for device in config.devices.iter().filter(|one| one.has_no_iommu()) {
            device.attachment.set(Some(Arc::new(PhysicalMemory)));
        }
        let slots: Arc<[Slot]> = config.devices.iter().map(Slot::new).collect();
        let bars = Arc::new(Bars::new(Arc::clone(&slots)));
        Arc::new(Self {
            slots,
            bars: Arc::clone(&bars),
            exports: AtomicBool::new(false),
            files: RwLock::default(),
            next_file: AtomicU64::new(1),
            extension: OnceLock::new(),
            state: Mutex::new(State {
                groups,
                containers: BTreeMap::new(),
                iommufds: BTreeMap::new(),
                bindings: BTreeMap::new(),
                compat_devices: BTreeMap::new(),
                accesses: BTreeMap::new(),
                buffers: BTreeMap::new(),
                fault_queues: BTreeMap::new(),
                machines: Machines::default(),
                private: PrivateMemory::default(),
                sr_iov: BTreeMap::new(),
                spaces: BTreeMap::new(),
                bars,
                next_space: 1,
                ledger: Arc::default(),
            }),
            config,
            interposer,
        })
    }

    /// Who is asked before calls are run.
    pub fn interposer(&self) -> Option<&dyn Interpose> {
        self.interposer.as_deref()
    }

    /// Has iommufds answer the operations of `extension` too. The first that
    /// is given stays.
    pub fn extend(&self, extension: Arc<dyn Extension>) {
        // One that comes later is dropped, as said above.
        let _ = self.extension.set(extension);
    }

    /// What iommufds answer beyond the usual.
    pub fn extension(&self) -> Option<&Arc<dyn Extension>> {
        self.extension.get()
    }

    /// Whom to tell, by a device's index, that its worker has something to do
    /// because another device wrote a register of it. The first that is given
    /// stays.
    pub fn on_work(&self, kick: impl Fn(usize) + Send + Sync + 'static) {
        self.bars.set_kick(Box::new(kick));
    }

    /// What the host consists of.
    pub fn config(&self) -> &HostConfig {
        &self.config
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device with this index.
    pub fn device(&self, index: usize) -> Result<&Arc<Device>, Error> {
        self.config.devices.get(index).ok_or(NO_DEVICE)
    }

    pub(crate) fn slot(&self, index: usize) -> Result<&Slot, Error> {
        self.slots.get(index).ok_or(NO_DEVICE)
    }

    /// What `file` is; `None` if it is not open.
    pub fn kind(&self, file: FileId) -> Option<FileKind> {
        self.file(file).map(|file| file.kind)
    }

    pub(crate) fn file(&self, file: FileId) -> Option<File> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&file).copied()
    }

    /// The device that a file gives access to: EINVAL for other files and for
    /// one of the device's own node before it is bound. Linux
    /// `drivers/vfio/vfio_main.c`, `vfio_device_fops_unl_ioctl`.
    pub fn device_access(&self, file: FileId) -> Result<usize, Error> {
        match self.file(file) {
            Some(File {
                kind: FileKind::Device(index),
                usable: true,
                ..
            }) => Ok(index),
            _ => Err(Error::invalid("the device is not bound")),
        }
    }

    /// Whether a file was opened by a device's own node.
    pub fn is_cdev(&self, file: FileId) -> bool {
        let file = self.file(file);
        file.is_some_and(|file| matches!(file.kind, FileKind::Device(_)) && file.path == Path::Cdev)
    }

    /// Whether a file is a group.
    pub fn is_group(&self, file: FileId) -> bool {
        matches!(self.kind(file), Some(FileKind::Group(_)))
    }

    /// Enters a file; its number was never used before.
    pub(crate) fn enter(&self, file: File) -> FileId {
        let id = FileId(self.next_file.fetch_add(1, Ordering::Relaxed));
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.insert(id, file);
        id
    }

    /// Makes a device file of its own node give access, or take it back.
    pub(crate) fn set_usable(&self, file: FileId, usable: bool) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get_mut(&file) {
            file.usable = usable;
        }
    }

    /// Makes the file of a group one that is good for nothing.
    pub(crate) fn revoke_file(&self, file: FileId) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get_mut(&file) {
            file.kind = FileKind::Revoked;
        }
    }

    /// Whether a file of the device is open.
    pub(crate) fn is_open(&self, device: usize) -> bool {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let mut files = files.values();
        files.any(|file| file.kind == FileKind::Device(device))
    }

    fn leave(&self, file: FileId) -> Option<File> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.remove(&file)
    }

    /// Opens a node. ENODEV without it; for a group EBUSY while it is open or
    /// a device of it is bound, EPERM for one whose device has no IOMMU without
    /// CAP_SYS_RAWIO.
    pub fn open(&self, node: Node, caller: &dyn Caller) -> Result<FileId, Error> {
        let mut state = self.lock();
        let enter = |kind, usable| {
            self.enter(File {
                kind,
                path: Path::Cdev,
                usable,
            })
        };
        match node {
            Node::Container => {
                let file = enter(FileKind::Container, true);
                let limit = self.config.dma_entry_limit;
                state.containers.insert(file, Container::new(limit));
                Ok(file)
            }
            Node::Group(number) => {
                if !self.group_exists(&mut state, number) {
                    return Err(NO_GROUP);
                }
                let group = state.group(number)?;
                if self.has_no_iommu(group) {
                    check_raw_io(caller)?;
                }
                group.check_open()?;
                let file = enter(FileKind::Group(number), true);
                group.opener = Some(file);
                Ok(file)
            }
            Node::Device(index) => {
                self.device(index)?;
                if self.presence(index) != Presence::Bound {
                    return Err(NO_DEVICE);
                }
                Ok(enter(FileKind::Device(index), false))
            }
            Node::Iommufd => {
                let file = enter(FileKind::Iommufd, true);
                state.iommufds.insert(file, Context::new());
                Ok(file)
            }
        }
    }

    /// Closes a file: its last descriptor and its last mapping are gone.
    pub fn close(&self, file: FileId) -> Retired {
        let mut retired = Retired::default();
        let mut state = self.lock();
        let Some(entry) = self.leave(file) else {
            return retired;
        };
        match (entry.kind, entry.path) {
            (FileKind::Container, _) => self.close_container(&mut state, file),
            (FileKind::Group(number), _) => self.close_group(&mut state, number, &mut retired),
            (FileKind::Device(index), Path::Group) => {
                self.close_device(&mut state, index, &mut retired);
            }
            (FileKind::Device(_), Path::Cdev) => self.close_cdev(&mut state, file, &mut retired),
            (FileKind::Iommufd, _) => self.close_iommufd(&mut state, file, &mut retired),
            (FileKind::Buffer, _) => {
                state.buffers.remove(&file);
            }
            // The transfer goes on until the device leaves its state.
            (FileKind::Migration { .. }, _) => {}
            (FileKind::FaultQueue, _) => self.close_fault_queue(&mut state, file, &mut retired),
            (FileKind::Access, _) => self.close_access(&mut state, file, &mut retired),
            (FileKind::Revoked, _) => {}
        }
        self.kvm_forget(&mut state, file);
        drop(state);
        retired
    }

    /// The client is about to take `first..=last` of the private memory of
    /// `address_space` away: what is mapped of it is dead from now on. The
    /// grace passes before the client proceeds.
    pub fn revoke(
        &self,
        address_space: u64,
        first: u64,
        last: u64,
        by: Option<Actor>,
    ) -> Option<iogate_dma::Grace> {
        let mut state = self.lock();
        let pieces = state.private.overlapping(address_space, first, last);
        for piece in &pieces {
            state.revoke_part(piece, first, last, by);
        }
        drop(state);
        (!pieces.is_empty()).then(|| self.config.gate.grace())
    }

    /// Lets every device of a group make its requests in the space with this
    /// number, by way of `translate`, or in none.
    pub(crate) fn attach(&self, group: &Group, space: Option<(SpaceId, Arc<dyn Translate>)>) {
        for &index in &group.members {
            if let Ok(device) = self.device(index) {
                self.attach_device(device, space.clone());
            }
        }
    }

    /// As [`attach`](Self::attach), for one device.
    pub(crate) fn attach_device(
        &self,
        device: &Device,
        space: Option<(SpaceId, Arc<dyn Translate>)>,
    ) {
        let (id, translate) = space.unzip();
        device.attachment.set(translate);
        self.config.observer.attached(device.source, id);
    }

    /// Whether the group's devices are mediated ones.
    pub(crate) fn is_emulated(&self, group: &Group) -> bool {
        let members = group.members.iter();
        let mut devices = members.filter_map(|index| self.device(*index).ok());
        devices.any(|device| device.is_emulated())
    }
}

impl State {
    /// The group with this number: ENODEV if there is none.
    pub(crate) fn group(&mut self, number: u32) -> Result<&mut Group, Error> {
        self.groups.get_mut(&number).ok_or(NO_GROUP)
    }

    /// A new address space.
    pub(crate) fn new_space(&mut self, config: &HostConfig) -> Arc<Ioas> {
        let id = SpaceId(self.next_space);
        self.next_space = self.next_space.saturating_add(1);
        let space = Arc::new(Ioas::new(id, config, &self.bars));
        self.spaces.insert(id, Arc::clone(&space));
        space
    }

    /// Counts `bytes` of pinned memory of `payer` against the caller's limit,
    /// until the result is dropped: ENOMEM if it has none left.
    pub(crate) fn account(
        &self,
        mode: MemlockMode,
        caller: &dyn Caller,
        payer: Payer,
        bytes: u64,
    ) -> Result<Option<Charge>, Error> {
        if mode == MemlockMode::Off {
            return Ok(None);
        }
        let Memlock::Limit(limit) = caller.memlock() else {
            return Ok(None);
        };
        let charge = self.ledger.charge(payer, limit, bytes);
        let charge = charge.ok_or(Error::new(
            ErrorKind::NoMemory,
            "the mapping exceeds RLIMIT_MEMLOCK",
        ))?;
        Ok(Some(charge))
    }

    fn revoke_part(&mut self, piece: &Piece, first: u64, last: u64, by: Option<Actor>) {
        let piece_last = piece.first.saturating_add(piece.span.last_offset());
        let from = first.max(piece.first).saturating_sub(piece.first);
        let to = last.min(piece_last).saturating_sub(piece.first);
        let part = |from: u64, to: u64| {
            let base = piece.span.first();
            let span = Span::new(base.checked_add(from)?, base.checked_add(to)?)?;
            let first = piece.first.checked_add(from)?;
            Some(Piece {
                first,
                span,
                ..*piece
            })
        };
        if let (Some(gone), Some(space)) = (part(from, to), self.spaces.get(&piece.space)) {
            space.revoke(gone.span, by);
        }
        self.private.remove(*piece);
        let before = from.checked_sub(1).and_then(|to| part(0, to));
        let after = to
            .checked_add(1)
            .and_then(|from| part(from, piece.span.last_offset()));
        for left in before.into_iter().chain(after) {
            self.private.insert(left);
        }
    }
}

const NO_GROUP: Error = Error::new(ErrorKind::NoDevice, "there is no such group");
const NO_DEVICE: Error = Error::new(ErrorKind::NoDevice, "there is no such device");
