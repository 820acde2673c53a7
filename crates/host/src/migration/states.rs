//! The states of a device's migration and the way from each to each other.
//! Linux `drivers/vfio/vfio_main.c`, `vfio_mig_get_next_state`.

use crate::Error;

/// A state of migration. include/uapi/linux/vfio.h, enum
/// vfio_device_mig_state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum MigrationState {
    /// The device has failed: only a reset helps.
    Error,
    /// It does nothing by itself.
    Stop,
    /// It works.
    #[default]
    Running,
    /// It does nothing, and its state can be read out.
    StopCopy,
    /// It does nothing, and takes a state.
    Resuming,
    /// It makes no requests.
    RunningP2p,
    /// It works, and what of its state is known early can be read out.
    PreCopy,
    /// Likewise, but it makes no requests.
    PreCopyP2p,
}

use MigrationState as S;

impl MigrationState {
    /// All, by number.
    pub const ALL: [Self; 8] = [
        S::Error,
        S::Stop,
        S::Running,
        S::StopCopy,
        S::Resuming,
        S::RunningP2p,
        S::PreCopy,
        S::PreCopyP2p,
    ];

    /// The number of the state.
    pub fn number(self) -> u32 {
        let at = Self::ALL.iter().position(|state| *state == self);
        at.and_then(|at| u32::try_from(at).ok()).unwrap_or(0)
    }

    /// The state with this number: EINVAL beyond the last.
    pub fn from_number(number: u32) -> Result<Self, Error> {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        let state = Self::ALL.get(at).copied();
        state.ok_or(Error::invalid("there is no such state of migration"))
    }

    /// The next state on the way to `target`: EINVAL where there is no way.
    ///
    /// The way is the shortest, and passes no state in which something can be
    /// read out. From where the device makes no requests it leads by
    /// RUNNING_P2P or STOP; from the error nowhere, and to it neither.
    pub fn next(self, target: Self) -> Result<Self, Error> {
        let next = match (self, target) {
            (S::Error, _) | (_, S::Error) => None,
            (S::StopCopy, S::PreCopy | S::PreCopyP2p) => None,
            (from, to) if from == to => Some(to),
            (S::Stop, S::StopCopy | S::Resuming) => Some(target),
            (S::Stop, _) => Some(S::RunningP2p),
            (S::StopCopy | S::Resuming, _) => Some(S::Stop),
            (S::Running, S::PreCopy) => Some(S::PreCopy),
            (S::Running, _) => Some(S::RunningP2p),
            (S::RunningP2p, S::Running | S::PreCopy) => Some(S::Running),
            (S::RunningP2p, S::PreCopyP2p) => Some(S::PreCopyP2p),
            (S::RunningP2p, _) => Some(S::Stop),
            (S::PreCopy, S::PreCopyP2p | S::StopCopy) => Some(S::PreCopyP2p),
            (S::PreCopy, _) => Some(S::Running),
            (S::PreCopyP2p, S::PreCopy | S::StopCopy) => Some(target),
            (S::PreCopyP2p, _) => Some(S::RunningP2p),
        };
        next.ok_or(Error::invalid("no way leads to this state of migration"))
    }

    /// Whether the device works.
    pub(super) fn works(self) -> bool {
        matches!(self, S::Running | S::PreCopy)
    }

    /// Whether something can be read out.
    pub(super) fn saves(self) -> bool {
        matches!(self, S::StopCopy | S::PreCopy | S::PreCopyP2p)
    }

    /// Whether more may follow what was read out.
    pub(super) fn is_early(self) -> bool {
        matches!(self, S::PreCopy | S::PreCopyP2p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of `vfio_mig_get_next_state` for a device with all optional
    /// states: rows and columns by number, `-` for what is EINVAL. E error,
    /// S stop, R running, C stop-copy, L resuming (load), P running-p2p, Y
    /// pre-copy, Z pre-copy-p2p.
    const TABLE: [(char, &str); 8] = [
        ('E', "--------"),
        ('S', "-SPCLPPP"),
        ('R', "-PRPPPYP"),
        ('C', "-SSCSS--"),
        ('L', "-SSSLSSS"),
        ('P', "-SRSSPRZ"),
        ('Y', "-RRZRRYZ"),
        ('Z', "-PPCPPYZ"),
    ];

    #[test]
    fn the_next_state_of_every_pair_is_the_kernels() {
        let letters: Vec<char> = TABLE.iter().map(|(letter, _)| *letter).collect();
        for (from, (_, row)) in MigrationState::ALL.into_iter().zip(TABLE) {
            for (to, expected) in MigrationState::ALL.into_iter().zip(row.chars()) {
                let next = from.next(to).map(|next| letters[next.number() as usize]);
                let next = next.unwrap_or('-');
                assert_eq!(next, expected, "{from:?} -> {to:?}");
            }
        }
    }

    #[test]
    fn every_way_ends_and_passes_no_state_that_saves_or_loads() {
        for from in MigrationState::ALL {
            for to in MigrationState::ALL {
                let mut at = from;
                let mut steps = 0;
                while at != to {
                    let Ok(next) = at.next(to) else {
                        break;
                    };
                    assert!(next == to || !matches!(next, S::StopCopy | S::Resuming | S::PreCopy));
                    at = next;
                    steps += 1;
                    assert!(steps <= 5, "{from:?} -> {to:?}");
                }
            }
        }
    }
}
