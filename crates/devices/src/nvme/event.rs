//! Asynchronous events: requests that are held, and what they will be told.
//! NVM Express 1.4 section 5.2.

use std::collections::VecDeque;

use super::spec::log;

/// Asynchronous Event Requests that are held at most.
pub(super) const LIMIT: u8 = 4;

/// What may be told: the Error type. NVM Express 1.4 figure 145.
#[derive(Clone, Copy)]
pub(super) enum Event {
    /// A doorbell of no queue was written.
    InvalidDoorbell,
    /// A doorbell was written with a value beyond its queue.
    InvalidValue,
}

impl Event {
    fn information(self) -> u8 {
        match self {
            Self::InvalidDoorbell => 0,
            Self::InvalidValue => 1,
        }
    }
}

/// Requests and events that have not met. The Error type has one bit a cause;
/// after it was told once, it is silent until its log page is read.
#[derive(Default)]
pub(super) struct Events {
    held: VecDeque<u16>,
    pending: u8,
    masked: bool,
}

impl Events {
    /// Holds the request with this command identifier; `false` if there are
    /// too many.
    pub(super) fn hold(&mut self, cid: u16) -> bool {
        let room = self.held.len() < usize::from(LIMIT);
        if room {
            self.held.push_back(cid);
        }
        room
    }

    pub(super) fn is_held(&self, cid: u16) -> bool {
        self.held.contains(&cid)
    }

    /// Gives up the request with this command identifier, if it is held.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let position = self.held.iter().position(|held| *held == cid);
        position.and_then(|at| self.held.remove(at)).is_some()
    }

    pub(super) fn happen(&mut self, event: Event) {
        self.pending |= 1_u8.wrapping_shl(event.information().into());
    }

    /// Whether a request can be answered.
    pub(super) fn is_due(&self) -> bool {
        self.pending != 0 && !self.masked && !self.held.is_empty()
    }

    /// The request to answer, and Dword 0 of its completion.
    pub(super) fn take(&mut self) -> Option<(u16, u32)> {
        let cid = match self.is_due() {
            true => self.held.pop_front()?,
            false => return None,
        };
        let information = self.pending.trailing_zeros();
        self.pending &= self.pending.saturating_sub(1);
        self.masked = true;
        Some((cid, information << 8 | u32::from(log::id::ERROR) << 16))
    }

    /// The log page of the errors was read.
    pub(super) fn clear(&mut self) {
        self.masked = false;
    }
}
