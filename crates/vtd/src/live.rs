//! What requests look at: the configuration in force, as atomics. Registers
//! write it; it is the only state that both share.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// GSTS_REG.TES: requests are translated.
pub(crate) const TRANSLATION: u32 = 1 << 31;

/// The configuration in force. Each word is published by itself; an order
/// that the specification wants comes from the guest's own command order.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// RTADDR_REG as latched by the last Set Root Table Pointer.
    root: AtomicU64,
    /// IRTA_REG as latched by the last Set Interrupt Remap Table Pointer.
    interrupt_table: AtomicU64,
    /// GSTS_REG.
    status: AtomicU32,
}

impl Live {
    pub(crate) fn root(&self) -> u64 {
        self.root.load(Ordering::Acquire)
    }

    pub(crate) fn set_root(&self, root: u64) {
        self.root.store(root, Ordering::Release);
    }

    #[inline]
    pub(crate) fn interrupt_table(&self) -> u64 {
        self.interrupt_table.load(Ordering::Acquire)
    }

    pub(crate) fn set_interrupt_table(&self, table: u64) {
        self.interrupt_table.store(table, Ordering::Release);
    }

    #[inline]
    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Whether requests are translated.
    #[inline]
    pub(crate) fn translates(&self) -> bool {
        self.status() & TRANSLATION != 0
    }

    pub(crate) fn set_status(&self, status: u32) {
        self.status.store(status, Ordering::Release);
    }
}
