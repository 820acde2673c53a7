//! The one thread that takes noticed calls: says which of them are ours, has
//! them answered, and lets the kernel do all others.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use iogate_host::{Caller, FileId, FileKind};
use iogate_uapi::{self as uapi, Answer, Client, Errno};
use rustix::fs::SeekFrom;

use crate::client::Calling;
use crate::core::{Core, Rest, errno};
use crate::filter::{KVM_SET_DEVICE_ATTR, REGION_BIT, SHORT_WRITE};
use crate::kvm::{self, Machines};
use crate::listener::{Call, Listener, OnExec, Reply};
use crate::mmio::Action;
use crate::numbers::{ALL, Changes, changed_by, is_reserved};
use crate::open::{Open, is_opened_at_once};
use crate::paths::{self, Answer as Found, NOTICED};
use crate::say::say;
use crate::thread::{Descriptors, Threads, link_of, see};
use crate::unmapping::taken_away;

/// Pieces that a vector of buffers may have. UIO_MAXIOV.
const MOST_PIECES: u64 = 1024;

/// ioctl numbers whose answer depends on what is still open: before them all
/// closes are taken notice of. include/uapi/linux/vfio.h and iommufd.h.
const LOOKS_AT_OPEN_FILES: [u32; 16] = [
    0x3b66, 0x3b67, 0x3b68, 0x3b69, 0x3b6a, 0x3b6f, 0x3b70, 0x3b71, 0x3b76, 0x3b77, 0x3b78, 0x3b80,
    0x3b82, 0x3b87, 0x3b88, 0x3b89,
];

/// Whether a call is VFIO_IOMMU_MAP_DMA, which has its number in common with
/// VFIO_DEVICE_PCI_HOT_RESET and looks at no other file.
fn is_map(kind: Option<FileKind>, command: u32) -> bool {
    command == 0x3b71 && kind == Some(FileKind::Container)
}

/// What becomes of a call.
enum Outcome {
    /// The caller sees this.
    Now(Reply),
    /// The call is or will be answered elsewhere.
    Elsewhere,
}

use Outcome::{Elsewhere, Now};

impl From<Errno> for Outcome {
    fn from(errno: Errno) -> Self {
        Now(Reply::Error(errno.0))
    }
}

const CONTINUE: Outcome = Now(Reply::Continue);

/// The receiver of one listener.
pub(crate) struct Receiver {
    core: Arc<Core>,
    listener: Arc<Listener>,
    threads: RefCell<Threads>,
    changes: RefCell<Changes>,
    machines: RefCell<Machines>,
    warned: RefCell<Vec<&'static str>>,
}

impl Receiver {
    pub(crate) fn new(core: Arc<Core>, listener: Arc<Listener>) -> io::Result<Self> {
        let threads = Threads::new(core.descriptors);
        Ok(Self {
            core,
            listener,
            threads: RefCell::new(threads),
            changes: RefCell::default(),
            machines: RefCell::new(Machines::new()?),
            warned: RefCell::default(),
        })
    }

    /// Takes calls until nobody is left to make one.
    pub(crate) fn run(&self) -> io::Result<()> {
        while let Some(call) = self.listener.next()? {
            match self.take(&call) {
                Now(reply) => self.listener.answer(call.id, reply),
                Elsewhere => {}
            }
        }
        Ok(())
    }

    fn take(&self, call: &Call) -> Outcome {
        // Traces name the thread that called.
        let _span = tracing::info_span!(target: "iogate", "call", thread = call.thread).entered();
        self.changes.borrow_mut().end(call.thread);
        if let Some(numbers) = changed_by(call) {
            self.threads.borrow().forget(&numbers);
            let mut changes = self.changes.borrow_mut();
            changes.begin(call, numbers, &self.listener);
            return CONTINUE;
        }
        let done = match call.number() {
            number if self.core.paths.is_some() && NOTICED.contains(&number) => self.path(call),
            libc::SYS_eventfd | libc::SYS_eventfd2 => self.eventfd(call),
            libc::SYS_ioctl => self.ioctl(call),
            libc::SYS_pread64
            | libc::SYS_pwrite64
            | libc::SYS_preadv
            | libc::SYS_pwritev
            | libc::SYS_preadv2
            | libc::SYS_pwritev2 => self.access(call),
            libc::SYS_read | libc::SYS_write | libc::SYS_readv | libc::SYS_writev => {
                self.plain(call)
            }
            libc::SYS_mmap => self.mmap(call),
            libc::SYS_rt_sigaction | libc::SYS_rt_sigprocmask => {
                self.signals(call);
                Ok(CONTINUE)
            }
            libc::SYS_ptrace => {
                if asks_to_trace(call) {
                    self.warn(
                        "the program debugs another, which ptrace refuses while registers are \
                         mapped: run it with `mmio = \"trap\"`",
                    );
                }
                Ok(CONTINUE)
            }
            libc::SYS_open | libc::SYS_openat | libc::SYS_openat2 => self.open(call),
            libc::SYS_lseek => {
                if !is_reserved(call.int(0)) {
                    self.warn(
                        "the program seeks in a device file whose number it chose: plain read and \
                         write calls on it are not seen, only pread, pwrite and their vector forms",
                    );
                }
                Ok(CONTINUE)
            }
            libc::SYS_io_uring_setup => {
                self.changes.borrow_mut().are_unseen();
                self.threads.borrow().forget(&ALL);
                self.warn(
                    "the program uses io_uring: what it does by it on VFIO files is not seen",
                );
                Ok(CONTINUE)
            }
            _ => Ok(self.unmapping(call)),
        };
        done.unwrap_or_else(Outcome::from)
    }

    /// The thread that makes `call`; `None` if it is gone, or may not be
    /// looked at: then it can hold no file of ours but by chance.
    fn calling<'a>(&'a self, call: &'a Call) -> Option<Calling<'a>> {
        let client = Calling::new(
            &self.core,
            &self.listener,
            &self.threads,
            &self.changes,
            call,
        );
        if let Err(Errno::EACCES | Errno::EPERM) = client {
            self.warn(
                "a process of the program may not be looked at: its VFIO calls are not answered",
            );
        }
        client.ok()
    }

    /// What the program is about to have SIGBUS do.
    fn signals(&self, call: &Call) {
        let Some(client) = self.calling(call) else {
            return;
        };
        let bus_errors = &self.core.bus_errors;
        if call.number() == libc::SYS_rt_sigaction {
            let word = |at: u64| client.word(call.argument(1).checked_add(at)?);
            if let [Some(handler), Some(flags), Some(restorer), Some(mask)] =
                [0, 8, 16, 24].map(word)
            {
                let action = Action([handler, flags, restorer, mask]);
                bus_errors.acts(client.process().id(), action);
            }
        } else if let Some(set) = client.word(call.argument(1)) {
            bus_errors.masks(call.thread, call.int(0), set);
        }
    }

    /// Says something once.
    fn warn(&self, text: &'static str) {
        let mut warned = self.warned.borrow_mut();
        if !warned.contains(&text) {
            warned.push(text);
            say(text);
        }
    }

    fn ioctl(&self, call: &Call) -> Result<Outcome, Errno> {
        let (fd, command, argument) = (call.int(0), call.uint(1), call.argument(2));
        let Some(client) = self.calling(call) else {
            return Ok(CONTINUE);
        };
        if command == KVM_SET_DEVICE_ATTR {
            return self.kvm(call, &client, fd, argument);
        }
        let Some(file) = client.file(fd)? else {
            return Ok(CONTINUE);
        };
        let host = &self.core.host;
        if LOOKS_AT_OPEN_FILES.contains(&command) && !is_map(host.kind(file), command) {
            self.core.sweep();
        }
        let mut answer = uapi::ioctl(host, file, command, argument, &client);
        if matches!(answer, Err(Errno::EBUSY)) && self.core.sweep() {
            answer = uapi::ioctl(host, file, command, argument, &client);
        }
        Ok(self.finish(call, &client, answer?))
    }

    /// KVM_SET_DEVICE_ATTR is ours only on the device by which KVM is told of
    /// VFIO files.
    fn kvm(
        &self,
        call: &Call,
        client: &Calling<'_>,
        fd: i32,
        argument: u64,
    ) -> Result<Outcome, Errno> {
        let (host, thread) = (&self.core.host, client.thread());
        let mut machines = self.machines.borrow_mut();
        let machine = match thread.descriptors() {
            Descriptors::Duplicated => {
                let Ok(file) = thread.duplicate(fd) else {
                    return Ok(CONTINUE);
                };
                if !link_of(&file).is_ok_and(|link| link == kvm::LINK) {
                    return Ok(CONTINUE);
                }
                machines
                    .number(&file, |closed| host.kvm_close(closed))
                    .map_err(errno)?
            }
            Descriptors::Shown => {
                if !thread.link(fd).is_ok_and(|link| link == kvm::LINK) {
                    return Ok(CONTINUE);
                }
                machines.number_shown(thread.process(), fd, |closed| host.kvm_close(closed))
            }
        };
        drop(machines);
        match uapi::kvm_device_attr(host, machine, argument, client)? {
            Some(answer) => Ok(self.finish(call, client, answer)),
            None => Ok(CONTINUE),
        }
    }

    /// Reads and writes in a region.
    fn access(&self, call: &Call) -> Result<Outcome, Errno> {
        let Some(client) = self.calling(call) else {
            return Ok(CONTINUE);
        };
        let Some(file) = client.file(call.int(0))? else {
            return match call.number() {
                libc::SYS_pwrite64 => self.attribute(call),
                _ => Ok(CONTINUE),
            };
        };
        let (address, length) = (call.argument(1), call.argument(2));
        let (host, offset) = (&self.core.host, call.argument(3));
        let whole = [(address, length)];
        let answer = match call.number() {
            libc::SYS_pread64 => uapi::read(host, file, offset, &whole, &client),
            libc::SYS_pwrite64 => uapi::write(host, file, offset, &whole, &client),
            libc::SYS_preadv | libc::SYS_preadv2 => {
                let pieces = vector(&client, address, length)?;
                uapi::read(host, file, offset, &pieces, &client)
            }
            _ => {
                let pieces = vector(&client, address, length)?;
                uapi::write(host, file, offset, &pieces, &client)
            }
        };
        Ok(self.finish(call, &client, answer?))
    }

    /// Reads and writes without an offset, of a descriptor at a reserved number:
    /// a device file has its offset in the client's open file.
    fn plain(&self, call: &Call) -> Result<Outcome, Errno> {
        let fd = call.int(0);
        let Some(client) = self.calling(call) else {
            return Ok(CONTINUE);
        };
        let Some(file) = client.file(fd)? else {
            return match call.number() {
                libc::SYS_write => self.attribute(call),
                _ => Ok(CONTINUE),
            };
        };
        let (address, length) = (call.argument(1), call.argument(2));
        let whole = || Ok(vec![(address, length)]);
        let (reads, pieces) = match call.number() {
            libc::SYS_read => (true, whole()),
            libc::SYS_write => (false, whole()),
            libc::SYS_readv => (true, vector(&client, address, length)),
            _ => (false, vector(&client, address, length)),
        };
        let (host, pieces) = (&self.core.host, pieces?);
        if !matches!(host.kind(file), Some(FileKind::Device(_))) {
            let answer = match reads {
                true => uapi::read_stream(host, file, &pieces, &client),
                false => uapi::write_stream(host, file, &pieces, &client),
            };
            return Ok(self.finish(call, &client, answer?));
        }
        let thread = client.thread();
        let opened = match thread.descriptors() {
            Descriptors::Duplicated => Some(thread.duplicate(fd)?),
            Descriptors::Shown => {
                self.warn(
                    "plain read and write calls on a device file do not move its position here: \
                     the program needs pread or pwrite, or lseek before each",
                );
                None
            }
        };
        let at = match &opened {
            Some(opened) => rustix::fs::tell(opened).map_err(|error| errno(error.into()))?,
            None => thread.position(fd).ok_or(Errno::EBADF)?,
        };
        let answer = match reads {
            true => uapi::read(host, file, at, &pieces, &client),
            false => uapi::write(host, file, at, &pieces, &client),
        }?;
        if let Some(end) = u64::try_from(answer.value)
            .ok()
            .and_then(|moved| at.checked_add(moved))
        {
            let _ = opened.map(|opened| rustix::fs::seek(opened, SeekFrom::Start(end)));
        }
        Ok(self.finish(call, &client, answer))
    }

    /// A short write, which may be one of a file in `/sys`.
    fn attribute(&self, call: &Call) -> Result<Outcome, Errno> {
        let Some(writable) = &self.core.writable else {
            return Ok(CONTINUE);
        };
        let Some(client) = self.calling(call) else {
            return Ok(CONTINUE);
        };
        let Some(file) = writable.find(&client, call.int(0)) else {
            return Ok(CONTINUE);
        };
        let length = usize::try_from(call.uint(2).min(SHORT_WRITE)).unwrap_or(0);
        let mut text = vec![0; length];
        client.read(call.argument(1), &mut text)?;
        self.core.sweep();
        let listener = Arc::clone(&self.listener);
        writable.write(&self.core, file, text, (listener, call.id));
        Ok(Elsewhere)
    }

    fn mmap(&self, call: &Call) -> Result<Outcome, Errno> {
        let offset = call.argument(5);
        if offset >> 52 == REGION_BIT >> 52
            && call.int(3) & libc::MAP_ANONYMOUS == 0
            && let Some(client) = self.calling(call)
            && let Some(file) = client.file(call.int(4))?
        {
            let (length, protection) = (call.argument(1), call.uint(2));
            let host = &self.core.host;
            uapi::mmap(host, file, offset, length, protection, call.uint(3))?;
        }
        Ok(self.unmapping(call))
    }

    fn open(&self, call: &Call) -> Result<Outcome, Errno> {
        let Some(client) = self.calling(call) else {
            return Ok(CONTINUE);
        };
        let found = Open::of(call, |address| client.word(address)).and_then(|open| {
            let path = client.path(open.path)?;
            let place = open.leads_to(&client.thread(), &path)?;
            let seen = see(&place, "").ok()?;
            let node = self.core.nodes.node(seen, &client.thread())?;
            Some((open, place, node))
        });
        let Some((open, place, node)) = found else {
            return Ok(CONTINUE);
        };
        let on_exec = OnExec::from_flags(open.flags);
        if !is_opened_at_once(node) {
            return Ok(self.give_node(call, &client, &open, &place, on_exec));
        }
        self.core.sweep();
        let file = self.core.open(node, &client)?;
        let at = client.free_number();
        let (core, listener) = (&self.core, &self.listener);
        Ok(install(core, listener, call.id, file, on_exec, at))
    }

    /// Opens a node as the kernel would, but at a reserved number.
    fn give_node(
        &self,
        call: &Call,
        client: &Calling<'_>,
        open: &Open,
        place: &OwnedFd,
        on_exec: OnExec,
    ) -> Outcome {
        let Some(at) = client.free_number() else {
            return CONTINUE;
        };
        let Ok(node) = open.open(place) else {
            return CONTINUE;
        };
        let answered = self
            .listener
            .answer_file(call.id, node.as_fd(), on_exec, Some(at));
        match answered {
            Ok(()) => Elsewhere,
            Err(_) => CONTINUE,
        }
    }

    /// A call that names a path, where the program has no view of its own.
    fn path(&self, call: &Call) -> Result<Outcome, Errno> {
        let (Some(shown), Some(client)) = (&self.core.paths, self.calling(call)) else {
            return Ok(CONTINUE);
        };
        Ok(match shown.answer(&client, call)? {
            Found::Native => CONTINUE,
            Found::Value(value) => Now(Reply::Value(value)),
            Found::File(file, on_exec) => {
                let added = self
                    .listener
                    .answer_file(call.id, file.as_fd(), on_exec, None);
                added.map_err(errno)?;
                Elsewhere
            }
            Found::Node(node, on_exec) => {
                self.core.sweep();
                let file = self.core.open(node, &client)?;
                shown.opened(file, &self.core.host);
                let at = client.free_number();
                let (core, listener) = (&self.core, &self.listener);
                install(core, listener, call.id, file, on_exec, at)
            }
            Found::Enter(directory) => {
                let (listener, call) = (Arc::clone(&self.listener), *call);
                let enter = move || {
                    if !paths::enter(&listener, call.id, call.thread, &directory) {
                        say("a directory of this session cannot be entered: that takes ptrace");
                        listener.answer(call.id, Reply::Error(libc::EACCES));
                    }
                };
                let thread = std::thread::Builder::new().name("enter".to_owned());
                thread.spawn(enter).map_err(errno)?;
                Elsewhere
            }
        })
    }

    /// Makes an eventfd that can be found again, where descriptors cannot be
    /// duplicated.
    fn eventfd(&self, call: &Call) -> Result<Outcome, Errno> {
        let flags = match call.number() {
            libc::SYS_eventfd2 => call.uint(1),
            _ => 0,
        };
        let Some(made) = self.core.eventfds.make(call.uint(0), flags) else {
            return Ok(CONTINUE);
        };
        let made = made.map_err(errno)?;
        let on_exec = OnExec::from_flags(flags.into());
        let added = self
            .listener
            .answer_file(call.id, made.as_fd(), on_exec, None);
        added.map_err(errno)?;
        Ok(Elsewhere)
    }

    /// What `call` is about to take away of the program's own memory is out of
    /// devices' reach before it proceeds.
    fn unmapping(&self, call: &Call) -> Outcome {
        self.core.remapped.fetch_add(1, Ordering::SeqCst);
        if self.core.ledger.private.load(Ordering::SeqCst) == 0 {
            return CONTINUE;
        }
        let Some(client) = self.calling(call) else {
            return CONTINUE;
        };
        let process = client.process();
        if !process.has_private() {
            return CONTINUE;
        }
        let mut grace = None;
        for (first, last) in taken_away(call, process.memory()).into_iter().flatten() {
            let by = Some(client.actor());
            let revoked = self.core.host.revoke(process.space(), first, last, by);
            grace = revoked.or(grace);
        }
        if grace.is_none() {
            return CONTINUE;
        }
        self.settle_and_reply(call.id, Rest::from(grace), Reply::Continue)
    }

    /// Lets the caller hear of `answer` when everything before that is done.
    fn finish(&self, call: &Call, client: &Calling<'_>, answer: Answer) -> Outcome {
        let rest = Rest::from(answer.after);
        let Some(file) = answer.install else {
            return self.settle_and_reply(call.id, rest, Reply::Value(answer.value));
        };
        if rest.is_nothing() {
            let (at, close) = (client.free_number(), OnExec::Close);
            return install(&self.core, &self.listener, call.id, file, close, at);
        }
        // By then a number that is free now may not be.
        let (core, listener, id) = (Arc::clone(&self.core), Arc::clone(&self.listener), call.id);
        self.core.settle(rest, move || {
            if let Now(reply) = install(&core, &listener, id, file, OnExec::Close, None) {
                listener.answer(id, reply);
            }
        });
        Elsewhere
    }

    fn settle_and_reply(&self, id: u64, rest: Rest, reply: Reply) -> Outcome {
        if rest.is_nothing() {
            return Now(reply);
        }
        let listener = Arc::clone(&self.listener);
        self.core.settle(rest, move || listener.answer(id, reply));
        Elsewhere
    }
}

/// Whether a call of ptrace(2) asks to trace a process.
fn asks_to_trace(call: &Call) -> bool {
    let requests = [
        libc::PTRACE_TRACEME,
        libc::PTRACE_ATTACH,
        libc::PTRACE_SEIZE,
    ];
    requests
        .iter()
        .any(|request| i64::from(*request) == i64::from(call.int(0)))
}

/// The buffers of a vector of `count`: addresses and lengths.
fn vector(client: &Calling<'_>, at: u64, count: u64) -> Result<Vec<(u64, u64)>, Errno> {
    if count > MOST_PIECES {
        return Err(Errno::EINVAL);
    }
    let length = usize::try_from(count.saturating_mul(16)).map_err(|_| Errno::EINVAL)?;
    let mut bytes = vec![0; length];
    client.read(at, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<8>();
    let (pieces, _) = words.as_chunks::<2>();
    let word = u64::from_le_bytes;
    Ok(pieces
        .iter()
        .map(|[at, length]| (word(*at), word(*length)))
        .collect())
}

/// Gives the caller a new descriptor for `file`; closes the file if that cannot
/// be.
fn install(
    core: &Arc<Core>,
    listener: &Listener,
    id: u64,
    file: FileId,
    on_exec: OnExec,
    at: Option<u32>,
) -> Outcome {
    let end = match core.make_end(file) {
        Ok(end) => end,
        Err(error) => {
            core.discard(file);
            return error.into();
        }
    };
    match listener.answer_file(id, end.as_fd(), on_exec, at) {
        Ok(()) => Elsewhere,
        Err(error) => {
            drop(end);
            core.sweep();
            errno(error).into()
        }
    }
}
