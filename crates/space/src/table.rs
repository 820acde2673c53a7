//! The radix as a reader sees it: nodes of slots, a root, a walk.
//!
//! Above 4 KiB a node has 512 slots (9 bits of the address), below it 8
//! (3 bits), so that an area may start and end at any byte while its whole
//! pages cost one slot each. The height grows with the highest address.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use iogate_dma::{Access, Rights, Span};

use crate::slot::{Content, Slot};
use crate::{Hit, Miss};

/// Where a node's slots are among those of its size: the chunk, and from
/// [`CHUNK_SHIFT`] down the first slot in it.
pub(crate) type Node = u64;

const CHUNK_SHIFT: u32 = 40;

/// Levels below this have nodes of 8 slots, the others of 512.
pub(crate) const FIRST_LARGE: u32 = 4;
/// The level whose node spans all 2^64 addresses.
pub(crate) const TOP: u32 = 9;

/// log2 of the bytes of a slot of the lowest large level.
const PAGE: u32 = 12;
const SMALL_BITS: u32 = 3;
const LARGE_BITS: u32 = 9;

/// Bits of the address that a node of `level` resolves.
pub(crate) const fn bits(level: u32) -> u32 {
    if level < FIRST_LARGE {
        SMALL_BITS
    } else {
        LARGE_BITS
    }
}

/// Bits of the address within one slot of a node of `level`.
pub(crate) const fn shift(level: u32) -> u32 {
    match level.checked_sub(FIRST_LARGE) {
        None => level.wrapping_mul(SMALL_BITS),
        Some(above) => above.wrapping_mul(LARGE_BITS).wrapping_add(PAGE),
    }
}

/// The offset of the last byte within one slot of a node of `level`.
pub(crate) const fn slot_mask(level: u32) -> u64 {
    1_u64.wrapping_shl(shift(level)).wrapping_sub(1)
}

/// The highest address of a root of `level`.
pub(crate) const fn reach(level: u32) -> u64 {
    if level >= TOP {
        u64::MAX
    } else {
        slot_mask(level.wrapping_add(1))
    }
}

/// The place of `address` in its node of `level`.
#[inline]
pub(crate) fn place(level: u32, address: u64) -> usize {
    let mask = 1_u64.wrapping_shl(bits(level)).wrapping_sub(1);
    usize::try_from(address.wrapping_shr(shift(level)) & mask).unwrap_or(usize::MAX)
}

/// Slots of the first chunk of an arena, as a power of 2: 32 KiB.
const FIRST_CHUNK: u32 = 11;
const CHUNKS: usize = 32;

/// Nodes of 2^`BITS` slots in chunks that double, so that none ever moves.
struct Arena<const BITS: u32> {
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
}

impl<const BITS: u32> Arena<BITS> {
    fn new() -> Self {
        Self {
            chunks: std::array::from_fn(|_| OnceLock::new()),
        }
    }

    #[inline]
    fn slot(&self, node: Node, place: usize) -> Option<&Slot> {
        let chunk = usize::try_from(node >> CHUNK_SHIFT).unwrap_or(usize::MAX);
        let start = usize::try_from(node & ((1 << CHUNK_SHIFT) - 1)).unwrap_or(usize::MAX);
        self.chunks.get(chunk)?.get()?.get(start | place)
    }

    /// The node with this number, counted from 0, and its chunk made. `None`
    /// if there is none with that number.
    fn node(&self, number: u64) -> Option<Node> {
        let start = number.wrapping_shl(BITS).wrapping_add(1 << FIRST_CHUNK);
        let log = start.checked_ilog2()?;
        let at = log.checked_sub(FIRST_CHUNK)?;
        self.chunks.get(usize::try_from(at).ok()?)?.get_or_init(|| {
            let slots = 1_u64.wrapping_shl(log);
            (0..slots).map(|_| Slot::default()).collect()
        });
        Some(u64::from(at) << CHUNK_SHIFT | start ^ 1_u64.wrapping_shl(log))
    }
}

/// The number of a node of `level`, counted from 0.
pub(crate) fn number(level: u32, node: Node) -> u64 {
    let chunk = u32::try_from(node >> CHUNK_SHIFT).unwrap_or(u32::MAX);
    let start = node & ((1 << CHUNK_SHIFT) - 1);
    let before = (1_u64 << FIRST_CHUNK).wrapping_shl(chunk);
    (start | before)
        .wrapping_sub(1 << FIRST_CHUNK)
        .wrapping_shr(bits(level))
}

/// A root: its node, and the level of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Root {
    pub(crate) level: u32,
    pub(crate) node: Node,
}

/// What readers read. On cache lines of its own: the writer's lock beside it
/// would take them away from the readers.
#[repr(align(128))]
pub(crate) struct Table {
    /// Node × 16 + level; 0 for none, as a root's level is at least 4.
    root: AtomicU64,
    large: Arena<LARGE_BITS>,
    small: Arena<SMALL_BITS>,
}

/// A slot that is no child, and where it stands.
pub(crate) struct Found {
    pub(crate) content: Content,
    pub(crate) level: u32,
    pub(crate) node: Node,
    pub(crate) place: usize,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            root: AtomicU64::new(0),
            large: Arena::new(),
            small: Arena::new(),
        }
    }

    #[inline]
    pub(crate) fn slot(&self, level: u32, node: Node, place: usize) -> Option<&Slot> {
        if level < FIRST_LARGE {
            self.small.slot(node, place)
        } else {
            self.large.slot(node, place)
        }
    }

    /// The node of `level` with this number, counted from 0; `None` if there
    /// are not that many.
    pub(crate) fn node(&self, level: u32, number: u64) -> Option<Node> {
        if level < FIRST_LARGE {
            self.small.node(number)
        } else {
            self.large.node(number)
        }
    }

    #[inline]
    pub(crate) fn root(&self) -> Option<Root> {
        let word = self.root.load(Ordering::Acquire);
        let level = u32::try_from(word & 15).unwrap_or(0);
        (level != 0).then_some(Root {
            level,
            node: word >> 4,
        })
    }

    /// For the one writer only.
    pub(crate) fn set_root(&self, root: Option<Root>) {
        let word = root.map_or(0, |root| root.node << 4 | u64::from(root.level));
        self.root.store(word, Ordering::Release);
    }

    /// The longest contiguous run from the start of `span`, or why its first
    /// byte misses.
    #[inline]
    pub(crate) fn lookup(&self, span: Span, access: Access) -> Result<Hit, Miss> {
        match self.glance(span, access) {
            Some(hit) => Ok(hit),
            None => self.search(span, access),
        }
    }

    /// The hit that all of `span` makes in one slot of 4 KiB or more; `None`
    /// if it takes a closer look.
    #[inline]
    fn glance(&self, span: Span, access: Access) -> Option<Hit> {
        let (first, last) = (span.first().0, span.last().0);
        let Root { level, mut node } = self.root()?;
        let mut shift = level
            .wrapping_sub(FIRST_LARGE)
            .wrapping_mul(LARGE_BITS)
            .wrapping_add(PAGE);
        if last.wrapping_shr(shift) >= 1 << LARGE_BITS {
            return None;
        }
        loop {
            let place = first.wrapping_shr(shift) & ((1 << LARGE_BITS) - 1);
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            let pair = self.large.slot(node, place)?.pair()?;
            if let Some((rights, start)) = pair.filled() {
                let mask = 1_u64.wrapping_shl(shift).wrapping_sub(1);
                let covered = rights.allows(access) && last <= first | mask;
                return covered.then(|| Hit {
                    output: start.wrapping_add(first & mask),
                    length: span.last_offset().saturating_add(1),
                    rights,
                });
            }
            node = pair.child()?;
            if shift == PAGE {
                return None;
            }
            shift = shift.wrapping_sub(LARGE_BITS);
        }
    }

    fn search(&self, span: Span, access: Access) -> Result<Hit, Miss> {
        let first = span.first().0;
        let found = self.find(first).ok_or(Miss::NotMapped)?;
        let (rights, start) = match found.content {
            Content::Empty | Content::Child(_) => return Err(Miss::NotMapped),
            Content::Filled(rights, output) if rights.allows(access) => (rights, output),
            Content::Revoked(rights) if rights.allows(access) => return Err(Miss::Revoked),
            Content::Unfilled(rights) if rights.allows(access) => return Err(Miss::Unfilled),
            _ => return Err(Miss::Permission),
        };
        let mask = slot_mask(found.level);
        let output = start.wrapping_add(first & mask);
        let mut last = first | mask;
        if last < span.last().0 {
            last = self.extend(found, first, output, rights, span.last().0);
        }
        let offset = last.min(span.last().0).wrapping_sub(first);
        Ok(Hit {
            output,
            length: offset.saturating_add(1),
            rights,
        })
    }

    /// The last byte of the run that `found` is a part of, or some byte from
    /// `until` on.
    fn extend(&self, found: Found, first: u64, output: u64, rights: Rights, until: u64) -> u64 {
        let mut at = found;
        let mut last = first | slot_mask(at.level);
        while last < until {
            let next = last.wrapping_add(1);
            at.place = at.place.wrapping_add(1);
            let beside = (at.place < 1_usize.wrapping_shl(bits(at.level)))
                .then(|| self.slot(at.level, at.node, at.place))
                .flatten()
                .map(Slot::read);
            match beside {
                Some(content) if !matches!(content, Content::Child(_)) => at.content = content,
                _ => match self.find(next) {
                    Some(found) => at = found,
                    None => return last,
                },
            }
            let wanted = output.checked_add(next.wrapping_sub(first));
            match at.content {
                Content::Filled(also, start) if also == rights => {
                    let mask = slot_mask(at.level);
                    if Some(start.wrapping_add(next & mask)) != wanted {
                        return last;
                    }
                    last = next | mask;
                }
                _ => return last,
            }
        }
        last
    }

    /// The slot that holds `address` and is no child; `None` above the root's
    /// reach.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<Found> {
        let Root {
            mut level,
            mut node,
        } = self.root()?;
        if address > reach(level) {
            return None;
        }
        while level >= FIRST_LARGE {
            let place = place(level, address);
            match self.large.slot(node, place)?.read() {
                Content::Child(child) => {
                    node = child;
                    level = level.wrapping_sub(1);
                }
                content => {
                    return Some(Found {
                        content,
                        level,
                        node,
                        place,
                    });
                }
            }
        }
        self.find_small(address, level, node)
    }

    /// [`find`](Self::find) in a granule that several areas or states share.
    fn find_small(&self, address: u64, mut level: u32, mut node: Node) -> Option<Found> {
        loop {
            let place = place(level, address);
            match self.small.slot(node, place)?.read() {
                Content::Child(child) => {
                    node = child;
                    level = level.checked_sub(1)?;
                }
                content => {
                    return Some(Found {
                        content,
                        level,
                        node,
                        place,
                    });
                }
            }
        }
    }
}
