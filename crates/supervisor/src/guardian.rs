//! The guardian: the process between the supervisor and the program. It lives
//! in the program's namespaces, starts the program, reaps what is left, and
//! ends everything if the supervisor dies.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::control::{Control, Word};
use crate::filter::Filter;
use crate::process;
use crate::signals::{self, Inherited, Signals};
use crate::user::User;

/// The program to start, in the form that exec takes.
pub(crate) struct Program {
    name: CString,
    arguments: Vec<CString>,
}

/// Says which argument cannot be passed on: it holds a NUL.
#[derive(Debug)]
pub(crate) struct HasNul;

impl Program {
    pub(crate) fn new<'a>(
        name: &'a OsStr,
        arguments: impl Iterator<Item = &'a OsStr>,
    ) -> Result<Self, HasNul> {
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| HasNul);
        Ok(Self {
            name: text(name)?,
            arguments: std::iter::once(name)
                .chain(arguments)
                .map(text)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// What the guardian needs. All of it is made before the fork.
pub(crate) struct Orders<'a> {
    /// The line to the supervisor.
    pub(crate) control: Control,
    /// The line between supervisor and program, until it runs.
    pub(crate) start: Control,
    pub(crate) program: &'a Program,
    /// Who the program's process becomes.
    pub(crate) user: Option<&'a User>,
    pub(crate) filter: &'a Filter,
    pub(crate) inherited: &'a Inherited,
}

/// A step that failed: what was tried, and the errno.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) step: String,
    pub(crate) error: io::Error,
}

impl Failed {
    /// For `map_err`.
    pub(crate) fn at(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        |error| Self { step, error }
    }

    pub(crate) fn send(&self, control: &Control) {
        let errno = self.error.raw_os_error().unwrap_or(libc::EIO);
        let mut body = errno.to_le_bytes().to_vec();
        body.extend_from_slice(self.step.as_bytes());
        let _ = control.send(Word::Failed, &body);
    }
}

/// The life of the guardian, which ends in an exit. `enter` moves it into the
/// namespaces and returns the mount ids of the nodes; `leave` is done when no
/// process is left.
pub(crate) fn guard(
    orders: Orders<'_>,
    enter: impl FnOnce() -> Result<Vec<u64>, Failed>,
    leave: impl FnOnce(),
) -> ! {
    signals::block_all();
    outlive();
    let done = prepare_and_start(&orders, enter);
    leave();
    if let Err(failed) = done {
        failed.send(&orders.control);
        exit(125);
    }
    exit(0);
}

/// Sees to it that the guardian is there when the supervisor dies: it has a name
/// of its own, so that who kills by name does not hit both, and goes on if it
/// was stopped.
fn outlive() {
    // SAFETY: the name is NUL-terminated, and the rest are plain numbers.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"guardian".as_ptr());
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGCONT);
    }
}

/// Ends this process without running anything that the parent has registered.
fn exit(code: i32) -> ! {
    // SAFETY: _exit takes a plain number and does not return.
    unsafe { libc::_exit(code) }
}

fn prepare_and_start(
    orders: &Orders<'_>,
    enter: impl FnOnce() -> Result<Vec<u64>, Failed>,
) -> Result<(), Failed> {
    become_subreaper().map_err(Failed::at("prctl(PR_SET_CHILD_SUBREAPER)"))?;
    let nodes = enter()?;
    let nodes: Vec<u8> = nodes.iter().flat_map(|id| id.to_le_bytes()).collect();
    let lost = || Failed::at("tell the supervisor");
    orders.control.send(Word::Nodes, &nodes).map_err(lost())?;
    let signals = Signals::of_guardian().map_err(Failed::at("signalfd"))?;
    // SAFETY: this process has one thread, so that the child may do anything.
    let program = match unsafe { libc::fork() } {
        -1 => return Err(Failed::at("fork")(io::Error::last_os_error())),
        0 => be_program(orders),
        program => program.cast_unsigned(),
    };
    let started = orders.control.send(Word::Started, &program.to_le_bytes());
    if started.is_err() {
        process::end_all(Duration::MAX);
    }
    watch(&orders.control, &signals, program);
    Ok(())
}

/// Orphans below this process become its children.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: the arguments of this prctl are plain numbers.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reaps until the last process has gone, or the supervisor has.
fn watch(control: &Control, signals: &Signals, program: u32) {
    loop {
        loop {
            match process::reap(libc::WNOHANG) {
                Ok((0, _)) => break,
                Ok((child, status)) if child == program => {
                    let _ = control.send(Word::Ended, &status.to_le_bytes());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
        let mut poll = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(control, PollFlags::empty()),
        ];
        let _ = rustix::event::poll(&mut poll, None);
        let [_, supervisor] = &poll;
        if supervisor
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR)
        {
            process::end_all(Duration::MAX);
            return;
        }
        while signals.next().is_some() {}
    }
}

/// The rest of the life of the program's process in this program. Nothing is
/// allocated between the filter and the word of the supervisor: an allocation
/// may be a noticed call, which nobody would answer.
fn be_program(orders: &Orders<'_>) -> ! {
    let start = &orders.start;
    if let Some(Err(failed)) = orders.user.map(User::become_it) {
        failed.send(start);
        exit(125);
    }
    let mut arguments: Vec<_> = orders
        .program
        .arguments
        .iter()
        .map(|a| a.as_ptr())
        .collect();
    arguments.push(std::ptr::null());
    // SAFETY: the arguments of this prctl are plain numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    let listener = match orders.filter.install() {
        Ok(listener) => listener,
        Err(error) => {
            Failed::at("install a seccomp filter with a listener")(error).send(start);
            exit(125);
        }
    };
    let sent = start.send_listener(std::os::fd::AsFd::as_fd(&listener));
    drop(listener);
    if sent.is_err() || !wait_for_go(start) {
        exit(125);
    }
    orders.inherited.restore_for_program();
    // SAFETY: the name and the arguments are C strings, the array ends in a
    // null pointer; all of them outlive the call.
    unsafe { libc::execvp(orders.program.name.as_ptr(), arguments.as_ptr()) };
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    let _ = start.send(Word::NotExecuted, &errno.to_le_bytes());
    exit(127);
}

fn wait_for_go(start: &Control) -> bool {
    let mut byte = [0_u8; 1];
    let received = rustix::io::retry_on_intr(|| rustix::io::read(start, &mut byte));
    received == Ok(1) && byte == [Word::Go as u8]
}
