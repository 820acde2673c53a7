//! What programs want of SIGBUS: its action, and which threads block it.
//!
//! A fault raises SIGBUS by force: if the thread blocks it, or the program
//! ignores it, the kernel first makes the action the default one and unblocks
//! it. Linux kernel/signal.c, `force_sig_info_to_task`. Nothing tells what was
//! there before, so it is followed: calls that change it are noticed, and new
//! tasks and programs are looked at when they begin.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The action of a signal as rt_sigaction(2) has it: handler, flags, restorer,
/// mask. arch/x86/include/asm/signal.h, `struct sigaction`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Action(pub(crate) [u64; 4]);

/// SIG_DFL and SIG_IGN.
const DEFAULT: u64 = 0;
const IGNORE: u64 = 1;

impl Action {
    const IGNORED: Self = Self([IGNORE, 0, 0, 0]);

    fn is_default(self) -> bool {
        let Self([handler, ..]) = self;
        handler == DEFAULT
    }

    fn is_ignored(self) -> bool {
        let Self([handler, ..]) = self;
        handler == IGNORE
    }
}

/// SIGBUS in a set of signals.
pub(crate) const BIT: u64 = 1 << (libc::SIGBUS - 1);

/// What a task's `/proc/TID/status` says of SIGBUS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Shown {
    pub(crate) blocked: bool,
    pub(crate) ignored: bool,
    pub(crate) caught: bool,
}

impl Shown {
    /// proc_pid_status(5): SigBlk, SigIgn, SigCgt.
    pub(crate) fn parse(status: &str) -> Self {
        let has = |name: &str| {
            let set = status.lines().find_map(|line| line.strip_prefix(name));
            let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
            set.is_some_and(|set| set & BIT != 0)
        };
        Self {
            blocked: has("SigBlk:"),
            ignored: has("SigIgn:"),
            caught: has("SigCgt:"),
        }
    }
}

/// What is to be put back after a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// Nothing: the signal has its default action, and nobody blocks it.
    Nothing,
    /// It is blocked; its action is the default one.
    Blocked,
    /// An action that the kernel has reset, and whether it is blocked.
    Action(Action, bool),
    /// A handler, which the kernel has reset if the thread had it blocked.
    Handler(Action),
}

#[derive(Default)]
struct State {
    /// Of processes where it is not the default one.
    actions: HashMap<u32, Action>,
    /// Threads that block it.
    blocked: HashSet<u32>,
}

/// What all programs of a session want.
#[derive(Default)]
pub(crate) struct BusErrors(Mutex<State>);

impl BusErrors {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process sets the action.
    pub(crate) fn acts(&self, process: u32, action: Action) {
        let mut state = self.lock();
        match action.is_default() {
            true => state.actions.remove(&process),
            false => state.actions.insert(process, action),
        };
    }

    /// A thread changes the set of signals that it blocks, by `set` as `how`
    /// says. Linux kernel/signal.c, `sigprocmask`.
    pub(crate) fn masks(&self, thread: u32, how: i32, set: u64) {
        let named = set & BIT != 0;
        let mut state = self.lock();
        match how {
            libc::SIG_BLOCK if named => state.blocked.insert(thread),
            libc::SIG_UNBLOCK if named => state.blocked.remove(&thread),
            libc::SIG_SETMASK if named => state.blocked.insert(thread),
            libc::SIG_SETMASK => state.blocked.remove(&thread),
            _ => false,
        };
    }

    /// A task begins, in `process`, which `parent` has made if it is new.
    pub(crate) fn begins(&self, task: u32, process: u32, parent: u32, shown: Shown) {
        let mut state = self.lock();
        match shown.blocked {
            true => state.blocked.insert(task),
            false => state.blocked.remove(&task),
        };
        if task == process {
            let inherited = state.actions.get(&parent).copied();
            match inherited {
                Some(action) => state.actions.insert(process, action),
                None => state.actions.remove(&process),
            };
        }
    }

    /// A task executes a program: handlers are gone.
    pub(crate) fn executes(&self, task: u32, shown: Shown) {
        let mut state = self.lock();
        match shown.blocked {
            true => state.blocked.insert(task),
            false => state.blocked.remove(&task),
        };
        match shown.ignored {
            true => state.actions.insert(task, Action::IGNORED),
            false => state.actions.remove(&task),
        };
    }

    /// A task has ended.
    pub(crate) fn ends(&self, task: u32) {
        let mut state = self.lock();
        state.blocked.remove(&task);
        state.actions.remove(&task);
    }

    /// What a fault of `thread` of `process` has changed.
    pub(crate) fn wanted(&self, process: u32, thread: u32) -> Wanted {
        let state = self.lock();
        let blocked = state.blocked.contains(&thread);
        match state.actions.get(&process) {
            None if blocked => Wanted::Blocked,
            None => Wanted::Nothing,
            Some(action) if blocked || action.is_ignored() => Wanted::Action(*action, blocked),
            Some(action) => Wanted::Handler(*action),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLER: Action = Action([0x1000, 4, 0x2000, 0]);

    #[test]
    fn what_is_wanted_follows_calls_children_and_programs() {
        let bus_errors = BusErrors::default();
        assert_eq!(bus_errors.wanted(1, 1), Wanted::Nothing);
        bus_errors.acts(1, HANDLER);
        assert_eq!(bus_errors.wanted(1, 1), Wanted::Handler(HANDLER));
        bus_errors.masks(1, libc::SIG_BLOCK, BIT | 1);
        assert_eq!(bus_errors.wanted(1, 1), Wanted::Action(HANDLER, true));
        assert_eq!(bus_errors.wanted(1, 2), Wanted::Handler(HANDLER));
        bus_errors.masks(1, libc::SIG_BLOCK, 1);
        bus_errors.masks(1, libc::SIG_UNBLOCK, !BIT);
        assert_eq!(bus_errors.wanted(1, 1), Wanted::Action(HANDLER, true));
        bus_errors.masks(1, libc::SIG_SETMASK, 0);
        assert_eq!(bus_errors.wanted(1, 1), Wanted::Handler(HANDLER));
        let blocked = Shown {
            blocked: true,
            ..Shown::default()
        };
        bus_errors.begins(5, 5, 1, blocked);
        assert_eq!(bus_errors.wanted(5, 5), Wanted::Action(HANDLER, true));
        bus_errors.executes(5, blocked);
        assert_eq!(bus_errors.wanted(5, 5), Wanted::Blocked);
        let ignored = Shown {
            ignored: true,
            ..Shown::default()
        };
        bus_errors.executes(5, ignored);
        let expected = Wanted::Action(Action::IGNORED, false);
        assert_eq!(bus_errors.wanted(5, 5), expected);
        bus_errors.ends(5);
        assert_eq!(bus_errors.wanted(5, 5), Wanted::Nothing);
    }

    #[test]
    fn a_status_is_read() {
        let status = "Name:\tx\nSigBlk:\t0000000000000040\nSigIgn:\t0000000000000000\n\
                      SigCgt:\t00000000000000ff\n";
        let shown = Shown {
            blocked: true,
            ignored: false,
            caught: true,
        };
        assert_eq!(Shown::parse(status), shown);
        assert_eq!(Shown::parse(""), Shown::default());
    }
}
