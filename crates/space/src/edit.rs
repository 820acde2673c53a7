//! Changes of the radix: an area is placed and removed, its output restated.
//!
//! Each range is handled from the root down, whole slots at the highest level
//! that fits. A node is filled before a slot names it, and leaves the radix
//! before it is retired, so a reader meets either state of an address that
//! changes and never anything else of one that does not.

use iogate_dma::{Iova, Rights, Span};

use crate::areas::{AreaId, Areas};
use crate::books::{Books, CHILD, NONE};
use crate::slot::Content;
use crate::table::{FIRST_LARGE, Found, Node, Root, TOP, Table, place, reach, slot_mask};

/// The tables have reached their limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Full;

/// What the bytes of an area are to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Unfilled,
    /// The output of the first byte of the range restated.
    Filled(u64),
    Revoked,
}

/// A part of a range: the place of a slot, and the bytes of it that count.
struct Part {
    place: usize,
    first: u64,
    last: u64,
    whole: bool,
}

impl Part {
    /// The part of `first` to `last` that is in the slot at `place` of a node
    /// that holds both.
    fn new(level: u32, place: usize, first: u64, last: u64) -> Self {
        let mask = slot_mask(level);
        let base = if level >= TOP {
            0
        } else {
            first & !slot_mask(level.wrapping_add(1))
        };
        let number = u64::try_from(place).unwrap_or(u64::MAX);
        let start = base | number.wrapping_shl(crate::table::shift(level));
        let end = start | mask;
        Self {
            place,
            first: first.max(start),
            last: last.min(end),
            whole: first <= start && end <= last,
        }
    }
}

/// A slot that is no child, who owns it, and the addresses it stands for.
#[derive(Clone, Copy)]
pub(crate) struct Spot {
    at: Root,
    place: usize,
    first: u64,
    last: u64,
    pub(crate) owner: AreaId,
}

impl Spot {
    /// The slot that holds `address`; `None` where the radix does not reach.
    pub(crate) fn find(table: &Table, books: &Books, address: u64) -> Option<Self> {
        let found = table.find(address)?;
        let Found {
            level, node, place, ..
        } = found;
        let owner = match found.content {
            Content::Empty => NONE,
            _ => books.owner(level, node, place),
        };
        let mask = slot_mask(level);
        Some(Self {
            at: Root { level, node },
            place,
            first: address & !mask,
            last: address | mask,
            owner,
        })
    }

    pub(crate) fn encloses(&self, span: Span) -> bool {
        self.first <= span.first().0 && span.last().0 <= self.last
    }

    fn is(&self, span: Span) -> bool {
        self.first == span.first().0 && span.last().0 == self.last
    }
}

/// The radix with its books.
pub(crate) struct Edit<'a> {
    pub(crate) table: &'a Table,
    pub(crate) books: &'a mut Books,
}

impl Edit<'_> {
    /// Gives `span`, where no area is, to the area `id`. On [`Full`] a part
    /// is placed, which [`remove`](Self::remove) takes away.
    pub(crate) fn place(&mut self, span: Span, id: AreaId, rights: Rights) -> Result<(), Full> {
        if let Some(spot) = Spot::find(self.table, self.books, span.first().0)
            && spot.is(span)
        {
            let Root { level, node } = spot.at;
            self.set(level, node, spot.place, id, Content::Unfilled(rights));
            return Ok(());
        }
        let root = self.grow(span.last().0)?;
        self.place_in(root, span.first().0, span.last().0, id, rights)
    }

    /// Empties `span`, of which no area has only a part in it. The nodes on
    /// the way to its first byte stay even if they are empty, until the next
    /// call is for another place: who maps and unmaps one page again and
    /// again finds them there.
    pub(crate) fn remove(&mut self, span: Span) {
        let Some(root) = self.table.root() else {
            return;
        };
        let (first, last) = (span.first().0, span.last().0.min(reach(root.level)));
        if first > last {
            return;
        }
        match Spot::find(self.table, self.books, first) {
            Some(spot) if spot.is(span) => {
                let Root { level, node } = spot.at;
                self.set(level, node, spot.place, NONE, Content::Empty);
            }
            _ => self.remove_in(root, first, last, Some(first)),
        }
        if let Some(before) = self.books.idle.replace(first)
            && before | slot_mask(FIRST_LARGE) != first | slot_mask(FIRST_LARGE)
        {
            self.prune(before);
        }
    }

    /// Restates the areas' bytes in `span`, other than revoked ones. At the
    /// limit of the tables the pieces that cannot be cut are [`Full`] if
    /// output was wanted, and lose theirs as a whole if not.
    pub(crate) fn restate<T>(
        &mut self,
        areas: &Areas<T>,
        span: Span,
        state: State,
    ) -> Result<(), Full> {
        let first = span.first().0;
        if let Some(spot) = Spot::find(self.table, self.books, first)
            && spot.encloses(span)
        {
            let part = Part::new(spot.at.level, spot.place, first, span.last().0);
            return self.restate_slot(areas, spot.at, &part, spot.owner, state);
        }
        let Some(root) = self.table.root() else {
            return Ok(());
        };
        let last = span.last().0.min(reach(root.level));
        if first > last {
            return Ok(());
        }
        self.restate_in(areas, root, first, last, state)
    }

    /// Gives the bytes of one area from `span`'s first on, up to its last, to
    /// the area `id`: readers see no change. On [`Full`] nothing has changed.
    pub(crate) fn give(&mut self, span: Span, id: AreaId) -> Result<(), Full> {
        let first = span.first().0;
        while let Some(spot) = Spot::find(self.table, self.books, first)
            && spot.first != first
        {
            let Root { level, node } = spot.at;
            let slot = self.table.slot(level, node, spot.place).ok_or(Full)?;
            let now = slot.read();
            self.split(spot.at, spot.place, spot.owner, now)
                .ok_or(Full)?;
        }
        if let Some(root) = self.table.root() {
            self.give_in(root, first, span.last().0, id);
        }
        Ok(())
    }

    fn give_in(&mut self, at: Root, first: u64, last: u64, id: AreaId) {
        let Root { level, node } = at;
        let (mut from, to) = (place(level, first), place(level, last));
        while let Some((place, owner)) = self.books.next_used(level, node, from, to) {
            from = place.wrapping_add(1);
            if owner != CHILD {
                self.books.set_owner(level, node, place, id);
            } else if let Some(below) = self.child_root(at, place) {
                let part = Part::new(level, place, first, last);
                self.give_in(below, part.first, part.last, id);
            }
        }
    }

    /// A root that reaches `last`.
    fn grow(&mut self, last: u64) -> Result<Root, Full> {
        let Some(mut root) = self.table.root() else {
            let level = (FIRST_LARGE..TOP)
                .find(|level| last <= reach(*level))
                .unwrap_or(TOP);
            let node = self.books.take(self.table, level).ok_or(Full)?;
            let root = Root { level, node };
            self.table.set_root(Some(root));
            return Ok(root);
        };
        while reach(root.level) < last {
            let level = root.level.wrapping_add(1);
            let node = self.books.take(self.table, level).ok_or(Full)?;
            self.set(level, node, 0, CHILD, Content::Child(root.node));
            root = Root { level, node };
            self.table.set_root(Some(root));
        }
        Ok(root)
    }

    /// Takes away the nodes that [`remove`](Self::remove) left empty on the
    /// way to `address`.
    fn prune(&mut self, address: u64) {
        let Some(root) = self.table.root() else {
            return;
        };
        let byte = Span::new(Iova(address), Iova(address));
        if byte.is_some_and(|byte| first_in(self.table, self.books, byte).is_none()) {
            self.remove_in(root, address, address, None);
        }
    }

    fn place_in(
        &mut self,
        at: Root,
        first: u64,
        last: u64,
        id: AreaId,
        rights: Rights,
    ) -> Result<(), Full> {
        let Root { level, node } = at;
        for place in place(level, first)..=place(level, last) {
            let part = Part::new(level, place, first, last);
            let below = self.child_root(at, place);
            if part.whole {
                self.set(level, node, place, id, Content::Unfilled(rights));
                if let Some(empty) = below {
                    self.retire_all(empty);
                }
                continue;
            }
            let below = match below {
                Some(below) => below,
                None => {
                    let below = Root {
                        level: level.wrapping_sub(1),
                        node: self
                            .books
                            .take(self.table, level.wrapping_sub(1))
                            .ok_or(Full)?,
                    };
                    self.set(level, node, place, CHILD, Content::Child(below.node));
                    below
                }
            };
            self.place_in(below, part.first, part.last, id, rights)?;
        }
        Ok(())
    }

    fn remove_in(&mut self, at: Root, first: u64, last: u64, keep: Option<u64>) {
        let Root { level, node } = at;
        let (mut from, to) = (place(level, first), place(level, last));
        while let Some((place, owner)) = self.books.next_used(level, node, from, to) {
            from = place.wrapping_add(1);
            if owner != CHILD {
                self.set(level, node, place, NONE, Content::Empty);
            } else if let Some(below) = self.child_root(at, place) {
                let part = Part::new(level, place, first, last);
                self.remove_in(below, part.first, part.last, keep);
                if keep != Some(part.first) && self.books.used(below.level, below.node) == 0 {
                    self.set(level, node, place, NONE, Content::Empty);
                    self.books.retire(below.level, below.node);
                }
            }
        }
    }

    fn restate_in<T>(
        &mut self,
        areas: &Areas<T>,
        at: Root,
        first: u64,
        last: u64,
        state: State,
    ) -> Result<(), Full> {
        let Root { level, node } = at;
        let (mut from, to) = (place(level, first), place(level, last));
        while let Some((place, owner)) = self.books.next_used(level, node, from, to) {
            from = place.wrapping_add(1);
            let part = Part::new(level, place, first, last);
            let state = match state {
                State::Filled(output) => {
                    State::Filled(output.wrapping_add(part.first.wrapping_sub(first)))
                }
                other => other,
            };
            if owner != CHILD {
                self.restate_slot(areas, at, &part, owner, state)?;
            } else if let Some(below) = self.child_root(at, place) {
                match self.sole_owner(areas, below, &part) {
                    Some((id, rights)) if state == State::Revoked || !self.any_revoked(below) => {
                        self.set(level, node, place, id, content(rights, state));
                        self.retire_all(below);
                    }
                    _ => self.restate_in(areas, below, part.first, part.last, state)?,
                }
            }
        }
        Ok(())
    }

    /// Restates the part of a slot that one area owns.
    fn restate_slot<T>(
        &mut self,
        areas: &Areas<T>,
        at: Root,
        part: &Part,
        owner: AreaId,
        state: State,
    ) -> Result<(), Full> {
        let Root { level, node } = at;
        let (Some(slot), Some(area)) = (self.table.slot(level, node, part.place), areas.get(owner))
        else {
            return Ok(());
        };
        let now = slot.read();
        if matches!(now, Content::Revoked(_)) || now == content(area.rights, state) && part.whole {
            return Ok(());
        }
        if part.whole {
            slot.write(content(area.rights, state));
            return Ok(());
        }
        if matches!(now, Content::Unfilled(_)) && state == State::Unfilled {
            return Ok(());
        }
        match self.split(at, part.place, owner, now) {
            Some(below) => self.restate_in(areas, below, part.first, part.last, state),
            None if matches!(state, State::Filled(_)) => Err(Full),
            None => {
                slot.write(content(area.rights, state));
                Ok(())
            }
        }
    }

    /// Puts a node that says the same below a slot that one area owns.
    fn split(&mut self, at: Root, place: usize, owner: AreaId, now: Content) -> Option<Root> {
        let level = at.level.checked_sub(1)?;
        let node = self.books.take(self.table, level)?;
        let step = slot_mask(level).wrapping_add(1);
        let mut content = now;
        for below in 0..1_usize.wrapping_shl(crate::table::bits(level)) {
            self.set(level, node, below, owner, content);
            if let Content::Filled(rights, output) = content {
                content = Content::Filled(rights, output.wrapping_add(step));
            }
        }
        self.set(at.level, at.node, place, CHILD, Content::Child(node));
        Some(Root { level, node })
    }

    /// The one area that has everything in a slot, all of which counts, and
    /// its rights.
    fn sole_owner<T>(
        &self,
        areas: &Areas<T>,
        below: Root,
        part: &Part,
    ) -> Option<(AreaId, Rights)> {
        if !part.whole {
            return None;
        }
        let id = first_below(self.table, self.books, below, part.first, part.last)?;
        let area = areas.get(id)?;
        let span = Span::new(Iova(part.first), Iova(part.last))?;
        area.span.encloses(&span).then_some((id, area.rights))
    }

    fn any_revoked(&self, at: Root) -> bool {
        let count = 1_usize.wrapping_shl(crate::table::bits(at.level));
        (0..count).any(|place| {
            let slot = self.table.slot(at.level, at.node, place);
            match slot.map(crate::slot::Slot::read) {
                Some(Content::Revoked(_)) => true,
                Some(Content::Child(_)) => self
                    .child_root(at, place)
                    .is_some_and(|below| self.any_revoked(below)),
                _ => false,
            }
        })
    }

    fn retire_all(&mut self, at: Root) {
        for place in 0..1_usize.wrapping_shl(crate::table::bits(at.level)) {
            if let Some(below) = self.child_root(at, place) {
                self.retire_all(below);
            }
        }
        self.books.retire(at.level, at.node);
    }

    fn set(&mut self, level: u32, node: Node, place: usize, owner: AreaId, content: Content) {
        if let Some(slot) = self.table.slot(level, node, place) {
            slot.write(content);
        }
        self.books.set_owner(level, node, place, owner);
    }

    fn child(&self, level: u32, node: Node, place: usize) -> Option<Node> {
        child(self.table, self.books, level, node, place)
    }

    fn child_root(&self, at: Root, place: usize) -> Option<Root> {
        Some(Root {
            level: at.level.checked_sub(1)?,
            node: self.child(at.level, at.node, place)?,
        })
    }
}

fn content(rights: Rights, state: State) -> Content {
    match state {
        State::Unfilled => Content::Unfilled(rights),
        State::Filled(output) => Content::Filled(rights, output),
        State::Revoked => Content::Revoked(rights),
    }
}

fn child(table: &Table, books: &Books, level: u32, node: Node, place: usize) -> Option<Node> {
    if books.owner(level, node, place) != CHILD {
        return None;
    }
    match table.slot(level, node, place)?.read() {
        Content::Child(node) => Some(node),
        _ => None,
    }
}

/// The lowest area with a byte of `span`.
pub(crate) fn first_in(table: &Table, books: &Books, span: Span) -> Option<AreaId> {
    if let Some(spot) = Spot::find(table, books, span.first().0) {
        if spot.owner != NONE {
            return Some(spot.owner);
        }
        if spot.encloses(span) {
            return None;
        }
    }
    let root = table.root()?;
    let last = span.last().0.min(reach(root.level));
    if span.first().0 > last {
        return None;
    }
    first_below(table, books, root, span.first().0, last)
}

fn first_below(table: &Table, books: &Books, at: Root, first: u64, last: u64) -> Option<AreaId> {
    let (mut from, to) = (place(at.level, first), place(at.level, last));
    while let Some((place, owner)) = books.next_used(at.level, at.node, from, to) {
        if owner != CHILD {
            return Some(owner);
        }
        let part = Part::new(at.level, place, first, last);
        let below = Root {
            level: at.level.checked_sub(1)?,
            node: child(table, books, at.level, at.node, place)?,
        };
        if let Some(id) = first_below(table, books, below, part.first, part.last) {
            return Some(id);
        }
        from = place.wrapping_add(1);
    }
    None
}
