//! Page tables: what HWPT_ALLOC makes, or an attach by itself. All page tables
//! of an IOAS show the same mappings. Linux
//! `drivers/iommu/iommufd/hw_pagetable.c`.

use std::sync::Arc;

use iogate_dma::{DirtyLog, Translate};

use super::Context;
use super::dirty::TrackedSpace;
use super::objects::Object;
use super::unit::Unit;
use crate::iommufd::Failure;
use crate::{Error, ErrorKind, FileId, Host, Ioas, Retired, SpaceId};

/// A paging page table.
pub(crate) struct Hwpt {
    /// The IOAS whose mappings it shows.
    pub(crate) ioas: u32,
    /// The unit that it was made for.
    pub(crate) unit: Arc<Unit>,
    /// Made by an attach, gone with the last detach.
    pub(crate) is_auto: bool,
    /// Whether accesses through it snoop caches whatever they ask for: fixed
    /// when it is made. Linux `iommufd_hwpt_paging_alloc`.
    pub(crate) enforces_coherency: bool,
    /// Made with IOMMU_HWPT_ALLOC_PASID.
    pub(crate) takes_pasids: bool,
    /// Made with IOMMU_HWPT_ALLOC_DIRTY_TRACKING.
    pub(crate) dirty: Option<Arc<DirtyLog>>,
    /// Made with IOMMU_HWPT_FAULT_ID_VALID: the queue of its devices' page
    /// requests.
    pub(crate) fault_queue: Option<u32>,
}

impl Hwpt {
    /// Whether devices behind `unit` can use it: EINVAL for one of another
    /// kind, ENODEV for devices that do not ask for pages if the page table
    /// wants that. Linux `intel_iommu_enable_iopf`.
    pub(crate) fn check_unit(&self, unit: &Unit) -> Result<(), Error> {
        let fits = unit.reaches(&self.unit)
            && (unit.iommu.coherent || !self.enforces_coherency)
            && (unit.features.tracks_dirty || self.dirty.is_none());
        match (fits, self.fault_queue) {
            (false, _) => Err(Error::invalid("the page table is for another IOMMU")),
            (true, Some(_)) if !unit.features.asks_for_pages => Err(Error::new(
                ErrorKind::NoDevice,
                "the device does not ask for pages",
            )),
            (true, _) => Ok(()),
        }
    }

    /// How its devices see `space`, the IOAS that it shows.
    pub(super) fn view(&self, space: &Arc<Ioas>) -> (SpaceId, Arc<dyn Translate>) {
        let (id, space) = (space.id(), Arc::clone(space));
        match &self.dirty {
            None => (id, space),
            Some(log) => (id, Arc::new(TrackedSpace::new(space, Arc::clone(log)))),
        }
    }
}

/// What a page table is made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HwptRequest {
    /// The device that it is for.
    pub device: u32,
    /// The IOAS whose mappings it shows.
    pub parent: u32,
    /// Flags of `enum iommufd_hwpt_alloc_flags`.
    pub flags: u32,
    /// The kind of description that the caller gave, 0 for none: `enum
    /// iommu_hwpt_data_type`.
    pub data_kind: u32,
    /// Bytes of the description.
    pub data_length: u32,
    /// With IOMMU_HWPT_FAULT_ID_VALID, the queue of its devices' page requests.
    pub fault_queue: u32,
}

impl HwptRequest {
    /// The bytes of the description, if `unit` makes something of it: EINVAL
    /// for a wrong number of them; EFAULT. Linux
    /// `iommu_copy_struct_from_user`.
    fn description(
        &self,
        unit: &Unit,
        read: impl FnOnce(&mut [u8]) -> Result<(), Error>,
    ) -> Result<Vec<u8>, Error> {
        let Some(describe) = unit.describe.filter(|_| self.data_kind != 0) else {
            return Ok(Vec::new());
        };
        let (least, most) = describe.length;
        let length = usize::try_from(self.data_length).ok();
        let length = length.filter(|_| (least..=most).contains(&self.data_length));
        let length = length.ok_or(Error::invalid("the description has another length"))?;
        let mut bytes = vec![0; length];
        read(&mut bytes)?;
        Ok(bytes)
    }
}

/// `enum iommufd_hwpt_alloc_flags`.
mod flag {
    pub(super) const NEST_PARENT: u32 = 1;
    pub(super) const DIRTY_TRACKING: u32 = 2;
    pub(super) const FAULT: u32 = 4;
    pub(super) const PASID: u32 = 8;
}

impl Host {
    /// IOMMU_HWPT_ALLOC. `read` fills in the bytes of the description: EFAULT.
    /// ENOENT without the device or the fault queue; EINVAL
    /// for a parent that is none; EOPNOTSUPP for what the unit cannot: most
    /// flags, and tables of the caller's own; EADDRINUSE if a mapping lies
    /// outside what the unit reaches, EFAULT if the memory of one is absent.
    /// Linux `iommufd_hwpt_alloc`, `iommufd_hwpt_paging_alloc`.
    pub fn hwpt_alloc(
        &self,
        file: FileId,
        request: HwptRequest,
        read: impl FnOnce(&mut [u8]) -> Result<(), Error>,
    ) -> Result<u32, Failure> {
        let mut state = self.lock();
        let state = &mut *state;
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let device = context.objects.device(request.device)?.clone();
        let features = device.unit.features;
        let known = [
            (flag::NEST_PARENT, features.nests),
            (flag::DIRTY_TRACKING, features.tracks_dirty),
            (flag::PASID, features.takes_pasids),
        ];
        let known = known.iter().filter(|(_, has)| *has);
        let known = known.fold(flag::FAULT, |flags, (flag, _)| flags | flag);
        // Whose pages are asked for cannot be told below another table.
        let is_both = request.flags & flag::FAULT != 0 && request.flags & flag::NEST_PARENT != 0;
        match context.objects.any(request.parent) {
            Ok(Object::Ioas(_))
                if request.flags & !known == 0
                    && !is_both
                    && [0, features.data_kind].contains(&request.data_kind) => {}
            Ok(Object::Ioas(_) | Object::Hwpt(_)) => return Err(UNSUPPORTED.into()),
            Ok(_) | Err(_) => {
                return Err(Error::invalid("a page table cannot be made from this object").into());
            }
        }
        let described = request.description(&device.unit, read)?;
        let unit = device.unit.table(&described)?;
        let id = context.new_hwpt(self, &mut state.private, request.parent, unit, false)?;
        let asks = request.flags & flag::FAULT != 0;
        let fault_queue = asks.then_some(request.fault_queue);
        if let Some(queue) = fault_queue
            && let Err(error) = context.objects.fault_queue(queue)
        {
            let mut failure = Failure::from(error);
            context.drop_hwpt(self, &mut state.private, id, &mut failure.retired);
            return Err(failure);
        }
        let hwpt = context.objects.hwpt_mut(id)?;
        hwpt.fault_queue = fault_queue;
        hwpt.takes_pasids = request.flags & flag::PASID != 0;
        hwpt.dirty = (request.flags & flag::DIRTY_TRACKING != 0)
            .then(|| Arc::new(DirtyLog::new(hwpt.unit.dirty_page())));
        Ok(id)
    }

    /// Whether the page table exists: for the calls that need more of the unit
    /// than it has. ENOENT.
    pub fn hwpt_check(&self, file: FileId, id: u32) -> Result<(), Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        context.objects.hwpt(id).map(drop)
    }

    /// Whether every access through the page table snoops caches. ENOENT.
    pub fn hwpt_enforces_coherency(&self, file: FileId, id: u32) -> Result<bool, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        Ok(context.objects.hwpt(id)?.enforces_coherency)
    }
}

const UNSUPPORTED: Error = Error::new(
    ErrorKind::Unsupported,
    "the IOMMU has no page tables of that kind",
);

impl Context {
    /// A page table that shows the mappings of `ioas`, which are pinned if
    /// they were not.
    pub(super) fn new_hwpt(
        &mut self,
        host: &Host,
        private: &mut crate::private::PrivateMemory,
        ioas: u32,
        unit: Arc<Unit>,
        is_auto: bool,
    ) -> Result<u32, Failure> {
        let hwpt = Hwpt {
            ioas,
            enforces_coherency: unit.iommu.coherent,
            unit: Arc::clone(&unit),
            is_auto,
            takes_pasids: false,
            dirty: None,
            fault_queue: None,
        };
        let id = self.objects.insert(Object::Hwpt(hwpt))?;
        let added = self
            .objects
            .ioas_mut(ioas)
            .map_err(Failure::from)
            .and_then(|ioas| ioas.add_domain(host, private, id, &unit));
        if let Err(failure) = added {
            self.objects.remove(id);
            return Err(failure);
        }
        Ok(id)
    }

    /// Destroys a page table that nobody uses.
    pub(super) fn drop_hwpt(
        &mut self,
        host: &Host,
        private: &mut crate::private::PrivateMemory,
        id: u32,
        retired: &mut Retired,
    ) {
        let Some(Object::Hwpt(hwpt)) = self.objects.remove(id) else {
            return;
        };
        if let Ok(ioas) = self.objects.ioas_mut(hwpt.ioas) {
            ioas.remove_domain(host, private, id, retired);
        }
    }
}
