//! Runs a session with the supervisor's threads, and nobody else, stopped at
//! each system call, of which one fails. ptrace(2).

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::calls;

/// How long a session may take, in seconds.
const PATIENCE: u32 = 30;

/// What became of a session.
pub struct Ran {
    /// The call that failed.
    pub failed: Option<i64>,
    /// How many calls could have.
    pub total: u64,
    /// Status as of wait(2); `None` if it did not end.
    pub status: Option<i32>,
    pub err: String,
    /// Processes that were left.
    pub left: Vec<String>,
}

/// The status of a session's process that cannot be traced.
pub const NO_TRACE: i32 = 77;

/// In the session's process: waits for its parent to trace it.
pub fn offer() {
    if ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0 {
        std::process::exit(NO_TRACE);
    }
    // SAFETY: plain numbers.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Where sessions have their temporary files.
pub fn directory() -> PathBuf {
    let directory = std::env::temp_dir().join(format!("failures-{}", std::process::id()));
    let _ = std::fs::create_dir(&directory);
    directory
}

fn ptrace(request: libc::c_uint, thread: i32, address: usize, data: usize) -> i64 {
    // SAFETY: the callers pass what the request wants; nothing is pointed to
    // but in `entry`.
    unsafe { libc::ptrace(request, thread, address, data) }
}

/// The number of the call that a stopped thread is about to make; `None` if it
/// has made it.
fn entry(thread: i32) -> Option<i64> {
    // SAFETY: the structure is plain data.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    let at = (&raw mut info).expose_provenance();
    let got = ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, at);
    if got <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says that this is the variant.
    i64::try_from(unsafe { info.u.entry.nr }).ok()
}

fn set_register(thread: i32, register: i32, value: i64) {
    let offset = usize::try_from(register).unwrap() * 8;
    ptrace(libc::PTRACE_POKEUSER, thread, offset, value as usize);
}

extern "C" fn on_alarm(_: i32) {}

/// Runs a session in which call number `at` of the supervisor fails.
pub fn run(at: Option<u64>) -> Ran {
    // SAFETY: a new file; the handler does nothing; the rest are plain numbers.
    let mut said = unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_alarm as extern "C" fn(i32) as usize;
        libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
        File::from_raw_fd(libc::memfd_create(c"said".as_ptr(), libc::MFD_CLOEXEC))
    };
    #[expect(
        clippy::zombie_processes,
        reason = "`follow` and `end_all` wait for it"
    )]
    let child = Command::new("/proc/self/exe")
        .arg("run")
        .env("TMPDIR", directory())
        .stdin(Stdio::null())
        .stdout(said.try_clone().unwrap())
        .stderr(said.try_clone().unwrap())
        .spawn()
        .unwrap();
    let supervisor = i32::try_from(child.id()).unwrap();
    // SAFETY: a plain number.
    unsafe { libc::alarm(PATIENCE) };
    let mut tracing = Tracing {
        supervisor,
        at,
        total: 0,
        failed: None,
        failing: HashMap::new(),
        threads: BTreeMap::new(),
    };
    let status = tracing.follow();
    // SAFETY: a plain number.
    unsafe { libc::alarm(0) };
    let left = end_all(status.is_none());
    let mut err = String::new();
    said.rewind().unwrap();
    said.read_to_string(&mut err).unwrap();
    Ran {
        failed: tracing.failed,
        total: tracing.total,
        status,
        err,
        left,
    }
}

struct Tracing {
    supervisor: i32,
    at: Option<u64>,
    total: u64,
    failed: Option<i64>,
    /// Threads in the call that is to fail, and with what.
    failing: HashMap<i32, i32>,
    /// Threads that were seen.
    threads: BTreeMap<i32, ()>,
}

impl Tracing {
    /// Until the supervisor ends; `None` if it does not.
    fn follow(&mut self) -> Option<i32> {
        loop {
            let mut status = 0;
            // SAFETY: the status is a local integer.
            let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
            if thread < 0 {
                return None;
            }
            if !libc::WIFSTOPPED(status) {
                if thread == self.supervisor {
                    return Some(status);
                }
                continue;
            }
            let signal = self.stopped(thread, status);
            ptrace(libc::PTRACE_SYSCALL, thread, 0, signal);
        }
    }

    /// Returns the signal that the thread is to get.
    fn stopped(&mut self, thread: i32, status: i32) -> usize {
        if self.threads.insert(thread, ()).is_none() {
            let options =
                libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
            let options = usize::try_from(options).unwrap();
            ptrace(libc::PTRACE_SETOPTIONS, thread, 0, options);
            return 0;
        }
        if status >> 16 != 0 {
            return 0;
        }
        let signal = libc::WSTOPSIG(status);
        if signal != libc::SIGTRAP | 0x80 {
            return usize::try_from(signal).unwrap();
        }
        match entry(thread) {
            Some(number) => self.enters(thread, number),
            None => {
                if let Some(errno) = self.failing.remove(&thread) {
                    set_register(thread, libc::RAX, -i64::from(errno));
                }
            }
        }
        0
    }

    fn enters(&mut self, thread: i32, number: i64) {
        let Some(errno) = calls::failure(number) else {
            return;
        };
        if self.at == Some(self.total) {
            self.failed = Some(number);
            self.failing.insert(thread, errno);
            set_register(thread, libc::ORIG_RAX, -1);
        }
        self.total += 1;
    }
}

/// Names and ends what is still there: children and orphans of theirs are this
/// process's.
fn end_all(at_once: bool) -> Vec<String> {
    let start = std::time::Instant::now();
    let mut left = Vec::new();
    loop {
        // SAFETY: no status is wanted.
        let ended = unsafe {
            let options = libc::WNOHANG | libc::__WALL;
            libc::waitpid(-1, std::ptr::null_mut(), options)
        };
        match ended {
            ..0 => return left,
            0 => {
                if at_once || start.elapsed().as_secs() > 5 {
                    for (process, name) in children() {
                        left.push(name);
                        // SAFETY: a child of this process, which is not reaped.
                        unsafe { libc::kill(process, libc::SIGKILL) };
                    }
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            _ => {}
        }
    }
}

fn children() -> Vec<(i32, String)> {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let (before, after) = stat.rsplit_once(')')?;
            (after.split_ascii_whitespace().nth(1)? == own).then_some(())?;
            let (process, name) = before.split_once('(')?;
            Some((process.trim().parse().ok()?, name.to_owned()))
        })
        .collect()
}
