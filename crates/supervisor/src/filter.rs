//! The seccomp filter: which system calls of the client are noticed. All
//! others pass without a stop, most of them without the filter being run.
//!
//! A classic BPF program over `struct seccomp_data` (include/uapi/linux/seccomp.h).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use libc::{c_long, sock_filter, sock_fprog};

use crate::numbers;

/// Every region offset of a device file has this bit and none above it.
pub(crate) const REGION_BIT: u64 = 1 << 52;
/// The upper half of an offset that may lie in a region: these bits of it ...
const REGION_MASK: u32 = 0xfff0_0000;
/// ... are these.
const REGION_HIGH: u32 = 0x0010_0000;
/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
pub(crate) const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;

pub(crate) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// Numbers from here on are the x32 table.
const X32: u32 = 0x4000_0000;
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const NOTIFY: u32 = 0x7fc0_0000;

/// Whether calls by which a program takes its own memory away are noticed. A
/// noticed one takes some microseconds longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmapping {
    /// They are not: a device that still reaches such memory finds whatever
    /// stands at its address by then.
    Unseen,
    /// munmap, mremap, mmap with MAP_FIXED, madvise, brk and shmdt are:
    /// devices reach such memory no more.
    Noticed,
}

/// Reads and writes at a file's position.
pub(crate) const PLAIN: [c_long; 4] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
];

/// Whether short writes of files are noticed, by which a program writes what
/// configures virtual functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ShortWrites {
    Unseen,
    Noticed,
}

/// The longest write that is noticed, less than a write of an eventfd: a
/// number in any form that the kernel takes (`0x0010` and a line feed).
pub(crate) const SHORT_WRITE: u32 = 7;

/// What is noticed beside what every session needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub(crate) unmapping: Unmapping,
    pub(crate) short_writes: ShortWrites,
    /// Whether calls that name a path are.
    pub(crate) paths: bool,
    /// Whether eventfd(2) is.
    pub(crate) eventfds: bool,
}

impl Extent {
    /// No more than that.
    pub(crate) const LEAST: Self = Self {
        unmapping: Unmapping::Unseen,
        short_writes: ShortWrites::Unseen,
        paths: false,
        eventfds: false,
    };
}

/// A filter, ready to be installed.
pub(crate) struct Filter(Vec<sock_filter>);

const fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Loads the low half of an argument.
const fn low(argument: u8) -> sock_filter {
    statement(LOAD, half_word(argument, 0))
}

/// Loads the high half of an argument.
const fn high(argument: u8) -> sock_filter {
    statement(LOAD, half_word(argument, 4))
}

/// Where half of an argument stands.
const fn half_word(argument: u8, half: u32) -> u32 {
    OFFSET_ARGUMENTS
        .saturating_add((argument as u32).saturating_mul(8))
        .saturating_add(half)
}

/// Notifies if the accumulator is `k`.
fn notify_if(k: u32) -> [sock_filter; 2] {
    [jump(JUMP_EQUAL, k, 0, 1), statement(RETURN, NOTIFY)]
}

impl Filter {
    pub(crate) fn new(extent: Extent) -> Self {
        let (unmapping, short_writes) = (extent.unmapping, extent.short_writes);
        let mut filter = Self(vec![statement(LOAD, OFFSET_ARCH)]);
        // Descriptors can be changed by the other tables too, and by those who
        // have never heard of VFIO.
        let mut i386 = Self(vec![statement(LOAD, OFFSET_NUMBER)]);
        i386.changes(&I386);
        i386.0.push(statement(RETURN, ALLOW));
        filter.unless(JUMP_EQUAL, AUDIT_ARCH_X86_64, &i386.0);
        filter.0.push(statement(LOAD, OFFSET_NUMBER));
        let mut x32 = Self(Vec::new());
        x32.changes(&X32_CALLS);
        x32.0.push(statement(RETURN, ALLOW));
        filter.when(JUMP_GREATER_EQUAL, X32, &x32.0);

        for number in PLAIN {
            let mut body = reserved(0).to_vec();
            if number == libc::SYS_write && short_writes == ShortWrites::Noticed {
                body.extend(is_short(2));
            }
            filter.call(number, &body);
        }
        filter.changes(&NATIVE);
        let mut ioctl = vec![low(1)];
        ioctl.extend(notify_if(KVM_SET_DEVICE_ATTR));
        ioctl.push(statement(AND, 0xff00));
        ioctl.extend(notify_if(u32::from(b';') << 8));
        filter.call(libc::SYS_ioctl, &ioctl);

        for number in [
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_preadv,
            libc::SYS_pwritev,
            libc::SYS_preadv2,
            libc::SYS_pwritev2,
        ] {
            let mut body = in_region(3);
            body.extend(in_region_of_the_kernel(3));
            if number == libc::SYS_pwrite64 && short_writes == ShortWrites::Noticed {
                body.extend(is_short(2));
            }
            filter.call(number, &body);
        }
        filter.call(libc::SYS_lseek, &in_region(1));
        let mut mmap = in_region(5);
        if unmapping == Unmapping::Noticed {
            mmap.push(low(3));
            mmap.push(statement(AND, bits(libc::MAP_FIXED)));
            mmap.extend(notify_if(bits(libc::MAP_FIXED)));
        }
        filter.call(libc::SYS_mmap, &mmap);

        if extent.paths {
            for number in crate::paths::NOTICED {
                filter.call(number, &[statement(RETURN, NOTIFY)]);
            }
        } else {
            filter.call(libc::SYS_open, &read_write(1));
            filter.call(libc::SYS_openat, &read_write(2));
            // The flags of these stand in memory, which a filter cannot see.
            filter.call(libc::SYS_openat2, &[statement(RETURN, NOTIFY)]);
        }
        if extent.eventfds {
            filter.call(libc::SYS_eventfd, &[statement(RETURN, NOTIFY)]);
            filter.call(libc::SYS_eventfd2, &[statement(RETURN, NOTIFY)]);
        }

        if unmapping == Unmapping::Noticed {
            let mut madvise = vec![low(2)];
            for advice in crate::unmapping::DISCARDING {
                madvise.extend(notify_if(bits(advice)));
            }
            filter.call(libc::SYS_madvise, &madvise);
            for number in [
                libc::SYS_munmap,
                libc::SYS_mremap,
                libc::SYS_brk,
                libc::SYS_shmdt,
            ] {
                filter.call(number, &[statement(RETURN, NOTIFY)]);
            }
        }
        filter.0.push(statement(RETURN, ALLOW));
        filter
    }

    /// The same, which also notices what a program wants of SIGBUS and of
    /// tracing: for registers that are mapped.
    pub(crate) fn with_mapped_registers(mut self) -> Self {
        // Its end, which allows the rest.
        let end = self.0.pop();
        let mut action = vec![low(0)];
        action.extend(notify_if(bits(libc::SIGBUS)));
        self.call(libc::SYS_rt_sigaction, &action);
        let notify = [statement(RETURN, NOTIFY)];
        for number in [libc::SYS_rt_sigprocmask, libc::SYS_ptrace] {
            self.call(number, &notify);
        }
        self.0.extend(end);
        self
    }

    /// Adds what happens at system call `number`: `body`, which falls through
    /// to being allowed. The accumulator holds the number here.
    fn call(&mut self, number: c_long, body: &[sock_filter]) {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let mut body = body.to_vec();
        body.push(statement(RETURN, ALLOW));
        self.when(JUMP_EQUAL, number, &body);
    }

    /// Adds `body`, for an accumulator of which `test` of `k` is true.
    fn when(&mut self, test: u16, k: u32, body: &[sock_filter]) {
        let skip = u8::try_from(body.len()).unwrap_or(u8::MAX);
        self.0.push(jump(test, k, 0, skip));
        self.0.extend_from_slice(body);
    }

    /// Adds `body`, for an accumulator of which `test` of `k` is false.
    fn unless(&mut self, test: u16, k: u32, body: &[sock_filter]) {
        let skip = u8::try_from(body.len()).unwrap_or(u8::MAX);
        self.0.push(jump(test, k, skip, 0));
        self.0.extend_from_slice(body);
    }

    /// Notices the calls of a table that change what descriptors at reserved
    /// numbers name.
    fn changes(&mut self, table: &Changing) {
        let [close, dup2, dup3, close_range, ..] = *table;
        self.call(close, &reserved(0));
        self.call(dup2, &reserved(1));
        self.call(dup3, &reserved(1));
        let first = numbers::FIRST.cast_unsigned();
        self.call(
            close_range,
            &[
                low(1),
                jump(JUMP_GREATER_EQUAL, first, 0, 1),
                statement(RETURN, NOTIFY),
            ],
        );
        let [.., fcntl, fcntl64, execve, execveat, io_uring_setup] = *table;
        for number in [fcntl, fcntl64] {
            let mut asks = vec![low(1)];
            // Over F_DUPFD, or to it.
            asks.push(jump(JUMP_EQUAL, bits(libc::F_DUPFD_CLOEXEC), 2, 0));
            asks.push(jump(JUMP_EQUAL, bits(libc::F_DUPFD), 1, 0));
            asks.push(statement(RETURN, ALLOW));
            asks.extend(between(2, numbers::FIRST_ASKED_FOR, END));
            self.call(number, &asks);
        }
        for number in [execve, execveat, io_uring_setup] {
            self.call(number, &[statement(RETURN, NOTIFY)]);
        }
    }

    /// Installs the filter on the calling thread, and on all that it starts
    /// from now on; returns the listener. Allocates nothing, so that nothing
    /// that is noticed is called before the listener has been handed over.
    pub(crate) fn install(&self) -> io::Result<OwnedFd> {
        const NEW_LISTENER: u64 = 1 << 3;
        const WAIT_KILLABLE_RECV: u64 = 1 << 5;
        let program = sock_fprog {
            len: u16::try_from(self.0.len()).unwrap_or(u16::MAX),
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the arguments of this prctl are plain numbers.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `program` points to as many instructions as it says, which
        // the kernel only reads.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                NEW_LISTENER | WAIT_KILLABLE_RECV,
                &raw const program,
            )
        };
        match i32::try_from(fd) {
            // SAFETY: the kernel has just opened this descriptor for us.
            Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Numbers of the calls close, dup2, dup3, close_range, fcntl, fcntl64, execve,
/// execveat and io_uring_setup.
type Changing = [c_long; 9];

const NATIVE: Changing = [
    libc::SYS_close,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_close_range,
    libc::SYS_fcntl,
    libc::SYS_fcntl,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_io_uring_setup,
];
/// arch/x86/entry/syscalls/syscall_32.tbl.
const I386: Changing = [6, 63, 330, 436, 55, 221, 11, 358, 425];
/// arch/x86/entry/syscalls/syscall_64.tbl, the x32 rows.
const X32_CALLS: Changing = {
    const fn x32(number: c_long) -> c_long {
        number | 0x4000_0000
    }
    [
        x32(3),
        x32(33),
        x32(292),
        x32(436),
        x32(72),
        x32(72),
        x32(520),
        x32(545),
        x32(425),
    ]
};

/// The number of a noticed call of any table, in that of x86-64.
pub(crate) fn native(arch: u32, number: i32) -> i64 {
    let number = i64::from(number);
    let table = match arch {
        AUDIT_ARCH_I386 => I386,
        _ if number >= i64::from(X32) => X32_CALLS,
        _ => return number,
    };
    let mut pairs = table.into_iter().zip(NATIVE);
    let found = pairs.find(|(theirs, _)| *theirs == number);
    found.map_or(-1, |(_, native)| native)
}

/// The number after the last of the reserved ones.
const END: u32 = numbers::END.cast_unsigned();

/// Notifies if the argument is at least `first` and below `end`.
fn between(argument: u8, first: u32, end: u32) -> [sock_filter; 4] {
    [
        low(argument),
        jump(JUMP_GREATER_EQUAL, first, 0, 2),
        jump(JUMP_GREATER_EQUAL, end, 1, 0),
        statement(RETURN, NOTIFY),
    ]
}

/// Notifies if the argument is a reserved number.
fn reserved(argument: u8) -> [sock_filter; 4] {
    between(argument, numbers::FIRST.cast_unsigned(), END)
}

fn bits(value: i32) -> u32 {
    value.cast_unsigned()
}

/// Notifies if the argument, a file offset, may lie in a region.
fn in_region(argument: u8) -> Vec<sock_filter> {
    let mut body = vec![high(argument), statement(AND, REGION_MASK)];
    body.extend(notify_if(REGION_HIGH));
    body
}

/// Notifies if the argument, a file offset, is where the kernel has a region:
/// older programs (DPDK before 23) do not ask for the offset. Region 0, BAR 0,
/// cannot be told from any file's beginning. Linux
/// include/linux/vfio_pci_core.h, VFIO_PCI_INDEX_TO_OFFSET.
fn in_region_of_the_kernel(argument: u8) -> [sock_filter; 4] {
    const FIRST: u32 = 1 << 8;
    const END: u32 = 9 << 8;
    [
        high(argument),
        jump(JUMP_GREATER_EQUAL, FIRST, 0, 2),
        jump(JUMP_GREATER_EQUAL, END, 1, 0),
        statement(RETURN, NOTIFY),
    ]
}

/// Notifies if the argument, the length of a write, is that of a short one.
fn is_short(argument: u8) -> [sock_filter; 6] {
    [
        high(argument),
        jump(JUMP_EQUAL, 0, 0, 4),
        low(argument),
        jump(JUMP_EQUAL, 0, 2, 0),
        jump(JUMP_GREATER_EQUAL, SHORT_WRITE.saturating_add(1), 1, 0),
        statement(RETURN, NOTIFY),
    ]
}

/// Notifies if the argument, the flags of an open, asks for reading and
/// writing of a file that exists.
fn read_write(argument: u8) -> Vec<sock_filter> {
    let looked_at = libc::O_ACCMODE | libc::O_CREAT | libc::O_PATH | libc::O_DIRECTORY;
    let mut body = vec![low(argument), statement(AND, bits(looked_at))];
    body.extend(notify_if(bits(libc::O_RDWR)));
    body
}

#[cfg(test)]
mod tests;
