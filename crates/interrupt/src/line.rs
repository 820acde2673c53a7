//! One INTx line as vfio-pci delivers it: signalled once, then masked until
//! its user unmasks it. Linux `drivers/vfio/pci/vfio_pci_intrs.c`,
//! `vfio_intx_handler` and `vfio_pci_intx_unmask_handler`.

use std::sync::Arc;

use iogate_dma::Line;

use crate::Signal;

/// The line of one function. Unbound, unmasked and deasserted by default.
#[derive(Default)]
pub(crate) struct LineState {
    signal: Option<Arc<dyn Signal>>,
    asserted: bool,
    masked: bool,
}

impl LineState {
    /// Binds or unbinds. A new binding begins unmasked; a signal that replaces
    /// another finds the mask as it was.
    pub(crate) fn bind(&mut self, signal: Option<Arc<dyn Signal>>) {
        if self.signal.is_none() || signal.is_none() {
            self.masked = false;
        }
        self.signal = signal;
        self.settle();
    }

    pub(crate) fn set(&mut self, line: Line) {
        self.asserted = line == Line::Asserted;
        self.settle();
    }

    pub(crate) fn set_masked(&mut self, masked: bool) {
        self.masked = masked;
        self.settle();
    }

    pub(crate) fn is_masked(&self) -> bool {
        self.masked
    }

    pub(crate) fn is_asserted(&self) -> bool {
        self.asserted
    }

    fn settle(&mut self) {
        if let Some(signal) = self
            .signal
            .as_ref()
            .filter(|_| self.asserted && !self.masked)
        {
            // Masked first: whoever is signalled may look at once.
            self.masked = true;
            signal.signal();
        }
    }
}
