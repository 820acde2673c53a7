//! System calls by name, and the error with which one can fail.

/// Calls that do not fail (brk answers with the old end then), or of which nobody
/// who knows of the failure could do anything: locks, ends of threads, signal
/// masks, closes.
const NEVER: [i64; 24] = [
    libc::SYS_brk,
    libc::SYS_prlimit64,
    libc::SYS_getrandom,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_kill,
    libc::SYS_tgkill,
];

/// Calls by which memory is had for the heap or for a new thread. Rust's library
/// ends a program that gets none, with a word on stderr.
pub const ALLOCATING: [i64; 3] = [libc::SYS_mmap, libc::SYS_mremap, libc::SYS_mprotect];

/// Its words.
pub const NO_MEMORY: [&str; 2] = ["memory allocation of", "alternative stack"];

/// The errno with which call `number` fails for want of something; `None` if it
/// does not fail.
pub fn failure(number: i64) -> Option<i32> {
    if NEVER.contains(&number) {
        return None;
    }
    Some(match number {
        libc::SYS_open
        | libc::SYS_openat
        | libc::SYS_openat2
        | libc::SYS_pidfd_getfd
        | libc::SYS_pidfd_open
        | libc::SYS_socketpair
        | libc::SYS_memfd_create
        | libc::SYS_eventfd2
        | libc::SYS_epoll_create1
        | libc::SYS_dup
        | libc::SYS_fcntl => libc::EMFILE,
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_fork | libc::SYS_vfork => libc::EAGAIN,
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_write | libc::SYS_pwrite64 => libc::EIO,
        libc::SYS_wait4 => libc::EINTR,
        libc::SYS_kcmp => libc::EPERM,
        _ => libc::ENOMEM,
    })
}

/// What a call is called.
pub fn name(number: i64) -> String {
    let known = [
        (libc::SYS_read, "read"),
        (libc::SYS_write, "write"),
        (libc::SYS_pread64, "pread64"),
        (libc::SYS_pwrite64, "pwrite64"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_openat2, "openat2"),
        (libc::SYS_fstat, "fstat"),
        (libc::SYS_statx, "statx"),
        (libc::SYS_poll, "poll"),
        (libc::SYS_ppoll, "ppoll"),
        (libc::SYS_mmap, "mmap"),
        (libc::SYS_mprotect, "mprotect"),
        (libc::SYS_munmap, "munmap"),
        (libc::SYS_open, "open"),
        (libc::SYS_sched_getaffinity, "sched_getaffinity"),
        (libc::SYS_epoll_pwait, "epoll_pwait"),
        (libc::SYS_madvise, "madvise"),
        (libc::SYS_ioctl, "ioctl"),
        (libc::SYS_lseek, "lseek"),
        (libc::SYS_flock, "flock"),
        (libc::SYS_fcntl, "fcntl"),
        (libc::SYS_socketpair, "socketpair"),
        (libc::SYS_shutdown, "shutdown"),
        (libc::SYS_sendmsg, "sendmsg"),
        (libc::SYS_recvmsg, "recvmsg"),
        (libc::SYS_recvfrom, "recvfrom"),
        (libc::SYS_clone, "clone"),
        (libc::SYS_clone3, "clone3"),
        (libc::SYS_wait4, "wait4"),
        (libc::SYS_prctl, "prctl"),
        (libc::SYS_prlimit64, "prlimit64"),
        (libc::SYS_epoll_create1, "epoll_create1"),
        (libc::SYS_epoll_ctl, "epoll_ctl"),
        (libc::SYS_epoll_wait, "epoll_wait"),
        (libc::SYS_eventfd2, "eventfd2"),
        (libc::SYS_signalfd4, "signalfd4"),
        (libc::SYS_memfd_create, "memfd_create"),
        (libc::SYS_pidfd_open, "pidfd_open"),
        (libc::SYS_pidfd_getfd, "pidfd_getfd"),
        (libc::SYS_process_vm_readv, "process_vm_readv"),
        (libc::SYS_process_vm_writev, "process_vm_writev"),
        (libc::SYS_readlink, "readlink"),
        (libc::SYS_readlinkat, "readlinkat"),
        (libc::SYS_getdents64, "getdents64"),
        (libc::SYS_fstatfs, "fstatfs"),
        (libc::SYS_preadv2, "preadv2"),
    ];
    let found = known.iter().find(|(known, _)| *known == number);
    found.map_or_else(|| format!("call {number}"), |(_, name)| (*name).to_owned())
}
