//! Whether this thread is making an answer that somebody waits for.

use std::cell::RefCell;

use crate::channel::{Channel, Side};

thread_local! {
    /// The connections whose other sides wait, the latest last.
    static WAITING: RefCell<Vec<(Side, *const Channel)>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, this thread makes an answer for the other side of a
/// connection.
pub(crate) struct Answering(());

impl Answering {
    pub(crate) fn begin(channel: &Channel) -> Self {
        WAITING.with_borrow_mut(|waiting| waiting.push((channel.side, channel)));
        Self(())
    }

    /// Whether a request over `channel` might wait for one who waits for this
    /// thread: one to a client, while any client waits for its device; one to
    /// a server, while that server waits for memory.
    pub(crate) fn would_wait(channel: &Channel) -> bool {
        match channel.side {
            Side::Server => {
                WAITING.with_borrow(|waiting| waiting.iter().any(|(side, _)| *side == Side::Server))
            }
            Side::Client => Self::over(channel),
        }
    }

    /// Whether the other side of `channel` waits for this thread.
    pub(crate) fn over(channel: &Channel) -> bool {
        WAITING.with_borrow(|waiting| {
            let mut waiting = waiting.iter();
            waiting.any(|(_, other)| std::ptr::eq(*other, channel))
        })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        WAITING.with_borrow_mut(|waiting| waiting.pop());
    }
}
