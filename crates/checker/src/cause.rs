//! Refused accesses by cause.

use std::collections::HashMap;
use std::time::Instant;

use iogate_dma::{Access, Fault, FaultReason, Iova, Source};
use iogate_host::SpaceId;

use crate::StackId;
use crate::history::{History, Known};

/// Causes that are printed as they happen.
pub const MAX_PRINTED: usize = 100;

/// Causes that are kept for the report; further ones are only counted.
pub const MAX_CAUSES: usize = 10_000;

/// What makes two refusals the same: the device, what it did, why it was
/// refused, and the mapping that it hit, or the 2 MiB window where it hit
/// none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct CauseKey {
    source: Source,
    access: Access,
    reason: FaultReason,
    place: Iova,
}

impl CauseKey {
    pub(crate) fn new(fault: &Fault, history: &History, space: Option<SpaceId>) -> Self {
        let first = fault.span.first();
        let area = match fault.reason {
            FaultReason::Permission | FaultReason::Revoked => {
                space.and_then(|space| history.live_at(space, first))
            }
            _ => None,
        };
        Self {
            source: fault.source_id,
            access: fault.access,
            reason: fault.reason,
            place: area.map_or(Iova(first.0 >> 21 << 21), |mapping| mapping.span.first()),
        }
    }
}

/// One cause of refusals.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    /// From 1, in the order of the first refusals.
    pub(crate) number: u64,
    /// The first refusal.
    pub(crate) fault: Fault,
    pub(crate) at: Instant,
    pub(crate) times: u64,
    /// What was known about the address at the first refusal.
    pub(crate) known: Known,
    /// Whether older unmaps had been forgotten by then.
    pub(crate) history_is_partial: bool,
    /// What the device did about the first refusal.
    pub(crate) answer: Option<String>,
    /// The call that last wrote a register of the device before it.
    pub(crate) stack: Option<StackId>,
    pub(crate) printed: bool,
}

/// All causes so far.
#[derive(Default)]
pub(crate) struct Causes {
    index: HashMap<CauseKey, usize>,
    list: Vec<Cause>,
    /// Refused accesses in all.
    pub(crate) faults: u64,
    /// Refused accesses whose cause was not kept.
    pub(crate) beyond: u64,
}

impl Causes {
    /// Counts a refusal. Returns the position of its cause if it is new.
    pub(crate) fn count(
        &mut self,
        key: CauseKey,
        fault: &Fault,
        history: &History,
        space: Option<SpaceId>,
    ) -> Option<usize> {
        self.faults = self.faults.saturating_add(1);
        if let Some(cause) = self.index.get(&key).and_then(|at| self.list.get_mut(*at)) {
            cause.times = cause.times.saturating_add(1);
            return None;
        }
        if self.list.len() >= MAX_CAUSES {
            self.beyond = self.beyond.saturating_add(1);
            return None;
        }
        let position = self.list.len();
        self.index.insert(key, position);
        self.list.push(Cause {
            number: u64::try_from(position)
                .unwrap_or(u64::MAX)
                .saturating_add(1),
            fault: *fault,
            at: Instant::now(),
            times: 1,
            known: space.map_or(Known::Never(None), |space| {
                history.look(space, fault.span.first())
            }),
            history_is_partial: history.forgotten() > 0,
            answer: None,
            stack: None,
            printed: false,
        });
        Some(position)
    }

    pub(crate) fn get_mut(&mut self, position: usize) -> Option<&mut Cause> {
        self.list.get_mut(position)
    }

    pub(crate) fn list(&self) -> &[Cause] {
        &self.list
    }
}
