//! Working directories on the stage. Only a thread itself can change where it
//! works, and the path that it asked for leads the kernel elsewhere: so it is
//! given a descriptor of the directory and made to execute fchdir(2) with it,
//! by ptrace(2), when its own call is over.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use crate::listener::{Listener, OnExec, Reply};

/// Bytes of the instruction that makes a system call.
const INSTRUCTION: u64 = 2;

/// Makes thread `id`, which waits in the noticed call `call`, enter
/// `directory`, and answers the call. `false` if the thread cannot be traced:
/// then nothing has happened yet. Blocks for some moments, while other calls
/// have to be answered.
pub(crate) fn enter(listener: &Listener, call: u64, id: u32, directory: &OwnedFd) -> bool {
    let Ok(id) = i32::try_from(id) else {
        return false;
    };
    let Ok(task) = Task::seize(id) else {
        return false;
    };
    // The number could have been another's.
    let added = match listener.is_waiting(call) {
        true => listener.add_file(call, directory.as_fd(), OnExec::Close, None),
        false => Err(io::ErrorKind::NotFound.into()),
    };
    let number = match added {
        Ok(number) => number,
        Err(error) => {
            task.let_go();
            let errno = error.raw_os_error().unwrap_or(libc::ENOENT);
            listener.answer(call, Reply::Error(errno));
            return true;
        }
    };
    let interrupted = task.ask(libc::PTRACE_INTERRUPT, 0);
    listener.answer(call, Reply::Value(0));
    if interrupted.is_ok() && task.stops().is_ok() {
        // A thread that is killed meanwhile enters nothing.
        let _ = task.make_enter(number);
    }
    task.let_go();
    true
}

/// A thread that this thread of ours traces.
struct Task(i32);

impl Task {
    fn seize(id: i32) -> io::Result<Self> {
        let task = Self(id);
        task.ask(libc::PTRACE_SEIZE, 0)?;
        Ok(task)
    }

    fn let_go(self) {
        let _ = self.ask(libc::PTRACE_DETACH, 0);
    }

    fn ask(&self, request: libc::c_uint, data: usize) -> io::Result<()> {
        self.tell(request, 0, data)
    }

    fn tell(&self, request: libc::c_uint, address: usize, data: usize) -> io::Result<()> {
        // SAFETY: what a request reads or writes in this process, `data` is the
        // address of, as the callers see to.
        match unsafe { libc::ptrace(request, self.0, address, data) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Waits until it stops; an error if it ends.
    fn stops(&self) -> io::Result<()> {
        let mut status = 0;
        loop {
            // SAFETY: the status is written to a local integer.
            let waited = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL) };
            match waited {
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                -1 => return Err(io::Error::last_os_error()),
                _ if libc::WIFSTOPPED(status) => return Ok(()),
                _ => return Err(io::ErrorKind::NotFound.into()),
            }
        }
    }

    /// Has it, where it is stopped after a system call, make two others, which
    /// no signal comes between.
    fn make_enter(&self, number: i32) -> io::Result<()> {
        const GETSIGMASK: libc::c_uint = 0x420a;
        const SETSIGMASK: libc::c_uint = 0x420b;
        const MASK: usize = size_of::<u64>();
        let (mut mask, all) = (0_u64, u64::MAX);
        let at = |mask: *const u64| mask.expose_provenance();
        self.tell(GETSIGMASK, MASK, (&raw mut mask).expose_provenance())?;
        let before = self.registers()?;
        self.tell(SETSIGMASK, MASK, at(&raw const all))?;
        let done = self.call(&before, libc::SYS_fchdir, number);
        let closed = self.call(&before, libc::SYS_close, number);
        let mut after = before;
        after.rax = *done.as_ref().unwrap_or(&before.rax);
        self.set_registers(&after)?;
        self.tell(SETSIGMASK, MASK, at(&raw const mask))?;
        done.and(closed).map(drop)
    }

    /// Has it make a call with one argument; what it returns.
    fn call(
        &self,
        before: &libc::user_regs_struct,
        call: libc::c_long,
        argument: i32,
    ) -> io::Result<u64> {
        let mut registers = *before;
        registers.rax = call.cast_unsigned();
        registers.rdi = i64::from(argument).cast_unsigned();
        registers.rip = before.rip.wrapping_sub(INSTRUCTION);
        // It is in no call that could be restarted.
        registers.orig_rax = u64::MAX;
        self.set_registers(&registers)?;
        for _entry_and_exit in 0..2 {
            self.ask(libc::PTRACE_SYSCALL, 0)?;
            self.stops()?;
        }
        Ok(self.registers()?.rax)
    }

    fn registers(&self) -> io::Result<libc::user_regs_struct> {
        let mut registers = MaybeUninit::<libc::user_regs_struct>::zeroed();
        let at = registers.as_mut_ptr().expose_provenance();
        self.ask(libc::PTRACE_GETREGS, at)?;
        // SAFETY: plain numbers, all of which are set.
        Ok(unsafe { registers.assume_init() })
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) -> io::Result<()> {
        let at = std::ptr::from_ref(registers).expose_provenance();
        self.ask(libc::PTRACE_SETREGS, at)
    }
}
