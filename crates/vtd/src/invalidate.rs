//! What a guest invalidates: gone from the caches, and told to who follows,
//! before the guest is told that it is done.

use std::sync::{PoisonError, Weak};

use iogate_dma::{Invalidated, Iova, Pasid, RequesterId, Scope, Span};

use crate::Vtd;
use crate::cache::Translations;

/// One invalidation, from a register or a descriptor. Widening is allowed: a
/// unit may drop more than it was asked to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Invalidation {
    /// Every context entry. VT-d 4.1 section 6.5.2.1.
    ContextGlobal,
    /// Context entries with this domain id.
    ContextDomain { domain: u16 },
    /// Context entries of a device: of those requester ids that equal `source`
    /// in the bits clear in `mask` (the function mask, as a mask of bits).
    ContextDevice {
        domain: u16,
        source: RequesterId,
        mask: u16,
    },
    /// Every PASID-table entry. Section 6.5.2.2.
    PasidGlobal,
    /// PASID-table entries with this domain id.
    PasidDomain { domain: u16 },
    /// The entry of this PASID with this domain id.
    PasidSelective { domain: u16, pasid: Pasid },
    /// Every translation. Section 6.5.2.3.
    IotlbGlobal,
    /// Translations of a domain.
    IotlbDomain { domain: u16 },
    /// Second-stage translations of a domain that overlap `span`; also those by
    /// larger pages. Paging-structure caches too unless `leaf_only`.
    IotlbPages {
        domain: u16,
        span: Span<Iova>,
        leaf_only: bool,
    },
    /// First-stage and nested translations of a PASID. Section 6.5.2.4.
    PasidIotlb { domain: u16, pasid: Pasid },
    /// Those that overlap `span`.
    PasidIotlbPages {
        domain: u16,
        pasid: Pasid,
        span: Span<Iova>,
        leaf_only: bool,
    },
}

impl Vtd {
    /// Does all of `batch`: when it returns no request uses what is
    /// invalidated, and observers have been told. Called without a lock, a
    /// guard, or the registers held.
    pub(crate) fn invalidate(&self, batch: &[Invalidation]) {
        if batch.is_empty() {
            return;
        }
        if batch.iter().any(Invalidation::is_of_entries) {
            self.caches.domains.clear();
        }
        // Who still walks by old entries or through old tables remembers what
        // it finds before it leaves.
        self.gate.grace().wait();
        for invalidation in batch {
            invalidation.apply(&self.caches.translations);
        }
        // Who found what is forgotten now still uses it.
        self.gate.grace().wait();
        self.tell_observers(batch);
    }

    /// Tells observers.
    fn tell_observers(&self, batch: &[Invalidation]) {
        let mut observers = self
            .observers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        observers.retain(|observer| observer.strong_count() > 0);
        let all: Vec<_> = observers.iter().filter_map(Weak::upgrade).collect();
        drop(observers);
        if all.is_empty() {
            return;
        }
        let mut told = Vec::with_capacity(batch.len());
        for invalidation in batch {
            // A nested domain's input addresses are others than those of its
            // second stage, which the guest names.
            let is_between = matches!(invalidation, Invalidation::IotlbPages { .. });
            invalidation.scopes(|one| match is_between && self.capabilities.has_nested() {
                true => told.push(of(one.scope)),
                false => told.push(one),
            });
        }
        if told.iter().any(|one| one.scope == Scope::Everything) {
            told = vec![everything()];
        }
        for observer in all {
            observer.invalidated(&told);
        }
    }
}

fn everything() -> Invalidated {
    of(Scope::Everything)
}

fn of(scope: Scope) -> Invalidated {
    Invalidated {
        scope,
        span: Span::whole(),
    }
}

impl Invalidation {
    /// Whether it is of context or PASID-table entries.
    const fn is_of_entries(&self) -> bool {
        matches!(
            self,
            Self::ContextGlobal
                | Self::ContextDomain { .. }
                | Self::ContextDevice { .. }
                | Self::PasidGlobal
                | Self::PasidDomain { .. }
                | Self::PasidSelective { .. }
        )
    }

    /// Has translations forgotten.
    fn apply(&self, translations: &Translations) {
        match *self {
            Self::IotlbGlobal => translations.clear(),
            Self::IotlbDomain { domain } => translations.clear_domain(domain),
            Self::IotlbPages { domain, span, .. } => translations.clear_pages(domain, span),
            Self::PasidIotlb { domain, pasid } => {
                translations.clear_pasid(domain, pasid.as_u32());
            }
            Self::PasidIotlbPages {
                domain,
                pasid,
                span,
                ..
            } => translations.clear_pasid_pages(domain, pasid.as_u32(), span),
            Self::ContextGlobal
            | Self::ContextDomain { .. }
            | Self::ContextDevice { .. }
            | Self::PasidGlobal
            | Self::PasidDomain { .. }
            | Self::PasidSelective { .. } => {}
        }
    }

    /// Whose mappings may have changed.
    fn scopes(&self, mut tell: impl FnMut(Invalidated)) {
        match *self {
            // A PASID cache is invalidated without a word about functions.
            Self::ContextGlobal
            | Self::ContextDomain { .. }
            | Self::PasidGlobal
            | Self::PasidDomain { .. }
            | Self::PasidSelective { .. }
            | Self::IotlbGlobal => tell(everything()),
            Self::ContextDevice { source, mask, .. } if mask & !7 == 0 => {
                for function in 0..8 {
                    if function & !mask == 0 {
                        let function = RequesterId(source.0 & !mask | function);
                        tell(of(Scope::Entry(function.into())));
                    }
                }
            }
            Self::ContextDevice { .. } => tell(everything()),
            Self::IotlbDomain { domain } | Self::PasidIotlb { domain, .. } => {
                tell(of(Scope::Domain(domain.into())));
            }
            Self::IotlbPages { domain, span, .. } | Self::PasidIotlbPages { domain, span, .. } => {
                tell(Invalidated {
                    scope: Scope::Domain(domain.into()),
                    span,
                });
            }
        }
    }
}
