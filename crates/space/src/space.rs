//! The one door to an address space: writers behind a lock, readers beside it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_dma::{Access, Gate, InFlight, Iova, Rights, Span};

use crate::areas::{Area, AreaId, Areas};
use crate::books::{Books, NONE};
use crate::edit::{Edit, Full, Spot, State, first_in};
use crate::ranges::Ranges;
use crate::table::Table;
use crate::{AllowError, FillError, Hit, MapError, Miss, ReserveError, Segment};

/// Bytes that the translation tables of one space may take unless its maker
/// says otherwise: 4 GiB, enough for 65,535 pages of 4 KiB as far apart as can
/// be, or for 200 million side by side.
pub const DEFAULT_TABLE_LIMIT: u64 = 4 << 30;

/// Automatic placement leaves out the first and the last page of the space.
/// Linux 7.2 `iopt_alloc_iova` (drivers/iommu/iommufd/io_pagetable.c).
const EDGE: u64 = 4096;

/// An I/O address space whose areas carry a `T` each.
///
/// Changes are made one at a time under a lock of its own; who withdraws
/// output ([`fill`](Self::fill) over another, [`clear`](Self::clear),
/// [`revoke`](Self::revoke), [`unmap`](Self::unmap)) then waits for a grace of
/// the gate before the memory behind it may go. [`lookup`](Self::lookup) takes
/// no lock. While it changes, a range of several pages may be seen partly as
/// it was and partly as it will be.
pub struct AddressSpace<T> {
    table: Table,
    writer: Mutex<Writer<T>>,
}

struct Writer<T> {
    books: Books,
    areas: Areas<T>,
    ranges: Ranges,
    search: Option<Search>,
}

/// What a search for free space found out: a request like this one finds
/// nothing below `from`.
struct Search {
    length: u64,
    alignment: u64,
    offset: u64,
    from: u64,
}

impl<T> AddressSpace<T> {
    /// An empty space whose readers enter `gate`, with
    /// [`DEFAULT_TABLE_LIMIT`].
    pub fn new(gate: Arc<Gate>) -> Self {
        Self::with_table_limit(gate, DEFAULT_TABLE_LIMIT)
    }

    /// An empty space whose tables hold at most `bytes` of nodes. Nodes are
    /// allocated in groups that double, so memory may be up to twice that.
    pub fn with_table_limit(gate: Arc<Gate>, bytes: u64) -> Self {
        Self {
            table: Table::new(),
            writer: Mutex::new(Writer {
                books: Books::new(gate, bytes),
                areas: Areas::new(),
                ranges: Ranges::default(),
                search: None,
            }),
        }
    }

    /// Bytes of nodes that the tables hold, free ones included: what
    /// [`with_table_limit`](Self::with_table_limit) limits.
    pub fn table_bytes(&self) -> u64 {
        self.writer().books.bytes()
    }

    /// Reserves `span` for `owner`, a number of the caller's choice. Others,
    /// and the same owner, may have reserved the same bytes. Refused, without
    /// effect, where an area or an allowed range is.
    pub fn reserve(&self, owner: u64, span: Span) -> Result<(), ReserveError> {
        let mut writer = self.writer();
        if let Some(area) = writer.first_in(&self.table, span) {
            return Err(ReserveError::Mapped(area));
        }
        if let Some(allowed) = writer.ranges.allowed_in(span) {
            return Err(ReserveError::Allowed(allowed));
        }
        writer.ranges.reserve(owner, span);
        Ok(())
    }

    /// Drops everything that `owner` reserved.
    pub fn release(&self, owner: u64) {
        let mut writer = self.writer();
        writer.ranges.release(owner);
        writer.search = None;
    }

    /// Replaces the allow list, which bounds automatic placement and keeps
    /// reservations away; an empty one allows everything. On an error the old
    /// list stands.
    pub fn set_allowed(&self, allowed: &[Span]) -> Result<(), AllowError> {
        let mut writer = self.writer();
        writer.ranges.set_allowed(allowed)?;
        writer.search = None;
        Ok(())
    }

    /// Everything that is not reserved, in order, as few spans as can be.
    pub fn usable(&self) -> Vec<Span> {
        self.writer().ranges.usable()
    }

    /// Whether any byte of `span` is reserved.
    pub fn is_reserved(&self, span: Span) -> bool {
        self.writer().ranges.reserved_in(span).is_some()
    }

    /// Makes `span` an area, without output as yet. The allow list is not
    /// asked. On an error nothing has changed and `area` comes back.
    pub fn map(&self, span: Span, rights: Rights, area: T) -> Result<(), (MapError, T)> {
        let mut writer = self.writer();
        if let Err(error) = writer.place(&self.table, span, rights) {
            return Err((error, area));
        }
        writer.areas.insert(Area {
            span,
            rights,
            payload: area,
        });
        Ok(())
    }

    /// Gives the bytes from `first` on, which lie in one or more areas, their
    /// output: as many as `segments` have together. It may be called again to
    /// replace output. Revoked bytes stay revoked.
    pub fn fill(&self, first: Iova, segments: &[Segment]) -> Result<(), FillError> {
        let mut writer = self.writer();
        let Some(whole) = whole(first, segments)? else {
            return Ok(());
        };
        writer.check_mapped(&self.table, whole)?;
        let mut from = first.0;
        for segment in segments {
            let last = from.wrapping_add(segment.length.wrapping_sub(1));
            let state = State::Filled(segment.output);
            if let Some(span) = Span::new(Iova(from), Iova(last))
                && writer.restate(&self.table, span, state).is_err()
            {
                // Withdrawing output cannot fail.
                let _ = writer.restate(&self.table, whole, State::Unfilled);
                return Err(FillError::Full);
            }
            from = last.wrapping_add(1);
        }
        Ok(())
    }

    /// Withdraws the output of all areas' bytes in `span`; they miss with
    /// [`Miss::Unfilled`]. Revoked bytes stay revoked. With the tables at
    /// their limit, bytes beside `span` in the same area may lose theirs too.
    pub fn clear(&self, span: Span) {
        // Withdrawing output cannot fail.
        let _ = self.writer().restate(&self.table, span, State::Unfilled);
    }

    /// Takes away the memory behind all areas' bytes in `span`; they miss
    /// with [`Miss::Revoked`] until their area is unmapped. With the tables at
    /// their limit, bytes beside `span` in the same area may go too.
    pub fn revoke(&self, span: Span) {
        // Withdrawing output cannot fail.
        let _ = self.writer().restate(&self.table, span, State::Revoked);
    }

    /// Removes the area that starts at `first`; `None` if none does.
    pub fn unmap(&self, first: Iova) -> Option<Area<T>> {
        self.writer().unmap(&self.table, first)
    }

    /// Cuts the area that contains `at` in two, of which the second starts
    /// there; without one, and where one starts there, nothing happens. Readers
    /// see no change. `divide` gets the area as it was and says what the second
    /// keeps; the space is locked meanwhile. With the tables at their limit
    /// nothing has changed.
    pub fn split(&self, at: Iova, divide: impl FnOnce(&mut Area<T>) -> T) -> Result<(), MapError> {
        self.writer().split(&self.table, at, divide)
    }

    /// The area that contains `iova`.
    pub fn area_at(&self, iova: Iova) -> Option<(Span, Rights)> {
        self.with_area(iova, |area| (area.span, area.rights))
    }

    /// The lowest area with a byte at or above `from`.
    pub fn next_area(&self, from: Iova) -> Option<(Span, Rights)> {
        self.area_in(Span::new(from, Iova(u64::MAX))?)
    }

    /// The lowest area that shares a byte with `span`: quick where `span` is
    /// short, however empty the rest of the space is.
    pub fn area_in(&self, span: Span) -> Option<(Span, Rights)> {
        let writer = self.writer();
        let id = first_in(&self.table, &writer.books, span)?;
        writer.areas.get(id).map(|area| (area.span, area.rights))
    }

    /// Calls `f` with the area that contains `iova`. It may change the
    /// payload; span and rights are put back as they were. The space is
    /// locked meanwhile, so `f` must not call it.
    pub fn with_area<R>(&self, iova: Iova, f: impl FnOnce(&mut Area<T>) -> R) -> Option<R> {
        let mut writer = self.writer();
        let id = writer.at(&self.table, iova)?;
        let area = writer.areas.get_mut(id)?;
        let (span, rights) = (area.span, area.rights);
        let answer = f(area);
        (area.span, area.rights) = (span, rights);
        Some(answer)
    }

    /// How many areas there are.
    pub fn area_count(&self) -> usize {
        self.writer().areas.count()
    }

    /// Bytes of all areas; `u64::MAX` if they are all 2^64.
    pub fn mapped_bytes(&self) -> u64 {
        u64::try_from(self.writer().areas.bytes()).unwrap_or(u64::MAX)
    }

    /// The lowest address with `length` free bytes whose remainder by
    /// `alignment` is `offset`: within the allow list if there is one, else
    /// wherever is not reserved, never in the first or the last page of the
    /// space. `None` if there is none, if `length` or `alignment` is 0, or if
    /// `offset` is not below `alignment`.
    pub fn find_free(&self, length: u64, alignment: u64, offset: u64) -> Option<Iova> {
        if length == 0 || offset >= alignment {
            return None;
        }
        self.writer()
            .find_free(&self.table, length, alignment, offset)
    }

    /// Translates: the longest contiguous run from the first byte of `span`
    /// on, across pages and areas, no longer than `span`; or why the first
    /// byte misses. `guard` must be of the space's gate; the output may be
    /// used until it is dropped. Takes no lock and allocates nothing.
    #[inline]
    pub fn lookup(&self, _guard: &InFlight<'_>, span: Span, access: Access) -> Result<Hit, Miss> {
        self.table.lookup(span, access)
    }

    fn writer(&self) -> MutexGuard<'_, Writer<T>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The range that `segments` fill from `first` on; `None` if they are none.
fn whole(first: Iova, segments: &[Segment]) -> Result<Option<Span>, FillError> {
    let mut whole = None;
    let mut next = Some(first);
    for segment in segments {
        let from = next.ok_or(FillError::Malformed)?;
        let span = Span::with_length(from, segment.length).ok_or(FillError::Malformed)?;
        segment
            .output
            .checked_add(segment.length.wrapping_sub(1))
            .ok_or(FillError::Malformed)?;
        next = span.last().checked_add(1);
        whole = Span::new(first, span.last());
    }
    Ok(whole)
}

impl<T> Writer<T> {
    fn at(&self, table: &Table, iova: Iova) -> Option<AreaId> {
        Spot::find(table, &self.books, iova.0)
            .map(|spot| spot.owner)
            .filter(|&id| id != NONE)
    }

    fn first_in(&self, table: &Table, span: Span) -> Option<Span> {
        let id = first_in(table, &self.books, span)?;
        self.areas.get(id).map(|area| area.span)
    }

    fn restate(&mut self, table: &Table, span: Span, state: State) -> Result<(), Full> {
        let books = &mut self.books;
        Edit { table, books }.restate(&self.areas, span, state)
    }

    /// Places an area in the table that is still to be inserted.
    fn place(&mut self, table: &Table, span: Span, rights: Rights) -> Result<(), MapError> {
        if let Some(area) = self.first_in(table, span) {
            return Err(MapError::Overlaps(area));
        }
        if let Some(reserved) = self.ranges.reserved_in(span) {
            return Err(MapError::Reserved(reserved));
        }
        let id = self.areas.next_id().ok_or(MapError::Full)?;
        let books = &mut self.books;
        let mut edit = Edit { table, books };
        if edit.place(span, id, rights).is_err() {
            edit.remove(span);
            return Err(MapError::Full);
        }
        Ok(())
    }

    fn unmap(&mut self, table: &Table, first: Iova) -> Option<Area<T>> {
        let id = self.at(table, first)?;
        let area = self
            .areas
            .get(id)
            .filter(|area| area.span.first() == first)?;
        let span = Span::new(first, area.span.last())?;
        let books = &mut self.books;
        Edit { table, books }.remove(span);
        if let Some(search) = &mut self.search {
            let freed = first.0.saturating_sub(search.length);
            search.from = search.from.min(freed);
        }
        self.areas.remove(id)
    }

    fn split(
        &mut self,
        table: &Table,
        at: Iova,
        divide: impl FnOnce(&mut Area<T>) -> T,
    ) -> Result<(), MapError> {
        let Some(area) = self.at(table, at).and_then(|id| self.areas.get(id)) else {
            return Ok(());
        };
        let (first, last) = (area.span.first(), area.span.last());
        let Some(second) = Span::new(at, last).filter(|_| first < at) else {
            return Ok(());
        };
        let old = self.at(table, at).unwrap_or(NONE);
        let new = self.areas.next_id().ok_or(MapError::Full)?;
        let books = &mut self.books;
        let given = Edit { table, books }.give(second, new);
        given.map_err(|_| MapError::Full)?;
        self.areas.split(old, at, divide);
        Ok(())
    }

    /// Whether areas have all of `span`.
    fn check_mapped(&self, table: &Table, span: Span) -> Result<(), FillError> {
        let mut from = span.first();
        loop {
            let area = self
                .at(table, from)
                .and_then(|id| self.areas.get(id))
                .ok_or(FillError::NotMapped(from))?;
            if area.span.last() >= span.last() {
                return Ok(());
            }
            from = area
                .span
                .last()
                .checked_add(1)
                .ok_or(FillError::NotMapped(from))?;
        }
    }

    fn find_free(
        &mut self,
        table: &Table,
        length: u64,
        alignment: u64,
        offset: u64,
    ) -> Option<Iova> {
        let known = self.search.as_ref().filter(|search| {
            (search.length, search.alignment, search.offset) == (length, alignment, offset)
        });
        let from = known.map_or(0, |search| search.from).max(EDGE);
        let everything = [Span::whole()];
        let windows = match self.ranges.allowed() {
            [] => &everything[..],
            allowed => allowed,
        };
        let found = windows.iter().find_map(|window| {
            let first = window.first().0.max(from);
            let last = window.last().0.min(u64::MAX.wrapping_sub(EDGE));
            let window = Span::new(Iova(first), Iova(last))?;
            self.find_in(table, window, length, alignment, offset)
        });
        self.search = Some(Search {
            length,
            alignment,
            offset,
            from: found.map_or(u64::MAX, |found| found.0),
        });
        found
    }

    fn find_in(
        &self,
        table: &Table,
        window: Span,
        length: u64,
        alignment: u64,
        offset: u64,
    ) -> Option<Iova> {
        let mut from = window.first();
        loop {
            let from_offset = from.0.checked_rem(alignment)?;
            let step = match offset.checked_sub(from_offset) {
                Some(step) => step,
                None => offset.wrapping_add(alignment.wrapping_sub(from_offset)),
            };
            let candidate = Span::with_length(from.checked_add(step)?, length)?;
            if !window.encloses(&candidate) {
                return None;
            }
            let hit = self
                .ranges
                .reserved_in(candidate)
                .or_else(|| self.first_in(table, candidate));
            match hit {
                None => return Some(candidate.first()),
                Some(hit) => from = hit.last().checked_add(1)?,
            }
        }
    }
}
