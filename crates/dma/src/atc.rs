//! A device's own translations, asked for ahead of its accesses: PCI Express
//! Base 6.0 chapter 10 (Address Translation Services).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{
    Access, DeviceTlb, DeviceTlbError, Fault, InFlight, Iova, Kind, Outcome, Pasid, Request,
    Rights, Slot, Span, TlbScope, Translate,
};

/// Translations of pages of 4 KiB; a power of two.
const ENTRIES: usize = 1024;
/// Regions of 2 MiB that are told apart by invalidations; a power of two.
const REGIONS: usize = 64;
const PAGE: u64 = 0xfff;

/// An Address Translation Cache: what the ports of one function share. While
/// it is enabled they ask the IOMMU for translations and then send requests
/// that are translated.
///
/// It drops more than it is told to: every PASID's, and whole regions.
pub struct Atc {
    enabled: AtomicBool,
    /// Page number, PASID, output with rights in its low bits, and the count
    /// of invalidations when it was asked for.
    entries: Box<[Slot<4>]>,
    invalidations: AtomicU64,
    /// What is older than its region's mark is void.
    marks: [AtomicU64; REGIONS],
}

impl Default for Atc {
    fn default() -> Self {
        Self {
            enabled: AtomicBool::new(false),
            entries: (0..ENTRIES).map(|_| Slot::new()).collect(),
            invalidations: AtomicU64::new(0),
            marks: [const { AtomicU64::new(0) }; REGIONS],
        }
    }
}

impl Atc {
    /// A cache that is not enabled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Follows the Enable bit of the function's ATS Control Register. What was
    /// kept is dropped.
    pub fn set_enabled(&self, enabled: bool) {
        self.drop_span(Span::whole());
        self.enabled.store(enabled, Ordering::Release);
    }

    /// Whether the function asks for translations.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// The translated request that stands for the first piece of `request`;
    /// `None` if the IOMMU gives no right to it, so that it is to be made
    /// untranslated.
    pub(crate) fn translate(
        &self,
        space: &dyn Translate,
        guard: &InFlight<'_>,
        request: &Request,
    ) -> Result<Option<Request>, Fault> {
        let page = request.span.first().0 & !PAGE;
        let (output, rights) = match self.get(request, page) {
            Some((output, rights)) if rights.allows(request.access) => (output, rights),
            _ => match self.ask(space, guard, request, page)? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        if !rights.allows(request.access) {
            return Ok(None);
        }
        let offset = request.span.first().0 & PAGE;
        let length = request.span.last_offset().min(PAGE.wrapping_sub(offset));
        let span = Span::new(
            Iova(output | offset),
            Iova((output | offset).saturating_add(length)),
        );
        Ok(span.map(|span| Request {
            span,
            kind: Kind::Translated,
            ..*request
        }))
    }

    fn ask(
        &self,
        space: &dyn Translate,
        guard: &InFlight<'_>,
        request: &Request,
        page: u64,
    ) -> Result<Option<(u64, Rights)>, Fault> {
        let stamp = self.invalidations.load(Ordering::Acquire);
        let asked = Request {
            span: Span::new(Iova(page), Iova(page | PAGE)).unwrap_or(request.span),
            // Without the intention to write the answer may lack that right.
            access: match request.access {
                Access::Atomic => Access::Write,
                access => access,
            },
            kind: Kind::TranslationRequest,
            ..*request
        };
        let Outcome::Memory(run) = space.translate(guard, &asked)? else {
            return Ok(None);
        };
        let whole = run.length() > PAGE && run.address() & PAGE == 0;
        if !whole || run.rights() == Rights::NONE {
            return Ok(None);
        }
        let data = run.address() | u64::from(run.rights().bits());
        if let Some(entry) = self.entry(page) {
            entry.write(0, [page, tag(request), data, stamp]);
        }
        Ok(Some((run.address(), run.rights())))
    }

    fn get(&self, request: &Request, page: u64) -> Option<(u64, Rights)> {
        let (_, [found, pasid, data, stamp]) = self.entry(page)?.read()?;
        let mark = self.marks.get(region(page))?.load(Ordering::Acquire);
        let valid = found == page && pasid == tag(request) && stamp >= mark;
        let rights = Rights::from_bits((data & 3) as u8);
        valid.then_some((data & !PAGE, rights))
    }

    fn entry(&self, page: u64) -> Option<&Slot<4>> {
        let index = usize::try_from(page >> 12 & 0xffff).ok()?;
        self.entries.get(index & ENTRIES.wrapping_sub(1))
    }

    fn drop_span(&self, span: Span) {
        let now = self.invalidations.fetch_add(1, Ordering::AcqRel);
        let now = now.wrapping_add(1);
        let (first, last) = (span.first().0 >> 21, span.last().0 >> 21);
        let all = REGIONS.try_into().unwrap_or(u64::MAX);
        for number in (first..=last).take_while(|number| number.wrapping_sub(first) < all) {
            if let Some(mark) = self.marks.get(region(number << 21)) {
                mark.store(now, Ordering::Release);
            }
        }
    }
}

impl DeviceTlb for Atc {
    fn invalidate(&self, _scope: TlbScope, span: Span) -> Result<(), DeviceTlbError> {
        self.drop_span(span);
        Ok(())
    }
}

fn region(page: u64) -> usize {
    usize::try_from(page >> 21 & 0xffff).map_or(0, |number| number & REGIONS.wrapping_sub(1))
}

/// Names the PASID and the privilege.
fn tag(request: &Request) -> u64 {
    let pasid = request.source.pasid.map(Pasid::as_u32);
    let pasid = pasid.map_or(0, |pasid| u64::from(pasid) << 1 | 1);
    pasid << 1 | u64::from(request.privilege == crate::Privilege::Supervisor)
}
