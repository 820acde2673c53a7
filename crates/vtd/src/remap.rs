//! Interrupt remapping. VT-d 4.1 section 5.

use iogate_dma::{Interrupts, Line, Message, RequesterId, Source};

use crate::Vtd;

/// The interrupt entry cache and the routes that depend on it.
#[derive(Debug, Default)]
pub(crate) struct Remapping {}

impl Vtd {
    /// A function wrote `message`: it is remapped and delivered, or refused and
    /// recorded.
    pub fn send_msi(&self, source: RequesterId, message: Message) {
        self.message(source.into(), message);
    }
}

impl Interrupts for Vtd {
    fn message(&self, _source: Source, message: Message) {
        (self.deliver)(message);
    }

    fn line(&self, _source: Source, _line: Line) {}
}
