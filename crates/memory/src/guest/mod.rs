//! The memory of a guest, by guest-physical address: ranges of files, which
//! come and go while accesses are under way, and ranges that somebody else has.
//!
//! What stands at guest-physical address A is mapped at offset A of a window of
//! reserved addresses, so that an access costs no look-up: what is mapped is
//! there, what is not faults, and the fault becomes an error. Only then is the
//! list of ranges looked at: for what has no file, and for what cannot be
//! mapped at its own address.

mod far;
mod ranges;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use iogate_dma::{Gpa, Memory, MemoryError, Rights, Span, Width};

use crate::window::check_aligned;
use far::Space;
use ranges::{Piece, Ranges};

/// Who has the memory of a range that comes without a file.
pub trait Remote: Send + Sync {
    /// Fills `into` from `at` on.
    ///
    /// # Errors
    /// [`MemoryError::Gone`] when there is nobody to ask any more.
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError>;

    /// Writes `from` to `at` on.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError>;
}

/// Who hands guest memory on, and has to know when it is another one.
pub trait RangeWatcher: Send + Sync {
    /// What stands at `span` has changed. When this returns after a range was
    /// taken away, nobody that memory was handed on to uses it any more. Called
    /// by the thread that made the change, before the next change is made: a
    /// watcher makes none.
    fn changed(&self, span: Span<Gpa>);
}

/// What stands behind a range of guest memory.
#[derive(Clone)]
pub enum Backing {
    /// A regular file, shared with who else has it, from this byte on.
    File {
        /// The file.
        file: Arc<OwnedFd>,
        /// Where in it the range begins, a multiple of 4096.
        offset: u64,
    },
    /// Somebody who is asked at each access.
    Remote(Arc<dyn Remote>),
}

/// Why a range cannot be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// It is not of whole pages of 4096 bytes, or allows nothing.
    #[error("{0} is not of whole pages, or nothing is allowed there")]
    Malformed(Span<Gpa>),
    /// There are as many ranges as there may be.
    #[error("guest memory has {0} ranges already")]
    Ranges(usize),
    /// The file is not one that can be mapped, or ends before the range does.
    #[error("the file behind {span} cannot be used: {reason}")]
    File {
        /// The range.
        span: Span<Gpa>,
        /// Why.
        reason: &'static str,
    },
    /// The kernel refuses.
    #[error("{span} cannot be mapped: {error}")]
    Refused {
        /// The range.
        span: Span<Gpa>,
        /// Why.
        error: io::Error,
    },
}

/// A piece of guest memory with the file that holds it.
#[derive(Clone, Debug)]
pub struct Backed {
    /// The addresses.
    pub span: Span<Gpa>,
    /// The file.
    pub file: Arc<OwnedFd>,
    /// Where in it the first byte stands.
    pub offset: u64,
    /// What is allowed there.
    pub rights: Rights,
}

/// A guest's memory. Ranges are added by [`map`](Self::map) from any thread,
/// and taken away by dropping the [`GuestRange`] that it gives.
///
/// Several may name the same memory (each socket of a virtual machine does):
/// equal ranges are one, which stays until the last is dropped. Where different
/// ranges overlap the one that was added last counts, until it is taken away.
///
/// An access that is under way while its range is taken away stops with
/// [`MemoryError::Absent`]; after that nothing reaches the old memory.
pub struct GuestMemory {
    space: Arc<Space>,
    ranges: RwLock<Ranges>,
    changes: AtomicU64,
    watchers: Mutex<Vec<Weak<dyn RangeWatcher>>>,
    /// Held from a change until everybody has been told of it, so that no
    /// watcher hears of one change while it finds another.
    changing: Mutex<()>,
}

impl GuestMemory {
    /// Reserves addresses for guest memory; there is none yet. Installs the
    /// process-wide fault handler the first time.
    ///
    /// # Errors
    /// `ENOMEM` if not even 64 MiB of addresses are to be had (`RLIMIT_AS`).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            space: Arc::new(Space::new()?),
            ranges: RwLock::default(),
            changes: AtomicU64::new(0),
            watchers: Mutex::default(),
            changing: Mutex::default(),
        })
    }

    /// Puts `backing` at `span`, for as long as the result exists.
    ///
    /// # Errors
    /// If the range is not of whole pages, if its file cannot be mapped or ends
    /// before the range does, if there are too many ranges. Nothing has changed
    /// then.
    pub fn map(
        self: &Arc<Self>,
        span: Span<Gpa>,
        rights: Rights,
        backing: Backing,
    ) -> Result<GuestRange, MapError> {
        let _changing = self.begin_change();
        let added = self.write_ranges().add(&self.space, span, rights, backing);
        let (id, is_new) = added?;
        if is_new {
            self.changed(span);
        }
        Ok(GuestRange {
            memory: Arc::clone(self),
            id,
            span,
        })
    }

    /// Has `watcher` told of changes, until it is dropped.
    pub fn watch(&self, watcher: Weak<dyn RangeWatcher>) {
        self.lock_watchers().push(watcher);
    }

    fn begin_change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_watchers(&self) -> MutexGuard<'_, Vec<Weak<dyn RangeWatcher>>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, span: Span<Gpa>) {
        self.changes.fetch_add(1, Ordering::Release);
        let mut watchers = self.lock_watchers();
        watchers.retain(|watcher| watcher.strong_count() > 0);
        let told: Vec<_> = watchers.iter().filter_map(Weak::upgrade).collect();
        drop(watchers);
        for watcher in told {
            watcher.changed(span);
        }
    }

    /// A number that changes with every change of ranges.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The first piece of memory at `from` or above that a file holds; for who
    /// gives the file to somebody else.
    pub fn backed_from(&self, from: Gpa) -> Option<Backed> {
        self.read_ranges().backed_from(from.0)
    }

    fn read_ranges(&self) -> RwLockReadGuard<'_, Ranges> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_ranges(&self) -> RwLockWriteGuard<'_, Ranges> {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does an access of `length` bytes piece by piece, by the list of ranges.
    /// No lock is held while `one` runs.
    #[cold]
    fn by_pieces(
        &self,
        address: u64,
        length: usize,
        mut one: impl FnMut(&Piece, u64, usize) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let (mut at, mut left) = (address, length);
        while left > 0 {
            let piece = self.read_ranges().piece(at);
            let (last, piece) = piece.ok_or(MemoryError::Absent { address: at })?;
            let there = usize::try_from(last.saturating_sub(at)).unwrap_or(usize::MAX);
            let now = there.saturating_add(1).min(left);
            one(&piece, at, now)?;
            left = left.saturating_sub(now);
            match at.checked_add(now as u64) {
                Some(next) => at = next,
                None if left == 0 => {}
                None => return Err(MemoryError::Absent { address: u64::MAX }),
            }
        }
        Ok(())
    }

    #[cold]
    fn read_pieces(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let mut rest = into;
        self.by_pieces(address, rest.len(), |piece, at, length| {
            let all = std::mem::take(&mut rest);
            let (now, later) = all.split_at_mut_checked(length).unwrap_or_default();
            rest = later;
            match piece {
                Piece::Near => self.space.window().read(at, now),
                Piece::Far(far, offset) => far.read(at, *offset, now),
                Piece::Remote(remote) => remote.read(Gpa(at), now),
            }
        })
    }

    #[cold]
    fn write_pieces(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let mut rest = from;
        self.by_pieces(address, rest.len(), |piece, at, length| {
            let (now, later) = rest.split_at_checked(length).unwrap_or_default();
            rest = later;
            match piece {
                Piece::Near => self.space.window().write(at, now),
                Piece::Far(far, offset) => far.write(at, *offset, now),
                Piece::Remote(remote) => remote.write(Gpa(at), now),
            }
        })
    }

    /// The piece that an aligned word lies in.
    #[cold]
    fn piece_of_word(&self, address: u64, width: Width) -> Result<Piece, MemoryError> {
        check_aligned(address, width)?;
        let piece = self.read_ranges().piece(address);
        // Ranges are of whole pages: an aligned word lies in one.
        let (_, piece) = piece.ok_or(MemoryError::Absent { address })?;
        Ok(piece)
    }

    #[cold]
    fn load_piece(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        match self.piece_of_word(address, width)? {
            Piece::Near => self.space.window().load(address, width),
            Piece::Far(far, offset) => far.load(address, offset, width),
            Piece::Remote(remote) => {
                let mut bytes = [0; 8];
                remote.read(Gpa(address), low(&mut bytes, width))?;
                Ok(u64::from_le_bytes(bytes))
            }
        }
    }

    #[cold]
    fn store_piece(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        match self.piece_of_word(address, width)? {
            Piece::Near => self.space.window().store(address, width, value),
            Piece::Far(far, offset) => far.store(address, offset, width, value),
            Piece::Remote(remote) => {
                remote.write(Gpa(address), low(&mut value.to_le_bytes(), width))
            }
        }
    }

    #[cold]
    fn exchange_piece(
        &self,
        address: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        match self.piece_of_word(address, width)? {
            Piece::Near => {
                let window = self.space.window();
                window.compare_exchange(address, width, current, new)
            }
            Piece::Far(far, offset) => far.compare_exchange(address, offset, width, (current, new)),
            Piece::Remote(_) => Err(MemoryError::NotAtomic { address }),
        }
    }
}

/// What is absent in the window may be elsewhere.
impl Memory for GuestMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        match self.space.near_read(address, into) {
            Err(MemoryError::Absent { .. }) => self.read_pieces(address, into),
            done => done,
        }
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        match self.space.near_write(address, from) {
            Err(MemoryError::Absent { .. }) => self.write_pieces(address, from),
            done => done,
        }
    }

    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        let near = match width {
            // Said once more, for walks of page tables: without a branch on it.
            Width::Qword => self.space.near_load(address, Width::Qword),
            width => self.space.near_load(address, width),
        };
        match near {
            Some(value) => Ok(value),
            None => self.load_piece(address, width),
        }
    }

    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        match self.space.near_store(address, width, value) {
            true => Ok(()),
            false => self.store_piece(address, width, value),
        }
    }

    /// [`MemoryError::NotAtomic`] in a range without a file.
    fn compare_exchange(
        &self,
        address: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        match self.space.near_exchange(address, width, current, new) {
            Err(MemoryError::Absent { .. }) => self.exchange_piece(address, width, current, new),
            done => done,
        }
    }
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let spans = self.read_ranges().spans();
        f.debug_struct("GuestMemory")
            .field("ranges", &spans)
            .finish_non_exhaustive()
    }
}

/// One mapped range of guest memory. Dropping it takes the range away, unless
/// an equal one is still there.
#[must_use = "a range that is dropped is gone"]
pub struct GuestRange {
    memory: Arc<GuestMemory>,
    id: u64,
    span: Span<Gpa>,
}

impl GuestRange {
    /// The addresses.
    pub fn span(&self) -> Span<Gpa> {
        self.span
    }
}

impl Drop for GuestRange {
    fn drop(&mut self) {
        let memory = &self.memory;
        let changing = memory.begin_change();
        let gone = memory.write_ranges().remove(&memory.space, self.id);
        if gone.is_some() {
            memory.changed(self.span);
        }
        drop(changing);
        // What it held is let go without the lock: a remote's end may be long.
        drop(gone);
    }
}

impl std::fmt::Debug for GuestRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("GuestRange").field(&self.span).finish()
    }
}

/// The bytes that an access of `width` moves.
fn low(bytes: &mut [u8; 8], width: Width) -> &mut [u8] {
    match width {
        Width::Byte => &mut bytes[..1],
        Width::Word => &mut bytes[..2],
        Width::Dword => &mut bytes[..4],
        Width::Qword => &mut bytes[..],
    }
}
