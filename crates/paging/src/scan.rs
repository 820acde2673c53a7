//! What a range maps, as contiguous runs.

use std::ops::ControlFlow;

use crate::{ENTRIES_AT_ONCE, Entry, Format, Leaves, Permissions, Tables};

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
/// What is told allows no more than `permissions`, and runs are told apart by
/// these only: [`Permissions::ALL`], or those that the caller asks for.
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
    permissions: Permissions,
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
            permissions,
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
        let format = *self.format;
        let covers = 1_u64.unbounded_shl(format.shape(table.level).shift);
        let known = format.leaves(table.level);
        while let Some((&entry, rest)) = entries.split_first() {
            let mut taken = 1_usize;
            match format.decode(entry, table.level) {
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
                    let mask = 1_u64.unbounded_shl(shift).wrapping_sub(1);
                    self.add(Mapped {
                        first: table.begins,
                        last: table.begins.wrapping_add(covers.wrapping_sub(1)),
                        output: address & !mask | table.begins & mask,
                        permissions: table.permissions & permissions,
                    })?;
                    let next = table.begins.wrapping_add(covers);
                    let alike = self.alike(entry, rest, (next, covers), known)?;
                    taken = taken.saturating_add(alike);
                }
            }
            entries = entries.get(taken..).unwrap_or_default();
            let taken = u64::try_from(taken).unwrap_or(1);
            table.begins = table.begins.wrapping_add(taken.wrapping_mul(covers));
        }
        ControlFlow::Continue(())
    }

    /// Adds those of `rest` that are leaves of `level` like `entry`, which is
    /// pending, or absent, without decoding them; returns how many. The first
    /// covers what begins at `next`.
    #[inline]
    fn alike(
        &mut self,
        entry: u64,
        mut rest: &[u64],
        (mut next, covers): (u64, u64),
        leaves: Option<Leaves>,
    ) -> ControlFlow<Scanned, usize> {
        let (Some(leaves), Some(mut run)) = (leaves, self.pending) else {
            return ControlFlow::Continue(0);
        };
        let all = rest.len();
        let flags = entry & leaves.flags;
        let mut follows = run.output.wrapping_add(next.wrapping_sub(run.first));
        while let Some((&entry, after)) = rest.split_first() {
            let found = entry & leaves.flags;
            if found != flags {
                if found != 0 {
                    break;
                }
                rest = after;
                // Absent, so that what comes next follows nothing.
                follows = u64::MAX;
                next = next.wrapping_add(covers);
                continue;
            }
            rest = after;
            let output = entry & leaves.address;
            let mut bytes = covers;
            if output == follows {
                let more = row(leaves, entry, after, covers);
                rest = after.get(more..).unwrap_or_default();
                let more = u64::try_from(more).unwrap_or(0);
                bytes = covers.wrapping_add(more.wrapping_mul(covers));
            } else {
                if (self.tell)(run).is_break() {
                    return ControlFlow::Break(Scanned::Stopped);
                }
                run.first = next;
                run.output = output;
            }
            follows = output.wrapping_add(bytes);
            next = next.wrapping_add(bytes);
            run.last = next.wrapping_sub(1);
        }
        run.last = run.last.min(self.last);
        self.pending = Some(run);
        ControlFlow::Continue(all.wrapping_sub(rest.len()))
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

/// How many of `after` continue the leaf `entry` page after page: by eight, in
/// a form that becomes vector instructions.
#[inline]
fn row(leaves: Leaves, entry: u64, after: &[u64], covers: u64) -> usize {
    let meaning = leaves.address | leaves.flags;
    let flags = entry & leaves.flags;
    let mut expected = entry & meaning;
    let mut count = 0_usize;
    for eight in after.chunks_exact(8) {
        let mut different = 0;
        for entry in eight {
            expected = expected.wrapping_add(covers);
            different |= entry & meaning ^ expected;
        }
        // An address may grow into bits that are reserved.
        if different != 0 || expected & leaves.flags != flags {
            break;
        }
        count = count.wrapping_add(8);
    }
    count
}
