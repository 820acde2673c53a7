//! An IOAS as a listener: a guest's domain is followed into it.

use std::sync::Arc;

use iogate_dma::{Change, Listener, Partial};
use iogate_host::iommufd::GuestSpace;
use iogate_host::{Host, Retired};

use crate::Errno;

/// An IOAS that is told what a guest's domain maps. The guest's memory is what
/// another IOAS of the same iommufd maps, by guest-physical addresses: nothing
/// of it is pinned for that, only what the guest maps is.
///
/// When memory is added to that IOAS or removed from it, what leads there has
/// to be mapped anew.
pub struct IoasListener {
    host: Arc<Host>,
    space: GuestSpace,
}

impl IoasListener {
    /// The IOAS of `space`, which nobody else should change.
    pub fn new(host: Arc<Host>, space: GuestSpace) -> Self {
        Self { host, space }
    }
}

impl Listener for IoasListener {
    fn apply(&self, changes: &[Change]) -> Result<(), Partial> {
        let mut left = Retired::default();
        let mut result = Ok(());
        for (applied, change) in changes.iter().enumerate() {
            match self.host.follow_guest(self.space, change) {
                Ok(retired) => left.merge(retired),
                Err(failure) => {
                    left.merge(*failure.retired);
                    let Errno(errno) = failure.error.into();
                    result = Err(Partial { applied, errno });
                    break;
                }
            }
        }
        if let Some(grace) = left.grace.take() {
            grace.wait();
        }
        result
    }
}
