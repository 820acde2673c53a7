//! The thread that traces the program and waits for its stops.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::access::{Accesses, Outcome};
use super::processor::Follower;
use super::restore::look;
use super::trace::{self, Stop, Task};
use crate::core::Core;
use crate::filter::Unmapping;
use crate::say::say;

/// `si_code` of a SIGBUS for a page beyond the end of a file.
const BUS_ADRERR: i32 = 2;
/// `si_code` of a SIGSEGV where nothing is mapped.
const SEGV_MAPERR: i32 = 1;

/// What the tracing thread works with.
pub(crate) struct Tracer {
    core: Arc<Core>,
    accesses: Accesses,
    follower: Follower,
    /// Tasks that have stopped before.
    known: HashSet<Task>,
}

impl Tracer {
    pub(crate) fn new(core: Arc<Core>, unmapping: Unmapping) -> Self {
        Self {
            accesses: Accesses::new(Arc::clone(&core), unmapping),
            core,
            follower: Follower::default(),
            known: HashSet::new(),
        }
    }

    /// Traces process `program` and all that it starts, until none is left.
    /// `started` hears whether tracing has begun.
    pub(crate) fn run(
        mut self,
        program: u32,
        started: &SyncSender<io::Result<()>>,
    ) -> io::Result<()> {
        let program = i32::try_from(program).map_err(|_| io::ErrorKind::NotFound)?;
        let seized = trace::silence_stops().and_then(|()| Task(program).seize());
        let failed = seized.is_err();
        // Who hears of a failure ends the session.
        let _ = started.send(seized);
        if failed {
            return Ok(());
        }
        loop {
            match trace::wait() {
                Ok((task, stop)) => self.take(task, stop),
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, task: Task, stop: Stop) {
        match stop {
            Stop::Ended => {
                self.accesses.forget(task);
                self.follower.forget(task);
                self.known.remove(&task);
                self.core.bus_errors.ends(task.number());
            }
            Stop::Exec => {
                self.accesses.forget(task);
                if let Ok(shown) = task.shown() {
                    self.core.bus_errors.executes(task.number(), shown);
                }
                task.resume(0);
            }
            Stop::Exiting => {
                self.accesses.forget(task);
                self.follower.forget(task);
                // What ends while it is traced is seen to have ended (pidfd)
                // before its parent can wait for it.
                task.detach();
            }
            Stop::Group => task.listen(),
            Stop::Other => {
                self.begin(task);
                task.resume(0);
            }
            Stop::Signal(libc::SIGBUS) => {
                // A task that is gone meanwhile takes no signal either.
                let signal = self.bus_error(task).unwrap_or(libc::SIGBUS);
                task.resume(signal);
            }
            Stop::Signal(signal) => {
                let _ = restart(task);
                task.resume(signal);
            }
        }
    }

    /// Looks at a task when it stops for the first time, before it has done
    /// anything.
    fn begin(&mut self, task: Task) {
        if self.known.insert(task)
            && let Ok((shown, process, parent)) = look(task)
        {
            let bus_errors = &self.core.bus_errors;
            bus_errors.begins(task.number(), process, parent, shown);
        }
    }

    /// What the program gets instead of SIGBUS: nothing (0) if the access was
    /// executed.
    fn bus_error(&mut self, task: Task) -> io::Result<i32> {
        let info = task.signal()?;
        if info.si_code != BUS_ADRERR {
            return Ok(libc::SIGBUS);
        }
        // SAFETY: a SIGBUS of this code is a fault, which has an address.
        let address = unsafe { info.si_addr() }.addr();
        let address = u64::try_from(address).unwrap_or(u64::MAX);
        let _span = tracing::info_span!(target: "iogate", "call", thread = task.number()).entered();
        Ok(match self.accesses.run(task, address)? {
            Outcome::Executed => {
                self.follower.follow(task);
                0
            }
            Outcome::Passed => libc::SIGBUS,
            Outcome::Absent(address) => {
                task.set_signal(&absent(address))?;
                libc::SIGSEGV
            }
            Outcome::Impossible(text) => {
                say(&format!(
                    "{text}: the program is ended (thread {}); `mmio = \"trap\"` and pread or \
                     pwrite reach it in any case",
                    task.0
                ));
                end(task);
                0
            }
        })
    }
}

/// Keeps the calls that are noticed for our own sake from failing by a signal.
fn restart(task: Task) -> io::Result<()> {
    let mut user = task.registers()?;
    match user.restart() {
        true => task.set_registers(&user),
        false => Ok(()),
    }
}

/// Ends the process of a task.
fn end(task: Task) {
    // SAFETY: kill takes numbers; the number of a thread of a process will do.
    unsafe { libc::kill(task.0, libc::SIGKILL) };
}

/// What a SIGSEGV says for an access of `address`, where there is nothing.
fn absent(address: u64) -> libc::siginfo_t {
    /// The head of `siginfo_t`. include/uapi/asm-generic/siginfo.h, _sigfault.
    #[repr(C)]
    struct Fault {
        signal: i32,
        errno: i32,
        code: i32,
        address: u64,
    }
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let fault = Fault {
        signal: libc::SIGSEGV,
        errno: 0,
        code: SEGV_MAPERR,
        address,
    };
    const { assert!(size_of::<Fault>() <= size_of::<libc::siginfo_t>()) };
    // SAFETY: `info` is large enough, zeroed, and valid with any bits.
    unsafe {
        info.as_mut_ptr().cast::<Fault>().write(fault);
        info.assume_init()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_its_address() {
        let info = absent(0x1234_5678_9000);
        assert_eq!((info.si_signo, info.si_code), (libc::SIGSEGV, SEGV_MAPERR));
        // SAFETY: it was made as a fault.
        assert_eq!(unsafe { info.si_addr() }.addr(), 0x1234_5678_9000);
    }
}
