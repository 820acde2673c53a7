//! An I/O address space with the pages behind it: what both a type1 container
//! and an iommufd IOAS are made of, and what devices translate through.

use std::sync::{Arc, Mutex, PoisonError};

use iogate_dma::{
    Access, Fault, FaultReason, InFlight, Iova, Memory, Outcome, Request, Rights, Run, Span,
    Translate,
};
use iogate_space::{AddressSpace, Area, MapError, Miss, ReserveError};

use crate::bars::{Bars, is_bar};
use crate::ledger::Charge;
use crate::private::{Piece, PrivateMemory};
use crate::{
    Actor, HostConfig, Iommu, Observer, Pages, PinError, Pinned, ReservedKind, SpaceId, Via,
};

/// What an area keeps: the pages it names and, while devices reach them, their
/// pins.
pub struct Mapping {
    /// The client's memory.
    pub pages: Arc<dyn Pages>,
    /// Where in `pages` the area's first byte is.
    pub offset: u64,
    /// Whether the client's addresses still mean these pages; false between
    /// the two halves of a VFIO address update.
    pub is_address_valid: bool,
    /// What was counted against RLIMIT_MEMLOCK for it.
    pub charge: Option<Charge>,
    pinned: Option<Box<dyn Pinned>>,
    /// Whether some of the private memory behind it went.
    revoked: bool,
}

impl Mapping {
    /// `pages` from `offset` on, not pinned.
    pub fn new(pages: Arc<dyn Pages>, offset: u64) -> Self {
        Self {
            pages,
            offset,
            is_address_valid: true,
            charge: None,
            pinned: None,
            revoked: false,
        }
    }

    /// Keeps the first `length` bytes: the mapping of the rest. Both keep what
    /// is pinned for the whole until both are gone.
    fn split(&mut self, length: u64) -> Self {
        let mut rest = Self::new(Arc::clone(&self.pages), self.offset.saturating_add(length));
        rest.is_address_valid = self.is_address_valid;
        rest.revoked = self.revoked;
        if let Some(pinned) = self.pinned.take() {
            let (first, second) = crate::part::split(pinned, length);
            self.pinned = Some(first);
            rest.pinned = Some(second);
        }
        rest
    }

    /// Whether devices reach the pages.
    pub fn is_pinned(&self) -> bool {
        self.pinned.is_some()
    }

    /// Where the pinned bytes are; `None` unless devices reach them.
    pub fn segments(&self) -> Option<&[iogate_space::Segment]> {
        self.pinned.as_ref().map(|pinned| pinned.segments())
    }

    /// The pins, to be dropped after a grace.
    pub fn take_pinned(&mut self) -> Option<Box<dyn Pinned>> {
        self.pinned.take()
    }
}

/// Whether pages are pinned and reached at once, or only named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Devices reach the pages from now on.
    Now,
    /// The pages are named; [`Ioas::fill`] makes devices reach them.
    Later,
}

/// Why pages did not become a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapFailure {
    /// The space refused the range.
    #[error(transparent)]
    Space(#[from] MapError),
    /// The pages could not be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// An I/O address space. Changed with the object model locked, read by
/// workers at any time. After a change that takes something away, wait for a
/// grace and only then drop what was pinned.
pub struct Ioas {
    id: SpaceId,
    space: AddressSpace<Mapping>,
    memory: Arc<dyn Memory>,
    bars: Arc<Bars>,
    observer: Arc<dyn Observer>,
    /// Windows of interrupt messages, by who reserved them; read only when a
    /// translation fails.
    windows: Mutex<Vec<(u64, Span)>>,
}

impl Ioas {
    /// An empty space of `config`'s host.
    pub(crate) fn new(id: SpaceId, config: &HostConfig, bars: &Arc<Bars>) -> Self {
        Self {
            id,
            space: AddressSpace::new(Arc::clone(&config.gate)),
            memory: Arc::clone(&config.memory),
            bars: Arc::clone(bars),
            observer: Arc::clone(&config.observer),
            windows: Mutex::default(),
        }
    }

    /// Its number.
    pub fn id(&self) -> SpaceId {
        self.id
    }

    /// The areas and ranges. To add and remove areas use [`map`](Self::map)
    /// and [`unmap`](Self::unmap), which keep the books.
    pub fn space(&self) -> &AddressSpace<Mapping> {
        &self.space
    }

    /// Reserves, in the name of `owner`, what devices behind `iommu` cannot
    /// use: everything above its aperture and its reserved ranges, save the
    /// relaxable ones. On an error nothing is reserved in that name.
    pub fn reserve(&self, owner: u64, iommu: &Iommu) -> Result<(), ReserveError> {
        let above = iommu.aperture_last.checked_add(1);
        let above = above.and_then(|first| Span::new(first, Iova(u64::MAX)));
        let reserved = iommu.reserved.iter();
        let excluded = reserved.filter(|range| range.kind != ReservedKind::DirectRelaxable);
        for span in above.into_iter().chain(excluded.map(|range| range.span)) {
            if let Err(error) = self.space.reserve(owner, span) {
                self.space.release(owner);
                return Err(error);
            }
        }
        let messages = iommu.reserved.iter();
        let messages = messages.filter(|range| range.kind == ReservedKind::Msi);
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.extend(messages.map(|range| (owner, range.span)));
        Ok(())
    }

    /// Takes back what [`reserve`](Self::reserve) did in the name of `owner`.
    pub fn release(&self, owner: u64) {
        self.space.release(owner);
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|(of, _)| *of != owner);
    }

    /// Makes `span` an area of `mapping`'s pages. That the range is free is
    /// found out before the pages are pinned. On an error nothing has changed.
    pub fn map(
        &self,
        private: &mut PrivateMemory,
        span: Span,
        rights: Rights,
        mapping: Mapping,
        reach: Reach,
        (via, by): (Via, Option<Actor>),
    ) -> Result<(), MapFailure> {
        let (pages, offset) = (Arc::clone(&mapping.pages), mapping.offset);
        self.space
            .map(span, rights, mapping)
            .map_err(|(error, _)| MapFailure::Space(error))?;
        if reach == Reach::Now {
            let length = span.last_offset().saturating_add(1);
            let pinned = pages.pin(offset, length, rights);
            let reached = pinned.and_then(|pinned| self.publish(private, span, pinned));
            if let Err(error) = reached {
                self.space.unmap(span.first());
                return Err(error.into());
            }
        }
        self.observer.mapped(self.id, span, rights, via, by);
        Ok(())
    }

    /// Pins the area that starts at `first` and lets devices reach it, if they
    /// do not yet.
    pub fn fill(&self, private: &mut PrivateMemory, first: Iova) -> Result<(), PinError> {
        let pinned = self.space.with_area(first, |area| {
            let mapping = &area.payload;
            let length = area.span.last_offset().saturating_add(1);
            let pin = || mapping.pages.pin(mapping.offset, length, area.rights);
            match mapping.pinned {
                Some(_) => Ok(None),
                None => pin().map(|pinned| Some((area.span, pinned))),
            }
        });
        match pinned.transpose()?.flatten() {
            Some((span, pinned)) => self.publish(private, span, pinned),
            None => Ok(()),
        }
    }

    /// The client names the same memory by other addresses: what of the area
    /// that starts at `first` is only reached by its old ones, private memory,
    /// is reached by the new ones from now on. Pages that cannot be pinned leave
    /// the area as it was: the kernel keeps its pins and never looks.
    pub fn rename(
        &self,
        private: &mut PrivateMemory,
        first: Iova,
        pages: Arc<dyn Pages>,
        (via, by): (Via, Option<Actor>),
    ) -> Option<Box<dyn Pinned>> {
        let (span, rights) = self.space.area_at(first)?;
        let is_private = self.space.with_area(first, |area| {
            let pinned = area.payload.pinned.as_ref();
            pinned.is_some_and(|pinned| !pinned.private().is_empty())
        });
        if is_private != Some(true) {
            return None;
        }
        let length = span.last_offset().saturating_add(1);
        let pinned = pages.pin(0, length, rights).ok()?;
        let old = self.clear(private, first);
        self.space.with_area(first, |area| {
            area.payload.pages = pages;
            area.payload.offset = 0;
        });
        // Without room for its tables the area stays without memory.
        let _ = self.publish(private, span, pinned);
        self.observer.mapped(self.id, span, rights, via, by);
        old
    }

    /// Takes the pages of the area that starts at `first` out of the devices'
    /// reach; the area stays. The pins are to be dropped after a grace.
    pub fn clear(&self, private: &mut PrivateMemory, first: Iova) -> Option<Box<dyn Pinned>> {
        let taken = self.space.with_area(first, |area| {
            self.forget(private, area);
            let revoked = std::mem::take(&mut area.payload.revoked);
            (area.span, revoked, area.payload.pinned.take())
        });
        let (span, revoked, pinned) = taken?;
        self.space.clear(span);
        if revoked {
            self.renew(first);
        }
        pinned
    }

    /// Puts the area that starts at `first` in its own place: what was revoked
    /// stays so for as long as an area stands, but other pins are other memory.
    fn renew(&self, first: Iova) {
        let Some(area) = self.space.unmap(first) else {
            return;
        };
        let span = area.span;
        if self.space.map(span, area.rights, area.payload).is_err() {
            // The tables are at their limit: it cannot stand any longer.
            let (via, by) = (Via::Release, None);
            self.observer.unmapped(self.id, span, via, by);
        }
    }

    /// Cuts the area that contains `at` in two, of which the second starts
    /// there; without one nothing happens. Devices see no change.
    pub(crate) fn split(
        &self,
        private: &mut PrivateMemory,
        at: Iova,
        (via, by): (Via, Option<Actor>),
    ) -> Result<(), MapError> {
        let mut cut = None;
        self.space.split(at, |area| {
            self.cut_pieces(private, area, at);
            cut = Some((area.span, area.rights));
            area.payload.split(at.0.saturating_sub(area.span.first().0))
        })?;
        if let Some((whole, rights)) = cut {
            self.observer.unmapped(self.id, whole, via, by);
            let before = at.0.checked_sub(1).map(Iova);
            let first = before.and_then(|last| Span::new(whole.first(), last));
            for part in [first, Span::new(at, whole.last())].into_iter().flatten() {
                self.observer.mapped(self.id, part, rights, via, by);
            }
        }
        Ok(())
    }

    /// What the index knows of the area's private memory lies on one side of
    /// `at` each.
    fn cut_pieces(&self, private: &mut PrivateMemory, area: &Area<Mapping>, at: Iova) {
        for piece in pieces(self.id, area) {
            let last = piece.first.saturating_add(piece.span.last_offset());
            for left in private.overlapping(piece.owner, piece.first, last) {
                let is_own = left.space == self.id && area.span.encloses(&left.span);
                if let Some((first, second)) = left.cut(at).filter(|_| is_own) {
                    private.remove(left);
                    private.insert(first);
                    private.insert(second);
                }
            }
        }
    }

    /// Removes the area that starts at `first`. Its pins are to be dropped
    /// after a grace.
    pub fn unmap(
        &self,
        private: &mut PrivateMemory,
        first: Iova,
        (via, by): (Via, Option<Actor>),
    ) -> Option<Area<Mapping>> {
        let mut area = self.space.unmap(first)?;
        self.forget(private, &mut area);
        self.observer.unmapped(self.id, area.span, via, by);
        Some(area)
    }

    /// The memory behind `span`, which lies in one area, is gone.
    pub(crate) fn revoke(&self, span: Span, by: Option<Actor>) {
        self.space.revoke(span);
        self.space.with_area(span.first(), |area| {
            area.payload.revoked = true;
            area.payload.pages.outdate();
        });
        self.observer.revoked(self.id, span, by);
    }

    /// Gives the area of `span` the output of `pinned`, which becomes its own.
    fn publish(
        &self,
        private: &mut PrivateMemory,
        span: Span,
        pinned: Box<dyn Pinned>,
    ) -> Result<(), PinError> {
        self.space
            .fill(span.first(), pinned.segments())
            .map_err(|_| PinError::NoMemory)?;
        self.space.with_area(span.first(), |area| {
            area.payload.pinned = Some(pinned);
            for piece in pieces(self.id, area) {
                private.insert(piece);
            }
        });
        Ok(())
    }

    /// Drops what the index knows of the area's private memory.
    fn forget(&self, private: &mut PrivateMemory, area: &mut Area<Mapping>) {
        for piece in pieces(self.id, area) {
            if area.payload.revoked {
                // What is left of a piece may be several.
                let last = piece.first.saturating_add(piece.span.last_offset());
                for left in private.overlapping(piece.owner, piece.first, last) {
                    if left.space == self.id && area.span.encloses(&left.span) {
                        private.remove(left);
                    }
                }
            } else {
                private.remove(piece);
            }
        }
    }

    #[cold]
    fn refuse(&self, request: &Request, miss: Miss) -> Result<Outcome<'_>, Fault> {
        let first = request.span.first();
        if matches!(miss, Miss::NotMapped | Miss::Unfilled) && request.access == Access::Write {
            let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
            if windows.iter().any(|(_, window)| window.contains(first)) {
                return Ok(Outcome::Message { address: first.0 });
            }
        }
        Err(self.fault(request, miss))
    }

    /// The fault of a request that misses.
    #[cold]
    pub(crate) fn fault(&self, request: &Request, miss: Miss) -> Fault {
        let first = request.span.first();
        let reason = match miss {
            Miss::Permission => FaultReason::Permission,
            Miss::Revoked => FaultReason::Revoked,
            Miss::NotMapped | Miss::Unfilled => {
                let byte = Span::new(first, first);
                match byte.is_some_and(|byte| self.space.is_reserved(byte)) {
                    true => FaultReason::Reserved,
                    false => FaultReason::NotMapped,
                }
            }
        };
        Fault {
            source_id: request.source,
            span: request.span,
            access: request.access,
            reason,
            walk: None,
            recoverable: false,
        }
    }

    /// Where a request ends in memory that is pinned.
    #[inline]
    pub(crate) fn translate_or_miss<'g>(
        &'g self,
        guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Run<'g>, Miss> {
        let hit = self.space.lookup(guard, request.span, request.access)?;
        let memory: &dyn Memory = match is_bar(hit.output) {
            true => &*self.bars,
            false => &*self.memory,
        };
        Ok(Run::new(memory, hit.output, hit.length, hit.rights))
    }
}

/// The private memory that `area`'s pins reach.
fn pieces(space: SpaceId, area: &Area<Mapping>) -> impl Iterator<Item = Piece> {
    let mapping = &area.payload;
    let private = mapping.pinned.iter().flat_map(|pinned| pinned.private());
    let start = mapping.pages.start().saturating_add(mapping.offset);
    let owner = mapping.pages.address_space();
    let from = area.span.first();
    private.filter_map(move |&(offset, length)| {
        Some(Piece {
            owner,
            first: start.saturating_add(offset),
            space,
            span: Span::with_length(from.checked_add(offset)?, length)?,
        })
    })
}

impl Translate for Ioas {
    fn translate<'g>(
        &'g self,
        guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        match self.translate_or_miss(guard, request) {
            Ok(run) => Ok(Outcome::Memory(run)),
            Err(miss) => self.refuse(request, miss),
        }
    }
}
