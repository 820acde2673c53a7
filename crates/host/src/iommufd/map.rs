//! Mapping, copying and unmapping in an IOAS. Linux
//! `drivers/iommu/iommufd/ioas.c`.

use std::sync::Arc;

use iogate_dma::{Iova, Rights, Span};
use iogate_space::MapError;

use super::ioas::{IoasObject, pin_error};
use super::shared::SharedPages;
use super::{Context, Failure};
use crate::ioas::{MapFailure, Mapping, Reach};
use crate::private::PrivateMemory;
use crate::{Actor, Caller, Error, ErrorKind, FileId, Host, Pages, PinError, Pinned, Retired, Via};

/// Where a mapping goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// There, or nowhere.
    Fixed(Iova),
    /// Wherever is room.
    Anywhere,
}

/// A mapping to be made.
pub struct Mapped {
    /// The IOAS.
    pub ioas: u32,
    /// The memory: `length` bytes of it from its start.
    pub pages: Arc<dyn Pages>,
    /// Bytes, at least 1.
    pub length: u64,
    /// Where it goes.
    pub place: Place,
    /// What devices may do.
    pub rights: Rights,
    /// The call that makes it.
    pub via: Via,
}

/// A mapping to be made of another's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copied {
    /// The IOAS whose pages are taken.
    pub from: u32,
    /// Which of them.
    pub source: Span,
    /// The IOAS of the new mapping.
    pub to: u32,
    /// Where it goes.
    pub place: Place,
    /// What devices may do.
    pub rights: Rights,
}

/// What an unmap came to. What it removed before it failed stays removed.
#[must_use = "what is retired must be waited for"]
pub struct Unmapped {
    /// Bytes that are no longer mapped.
    pub bytes: u64,
    /// ENOENT: nothing was mapped, or a mapping lies only partly in the range.
    pub outcome: Result<(), Error>,
    /// What was pinned.
    pub retired: Retired,
}

/// A part of a mapping to be made: pages, where they start, and how many.
pub(super) struct Part {
    pub(super) pages: Arc<dyn Pages>,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// What its mapping allows.
    pub(super) rights: Rights,
}

impl Host {
    /// IOMMU_IOAS_MAP and IOMMU_IOAS_MAP_FILE. Says where the mapping is.
    /// ENOENT without the IOAS; EINVAL, EOVERFLOW for a place or a length that
    /// cannot be; EEXIST if something is mapped there; ENOSPC if no place is
    /// free; EFAULT, ENOMEM if the memory is to be pinned and cannot. Linux
    /// `iopt_map_user_pages`.
    pub fn ioas_map(
        &self,
        file: FileId,
        mapped: Mapped,
        caller: &dyn Caller,
    ) -> Result<Iova, Failure> {
        let mut state = self.lock();
        let state = &mut *state;
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        context.objects.ioas(mapped.ioas)?;
        let config = (&self.config, &state.ledger);
        let payer = (caller, context.rlimit_mode);
        let pages = SharedPages::new(mapped.pages, mapped.rights, config, payer);
        let pages = Arc::new(pages);
        context.remember(&pages);
        let ioas = context.objects.ioas_mut(mapped.ioas)?;
        let part = Part {
            pages,
            offset: 0,
            length: mapped.length,
            rights: mapped.rights,
        };
        let how = (mapped.via, Some(caller.actor()));
        let (place, rights) = (mapped.place, mapped.rights);
        ioas.map_parts(self, &mut state.private, &[part], place, rights, how)
    }

    /// IOMMU_IOAS_COPY. Says where the mapping is. ENOENT without one of the
    /// spaces, or if something of the source is not mapped; EPERM if it would
    /// allow writes where the source's pages were named for reading; else as
    /// [`ioas_map`](Self::ioas_map). Linux `iopt_get_pages`, `iopt_map_pages`.
    pub fn ioas_copy(
        &self,
        file: FileId,
        copied: Copied,
        caller: &dyn Caller,
    ) -> Result<Iova, Failure> {
        let mut state = self.lock();
        let state = &mut *state;
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let parts = context.objects.ioas(copied.from)?.parts(copied.source)?;
        let ioas = context.objects.ioas_mut(copied.to)?;
        let how = (Via::IoasCopy, Some(caller.actor()));
        let (place, rights) = (copied.place, copied.rights);
        ioas.map_parts(self, &mut state.private, &parts, place, rights, how)
    }

    /// IOMMU_IOAS_UNMAP: removes the mappings in `span`, from the lowest up.
    /// ENOENT without the IOAS. Linux `iommufd_ioas_unmap`.
    pub fn ioas_unmap(
        &self,
        file: FileId,
        ioas: u32,
        span: Span,
        caller: &dyn Caller,
    ) -> Result<Unmapped, Error> {
        let mut state = self.lock();
        let state = &mut *state;
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let ioas = context.objects.ioas_mut(ioas)?;
        let mut retired = Retired::default();
        let how = (Via::IoasUnmap, Some(caller.actor()));
        let (bytes, outcome) = ioas.unmap(self, &mut state.private, span, how, &mut retired);
        Ok(Unmapped {
            bytes,
            outcome,
            retired,
        })
    }
}

impl IoasObject {
    /// The pages behind `source`: ENOENT if there is a hole.
    pub(super) fn parts(&self, source: Span) -> Result<Vec<Part>, Error> {
        let mut parts = Vec::new();
        let mut next = Some(source.first());
        while let Some(from) = next.filter(|from| *from <= source.last()) {
            let part = self.space.space().with_area(from, |area| {
                let skipped = from.0.saturating_sub(area.span.first().0);
                let last = area.span.last().min(source.last());
                let part = Part {
                    pages: Arc::clone(&area.payload.pages),
                    offset: area.payload.offset.saturating_add(skipped),
                    length: last.0.saturating_sub(from.0).saturating_add(1),
                    rights: area.rights,
                };
                (part, last)
            });
            let (part, last) = part.ok_or(Error::new(
                ErrorKind::NotFound,
                "the source is not mapped throughout",
            ))?;
            parts.push(part);
            next = last.checked_add(1);
        }
        Ok(parts)
    }

    /// Maps `parts` side by side. Linux `iopt_alloc_area_pages`,
    /// `iopt_insert_area`, `iopt_fill_domains_pages`.
    pub(super) fn map_parts(
        &mut self,
        host: &Host,
        private: &mut PrivateMemory,
        parts: &[Part],
        place: Place,
        rights: Rights,
        how: (Via, Option<Actor>),
    ) -> Result<Iova, Failure> {
        let lengths = parts.iter().map(|part| part.length);
        let length = lengths.fold(0_u64, u64::saturating_add);
        if length == 0 || !self.is_aligned(length) {
            return Err(Error::invalid("the length is not aligned").into());
        }
        let whole = match place {
            Place::Fixed(iova) => self.check_place(iova, length)?,
            Place::Anywhere => {
                let start = parts.first().map_or(0, Part::start);
                self.find_place(start, length)?
            }
        };
        for part in parts {
            if rights.can_write() && !part.pages.is_writable() {
                return Err(Error::new(
                    ErrorKind::NotPermitted,
                    "the pages were named for reading only",
                )
                .into());
            }
            if !self.is_aligned(part.start() % crate::iommufd::PAGE_SIZE) {
                return Err(Error::invalid("the memory is not aligned").into());
            }
        }
        // Pinned before anything is visible: the parts share these pins, so
        // that mapping them cannot fail for want of memory half-way.
        let mut held = Vec::new();
        let reach = if self.is_pinned() {
            for part in parts {
                held.push(
                    part.pin(rights)
                        .map_err(|error| pin_error(error, part.pages.is_file()))?,
                );
            }
            Reach::Now
        } else {
            Reach::Later
        };
        let mut first = whole.first();
        for part in parts {
            let mapping = Mapping::new(Arc::clone(&part.pages), part.offset);
            let mapped = Span::with_length(first, part.length)
                .ok_or(MapFailure::Pin(PinError::NoMemory))
                .and_then(|span| self.space.map(private, span, rights, mapping, reach, how));
            if let Err(failure) = mapped {
                let mut retired = host.retire(held);
                if let Some(last) = first.0.checked_sub(1)
                    && let Some(done) = Span::new(whole.first(), Iova(last))
                {
                    let _ = self.unmap(host, private, done, how, &mut retired);
                }
                return Err(Failure {
                    error: map_error(failure, part.pages.is_file()),
                    retired: Box::new(retired),
                });
            }
            first = Iova(first.0.saturating_add(part.length));
        }
        Ok(whole.first())
    }
}

impl Part {
    /// Where its memory starts.
    fn start(&self) -> u64 {
        self.pages.start().wrapping_add(self.offset)
    }

    /// Its memory, for devices.
    pub(super) fn pin(&self, rights: Rights) -> Result<Box<dyn Pinned>, PinError> {
        self.pages.pin(self.offset, self.length, rights)
    }

    /// Its memory, for software that copies.
    pub(super) fn lend(&self, rights: Rights) -> Result<Box<dyn Pinned>, PinError> {
        self.pages.lend(self.offset, self.length, rights)
    }
}

fn map_error(failure: MapFailure, is_file: bool) -> Error {
    match failure {
        MapFailure::Pin(error) => pin_error(error, is_file),
        MapFailure::Space(MapError::Overlaps(_)) => {
            Error::new(ErrorKind::Exists, "something is mapped there")
        }
        MapFailure::Space(MapError::Reserved(_)) => Error::invalid("the IOVA is reserved"),
        MapFailure::Space(MapError::Full) => Error::new(
            ErrorKind::NoMemory,
            "the translation tables have reached their limit",
        ),
    }
}
