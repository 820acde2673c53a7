//! A program that runs beside us, and ends with us: the virtual machine of
//! `iogate serve`. Nothing of it is noticed or supervised.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::signals::{Inherited, Signals};

/// Something that happened to us or to a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caught {
    /// Somebody sent us a signal.
    Sent(i32),
    /// The terminal sent a signal to us and to who else is in its foreground.
    Typed(i32),
    /// A child has ended or stopped, or there was no more to wait for.
    Other,
}

/// The signals that would end us, held back and given one by one.
///
/// They are those that `iogate run` passes on: SIGINT, SIGQUIT, SIGTERM, SIGHUP,
/// SIGUSR1 and SIGUSR2.
pub struct HeldSignals {
    signals: Signals,
    inherited: Arc<Inherited>,
}

impl HeldSignals {
    /// Holds signals back in this thread and in those that it starts from now
    /// on: call it before there are others.
    ///
    /// # Errors
    /// What signalfd(2) gives.
    pub fn new() -> io::Result<Self> {
        let inherited = Arc::new(Inherited::take()?);
        Ok(Self {
            signals: Signals::of_supervisor()?,
            inherited,
        })
    }

    /// Starts a program with the signals as we found them. It is killed when
    /// the calling thread ends.
    ///
    /// # Errors
    /// What fork(2) and execve(2) give.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let inherited = Arc::clone(&self.inherited);
        let us = rustix::process::getpid();
        // SAFETY: the closure allocates nothing; what it calls is
        // async-signal-safe.
        let command = unsafe {
            command.pre_exec(move || {
                inherited.restore_for_program();
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                // We may have ended before it was set.
                match rustix::process::getppid() == Some(us) {
                    true => Ok(()),
                    false => Err(io::ErrorKind::NotConnected.into()),
                }
            })
        };
        command.spawn()
    }

    /// Waits until something happens, for at most `time`.
    pub fn wait(&self, time: Duration) -> Caught {
        let time = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let mut poll = [PollFd::new(&self.signals, PollFlags::IN)];
        // Whatever it says, there is a signal or there is none.
        let _ = rustix::event::poll(&mut poll, Some(&time));
        self.signals.take().unwrap_or(Caught::Other)
    }
}
