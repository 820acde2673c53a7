//! An IOAS: an address space with the rules of an iommufd, and the page tables
//! that show it. Linux `drivers/iommu/iommufd/io_pagetable.c`.

use std::sync::Arc;

use iogate_dma::{Iova, Rights, Span};
use iogate_space::ReserveError;

use super::access::{Pins, Users};
use super::unit::Unit;
use super::{Failure, PAGE_SIZE};
use crate::private::PrivateMemory;
use crate::{Actor, Error, ErrorKind, Host, Ioas, Iommu, PinError, Pinned, Retired, Via};

/// An IOAS of an iommufd.
pub(crate) struct IoasObject {
    pub(crate) space: Arc<Ioas>,
    /// What every address, length and offset in a page is a multiple of.
    pub(crate) alignment: u64,
    /// IOMMU_OPTION_HUGE_PAGES.
    pub(crate) huge_pages: bool,
    /// Page tables that show it, in the order in which they came. While there
    /// are any, the pages of all areas are pinned.
    pub(crate) domains: Vec<Domain>,
    /// Accesses to it.
    pub(crate) users: Users,
}

/// A page table that shows an IOAS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Domain {
    pub(crate) hwpt: u32,
    /// Bytes of its smallest page.
    pub(crate) granule: u64,
}

impl IoasObject {
    pub(super) fn new(space: Arc<Ioas>) -> Self {
        Self {
            space,
            alignment: 1,
            huge_pages: true,
            domains: Vec::new(),
            users: Users::default(),
        }
    }

    /// Whether a page table or an access uses it.
    pub(super) fn is_used(&self) -> bool {
        self.is_pinned() || !self.users.is_empty()
    }

    /// Whether devices reach the pages of areas.
    pub(super) fn is_pinned(&self) -> bool {
        !self.domains.is_empty()
    }

    /// Whether `value` is a multiple of the alignment.
    pub(super) fn is_aligned(&self, value: u64) -> bool {
        value & self.alignment.wrapping_sub(1) == 0
    }

    /// All areas in order.
    pub(super) fn areas(&self) -> impl Iterator<Item = (Span, Rights)> + '_ {
        let mut next = Some(Iova(0));
        std::iter::from_fn(move || {
            let (span, rights) = self.space.space().next_area(next?)?;
            next = span.last().checked_add(1);
            Some((span, rights))
        })
    }

    /// EADDRINUSE if an area does not fit a coarser alignment. Linux
    /// `iopt_check_iova_alignment`.
    fn check_alignment(&self, alignment: u64) -> Result<(), Error> {
        let mask = alignment.wrapping_sub(1);
        let fits = |span: Span| {
            let offset = self.page_offset(span.first()).unwrap_or(0);
            let length = span.last_offset().wrapping_add(1);
            (span.first().0 | length | offset) & mask == 0
        };
        if alignment > self.alignment && !self.areas().all(|(span, _)| fits(span)) {
            return Err(Error::new(
                ErrorKind::AddressInUse,
                "a mapping does not fit the page size of the IOMMU",
            ));
        }
        Ok(())
    }

    /// Where in its page the memory of the area's first byte is.
    fn page_offset(&self, first: Iova) -> Option<u64> {
        self.space.space().with_area(first, |area| {
            let mapping = &area.payload;
            mapping.pages.start().wrapping_add(mapping.offset) % PAGE_SIZE
        })
    }

    fn names_file(&self, first: Iova) -> bool {
        let space = self.space.space();
        space.with_area(first, |area| area.payload.pages.is_file()) == Some(true)
    }

    /// A page table of `unit` shows the space from now on. EINVAL if its
    /// pages are larger than the processor's; EADDRINUSE if a mapping or an
    /// allowed range does not fit it; EFAULT, ENOMEM if memory cannot be
    /// pinned. Linux `iopt_table_add_domain`.
    pub(super) fn add_domain(
        &mut self,
        host: &Host,
        private: &mut PrivateMemory,
        id: u32,
        unit: &Unit,
    ) -> Result<(), Failure> {
        let granule = unit.granule();
        let alignment = granule.max(self.alignment);
        if alignment > PAGE_SIZE {
            return Err(Error::invalid("the IOMMU's pages are larger than the processor's").into());
        }
        self.check_alignment(alignment)?;
        for outside in unit.out_of_reach() {
            let reserved = self.space.space().reserve(id.into(), outside);
            if let Err(error) = reserved {
                self.space.release(id.into());
                return Err(in_use(error).into());
            }
        }
        if let Err(failure) = self.fill(host, private) {
            self.space.release(id.into());
            return Err(failure);
        }
        self.alignment = alignment;
        self.domains.push(Domain { hwpt: id, granule });
        Ok(())
    }

    /// An access that wants pages of `alignment` uses the space from now on.
    /// EADDRINUSE if a mapping does not fit it. Linux `iopt_add_access`.
    pub(super) fn add_user(&mut self, id: u32, alignment: u64) -> Result<(), Error> {
        self.check_alignment(alignment)?;
        self.users.insert(id, alignment);
        self.alignment = self.needed_alignment();
        Ok(())
    }

    /// An access uses the space no longer: its pins. Linux
    /// `iopt_remove_access`.
    pub(super) fn remove_user(&mut self, id: u32) -> Vec<Box<dyn Pinned>> {
        let pins = self.users.remove(id);
        self.alignment = self.needed_alignment();
        pins.map_or(Vec::new(), Pins::into_pages)
    }

    /// Pins the pages of all areas, or of none.
    fn fill(&self, host: &Host, private: &mut PrivateMemory) -> Result<(), Failure> {
        if self.is_pinned() {
            return Ok(());
        }
        for (span, _) in self.areas() {
            if let Err(error) = self.space.fill(private, span.first()) {
                let mut retired = Retired::default();
                self.clear(host, private, &mut retired);
                return Err(Failure {
                    error: pin_error(error, self.names_file(span.first())),
                    retired: Box::new(retired),
                });
            }
        }
        Ok(())
    }

    fn clear(&self, host: &Host, private: &mut PrivateMemory, retired: &mut Retired) {
        let areas = self.areas().map(|(span, _)| span.first());
        let pages: Vec<_> = areas
            .filter_map(|first| self.space.clear(private, first))
            .collect();
        retired.merge(host.retire(pages));
    }

    /// A page table shows the space no longer. With the last the pages are
    /// unpinned. Linux `iopt_table_remove_domain`.
    pub(super) fn remove_domain(
        &mut self,
        host: &Host,
        private: &mut PrivateMemory,
        id: u32,
        retired: &mut Retired,
    ) {
        self.domains.retain(|domain| domain.hwpt != id);
        if !self.is_pinned() {
            self.clear(host, private, retired);
        }
        self.space.release(id.into());
        self.alignment = self.needed_alignment();
    }

    /// What page tables, accesses and the option need. Linux
    /// `iopt_calculate_iova_alignment`.
    fn needed_alignment(&self) -> u64 {
        let own = if self.huge_pages { 1 } else { PAGE_SIZE };
        let granules = self.domains.iter().map(|domain| domain.granule);
        granules.fold(own.max(self.users.alignment()), u64::max)
    }

    /// IOMMU_OPTION_HUGE_PAGES. EINVAL while page tables and areas exist;
    /// EADDRINUSE if an area does not fit. Linux `iopt_disable_large_pages`,
    /// `iopt_enable_large_pages`.
    pub(super) fn set_huge_pages(&mut self, on: bool) -> Result<(), Error> {
        if on == self.huge_pages {
            return Ok(());
        }
        if !on {
            if self.is_pinned() && self.areas().next().is_some() {
                return Err(Error::invalid(
                    "huge pages cannot be turned off while mappings are in use",
                ));
            }
            self.check_alignment(PAGE_SIZE)?;
        }
        self.huge_pages = on;
        self.alignment = self.needed_alignment();
        Ok(())
    }

    /// Keeps what a device cannot use free, in its name: EADDRINUSE if a
    /// mapping or an allowed range is there; EINVAL if it has both kinds of
    /// interrupt window. Linux `iopt_table_enforce_dev_resv_regions`.
    pub(super) fn reserve_for(&self, device: u32, iommu: &Iommu) -> Result<(), Error> {
        use crate::ReservedKind::{Msi, SoftwareMsi};
        let reserved = Iommu {
            aperture_last: Iova(u64::MAX),
            ..iommu.clone()
        };
        self.space
            .reserve(device.into(), &reserved)
            .map_err(in_use)?;
        let has = |kind| {
            iommu
                .reserved
                .iter()
                .filter(move |range| range.kind == kind)
        };
        let software = has(SoftwareMsi).count();
        if software > 1 || software == 1 && has(Msi).next().is_some() {
            self.space.release(device.into());
            return Err(Error::invalid(
                "the IOMMU has contradicting interrupt windows",
            ));
        }
        Ok(())
    }

    /// The kernel's check of a place for `length` bytes. Linux
    /// `iopt_check_iova`.
    pub(super) fn check_place(&self, iova: Iova, length: u64) -> Result<Span, Error> {
        if !self.is_aligned(iova.0) {
            return Err(Error::invalid("the IOVA is not aligned"));
        }
        let span = Span::with_length(iova, length).ok_or(Error::new(
            ErrorKind::Overflow,
            "the mapping passes the top of the address space",
        ))?;
        if self.space.space().is_reserved(span) {
            return Err(Error::invalid("the IOVA is reserved"));
        }
        match self.space.space().next_area(iova) {
            Some((area, _)) if area.overlaps(&span) => {
                Err(Error::new(ErrorKind::Exists, "something is mapped there"))
            }
            _ => Ok(span),
        }
    }

    /// A free place for `length` bytes whose memory starts at `start`. Linux
    /// `iopt_alloc_iova`.
    pub(super) fn find_place(&self, start: u64, length: u64) -> Result<Span, Error> {
        const TOO_LONG: Error = Error::new(ErrorKind::Overflow, "the mapping is too long");
        if length >= u64::MAX / 2 {
            return Err(TOO_LONG);
        }
        let natural = length.checked_next_power_of_two().ok_or(TOO_LONG)?;
        let of_memory = match start {
            0 => natural,
            start => start & start.wrapping_neg(),
        };
        let alignment = natural.min(of_memory).min(HUGE_PAGE);
        if alignment < self.alignment {
            return Err(Error::invalid("the memory is not aligned"));
        }
        let offset = start % PAGE_SIZE;
        let alignment = match offset {
            0 => alignment,
            _ => PAGE_SIZE,
        };
        let found = self.space.space().find_free(length, alignment, offset);
        found
            .and_then(|first| Span::with_length(first, length))
            .ok_or(Error::new(ErrorKind::NoSpace, "no IOVA is free"))
    }

    /// Cuts the areas that hold the ends of `span`, its last before its first.
    /// EINVAL between whole pages and where an access has pinned something,
    /// EOPNOTSUPP for a device's own memory. Linux `iopt_cut_iova`,
    /// `iopt_area_split`.
    pub(super) fn cut(
        &self,
        private: &mut PrivateMemory,
        span: Span,
        how: (Via, Option<Actor>),
    ) -> Result<(), Error> {
        let ends = [span.last().checked_add(1), Some(span.first())];
        let mut cuts = ends.into_iter().flatten();
        cuts.try_for_each(|at| self.split(private, at, how))
    }

    fn split(
        &self,
        private: &mut PrivateMemory,
        at: Iova,
        how: (Via, Option<Actor>),
    ) -> Result<(), Error> {
        let space = self.space.space();
        let area = space.with_area(at, |area| {
            let skipped = at.0.saturating_sub(area.span.first().0);
            let start = area.payload.pages.start();
            let start = start.wrapping_add(area.payload.offset);
            let start = start.wrapping_add(skipped);
            (area.span, start, area.payload.pages.is_memory())
        });
        let Some((area, start, is_memory)) = area.filter(|(area, ..)| area.first() < at) else {
            return Ok(());
        };
        if !is_memory {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a mapping of a device's own memory cannot be cut",
            ));
        }
        if !self.is_aligned(at.0) || !self.is_aligned(start % PAGE_SIZE) {
            return Err(Error::invalid("the mapping would be cut between pages"));
        }
        if self.users.pin_in(area) {
            return Err(Error::invalid("an access has pinned pages of the mapping"));
        }
        let cut = self.space.split(private, at, how);
        cut.map_err(|_| {
            Error::new(
                ErrorKind::NoMemory,
                "the translation tables have reached their limit",
            )
        })
    }

    /// Removes all areas in `span`; one that it cuts ends it with ENOENT. Says
    /// how many bytes went. Accesses let go of what they hold first. Linux
    /// `iopt_unmap_iova_range`, `iommufd_access_notify_unmap`.
    pub(super) fn unmap(
        &mut self,
        host: &Host,
        private: &mut PrivateMemory,
        span: Span,
        (via, by): (Via, Option<Actor>),
        retired: &mut Retired,
    ) -> (u64, Result<(), Error>) {
        let mut bytes = 0_u64;
        let mut pages = Vec::new();
        let mut outcome = Ok(());
        while let Some((area, _)) = self.space.space().next_area(span.first())
            && area.overlaps(&span)
        {
            if !span.encloses(&area) {
                outcome = Err(Error::new(
                    ErrorKind::NotFound,
                    "a mapping lies only partly in the range",
                ));
                break;
            }
            pages.extend(self.users.release(area));
            let Some(mut area) = self.space.unmap(private, area.first(), (via, by)) else {
                break;
            };
            pages.extend(area.payload.take_pinned());
            let length = area.span.last_offset().saturating_add(1);
            bytes = bytes.saturating_add(length);
        }
        if bytes > 0 && !self.users.is_empty() {
            // Also where nothing was pinned: software may be at it.
            retired.grace = Some(host.config.gate.grace());
        }
        retired.merge(host.retire(pages));
        if outcome.is_ok() && bytes == 0 && span != Span::whole() {
            outcome = Err(Error::new(
                ErrorKind::NotFound,
                "nothing is mapped in the range",
            ));
        }
        (bytes, outcome)
    }
}

/// Automatic placement does not align to more than this.
const HUGE_PAGE: u64 = 2 << 20;

pub(super) fn in_use(error: ReserveError) -> Error {
    let reason = match error {
        ReserveError::Mapped(_) => "a mapping lies where the IOMMU cannot reach",
        ReserveError::Allowed(_) => "an allowed range lies where the IOMMU cannot reach",
    };
    Error::new(ErrorKind::AddressInUse, reason)
}

pub(super) fn pin_error(error: PinError, is_file: bool) -> Error {
    match error {
        PinError::Fault(_) if is_file => Error::invalid("the file ends before the mapping does"),
        PinError::Fault(_) => Error::new(
            ErrorKind::Fault,
            "the memory is absent or does not allow what the mapping would",
        ),
        PinError::NoMemory => Error::new(
            ErrorKind::NoMemory,
            "no more memory can be pinned: RLIMIT_MEMLOCK, or resources",
        ),
    }
}
