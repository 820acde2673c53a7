//! The VFIO calls on an iommufd: one of its IOASes plays the container's address
//! space. Linux `drivers/iommu/iommufd/vfio_compat.c`.

use iogate_dma::{Iova, Rights, Span};

use super::map::{Mapped, Place};
use super::{Context, Failure, PAGE_SIZE, Unmapped};
use crate::no_iommu::check_raw_io;
use crate::state::State;
use crate::{Caller, Error, ErrorKind, FileId, Host, Pages, Retired, Via};

/// VFIO_TYPE1_IOMMU and VFIO_TYPE1v2_IOMMU.
const TYPE1: u64 = 1;
const TYPE1_V2: u64 = 3;
const COHERENT: u64 = 4;
const NO_IOMMU: u64 = 8;
const UNMAP_ALL: u64 = 9;

/// What VFIO_IOMMU_GET_INFO says of an iommufd.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CompatInfo {
    /// Page sizes that all page tables have, one bit each, the processor's and
    /// larger.
    pub page_sizes: u64,
    /// What may be mapped, ascending.
    pub ranges: Vec<Span>,
}

/// A mapping that VFIO_IOMMU_MAP_DMA is to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompatMap {
    /// Where.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// What devices may do; nothing is no error here.
    pub rights: Rights,
}

impl Host {
    /// IOMMU_VFIO_IOAS, get: ENODEV if there is none. Linux
    /// `iommufd_vfio_ioas`.
    pub fn compat_ioas(&self, file: FileId) -> Result<u32, Error> {
        self.lock().compat(file).map(|(_, ioas)| ioas)
    }

    /// IOMMU_VFIO_IOAS, set: ENOENT without the IOAS; and, by `None`, clear.
    pub fn set_compat_ioas(&self, file: FileId, ioas: Option<u32>) -> Result<(), Error> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        if let Some(ioas) = ioas {
            context.objects.ioas(ioas)?;
        }
        context.compat = ioas;
        Ok(())
    }

    /// VFIO_CHECK_EXTENSION: 1 or 0. ENODEV for what depends on the IOAS,
    /// without one. Linux `iommufd_vfio_check_extension`.
    pub fn compat_check_extension(&self, file: FileId, id: u64) -> Result<bool, Error> {
        let mut state = self.lock();
        match id {
            TYPE1 | TYPE1_V2 | UNMAP_ALL => Ok(true),
            NO_IOMMU => Ok(self.offers_no_iommu()),
            COHERENT => {
                let (context, ioas) = state.compat(file)?;
                let domains = context.objects.ioas(ioas)?.domains.iter();
                let mut hwpts = domains.map(|domain| context.objects.hwpt(domain.hwpt));
                Ok(hwpts.all(|hwpt| hwpt.is_ok_and(|hwpt| hwpt.enforces_coherency)))
            }
            _ => Ok(false),
        }
    }

    /// VFIO_SET_IOMMU: EINVAL for other types than type1, ENODEV without an
    /// IOAS; for devices without IOMMU, EINVAL for other types than that and
    /// EPERM without CAP_SYS_RAWIO. The older type may unmap parts of mappings, so it maps by single
    /// pages. Linux `iommufd_vfio_set_iommu`.
    pub fn compat_set_iommu(
        &self,
        file: FileId,
        id: u64,
        caller: &dyn Caller,
    ) -> Result<(), Error> {
        let is_without = {
            let state = self.lock();
            let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
            context.is_without_iommu
        };
        if is_without {
            return match id {
                NO_IOMMU => check_raw_io(caller),
                _ => Err(Error::invalid("the iommufd is for devices without IOMMU")),
            };
        }
        if id != TYPE1 && id != TYPE1_V2 {
            return Err(Error::invalid("no IOMMU driver of that type"));
        }
        let mut state = self.lock();
        let (context, ioas) = state.compat(file)?;
        match id {
            TYPE1 => context.objects.ioas_mut(ioas)?.set_huge_pages(false),
            _ => Ok(()),
        }
    }

    /// VFIO_IOMMU_GET_INFO. ENODEV. Linux `iommufd_vfio_iommu_get_info`.
    pub fn compat_info(&self, file: FileId) -> Result<CompatInfo, Error> {
        let mut state = self.lock();
        let (context, ioas) = state.compat(file)?;
        let ioas = context.objects.ioas(ioas)?;
        let hwpts = ioas.domains.iter();
        let sizes = hwpts.filter_map(|domain| context.objects.hwpt(domain.hwpt).ok());
        let sizes = sizes.fold(u64::MAX, |all, hwpt| all & hwpt.unit.iommu.page_sizes);
        let small = PAGE_SIZE.wrapping_sub(1);
        Ok(CompatInfo {
            page_sizes: match sizes & small {
                0 => sizes,
                _ => sizes & !small | PAGE_SIZE,
            },
            ranges: ioas.space.space().usable(),
        })
    }

    /// VFIO_IOMMU_MAP_DMA. ENODEV; else as IOMMU_IOAS_MAP with a fixed place.
    /// Linux `iommufd_vfio_map_dma`.
    pub fn compat_map(
        &self,
        file: FileId,
        map: CompatMap,
        pages: impl FnOnce() -> std::sync::Arc<dyn Pages>,
        caller: &dyn Caller,
    ) -> Result<(), Failure> {
        let ioas = self.compat_ioas(file)?;
        let mapped = Mapped {
            ioas,
            pages: pages(),
            length: map.size,
            place: Place::Fixed(Iova(map.iova)),
            rights: map.rights,
            via: Via::MapDma,
        };
        self.ioas_map(file, mapped, caller).map(drop)
    }

    /// VFIO_IOMMU_UNMAP_DMA: of everything by `None`. That nothing was mapped
    /// is no error; a mapping that lies only partly in `span` is ENOENT, unless
    /// the older type asked for single pages: then it is cut. ENODEV; as a cut. Linux `iommufd_vfio_unmap_dma`.
    pub fn compat_unmap(
        &self,
        file: FileId,
        span: Option<Span>,
        caller: &dyn Caller,
    ) -> Result<Unmapped, Error> {
        let mut state = self.lock();
        let state = &mut *state;
        let (_, ioas) = state.compat(file)?;
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let ioas = context.objects.ioas_mut(ioas)?;
        let mut retired = Retired::default();
        let how = (Via::UnmapDma, Some(caller.actor()));
        if let Some(span) = span.filter(|_| !ioas.huge_pages) {
            ioas.cut(&mut state.private, span, how)?;
        }
        let span = span.unwrap_or(Span::whole());
        let is_empty = ioas.space.space().area_in(span).is_none();
        let (bytes, outcome) = match is_empty {
            true => (0, Ok(())),
            false => ioas.unmap(self, &mut state.private, span, how, &mut retired),
        };
        Ok(Unmapped {
            bytes,
            outcome,
            retired,
        })
    }
}

/// A device that is open by way of a group whose container is an iommufd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CompatDevice {
    iommufd: FileId,
    /// The device's number there.
    id: u32,
    /// Open files of the device.
    files: u32,
}

impl Host {
    /// Gives an iommufd an IOAS for VFIO calls if it has none: EINVAL for one of
    /// devices without IOMMU. Linux `iommufd_vfio_compat_ioas_create`.
    pub(crate) fn compat_ioas_create(&self, state: &mut State, file: FileId) -> Result<(), Error> {
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        if context.is_without_iommu {
            return Err(Error::invalid("the iommufd is for devices without IOMMU"));
        }
        if context.compat.is_none() {
            let ioas = self.new_ioas(state, file)?;
            let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
            context.compat = Some(ioas);
        }
        Ok(())
    }

    /// One more file of a device is opened by way of a group: the first binds
    /// and attaches it. Linux `vfio_df_iommufd_bind`,
    /// `vfio_iommufd_compat_attach_ioas`.
    pub(crate) fn compat_open(
        &self,
        state: &mut State,
        iommufd: FileId,
        index: usize,
    ) -> Result<Retired, Failure> {
        if let Some(device) = state.compat_devices.get_mut(&index) {
            device.files = device.files.saturating_add(1);
            return Ok(Retired::default());
        }
        let (_, ioas) = state.compat(iommufd)?;
        let id = self.bind(state, iommufd, index)?;
        let attached = self.attach_pt(state, iommufd, id, ioas);
        let attached = attached.map_err(|mut failure| {
            self.unbind(state, iommufd, id, &mut failure.retired);
            failure
        })?;
        let files = 1;
        let device = CompatDevice { iommufd, id, files };
        state.compat_devices.insert(index, device);
        Ok(attached.retired)
    }

    /// A file of a device went that was opened by way of a group: the last
    /// unbinds it. Linux `vfio_df_iommufd_unbind`.
    pub(crate) fn compat_close(&self, state: &mut State, index: usize, retired: &mut Retired) {
        let Some(device) = state.compat_devices.get_mut(&index) else {
            return;
        };
        device.files = device.files.saturating_sub(1);
        let device = *device;
        if device.files == 0 {
            state.compat_devices.remove(&index);
            self.unbind(state, device.iommufd, device.id, retired);
        }
    }
}

impl State {
    /// Makes an iommufd the container of devices without IOMMU: EINVAL if it
    /// has an IOAS for VFIO calls. Linux `iommufd_vfio_compat_set_no_iommu`.
    pub(crate) fn set_without_iommu(&mut self, file: FileId) -> Result<(), Error> {
        let context = self.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        if context.compat.is_some() {
            return Err(Error::invalid("the iommufd has an IOAS for VFIO calls"));
        }
        context.is_without_iommu = true;
        Ok(())
    }

    /// EPERM if the iommufd has an IOAS for VFIO calls, as if devices were to
    /// be behind an IOMMU. Linux `vfio_df_group_open`.
    pub(crate) fn check_without_ioas(&self, file: FileId) -> Result<(), Error> {
        let context = self.iommufds.get(&file).ok_or(Context::NONE)?;
        match context.compat {
            Some(_) => Err(Error::new(
                ErrorKind::NotPermitted,
                "the iommufd has an IOAS for VFIO calls",
            )),
            None => Ok(()),
        }
    }

    /// The iommufd and the IOAS that its VFIO calls are about: ENODEV.
    fn compat(&mut self, file: FileId) -> Result<(&mut Context, u32), Error> {
        let context = self.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let ioas = context.compat.ok_or(Error::new(
            ErrorKind::NoDevice,
            "the iommufd has no IOAS for VFIO calls",
        ))?;
        Ok((context, ioas))
    }
}
