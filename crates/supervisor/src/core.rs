//! What all threads of the supervisor share: the host, the files that the
//! client holds, the workers; and what is done after a call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_dma::Grace;
use iogate_host::iommufd::Readiness;
use iogate_host::{Caller, Direction, Error, FileId, FileKind, Host, Node, Pinned, Retired, Watch};
use iogate_memory::ClientMemory;
use iogate_uapi::{After, Errno};

use crate::alarm::Alarm;
use crate::attributes::Writable;
use crate::eventfds::Eventfds;
use crate::events;
use crate::held::Held;
use crate::mmio::BusErrors;
use crate::nodes::Nodes;
use crate::object::{self, Lock, Made, Proof};
use crate::pages::Ledger;
use crate::paths::Paths;
use crate::thread::{Descriptors, Inode, Thread};
use crate::watch::{Happened, Watcher};
use crate::worker::Workers;

/// Ends that a client may hold at a time.
const MOST_ENDS: usize = 4096;

/// How often a grace is asked about before a thread is made to wait for it.
const PATIENCE: u32 = 2000;

/// What all threads share.
pub(crate) struct Core {
    pub(crate) host: Arc<Host>,
    pub(crate) watcher: Arc<Watcher>,
    pub(crate) workers: Workers,
    pub(crate) alarm: Alarm,
    pub(crate) nodes: Nodes,
    /// Files in `/sys` whose writes do something.
    pub(crate) writable: Option<Writable>,
    pub(crate) descriptors: Descriptors,
    pub(crate) eventfds: Eventfds,
    /// Where path calls are answered, since the program has no view of its own.
    pub(crate) paths: Option<Paths>,
    pub(crate) ledger: Ledger,
    /// What programs have SIGBUS do; kept only while registers are mapped.
    pub(crate) bus_errors: BusErrors,
    /// Counts the calls that were noticed because they change mappings.
    pub(crate) remapped: AtomicU64,
    held: Mutex<Held>,
    /// Held while files are closed, so that a call sees a close either not
    /// begun or done.
    closing: Mutex<()>,
}

/// What the program finds, and how it is looked at.
pub(crate) struct Sight {
    pub(crate) nodes: Nodes,
    pub(crate) writable: Option<Writable>,
    pub(crate) descriptors: Descriptors,
    pub(crate) paths: Option<Paths>,
}

/// What is left to be done when a change has been made.
#[derive(Default)]
pub(crate) struct Rest {
    grace: Option<Grace>,
    pages: Vec<Box<dyn Pinned>>,
    watches: Vec<Box<dyn Watch>>,
    work: Option<usize>,
}

impl From<Retired> for Rest {
    fn from(retired: Retired) -> Self {
        Self {
            grace: retired.grace,
            pages: retired.pages,
            watches: retired.watches,
            work: retired.work,
        }
    }
}

impl From<After> for Rest {
    fn from(after: After) -> Self {
        Self {
            grace: after.grace,
            pages: after.retired,
            watches: after.watches,
            work: after.work,
        }
    }
}

impl From<Option<Grace>> for Rest {
    fn from(grace: Option<Grace>) -> Self {
        Self {
            grace,
            ..Self::default()
        }
    }
}

impl Rest {
    /// Whether there is nothing to be done.
    pub(crate) fn is_nothing(&self) -> bool {
        self.grace.is_none()
            && self.pages.is_empty()
            && self.watches.is_empty()
            && self.work.is_none()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    pub(crate) fn new(
        host: Arc<Host>,
        memory: Arc<ClientMemory>,
        workers: Workers,
        alarm: Alarm,
        sight: Sight,
    ) -> io::Result<Self> {
        let Sight {
            nodes,
            writable,
            descriptors,
            paths,
        } = sight;
        let held = Held::default();
        Ok(Self {
            host,
            watcher: Arc::new(Watcher::new()?),
            workers,
            alarm,
            nodes,
            writable,
            descriptors,
            eventfds: Eventfds::default(),
            paths,
            ledger: Ledger {
                memory,
                files: Arc::default(),
                devices: held.devices(),
                private: Arc::default(),
            },
            bus_errors: BusErrors::default(),
            remapped: AtomicU64::new(0),
            held: Mutex::new(held),
            closing: Mutex::default(),
        })
    }

    /// Opens a node for the client.
    pub(crate) fn open(&self, node: Node, caller: &dyn Caller) -> Result<FileId, Error> {
        let opened = self.host.open(node, caller);
        tracing::event!(
            name: "file_open",
            target: "iogate",
            tracing::Level::INFO,
            node = ?node,
            file = opened.as_ref().ok().map(|file| file.0),
            refusal = opened.as_ref().err().map(|error| error.reason),
        );
        opened
    }

    fn close_file(&self, file: FileId) -> Retired {
        tracing::event!(
            name: "file_close",
            target: "iogate",
            tracing::Level::INFO,
            file = file.0,
        );
        self.host.close(file)
    }

    /// The file that the client's open file `open`, of `inode`, is.
    pub(crate) fn file(&self, inode: Inode, open: impl AsFd) -> Option<FileId> {
        lock(&self.held).file(inode, open)
    }

    /// The same of what descriptor `fd` of `thread` shows.
    pub(crate) fn shown_file(&self, inode: Inode, thread: &Thread, fd: i32) -> Option<FileId> {
        lock(&self.held).file_locking(inode, || thread.locked_byte(fd))
    }

    /// The device file whose mapping is of `inode`. If there are several, they
    /// are of one device; one that gives access to it.
    pub(crate) fn mapped(&self, inode: Inode) -> Option<FileId> {
        let held = lock(&self.held);
        let mut files = held.files(inode);
        let first = files.next()?;
        let gives_access = |file: &FileId| self.host.device_access(*file).is_ok();
        match gives_access(&first) {
            true => Some(first),
            false => files.find(gives_access).or(Some(first)),
        }
    }

    /// The file that holds the plain memory of a device.
    fn memory_of(&self, device: usize) -> Option<BorrowedFd<'_>> {
        let device = self.host.device(device).ok()?;
        let (_, memory) = device.function.endpoint().memory()?;
        Some(memory.file()?.0)
    }

    /// The file that took the place of the open file `placeholder`.
    pub(crate) fn instead_of(&self, node: Node, placeholder: impl AsFd) -> Option<FileId> {
        lock(&self.held).instead_of(node, placeholder)
    }

    /// Remembers the open file that `file` takes the place of.
    pub(crate) fn set_placeholder(&self, file: FileId, node: Node, placeholder: OwnedFd) {
        lock(&self.held).set_placeholder(file, node, placeholder);
    }

    /// Makes one more end of `file` for the client. If it is dropped without
    /// being handed over, [`sweep`](Self::sweep) closes the file.
    pub(crate) fn make_end(self: &Arc<Self>, file: FileId) -> Result<OwnedFd, Errno> {
        let mut held = lock(&self.held);
        let made = match self.host.kind(file) {
            _ if held.len() >= MOST_ENDS => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            Some(FileKind::Device(device)) => {
                let byte = i64::try_from(held.next()).unwrap_or(i64::MAX);
                match held.memory_of(file) {
                    Some(memory) => object::another_device(&memory, byte),
                    None => object::make_device(self.memory_of(device), byte),
                }
            }
            Some(FileKind::FaultQueue) => {
                self.make_events(|shown| self.host.fault_watch(file, shown))
            }
            Some(FileKind::Migration {
                direction: Direction::Saving,
                ..
            }) => self.make_events(|shown| self.host.migration_watch(file, shown)),
            Some(_) => object::make_socket(),
            None => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        };
        let Made {
            theirs,
            inode,
            proof,
        } = made.map_err(errno)?;
        let held_lock = match &proof {
            Proof::Lock(lock) => Some(lock.clone()),
            Proof::Peer(_) => None,
        };
        let end = held.add(file, inode, proof);
        let watched = match (held_lock, held.peer(end)) {
            (Some(held_lock), _) => self.watch_lock(end, held_lock),
            (None, Some(peer)) => self.watcher.add_end(end, peer),
            (None, None) => Ok(()),
        };
        watched.map_err(errno)?;
        Ok(theirs)
    }

    /// The end of a file that shows from now on what there is to read.
    fn make_events(
        &self,
        watch: impl FnOnce(Arc<dyn Readiness>) -> Result<(), Error>,
    ) -> io::Result<Made> {
        let (made, shown) = events::make_events()?;
        let gone = |_| io::Error::from_raw_os_error(libc::ENODEV);
        watch(Arc::new(shown)).map(|()| made).map_err(gone)
    }

    /// Closes a file that the client never held.
    pub(crate) fn discard(self: &Arc<Self>, file: FileId) {
        let rest = self.close_file(file).into();
        self.settle(rest, || {});
        self.after_close();
    }

    /// Lets what waits for files to be closed go on.
    fn after_close(self: &Arc<Self>) {
        if let Some(writable) = &self.writable {
            writable.go_on(self);
        }
    }

    /// Waits for the last mapping of a device in a thread of its own: nothing
    /// else tells of it.
    fn watch_lock(self: &Arc<Self>, end: u64, held_lock: Lock) -> io::Result<()> {
        let core = Arc::clone(self);
        std::thread::Builder::new()
            .name("device file".to_owned())
            .stack_size(128 << 10)
            .spawn(move || {
                let alarm = core.alarm.clone();
                alarm.guard(|| {
                    held_lock.wait();
                    drop(held_lock);
                    core.release(end);
                });
            })?;
        Ok(())
    }

    /// Closes every file that the client has let go of, as far as that can be
    /// seen now. Returns whether there was one.
    pub(crate) fn sweep(self: &Arc<Self>) -> bool {
        let closing = lock(&self.closing);
        let released = lock(&self.held).released();
        let closed: Vec<_> = released.iter().filter_map(|end| self.close(*end)).collect();
        drop(closing);
        let any = !closed.is_empty();
        for rest in closed {
            self.settle(rest, || {});
        }
        if any {
            self.after_close();
        }
        any
    }

    /// Closes the file of an end that the client has let go of.
    fn release(self: &Arc<Self>, end: u64) {
        let closing = lock(&self.closing);
        let released = lock(&self.held).is_released(end);
        let closed = if released { self.close(end) } else { None };
        drop(closing);
        if let Some(rest) = closed {
            self.settle(rest, || {});
            self.after_close();
        }
    }

    fn close(&self, end: u64) -> Option<Rest> {
        let file = lock(&self.held).remove(end)?;
        Some(self.close_file(file).into())
    }

    /// Does what is left after a change: waits for the grace, lets go of what
    /// it was for, gives workers their work, and does `then`. Where the grace
    /// takes longer than a moment, all of that happens in a thread of its own.
    pub(crate) fn settle(self: &Arc<Self>, mut rest: Rest, then: impl FnOnce() + Send + 'static) {
        let passed = match &mut rest.grace {
            None => true,
            Some(grace) => (0..PATIENCE).any(|_| {
                std::hint::spin_loop();
                grace.has_passed()
            }),
        };
        let core = Arc::clone(self);
        let finish = move || {
            if let Some(grace) = rest.grace.take() {
                grace.wait();
            }
            drop(rest.pages);
            drop(rest.watches);
            core.workers.kick(rest.work);
            then();
        };
        if passed {
            return finish();
        }
        // Kept outside of the thread for the case that none can be started.
        let finish = Arc::new(Mutex::new(Some(finish)));
        let theirs = Arc::clone(&finish);
        let alarm = self.alarm.clone();
        let take = |finish: &Mutex<Option<_>>| lock(finish).take();
        let started = std::thread::Builder::new()
            .name("grace".to_owned())
            .spawn(move || {
                alarm.guard(|| {
                    if let Some(finish) = take(&theirs) {
                        finish();
                    }
                });
            });
        if started.is_err()
            && let Some(finish) = take(&finish)
        {
            finish();
        }
    }

    /// The life of the watching thread.
    pub(crate) fn watch(self: &Arc<Self>) -> io::Result<()> {
        self.watcher.run(|happened| match happened {
            Happened::Released(end) => self.release(end),
            Happened::Tick => {
                self.ledger.files.expire();
                if let Some(writable) = &self.writable {
                    writable.ask_again(&self.host);
                }
            }
            Happened::Signalled(event) => {
                let rest = Rest::from(self.host.event(event));
                self.settle(rest, || {});
            }
        })
    }
}

/// The errno of a system call of ours, for the client.
pub(crate) fn errno(error: io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}
