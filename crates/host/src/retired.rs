//! What a change of the object model leaves for its caller to finish.

use iogate_dma::Grace;

use crate::{Pinned, Watch};

/// What is over, but may still be in use: wait for the grace, then drop the
/// rest. Nothing here may be waited for or dropped with a lock of the caller's
/// held.
#[derive(Default)]
#[must_use = "what is retired must be waited for before the caller hears of it"]
pub struct Retired {
    /// Workers that entered before the change.
    pub grace: Option<Grace>,
    /// Pages that no device reaches once the grace has passed.
    pub pages: Vec<Box<dyn Pinned>>,
    /// Eventfds that mean nothing any more.
    pub watches: Vec<Box<dyn Watch>>,
    /// The index of a device whose worker has something to do.
    pub work: Option<usize>,
}

impl Retired {
    /// Adds what `other` leaves. Of two graces the later covers both.
    pub fn merge(&mut self, other: Self) {
        self.grace = other.grace.or(self.grace.take());
        self.pages.extend(other.pages);
        self.watches.extend(other.watches);
        self.work = other.work.or(self.work);
    }
}
