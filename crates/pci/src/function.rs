//! The contract of a device model: one PCI function behind its registers.

use std::sync::Arc;

use iogate_dma::Port;

use crate::{ConfigEffect, Endpoint, Migrate};

/// Says to the worker of a function that it has something to do, from any
/// thread: for what comes from elsewhere than a register access.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What a register access leaves for the function's worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "work that is never run is a device that hangs"]
pub enum After {
    /// Nothing.
    Nothing,
    /// [`Function::work`] has something to do.
    Work,
}

impl After {
    /// Work if either leaves work.
    pub fn or(self, other: Self) -> Self {
        match self {
            Self::Work => Self::Work,
            Self::Nothing => other,
        }
    }
}

/// How a function is reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetKind {
    /// Function Level Reset. PCI Express Base 6.0 section 6.6.2.
    FunctionLevel,
    /// A hot reset of the bus above. PCI Express Base 6.0 section 6.6.1.
    Bus,
}

/// One PCI function: registers that answer at once, and a worker that does
/// what they ask for.
///
/// A register access changes state and answers; it never does DMA. What it
/// asks for happens in [`work`](Self::work), on the one worker thread of the
/// function, in bounded quanta. Registers are accessed from any thread, also
/// while the worker works.
///
/// A reset is made in this order: [`Endpoint::reset`], [`Function::reset`],
/// then a grace of the gate is waited for. Work of the old life that is still
/// under way finds its [`Bus`](crate::Bus) dead and stops.
pub trait Function: Send + Sync {
    /// Configuration space, BARs and interrupts.
    fn endpoint(&self) -> &Endpoint;

    /// The model's name, as in a machine file ("nvme").
    fn model(&self) -> &'static str;

    /// Reads BAR `bar` at `offset`. The caller has checked that the BAR
    /// exists and the access lies in it; length and alignment are whatever
    /// the program chose. Fills all of `into`.
    fn read_bar(&self, bar: u8, offset: u64, into: &mut [u8]);

    /// Writes BAR `bar` at `offset`, checked as for
    /// [`read_bar`](Self::read_bar).
    fn write_bar(&self, bar: u8, offset: u64, from: &[u8]) -> After;

    /// Does one bounded quantum of what is pending; says whether more is. No
    /// lock is held while the port is used. Called by one thread at a time.
    fn work(&self, port: &mut Port) -> After;

    /// Reads configuration space at any offset, in any length. A model of
    /// which a capability leads to its registers adds to it.
    fn read_config(&self, offset: u64, into: &mut [u8]) {
        self.endpoint().read_config(offset, into);
    }

    /// Writes configuration space at any offset, in any length, as for
    /// [`read_config`](Self::read_config).
    fn write_config(&self, offset: u64, from: &[u8]) -> (ConfigEffect, After) {
        (self.endpoint().write_config(offset, from), After::Nothing)
    }

    /// Gives the function the way to its own worker, once, before anything
    /// else. Models to which nothing comes but register accesses have no use
    /// for it.
    fn attend(&self, _wake: Wake) {}

    /// Returns the device's own state to that of power-on. The caller has
    /// reset the endpoint before, and waits for a grace afterwards.
    fn reset(&self, kind: ResetKind);

    /// What moves the function's state to another of its kind; `None` for one
    /// that stays.
    fn migrate(&self) -> Option<&dyn Migrate> {
        None
    }
}
