//! The register file: what a guest reads and writes. VT-d 4.1 section 11.

use crate::Vtd;

/// Bytes of the register page.
pub(crate) const BYTES: u64 = 0x1000;

/// The registers' own state, behind the unit's one lock.
#[derive(Debug, Default)]
pub(crate) struct Registers {}

impl Vtd {
    /// A guest reads `into.len()` bytes at `offset` of the register page.
    /// Fills all of `into`: zeros where no register is.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let _ = offset;
        into.fill(0);
    }

    /// A guest writes `from` at `offset` of the register page. What it asks for
    /// is done when this returns, or, with [`Builder::deferred`], by
    /// [`work`](Self::work).
    ///
    /// [`Builder::deferred`]: crate::Builder::deferred
    pub fn write(&self, offset: u64, from: &[u8]) {
        let _ = (offset, from, BYTES);
    }

    /// Does one bounded quantum of what registers and queues ask for; says
    /// whether more is to do. Called by one thread at a time, and not under a
    /// guard.
    pub fn work(&self) -> bool {
        false
    }

    /// Returns the unit to its state of power-on.
    pub fn reset(&self) {
        self.live.set_status(0);
        self.live.set_root(0);
        self.live.set_interrupt_table(0);
    }
}
