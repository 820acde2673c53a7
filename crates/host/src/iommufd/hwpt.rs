//! Page tables: what HWPT_ALLOC makes, or an attach by itself. All page tables
//! of an IOAS show the same mappings. Linux
//! `drivers/iommu/iommufd/hw_pagetable.c`.

use std::sync::Arc;

use super::Context;
use super::objects::Object;
use crate::iommufd::{Failure, PAGE_SIZE};
use crate::{Error, ErrorKind, FileId, Host, Iommu, Retired};

/// A paging page table.
pub(crate) struct Hwpt {
    /// The IOAS whose mappings it shows.
    pub(crate) ioas: u32,
    /// The unit that it was made for.
    pub(crate) iommu: Arc<Iommu>,
    /// Made by an attach, gone with the last detach.
    pub(crate) is_auto: bool,
    /// Whether accesses through it snoop caches whatever they ask for: fixed
    /// when it is made. Linux `iommufd_hwpt_paging_alloc`.
    pub(crate) enforces_coherency: bool,
}

impl Hwpt {
    /// Whether devices behind `iommu` can use it.
    pub(crate) fn accepts(&self, iommu: &Iommu) -> bool {
        let same_reach = iommu.aperture_last >= self.iommu.aperture_last;
        let same_sizes = self.iommu.page_sizes & !iommu.page_sizes == 0;
        same_reach && same_sizes && (iommu.coherent || !self.enforces_coherency)
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
    /// Whether the caller described a table of his own.
    pub has_data: bool,
}

impl Host {
    /// IOMMU_HWPT_ALLOC. ENOENT without the device; EINVAL for a parent that
    /// is none; EOPNOTSUPP for what the unit cannot: any flag, and tables of
    /// the caller's own; EADDRINUSE if a mapping lies outside what the unit
    /// reaches, EFAULT if the memory of one is absent. Linux
    /// `iommufd_hwpt_alloc`, `iommufd_hwpt_paging_alloc`.
    pub fn hwpt_alloc(&self, file: FileId, request: HwptRequest) -> Result<u32, Failure> {
        let mut state = self.lock();
        let state = &mut *state;
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let device = context.objects.device(request.device)?;
        match context.objects.any(request.parent) {
            Ok(Object::Ioas(_)) if request.flags == 0 && !request.has_data => {}
            Ok(Object::Ioas(_)) => return Err(UNSUPPORTED.into()),
            Ok(Object::Hwpt(_)) => return Err(UNSUPPORTED.into()),
            Ok(Object::Device(_)) | Err(_) => {
                return Err(Error::invalid("a page table cannot be made from this object").into());
            }
        }
        let iommu = Arc::clone(&self.device(device.index)?.iommu);
        context.new_hwpt(self, &mut state.private, request.parent, iommu, false)
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
    "the IOMMU has only plain page tables: no nesting, dirty tracking, faults or PASID",
);

impl Context {
    /// A page table that shows the mappings of `ioas`, which are pinned if
    /// they were not.
    pub(super) fn new_hwpt(
        &mut self,
        host: &Host,
        private: &mut crate::private::PrivateMemory,
        ioas: u32,
        iommu: Arc<Iommu>,
        is_auto: bool,
    ) -> Result<u32, Failure> {
        let hwpt = Hwpt {
            ioas,
            enforces_coherency: iommu.coherent,
            iommu: Arc::clone(&iommu),
            is_auto,
        };
        let id = self.objects.insert(Object::Hwpt(hwpt))?;
        let added = self
            .objects
            .ioas_mut(ioas)
            .map_err(Failure::from)
            .and_then(|ioas| ioas.add_domain(host, private, id, &iommu));
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
        let granule = |id: &u32| self.objects.hwpt(*id).map(|hwpt| granule(&hwpt.iommu));
        let ids = self
            .objects
            .ioas(hwpt.ioas)
            .map(|ioas| ioas.domains.clone());
        let granules = ids.iter().flatten().filter_map(|id| granule(id).ok());
        let coarsest = granules.max().unwrap_or(1);
        if let Ok(ioas) = self.objects.ioas_mut(hwpt.ioas) {
            ioas.remove_domain(host, private, id, coarsest, retired);
        }
    }
}

/// The smallest page of a unit, in bytes.
pub(super) fn granule(iommu: &Iommu) -> u64 {
    match iommu.page_sizes {
        0 => PAGE_SIZE,
        sizes => sizes & sizes.wrapping_neg(),
    }
}
