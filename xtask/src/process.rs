//! Runs one program as a step: its own process group, a log, a time limit, perhaps another user.
//! When it is over nothing of it is left, and what was left counts as a failure.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::verdict::{About as _, Stop};

/// How long the processes of an ended step may take to go.
const GRACE: Duration = Duration::from_secs(10);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Makes Ctrl-C end the running step instead of this program, and makes orphans of a step ours to find.
pub(crate) fn take_charge() {
    let handler: extern "C" fn(libc::c_int) = note_interrupt;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is safe at any point of the program.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    // SAFETY: no pointer is passed.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Whether the person wants the run to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Jobs that run.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// An unprivileged user that a step runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) id: libc::uid_t,
}

/// A program to run, its limit and its log.
pub(crate) struct Job<'a> {
    command: Command,
    log: &'a Path,
    limit: Duration,
    output: Option<PathBuf>,
    terminal: bool,
}

/// How a job ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// What it wrote: standard error and, unless it was kept apart, standard output.
    pub(crate) log: String,
    /// Standard output, if it was kept apart.
    pub(crate) output: String,
    pub(crate) elapsed: Duration,
}

impl Ended {
    /// An error unless the program exited with 0.
    pub(crate) fn success(self, what: &str) -> Result<Self, Stop> {
        if self.status.success() {
            return Ok(self);
        }
        Err(Stop::failed(format!("{what}: {}", self.how())))
    }

    /// "exit status 3" or "signal 9".
    pub(crate) fn how(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        }
    }
}

impl<'a> Job<'a> {
    /// A job of five minutes at most that appends to `log`.
    pub(crate) fn new(command: Command, log: &'a Path) -> Self {
        Self {
            command,
            log,
            limit: Duration::from_secs(300),
            output: None,
            terminal: false,
        }
    }

    /// Kills it after this long.
    pub(crate) fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Runs it as `user`, without any capability.
    pub(crate) fn user(mut self, user: Option<User>) -> Self {
        if let Some(user) = user {
            // SAFETY: `drop_privileges` only makes system calls, which is allowed between fork and exec.
            unsafe { self.command.pre_exec(move || drop_privileges(user)) };
        }
        self
    }

    /// Keeps standard output apart, in this file.
    pub(crate) fn output(mut self, file: PathBuf) -> Self {
        self.output = Some(file);
        self
    }

    /// Gives it a terminal of its own, for the keys that make signals; its input comes from there.
    pub(crate) fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// Starts it.
    pub(crate) fn start(mut self) -> Result<Started<'a>, Stop> {
        let name = self.command.get_program().to_string_lossy().into_owned();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log)
            .about(self.log.display())?;
        let offset = log.metadata().about(self.log.display())?.len();
        let output = match &self.output {
            Some(path) => File::create(path).about(path.display())?,
            None => log.try_clone().about(self.log.display())?,
        };
        self.command.stdout(output).stderr(log);
        let terminal = if self.terminal {
            let (keys, terminal) = open_terminal().about("a terminal")?;
            self.command.stdin(terminal);
            // SAFETY: two system calls with integers only, allowed between fork and exec.
            unsafe {
                self.command.pre_exec(|| {
                    if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                    Ok(())
                });
            }
            Some(keys)
        } else {
            self.command.process_group(0).stdin(Stdio::null());
            None
        };
        // SAFETY: prctl with integers only, allowed between fork and exec.
        unsafe {
            self.command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let since = Instant::now();
        let child = self.command.spawn().about(&name)?;
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Ok(Started {
            name,
            child,
            since,
            log: self.log,
            offset,
            limit: self.limit,
            output: self.output,
            terminal,
        })
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Result<Ended, Stop> {
        self.start()?.finish()
    }
}

/// A running job. Dropped before its end, it is killed.
pub(crate) struct Started<'a> {
    name: String,
    child: Child,
    since: Instant,
    log: &'a Path,
    offset: u64,
    limit: Duration,
    output: Option<PathBuf>,
    terminal: Option<File>,
}

impl Started<'_> {
    /// The process id, which is also that of its group.
    pub(crate) fn id(&self) -> libc::pid_t {
        self.child.id().cast_signed()
    }

    /// Whether it has still to end and its limit has not passed.
    pub(crate) fn is_running(&mut self) -> bool {
        self.since.elapsed() < self.limit
            && !interrupted()
            && matches!(self.child.try_wait(), Ok(None))
    }

    /// Presses Ctrl-C on its terminal.
    pub(crate) fn press_interrupt(&mut self) -> Result<(), Stop> {
        match &mut self.terminal {
            Some(keys) => keys.write_all(b"\x03").about("a terminal"),
            None => Err(Stop::failed("the job has no terminal")),
        }
    }

    /// What it has written so far.
    pub(crate) fn log_so_far(&self) -> String {
        tail_from(self.log, self.offset)
    }

    /// Waits until what it wrote contains `words`; false when it ended or the limit passed before.
    pub(crate) fn wait_for(&mut self, words: &str) -> bool {
        while self.since.elapsed() < self.limit && !interrupted() {
            if self.log_so_far().contains(words) {
                return true;
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                return self.log_so_far().contains(words);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Waits for the end, the limit, or Ctrl-C.
    pub(crate) fn finish(mut self) -> Result<Ended, Stop> {
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = self.child.try_wait().about(&self.name)? {
                break status;
            }
            if interrupted() {
                self.kill();
                return Err(Stop::Interrupted);
            }
            if self.since.elapsed() > self.limit {
                self.kill();
                return Err(Stop::failed(format!(
                    "{} was killed after {} s",
                    self.name,
                    self.limit.as_secs()
                )));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        let elapsed = self.since.elapsed();
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        let left = sweep();
        if !left.is_empty() {
            return Err(Stop::failed(format!(
                "{} ended ({status}) and left processes behind: {}",
                self.name,
                left.join(", ")
            )));
        }
        Ok(Ended {
            status,
            log: self.log_so_far(),
            output: self
                .output
                .as_ref()
                .map(|path| tail_from(path, 0))
                .unwrap_or_default(),
            elapsed,
        })
    }

    fn kill(&mut self) {
        signal_group(self.id(), libc::SIGKILL);
        // It may have ended in the meantime: either way it is reaped.
        let _ = self.child.wait();
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        sweep();
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

/// A new terminal: the end where keys are pressed, and the end that a program has.
fn open_terminal() -> std::io::Result<(File, OwnedFd)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: each descriptor is owned as soon as it is known to be open; TIOCGPTPEER takes flags.
    unsafe {
        let keys = libc::posix_openpt(flags);
        if keys < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let owned = File::from_raw_fd(keys);
        check(libc::unlockpt(keys))?;
        let terminal = libc::ioctl(keys, libc::TIOCGPTPEER, flags);
        if terminal < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok((owned, OwnedFd::from_raw_fd(terminal)))
    }
}

/// Sends a signal to a whole process group.
fn signal_group(group: libc::pid_t, signal: libc::c_int) {
    // SAFETY: no pointer is passed.
    unsafe { libc::kill(-group, signal) };
}

/// The processors that this process may run on.
pub(crate) fn processors() -> Vec<usize> {
    // SAFETY: an all-zero set is a valid value, which lives through the calls.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
        (0..libc::CPU_SETSIZE.cast_unsigned() as usize)
            .filter(|&processor| libc::CPU_ISSET(processor, &set))
            .collect()
    }
}

/// Sends a signal to one process.
pub(crate) fn signal(process: libc::pid_t, signal: libc::c_int) {
    // SAFETY: no pointer is passed.
    unsafe { libc::kill(process, signal) };
}

/// Processes of ended jobs become our children; they get a moment to end and are then killed. Returns the killed. While
/// another job runs, whose they are cannot be told: they are left to its end.
fn sweep() -> Vec<String> {
    if RUNNING.load(Ordering::Relaxed) > 0 {
        return Vec::new();
    }
    let since = Instant::now();
    loop {
        reap();
        let left = children();
        if left.is_empty() {
            return Vec::new();
        }
        if since.elapsed() > GRACE {
            let names = left
                .iter()
                .map(|(id, name)| {
                    signal(*id, libc::SIGKILL);
                    format!("{id} {name}")
                })
                .collect();
            std::thread::sleep(Duration::from_millis(50));
            reap();
            return names;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn reap() {
    // SAFETY: a null status pointer is allowed.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// Our children: id and name.
fn children() -> Vec<(libc::pid_t, String)> {
    let me = std::process::id().to_string();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let (head, tail) = stat.rsplit_once(')')?;
            let parent = tail.split_whitespace().nth(1)?;
            (parent == me).then(|| (id, head.split_once('(').map_or("", |(_, n)| n).to_owned()))
        })
        .collect()
}

fn tail_from(path: &Path, offset: u64) -> String {
    use std::io::{Seek as _, SeekFrom};
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        // A log that cannot be read is empty, and the checks on its words fail with that.
        let _ = file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| file.read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Becomes `user`, with no group and with every capability set empty.
fn drop_privileges(user: User) -> std::io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    // _LINUX_CAPABILITY_VERSION_3: two 32-bit words for each of three sets.
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let none = [0_u32; 6];
    // SAFETY: capset reads the two structures, which live until it returns; the rest take integers
    // or a null pointer with a count of zero.
    unsafe {
        let mut capability: libc::c_ulong = 0;
        while libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) == 0 {
            capability += 1;
        }
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(user.id, user.id, user.id))?;
        check(libc::setresuid(user.id, user.id, user.id))?;
        if libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

fn check(result: libc::c_int) -> std::io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
