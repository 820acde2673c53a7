//! An address space without any cleverness, and a run of operations, decoded
//! from bytes, on it and on the real one side by side.

use std::sync::Arc;

use iogate_dma::{Access, Gate, Iova, Rights, Span};
use iogate_space::{
    AddressSpace, AllowError, FillError, Hit, MapError, Miss, ReserveError, Segment,
};

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Unfilled,
    Filled(u64),
    Revoked,
}

struct ModelArea {
    span: Span,
    rights: Rights,
    payload: u32,
    pieces: Vec<(Span, State)>,
}

#[derive(Default)]
struct Model {
    areas: Vec<ModelArea>,
    reserved: Vec<(u64, Span)>,
    allowed: Vec<Span>,
}

fn span(first: u64, last: u64) -> Option<Span> {
    Span::new(Iova(first), Iova(last))
}

impl Model {
    fn area_hit(&self, by: Span) -> Option<&ModelArea> {
        let hit = self.areas.iter().filter(|area| area.span.overlaps(&by));
        hit.min_by_key(|area| area.span.first())
    }

    fn reserved_hit(&self, by: Span) -> bool {
        self.reserved.iter().any(|(_, span)| span.overlaps(&by))
    }

    fn map(&mut self, at: Span, rights: Rights, payload: u32) -> Result<(), Option<Span>> {
        if let Some(area) = self.area_hit(at) {
            return Err(Some(area.span));
        }
        if self.reserved_hit(at) {
            return Err(None);
        }
        self.areas.push(ModelArea {
            span: at,
            rights,
            payload,
            pieces: vec![(at, State::Unfilled)],
        });
        Ok(())
    }

    fn restate(&mut self, by: Span, state: State) {
        for area in &mut self.areas {
            let mut pieces = Vec::new();
            for (piece, old) in area.pieces.drain(..) {
                let hit = piece.intersection(&by).filter(|_| old != State::Revoked);
                let Some(hit) = hit else {
                    pieces.push((piece, old));
                    continue;
                };
                let (first, last) = (hit.first().0, hit.last().0);
                let before = first.checked_sub(1).and_then(|b| span(piece.first().0, b));
                let after = last.checked_add(1).and_then(|a| span(a, piece.last().0));
                let moved = |state, by: u64| match state {
                    State::Filled(output) => State::Filled(output.wrapping_add(by)),
                    other => other,
                };
                pieces.extend(before.map(|before| (before, old)));
                pieces.push((hit, moved(state, first - by.first().0)));
                pieces.extend(after.map(|at| (at, moved(old, at.first().0 - piece.first().0))));
            }
            area.pieces = pieces;
        }
    }

    fn first_unmapped(&self, whole: Span) -> Option<Iova> {
        let mut at = whole.first();
        while let Some(area) = self.areas.iter().find(|area| area.span.contains(at)) {
            if area.span.last() >= whole.last() {
                return None;
            }
            at = Iova(area.span.last().0 + 1);
        }
        Some(at)
    }

    fn state_at(&self, at: u64) -> Option<(Rights, State, u64)> {
        let area = self.areas.iter().find(|a| a.span.contains(Iova(at)))?;
        let (piece, state) = area.pieces.iter().find(|(p, _)| p.contains(Iova(at)))?;
        let state = match *state {
            State::Filled(output) => State::Filled(output + (at - piece.first().0)),
            other => other,
        };
        Some((area.rights, state, piece.last().0))
    }

    fn lookup(&self, at: Span, access: Access) -> Result<Hit, Miss> {
        let first = at.first().0;
        let (rights, state, mut last) = self.state_at(first).ok_or(Miss::NotMapped)?;
        if !rights.allows(access) {
            return Err(Miss::Permission);
        }
        let output = match state {
            State::Filled(output) => output,
            State::Unfilled => return Err(Miss::Unfilled),
            State::Revoked => return Err(Miss::Revoked),
        };
        while last < at.last().0 {
            match self.state_at(last + 1) {
                Some((also, State::Filled(here), next))
                    if also == rights && output.checked_add(last + 1 - first) == Some(here) =>
                {
                    last = next;
                }
                _ => break,
            }
        }
        let length = (last.min(at.last().0) - first).saturating_add(1);
        Ok(Hit {
            output,
            length,
            rights,
        })
    }

    fn usable(&self) -> Vec<Span> {
        let mut edges = vec![0];
        for (_, reserved) in &self.reserved {
            edges.extend(reserved.last().0.checked_add(1));
        }
        edges.retain(|edge| !self.reserved_hit(span(*edge, *edge).unwrap()));
        edges.sort_unstable();
        edges.dedup();
        let ends = |edge: u64| {
            let above = self.reserved.iter().map(|(_, r)| r.first().0);
            above
                .filter(|first| *first > edge)
                .min()
                .map_or(u64::MAX, |first| first - 1)
        };
        edges
            .iter()
            .map(|edge| span(*edge, ends(*edge)).unwrap())
            .collect()
    }

    /// The lowest fit starts at the first aligned address from some edge on.
    fn find_free(&self, length: u64, alignment: u64, offset: u64) -> Option<Iova> {
        let mut edges = vec![4096];
        edges.extend(self.allowed.iter().map(|a| a.first().0.max(4096)));
        let blockers = self.areas.iter().map(|area| area.span);
        let blockers: Vec<_> = blockers.chain(self.reserved.iter().map(|r| r.1)).collect();
        edges.extend(blockers.iter().filter_map(|b| b.last().0.checked_add(1)));
        let fits = |edge: u64| {
            let up = (u128::from(alignment) + u128::from(offset)
                - u128::from(edge) % u128::from(alignment))
                % u128::from(alignment);
            let first = edge.checked_add(u64::try_from(up).unwrap())?;
            let at = Span::with_length(Iova(first), length)?;
            let inside = first >= 4096 && at.last().0 <= u64::MAX - 4096;
            let allowed = self.allowed.is_empty() || self.allowed.iter().any(|a| a.encloses(&at));
            let free = !blockers.iter().any(|b| b.overlaps(&at));
            (inside && allowed && free).then_some(Iova(first))
        };
        edges.into_iter().filter_map(fits).min()
    }
}

/// Takes numbers from bytes; 0 when they have run out. The second field is
/// the address after the last span mapped or reserved.
struct Bytes<'a>(&'a [u8], u64);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        u64::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    fn address(&mut self) -> u64 {
        const BASES: [u64; 10] = [
            0,
            0x1000,
            0x1f_f000,
            0x3fff_f000,
            (1 << 39) - 0x800,
            (1 << 48) - 8,
            1 << 57,
            u64::MAX - 0x7f_ffff,
            u64::MAX - 0x1fff,
            u64::MAX,
        ];
        let choice = self.byte();
        if choice & 15 >= 12 {
            return self.1;
        }
        let base = BASES[usize::from(choice & 15) % BASES.len()];
        let step = [1, 8, 0x200, 0x1000, 0x800, 0x20_0000, 1 << 30, 1 << 39];
        let delta = u64::from(self.byte()) * step[usize::from(choice >> 5)];
        if choice & 16 == 0 {
            base.saturating_add(delta)
        } else {
            base.saturating_sub(delta)
        }
    }

    fn length(&mut self) -> u64 {
        let choice = self.byte();
        let step = [1, 8, 0x200, 0x1000, 0x800, 0x20_0000, 1 << 30, 1 << 48];
        let odd = u64::from(choice & 3);
        (u64::from(self.byte()) * step[usize::from(choice >> 5)] + odd).max(1)
    }

    fn span(&mut self) -> Span {
        let first = self.address();
        match self.byte() {
            0 => Span::whole(),
            1 => span(first, u64::MAX).unwrap(),
            _ => span(first, first.saturating_add(self.length() - 1)).unwrap(),
        }
    }

    fn access(&mut self) -> Access {
        [Access::Read, Access::Write, Access::Atomic, Access::Execute][usize::from(self.byte() & 3)]
    }
}

/// Runs the operations in `bytes`; panics where the space and the model part.
#[allow(unreachable_pub, reason = "a fuzz target may include this file")]
pub fn run(bytes: &[u8]) {
    let gate = Arc::new(Gate::new());
    let mut worker = gate.join();
    let space = AddressSpace::new(Arc::clone(&gate));
    let mut model = Model::default();
    let mut bytes = Bytes(bytes, 0);
    let mut payload = 0;
    while !bytes.0.is_empty() {
        payload += 1;
        step(&mut bytes, &space, &mut model, payload);
        let at = bytes.span();
        let access = bytes.access();
        let found = space.lookup(&worker.enter(), at, access);
        assert_eq!(found, model.lookup(at, access), "lookup {at} {access}");
    }
    compare(&space, &model, |at, access| {
        space.lookup(&worker.enter(), at, access)
    });
}

/// One operation that changes something, or asks outside the fast path.
fn step(bytes: &mut Bytes<'_>, space: &AddressSpace<u32>, model: &mut Model, payload: u32) {
    match bytes.byte() % 14 {
        0..=3 => {
            let at = bytes.span();
            bytes.1 = at.last().0.wrapping_add(1);
            let some = Rights::from_bits(bytes.byte());
            let rights = if payload.is_multiple_of(4) {
                some
            } else {
                Rights::READ_WRITE
            };
            match (
                space.map(at, rights, payload),
                model.map(at, rights, payload),
            ) {
                (Ok(()), Ok(())) => {}
                (Err((MapError::Overlaps(by), back)), Err(Some(expected))) => {
                    assert_eq!((by, back), (expected, payload));
                }
                (Err((MapError::Reserved(by), _)), Err(None)) => {
                    assert!(by.overlaps(&at) && model.reserved_hit(by));
                }
                (real, expected) => panic!("map {at}: {real:?}, not {expected:?}"),
            }
        }
        4 => {
            let first = match model.areas.get(usize::from(bytes.byte())) {
                Some(area) => area.span.first(),
                None => Iova(bytes.address()),
            };
            let gone = model.areas.iter().position(|a| a.span.first() == first);
            let gone = gone.map(|at| model.areas.swap_remove(at));
            let real = space.unmap(first);
            assert_eq!(
                real.map(|area| (area.span, area.rights, area.payload)),
                gone.map(|area| (area.span, area.rights, area.payload)),
            );
        }
        5..=7 => fill(bytes, space, model),
        8 => {
            let at = bytes.span();
            space.clear(at);
            model.restate(at, State::Unfilled);
        }
        9 => {
            let at = bytes.span();
            space.revoke(at);
            model.restate(at, State::Revoked);
        }
        10 => {
            let (owner, at) = (u64::from(bytes.byte() & 3), bytes.span());
            bytes.1 = at.last().0.wrapping_add(1);
            let allowed = model.allowed.iter().find(|allowed| allowed.overlaps(&at));
            match (space.reserve(owner, at), model.area_hit(at), allowed) {
                (Err(ReserveError::Mapped(by)), Some(area), _) => assert_eq!(by, area.span),
                (Err(ReserveError::Allowed(by)), None, Some(_)) => {
                    assert!(model.allowed.contains(&by));
                }
                (Ok(()), None, None) => model.reserved.push((owner, at)),
                other => panic!("reserve {at}: {:?}", other.0),
            }
        }
        11 => {
            let owner = u64::from(bytes.byte() & 3);
            space.release(owner);
            model.reserved.retain(|(of, _)| *of != owner);
        }
        12 => {
            let list: Vec<_> = (0..bytes.byte() & 3).map(|_| bytes.span()).collect();
            let overlap = list
                .iter()
                .enumerate()
                .any(|(i, a)| list[..i].iter().any(|b| a.overlaps(b)));
            let reserved = list.iter().any(|a| model.reserved_hit(*a));
            match space.set_allowed(&list) {
                Ok(()) => {
                    assert!(!overlap && !reserved);
                    model.allowed = list;
                }
                Err(AllowError::SelfOverlap) => assert!(overlap),
                Err(AllowError::Reserved(_)) => assert!(reserved && !overlap),
            }
        }
        _ => {
            // Often the same request, which the space remembers.
            let (length, alignment) = match bytes.byte() & 3 {
                0 => (bytes.length(), bytes.length()),
                1 => (0x2000, 0x1000),
                _ => (0x1000, 0x1000),
            };
            let offset = match bytes.byte() & 7 {
                0 => bytes.word() % alignment,
                _ => 0,
            };
            assert_eq!(
                space.find_free(length, alignment, offset),
                model.find_free(length, alignment, offset),
                "find_free({length:#x}, {alignment:#x}, {offset:#x})"
            );
        }
    }
}

fn fill(bytes: &mut Bytes<'_>, space: &AddressSpace<u32>, model: &mut Model) {
    let choice = bytes.byte();
    let area = model.areas.get(usize::from(choice & 15));
    let (first, whole) = match area {
        Some(area) if choice & 0x80 == 0 => (area.span.first().0, Some(area.span)),
        Some(area) => {
            let inside = bytes.word() % area.span.last_offset().max(1);
            (area.span.first().0 + inside, None)
        }
        None => (bytes.address(), None),
    };
    let mut room = whole.map_or(0, |whole| whole.last_offset().saturating_add(1));
    let mut segments = Vec::new();
    // Often to the same address, so that neighbours make runs.
    let mut output = match bytes.byte() & 1 {
        0 => first,
        _ => bytes.address(),
    };
    for _ in 0..=(choice >> 4 & 3) {
        let length = match (room, choice & 0x40) {
            (0, _) => bytes.length(),
            (room, 0) => bytes.length().min(room),
            (room, _) => room,
        };
        segments.push(Segment { length, output });
        output = match bytes.byte() & 1 {
            0 => output.wrapping_add(length),
            _ => bytes.address(),
        };
        room = room.saturating_sub(length);
        if whole.is_some() && room == 0 {
            break;
        }
    }
    let total: u128 = segments.iter().map(|s| u128::from(s.length)).sum();
    let wraps = segments
        .iter()
        .any(|s| u128::from(s.output) + u128::from(s.length) > 1 << 64);
    let expected = if wraps || u128::from(first) + total > 1 << 64 {
        Err(FillError::Malformed)
    } else {
        let last = u64::try_from(u128::from(first) + total - 1).unwrap();
        match model.first_unmapped(span(first, last).unwrap()) {
            Some(at) => Err(FillError::NotMapped(at)),
            None => Ok(()),
        }
    };
    assert_eq!(space.fill(Iova(first), &segments), expected);
    if expected.is_ok() {
        let mut from = first;
        for segment in segments {
            let last = from + (segment.length - 1);
            model.restate(span(from, last).unwrap(), State::Filled(segment.output));
            from = last.wrapping_add(1);
        }
    }
}

/// Everything that can be asked, at every address where the answer changes.
fn compare(
    space: &AddressSpace<u32>,
    model: &Model,
    mut lookup: impl FnMut(Span, Access) -> Result<Hit, Miss>,
) {
    assert_eq!(space.usable(), model.usable());
    assert_eq!(space.area_count(), model.areas.len());
    let bytes: u128 = model
        .areas
        .iter()
        .map(|area| u128::from(area.span.last_offset()) + 1)
        .sum();
    assert_eq!(
        space.mapped_bytes(),
        u64::try_from(bytes).unwrap_or(u64::MAX)
    );
    let pieces = model.areas.iter().flat_map(|area| &area.pieces);
    let ranges = pieces.map(|(piece, _)| *piece);
    let ranges = ranges.chain(model.reserved.iter().map(|(_, at)| *at));
    for range in ranges {
        for edge in [range.first().0, range.last().0] {
            for at in [edge.saturating_sub(1), edge, edge.saturating_add(1)] {
                let rest = span(at, u64::MAX).unwrap();
                let byte = span(at, at).unwrap();
                assert_eq!(lookup(rest, Access::Read), model.lookup(rest, Access::Read));
                assert_eq!(
                    lookup(byte, Access::Write),
                    model.lookup(byte, Access::Write)
                );
                assert_eq!(space.is_reserved(byte), model.reserved_hit(byte));
                let area = model.area_hit(byte);
                assert_eq!(
                    space.area_at(Iova(at)),
                    area.map(|area| (area.span, area.rights))
                );
                assert_eq!(
                    space.with_area(Iova(at), |area| area.payload),
                    area.map(|area| area.payload)
                );
                let next = model.area_hit(rest);
                assert_eq!(
                    space.next_area(Iova(at)),
                    next.map(|area| (area.span, area.rights))
                );
            }
        }
    }
}
