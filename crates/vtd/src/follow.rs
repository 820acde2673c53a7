//! The guest's domains for those who follow them: what the structures say now,
//! past every cache.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::{PoisonError, Weak};

use iogate_dma::{
    Access, DomainKey, Fault, FaultReason, GuestDomains, Iova, Kind, Mapping, Memory, MemoryError,
    Observer, Privilege, Request, Scan, Source, Span,
};
use iogate_paging::vtd::{FirstStage, SecondStage};
use iogate_paging::{Behind, Format, Mapped, Permissions, Scanned, Tables, scan};

use crate::Vtd;
use crate::fault::Refused;
use crate::spec::fault::Reason;
use crate::translate::{Domain, Space};

type Tell<'t> = &'t mut dyn FnMut(Mapping) -> ControlFlow<()>;

impl GuestDomains for Vtd {
    fn domain(&self, source: Source) -> Option<(DomainKey, u32)> {
        let domain = self.domain_now(source)?;
        Some((domain.key(), u32::from(domain.head.id())))
    }

    fn scan(
        &self,
        source: Source,
        span: Span<Iova>,
        budget: usize,
        tell: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> Scan {
        let Some(domain) = self.domain_now(source) else {
            return Scan::Whole;
        };
        self.scan_domain(&domain, span, budget, tell)
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        let observers = self.observers.lock();
        let mut observers = observers.unwrap_or_else(PoisonError::into_inner);
        observers.retain(|observer| observer.strong_count() > 0);
        observers.push(observer);
    }

    fn report(&self, fault: &Fault) {
        if !self.live.translates() || !self.is_behind(fault.source_id.requester) {
            return;
        }
        let entered = self.enter(fault.source_id, Kind::Untranslated);
        let quiet = match entered {
            Ok(domain) => domain.head.quiet(),
            Err(denied) => denied.quiet,
        };
        if quiet {
            return;
        }
        let scalable = entered.is_ok_and(|domain| domain.head.scalable());
        let first = entered.is_ok_and(|domain| domain.first != 0);
        let writes = matches!(fault.access, Access::Write | Access::Atomic);
        let reason = match fault.reason {
            FaultReason::NotMapped if first => Reason::FIRST_ABSENT,
            _ if scalable && writes => Reason::SM_NO_WRITE,
            _ if scalable => Reason::SM_NO_READ,
            _ if writes => Reason::NO_WRITE,
            _ => Reason::NO_READ,
        };
        let request = Request::new(fault.source_id, fault.span, fault.access);
        self.record(&Refused::request(&request, reason));
    }
}

impl Vtd {
    /// The domain that `source` enters by the structures as they are now.
    pub(crate) fn domain_now(&self, source: Source) -> Option<Domain> {
        if !self.is_behind(source.requester) {
            return None;
        }
        if !self.live.translates() {
            return Some(Domain::OFF);
        }
        self.enter(source, Kind::Untranslated).ok()
    }
}

impl Vtd {
    /// Scans what a domain's tables map as they are now. No flag is set.
    pub(crate) fn scan_domain(
        &self,
        domain: &Domain,
        span: Span<Iova>,
        budget: usize,
        tell: Tell<'_>,
    ) -> Scan {
        let ram = &*self.ram;
        let scanned = match domain.space(&self.limits) {
            Space::PassThrough => {
                let bits = self.limits.output_bits;
                let all = Mapped {
                    first: 0,
                    last: 1_u64.unbounded_shl(bits).wrapping_sub(1),
                    output: 0,
                    permissions: Permissions::USER_DATA,
                };
                match clip(all, span).and_then(mapping).map(tell) {
                    Some(ControlFlow::Break(())) => Scanned::Stopped,
                    _ => Scanned::Whole,
                }
            }
            Space::Second(format, root) => single(&format, root, ram, span, budget, tell),
            Space::First(format, root) => single(&format, root, ram, span, budget, tell),
            Space::Nested { first, second } => {
                let pending = None;
                let mut merged = Merged { pending, tell };
                let scanned = nested(first, second, ram, span, budget, &mut merged);
                if scanned != Scanned::Stopped && merged.flush().is_break() {
                    return Scan::Stopped;
                }
                scanned
            }
        };
        match scanned {
            Scanned::Stopped => Scan::Stopped,
            Scanned::Until(at) => Scan::Until(Iova(at)),
            Scanned::Whole => Scan::Whole,
        }
    }
}

/// What is mapped for data; `None` if that may be neither read nor written.
#[inline]
fn mapping(mapped: Mapped) -> Option<Mapping> {
    let rights = mapped.permissions.rights(Privilege::User);
    let span = Span::new(Iova(mapped.first), Iova(mapped.last))?;
    (rights.bits() != 0).then_some(Mapping {
        span,
        output: mapped.output,
        rights,
    })
}

/// Joins neighbours of the output that two runs of the first stage lead to.
struct Merged<'t> {
    pending: Option<Mapping>,
    tell: Tell<'t>,
}

impl Merged<'_> {
    fn add(&mut self, mapped: Mapped) -> ControlFlow<()> {
        let Some(next) = mapping(mapped) else {
            return ControlFlow::Continue(());
        };
        if let Some(pending) = &mut self.pending {
            let length = pending.span.last_offset().wrapping_add(1);
            if pending.span.last().checked_add(1) == Some(next.span.first())
                && pending.output.wrapping_add(length) == next.output
                && pending.rights == next.rights
                && let Some(joined) = Span::new(pending.span.first(), next.span.last())
            {
                pending.span = joined;
                return ControlFlow::Continue(());
            }
        }
        self.flush()?;
        self.pending = Some(next);
        ControlFlow::Continue(())
    }

    fn flush(&mut self) -> ControlFlow<()> {
        match self.pending.take() {
            Some(pending) => (self.tell)(pending),
            None => ControlFlow::Continue(()),
        }
    }
}

/// The part of `mapped` that lies in `span`.
fn clip(mapped: Mapped, span: Span<Iova>) -> Option<Mapped> {
    let first = mapped.first.max(span.first().0);
    let last = mapped.last.min(span.last().0);
    (first <= last).then(|| Mapped {
        first,
        last,
        output: mapped.output.wrapping_add(first.wrapping_sub(mapped.first)),
        permissions: mapped.permissions,
    })
}

/// Runs that differ in what a mapping says are all that `scan` makes of it.
fn single<F: Format>(
    format: &F,
    root: u64,
    ram: &dyn Memory,
    span: Span<Iova>,
    budget: usize,
    tell: Tell<'_>,
) -> Scanned {
    let range = (span.first().0, span.last().0);
    let asked = Permissions::USER_DATA;
    scan(
        format,
        root,
        &ram,
        range,
        asked,
        budget,
        |mapped| match mapping(mapped) {
            Some(mapping) => tell(mapping),
            None => ControlFlow::Continue(()),
        },
    )
}

/// Counts the pieces of tables that are read through it.
struct Counted<'a> {
    ram: &'a dyn Memory,
    left: &'a Cell<usize>,
}

impl Tables for Counted<'_> {
    type Error = MemoryError;

    fn load(&self, address: u64) -> Result<u64, MemoryError> {
        Tables::load(&self.ram, address)
    }

    fn load_many(&self, address: u64, into: &mut [u64]) -> Result<(), MemoryError> {
        self.left.set(self.left.get().saturating_sub(1));
        self.ram.load_many(address, into)
    }

    fn replace(&self, address: u64, current: u64, new: u64) -> Result<u64, MemoryError> {
        self.ram.replace(address, current, new)
    }
}

/// Scans the first stage through the second, then the output of each of its
/// runs. Both share the budget.
fn nested(
    (first, first_root): (FirstStage, u64),
    (second, second_root): (SecondStage, u64),
    ram: &dyn Memory,
    span: Span<Iova>,
    budget: usize,
    merged: &mut Merged<'_>,
) -> Scanned {
    let left = Cell::new(budget);
    let counted = Counted { ram, left: &left };
    let behind = Behind {
        format: &second,
        root: second_root,
        tables: &counted,
    };
    let mut until = None;
    let range = (span.first().0, span.last().0);
    let asked = Permissions::USER_DATA;
    let scanned = scan(&first, first_root, &behind, range, asked, budget, |outer| {
        let offset = outer.last.wrapping_sub(outer.first);
        let output = (outer.output, outer.output.saturating_add(offset));
        let inner = scan(
            &second,
            second_root,
            &counted,
            output,
            outer.permissions,
            left.get(),
            |inner| {
                let skipped = inner.first.wrapping_sub(outer.output);
                let length = inner.last.wrapping_sub(inner.first);
                let first = outer.first.wrapping_add(skipped);
                merged.add(Mapped {
                    first,
                    last: first.wrapping_add(length),
                    output: inner.output,
                    permissions: inner.permissions,
                })
            },
        );
        match inner {
            Scanned::Whole => ControlFlow::Continue(()),
            Scanned::Stopped => ControlFlow::Break(()),
            Scanned::Until(at) => {
                let skipped = at.wrapping_sub(outer.output);
                until = Some(outer.first.wrapping_add(skipped));
                ControlFlow::Break(())
            }
        }
    });
    match until {
        Some(at) => Scanned::Until(at),
        None => scanned,
    }
}
