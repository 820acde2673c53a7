//! The handler of SIGSEGV and SIGBUS: an access to client memory that faults
//! continues as one that failed; any other fault goes to the handler that was
//! there before.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

use crate::touch;

const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// What each of [`SIGNALS`] did before. Set before our handler is installed,
/// so that the handler never finds it empty.
static BEFORE: OnceLock<[sigaction; 2]> = OnceLock::new();

/// Whether the handler is installed, or the error number of the attempt.
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

/// Installs the handler, once for the whole process.
pub(crate) fn install() -> io::Result<()> {
    INSTALLED
        .get_or_init(|| try_install().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)))
        .map_err(io::Error::from_raw_os_error)
}

fn try_install() -> io::Result<()> {
    let [segv, bus] = SIGNALS;
    let before = [current(segv)?, current(bus)?];
    BEFORE.get_or_init(|| before);
    // SAFETY: zero is a valid sigaction: no flags, no blocked signals.
    let mut ours: sigaction = unsafe { std::mem::zeroed() };
    ours.sa_sigaction = on_fault as *const () as usize;
    // On the alternate stack, because the handler that comes after ours may
    // be there for an overflow of the ordinary one.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    for signal in SIGNALS {
        // SAFETY: `ours` names a handler of the three-argument kind that only
        // does what a signal handler may do.
        if unsafe { sigaction(signal, &ours, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn current(signal: c_int) -> io::Result<sigaction> {
    let mut action = MaybeUninit::uninit();
    // SAFETY: only asks; `action` has room for the answer.
    if unsafe { sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and has filled it.
    Ok(unsafe { action.assume_init() })
}

/// # Safety
/// Called by the kernel only, as a handler with `SA_SIGINFO`.
unsafe extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo_t.
    let raised_by_instruction = unsafe { (*info).si_code } > 0;
    // SAFETY: with SA_SIGINFO the third argument is the context of the
    // interrupted thread, ours alone until we return.
    let context = unsafe { &mut *context.cast::<ucontext_t>() };
    if raised_by_instruction && resume(context, signal) {
        return;
    }
    // SAFETY: the arguments of this very signal.
    unsafe { pass_on(signal, raised_by_instruction, info, context) };
}

/// Lets an access to client memory continue as failed; false if the thread
/// was not in one.
fn resume(context: &mut ucontext_t, signal: c_int) -> bool {
    const RIP: usize = libc::REG_RIP as usize;
    const RDX: usize = libc::REG_RDX as usize;
    let registers = &mut context.uc_mcontext.gregs;
    let Ok([rip, rdx]) = registers.get_disjoint_mut([RIP, RDX]) else {
        return false;
    };
    let Some(continuation) = touch::continuation(rip.cast_unsigned()) else {
        return false;
    };
    *rip = continuation.cast_signed();
    *rdx = i64::from(signal);
    true
}

/// Does what would have been done without us.
///
/// # Safety
/// The arguments are those that the kernel gave for `signal`.
unsafe fn pass_on(
    signal: c_int,
    raised_by_instruction: bool,
    info: *mut siginfo_t,
    context: *mut ucontext_t,
) {
    let place = SIGNALS.iter().position(|ours| *ours == signal);
    let before = BEFORE
        .get()
        .zip(place)
        .and_then(|(all, place)| all.get(place));
    match before {
        Some(before) if before.sa_sigaction == libc::SIG_IGN && !raised_by_instruction => {}
        Some(before) if ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction) => {
            // SAFETY: sigaction(2) gave this as the handler in force before,
            // and its flags say of which of the two kinds it is.
            unsafe {
                if before.sa_flags & libc::SA_SIGINFO == 0 {
                    let handler: extern "C" fn(c_int) = std::mem::transmute(before.sa_sigaction);
                    handler(signal);
                } else {
                    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                        std::mem::transmute(before.sa_sigaction);
                    handler(signal, info, context.cast());
                }
            }
        }
        _ => {
            // The default ends the process: at once when the instruction is
            // tried again, or by the second signal that we send ourselves.
            // SAFETY: both calls are async-signal-safe.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if !raised_by_instruction {
                    libc::raise(signal);
                }
            }
        }
    }
}
