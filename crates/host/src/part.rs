//! Parts of pinned pages: each keeps the whole pinned.

use std::sync::Arc;

use iogate_space::Segment;

use crate::Pinned;

/// A part of what `W` pins.
pub(crate) struct Part<W> {
    _whole: W,
    segments: Vec<Segment>,
    private: Vec<(u64, u64)>,
}

impl<W> Part<W> {
    /// The part with these bytes, as [`part_of`] says them.
    pub(crate) fn new(whole: W, segments: Vec<Segment>, private: Vec<(u64, u64)>) -> Self {
        Self {
            _whole: whole,
            segments,
            private,
        }
    }
}

impl<W: Send + Sync> Pinned for Part<W> {
    fn segments(&self) -> &[Segment] {
        &self.segments
    }

    fn private(&self) -> &[(u64, u64)] {
        &self.private
    }
}

/// The first `length` bytes, and the others.
pub(crate) fn split(pinned: Box<dyn Pinned>, length: u64) -> (Box<dyn Pinned>, Box<dyn Pinned>) {
    let whole: Arc<dyn Pinned> = Arc::from(pinned);
    let part = |skip, length| {
        let (segments, private) = part_of(&*whole, skip, length);
        Box::new(Part::new(Arc::clone(&whole), segments, private))
    };
    (part(0, length), part(length, u64::MAX))
}

/// Where the `length` bytes after the first `skip` are, and what of them is
/// private memory.
pub(crate) fn part_of(
    pinned: &dyn Pinned,
    skip: u64,
    length: u64,
) -> (Vec<Segment>, Vec<(u64, u64)>) {
    let mut segments = Vec::new();
    let mut at = 0_u64;
    for segment in pinned.segments() {
        if let Some((from, length)) = cut((at, segment.length), (skip, length)) {
            let into = from.saturating_sub(at);
            let output = segment.output.saturating_add(into);
            segments.push(Segment { length, output });
        }
        at = at.saturating_add(segment.length);
    }
    let private = pinned.private().iter();
    let private = private
        .filter_map(|&part| cut(part, (skip, length)))
        .map(|(from, length)| (from.saturating_sub(skip), length))
        .collect();
    (segments, private)
}

/// The part of `range` that lies in `window`, both as (start, length).
fn cut(range: (u64, u64), window: (u64, u64)) -> Option<(u64, u64)> {
    let first = range.0.max(window.0);
    let end = range.0.saturating_add(range.1);
    let end = end.min(window.0.saturating_add(window.1));
    let length = end.checked_sub(first).filter(|length| *length > 0)?;
    Some((first, length))
}
