//! A session from its start to its end, as the supervisor's first thread sees
//! it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Resource, Rlimit};

use crate::alarm::Alarm;
use crate::attributes::Writable;
use crate::control::{Control, Message, Word};
use crate::core::{Core, Sight};
use crate::filter::{Extent, Filter, ShortWrites, Unmapping};
use crate::guardian::{self, Failed, Orders, Program};
use crate::listener::Listener;
use crate::mmio::Tracer;
use crate::namespace::{self, View};
use crate::nodes::Nodes;
use crate::paths::{self, Paths, Stage};
use crate::presented::Presented;
use crate::process::{self, Straggler};
use crate::receive::Receiver;
use crate::say::say;
use crate::session::{Ended, Session, StartError, Status};
use crate::signals::{Inherited, Signals};
use crate::thread::Descriptors;
use crate::user::{User, may_trace_others};
use crate::worker::Workers;

/// How long processes may outlive the program before they are named.
const STRAGGLING: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};
/// How long we try to end processes that do not end.
const ENDING: Duration = Duration::from_secs(10);

/// Runs a program and returns when the last process under it has gone.
///
/// Call it from a process with one thread: it forks, and the child goes on as
/// a program of its own. SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2
/// that are sent to this process meanwhile are passed on to the program.
///
/// # Errors
/// [`StartError`], when no process of the session is left.
pub fn run(session: Session) -> Result<Ended, StartError> {
    let inherited = Inherited::take().map_err(StartError::step("block signals"))?;
    let ended = supervise(session, &inherited);
    inherited.restore();
    ended
}

fn supervise(session: Session, inherited: &Inherited) -> Result<Ended, StartError> {
    let arguments = session
        .arguments
        .iter()
        .map(|argument| argument.as_os_str());
    let program = Program::new(&session.program, arguments).map_err(|_| StartError::Nul)?;
    let name = session.program.to_string_lossy().into_owned();
    let signals = Signals::of_supervisor().map_err(StartError::step("make a signalfd"))?;
    guardian::become_subreaper().map_err(StartError::step("become a subreaper"))?;
    let (started, stage) = start(&session, inherited, &program)?;
    let alarm = Alarm::new().map_err(StartError::step("make an eventfd"))?;
    let core = match serve(session, &started, stage.as_ref(), &alarm) {
        Ok(core) => core,
        Err(error) => {
            started.end();
            return Err(error);
        }
    };
    let ended = watch(&started, &signals, &alarm);
    let program_id = started.program;
    started.end();
    core.sweep();
    core.watcher.stop();
    match ended.not_executed {
        _ if ended.broken => Err(StartError::Broken("a thread of the supervisor failed")),
        Some(errno) => {
            let source = io::Error::from_raw_os_error(errno);
            Err(match errno {
                libc::ENOENT | libc::EACCES if !exists(&name) => StartError::NotFound {
                    program: name,
                    source,
                },
                _ => StartError::NotExecutable {
                    program: name,
                    source,
                },
            })
        }
        None => match ended.status {
            Some(status) => Ok(Ended {
                process: program_id,
                status: Status::from_wait(status),
                stragglers: ended.stragglers,
            }),
            None => Err(StartError::Broken("the guardian process was killed")),
        },
    }
}

/// Whether there is a program of this name. exec itself gives EACCES also when
/// PATH has a directory that the user may not search.
fn exists(program: &str) -> bool {
    if program.contains('/') {
        return std::path::Path::new(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

/// Starts the processes of a session in one way or another: first by mounts,
/// with all rights that we have, then with those of its user alone; then by
/// answering path calls. Returns the directory that there is in the last one.
fn start(
    session: &Session,
    inherited: &Inherited,
    program: &Program,
) -> Result<(Started, Option<Stage>), StartError> {
    let mut ways = Vec::new();
    if session.user.is_none() || may_trace_others() {
        ways.push(session.user.as_ref());
    }
    if session.user.is_some() {
        // Then all that we are becomes the user, who may do what it may.
        ways.push(None);
    }
    for user in ways {
        if let (Some(all), None) = (&session.user, user) {
            all.become_it().map_err(NotStarted::At)?;
        }
        match Started::new(session, inherited, program, user, None) {
            Err(NotStarted::At(failed)) if is_forbidden(&failed.error) => {}
            started => return Ok((started?, None)),
        }
    }
    let stage = Stage::place().map_err(NotStarted::At)?;
    let started = Started::new(session, inherited, program, None, Some(&stage))?;
    Ok((started, Some(stage)))
}

/// Whether an error says that this machine, or what surrounds us here, does not
/// let us make namespaces or mounts.
pub(crate) fn is_forbidden(error: &io::Error) -> bool {
    let codes = [
        libc::EPERM,
        libc::EACCES,
        libc::ENOSPC,
        libc::EUSERS,
        libc::ENOSYS,
        libc::EINVAL,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

/// Why the processes of a session do not wait for the word to go.
enum NotStarted {
    At(Failed),
    Other(StartError),
}

impl From<NotStarted> for StartError {
    fn from(not_started: NotStarted) -> Self {
        match not_started {
            NotStarted::At(Failed { step, error }) => Self::step(&step)(error),
            NotStarted::Other(error) => error,
        }
    }
}

impl From<StartError> for NotStarted {
    fn from(error: StartError) -> Self {
        Self::Other(error)
    }
}

/// The processes of a session that wait for the word to go.
struct Started {
    guardian: u32,
    program: u32,
    control: Control,
    start: Control,
    listener: Arc<Listener>,
    /// Mount ids of the nodes.
    nodes: Vec<u64>,
    /// How the program's descriptors are reached.
    descriptors: Descriptors,
}

impl Started {
    fn new(
        session: &Session,
        inherited: &Inherited,
        program: &Program,
        user: Option<&User>,
        stage: Option<&Stage>,
    ) -> Result<Self, NotStarted> {
        let pair = || Control::pair().map_err(StartError::step("make a pair of sockets"));
        let (control, their_control) = pair()?;
        let (start, their_start) = pair()?;
        let short_writes = match session.attributes {
            Some(_) => ShortWrites::Noticed,
            None => ShortWrites::Unseen,
        };
        let descriptors = Descriptors::possible();
        let mut filter = Filter::new(Extent {
            unmapping: session.unmapping,
            short_writes,
            paths: stage.is_some(),
            eventfds: descriptors == Descriptors::Shown,
        });
        if session.host.maps_registers() {
            filter = filter.with_mapped_registers();
        }
        // SAFETY: the caller of `run` promises that there is one thread, so
        // that the child may do anything.
        let guardian = match unsafe { libc::fork() } {
            -1 => return Err(StartError::step("fork")(io::Error::last_os_error()).into()),
            0 => {
                drop((control, start));
                let orders = Orders {
                    control: their_control,
                    start: their_start,
                    program,
                    user,
                    filter: &filter,
                    inherited,
                };
                let leave = || stage.into_iter().for_each(Stage::remove);
                guardian::guard(orders, || enter(session, user, stage), leave)
            }
            guardian => guardian.cast_unsigned(),
        };
        drop((their_control, their_start));
        let waiting = Waiting {
            guardian,
            control,
            start,
            descriptors,
        };
        waiting.wait()
    }

    /// Ends what is left of the session and waits for the guardian.
    fn end(self) {
        let Self {
            guardian,
            control,
            start,
            listener,
            ..
        } = self;
        drop((control, start));
        end(guardian);
        drop(listener);
    }
}

/// Waits for the guardian, which ends all others when our end of the line is
/// closed; ends them here if it could not.
fn end(guardian: u32) {
    loop {
        match process::reap(0) {
            Ok((child, 0)) if child == guardian => return,
            Ok((child, _)) if child == guardian => break,
            Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
            _ => {}
        }
    }
    process::end_all(ENDING);
}

/// What the guardian does before it starts the program.
fn enter(
    session: &Session,
    user: Option<&User>,
    stage: Option<&Stage>,
) -> Result<Vec<u64>, Failed> {
    let (nodes, below) = match stage {
        None => (mount(session, user)?, Path::new("/")),
        Some(stage) => {
            paths::fill(stage, session)?;
            (Vec::new(), stage.path())
        }
    };
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    path.push(":");
    path.push(below.join(namespace::BIN.trim_start_matches('/')));
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("PATH", path) };
    Ok(nodes)
}

/// Shows `/sys` and `/dev` by mounts.
fn mount(session: &Session, user: Option<&User>) -> Result<Vec<u64>, Failed> {
    namespace::separate()?;
    let view = View {
        tree: &session.tree,
        host_pci: session.host_pci,
        nodes: session
            .nodes
            .iter()
            .map(|(path, _)| path.as_str())
            .collect(),
        exe: &session.exe,
        owner: user.map(User::ids),
    };
    match user {
        Some(user) => user.owning(|| view.build()),
        None => view.build(),
    }
}

/// A guardian that has not reported yet.
struct Waiting {
    guardian: u32,
    control: Control,
    start: Control,
    descriptors: Descriptors,
}

impl Waiting {
    fn wait(self) -> Result<Started, NotStarted> {
        let (mut nodes, mut program, mut listener) = (None, None, None);
        loop {
            if let (Some(nodes), Some(program), Some(listener)) = (&nodes, program, &listener) {
                let listener: &Arc<Listener> = listener;
                return Ok(Started {
                    guardian: self.guardian,
                    program,
                    listener: Arc::clone(listener),
                    nodes: Vec::clone(nodes),
                    control: self.control,
                    start: self.start,
                    descriptors: self.descriptors,
                });
            }
            let Some(message) = self.next() else {
                drop((self.control, self.start));
                end(self.guardian);
                return Err(StartError::Broken("it could not be started").into());
            };
            match message.word {
                Word::Nodes => {
                    let (ids, _) = message.body.as_chunks::<8>();
                    nodes = Some(ids.iter().map(|id| u64::from_le_bytes(*id)).collect());
                }
                Word::Started => program = Some(message.number().cast_unsigned()),
                Word::Listener => {
                    listener = message.file.map(|file| Arc::new(Listener::new(file)));
                }
                Word::Failed => {
                    drop((self.control, self.start));
                    end(self.guardian);
                    return Err(NotStarted::At(message.failed()));
                }
                Word::Go | Word::NotExecuted | Word::Ended => {}
            }
        }
    }

    fn next(&self) -> Option<Message> {
        let mut poll = [
            PollFd::new(&self.start, PollFlags::IN),
            PollFd::new(&self.control, PollFlags::IN),
        ];
        let _ = rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None));
        let [start, control] = poll.map(|line| line.revents().contains(PollFlags::IN));
        // A line that has ended can be read too: what the other still holds
        // says why.
        let from = |ready: bool, line: &Control| ready.then(|| line.receive().ok().flatten());
        let message = from(start, &self.start).flatten();
        message.or_else(|| from(control, &self.control).flatten())
    }
}

/// Starts the threads that serve the program, and lets it go.
fn serve(
    session: Session,
    started: &Started,
    stage: Option<&Stage>,
    alarm: &Alarm,
) -> Result<Arc<Core>, StartError> {
    raise_open_files();
    let paths = stage.map(|stage| Paths::new(stage, &session)).transpose();
    let paths = paths.map_err(StartError::step("open the session's directory"))?;
    let unmapping = session.unmapping;
    let config = session.host.config();
    let workers = Workers::start(&config.devices, &config.gate, &session.faults, alarm)
        .map_err(StartError::step("start a worker thread"))?;
    let nodes = Nodes::new(session.nodes, &started.nodes);
    let writable = session.attributes.map(|attributes| {
        let presented = match stage {
            None => Presented::of_process(started.guardian, session.tree)?,
            Some(stage) => Presented::at(stage.path(), session.tree)?,
        };
        Writable::new(attributes, presented)
    });
    let writable = writable.transpose();
    let writable = writable.map_err(StartError::step("find /sys of the session"))?;
    let sight = Sight {
        nodes,
        writable,
        descriptors: started.descriptors,
        paths,
    };
    let core = Core::new(session.host, session.memory, workers, alarm.clone(), sight);
    let core = Arc::new(core.map_err(StartError::step("make an epoll file"))?);
    let kicked = Arc::downgrade(&core);
    core.host.on_work(move |device| {
        if let Some(core) = kicked.upgrade() {
            core.workers.kick(Some(device));
        }
    });
    let watching = Arc::clone(&core);
    start_thread("watch", alarm, move || watching.watch())?;
    let (serving, listener) = (Arc::clone(&core), Arc::clone(&started.listener));
    start_thread("receive", alarm, move || {
        Receiver::new(serving, listener)?.run()
    })?;
    if core.host.maps_registers() {
        trace(&core, started.program, unmapping, alarm)?;
    }
    match started.start.send(Word::Go, &[]) {
        // If the program is gone already, the guardian will say so.
        Ok(()) => Ok(core),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET | libc::ECONNREFUSED) => Ok(core),
            _ => Err(StartError::step("let the program go")(error)),
        },
    }
}

/// Traces the program, which must not have started yet, for its accesses to
/// mapped registers.
fn trace(
    core: &Arc<Core>,
    program: u32,
    unmapping: Unmapping,
    alarm: &Alarm,
) -> Result<(), StartError> {
    let tracer = Tracer::new(Arc::clone(core), unmapping);
    let (started, is_started) = std::sync::mpsc::sync_channel(1);
    start_thread("trace", alarm, move || tracer.run(program, &started))?;
    let traced = is_started.recv();
    traced
        .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
        .map_err(StartError::step("trace the program with ptrace"))
}

/// Starts a thread whose failure ends the session.
fn start_thread(
    name: &str,
    alarm: &Alarm,
    body: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), StartError> {
    let alarm = alarm.clone();
    let started = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            alarm.guard(|| {
                if let Err(error) = body() {
                    say(&format!("the supervisor cannot go on: {error}"));
                    alarm.raise();
                }
            });
        });
    started
        .map(drop)
        .map_err(StartError::step("start a thread"))
}

/// The supervisor holds descriptors for all of the program's processes. The
/// program, which is forked already, keeps its own limit.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
}

/// What was seen until the end.
#[derive(Default)]
struct Seen {
    status: Option<i32>,
    not_executed: Option<i32>,
    stragglers: Vec<Straggler>,
    broken: bool,
}

/// Waits for the end: passes signals on, and names those who stay behind.
fn watch(started: &Started, signals: &Signals, alarm: &Alarm) -> Seen {
    let mut seen = Seen::default();
    let mut named = false;
    let mut start_is_open = true;
    loop {
        let mut poll = [
            PollFd::new(&started.control, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(alarm, PollFlags::IN),
            PollFd::new(&started.start, PollFlags::IN),
        ];
        let lines = if start_is_open {
            &mut poll[..]
        } else {
            &mut poll[..3]
        };
        let straggling = seen.status.is_some() && !named;
        let timeout = straggling.then_some(&STRAGGLING);
        if rustix::event::poll(lines, timeout) == Ok(0) {
            named = true;
            seen.stragglers = process::descendants(started.guardian);
            name(&seen.stragglers);
            continue;
        }
        let [control, _, alarm, start] = poll.map(|line| line.revents());
        if !alarm.is_empty() {
            seen.broken = true;
            return seen;
        }
        if !start.is_empty() {
            match started.start.receive() {
                Ok(Some(message)) if message.word == Word::NotExecuted => {
                    seen.not_executed = Some(message.number());
                }
                Ok(Some(_)) => {}
                _ => start_is_open = false,
            }
        }
        if !control.is_empty() {
            match started.control.receive() {
                Ok(Some(message)) if message.word == Word::Ended => {
                    seen.status = Some(message.number());
                }
                Ok(Some(_)) => {}
                _ => return seen,
            }
        }
        while let Some(signal) = signals.next() {
            if seen.status.is_none() {
                process::signal(started.program, signal);
            }
        }
    }
}

fn name(stragglers: &[Straggler]) {
    if stragglers.is_empty() {
        return;
    }
    let names: Vec<_> = stragglers
        .iter()
        .map(|straggler| format!("{} ({})", straggler.process, straggler.name))
        .collect();
    say(&format!(
        "the program has ended; waiting for {} that it left: {}",
        if names.len() == 1 {
            "a process"
        } else {
            "processes"
        },
        names.join(", ")
    ));
}
