//! Signals: what the program inherits, what reaches the supervisor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::beside::Caught;

/// The signals that the supervisor takes for the program.
const PASSED_ON: [i32; 6] = [
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

fn empty() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn set_of(signals: impl IntoIterator<Item = i32>) -> libc::sigset_t {
    let mut set = empty();
    for signal in signals {
        // SAFETY: the set is initialised; a bad number is refused.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

fn change_mask(how: i32, set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut old = empty();
    // SAFETY: both sets are initialised and live through the call.
    match unsafe { libc::pthread_sigmask(how, set, &raw mut old) } {
        0 => Ok(old),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// What iogate was started with, to be given on to the program.
pub(crate) struct Inherited {
    mask: libc::sigset_t,
    child: libc::sighandler_t,
    file_size: libc::sighandler_t,
}

impl Inherited {
    /// Remembers the mask, and how the end of children is treated; from now
    /// on their ends are kept for us, and the signals for the program are
    /// blocked in this thread and those that it starts.
    pub(crate) fn take() -> io::Result<Self> {
        let blocked = set_of(PASSED_ON.into_iter().chain([libc::SIGCHLD]));
        let mask = change_mask(libc::SIG_BLOCK, &blocked)?;
        // A write past RLIMIT_FSIZE (of a trace, of a device's file) is to fail,
        // not to kill.
        // SAFETY: default and ignored are no handlers.
        let (child, file_size) = unsafe {
            (
                libc::signal(libc::SIGCHLD, libc::SIG_DFL),
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN),
            )
        };
        Ok(Self {
            mask,
            child,
            file_size,
        })
    }

    /// Gives both back to the calling process.
    pub(crate) fn restore(&self) {
        if self.child == libc::SIG_IGN {
            // SAFETY: ignoring is no handler.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        }
        if self.file_size == libc::SIG_DFL {
            // SAFETY: the default action is no handler.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
        }
        let _ = change_mask(libc::SIG_SETMASK, &self.mask);
    }

    /// [`restore`](Self::restore) for the program about to be executed: what
    /// Rust's runtime changed goes back too.
    pub(crate) fn restore_for_program(&self) {
        // SAFETY: the default action is no handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        self.restore();
    }
}

/// Blocks every signal in the calling thread.
pub(crate) fn block_all() {
    let mut set = empty();
    // SAFETY: the set is initialised.
    unsafe { libc::sigfillset(&raw mut set) };
    let _ = change_mask(libc::SIG_SETMASK, &set);
}

/// Blocked signals as a file that can be polled.
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// The signals for the program, and the end of children.
    pub(crate) fn of_supervisor() -> io::Result<Self> {
        Self::new(&set_of(PASSED_ON.into_iter().chain([libc::SIGCHLD])))
    }

    /// The end of children.
    pub(crate) fn of_guardian() -> io::Result<Self> {
        Self::new(&set_of([libc::SIGCHLD]))
    }

    fn new(set: &libc::sigset_t) -> io::Result<Self> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, set, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal to be passed on to the program. What a terminal sends
    /// to its foreground group has reached the program already, and ends of
    /// children are noticed by the caller's being here: both are swallowed.
    pub(crate) fn next(&self) -> Option<i32> {
        loop {
            match self.take()? {
                Caught::Sent(signal) => return Some(signal),
                Caught::Typed(_) | Caught::Other => {}
            }
        }
    }

    /// The next signal, whatever it is; `None` if there is none.
    pub(crate) fn take(&self) -> Option<Caught> {
        let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel writes at most `size` bytes, the size of
        // `info`, all of whose bit patterns are valid.
        let (got, info) = unsafe {
            let got = libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size);
            (got, info.assume_init())
        };
        if usize::try_from(got) != Ok(size) {
            return None;
        }
        let signal = i32::try_from(info.ssi_signo).unwrap_or_default();
        // Codes above 0 are the kernel's own.
        Some(match signal {
            libc::SIGCHLD => Caught::Other,
            _ if info.ssi_code <= 0 => Caught::Sent(signal),
            _ => Caught::Typed(signal),
        })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ends this process by `signal`, as the program ended, without a core dump of
/// its own: the program's is what counts.
pub fn die_of(signal: i32) -> ! {
    let no_core = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limit is read, the default action is no handler, and the
    // rest takes plain numbers.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        libc::signal(signal, libc::SIG_DFL);
        let set = set_of([signal]);
        let _ = change_mask(libc::SIG_UNBLOCK, &set);
        libc::raise(signal);
        // Only a signal that ends nobody by default comes back.
        libc::_exit(128_i32.wrapping_add(signal))
    }
}
