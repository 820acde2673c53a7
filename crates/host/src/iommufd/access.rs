//! Accesses: a device of software that reads and writes an IOAS by itself,
//! with no unit between. Linux `drivers/iommu/iommufd/device.c`,
//! `iommufd_access_create` and what follows it.

use std::collections::BTreeMap;

use iogate_dma::{Iova, Rights, Span};
use iogate_space::Segment;

use super::ioas::pin_error;
use super::map::Part;
use super::objects::Object;
use super::{Context, Failure, PAGE_SIZE};
use crate::state::{File, State};
use crate::{Error, ErrorKind, FileId, FileKind, Host, Path, PinError, Pinned, Retired};

/// An access as an object of an iommufd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Access {
    pub(crate) ioas: Option<u32>,
    /// What its user asks of mappings: whole pages if it pins.
    pub(crate) alignment: u64,
    /// The index of the mediated device that it is of, if it is of one.
    pub(crate) device: Option<usize>,
}

/// What accesses of an IOAS hold.
#[derive(Default)]
pub(crate) struct Users(BTreeMap<u32, User>);

struct User {
    alignment: u64,
    pins: Pins,
}

/// What an access pinned, by numbers that are its own.
#[derive(Default)]
pub(crate) struct Pins {
    entries: BTreeMap<u32, (Span, Vec<Box<dyn Pinned>>)>,
    next: u32,
}

impl Pins {
    /// All the pages.
    pub(super) fn into_pages(self) -> Vec<Box<dyn Pinned>> {
        let entries = self.entries.into_values();
        entries.flat_map(|(_, pages)| pages).collect()
    }
}

impl Users {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn alignment(&self) -> u64 {
        let alignments = self.0.values().map(|user| user.alignment);
        alignments.max().unwrap_or(1)
    }

    pub(super) fn insert(&mut self, id: u32, alignment: u64) {
        let pins = Pins::default();
        self.0.insert(id, User { alignment, pins });
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Pins> {
        self.0.remove(&id).map(|user| user.pins)
    }

    /// Takes away all pins that have a byte of `span`. Linux
    /// `iommufd_access_notify_unmap`.
    pub(super) fn release(&mut self, span: Span) -> Vec<Box<dyn Pinned>> {
        let mut pages = Vec::new();
        for user in self.0.values_mut() {
            let entries = std::mem::take(&mut user.pins.entries);
            for (id, (pinned, held)) in entries {
                if pinned.overlaps(&span) {
                    pages.extend(held);
                } else {
                    user.pins.entries.insert(id, (pinned, held));
                }
            }
        }
        pages
    }

    /// Whether something in `span` is pinned.
    pub(super) fn pin_in(&self, span: Span) -> bool {
        let mut pins = self.0.values().flat_map(|user| user.pins.entries.values());
        pins.any(|(pinned, _)| pinned.overlaps(&span))
    }

    /// All that is pinned.
    pub(super) fn pages(&self) -> impl Iterator<Item = &dyn Pinned> {
        let pins = self.0.values().flat_map(|user| user.pins.entries.values());
        pins.flat_map(|(_, pages)| pages.iter().map(|page| &**page))
    }
}

/// What an access does with an IOAS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessMode {
    /// It pins pages: mappings must be of whole ones.
    Pins,
    /// It only reads and writes.
    Copies,
}

/// Pages that an access pinned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessPages {
    /// Their number, for [`Host::access_unpin`].
    pub id: u32,
    /// Where they are, in order.
    pub segments: Vec<Segment>,
}

impl Host {
    /// Makes an access to an IOAS, and a file that it goes with. ENOENT without
    /// the IOAS; EADDRINUSE if a mapping is not of whole pages and the access
    /// wants that. Linux `iommufd_access_create`, `iommufd_access_attach`.
    pub fn access_create(
        &self,
        file: FileId,
        ioas: u32,
        mode: AccessMode,
    ) -> Result<FileId, Error> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let alignment = match mode {
            AccessMode::Pins => PAGE_SIZE,
            AccessMode::Copies => 1,
        };
        let access = Access {
            ioas: None,
            alignment,
            device: None,
        };
        let id = context.objects.insert(Object::Access(access))?;
        if let Err(error) = self.change_ioas(context, id, Some(ioas)) {
            context.objects.remove(id);
            return Err(error);
        }
        let own = self.enter(File {
            kind: FileKind::Access,
            path: Path::Cdev,
            usable: true,
        });
        state.accesses.insert(own, (file, id));
        Ok(own)
    }

    /// Has an access use another IOAS: what it pinned is unpinned. ENOENT
    /// without the IOAS or if it uses none; EADDRINUSE. Linux
    /// `iommufd_access_replace`.
    pub fn access_replace(&self, access: FileId, ioas: u32) -> Result<Retired, Error> {
        let mut state = self.lock();
        let (context, id) = state.access(access)?;
        context.objects.access(id)?.ioas.ok_or(NO_IOAS)?;
        self.change_ioas(context, id, Some(ioas))
    }

    /// Pins `span` for an access. EINVAL for one that does not pin, EPERM if a
    /// mapping does not allow `rights`, ENOENT if not all of it is mapped;
    /// EFAULT, ENOMEM. Linux `iommufd_access_pin_pages`.
    pub fn access_pin(
        &self,
        access: FileId,
        span: Span,
        rights: Rights,
    ) -> Result<AccessPages, Failure> {
        let mut state = self.lock();
        let (context, id) = state.access(access)?;
        let Access {
            ioas, alignment, ..
        } = context.objects.access(id)?;
        if alignment != PAGE_SIZE {
            return Err(Error::invalid("the access does not pin pages").into());
        }
        let pages = context.pin_parts(ioas.ok_or(NO_IOAS)?, span, rights, Part::pin);
        let pages = pages.map_err(|(error, pages)| Failure {
            error,
            retired: Box::new(self.retire(pages)),
        })?;
        let segments = pages.iter().flat_map(|page| page.segments()).copied();
        let segments = segments.collect();
        let users = &mut context.objects.ioas_mut(ioas.ok_or(NO_IOAS)?)?.users;
        let user = users.0.get_mut(&id).ok_or(NO_IOAS)?;
        let number = user.pins.next;
        user.pins.next = number.wrapping_add(1);
        user.pins.entries.insert(number, (span, pages));
        Ok(AccessPages {
            id: number,
            segments,
        })
    }

    /// Lets go of what [`access_pin`](Self::access_pin) pinned: ENOENT if that
    /// is so already. Linux `iommufd_access_unpin_pages`.
    pub fn access_unpin(&self, access: FileId, pages: u32) -> Result<Retired, Error> {
        let mut state = self.lock();
        let (context, id) = state.access(access)?;
        let ioas = context.objects.access(id)?.ioas.ok_or(NO_IOAS)?;
        let users = &mut context.objects.ioas_mut(ioas)?.users;
        let user = users.0.get_mut(&id).ok_or(NO_IOAS)?;
        let pinned = user.pins.entries.remove(&pages);
        let (_, pinned) = pinned.ok_or(Error::new(
            ErrorKind::NotFound,
            "the access has not pinned these pages",
        ))?;
        Ok(self.retire(pinned))
    }

    /// Fills `into` from `iova` on. As [`access_pin`](Self::access_pin), but
    /// for any access. Linux `iommufd_access_rw`.
    pub fn access_read(&self, access: FileId, iova: Iova, into: &mut [u8]) -> Result<(), Error> {
        let mut rest = into;
        let length = rest.len();
        self.with_pages(access, iova, length, Rights::READ, |segment, length| {
            let (now, later) = std::mem::take(&mut rest)
                .split_at_mut_checked(length)
                .unwrap_or_default();
            rest = later;
            self.config.memory.read(segment.output, now).is_ok()
        })
    }

    /// Writes `from` to `iova` on. As [`access_read`](Self::access_read).
    pub fn access_write(&self, access: FileId, iova: Iova, from: &[u8]) -> Result<(), Error> {
        let mut rest = from;
        self.with_pages(
            access,
            iova,
            from.len(),
            Rights::WRITE,
            |segment, length| {
                let (now, later) = rest.split_at_checked(length).unwrap_or_default();
                rest = later;
                self.config.memory.write(segment.output, now).is_ok()
            },
        )
    }

    fn with_pages(
        &self,
        access: FileId,
        iova: Iova,
        length: usize,
        rights: Rights,
        mut touch: impl FnMut(&Segment, usize) -> bool,
    ) -> Result<(), Error> {
        let mut state = self.lock();
        let (context, id) = state.access(access)?;
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let span = span(iova, length)?;
        let ioas = context.objects.access(id)?.ioas.ok_or(NO_IOAS)?;
        let pages = context.pin_parts(ioas, span, rights, Part::lend);
        let pages = pages.map_err(|(error, _)| error)?;
        let mut segments = pages.iter().flat_map(|page| page.segments());
        let touched = segments.all(|segment| {
            let length = usize::try_from(segment.length);
            length.is_ok_and(|length| touch(segment, length))
        });
        match touched {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Fault, "the memory is gone")),
        }
    }

    /// The last descriptor of an access went. Linux `iommufd_access_destroy`.
    pub(crate) fn close_access(&self, state: &mut State, file: FileId, retired: &mut Retired) {
        let Some((iommufd, id)) = state.accesses.remove(&file) else {
            return;
        };
        self.drop_access(state, iommufd, id, retired);
    }

    /// Ends an access, and the iommufd if it was the last that held it.
    pub(super) fn drop_access(
        &self,
        state: &mut State,
        iommufd: FileId,
        id: u32,
        retired: &mut Retired,
    ) {
        if let Some(context) = state.iommufds.get_mut(&iommufd) {
            if let Ok(left) = self.change_ioas(context, id, None) {
                retired.merge(left);
            }
            context.objects.remove(id);
        }
        self.forget_iommufd(state, iommufd, retired);
    }
}

impl Context {
    /// Pins what lies behind `span`, or nothing: then what was pinned in vain.
    /// `pin` says how: [`Part::pin`] or [`Part::lend`].
    #[allow(clippy::type_complexity, reason = "read in one place")]
    fn pin_parts(
        &self,
        ioas: u32,
        span: Span,
        rights: Rights,
        pin: impl Fn(&Part, Rights) -> Result<Box<dyn Pinned>, PinError>,
    ) -> Result<Vec<Box<dyn Pinned>>, (Error, Vec<Box<dyn Pinned>>)> {
        let parts = self.objects.ioas(ioas).and_then(|ioas| ioas.parts(span));
        let parts = parts.map_err(|error| (error, Vec::new()))?;
        let mut pages = Vec::new();
        for part in parts {
            if !part.rights.covers(rights) {
                let error = Error::new(
                    ErrorKind::NotPermitted,
                    "the mapping does not allow such an access",
                );
                return Err((error, pages));
            }
            if !part.pages.is_memory() {
                let error = Error::invalid("software cannot access a device's own memory");
                return Err((error, pages));
            }
            match pin(&part, rights) {
                Ok(pinned) => pages.push(pinned),
                Err(error) => return Err((pin_error(error, part.pages.is_file()), pages)),
            }
        }
        Ok(pages)
    }
}

/// EINVAL for an empty range, EOVERFLOW for one that wraps.
fn span(iova: Iova, length: u64) -> Result<Span, Error> {
    if length == 0 {
        return Err(Error::invalid("the range is empty"));
    }
    Span::with_length(iova, length).ok_or(Error::new(
        ErrorKind::Overflow,
        "the range passes the top of the address space",
    ))
}

impl State {
    fn access(&mut self, file: FileId) -> Result<(&mut Context, u32), Error> {
        let access = self.accesses.get(&file).copied();
        let (iommufd, id) = access.ok_or(Error::new(
            ErrorKind::BadDescriptor,
            "the descriptor is no access",
        ))?;
        let context = self.iommufds.get_mut(&iommufd).ok_or(Context::NONE)?;
        Ok((context, id))
    }
}

const NO_IOAS: Error = Error::new(ErrorKind::NotFound, "the access uses no IOAS");
