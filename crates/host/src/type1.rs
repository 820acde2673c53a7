//! Mappings of a container. Linux `drivers/vfio/vfio_iommu_type1.c`.

use std::sync::Arc;

use iogate_dma::{Iova, Rights, Span};
use iogate_space::MapError;

use crate::container::{Type1, Version};
use crate::state::State;
use crate::{
    Caller, Error, ErrorKind, FileId, Host, MapFailure, Mapping, Pages, Payer, PinError, Reach,
    Retired, Via,
};

/// VFIO_IOMMU_MAP_DMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapDma {
    /// First I/O virtual address.
    pub iova: u64,
    /// First address in the client.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// What devices may do.
    pub rights: Rights,
    /// VFIO_DMA_MAP_FLAG_VADDR: new addresses for an old mapping.
    pub update: bool,
}

/// Which mappings VFIO_IOMMU_UNMAP_DMA is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnmapRange {
    /// Those in a range.
    Range {
        /// First I/O virtual address.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// VFIO_DMA_UNMAP_FLAG_ALL, with what was given as a range.
    All {
        /// To be 0.
        iova: u64,
        /// To be 0.
        size: u64,
    },
}

/// What VFIO_IOMMU_UNMAP_DMA does to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnmapMode {
    /// Removes them.
    Remove,
    /// VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: reports and removes them.
    Report {
        /// Bytes of a page that a bit of the report stands for.
        page_size: u64,
    },
    /// VFIO_DMA_UNMAP_FLAG_VADDR: their addresses mean nothing any more.
    Invalidate,
}

/// What VFIO_IOMMU_GET_INFO says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Type1Info {
    /// Page sizes, one bit each.
    pub page_sizes: u64,
    /// Where mappings may lie, ascending; none while only mediated devices
    /// have been there, which set no limits.
    pub ranges: Vec<Span>,
    /// Mappings that may still be made.
    pub available: u32,
}

impl State {
    /// The container's IOMMU: EINVAL if it was not set, ENOTTY if it is set to
    /// have none.
    fn type1(&mut self, file: FileId) -> Result<&mut Type1, Error> {
        let container = self.container(file)?;
        if container.is_without_iommu {
            // `vfio_noiommu_ioctl`
            let reason = "a container without IOMMU has no mappings";
            return Err(Error::new(ErrorKind::NoSuchCall, reason));
        }
        let iommu = container.iommu.as_mut();
        iommu.ok_or(Error::invalid("the container's IOMMU was not set"))
    }
}

impl Host {
    /// EINVAL unless the container's IOMMU is set: without, a container knows
    /// none of the calls below; ENOTTY for one of devices without IOMMU.
    /// `vfio_fops_unl_ioctl`.
    pub fn check_type1(&self, file: FileId) -> Result<(), Error> {
        self.lock().type1(file).map(|_| ())
    }

    /// VFIO_IOMMU_GET_INFO.
    pub fn type1_info(&self, file: FileId) -> Result<Type1Info, Error> {
        let mut state = self.lock();
        let iommu = state.type1(file)?;
        Ok(Type1Info {
            page_sizes: iommu.page_sizes,
            ranges: match iommu.is_limited {
                true => iommu.space.space().usable(),
                false => Vec::new(),
            },
            available: iommu.available,
        })
    }

    /// VFIO_IOMMU_MAP_DMA. `vfio_dma_do_map`, whose order of checks it keeps:
    /// EINVAL for no size, EOVERFLOW past the top of either space, EINVAL
    /// unless exactly one of rights and update is asked for, EINVAL off the
    /// smallest page, EEXIST over another mapping, ENOSPC at the limit, EINVAL
    /// outside of the ranges, ENOMEM over the locked-memory limit, EFAULT for
    /// pages that cannot be pinned. An update: ENOENT without a mapping,
    /// EINVAL unless it is the same one and invalid.
    pub fn map_dma(
        &self,
        file: FileId,
        request: &MapDma,
        pages: impl FnOnce() -> Arc<dyn Pages>,
        caller: &dyn Caller,
    ) -> Result<Retired, Error> {
        let MapDma {
            iova,
            address,
            size,
            rights,
            update,
        } = *request;
        let mut guard = self.lock();
        let state = &mut *guard;
        let granule = state.type1(file)?.granule();
        if size == 0 {
            return Err(Error::invalid("a mapping of no bytes"));
        }
        let span = Span::with_length(Iova(iova), size);
        let span = span.filter(|_| address.checked_add(size.wrapping_sub(1)).is_some());
        let span = span.ok_or(Error::new(
            ErrorKind::Overflow,
            "the range passes the top of the address space",
        ))?;
        if (rights != Rights::NONE) == update {
            return Err(Error::invalid("neither rights nor an update, or both"));
        }
        if (iova | address | size) & granule.wrapping_sub(1) != 0 {
            return Err(Error::invalid("not aligned to the smallest page"));
        }
        let iommu = state.type1(file)?;
        let space = Arc::clone(&iommu.space);
        let how = (Via::MapDma, Some(caller.actor()));
        if update {
            iommu.update(span)?;
            let old = space.rename(&mut state.private, span.first(), pages(), how);
            drop(guard);
            let mut retired = Retired::default();
            if let Some(old) = old {
                retired.pages.push(old);
                retired.grace = Some(self.config.gate.grace());
            }
            return Ok(retired);
        }
        if space.space().area_in(span).is_some() {
            return Err(Error::new(ErrorKind::Exists, "overlaps another mapping"));
        }
        if iommu.available == 0 {
            return Err(Error::new(
                ErrorKind::NoSpace,
                "the container has as many mappings as it may",
            ));
        }
        if space.space().is_reserved(span) {
            return Err(Error::invalid("outside of the container's IOVA ranges"));
        }
        let mut mapping = Mapping::new(pages(), 0);
        let payer = Payer::Process(caller.address_space());
        mapping.charge = state.account(self.config.memlock, caller, payer, size)?;
        let reach = match state.type1(file)?.has_units {
            true => Reach::Now,
            // A mediated device looks for the memory when it wants it.
            false => Reach::Later,
        };
        space.map(&mut state.private, span, rights, mapping, reach, how)?;
        let iommu = state.type1(file)?;
        iommu.available = iommu.available.saturating_sub(1);
        Ok(Retired::default())
    }

    /// VFIO_IOMMU_UNMAP_DMA: how many bytes it was about. In mode
    /// [`UnmapMode::Report`], `report` is told of each mapping before it goes,
    /// and of what was written of it; an error of its ends the call with what
    /// went before gone. EBUSY to invalidate addresses that mediated devices
    /// use. `vfio_dma_do_unmap`.
    pub fn unmap_dma<E: From<Error>>(
        &self,
        file: FileId,
        range: UnmapRange,
        mode: UnmapMode,
        mut report: impl FnMut(Span, &[Span]) -> Result<(), E>,
        caller: &dyn Caller,
    ) -> Result<(u64, Retired), (E, Retired)> {
        let mut retired = Retired::default();
        let mut state = self.lock();
        let result = unmap(
            &mut state,
            file,
            range,
            mode,
            &mut report,
            caller,
            &mut retired,
        );
        drop(state);
        // Also where nothing was pinned: a mediated device may be at it.
        if result.as_ref().map_or(true, |bytes| *bytes > 0) {
            retired.grace = Some(self.config.gate.grace());
        }
        match result {
            Ok(bytes) => Ok((bytes, retired)),
            Err(error) => Err((error, retired)),
        }
    }

    /// VFIO_IOMMU_DIRTY_PAGES, whether it knows the container: EACCES for
    /// version 1. `vfio_iommu_type1_dirty_pages`.
    pub fn check_dirty(&self, file: FileId) -> Result<(), Error> {
        match self.lock().type1(file)?.version {
            Version::Two => Ok(()),
            Version::One => Err(Error::new(
                ErrorKind::Denied,
                "dirty pages are for VFIO_TYPE1v2_IOMMU",
            )),
        }
    }

    /// VFIO_IOMMU_DIRTY_PAGES with START or STOP; either may be repeated.
    pub fn track_dirty(&self, file: FileId, on: bool) -> Result<(), Error> {
        let mut state = self.lock();
        let written = &state.type1(file)?.written;
        if written.is_on() != on {
            written.set(on);
        }
        Ok(())
    }

    /// VFIO_IOMMU_DIRTY_PAGES with GET_BITMAP: tells `report` of every mapping
    /// in the range and of what of it is to be taken as dirty: all, where a unit
    /// lets devices write without telling, else what mediated devices wrote
    /// since the last time. EINVAL off the smallest page, for
    /// another page size, while nothing is tracked, and if the range cuts a
    /// mapping. `vfio_iova_dirty_bitmap`.
    pub fn dirty_bitmap<E: From<Error>>(
        &self,
        file: FileId,
        (iova, size): (u64, u64),
        page_size: u64,
        mut report: impl FnMut(Span, &[Span]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut state = self.lock();
        let iommu = state.type1(file)?;
        let granule = iommu.granule();
        let invalid = |reason| Err(Error::invalid(reason).into());
        if page_size != granule {
            return invalid("the page size is not the smallest");
        }
        if (iova | size) & granule.wrapping_sub(1) != 0 || size == 0 {
            return invalid("not aligned to the smallest page");
        }
        if !iommu.written.is_on() {
            return invalid("dirty pages are not tracked");
        }
        let Some(range) = Span::with_length(Iova(iova), size) else {
            return invalid("the range passes the top of the address space");
        };
        if iommu.cuts(range) {
            return invalid("the range cuts a mapping");
        }
        let mut left = Some(range);
        while let Some((span, _)) = left.and_then(|left| iommu.space.space().area_in(left)) {
            report(span, &iommu.dirty(span))?;
            left = after(span, range);
        }
        Ok(())
    }
}

impl Type1 {
    /// Makes the addresses of an invalid mapping valid: ENOENT without a
    /// mapping, EINVAL unless it is exactly `span` and invalid. The client
    /// promises that the same memory is behind them.
    fn update(&mut self, span: Span) -> Result<(), Error> {
        let found = self.space.space().area_in(span);
        let (area, _) = found.ok_or(Error::new(ErrorKind::NotFound, "nothing is mapped"))?;
        match area == span && self.set_valid(span.first(), true) {
            true => Ok(()),
            false => Err(Error::invalid(
                "not exactly a mapping with invalid addresses",
            )),
        }
    }

    /// What of a mapping is to be taken as dirty. Then it is so no longer.
    fn dirty(&self, span: Span) -> Vec<Span> {
        match self.has_units {
            true => vec![span],
            false => self.written.take(span, false, |_| true),
        }
    }

    /// Whether a mapping lies partly in `range` and partly not.
    fn cuts(&self, range: Span) -> bool {
        let outside = |at: Iova| {
            let area = self.space.space().area_at(at);
            area.is_some_and(|(area, _)| !range.encloses(&area))
        };
        outside(range.first()) || outside(range.last())
    }

    /// Marks a mapping's addresses valid or not; whether that was a change.
    fn set_valid(&mut self, first: Iova, valid: bool) -> bool {
        let space = self.space.space();
        let changed = space.with_area(first, |area| {
            std::mem::replace(&mut area.payload.is_address_valid, valid) != valid
        });
        if changed == Some(true) {
            self.invalid = match valid {
                true => self.invalid.saturating_sub(1),
                false => self.invalid.saturating_add(1),
            };
        }
        changed == Some(true)
    }
}

fn unmap<E: From<Error>>(
    state: &mut State,
    file: FileId,
    range: UnmapRange,
    mode: UnmapMode,
    report: &mut impl FnMut(Span, &[Span]) -> Result<(), E>,
    caller: &dyn Caller,
    retired: &mut Retired,
) -> Result<u64, E> {
    let iommu = state.type1(file)?;
    if mode == UnmapMode::Invalidate && iommu.has_emulated {
        let reason = "a mediated device may use the addresses at any time";
        return Err(Error::new(ErrorKind::Busy, reason).into());
    }
    let granule = iommu.granule();
    let range = check_range(iommu, range)?;
    if let UnmapMode::Report { page_size } = mode
        && (!iommu.written.is_on() || page_size != granule)
    {
        return Err(Error::invalid("not tracked, or not the smallest page size").into());
    }
    let is_all = range == Span::whole();
    if iommu.version == Version::Two && !is_all && iommu.cuts(range) {
        return Err(Error::invalid("the range cuts a mapping").into());
    }
    let version = iommu.version;
    let space = Arc::clone(&iommu.space);
    let mut bytes = 0_u64;
    let mut left = Some(range);
    while let Some((span, _)) = left.and_then(|left| space.space().area_in(left)) {
        // In version 1 a mapping that begins before the range ends the call.
        if span.first() < range.first() && version == Version::One {
            break;
        }
        left = after(span, range);
        if mode == UnmapMode::Invalidate {
            if !state.type1(file)?.set_valid(span.first(), false) {
                restore(state.type1(file)?, range, span.first());
                return Err(Error::invalid("addresses are invalid already").into());
            }
        } else {
            let dirty = state.type1(file)?.dirty(span);
            if let UnmapMode::Report { .. } = mode {
                report(span, &dirty)?;
            }
            let how = (Via::UnmapDma, Some(caller.actor()));
            if let Some(mut area) = space.unmap(&mut state.private, span.first(), how) {
                retired.pages.extend(area.payload.take_pinned());
                let was_valid = area.payload.is_address_valid;
                let iommu = state.type1(file)?;
                iommu.available = iommu.available.saturating_add(1);
                iommu.invalid = iommu.invalid.saturating_sub(u32::from(!was_valid));
            }
        }
        bytes = bytes.saturating_add(span.last_offset()).saturating_add(1);
    }
    Ok(bytes)
}

/// Makes the addresses valid again that a failing call has invalidated: those
/// of the mappings in `range` that begin before `end`.
fn restore(iommu: &mut Type1, range: Span, end: Iova) {
    let mut left = Some(range);
    while let Some((span, _)) = left.and_then(|left| iommu.space.space().area_in(left)) {
        if span.first() >= end {
            break;
        }
        iommu.set_valid(span.first(), true);
        left = after(span, range);
    }
}

/// What of `range` lies behind `span`.
fn after(span: Span, range: Span) -> Option<Span> {
    Span::new(span.last().checked_add(1)?, range.last())
}

/// The range of an unmap call: EINVAL off the smallest page, for no bytes, and
/// if all is asked for with a range; EOVERFLOW past the top.
fn check_range(iommu: &Type1, range: UnmapRange) -> Result<Span, Error> {
    let small = iommu.granule().wrapping_sub(1);
    match range {
        UnmapRange::All { iova: 0, size: 0 } => Ok(Span::whole()),
        UnmapRange::All { .. } => Err(Error::invalid("all is asked for with a range")),
        UnmapRange::Range { iova, size } => {
            if (iova | size) & small != 0 || size == 0 {
                return Err(Error::invalid("not aligned to the smallest page"));
            }
            Span::with_length(Iova(iova), size).ok_or(Error::new(
                ErrorKind::Overflow,
                "the range passes the top of the address space",
            ))
        }
    }
}

impl From<MapFailure> for Error {
    fn from(failure: MapFailure) -> Self {
        match failure {
            MapFailure::Space(MapError::Overlaps(_)) => {
                Self::new(ErrorKind::Exists, "overlaps another mapping")
            }
            MapFailure::Space(MapError::Reserved(_)) => Self::invalid("hits a reserved range"),
            MapFailure::Space(MapError::Full) => {
                Self::new(ErrorKind::NoMemory, "the translation tables are full")
            }
            MapFailure::Pin(error) => error.into(),
        }
    }
}

impl From<PinError> for Error {
    fn from(error: PinError) -> Self {
        match error {
            PinError::Fault(_) => Self::new(ErrorKind::Fault, "no usable page to pin"),
            PinError::NoMemory => Self::new(ErrorKind::NoMemory, "out of resources to pin"),
        }
    }
}
