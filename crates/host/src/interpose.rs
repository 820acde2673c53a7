//! Who may have calls and accesses come to something else than they would.

use iogate_dma::Source;

use crate::Actor;

/// Asked before a call or an access is run. A host without one costs nothing.
///
/// Must not call back into the host.
pub trait Interpose: Send + Sync {
    /// The errno, positive, that a call is to fail with instead of being run.
    /// `name` is its name in a trace (`ioctl_map_dma`, `region_read`); `device`
    /// the device whose file it is made on, if it is one; `by` the thread that
    /// makes it, which waits meanwhile.
    fn call(&self, name: &'static str, device: Option<Source>, by: Actor) -> Option<i32>;

    /// Whether `device` answers one access of its configuration space. One that
    /// does not reads as ones and takes no write.
    fn answers(&self, device: Source) -> bool;
}
