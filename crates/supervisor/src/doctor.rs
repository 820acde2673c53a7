//! Whether a session can run here: each thing that it needs, attempted.

use std::io;

use iogate_memory::Process;
use iogate_uapi::Errno;

use crate::control::{Control, Word};
use crate::filter::{Extent, Filter};
use crate::guardian::Failed;
use crate::listener::Listener;
use crate::namespace;
use crate::paths::Stage;
use crate::process;
use crate::thread::{Descriptors, Threads};

/// One thing that is needed, and how it is to be had.
#[derive(Debug)]
pub struct Step {
    /// What a session needs.
    pub name: &'static str,
    /// How it is to be had, or why not.
    pub result: Result<Way, Problem>,
    /// Whether every session needs it.
    pub need: Need,
}

/// Who needs something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Every session.
    Always,
    /// Only those that ask for what the step's name says.
    IfAsked,
}

/// How something is to be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    /// In words.
    pub how: &'static str,
    /// Why not in the better way, if there is one.
    pub not_better: Option<Problem>,
}

/// Why something is not to be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}; {remedy}")]
pub struct Problem {
    /// What was tried and what came of it.
    pub what: String,
    /// What a person can do.
    pub remedy: &'static str,
}

fn problem(failed: &Failed, remedy: &'static str) -> Problem {
    Problem {
        what: format!("cannot {}: {}", failed.step, failed.error),
        remedy,
    }
}

/// Something that can be had in one way only.
fn only(
    name: &'static str,
    need: Need,
    how: &'static str,
    tried: Result<(), Failed>,
    remedy: &'static str,
) -> Step {
    let way = Way {
        how,
        not_better: None,
    };
    Step {
        name,
        result: tried
            .map(|()| way)
            .map_err(|failed| problem(&failed, remedy)),
        need,
    }
}

/// Something that can be had in another way where the better one is `tried` in
/// vain.
fn either(
    name: &'static str,
    better: &'static str,
    tried: Result<(), Failed>,
    remedy: &'static str,
    other: &'static str,
    try_other: impl FnOnce() -> Result<(), Failed>,
) -> Step {
    let result = match tried {
        Ok(()) => Ok(Way {
            how: better,
            not_better: None,
        }),
        Err(why) => match try_other() {
            Ok(()) => Ok(Way {
                how: other,
                not_better: Some(problem(&why, remedy)),
            }),
            Err(failed) => Err(problem(&failed, remedy)),
        },
    };
    Step {
        name,
        result,
        need: Need::Always,
    }
}

/// Attempts everything that a session needs. Call it from a process with one
/// thread: it forks.
pub fn doctor() -> Vec<Step> {
    const TRACE: &str = "set kernel.yama.ptrace_scope below 2; in a container, add the \
                         capability CAP_SYS_PTRACE (--cap-add SYS_PTRACE)";
    let by_number = of_child(read_by_number);
    let memory = of_child(read_by_file);
    vec![
        only(
            "seccomp listener",
            Need::Always,
            "of a filter of its own",
            in_child(listen),
            "Linux 6.6 or later is needed, and no other supervisor may listen to this process",
        ),
        either(
            "/dev and /sys of the program",
            "by mounts in a namespace of its own",
            in_child(|| {
                namespace::separate()?;
                namespace::try_mounts()
            }),
            "allow user namespaces: set user.max_user_namespaces to 10000, and \
             kernel.apparmor_restrict_unprivileged_userns to 0 where it exists; or run as root \
             with the capability CAP_SYS_ADMIN and without a filter on mount and unshare",
            "by answering its path calls, which costs each some microseconds",
            || Stage::place().map(drop),
        ),
        either(
            "descriptors of the program",
            "by pidfd_getfd",
            Descriptors::try_duplicating()
                .map_err(Failed::at("duplicate a descriptor (pidfd_getfd)"))
                .and_then(|()| of_child(|child| look(child, Descriptors::Duplicated))),
            "in a container, add the capability CAP_SYS_PTRACE (--cap-add SYS_PTRACE), or allow \
             pidfd_getfd (--security-opt seccomp=unconfined); set kernel.yama.ptrace_scope \
             below 2",
            "by what /proc/PID/fd shows; eventfds have to be made in the session",
            || of_child(|child| look(child, Descriptors::Shown)),
        ),
        only(
            "memory of the program",
            Need::Always,
            match by_number {
                Ok(()) => "by /proc/PID/mem, and process_vm_readv where that is closed",
                Err(_) => "by /proc/PID/mem; process_vm_readv is forbidden",
            },
            memory,
            TRACE,
        ),
        only(
            "registers that the program maps (mmio = \"map\")",
            Need::IfAsked,
            "by ptrace",
            of_child(trace),
            TRACE,
        ),
    ]
}

fn look(child: u32, descriptors: Descriptors) -> Result<(), Failed> {
    let thread = Threads::new(descriptors).get(child, || true);
    let thread = thread.map_err(Failed::at("open files of /proc/PID"))?;
    let (step, seen) = match descriptors {
        Descriptors::Duplicated => {
            let duplicate = thread.duplicate(0).map(drop);
            ("duplicate a descriptor (pidfd_getfd)", duplicate)
        }
        Descriptors::Shown => ("look into /proc/PID/fd", thread.look(0).map(drop)),
    };
    match seen {
        // What was closed can be seen to be.
        Ok(()) | Err(Errno::EBADF) => Ok(()),
        Err(errno) => Err(Failed::at(step)(io::Error::from_raw_os_error(errno.0))),
    }
}

fn failed(step: &str) -> Failed {
    Failed::at(step)(io::Error::from_raw_os_error(libc::EIO))
}

/// What a child that was forked has in its memory where we have it.
const HERE: [u8; 13] = *b"iogate doctor";

fn read_by_file(child: u32) -> Result<(), Failed> {
    let at = Failed::at("open /proc/PID/mem");
    let process = Process::open(child.cast_signed()).map_err(at)?;
    let mut theirs = [0; HERE.len()];
    let address = std::ptr::from_ref(&HERE).expose_provenance() as u64;
    let read = process.read(address, &mut theirs);
    read.map_err(|_| failed("read /proc/PID/mem"))?;
    let found = process.vma_at(address);
    found.map(drop).map_err(|_| failed("read /proc/PID/maps"))
}

fn read_by_number(child: u32) -> Result<(), Failed> {
    let mut theirs = [0_u8; HERE.len()];
    let ours = libc::iovec {
        iov_base: theirs.as_mut_ptr().cast(),
        iov_len: theirs.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::from_ref(&HERE).cast_mut().cast(),
        iov_len: HERE.len(),
    };
    // SAFETY: `ours` is a buffer of this length; the other process is only
    // read.
    let read = unsafe { libc::process_vm_readv(child.cast_signed(), &ours, 1, &remote, 1, 0) };
    match read {
        -1 => Err(Failed::at("process_vm_readv")(io::Error::last_os_error())),
        _ => Ok(()),
    }
}

fn trace(child: u32) -> Result<(), Failed> {
    // SAFETY: PTRACE_SEIZE takes plain numbers; the tracer that ends lets go.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, child.cast_signed(), 0, 0) };
    match seized {
        -1 => Err(Failed::at("ptrace")(io::Error::last_os_error())),
        _ => Ok(()),
    }
}

fn listen() -> Result<(), Failed> {
    let installed = Filter::new(Extent::LEAST).install();
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
