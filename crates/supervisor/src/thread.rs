//! A thread of the client that has made a noticed call: its descriptors, and
//! the process that it belongs to.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use iogate_host::FileId;
use iogate_uapi::Errno;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use crate::client_process::ClientProcess;
use crate::core::errno;
use crate::listener::OnExec;
use crate::numbers::{self, has_ended};

/// For how long a thread that was seen alive is the only one that can have its
/// number: the kernel gives all others (32,768 and more) out first.
const NUMBER_LASTS: Duration = Duration::from_millis(1);

/// What tells one file from another while it is open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Inode {
    device: (u32, u32),
    number: u64,
}

impl Inode {
    /// By the numbers of its file system and its own.
    pub(crate) fn new(device: (u32, u32), number: u64) -> Self {
        Self { device, number }
    }
}

impl Inode {
    /// That of an open file.
    pub(crate) fn of(file: impl AsFd) -> io::Result<Self> {
        let found = rustix::fs::fstat(file)?;
        let device = found.st_dev;
        Ok(Self {
            device: (rustix::fs::major(device), rustix::fs::minor(device)),
            number: found.st_ino,
        })
    }
}

/// What a descriptor names, seen from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) inode: Inode,
    /// The id of the mount that it was opened through.
    pub(crate) mount: u64,
}

/// What an open file or a path names. Never waits for a file server.
pub(crate) fn see(directory: impl AsFd, name: impl rustix::path::Arg) -> io::Result<Seen> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(directory, name, flags, wanted)?;
    Ok(Seen {
        inode: Inode {
            device: (found.stx_dev_major, found.stx_dev_minor),
            number: found.stx_ino,
        },
        mount: found.stx_mnt_id,
    })
}

/// How descriptors of the client are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Descriptors {
    /// They are duplicated: pidfd_getfd(2).
    #[default]
    Duplicated,
    /// Only what `/proc/PID/fd` shows of them is had.
    Shown,
}

impl Descriptors {
    /// The way that this machine allows. A filter that forbids pidfd_getfd
    /// (a container engine's default) forbids it towards oneself too.
    pub(crate) fn possible() -> Self {
        match Self::try_duplicating() {
            Ok(()) => Self::Duplicated,
            Err(_) => Self::Shown,
        }
    }

    /// Duplicates a descriptor of this process as one of the client's would be.
    pub(crate) fn try_duplicating() -> io::Result<()> {
        let own = std::process::id();
        let (file, _) = open_pidfd(own, own)?;
        let flags = PidfdGetfdFlags::empty();
        rustix::process::pidfd_getfd(&file, file.as_raw_fd(), flags)?;
        Ok(())
    }
}

/// A thread, held by files that never become those of another. With a pidfd
/// they are had also of a process that is not dumpable, whose descriptors and
/// memory `/proc` keeps for root.
pub(crate) struct Thread {
    /// `/proc/TID`.
    directory: OwnedFd,
    /// Duplicates its descriptors, for less than a look into `/proc/TID/fd`.
    pidfd: OwnedFd,
    /// Whether the end of `pidfd` is the end of the thread.
    ends: bool,
    /// When it was last seen alive.
    alive: Cell<Instant>,
    /// Its descriptors that are known to name files of ours: at reserved
    /// numbers only.
    known: RefCell<Vec<(i32, FileId)>>,
    /// How its descriptors are reached.
    descriptors: Descriptors,
    process: Arc<ClientProcess>,
}

impl Thread {
    /// The file that its descriptor `fd` is known to name.
    pub(crate) fn known(&self, fd: i32) -> Option<FileId> {
        let known = self.known.borrow();
        let found = known.iter().find(|(number, _)| *number == fd);
        found.map(|(_, file)| *file)
    }

    /// From now on descriptor `fd` is known to name `file`.
    pub(crate) fn remember(&self, fd: i32, file: FileId) {
        self.known.borrow_mut().push((fd, file));
    }

    /// Whether the thread that has its number now is this one for sure.
    pub(crate) fn is_itself(&self) -> bool {
        if !self.ends {
            return false;
        }
        let now = Instant::now();
        if now.saturating_duration_since(self.alive.get()) < NUMBER_LASTS {
            return true;
        }
        let alive = !has_ended(&self.pidfd);
        if alive {
            self.alive.set(now);
        }
        alive
    }

    /// A reserved number at which it has no descriptor, and can have got none
    /// by the time it is used. `spares` says that nobody is about to use one.
    pub(crate) fn free_number(&self, mut spares: impl FnMut(i32) -> bool) -> Option<u32> {
        let flags = AtFlags::empty();
        let open = rustix::fs::statx(&self.directory, "fd", flags, StatxFlags::SIZE).ok()?;
        // 0 where the kernel does not count them (before Linux 6.2).
        if !(1..numbers::MOST_OPEN).contains(&open.stx_size) || !self.is_itself() {
            return None;
        }
        let mut candidates = (numbers::FIRST..numbers::END).rev();
        let free = candidates.find(|number| {
            self.known(*number).is_none() && self.has_none(*number) && spares(*number)
        })?;
        u32::try_from(free).ok()
    }

    pub(crate) fn process(&self) -> &Arc<ClientProcess> {
        &self.process
    }

    /// Whether it surely has no descriptor `fd`.
    fn has_none(&self, fd: i32) -> bool {
        let looked = match self.descriptors {
            Descriptors::Duplicated => self.duplicate(fd).map(drop),
            Descriptors::Shown => self.look(fd).map(drop),
        };
        matches!(looked, Err(Errno::EBADF))
    }

    /// How its descriptors are reached.
    pub(crate) fn descriptors(&self) -> Descriptors {
        self.descriptors
    }

    /// A duplicate of descriptor `fd`: the same open file, in this process.
    /// EBADF if it is not open, or the thread gone; EPERM where descriptors
    /// are only shown.
    pub(crate) fn duplicate(&self, fd: i32) -> Result<OwnedFd, Errno> {
        if fd < 0 {
            return Err(Errno::EBADF);
        }
        let flags = PidfdGetfdFlags::empty();
        match rustix::process::pidfd_getfd(&self.pidfd, fd, flags) {
            Err(rustix::io::Errno::SRCH) => Err(Errno::EBADF),
            file => file.map_err(|error| errno(error.into())),
        }
    }

    /// What descriptor `fd` names, by what `/proc` shows of it. EBADF if it is
    /// not open, or the thread gone.
    pub(crate) fn look(&self, fd: i32) -> Result<Seen, Errno> {
        if fd < 0 {
            return Err(Errno::EBADF);
        }
        see(&self.directory, format!("fd/{fd}").as_str()).map_err(not_open)
    }

    /// Opens the file in memory that descriptor `fd` names: another open file,
    /// with the same rights. EBADF as above; EINVAL if it is none.
    pub(crate) fn reopen(&self, fd: i32) -> Result<OwnedFd, Errno> {
        let name = format!("fd/{fd}");
        let open = |flags| {
            let flags = flags | OFlags::CLOEXEC;
            rustix::fs::openat(&self.directory, name.as_str(), flags, Mode::empty())
                .map_err(|error| not_open(error.into()))
        };
        // Looked at before it is opened: an open may wait, or do something.
        if fd < 0 || !crate::shared::is_in_memory(open(OFlags::PATH)?) {
            return Err(if fd < 0 { Errno::EBADF } else { Errno::EINVAL });
        }
        let access = self.flags(fd) & u64::from(libc::O_ACCMODE.cast_unsigned());
        let access = u32::try_from(access).unwrap_or_default();
        open(OFlags::from_bits_truncate(access) | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    /// What the kernel shows as the link of descriptor `fd`.
    pub(crate) fn link(&self, fd: i32) -> io::Result<Vec<u8>> {
        if self.descriptors == Descriptors::Shown {
            return self.own_link(&format!("fd/{fd}"));
        }
        let file = self.duplicate(fd);
        link_of(&file.map_err(|errno| io::Error::from_raw_os_error(errno.0))?)
    }

    /// What the kernel shows as a link of the thread (`cwd`).
    pub(crate) fn own_link(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.directory, name, Vec::new())?.into_bytes())
    }

    /// The thread's root directory.
    pub(crate) fn root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.directory, "root", flags, Mode::empty());
        Ok(root?)
    }

    /// Whether exec closes descriptor `fd`.
    pub(crate) fn on_exec(&self, fd: i32) -> OnExec {
        OnExec::from_flags(self.flags(fd))
    }

    /// The O_ flags of descriptor `fd`; 0 if they cannot be had.
    fn flags(&self, fd: i32) -> u64 {
        let flags = self.said_of(fd, "flags:");
        let flags = flags.and_then(|flags| u64::from_str_radix(&flags, 8).ok());
        flags.unwrap_or_default()
    }

    /// The file position of descriptor `fd`.
    pub(crate) fn position(&self, fd: i32) -> Option<u64> {
        self.said_of(fd, "pos:")?.parse().ok()
    }

    /// The byte that the open file of descriptor `fd` has locked (F_OFD_SETLK).
    pub(crate) fn locked_byte(&self, fd: i32) -> Option<i64> {
        // lock: 1: OFDLCK ADVISORY WRITE -1 00:01:2345 67 67
        let lock = self.said_of(fd, "lock:")?;
        let mut words = lock.split_ascii_whitespace();
        let is_one = words.nth(1) == Some("OFDLCK");
        words.nth(4).filter(|_| is_one)?.parse().ok()
    }

    /// What `fdinfo` says of descriptor `fd`. proc_pid_fdinfo(5).
    fn said_of(&self, fd: i32, what: &str) -> Option<String> {
        let text = self.text(&format!("fdinfo/{fd}")).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(what))?;
        Some(value.trim().to_owned())
    }

    /// A small file of `/proc/TID`.
    pub(crate) fn text(&self, name: &str) -> io::Result<String> {
        text_at(&self.directory, name)
    }

    fn is_alive(&self) -> bool {
        let exists = rustix::fs::Access::EXISTS;
        rustix::fs::accessat(&self.directory, "stat", exists, AtFlags::empty()).is_ok()
    }
}

/// A file that names thread `id` of `process`, or `process` where the kernel
/// has none for threads (before Linux 6.9); and whether it ends with the thread.
pub(crate) fn open_pidfd(id: u32, process: u32) -> io::Result<(OwnedFd, bool)> {
    /// PIDFD_THREAD.
    const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(OFlags::EXCL.bits());
    let open = |id: u32, flags| {
        let id = i32::try_from(id).ok().and_then(Pid::from_raw);
        rustix::process::pidfd_open(id.ok_or(rustix::io::Errno::SRCH)?, flags)
    };
    match open(id, THREAD) {
        Err(rustix::io::Errno::INVAL) => Ok((open(process, PidfdFlags::empty())?, id == process)),
        opened => Ok((opened?, true)),
    }
}

/// The errno for a descriptor that is not there in `/proc`.
fn not_open(error: io::Error) -> Errno {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Errno::EBADF,
        _ => errno(error),
    }
}

/// What the kernel shows as the link of a descriptor of ours.
pub(crate) fn link_of(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::readlink(path, Vec::new())?.into_bytes())
}

fn text_at(directory: impl AsFd, name: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    io::read_to_string(std::fs::File::from(file))
}

/// The threads that have made noticed calls, by number. A number can come to
/// mean another thread: then the descriptors seen by the old one are none, and
/// [`Threads::renewed`] looks again.
#[derive(Default)]
pub(crate) struct Threads {
    threads: HashMap<u32, Rc<Thread>>,
    processes: HashMap<u32, Weak<ClientProcess>>,
    spaces: u64,
    descriptors: Descriptors,
}

/// Threads remembered before the dead are looked for.
const MANY: usize = 512;

impl Threads {
    /// None yet.
    pub(crate) fn new(descriptors: Descriptors) -> Self {
        Self {
            descriptors,
            ..Self::default()
        }
    }

    /// What these descriptors name is known of no thread any more.
    pub(crate) fn forget(&self, numbers: &RangeInclusive<i32>) {
        for thread in self.threads.values() {
            let mut known = thread.known.borrow_mut();
            known.retain(|(number, _)| !numbers.contains(number));
        }
    }

    /// The thread with this number as it was last seen, or as it is now, which
    /// counts if it `is_waiting` in a noticed call all the while.
    pub(crate) fn get(
        &mut self,
        id: u32,
        is_waiting: impl FnOnce() -> bool,
    ) -> io::Result<Rc<Thread>> {
        match self.threads.get(&id) {
            Some(thread) => Ok(Rc::clone(thread)),
            None => self.renewed(id, is_waiting),
        }
    }

    /// The thread with this number as it is now. While it waits in a noticed
    /// call, the number cannot have become that of another.
    pub(crate) fn renewed(
        &mut self,
        id: u32,
        is_waiting: impl FnOnce() -> bool,
    ) -> io::Result<Rc<Thread>> {
        if self.threads.len() >= MANY {
            self.threads.retain(|_, thread| thread.is_alive());
            if self.threads.len() >= MANY / 2 {
                self.threads.clear();
            }
            self.processes
                .retain(|_, process| process.strong_count() > 0);
        }
        self.threads.remove(&id);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(format!("/proc/{id}"), flags, Mode::empty())?;
        let status =
            Status::parse(&text_at(&directory, "status")?).ok_or(io::ErrorKind::InvalidData)?;
        let known = self.processes.get(&status.process).and_then(Weak::upgrade);
        let process = match known.filter(|known| known.is_alive()) {
            Some(process) => process,
            None => {
                self.spaces = self.spaces.wrapping_add(1);
                Arc::new(ClientProcess::open(id, &status, self.spaces)?)
            }
        };
        let (pidfd, ends) = open_pidfd(id, status.process)?;
        let alive = Cell::new(Instant::now());
        if !is_waiting() {
            return Err(rustix::io::Errno::SRCH.into());
        }
        self.processes
            .insert(status.process, Arc::downgrade(&process));
        let thread = Rc::new(Thread {
            directory,
            pidfd,
            ends,
            alive,
            descriptors: self.descriptors,
            known: RefCell::default(),
            process,
        });
        self.threads.insert(id, Rc::clone(&thread));
        Ok(thread)
    }
}

/// What `/proc/TID/status` says. proc_pid_status(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// Process (thread group) id.
    pub(crate) process: u32,
    /// Real user id.
    pub(crate) user: u32,
    /// The user id that counts for files.
    pub(crate) files: u32,
    /// Effective capabilities.
    pub(crate) capabilities: u64,
}

impl Status {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let field = |name: &str, index| {
            let mut lines = text.lines();
            let rest = lines.find_map(|line| line.strip_prefix(name))?;
            rest.split_ascii_whitespace().nth(index)
        };
        Some(Self {
            process: field("Tgid:", 0)?.parse().ok()?,
            user: field("Uid:", 0)?.parse().ok()?,
            files: field("Uid:", 3)?.parse().ok()?,
            capabilities: u64::from_str_radix(field("CapEff:", 0)?, 16).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Rc<Thread> {
        let id = rustix::thread::gettid().as_raw_pid().cast_unsigned();
        Threads::default().get(id, || true).unwrap()
    }

    #[test]
    fn a_duplicate_is_the_same_file_and_a_closed_descriptor_is_bad() {
        let thread = own();
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = |fd: &std::os::unix::net::UnixStream| std::os::fd::AsRawFd::as_raw_fd(fd);
        let copy = one.try_clone().unwrap();
        let inode = |fd| Inode::of(thread.duplicate(fd).unwrap()).unwrap();
        let expected = see(&one, "").unwrap().inode;
        assert_eq!(inode(number(&one)), expected);
        assert_eq!(inode(number(&copy)), expected);
        assert_ne!(inode(number(&other)), expected);
        assert_eq!(thread.duplicate(-1).unwrap_err(), Errno::EBADF);
        assert_eq!(thread.duplicate(i32::MAX).unwrap_err(), Errno::EBADF);
    }

    #[test]
    fn close_on_exec_is_seen() {
        let thread = own();
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&one);
        assert_eq!(thread.on_exec(number), OnExec::Close);
        rustix::io::fcntl_setfd(&one, rustix::io::FdFlags::empty()).unwrap();
        assert_eq!(thread.on_exec(number), OnExec::Keep);
    }

    #[test]
    fn what_proc_shows_is_what_a_duplicate_is() {
        let thread = own();
        let made = crate::object::make_device(None, 77).unwrap();
        let number = made.theirs.as_raw_fd();
        assert_eq!(thread.look(number).unwrap().inode, made.inode);
        assert_eq!(thread.locked_byte(number), Some(77));
        assert_eq!(thread.position(number), Some(0));
        let again = thread.reopen(number).unwrap();
        assert_eq!(Inode::of(again).unwrap(), made.inode);
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let expected = Inode::of(&socket).unwrap();
        assert_eq!(thread.look(socket.as_raw_fd()).unwrap().inode, expected);
        assert_eq!(thread.locked_byte(socket.as_raw_fd()), None);
        let refused = thread.reopen(socket.as_raw_fd());
        assert_eq!(refused.unwrap_err(), Errno::EINVAL);
        for closed in [-1, i32::MAX] {
            assert_eq!(thread.look(closed).unwrap_err(), Errno::EBADF);
            assert_eq!(thread.reopen(closed).unwrap_err(), Errno::EBADF);
        }
    }

    #[test]
    fn a_status_is_read() {
        let text = "Name:\tx\nTgid:\t12\nPid:\t13\nUid:\t7\t8\t8\t9\nCapEff:\t00000000000000ff\n";
        let status = Status {
            process: 12,
            user: 7,
            files: 9,
            capabilities: 255,
        };
        assert_eq!(Status::parse(text), Some(status));
        assert_eq!(Status::parse("Tgid:\tx"), None);
    }
}
