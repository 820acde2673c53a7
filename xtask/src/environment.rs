//! Surroundings that forbid what `iogate run` does elsewhere, made for one program: a machine without user
//! namespaces, a container engine's default, a system that lets nobody mount in a namespace.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::place::Person;

/// What surrounds a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    /// `user.max_user_namespaces` is 0: in a user namespace of its own, so that nothing else notices.
    NoUserNamespaces,
    /// The filter and the capabilities that a container engine gives by default.
    Container,
    /// Namespaces can be made, but mount(2) gives EACCES.
    NoMounts,
}

impl Environment {
    pub(crate) const ALL: [Self; 3] = [Self::NoUserNamespaces, Self::Container, Self::NoMounts];

    /// Surrounds what `command` starts, before it becomes another user.
    pub(crate) fn surround(self, command: &mut Command, person: Person) {
        let filter = self.filter();
        // SAFETY: everything below only makes system calls, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                if self == Self::NoUserNamespaces {
                    forbid_user_namespaces()?;
                }
                if person == Person::Root && self != Self::NoMounts {
                    keep_capabilities(CONTAINER_CAPABILITIES)?;
                }
                install(&filter)
            });
        }
    }

    /// Which calls give which errno.
    fn filter(self) -> Vec<libc::sock_filter> {
        let mounts = [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_mount_setattr,
        ];
        let peeking = [
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_kcmp,
            libc::SYS_pidfd_getfd,
        ];
        let rules: Vec<(libc::c_long, i32)> = match self {
            Self::NoUserNamespaces => Vec::new(),
            Self::Container => mounts
                .into_iter()
                .chain(peeking)
                .map(|call| (call, libc::EPERM))
                .chain([(libc::SYS_clone3, libc::ENOSYS)])
                .collect(),
            Self::NoMounts => mounts.map(|call| (call, libc::EACCES)).to_vec(),
        };
        program(&rules)
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NoUserNamespaces => "no-user-namespaces",
            Self::Container => "container",
            Self::NoMounts => "no-mounts",
        })
    }
}

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT,
/// MKNOD, AUDIT_WRITE and SETFCAP: what container engines leave to root.
const CONTAINER_CAPABILITIES: u64 = 0xa804_25fb;

/// A filter that refuses calls of the x86-64 table.
fn program(rules: &[(libc::c_long, i32)]) -> Vec<libc::sock_filter> {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ARCH_X86_64: u32 = 0xc000_003e;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = vec![
        step(LOAD, 0, 0, 4),
        step(JUMP_EQUAL, 1, 0, ARCH_X86_64),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(LOAD, 0, 0, 0),
    ];
    for (call, errno) in rules {
        let call = u32::try_from(*call).unwrap_or(u32::MAX);
        program.push(step(JUMP_EQUAL, 0, 1, call));
        let errno = errno.cast_unsigned();
        program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(u16::MAX),
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads the instructions, which live until the call returns.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        if libc::syscall(libc::SYS_seccomp, mode, 0, &raw const filter) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Lets this process and its descendants have no other capabilities.
pub(crate) fn keep_capabilities(kept: u64) -> io::Result<()> {
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
    let [low, high] = [kept & 0xffff_ffff, kept >> 32].map(|half| half as u32);
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: capset reads the two structures, which live until it returns; prctl takes integers.
    unsafe {
        let mut capability = 0;
        while libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) >= 0 {
            if kept >> capability & 1 == 0 {
                check(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0))?;
            }
            capability += 1;
        }
        if libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Moves into a user namespace with the same ids, in which no other can be made.
fn forbid_user_namespaces() -> io::Result<()> {
    // SAFETY: system calls with integers and pointers to what lives until they return. The helper is in the old
    // namespace, whose rights the map of all ids takes, and ends before this process goes on.
    unsafe {
        let root = libc::geteuid() == 0;
        let (user, group) = (libc::geteuid(), libc::getegid());
        let mut ready = [0; 2];
        check(libc::pipe2(ready.as_mut_ptr(), libc::O_CLOEXEC))?;
        let parent = libc::getpid();
        let helper = libc::fork();
        check(helper)?;
        if helper == 0 {
            let mut byte = 0_u8;
            libc::read(ready[0], (&raw mut byte).cast(), 1);
            let mapped = match root {
                true => map(parent, "uid_map", 0, 65_536) && map(parent, "gid_map", 0, 65_536),
                false => true,
            };
            libc::_exit(i32::from(!mapped));
        }
        check(libc::unshare(libc::CLONE_NEWUSER))?;
        libc::write(ready[1], [0_u8].as_ptr().cast(), 1);
        let mut status = 0;
        check(libc::waitpid(helper, &raw mut status, 0))?;
        libc::close(ready[0]);
        libc::close(ready[1]);
        if !root {
            write(c"/proc/self/setgroups", b"deny")?;
            if !map(parent, "uid_map", user, 1) || !map(parent, "gid_map", group, 1) {
                return Err(io::Error::last_os_error());
            }
        } else if status != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        write(c"/proc/sys/user/max_user_namespaces", b"0")
    }
}

/// Maps `count` ids from `first` on to themselves. Allocates nothing.
fn map(process: libc::pid_t, file: &str, first: u32, count: u32) -> bool {
    use io::Write as _;
    let (mut path, mut line) = ([0_u8; 64], [0_u8; 64]);
    let mut rest = path.as_mut_slice();
    let written = write!(rest, "/proc/{process}/{file}");
    let mut rest = line.as_mut_slice();
    let written = written.and_then(|()| write!(rest, "{first} {first} {count}"));
    let left = rest.len();
    let used = line.len() - left;
    match std::ffi::CStr::from_bytes_until_nul(&path) {
        Ok(path) if written.is_ok() => write(path, &line[..used]).is_ok(),
        _ => false,
    }
}

fn write(path: &std::ffi::CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: the path is a C string, the text as long as is said; the descriptor is closed once.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(file)?;
        let written = libc::write(file, text.as_ptr().cast(), text.len());
        let error = io::Error::last_os_error();
        libc::close(file);
        if written < 0 { Err(error) } else { Ok(()) }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
