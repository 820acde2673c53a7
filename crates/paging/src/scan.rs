//! What a range maps, as contiguous runs.

use std::ops::ControlFlow;

use crate::{ENTRIES_AT_ONCE, Entry, Format, Permissions, Tables};

/// A contiguous piece of input addresses that leads to a contiguous piece of
/// output with equal rights, as long as the scan could make it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// The first input address.
    pub first: u64,
    /// The last input address, included.
    pub last: u64,
    /// Where the first one leads.
    pub output: u64,
    /// What all entries on the way allow.
    pub permissions: Permissions,
}

/// How far a scan came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scanned {
    /// To the end of the range.
    Whole,
    /// Through its budget: everything below this address has been told. A scan
    /// from here on goes on where this one ended; a run that spans the place
    /// comes in two.
    Until(u64),
    /// The one who was told wanted no more.
    Stopped,
}

/// Tells `tell` of everything that the tables at `root` map between `first`
/// and `last`, both included, in the order of the addresses, clipped to the
/// range. An entry that is reserved or cannot be read maps nothing.
///
/// Reads no more than `budget` pieces of tables, of [`ENTRIES_AT_ONCE`] entries
/// or fewer (but as many as there are levels, so that it comes further); skips
/// what is empty without reading below it.
/// No flag is set.
pub fn scan<F: Format, T: Tables>(
    format: &F,
    root: u64,
    tables: &T,
    (first, last): (u64, u64),
    budget: usize,
    tell: impl FnMut(Mapped) -> ControlFlow<()>,
) -> Scanned {
    let mut scan = Scan {
        format,
        tables,
        first,
        last,
        budget: budget.max(usize::from(format.top())),
        pending: None,
        tell,
    };
    for (lowest, highest) in format.input().parts().into_iter().flatten() {
        scan.first = first.max(lowest);
        scan.last = last.min(highest);
        if scan.first > scan.last {
            continue;
        }
        let mut table = Table {
            address: root,
            level: format.top(),
            begins: 0,
            permissions: Permissions::ALL,
        };
        // The bits above those of the top table's index.
        let top = format.shape(table.level);
        let covered = 1_u64.unbounded_shl(top.shift.saturating_add(top.bits));
        table.begins = scan.first & !covered.wrapping_sub(1);
        match scan.table(table, &mut []) {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(Scanned::Until(at)) => {
                return match scan.flush() {
                    ControlFlow::Continue(()) => Scanned::Until(at),
                    ControlFlow::Break(scanned) => scanned,
                };
            }
            ControlFlow::Break(scanned) => return scanned,
        }
    }
    match scan.flush() {
        ControlFlow::Continue(()) => Scanned::Whole,
        ControlFlow::Break(scanned) => scanned,
    }
}

/// A table and the first address of what it covers.
#[derive(Clone, Copy)]
struct Table {
    address: u64,
    level: u8,
    begins: u64,
    permissions: Permissions,
}

struct Scan<'a, F, T, Tell> {
    format: &'a F,
    tables: &'a T,
    first: u64,
    last: u64,
    budget: usize,
    pending: Option<Mapped>,
    tell: Tell,
}

impl<F: Format, T: Tables, Tell: FnMut(Mapped) -> ControlFlow<()>> Scan<'_, F, T, Tell> {
    /// One table and all below it; recursion is as deep as there are levels.
    /// `leaves` is room for the entries of a lowest table, or empty.
    fn table(&mut self, table: Table, leaves: &mut [u64]) -> ControlFlow<Scanned> {
        let shape = self.format.shape(table.level);
        let covers = 1_u64.unbounded_shl(shape.shift);
        let index = |address: u64| {
            address
                .wrapping_sub(table.begins)
                .unbounded_shr(shape.shift)
        };
        let entries = 1_u64.unbounded_shl(shape.bits);
        let mut next = if self.first > table.begins {
            index(self.first)
        } else {
            0
        };
        let highest = index(self.last).min(entries.wrapping_sub(1));
        while next <= highest {
            let begins = table.begins.wrapping_add(next.wrapping_mul(covers));
            let Some(budget) = self.budget.checked_sub(1) else {
                return ControlFlow::Break(Scanned::Until(begins.max(self.first)));
            };
            self.budget = budget;
            let wanted = highest.wrapping_sub(next).saturating_add(1);
            let count = usize::try_from(wanted).map_or(ENTRIES_AT_ONCE, |w| w.min(ENTRIES_AT_ONCE));
            let at = table.address.wrapping_add(next.wrapping_mul(8));
            let piece = Table { begins, ..table };
            if count == 1 {
                self.piece(at, &mut [0], piece, leaves)?;
            } else if table.level == 1
                && let Some(chunk) = leaves.get_mut(..count)
            {
                self.piece(at, chunk, piece, &mut [])?;
            } else {
                self.many(at, count, piece)?;
            }
            next = next.wrapping_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        ControlFlow::Continue(())
    }

    /// Up to [`ENTRIES_AT_ONCE`] entries, with room for all lowest tables below:
    /// to clear it for each takes as long as to read it.
    #[inline(never)]
    fn many(&mut self, at: u64, count: usize, piece: Table) -> ControlFlow<Scanned> {
        let mut buffer = [0_u64; ENTRIES_AT_ONCE];
        let chunk = buffer.get_mut(..count).unwrap_or_default();
        match piece.level {
            2 => self.piece(at, chunk, piece, &mut [0; ENTRIES_AT_ONCE]),
            _ => self.piece(at, chunk, piece, &mut []),
        }
    }

    fn piece(
        &mut self,
        at: u64,
        chunk: &mut [u64],
        piece: Table,
        leaves: &mut [u64],
    ) -> ControlFlow<Scanned> {
        match self.tables.load_many(at, chunk) {
            Ok(()) => self.entries(chunk, piece, leaves),
            Err(_) => ControlFlow::Continue(()),
        }
    }

    /// Consecutive entries of a table, the first of which covers what begins at
    /// `table.begins`.
    fn entries(
        &mut self,
        mut entries: &[u64],
        mut table: Table,
        leaves: &mut [u64],
    ) -> ControlFlow<Scanned> {
        let covers = 1_u64.unbounded_shl(self.format.shape(table.level).shift);
        while let Some((&entry, rest)) = entries.split_first() {
            let mut taken = 1_usize;
            match self.format.decode(entry, table.level) {
                Entry::Absent | Entry::Reserved => {}
                Entry::Table {
                    address,
                    level,
                    permissions,
                } => {
                    if level < table.level && level > 0 {
                        let below = Table {
                            address,
                            level,
                            begins: table.begins,
                            permissions: table.permissions & permissions,
                        };
                        self.table(below, leaves)?;
                    }
                }
                Entry::Leaf {
                    address,
                    shift,
                    permissions,
                } => {
                    taken = taken.saturating_add(self.alike(entry, rest, table.level, covers));
                    let mask = 1_u64.unbounded_shl(shift).wrapping_sub(1);
                    let bytes = u64::try_from(taken).unwrap_or(1).wrapping_mul(covers);
                    self.add(Mapped {
                        first: table.begins,
                        last: table.begins.wrapping_add(bytes.wrapping_sub(1)),
                        output: address & !mask | table.begins & mask,
                        permissions: table.permissions & permissions,
                    })?;
                }
            }
            entries = entries.get(taken..).unwrap_or_default();
            let taken = u64::try_from(taken).unwrap_or(1);
            table.begins = table.begins.wrapping_add(taken.wrapping_mul(covers));
        }
        ControlFlow::Continue(())
    }

    /// How many of `rest` continue the leaf `entry`, page after page, without
    /// being decoded one by one.
    #[inline]
    fn alike(&self, entry: u64, rest: &[u64], level: u8, covers: u64) -> usize {
        let Some(meaning) = self.format.meaning(level) else {
            return 0;
        };
        let start = entry & meaning;
        let mut expected = start;
        let next = rest.first().map(|next| next & meaning);
        if next != Some(start.wrapping_add(covers)) {
            return 0;
        }
        let mut same = 0_usize;
        // By eight, in a form that becomes vector instructions.
        for eight in rest.chunks_exact(8) {
            let mut different = 0;
            for entry in eight {
                expected = expected.wrapping_add(covers);
                different |= entry & meaning ^ expected;
            }
            if different != 0 {
                break;
            }
            same = same.wrapping_add(8);
        }
        let done = u64::try_from(same).unwrap_or(0);
        expected = start.wrapping_add(done.wrapping_mul(covers));
        for entry in rest.get(same..).unwrap_or_default() {
            expected = expected.wrapping_add(covers);
            if entry & meaning != expected {
                break;
            }
            same = same.wrapping_add(1);
        }
        // An address may grow into bits that are reserved: then the last one
        // is no leaf, and each is looked at by itself.
        let last = same.checked_sub(1).and_then(|last| rest.get(last));
        match last.map(|&last| self.format.decode(last, level)) {
            Some(Entry::Leaf { .. }) => same,
            _ => 0,
        }
    }

    /// Adds a piece behind what is pending, or tells of that and begins anew.
    #[inline]
    fn add(&mut self, mut piece: Mapped) -> ControlFlow<Scanned> {
        let cut = self.first.saturating_sub(piece.first);
        piece.first = piece.first.wrapping_add(cut);
        piece.output = piece.output.wrapping_add(cut);
        piece.last = piece.last.min(self.last);
        if let Some(pending) = &mut self.pending {
            let bytes = pending.last.wrapping_sub(pending.first).wrapping_add(1);
            if pending.last.wrapping_add(1) == piece.first
                && pending.output.wrapping_add(bytes) == piece.output
                && pending.permissions == piece.permissions
            {
                pending.last = piece.last;
                return ControlFlow::Continue(());
            }
        }
        self.flush()?;
        self.pending = Some(piece);
        ControlFlow::Continue(())
    }

    #[inline]
    fn flush(&mut self) -> ControlFlow<Scanned> {
        match self.pending.take() {
            Some(pending) => (self.tell)(pending).map_break(|()| Scanned::Stopped),
            None => ControlFlow::Continue(()),
        }
    }
}
