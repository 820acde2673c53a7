//! Whether a session can run here: each thing that it needs, attempted.

use std::io;

use iogate_memory::Process;

use crate::control::{Control, Word};
use crate::filter::{Filter, ShortWrites, Unmapping};
use crate::guardian::Failed;
use crate::listener::Listener;
use crate::namespace;
use crate::process;
use crate::thread::Threads;

/// One attempt.
#[derive(Debug)]
pub struct Step {
    /// What a session needs.
    pub name: &'static str,
    /// Whether it is to be had.
    pub result: Result<(), Problem>,
}

/// Why it is not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}; {remedy}")]
pub struct Problem {
    /// What was tried and what came of it.
    pub what: String,
    /// What a person can do.
    pub remedy: &'static str,
}

/// Attempts everything that a session needs. Call it from a process with one
/// thread: it forks.
pub fn doctor() -> Vec<Step> {
    let step = |name, result: Result<(), Failed>, remedy| Step {
        name,
        result: result.map_err(|failed| Problem {
            what: format!("cannot {}: {}", failed.step, failed.error),
            remedy,
        }),
    };
    vec![
        step(
            "seccomp listener",
            in_child(listen),
            "Linux 6.6 or later is needed, and no other supervisor may listen to this process",
        ),
        step(
            "namespaces and mounts",
            in_child(|| {
                namespace::separate()?;
                namespace::try_mounts()
            }),
            "allow user namespaces: set user.max_user_namespaces to 10000, and \
             kernel.apparmor_restrict_unprivileged_userns to 0 where it exists; or run as root",
        ),
        step(
            "descriptors of the program",
            of_child(|child| {
                let thread = Threads::default().get(child, || true);
                let thread = thread.map_err(Failed::at("open files of /proc/PID"))?;
                let duplicate = thread.duplicate(0);
                duplicate.map(drop).map_err(|errno| Failed {
                    step: "duplicate a descriptor (pidfd_getfd)".to_owned(),
                    error: io::Error::from_raw_os_error(errno.0),
                })
            }),
            "in a container, allow pidfd_getfd (--security-opt seccomp=unconfined); set \
             kernel.yama.ptrace_scope below 3",
        ),
        step(
            "memory of the program",
            of_child(|child| {
                let at = Failed::at("open /proc/PID/mem");
                let process = Process::open(child.cast_signed()).map_err(at)?;
                let (ours, mut theirs) = (*b"iogate doctor", [0; 13]);
                let address = std::ptr::from_ref(&ours).expose_provenance() as u64;
                let failed = |step: &str| Failed {
                    step: step.to_owned(),
                    error: io::Error::from_raw_os_error(libc::EIO),
                };
                let read = process.read(address, &mut theirs);
                read.map_err(|_| failed("read /proc/PID/mem"))?;
                let found = process.vma_at(address);
                found.map(drop).map_err(|_| failed("read /proc/PID/maps"))
            }),
            "set kernel.yama.ptrace_scope below 3; in a container, add SYS_PTRACE",
        ),
    ]
}

fn listen() -> Result<(), Failed> {
    let installed = Filter::new(Unmapping::Unseen, ShortWrites::Unseen).install();
    let listener = installed.map_err(Failed::at("install a seccomp filter with a listener"))?;
    drop(Listener::new(listener));
    Ok(())
}

/// Attempts `what` in a process of its own.
fn in_child(what: impl FnOnce() -> Result<(), Failed>) -> Result<(), Failed> {
    let (ours, theirs) = Control::pair().map_err(Failed::at("make a pair of sockets"))?;
    // SAFETY: the caller of `doctor` promises that there is one thread.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(Failed::at("fork")(io::Error::last_os_error())),
        0 => {
            drop(ours);
            if let Err(failed) = what() {
                failed.send(&theirs);
            }
            // SAFETY: _exit takes a plain number and does not return.
            unsafe { libc::_exit(0) }
        }
        child => child,
    };
    drop(theirs);
    let message = ours.receive();
    wait(child);
    match message {
        Ok(Some(message)) if message.word == Word::Failed => Err(message.failed()),
        _ => Ok(()),
    }
}

/// Attempts `what` on a waiting child in the namespaces of a session.
fn of_child(what: impl FnOnce(u32) -> Result<(), Failed>) -> Result<(), Failed> {
    let (ours, theirs) = Control::pair().map_err(Failed::at("make a pair of sockets"))?;
    // SAFETY: the caller of `doctor` promises that there is one thread.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(Failed::at("fork")(io::Error::last_os_error())),
        0 => {
            drop(ours);
            // Where this fails another step says so.
            let _ = namespace::separate();
            let _ = theirs.send(Word::Started, &[]);
            let _ = theirs.receive();
            // SAFETY: _exit takes a plain number and does not return.
            unsafe { libc::_exit(0) }
        }
        child => child,
    };
    drop(theirs);
    let _ = ours.receive();
    let done = what(child.cast_unsigned());
    drop(ours);
    wait(child);
    done
}

fn wait(child: i32) {
    while !matches!(process::reap(0), Ok((reaped, _)) if reaped == child.cast_unsigned()) {
        if !process::signal(child.cast_unsigned(), 0) {
            return;
        }
    }
}
