//! The floors: a seccomp notification that is answered at once, and one whose
//! receiver makes just the system calls that an answer cannot do without.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Where 32 bytes of the caller's memory are.
static STACK: AtomicU64 = AtomicU64::new(0);

const CALLS: u32 = 20_000;
/// Calls that are measured together. The best batch counts: the others were
/// interrupted by something else.
pub(crate) const BATCH: u32 = 100;

// include/uapi/linux/seccomp.h.
const SECCOMP_IOCTL_NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const SECCOMP_IOCTL_NOTIF_SEND: libc::c_ulong = 0xc018_2101;
const SECCOMP_IOCTL_NOTIF_SET_FLAGS: libc::c_ulong = 0x4008_2104;
const SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: libc::c_ulong = 1;

/// Nanoseconds of one of `times` calls, in the best batch.
pub(crate) fn nanoseconds(times: u32, mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..times / BATCH {
        let begun = Instant::now();
        for _ in 0..BATCH {
            call();
        }
        best = best.min(begun.elapsed().as_nanos() as f64 / f64::from(BATCH));
    }
    best
}

/// What the receiver does before it answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answering {
    /// Nothing.
    AtOnce,
    /// It looks which file the descriptor names.
    Identity,
    /// By turns what MAP_DMA and UNMAP_DMA need of the client's memory: the
    /// argument read, the mapping found, the answer written.
    Memory,
}

/// Nanoseconds of one call that is noticed and answered.
pub(crate) fn round_trip(answering: Answering) -> f64 {
    let spare = [0_u8; 64];
    STACK.store(spare.as_ptr().expose_provenance() as u64, Ordering::Relaxed);
    let mut pair = [0; 2];
    // SAFETY: the array has room for two descriptors.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) };
    assert_eq!(made, 0);
    // SAFETY: the child calls only async-signal-safe functions: this process
    // has one thread.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        caller(pair[1]);
    }
    let listener = listener_of(child, pair[0]);
    answer(listener, child, answering);
    let mut status = 0;
    let mut figure = [0; 8];
    // SAFETY: plain reads into memory of the right size; the descriptors are
    // ours and not used again.
    unsafe {
        libc::read(pair[0], figure.as_mut_ptr().cast(), 8);
        libc::waitpid(child, &mut status, 0);
        for fd in [pair[0], pair[1], listener] {
            libc::close(fd);
        }
    }
    f64::from_le_bytes(figure)
}

/// The child: has its `getppid` noticed, measures it and leaves.
fn caller(socket: i32) -> ! {
    let stop = |code: u16, k: u32| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let load_number = stop((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0);
    let is_getppid = libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: 1,
        k: libc::SYS_getppid as u32,
    };
    let end = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = [
        load_number,
        is_getppid,
        stop(end, libc::SECCOMP_RET_USER_NOTIF),
        stop(end, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program outlives the call; the rest reads and writes locals.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &program,
        );
        let number = (listener as i32).to_le_bytes();
        libc::write(socket, number.as_ptr().cast(), 4);
        // The parent has the listener when it answers.
        let mut go = [0];
        libc::read(socket, go.as_mut_ptr().cast(), 1);
        let figure = nanoseconds(CALLS, || {
            libc::syscall(libc::SYS_getppid);
        });
        libc::write(socket, figure.to_le_bytes().as_ptr().cast(), 8);
        libc::_exit(0)
    }
}

fn listener_of(child: i32, socket: i32) -> i32 {
    let mut number = [0; 4];
    // SAFETY: reads into a local; descriptors are checked.
    unsafe {
        assert_eq!(libc::read(socket, number.as_mut_ptr().cast(), 4), 4);
        let process = libc::syscall(libc::SYS_pidfd_open, child, 0);
        assert!(process >= 0, "{}", io::Error::last_os_error());
        let listener = libc::syscall(
            libc::SYS_pidfd_getfd,
            process,
            i32::from_le_bytes(number),
            0,
        );
        assert!(listener >= 0, "{}", io::Error::last_os_error());
        libc::close(process as i32);
        libc::ioctl(
            listener as i32,
            SECCOMP_IOCTL_NOTIF_SET_FLAGS,
            SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP,
        );
        libc::write(socket, [1_u8].as_ptr().cast(), 1);
        listener as i32
    }
}

fn answer(listener: i32, child: i32, answering: Answering) {
    let receiver = Receiver::new(child);
    for n in 0..CALLS {
        // SAFETY: both structures are plain data of the kernel's layout.
        unsafe {
            let mut call: libc::seccomp_notif = std::mem::zeroed();
            if libc::ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &mut call) != 0 {
                return;
            }
            if answering == Answering::Identity {
                receiver.identify();
            }
            if answering == Answering::Memory {
                receiver.use_memory(n % 2 == 1);
            }
            let mut answer: libc::seccomp_notif_resp = std::mem::zeroed();
            answer.id = call.id;
            answer.val = 1;
            libc::ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &mut answer);
        }
    }
}

/// What a receiver holds of the caller.
struct Receiver {
    process: i32,
    memory: File,
    mappings: File,
    /// An argument in the caller's memory, which is a copy of ours.
    argument: [u8; 32],
}

impl Receiver {
    fn new(child: i32) -> Self {
        let open = |name: &str, write: bool| {
            let path = format!("/proc/{child}/{name}");
            let opened = OpenOptions::new().read(true).write(write).open(path);
            opened.expect("the child's memory")
        };
        Self {
            // SAFETY: plain numbers.
            process: unsafe { libc::syscall(libc::SYS_pidfd_open, child, 0) as i32 },
            memory: open("mem", true),
            mappings: open("maps", false),
            argument: [0; 32],
        }
    }

    /// Which file descriptor 0 of the caller names.
    fn identify(&self) {
        // SAFETY: the descriptor is ours, and `found` has the kernel's layout.
        unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_getfd, self.process, 0, 0) as i32;
            let mut found: libc::stat = std::mem::zeroed();
            libc::fstat(fd, &mut found);
            libc::close(fd);
        }
    }

    fn use_memory(&self, writes: bool) {
        // A stack address of ours before the fork is one of the caller's too.
        let at = STACK.load(Ordering::Relaxed);
        let mut argument = self.argument;
        let _ = self.memory.read_at(&mut argument, at);
        // struct procmap_query of include/uapi/linux/fs.h, 104 bytes.
        let mut query = [0_u64; 13];
        query[0] = 104;
        query[2] = at;
        const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;
        // SAFETY: the structure says its own size.
        unsafe { libc::ioctl(self.mappings.as_raw_fd(), PROCMAP_QUERY, query.as_mut_ptr()) };
        if writes {
            let _ = self.memory.write_at(&argument[..24], at);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and not used again.
        unsafe { libc::close(self.process) };
    }
}
