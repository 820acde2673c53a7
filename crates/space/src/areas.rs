//! The areas, by a small number that stands in the radix for each.

use iogate_dma::{Iova, Rights, Span};

/// One mapping as user space made it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Area<T> {
    /// Its bytes.
    pub span: Span,
    /// What it allows.
    pub rights: Rights,
    /// What its owner keeps with it.
    pub payload: T,
}

/// An area's number. Never [`NONE`](crate::books::NONE) nor
/// [`CHILD`](crate::books::CHILD).
pub(crate) type AreaId = u32;

/// Areas by number, numbers reused.
pub(crate) struct Areas<T> {
    entries: Vec<Option<Area<T>>>,
    free: Vec<AreaId>,
    bytes: u128,
}

impl<T> Areas<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            bytes: 0,
        }
    }

    pub(crate) fn get(&self, id: AreaId) -> Option<&Area<T>> {
        self.entries.get(place(id)?)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: AreaId) -> Option<&mut Area<T>> {
        self.entries.get_mut(place(id)?)?.as_mut()
    }

    /// The number that the next [`insert`](Self::insert) gives out; `None`
    /// when there are none left.
    pub(crate) fn next_id(&self) -> Option<AreaId> {
        match self.free.last() {
            Some(&id) => Some(id),
            None => u32::try_from(self.entries.len())
                .ok()?
                .checked_add(1)
                .filter(|&id| id < u32::MAX),
        }
    }

    /// Keeps `area` under the number that [`next_id`](Self::next_id) said.
    pub(crate) fn insert(&mut self, area: Area<T>) {
        self.bytes = self.bytes.wrapping_add(bytes(&area.span));
        match self.free.pop().and_then(place) {
            Some(at) => {
                if let Some(entry) = self.entries.get_mut(at) {
                    *entry = Some(area);
                }
            }
            None => self.entries.push(Some(area)),
        }
    }

    /// Gives the bytes of area `id` from `at` on, which is not its first, to a
    /// new area under the number that [`next_id`](Self::next_id) said.
    pub(crate) fn split(&mut self, id: AreaId, at: Iova, divide: impl FnOnce(&mut Area<T>) -> T) {
        let Some(area) = self.get_mut(id) else {
            return;
        };
        let before = at.0.checked_sub(1).map(Iova);
        let first = before.and_then(|last| Span::new(area.span.first(), last));
        let second = Span::new(at, area.span.last());
        let (Some(first), Some(second)) = (first, second) else {
            return;
        };
        let payload = divide(area);
        area.span = first;
        let rights = area.rights;
        self.bytes = self.bytes.wrapping_sub(bytes(&second));
        self.insert(Area {
            span: second,
            rights,
            payload,
        });
    }

    pub(crate) fn remove(&mut self, id: AreaId) -> Option<Area<T>> {
        let area = self.entries.get_mut(place(id)?)?.take()?;
        self.bytes = self.bytes.wrapping_sub(bytes(&area.span));
        self.free.push(id);
        Some(area)
    }

    pub(crate) fn count(&self) -> usize {
        self.entries.len().saturating_sub(self.free.len())
    }

    pub(crate) fn bytes(&self) -> u128 {
        self.bytes
    }
}

fn place(id: AreaId) -> Option<usize> {
    usize::try_from(id).ok()?.checked_sub(1)
}

fn bytes(span: &Span) -> u128 {
    u128::from(span.last_offset()).wrapping_add(1)
}
