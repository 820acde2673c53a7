//! Whether this thread is making an answer that somebody waits for.

use std::cell::Cell;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// While it lives, requests that wait refuse to be made on this thread.
pub(crate) struct Answering(());

impl Answering {
    pub(crate) fn begin() -> Self {
        DEPTH.set(DEPTH.get().saturating_add(1));
        Self(())
    }

    /// Whether this thread is within an answer.
    pub(crate) fn now() -> bool {
        DEPTH.get() != 0
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
    }
}
