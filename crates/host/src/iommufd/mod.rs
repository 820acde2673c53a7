//! `/dev/iommu`: address spaces, page tables and bound devices by number, as
//! `drivers/iommu/iommufd` of Linux keeps them.
//!
//! | call | answered |
//! |---|---|
//! | IOMMU_DESTROY | IOAS and page tables; a bound device is busy |
//! | IOMMU_IOAS_ALLOC, IOAS_IOVA_RANGES, IOAS_ALLOW_IOVAS | whole |
//! | IOMMU_IOAS_MAP, IOAS_UNMAP, IOAS_COPY | whole |
//! | IOMMU_IOAS_MAP_FILE | memory files that can be shared; of DMA buffers parts of BARs and those of an [`Extension`] |
//! | IOMMU_IOAS_CHANGE_PROCESS | whole |
//! | IOMMU_OPTION | RLIMIT_MODE, HUGE_PAGES |
//! | IOMMU_GET_HW_INFO | whole; units of the machine have no data of their own and no ATS |
//! | IOMMU_HWPT_ALLOC | paging tables, with the flags that the unit can: those of the machine dirty tracking and a fault queue at most; else, and nested tables: EOPNOTSUPP |
//! | IOMMU_HWPT_SET_DIRTY_TRACKING, HWPT_GET_DIRTY_BITMAP | whole; EOPNOTSUPP for a page table without dirty tracking |
//! | IOMMU_VFIO_IOAS, the VFIO calls on an iommufd | whole |
//! | VFIO_DEVICE_BIND_IOMMUFD, ATTACH_IOMMUFD_PT, DETACH_IOMMUFD_PT | whole, save PASID 0 (EINVAL) and VF tokens (no device is an SR-IOV function) |
//! | GROUP_SET_CONTAINER with an iommufd | whole |
//! | mediated devices | whole: each is an access |
//! | IOMMU_HWPT_INVALIDATE, VIOMMU_ALLOC, VDEVICE_ALLOC, VEVENTQ_ALLOC, HW_QUEUE_ALLOC | refused: there are no nested tables and no virtual IOMMUs |
//! | IOMMU_FAULT_QUEUE_ALLOC | whole; no device of the machine asks for pages, so none can be attached to a page table with a queue (ENODEV) |
//! | IOMMU_TEST_CMD | where an [`Extension`] answers it |
//!
//! Every unit is taken to be coherent with the processor's caches and to keep
//! interrupts of different devices apart, so no bind fails for want of that
//! (Linux `iommufd_device_bind`: EINVAL, EPERM).

mod access;
mod buffer;
mod compat;
mod device;
mod dirty;
mod extension;
mod fault;
mod follow;
mod hwpt;
mod ioas;
mod map;
mod mediated;
mod nodeless;
mod numbers;
mod objects;
mod pasid;
mod pins;
mod process;
mod shared;
mod unit;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use iogate_dma::Span;

use crate::container::release_all;
use crate::state::State;
use crate::{Caller, Error, ErrorKind, FileId, Host, Pinned, Retired};

pub use access::{AccessMode, AccessPages};
pub(crate) use buffer::Buffer;
pub(crate) use compat::CompatDevice;
pub use compat::{CompatInfo, CompatMap};
pub use device::{Attached, HwInfo};
pub use dirty::DirtyRange;
pub use extension::{Extension, Outcome, Outside};
pub(crate) use fault::OpenQueue;
pub use fault::{FaultGroup, PageAnswer, PageFault, Readiness, Waiting};
pub use follow::GuestSpace;
pub use hwpt::HwptRequest;
pub use map::{Copied, Mapped, Place, Unmapped};
pub use nodeless::Nodeless;
pub use pasid::PasidChange;
pub use shared::RlimitMode;
pub use unit::{Describe, Features, Unit, UnitData};

use device::Link;
use fault::{Handle, User};
use ioas::IoasObject;
use objects::{GroupKey, Object, Objects};
use shared::SharedPages;

/// The processor's page size, in bytes.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// A refusal that leaves something to be waited for.
#[derive(thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// Why.
    pub error: Error,
    /// What was pinned in vain, and may have been seen.
    pub retired: Box<Retired>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let retired = Box::default();
        Self { error, retired }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

/// An open iommufd. It lives until its file is closed and no device is bound.
pub(crate) struct Context {
    is_open: bool,
    objects: Objects,
    /// Groups that have a page table, by number.
    links: BTreeMap<GroupKey, Link>,
    /// Page tables by device and PASID.
    pasids: BTreeMap<(u32, u32), u32>,
    /// Uses of page tables that have a fault queue.
    handles: BTreeMap<User, Arc<Handle>>,
    /// The IOAS that VFIO calls are about.
    compat: Option<u32>,
    /// It is the container of devices without IOMMU.
    is_without_iommu: bool,
    rlimit_mode: RlimitMode,
    /// What mappings name, to find who pays.
    pages: Vec<Weak<SharedPages>>,
}

impl Context {
    pub(crate) const NONE: Error = Error::invalid("the iommufd is not open");

    pub(crate) fn new() -> Self {
        Self {
            is_open: true,
            objects: Objects::default(),
            links: BTreeMap::new(),
            pasids: BTreeMap::new(),
            handles: BTreeMap::new(),
            compat: None,
            is_without_iommu: false,
            rlimit_mode: RlimitMode::default(),
            pages: Vec::new(),
        }
    }
}

/// What may be mapped in an IOAS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IovaRanges {
    /// Everything that nobody reserves, ascending.
    pub spans: Vec<Span>,
    /// What addresses and lengths must be multiples of.
    pub alignment: u64,
}

impl Host {
    /// IOMMU_DESTROY. ENOENT without the object; EBUSY if it is used. Linux
    /// `iommufd_object_remove`.
    pub fn iommufd_destroy(&self, file: FileId, id: u32) -> Result<Retired, Error> {
        const BUSY: Error = Error::new(ErrorKind::Busy, "the object is in use");
        let mut state = self.lock();
        let state = &mut *state;
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let mut retired = Retired::default();
        match context.objects.any(id)? {
            Object::Device(_) | Object::Access(_) => return Err(BUSY),
            Object::Nodeless(device) => {
                let device = *device;
                context.objects.remove(id);
                self.unbind(state, file, device, &mut retired);
            }
            Object::Ioas(ioas) if ioas.is_used() => return Err(BUSY),
            Object::Ioas(ioas) => {
                let space = ioas.space.clone();
                context.objects.remove(id);
                context.compat = context.compat.filter(|compat| *compat != id);
                release_all(state, &space, &mut retired);
            }
            Object::FaultQueue(_) if context.uses_fault_queue(id) => return Err(BUSY),
            Object::FaultQueue(queue) => {
                queue.queue.destroy();
                context.objects.remove(id);
            }
            Object::Hwpt(_) if context.uses_hwpt(id) => return Err(BUSY),
            Object::Hwpt(_) => context.drop_hwpt(self, &mut state.private, id, &mut retired),
        }
        Ok(retired)
    }

    /// IOMMU_IOAS_ALLOC. ENOMEM. Linux `iommufd_ioas_alloc`.
    pub fn ioas_alloc(&self, file: FileId) -> Result<u32, Error> {
        self.new_ioas(&mut self.lock(), file)
    }

    fn new_ioas(&self, state: &mut State, file: FileId) -> Result<u32, Error> {
        let space = state.new_space(&self.config);
        let id = space.id();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE);
        let object = Object::Ioas(IoasObject::new(space));
        let entered = context.and_then(|context| context.objects.insert(object));
        entered.inspect_err(|_| {
            state.spaces.remove(&id);
        })
    }

    /// Whether the IOAS exists: ENOENT.
    pub fn ioas_check(&self, file: FileId, ioas: u32) -> Result<(), Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        context.objects.ioas(ioas).map(drop)
    }

    /// IOMMU_IOAS_IOVA_RANGES. ENOENT. Linux `iommufd_ioas_iova_ranges`.
    pub fn ioas_iova_ranges(&self, file: FileId, ioas: u32) -> Result<IovaRanges, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let ioas = context.objects.ioas(ioas)?;
        Ok(IovaRanges {
            spans: ioas.space.space().usable(),
            alignment: ioas.alignment,
        })
    }

    /// IOMMU_IOAS_ALLOW_IOVAS: replaces the list. ENOENT; EINVAL if two of
    /// them overlap; EADDRINUSE if one is reserved. Linux
    /// `iommufd_ioas_load_iovas`, `iopt_set_allow_iova`.
    pub fn ioas_allow_iovas(&self, file: FileId, ioas: u32, allowed: &[Span]) -> Result<(), Error> {
        use iogate_space::AllowError::{Reserved, SelfOverlap};
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let space = context.objects.ioas(ioas)?.space.space();
        space.set_allowed(allowed).map_err(|error| match error {
            SelfOverlap => Error::invalid("the allowed ranges overlap each other"),
            Reserved(_) => Error::new(ErrorKind::AddressInUse, "an allowed range is reserved"),
        })
    }

    /// IOMMU_OPTION_HUGE_PAGES, read. ENOENT.
    pub fn ioas_huge_pages(&self, file: FileId, ioas: u32) -> Result<bool, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        Ok(context.objects.ioas(ioas)?.huge_pages)
    }

    /// IOMMU_OPTION_HUGE_PAGES, set. ENOENT; EINVAL to turn them off while
    /// mappings are in use; EADDRINUSE if a mapping is not of whole pages.
    /// Linux `iommufd_ioas_option_huge_pages`.
    pub fn set_ioas_huge_pages(&self, file: FileId, ioas: u32, on: bool) -> Result<(), Error> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        context.objects.ioas_mut(ioas)?.set_huge_pages(on)
    }

    /// IOMMU_OPTION_RLIMIT_MODE, read.
    pub fn rlimit_mode(&self, file: FileId) -> Result<RlimitMode, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        Ok(context.rlimit_mode)
    }

    /// IOMMU_OPTION_RLIMIT_MODE, set: EPERM without CAP_SYS_RESOURCE, EBUSY if
    /// there is any object; `None` is a mode that does not exist, EINVAL. Linux
    /// `iommufd_option_rlimit_mode`.
    pub fn set_rlimit_mode(
        &self,
        file: FileId,
        mode: Option<RlimitMode>,
        caller: &dyn Caller,
    ) -> Result<(), Error> {
        if !caller.has_sys_resource() {
            return Err(Error::new(
                ErrorKind::NotPermitted,
                "the accounting mode needs CAP_SYS_RESOURCE",
            ));
        }
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        if !context.objects.is_empty() {
            return Err(Error::new(
                ErrorKind::Busy,
                "the accounting mode is fixed once there are objects",
            ));
        }
        context.rlimit_mode = mode.ok_or(Error::invalid("unknown accounting mode"))?;
        Ok(())
    }

    /// Pages that left devices' reach: to be dropped after a grace.
    pub(crate) fn retire(&self, pages: Vec<Box<dyn Pinned>>) -> Retired {
        Retired {
            grace: (!pages.is_empty()).then(|| self.config.gate.grace()),
            pages,
            ..Retired::default()
        }
    }

    /// The last descriptor of an iommufd went; bound devices keep it alive.
    /// Linux `iommufd_fops_release`.
    pub(crate) fn close_iommufd(&self, state: &mut State, file: FileId, retired: &mut Retired) {
        if let Some(context) = state.iommufds.get_mut(&file) {
            context.is_open = false;
        }
        self.forget_iommufd(state, file, retired);
    }

    /// An iommufd goes when its file is closed, no device of the machine is
    /// bound, no access and no fault queue open and it is no group's container.
    pub(crate) fn forget_iommufd(&self, state: &mut State, file: FileId, retired: &mut Retired) {
        let mut groups = state.groups.values();
        let is_container = groups.any(|group| group.container == Some(file));
        let lives =
            |context: &Context| context.is_open || is_container || context.objects.are_held();
        if state.iommufds.get(&file).is_none_or(lives) {
            return;
        }
        let Some(context) = state.iommufds.remove(&file) else {
            return;
        };
        for object in context.objects.into_values() {
            match object {
                Object::Ioas(ioas) => {
                    let mut freed = Retired::default();
                    release_all(state, &ioas.space, &mut freed);
                    retired.merge(freed);
                }
                Object::FaultQueue(queue) => queue.queue.destroy(),
                _ => {}
            }
        }
        if !retired.pages.is_empty() {
            retired.grace = Some(self.config.gate.grace());
        }
    }
}
