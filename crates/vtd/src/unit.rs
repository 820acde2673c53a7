//! One unit: its parts, and the ways in for devices.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};

use iogate_dma::{Attachment, Fault, FaultSink, Gate, Memory, Observer, Port, RequesterId, Source};

use crate::builder::{Builder, Wake};
use crate::cache::Caches;
use crate::capabilities::Capabilities;
use crate::events::Deliver;
use crate::live::Live;
use crate::pages::Pages;
use crate::registers::Registers;
use crate::remap::Remapping;
use crate::translate::Limits;

/// A VT-d unit.
///
/// The guest's side: [`read`](Self::read), [`write`](Self::write). The devices'
/// side: [`port`](Self::port), or [`Translate`](iogate_dma::Translate) with the
/// unit's [`gate`](Self::gate); [`send_msi`](Self::send_msi). All of it from any
/// thread; the unit starts none.
pub struct Vtd {
    pub(crate) ram: Arc<dyn Memory>,
    pub(crate) capabilities: Capabilities,
    pub(crate) limits: Limits,
    pub(crate) scope: Option<BTreeSet<RequesterId>>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) deliver: Deliver,
    pub(crate) wake: Option<Wake>,
    pub(crate) live: Live,
    pub(crate) caches: Caches,
    pub(crate) registers: Mutex<Registers>,
    /// Held by who does what registers ask for. Locked before `registers`.
    pub(crate) turn: Mutex<()>,
    /// Locked before `registers`.
    pub(crate) pages: Mutex<Pages>,
    pub(crate) remapping: Remapping,
    pub(crate) observers: Mutex<Vec<Weak<dyn Observer>>>,
}

impl Vtd {
    /// Begins a unit whose guest has `ram`, by guest-physical addresses.
    pub fn builder(ram: Arc<dyn Memory>) -> Builder {
        Builder::new(ram)
    }

    /// What the unit offers.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Where workers that translate through the unit meet its invalidations.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// A port of `source` behind the unit.
    pub fn port(self: &Arc<Self>, source: Source) -> Port {
        let attachment = Attachment::new();
        attachment.set(Some(Arc::clone(self) as _));
        Port::new(
            source,
            Arc::new(attachment),
            self.gate.join(),
            Arc::new(Told),
        )
    }
}

/// The unit tells its guest of refused requests when it refuses them.
struct Told;

impl FaultSink for Told {
    fn fault(&self, _: &Fault) {}
    fn answered(&self, _: Source, _: &str) {}
}
