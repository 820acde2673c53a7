//! The calls of ptrace(2) that are used, on a task that this thread traces and
//! that is stopped. ESRCH means that it was killed meanwhile.

use std::fs::File;
use std::io::{self, Read as _};

use iogate_x86::Registers;

use super::bus_errors::Shown;

/// A task that is traced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Task(pub(crate) i32);

/// The `regset` of vector registers. include/uapi/linux/elf.h, NT_X86_XSTATE.
const XSTATE: usize = 0x202;
/// Bytes of the largest XSAVE area known, with room for what will come.
pub(crate) const AREA: usize = 16384;

/// The code segment of 64-bit programs. arch/x86/include/asm/segment.h,
/// __USER_CS.
const CODE_64: u64 = 0x33;

/// What a stop is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The task has ended.
    Ended,
    /// A signal is about to be delivered.
    Signal(i32),
    /// The task's group is stopped by a signal, and waits for another.
    Group,
    /// The task executes another program.
    Exec,
    /// The task is about to end, and accesses nothing any more.
    Exiting,
    /// Anything else: it goes on.
    Other,
}

impl Stop {
    /// From the status that wait(2) gives.
    pub(crate) fn from_wait(status: i32) -> Self {
        if !libc::WIFSTOPPED(status) {
            return Self::Ended;
        }
        let signal = libc::WSTOPSIG(status);
        let stopping = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        match status >> 16 {
            0 => Self::Signal(signal),
            libc::PTRACE_EVENT_STOP if stopping.contains(&signal) => Self::Group,
            libc::PTRACE_EVENT_EXEC => Self::Exec,
            libc::PTRACE_EVENT_EXIT => Self::Exiting,
            _ => Self::Other,
        }
    }
}

fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits for a task of this thread's to stop or end; ECHILD without any.
pub(crate) fn wait() -> io::Result<(Task, Stop)> {
    let mut status = 0;
    // Children of other threads are those threads'.
    let options = libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: the status is written to a local integer.
    let task = unsafe { libc::waitpid(-1, &raw mut status, options) };
    match task {
        -1 => Err(io::Error::last_os_error()),
        task => Ok((Task(task), Stop::from_wait(status))),
    }
}

/// Keeps stops of traced tasks from raising SIGCHLD in this process, where
/// another thread would wake for each.
pub(crate) fn silence_stops() -> io::Result<()> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: zeroes are the default action, without a handler.
    let done = unsafe {
        (*action.as_mut_ptr()).sa_flags = libc::SA_NOCLDSTOP;
        libc::sigaction(libc::SIGCHLD, action.as_ptr(), std::ptr::null_mut())
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Task {
    /// Its number as the system calls of others have it.
    pub(crate) fn number(self) -> u32 {
        self.0.cast_unsigned()
    }

    /// What `/proc` says of it. ENOENT if it has gone.
    pub(crate) fn status(self) -> io::Result<String> {
        // What is looked for stands in its first part; one read gives it.
        let mut text = [0; 4096];
        let length = File::open(format!("/proc/{}/status", self.0))?.read(&mut text)?;
        let text = text.get(..length).unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// What `/proc` says of it and SIGBUS.
    pub(crate) fn shown(self) -> io::Result<Shown> {
        Ok(Shown::parse(&self.status()?))
    }

    /// The signals that it blocks.
    pub(crate) fn mask(self) -> io::Result<u64> {
        let mut mask = 0_u64;
        // SAFETY: the kernel writes 8 bytes.
        done(unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, self.0, 8, &raw mut mask) })?;
        Ok(mask)
    }

    pub(crate) fn set_mask(self, mask: u64) -> io::Result<()> {
        // SAFETY: the kernel reads 8 bytes.
        done(unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, self.0, 8, &raw const mask) })
    }

    /// Has it make the system call that its registers are at, and waits for
    /// its end. No signal but SIGKILL and SIGSTOP can come between.
    pub(crate) fn make_call(self) -> io::Result<()> {
        // Stops at the beginning and at the end of the call.
        let mut left = 2_u32;
        while left > 0 {
            // SAFETY: this request takes numbers.
            done(unsafe { libc::ptrace(libc::PTRACE_SYSCALL, self.0, 0, 0) })?;
            let mut status = 0;
            let options = libc::__WALL | libc::__WNOTHREAD;
            // SAFETY: the status is written to a local integer.
            let found = unsafe { libc::waitpid(self.0, &raw mut status, options) };
            if found != self.0 {
                return Err(io::Error::last_os_error());
            }
            match Stop::from_wait(status) {
                Stop::Signal(libc::SIGTRAP) => left = left.saturating_sub(1),
                Stop::Ended => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
                // Once more, when it goes on for good.
                // SAFETY: kill takes numbers.
                Stop::Signal(signal) => unsafe {
                    libc::kill(self.0, signal);
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// The number of its process. ENOENT if it has gone.
    pub(crate) fn process(self) -> io::Result<u32> {
        let status = self.status()?;
        let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
        let process = process.and_then(|process| process.trim().parse().ok());
        process.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Traces the task, and all that it starts from now on, without stopping
    /// it.
    pub(crate) fn seize(self) -> io::Result<()> {
        let options = libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_TRACEEXEC
            | libc::PTRACE_O_TRACEEXIT;
        // SAFETY: this request takes numbers.
        done(unsafe { libc::ptrace(libc::PTRACE_SEIZE, self.0, 0, libc::c_long::from(options)) })
    }

    /// Lets the task go on, with a signal or with none (0).
    pub(crate) fn resume(self, signal: i32) {
        // A task that was killed meanwhile goes on by itself.
        // SAFETY: this request takes numbers.
        unsafe { libc::ptrace(libc::PTRACE_CONT, self.0, 0, libc::c_long::from(signal)) };
    }

    /// Traces the task no more; it goes on.
    pub(crate) fn detach(self) {
        // SAFETY: this request takes numbers.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }

    /// Leaves the task stopped with its group.
    pub(crate) fn listen(self) {
        // SAFETY: this request takes numbers.
        unsafe { libc::ptrace(libc::PTRACE_LISTEN, self.0, 0, 0) };
    }

    /// What the signal that the task is stopped at says.
    pub(crate) fn signal(self) -> io::Result<libc::siginfo_t> {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: the kernel writes a siginfo_t, for which all bits are valid.
        unsafe {
            done(libc::ptrace(
                libc::PTRACE_GETSIGINFO,
                self.0,
                0,
                info.as_mut_ptr(),
            ))?;
            Ok(info.assume_init())
        }
    }

    /// Changes what the signal says.
    pub(crate) fn set_signal(self, info: &libc::siginfo_t) -> io::Result<()> {
        let info = std::ptr::from_ref(info);
        // SAFETY: the kernel reads a siginfo_t.
        done(unsafe { libc::ptrace(libc::PTRACE_SETSIGINFO, self.0, 0, info) })
    }

    /// The registers as the kernel has them.
    pub(crate) fn registers(self) -> io::Result<User> {
        let mut user = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
        // SAFETY: the kernel writes a user_regs_struct, plain numbers.
        unsafe {
            done(libc::ptrace(
                libc::PTRACE_GETREGS,
                self.0,
                0,
                user.as_mut_ptr(),
            ))?;
            Ok(User(user.assume_init()))
        }
    }

    pub(crate) fn set_registers(self, user: &User) -> io::Result<()> {
        let user = &raw const user.0;
        // SAFETY: the kernel reads a user_regs_struct.
        done(unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.0, 0, user) })
    }

    /// The 8 bytes of the task's memory at `address`.
    pub(crate) fn word(self, address: u64) -> io::Result<[u8; 8]> {
        let mut word = [0; 8];
        // Not by the library's function, which gives the word as its result.
        // SAFETY: the kernel writes 8 bytes.
        done(unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                libc::c_long::from(libc::PTRACE_PEEKDATA),
                libc::c_long::from(self.0),
                address,
                word.as_mut_ptr(),
            )
        })?;
        Ok(word)
    }

    /// Reads the XSAVE area; returns how long it is.
    pub(crate) fn area(self, area: &mut [u8; AREA]) -> io::Result<usize> {
        let mut vector = libc::iovec {
            iov_base: area.as_mut_ptr().cast(),
            iov_len: AREA,
        };
        // SAFETY: the kernel writes at most as many bytes as the vector says.
        done(unsafe { libc::ptrace(libc::PTRACE_GETREGSET, self.0, XSTATE, &raw mut vector) })?;
        Ok(vector.iov_len)
    }

    pub(crate) fn set_area(self, area: &[u8]) -> io::Result<()> {
        let vector = libc::iovec {
            iov_base: area.as_ptr().cast_mut().cast(),
            iov_len: area.len(),
        };
        // SAFETY: the kernel only reads, as many bytes as the vector says.
        done(unsafe { libc::ptrace(libc::PTRACE_SETREGSET, self.0, XSTATE, &raw const vector) })
    }
}

/// The general registers in the kernel's form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User(pub(crate) libc::user_regs_struct);

impl User {
    /// Whether the task runs in 64-bit mode.
    pub(crate) fn is_64_bit(&self) -> bool {
        self.0.cs == CODE_64
    }

    /// Makes them those of a task that is about to make a system call by the
    /// instruction at `at`.
    pub(crate) fn set_call(&mut self, number: i64, arguments: [u64; 4], at: u64) {
        let user = &mut self.0;
        user.rax = number.cast_unsigned();
        [user.rdi, user.rsi, user.rdx, user.r10] = arguments;
        user.rip = at;
        // It is in no call that could be restarted.
        user.orig_rax = u64::MAX;
    }

    /// Has a call that was to be given up for a handler's sake begin anew
    /// after it, if it is one that programs do not expect to fail so. Returns
    /// whether that was so.
    pub(crate) fn restart(&mut self) -> bool {
        /// Linux include/linux/errno.h, ERESTARTSYS and ERESTARTNOINTR.
        const MAYBE: i64 = -512;
        const ALWAYS: i64 = -513;
        let calls = [
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_ptrace,
        ];
        let user = &mut self.0;
        let is_given_up =
            user.rax.cast_signed() == MAYBE && calls.contains(&user.orig_rax.cast_signed());
        if is_given_up {
            user.rax = ALWAYS.cast_unsigned();
        }
        is_given_up
    }

    pub(crate) fn to_registers(self) -> Registers {
        let user = self.0;
        Registers {
            general: [
                user.rax, user.rcx, user.rdx, user.rbx, user.rsp, user.rbp, user.rsi, user.rdi,
                user.r8, user.r9, user.r10, user.r11, user.r12, user.r13, user.r14, user.r15,
            ],
            rip: user.rip,
            flags: user.eflags,
            fs: user.fs_base,
            gs: user.gs_base,
        }
    }

    pub(crate) fn set(&mut self, registers: &Registers) {
        let user = &mut self.0;
        [
            user.rax, user.rcx, user.rdx, user.rbx, user.rsp, user.rbp, user.rsi, user.rdi,
            user.r8, user.r9, user.r10, user.r11, user.r12, user.r13, user.r14, user.r15,
        ] = registers.general;
        user.rip = registers.rip;
        user.eflags = registers.flags;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_are_told_apart() {
        let stopped = |signal: i32, event: i32| Stop::from_wait(event << 16 | signal << 8 | 0x7f);
        assert_eq!(Stop::from_wait(0), Stop::Ended);
        assert_eq!(Stop::from_wait(libc::SIGKILL), Stop::Ended);
        assert_eq!(stopped(libc::SIGBUS, 0), Stop::Signal(libc::SIGBUS));
        assert_eq!(stopped(libc::SIGSTOP, 0), Stop::Signal(libc::SIGSTOP));
        let event = libc::PTRACE_EVENT_STOP;
        assert_eq!(stopped(libc::SIGSTOP, event), Stop::Group);
        assert_eq!(stopped(libc::SIGTRAP, event), Stop::Other);
        assert_eq!(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXEC), Stop::Exec);
        assert_eq!(
            stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXIT),
            Stop::Exiting
        );
        assert_eq!(
            stopped(libc::SIGTRAP, libc::PTRACE_EVENT_CLONE),
            Stop::Other
        );
    }

    #[test]
    fn registers_keep_their_places() {
        // SAFETY: plain numbers.
        let mut user = User(unsafe { std::mem::zeroed() });
        let registers = Registers {
            general: std::array::from_fn(|index| 100 + u64::try_from(index).unwrap()),
            rip: 1,
            flags: 2,
            ..Registers::default()
        };
        user.set(&registers);
        assert_eq!(user.to_registers(), registers);
        assert_eq!((user.0.rcx, user.0.rsp, user.0.r15), (101, 104, 115));
    }
}
