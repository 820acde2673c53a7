//! Faults that are none of ours still do what they did.
//!
//! Every case runs in a child, in which the handler is installed for the
//! first time: no test of this file makes a `ClientMemory` itself.

mod common;

use common::{Child, exit};
use iogate_dma::{Memory, MemoryError};
use iogate_memory::ClientMemory;

fn in_child(body: impl FnOnce()) -> i32 {
    let mut child = Child::fork(|_| {
        let no_core = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the child wants no core file.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) };
        body();
        0
    });
    child.reap()
}

/// Installs the handler, and shows that it works.
fn install() {
    let memory = ClientMemory::new().unwrap_or_else(|_| exit(90));
    if memory.read(0, &mut [0]) != Err(MemoryError::Absent { address: 0 }) {
        exit(91);
    }
}

fn fault() {
    // SAFETY: not sound, but the point: a fault of the process's own making.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) }
}

fn set_handler(signal: i32, handler: usize, flags: i32) {
    // SAFETY: a zeroed action is valid; the handlers below only exit.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn exit_42(signal: i32) {
    exit(if signal == libc::SIGSEGV { 42 } else { 1 });
}

extern "C" fn exit_43(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo_t of a fault.
    exit(if unsafe { (*info).si_addr() } as usize == 8 {
        43
    } else {
        1
    });
}

#[test]
fn a_fault_elsewhere_ends_the_process_by_its_signal() {
    let status = in_child(|| {
        install();
        fault();
    });
    assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
}

#[test]
fn a_fault_elsewhere_reaches_the_handler_that_was_there_before() {
    let status = in_child(|| {
        set_handler(libc::SIGSEGV, exit_42 as *const () as usize, 0);
        install();
        fault();
    });
    assert_eq!(libc::WEXITSTATUS(status), 42);
    let status = in_child(|| {
        let flags = libc::SA_SIGINFO;
        set_handler(libc::SIGSEGV, exit_43 as *const () as usize, flags);
        install();
        fault();
    });
    assert_eq!(libc::WEXITSTATUS(status), 43);
}

#[test]
fn a_signal_that_is_sent_does_what_it_did() {
    let send = || {
        install();
        // SAFETY: signals itself.
        unsafe { libc::raise(libc::SIGBUS) };
    };
    let status = in_child(|| {
        set_handler(libc::SIGBUS, libc::SIG_DFL, 0);
        send();
    });
    assert_eq!(libc::WTERMSIG(status), libc::SIGBUS);
    let status = in_child(|| {
        set_handler(libc::SIGBUS, libc::SIG_IGN, 0);
        send();
    });
    assert_eq!(status, 0);
}

#[test]
fn a_fault_ends_a_process_that_ignored_the_signal() {
    let status = in_child(|| {
        set_handler(libc::SIGSEGV, libc::SIG_IGN, 0);
        install();
        fault();
    });
    assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
}

#[test]
fn an_overflow_of_the_stack_is_still_reported_by_rust() {
    #[allow(unconditional_recursion)]
    fn deeper(bytes: &mut [u8; 4096]) -> u8 {
        let mut more = *bytes;
        more[0] = more[0].wrapping_add(1);
        deeper(std::hint::black_box(&mut more)).wrapping_add(more[1])
    }
    let status = in_child(|| {
        install();
        deeper(&mut [0; 4096]);
    });
    assert_eq!(libc::WTERMSIG(status), libc::SIGABRT);
}
