//! What a call comes to.

use iogate_dma::Grace;
use iogate_host::{FileId, Pinned, Retired, Watch};

use crate::Errno;

/// What a call comes to, when it is not an errno.
#[derive(Default)]
pub struct Answer {
    /// The return value, negative for an errno; unused when a file is
    /// installed.
    pub value: i64,
    /// A new file for the caller, close-on-exec; its descriptor is the return
    /// value. If it cannot be installed, close the file.
    pub install: Option<FileId>,
    /// What is to be done before and after the caller hears of it.
    pub after: After,
}

impl Answer {
    /// A plain return value.
    pub fn value(value: i64) -> Self {
        Self {
            value,
            ..Self::default()
        }
    }

    /// A call that fails, but has taken effect and leaves something to be
    /// done: the value is the negative errno.
    pub(crate) fn failed(errno: Errno, after: After) -> Self {
        Self {
            value: i64::from(errno.0).wrapping_neg(),
            after,
            ..Self::default()
        }
    }
}

impl From<Retired> for Answer {
    fn from(retired: Retired) -> Self {
        Self {
            after: retired.into(),
            ..Self::default()
        }
    }
}

/// What a call leaves to be done.
#[derive(Default)]
pub struct After {
    /// The caller must not hear of the result before this has passed.
    pub grace: Option<Grace>,
    /// To be dropped when it has.
    pub retired: Vec<Box<dyn Pinned>>,
    /// To be dropped with no lock held.
    pub watches: Vec<Box<dyn Watch>>,
    /// The index of a device whose worker has something to do.
    pub work: Option<usize>,
}

impl From<Retired> for After {
    fn from(retired: Retired) -> Self {
        Self {
            grace: retired.grace,
            retired: retired.pages,
            watches: retired.watches,
            work: retired.work,
        }
    }
}
