//! Where a function's interrupts go.

use crate::Source;

/// A message-signalled interrupt as the memory write that it is: one dword of
/// `data` at `address`. PCI Local Bus 3.0 section 6.8.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Message {
    /// The doorbell.
    pub address: u64,
    /// What is written there.
    pub data: u32,
}

/// The state of a level-triggered interrupt line.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Line {
    /// The function asks for service.
    Asserted,
    /// It does not.
    Deasserted,
}

/// The interrupt side of the bus above a function.
pub trait Interrupts: Send + Sync {
    /// `source` wrote a message.
    fn message(&self, source: Source, message: Message);

    /// `source` changed its INTx line.
    fn line(&self, source: Source, line: Line);
}
