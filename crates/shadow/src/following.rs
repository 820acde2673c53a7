//! One following: what its owner can ask for.

use std::sync::Arc;

use iogate_dma::{Gpa, Span};

use crate::runs::Runs;
use crate::shadow::{Failure, Shadow};

/// A listener follows a source. When this is dropped everything that the
/// listener was told to map is unmapped.
#[must_use = "dropped, it unmaps everything"]
pub struct Following {
    pub(crate) shadow: Arc<Shadow>,
    pub(crate) id: u64,
}

impl Following {
    /// Looks at the whole section anew and hands all of it over, to a listener
    /// that has nothing of it: a remote device that began anew.
    pub fn replay(&self) {
        let mut state = self.shadow.lock();
        if let Some((follower, domain)) = state.find(self.id) {
            follower.own = Some(Runs::default());
            if let Some(domain) = domain {
                domain.again.extend([follower.section]);
            }
        }
        self.shadow.finish(state, self.id, None);
    }

    /// What stands behind these outputs is another memory than before, or there
    /// is none any more: what leads there is unmapped and mapped anew.
    pub fn resync(&self, outputs: Span<Gpa>) {
        let state = self.shadow.lock();
        self.shadow.finish(state, self.id, Some(outputs));
    }

    /// What the listener could not be given so far. It is tried again with
    /// everything that the guest invalidates.
    pub fn failure(&self) -> Option<Failure> {
        let mut state = self.shadow.lock();
        state.find(self.id)?.0.failure()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut state = self.shadow.lock();
        let nothing = Runs::default();
        if let Some((follower, domain)) = state.find(self.id) {
            let known = domain.map_or(&nothing, |domain| &domain.known);
            follower.clear(known);
        }
        state.remove(self.id);
    }
}
