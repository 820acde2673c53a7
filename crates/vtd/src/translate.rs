//! From a request to a run of guest memory: root, context and PASID entries,
//! then the tables. VT-d 4.1 section 3.

mod domain;
mod entrance;
mod limits;
mod told;
mod walk;

use iogate_dma::{
    Access, Fault, FaultReason, InFlight, Kind, Outcome, Privilege, Request, RequesterId, Rights,
    Run, Source, Translate,
};

pub(crate) use domain::{Domain, Head, Kind as DomainKind, Space};
pub(crate) use entrance::Denied;
pub(crate) use limits::Limits;
pub(crate) use walk::{Page, Refusal};

use crate::Vtd;
use crate::fault::Refused;
use crate::spec::fault::Reason;

/// The addresses whose writes are interrupts. VT-d 4.1 section 3.15.
pub(crate) const INTERRUPTS: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

impl Translate for Vtd {
    #[inline]
    fn translate<'g>(
        &'g self,
        _guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        match self.hit(request) {
            Some(run) => Ok(Outcome::Memory(run)),
            None => self.miss(request),
        }
    }
}

impl Vtd {
    /// The answer to an ordinary request that is remembered where it is looked
    /// for first. It is never about the interrupt range: that is not
    /// remembered.
    #[inline]
    fn hit<'g>(&'g self, request: &Request) -> Option<Run<'g>> {
        let ordinary = request.kind == Kind::Untranslated
            && request.privilege == Privilege::User
            && request.access != Access::Execute;
        if !ordinary || !self.live.translates() {
            return None;
        }
        let (source, address) = (request.source, request.span.first().0);
        let head = self.caches.domains.head(source)?;
        let translations = &self.caches.translations;
        let page = translations.get_near(head, source.requester, address)?;
        if !page.permissions.allow(request.access, Privilege::User) {
            return None;
        }
        self.tell_use(request, &page);
        let rights = page.permissions.rights(Privilege::User);
        let left = page.mask.wrapping_sub(address & page.mask);
        let last = request.span.last_offset().min(left);
        let length = last.saturating_add(1);
        Some(Run::new(&*self.ram, page.output, length, rights))
    }

    /// Every other answer.
    #[inline(never)]
    fn miss<'g>(&'g self, request: &Request) -> Result<Outcome<'g>, Fault> {
        let address = request.span.first().0;
        if INTERRUPTS.contains(&address)
            && request.source.pasid.is_none()
            && request.kind != Kind::Translated
        {
            return self.interrupt_range(request);
        }
        if !self.live.translates() {
            return self.untranslated(request);
        }
        let domain = match self.caches.domains.get(request.source) {
            Some(domain) => domain,
            None => self.enter_and_remember(request)?,
        };
        if request.kind != Kind::Untranslated {
            self.serves_device_tlb(request, &domain)?;
        }
        if request.kind == Kind::Translated {
            return self.translated(request, &domain);
        }
        let access = self.access(request);
        if let Some(page) = self.remembered(request, &domain, access) {
            self.tell_use(request, &page);
            return self.found(request, &domain, page);
        }
        self.walk(request, &domain, access)
    }

    /// Whether the unit is responsible for the function.
    #[inline]
    pub(crate) fn is_behind(&self, requester: RequesterId) -> bool {
        self.scope
            .as_ref()
            .is_none_or(|scope| scope.contains(&requester))
    }

    /// A request while translation is off.
    fn untranslated<'g>(&'g self, request: &Request) -> Result<Outcome<'g>, Fault> {
        let asks = request.kind == Kind::TranslationRequest;
        if asks || !self.is_behind(request.source.requester) {
            return Err(fault(request, FaultReason::Blocked));
        }
        let address = request.span.first().0;
        let run = self.run(request, address, u64::MAX, Rights::READ_WRITE);
        Ok(Outcome::Memory(run))
    }

    /// The domain that the request enters, by the structures.
    #[cold]
    fn enter_and_remember(&self, request: &Request) -> Result<Domain, Fault> {
        if !self.is_behind(request.source.requester) {
            return Err(fault(request, FaultReason::Blocked));
        }
        let stamp = self.caches.domains.stamp();
        match self.enter(request.source, request.kind) {
            Ok(domain) => {
                self.caches.domains.put(stamp, request.source, &domain);
                Ok(domain)
            }
            Err(denied) => Err(self.deny(request, denied)),
        }
    }

    /// The page, if it is remembered and allows the access.
    #[inline]
    fn remembered(&self, request: &Request, domain: &Domain, access: Access) -> Option<Page> {
        if domain.head.kind() == DomainKind::PassThrough {
            return None;
        }
        let (source, privilege) = (request.source.requester, request.privilege);
        let address = request.span.first().0;
        let page = self.caches.translations.get(domain.head, source, address)?;
        let allowed = page.permissions.allow(access, privilege);
        (allowed && domain.serves(access, privilege).is_ok()).then_some(page)
    }

    /// Walks the tables, and remembers what they say.
    #[inline]
    fn walk<'g>(
        &'g self,
        request: &Request,
        domain: &Domain,
        access: Access,
    ) -> Result<Outcome<'g>, Fault> {
        let address = request.span.first().0;
        let stamp = self.caches.translations.stamp();
        let (ram, privilege) = (&*self.ram, request.privilege);
        let found = domain.walk(&self.limits, ram, address, access, privilege);
        told::walk(request, domain, &found);
        match found {
            Ok(page) => {
                let source = request.source.requester;
                let translations = &self.caches.translations;
                translations.put(stamp, domain.head, source, address, &page);
                self.found(request, domain, page)
            }
            Err(refusal) if request.kind == Kind::Untranslated => {
                Err(self.refuse(request, domain, refusal))
            }
            Err(refusal) => self.unanswered(request, domain, refusal),
        }
    }

    /// What the request does, as far as the unit can tell: without ECAP.ERS
    /// fetching an instruction is reading.
    #[inline]
    const fn access(&self, request: &Request) -> Access {
        match request.access {
            Access::Execute if !self.limits.execute => Access::Read,
            access => access,
        }
    }

    /// A request without PASID to the interrupt range: writes are interrupts,
    /// others are refused, and whoever asks learns that it is not to be
    /// translated.
    #[cold]
    fn interrupt_range<'g>(&'g self, request: &Request) -> Result<Outcome<'g>, Fault> {
        let address = request.span.first().0;
        if !self.is_behind(request.source.requester) {
            return Err(fault(request, FaultReason::Blocked));
        }
        match (request.kind, request.access) {
            (Kind::TranslationRequest, _) => Ok(Outcome::Memory(self.run(
                request,
                address,
                0xfff,
                Rights::NONE,
            ))),
            (_, Access::Write) => Ok(Outcome::Message { address }),
            _ if !self.live.translates() => Err(fault(request, FaultReason::Reserved)),
            _ => match self.enter(request.source, request.kind) {
                Ok(domain) => {
                    let refusal = in_interrupt_range(domain.head.scalable());
                    Err(self.refuse(request, &domain, refusal))
                }
                Err(denied) => Err(self.deny(request, denied)),
            },
        }
    }

    /// Only domains that say so serve requests of device-TLBs.
    fn serves_device_tlb(&self, request: &Request, domain: &Domain) -> Result<(), Fault> {
        if domain.head.device_tlb() {
            return Ok(());
        }
        let denied = Denied {
            reason: if domain.head.scalable() {
                Reason::SM_NO_DEVICE_TLB
            } else {
                Reason::TYPE_BLOCKED
            },
            quiet: domain.head.quiet(),
        };
        Err(self.deny(request, denied))
    }

    /// A request whose address a device-TLB translated.
    fn translated<'g>(&'g self, request: &Request, domain: &Domain) -> Result<Outcome<'g>, Fault> {
        let address = request.span.first().0;
        let scalable = domain.head.scalable();
        if INTERRUPTS.contains(&address) {
            return Err(self.refuse(request, domain, in_interrupt_range(scalable)));
        }
        let run = self.run(request, address, u64::MAX, Rights::READ_WRITE);
        Ok(Outcome::Memory(run))
    }

    /// The answer that `page` gives.
    #[inline]
    fn found<'g>(
        &'g self,
        request: &Request,
        domain: &Domain,
        page: Page,
    ) -> Result<Outcome<'g>, Fault> {
        if INTERRUPTS.contains(&page.output) {
            let refusal = in_interrupt_range(domain.head.scalable());
            return Err(self.refuse(request, domain, refusal));
        }
        let rights = page.permissions.rights(request.privilege);
        let rights = match (request.kind, page.settled) {
            // A device-TLB writes without asking again, so that the dirty
            // flag must be set before it may.
            (Kind::TranslationRequest, false) => rights & Rights::READ,
            _ => rights,
        };
        let run = self.run(request, page.output, page.mask, rights);
        Ok(Outcome::Memory(run))
    }

    /// A translation request that tables refuse is answered without rights
    /// where a page request could cure it.
    #[cold]
    fn unanswered<'g>(
        &'g self,
        request: &Request,
        domain: &Domain,
        refusal: Refusal,
    ) -> Result<Outcome<'g>, Fault> {
        if !refusal.reason.is_recoverable() {
            return Err(self.refuse(request, domain, refusal));
        }
        // A read-only page refuses who wants to write, and serves who reads.
        if request.access != Access::Read
            && let Ok(page) = domain.walk(
                &self.limits,
                &*self.ram,
                request.span.first().0,
                Access::Read,
                request.privilege,
            )
        {
            return self.found(request, domain, page);
        }
        let address = request.span.first().0;
        Ok(Outcome::Memory(self.run(
            request,
            address,
            0xfff,
            Rights::NONE,
        )))
    }

    /// The run of `request` from `output` on, within the page that `mask`
    /// spans and short of the interrupt range, on both sides of a translation.
    #[inline]
    fn run<'g>(&'g self, request: &Request, output: u64, mask: u64, rights: Rights) -> Run<'g> {
        let first = request.span.first().0;
        let mut last = request
            .span
            .last_offset()
            .min(mask.wrapping_sub(first & mask));
        for address in [first, output] {
            let before = INTERRUPTS.start().wrapping_sub(address);
            // Wraps to more than any page if the range lies below.
            if last >= before && address < *INTERRUPTS.start() {
                last = before.wrapping_sub(1);
            }
        }
        Run::new(&*self.ram, output, last.saturating_add(1), rights)
    }

    /// Refuses a request that comes to no tables.
    #[cold]
    pub(crate) fn deny(&self, request: &Request, denied: Denied) -> Fault {
        if !(denied.quiet && denied.reason.is_qualified()) {
            self.record(&Refused::request(request, denied.reason));
        }
        fault(request, blocked(request.source))
    }

    /// Refuses a request that tables refuse.
    #[cold]
    fn refuse(&self, request: &Request, domain: &Domain, refusal: Refusal) -> Fault {
        let denied = Denied {
            reason: refusal.reason,
            quiet: domain.head.quiet(),
        };
        Fault {
            reason: refusal.coarse,
            walk: refusal.walk,
            recoverable: domain.head.page_requests() && refusal.reason.is_recoverable(),
            ..self.deny(request, denied)
        }
    }
}

const fn in_interrupt_range(scalable: bool) -> Refusal {
    let reason = if scalable {
        Reason::SM_INTERRUPT_RANGE
    } else {
        Reason::INTERRUPT_RANGE
    };
    Refusal::of(reason, FaultReason::Reserved)
}

const fn blocked(source: Source) -> FaultReason {
    match source.pasid {
        Some(_) => FaultReason::NoPasid,
        None => FaultReason::Blocked,
    }
}

const fn fault(request: &Request, reason: FaultReason) -> Fault {
    Fault {
        source_id: request.source,
        span: request.span,
        access: request.access,
        reason,
        walk: None,
        recoverable: false,
    }
}

#[cfg(test)]
pub(crate) mod tests;
