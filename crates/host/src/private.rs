//! Which I/O virtual addresses end in private memory of which process, so that
//! a process's munmap finds the mappings that it makes dead.

use std::collections::BTreeMap;

use iogate_dma::{Iova, Span};

use crate::SpaceId;

/// A piece of private memory that devices reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The process's address space, as
    /// [`Caller::address_space`](crate::Caller::address_space) numbers them.
    pub owner: u64,
    /// First byte in that process.
    pub first: u64,
    /// Where it is reached: the space.
    pub space: SpaceId,
    /// Where it is reached: the addresses, as many as the piece has bytes.
    pub span: Span,
}

impl Piece {
    /// What of it lies before `at` and what from there on; `None` unless both
    /// is something.
    pub(crate) fn cut(self, at: Iova) -> Option<(Self, Self)> {
        let before = at.0.checked_sub(1).map(Iova)?;
        let first = Span::new(self.span.first(), before)?;
        let second = Span::new(at, self.span.last())?;
        let skipped =
            at.0.checked_sub(self.span.first().0)
                .filter(|bytes| *bytes > 0)?;
        let rest = Self {
            first: self.first.saturating_add(skipped),
            span: second,
            ..self
        };
        Some((
            Self {
                span: first,
                ..self
            },
            rest,
        ))
    }

    fn last(&self) -> u64 {
        self.first.saturating_add(self.span.last_offset())
    }

    /// Pieces of similar length lie together, so that a search need not look
    /// further back than twice that length.
    fn class(&self) -> u8 {
        let [class, ..] = self
            .span
            .last_offset()
            .checked_ilog2()
            .map_or(0, |log| log.saturating_add(1))
            .to_le_bytes();
        class
    }

    fn key(&self) -> Key {
        (
            self.owner,
            self.class(),
            self.first,
            self.space,
            self.span.first(),
        )
    }
}

type Key = (u64, u8, u64, SpaceId, Iova);

/// All pieces of private memory that devices reach.
#[derive(Default, Debug)]
pub struct PrivateMemory {
    /// Lengths less one, by piece.
    pieces: BTreeMap<Key, u64>,
    /// How many pieces each class has.
    classes: BTreeMap<(u64, u8), usize>,
}

impl PrivateMemory {
    /// Adds a piece.
    pub fn insert(&mut self, piece: Piece) {
        if self
            .pieces
            .insert(piece.key(), piece.span.last_offset())
            .is_none()
        {
            let count = self
                .classes
                .entry((piece.owner, piece.class()))
                .or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Removes a piece; one that is not there is ignored.
    pub fn remove(&mut self, piece: Piece) {
        if self.pieces.remove(&piece.key()).is_none() {
            return;
        }
        let class = (piece.owner, piece.class());
        if let Some(count) = self.classes.get_mut(&class) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.classes.remove(&class);
            }
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The pieces of `owner` that share a byte with `first..=last`.
    pub fn overlapping(&self, owner: u64, first: u64, last: u64) -> Vec<Piece> {
        let mut found = Vec::new();
        for &(_, class) in self
            .classes
            .range((owner, 0)..=(owner, u8::MAX))
            .map(|(key, _)| key)
        {
            // A piece of this class is at most 2^class bytes long.
            let reach = 1_u64
                .checked_shl(class.into())
                .map_or(u64::MAX, |most| most.wrapping_sub(1));
            let low = (
                owner,
                class,
                first.saturating_sub(reach),
                SpaceId(0),
                Iova(0),
            );
            let high = (owner, class, last, SpaceId(u64::MAX), Iova(u64::MAX));
            for (&(_, _, start, space, iova), &length) in self.pieces.range(low..=high) {
                let end = Iova(iova.0.saturating_add(length));
                let Some(span) = Span::new(iova, end) else {
                    continue;
                };
                let piece = Piece {
                    owner,
                    first: start,
                    space,
                    span,
                };
                if piece.last() >= first {
                    found.push(piece);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(first: u64, length: u64, iova: u64) -> Piece {
        Piece {
            owner: 7,
            first,
            space: SpaceId(1),
            span: Span::with_length(Iova(iova), length).unwrap(),
        }
    }

    #[test]
    fn every_overlapping_piece_is_found_and_no_other() {
        let mut memory = PrivateMemory::default();
        let mut all = Vec::new();
        let mut seed = 1_u64;
        for index in 0..300 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let length = 1 << (seed >> 60) | seed >> 50 & 3;
            let one = piece(seed >> 40 & 0xffff, length, index << 20);
            memory.insert(one);
            all.push(one);
        }
        memory.remove(all.pop().unwrap());
        for first in (0..0x1_0000).step_by(97) {
            let last = first + first % 300;
            let mut found = memory.overlapping(7, first, last);
            found.sort_by_key(|piece| piece.span.first());
            let expected: Vec<_> = all
                .iter()
                .filter(|piece| piece.first <= last && piece.last() >= first)
                .copied()
                .collect();
            assert_eq!(found, expected);
        }
        assert!(memory.overlapping(8, 0, u64::MAX).is_empty());
        for piece in all {
            memory.remove(piece);
        }
        assert!(memory.is_empty() && memory.classes.is_empty());
    }
}
