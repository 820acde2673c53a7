//! The calling thread as the uAPI sees it: memory, descriptors, credentials.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use iogate_dma::MemoryError;
use iogate_host::{Actor, Caller, Event, FileId, Memlock, Node, Pages, Watch};
use iogate_interrupt::Signal;
use iogate_memory::Process;
use iogate_uapi::{BadAddress, Client, Errno, Named};

use crate::client_process::ClientProcess;
use crate::core::{Core, errno};
use crate::eventfd::Eventfd;
use crate::listener::{Call, Listener, OnExec};
use crate::numbers::{Changes, is_reserved};
use crate::pages::{FilePages, ProcessPages};
use crate::shared::is_in_memory;
use crate::thread::{Descriptors, Inode, Seen, Status, Thread, Threads, see};

const IPC_LOCK: u64 = 1 << 14;
const SYS_RAWIO: u64 = 1 << 17;
const SYS_RESOURCE: u64 = 1 << 24;

/// A thread in a noticed call, which it waits in for as long as this exists.
pub(crate) struct Calling<'a> {
    core: &'a Arc<Core>,
    listener: &'a Listener,
    threads: &'a RefCell<Threads>,
    changes: &'a RefCell<Changes>,
    call: &'a Call,
    thread: RefCell<Rc<Thread>>,
}

impl<'a> Calling<'a> {
    /// The thread that makes `call`; ESRCH if it is gone, or another error if
    /// this user may not look at it.
    pub(crate) fn new(
        core: &'a Arc<Core>,
        listener: &'a Listener,
        threads: &'a RefCell<Threads>,
        changes: &'a RefCell<Changes>,
        call: &'a Call,
    ) -> Result<Self, Errno> {
        let is_waiting = || listener.is_waiting(call.id);
        let thread = threads.borrow_mut().get(call.thread, is_waiting);
        let thread = thread.map_err(errno)?;
        Ok(Self {
            core,
            listener,
            threads,
            changes,
            call,
            thread: RefCell::new(thread),
        })
    }

    pub(crate) fn thread(&self) -> Rc<Thread> {
        Rc::clone(&self.thread.borrow())
    }

    pub(crate) fn process(&self) -> Arc<ClientProcess> {
        Arc::clone(self.thread().process())
    }

    /// Looks at the thread again: its number was another's when it was looked
    /// at, or its process has executed another program since. `false` if the
    /// call waits no more.
    fn renew(&self) -> bool {
        let is_waiting = || self.listener.is_waiting(self.call.id);
        let mut threads = self.threads.borrow_mut();
        let Ok(thread) = threads.renewed(self.call.thread, is_waiting) else {
            return false;
        };
        *self.thread.borrow_mut() = thread;
        true
    }

    fn with_memory(
        &self,
        address: u64,
        mut access: impl FnMut(&Process) -> Result<(), MemoryError>,
    ) -> Result<(), BadAddress> {
        let mut done = access(self.process().memory());
        if matches!(done, Err(MemoryError::Gone { .. })) && self.renew() {
            done = access(self.process().memory());
        }
        done.map_err(|_| BadAddress(address))
    }

    /// An 8-byte word of the client's memory.
    pub(crate) fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// The path at `address`; `None` if there is none that the kernel takes.
    pub(crate) fn path(&self, address: u64) -> Option<Vec<u8>> {
        let mut path = None;
        let read = self.with_memory(address, |memory| {
            path = memory.read_string(address, 4096)?;
            Ok(())
        });
        read.ok()?;
        Some(path?.into_bytes())
    }

    fn duplicate(&self, fd: i32) -> Result<OwnedFd, Errno> {
        // Nothing there may mean that the thread looked at is another.
        match self.thread().duplicate(fd) {
            Err(Errno::EBADF) if fd >= 0 && self.renew() => self.thread().duplicate(fd),
            file => file,
        }
    }

    /// What descriptor `fd` names, by what `/proc` shows.
    pub(crate) fn look(&self, fd: i32) -> Result<Seen, Errno> {
        match self.thread().look(fd) {
            Err(Errno::EBADF) if fd >= 0 && self.renew() => self.thread().look(fd),
            seen => seen,
        }
    }

    /// The inode that descriptor `fd` names.
    pub(crate) fn inode(&self, fd: i32) -> Option<Inode> {
        let thread = self.thread();
        match thread.descriptors() {
            Descriptors::Duplicated => Inode::of(thread.duplicate(fd).ok()?).ok(),
            Descriptors::Shown => Some(thread.look(fd).ok()?.inode),
        }
    }

    /// As [`file`](Self::file), where descriptors are only shown.
    fn shown_file(&self, fd: i32) -> Result<Option<FileId>, Errno> {
        let seen = match self.look(fd) {
            Err(Errno::EACCES | Errno::EPERM) => return Ok(None),
            seen => seen?,
        };
        if let Some(file) = self.core.shown_file(seen.inode, &self.thread(), fd) {
            return Ok(Some(file));
        }
        match self.core.nodes.node(seen, &self.thread()) {
            Some(node) => self.replace(fd, node, None).map(Some),
            None => Ok(None),
        }
    }

    /// The file that descriptor `fd` names, `None` if it is none of ours. A
    /// node that was opened unseen becomes a file now.
    pub(crate) fn file(&self, fd: i32) -> Result<Option<FileId>, Errno> {
        if !is_reserved(fd) {
            return self.identify(fd);
        }
        if let Some(file) = self.thread().known(fd) {
            if self.thread().is_itself() {
                return Ok(Some(file));
            }
            self.renew();
        }
        // Asked first: a change that is noticed later happens later.
        let spared = self.spares(fd);
        let file = self.identify(fd)?;
        if let Some(file) = file
            && spared
            && self.thread().is_itself()
            && self.listener.is_waiting(self.call.id)
        {
            self.thread().remember(fd, file);
        }
        Ok(file)
    }

    /// Whether no change of the reserved number `fd` is under way.
    fn spares(&self, fd: i32) -> bool {
        self.changes.borrow_mut().spare(fd, self.call.thread)
    }

    /// A number for a new descriptor, at which it will be known. `None` if there
    /// is none for sure: then any will do.
    pub(crate) fn free_number(&self) -> Option<u32> {
        let leave_free = |number| {
            let mut changes = self.changes.borrow_mut();
            changes.leave_free(number, self.call.thread)
        };
        self.thread().free_number(leave_free)
    }

    /// Looks which file descriptor `fd` names.
    fn identify(&self, fd: i32) -> Result<Option<FileId>, Errno> {
        if self.thread().descriptors() == Descriptors::Shown {
            return self.shown_file(fd);
        }
        let opened = match self.duplicate(fd) {
            // Whom we may not look at holds no file of ours.
            Err(Errno::EACCES | Errno::EPERM) => return Ok(None),
            opened => opened?,
        };
        // Cheaper than all that can be seen.
        if let Some(file) = self.core.file(Inode::of(&opened).map_err(errno)?, &opened) {
            return Ok(Some(file));
        }
        let seen = see(&opened, "").map_err(errno)?;
        match self.core.nodes.node(seen, &self.thread()) {
            Some(node) => self.replace(fd, node, Some(opened)).map(Some),
            None => Ok(None),
        }
    }

    /// Makes descriptor `fd`, a node as the kernel opened it (`placeholder`),
    /// name a file of ours. Duplicates that were made before come to name the
    /// same file, where it can be had.
    fn replace(&self, fd: i32, node: Node, placeholder: Option<OwnedFd>) -> Result<FileId, Errno> {
        let known = placeholder
            .as_ref()
            .and_then(|placeholder| self.core.instead_of(node, placeholder));
        let file = match known {
            Some(file) => file,
            None => {
                self.core.sweep();
                self.core.open(node, self)?
            }
        };
        let made = self.core.make_end(file).inspect_err(|_| {
            if known.is_none() {
                self.core.discard(file);
            }
        })?;
        if let (None, Some(placeholder)) = (known, placeholder) {
            self.core.set_placeholder(file, node, placeholder);
        }
        let target = u32::try_from(fd).map_err(|_| Errno::EBADF)?;
        let on_exec = self.thread().on_exec(fd);
        self.listener
            .replace_file(
                self.call.id,
                target,
                std::os::fd::AsFd::as_fd(&made),
                on_exec,
            )
            .map_err(errno)?;
        Ok(file)
    }

    /// The number of the thread.
    pub(crate) fn number(&self) -> u32 {
        self.call.thread
    }

    /// The file of ours that descriptor `fd` names, as far as that is known.
    pub(crate) fn known(&self, fd: i32) -> Option<FileId> {
        let inode = self.look(fd).ok()?.inode;
        self.core.shown_file(inode, &self.thread(), fd)
    }

    /// What the kernel shows as a link of the thread in `/proc`.
    pub(crate) fn own_link(&self, name: &str) -> io::Result<Vec<u8>> {
        let link = self.thread().own_link(name);
        match link {
            // The thread that was looked at may be gone.
            Err(_) if self.renew() => self.thread().own_link(name),
            link => link,
        }
    }

    /// Whether the thread may open what this process may.
    pub(crate) fn has_our_rights(&self) -> bool {
        let ours = rustix::process::geteuid().as_raw();
        self.status().is_some_and(|status| status.files == ours)
    }

    fn status(&self) -> Option<Status> {
        Status::parse(&self.thread().text("status").ok()?)
    }

    fn has_capability(&self, capability: u64) -> bool {
        // Capabilities in a user namespace of one's own are none towards the
        // machine.
        let own = self.thread().own_link("ns/user").ok();
        let ours = std::fs::read_link("/proc/self/ns/user").ok();
        let same = match (own, ours) {
            (Some(own), Some(ours)) => {
                own == std::os::unix::ffi::OsStrExt::as_bytes(ours.as_os_str())
            }
            _ => false,
        };
        same && self
            .status()
            .is_some_and(|status| status.capabilities & capability != 0)
    }
}

impl Caller for Calling<'_> {
    fn actor(&self) -> Actor {
        Actor {
            process: self.process().id(),
            thread: self.call.thread,
        }
    }

    fn address_space(&self) -> u64 {
        self.process().space()
    }

    fn user(&self) -> u32 {
        self.process().user()
    }

    fn memlock(&self) -> Memlock {
        if self.has_capability(IPC_LOCK) {
            return Memlock::Exempt;
        }
        let limits = self.thread().text("limits").unwrap_or_default();
        let limit = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max locked memory"))
            .and_then(|line| line.split_ascii_whitespace().next())
            .unwrap_or_default();
        match limit {
            "unlimited" => Memlock::Limit(u64::MAX),
            bytes => Memlock::Limit(bytes.parse().unwrap_or_default()),
        }
    }

    fn has_raw_io(&self) -> bool {
        self.has_capability(SYS_RAWIO)
    }

    fn has_sys_resource(&self) -> bool {
        self.has_capability(SYS_RESOURCE)
    }
}

impl Client for Calling<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), BadAddress> {
        self.with_memory(address, |memory| memory.read(address, into))
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), BadAddress> {
        self.with_memory(address, |memory| memory.write(address, from))
    }

    fn named(&self, fd: i32) -> Result<Named, Errno> {
        Ok(match self.file(fd)? {
            Some(file) => Named::Ours(file),
            None => Named::Other,
        })
    }

    fn eventfd(&self, fd: i32) -> Result<Arc<dyn Signal>, Errno> {
        let made = &self.core.eventfds;
        Ok(Arc::new(Eventfd::of(&self.thread(), fd, made)?))
    }

    fn pages(&self, address: u64, _length: u64) -> Arc<dyn Pages> {
        Arc::new(ProcessPages {
            ledger: self.core.ledger.clone(),
            process: self.process(),
            start: address,
        })
    }

    fn file_pages(&self, fd: i32, offset: u64, _length: u64) -> Result<Arc<dyn Pages>, Errno> {
        let file = match self.thread().descriptors() {
            Descriptors::Duplicated => self.thread().duplicate(fd)?,
            Descriptors::Shown => self.thread().reopen(fd)?,
        };
        if !is_in_memory(&file) {
            return Err(Errno::EINVAL);
        }
        Ok(Arc::new(FilePages {
            ledger: self.core.ledger.clone(),
            process: self.process(),
            file,
            start: offset,
        }))
    }

    fn install(&self, file: FileId) -> Result<i32, Errno> {
        let end = self.core.make_end(file)?;
        let end = std::os::fd::AsFd::as_fd(&end);
        let at = self.free_number();
        let added = self.listener.add_file(self.call.id, end, OnExec::Close, at);
        added.map_err(errno)
    }

    fn watch(&self, fd: i32, event: Event) -> Result<Box<dyn Watch>, Errno> {
        let eventfd = Eventfd::of(&self.thread(), fd, &self.core.eventfds)?;
        self.core.watcher.add_eventfd(eventfd, event).map_err(errno)
    }
}
