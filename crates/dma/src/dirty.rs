//! Which pages of an address space devices wrote: bits that a worker sets
//! without a lock, read and cleared by whoever asks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Iova, Span};

/// log2 of the bits of a word.
const WORD: u32 = 6;
/// log2 of the words of a leaf: bits of 32,768 pages, 4 KiB.
const LEAF: u32 = 9;
/// log2 of the children of a node above the leaves.
const NODE: u32 = 8;
/// Levels of nodes above the leaves: with pages of 512 bytes, enough for all
/// addresses.
const LEVELS: u32 = 5;
/// log2 of the smallest page that a log can be about.
const SMALLEST_PAGE: u32 = 9;

/// A set of pages. Marking is one load and at most one atomic operation a
/// page; what is cleared may be marked again at once.
///
/// A device's write is marked before it is made: who clears bits waits for a
/// grace of the gate before he looks at the memory.
pub struct DirtyLog {
    /// log2 of the bytes of a page.
    shift: u32,
    is_on: AtomicBool,
    root: Node,
}

struct Node(Box<[OnceLock<Child>]>);

enum Child {
    Node(Node),
    /// Bits of pages, the lowest first.
    Leaf(Box<[AtomicU64]>),
}

impl Default for Node {
    fn default() -> Self {
        Self((0..1 << NODE).map(|_| OnceLock::new()).collect())
    }
}

impl Child {
    fn new(level: u32) -> Self {
        match level {
            0 => Self::Leaf((0..1 << LEAF).map(|_| AtomicU64::new(0)).collect()),
            _ => Self::Node(Node::default()),
        }
    }
}

/// The place of word `word` among the children of a node of `level`, counted
/// from 1 above the leaves.
fn place(level: u32, word: u64) -> usize {
    let shift = LEAF.wrapping_add(level.wrapping_sub(1).wrapping_mul(NODE));
    let mask = (1_u64 << NODE).wrapping_sub(1);
    usize::try_from(word.wrapping_shr(shift) & mask).unwrap_or(usize::MAX)
}

impl DirtyLog {
    /// An empty log, off, of pages of `granule` bytes: a power of 2, of which
    /// less than 512 counts as 512.
    pub fn new(granule: u64) -> Self {
        Self {
            shift: granule.trailing_zeros().clamp(SMALLEST_PAGE, 63),
            is_on: AtomicBool::new(false),
            root: Node::default(),
        }
    }

    /// Whether writes are to be marked.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::SeqCst)
    }

    /// Turns marking on, with nothing marked, or off. Wait for a grace before
    /// relying on it.
    pub fn set(&self, on: bool) {
        if on {
            self.take(Span::whole(), false, |_| true);
        }
        self.is_on.store(on, Ordering::SeqCst);
    }

    /// Marks the pages of `span` if marking is on.
    pub fn mark(&self, span: Span) {
        if self.is_on() {
            self.insert(span);
        }
    }

    /// Marks the pages of `span`.
    pub fn insert(&self, span: Span) {
        let page = |iova: Iova| iova.0.wrapping_shr(self.shift);
        let (first, last) = (page(span.first()), page(span.last()));
        for word in first >> WORD..=last >> WORD {
            let Some(bits) = self.word(word) else {
                continue;
            };
            let mask = mask(word, first, last);
            // Without this look every write of a page takes the cache line.
            if bits.load(Ordering::SeqCst) & mask != mask {
                bits.fetch_or(mask, Ordering::SeqCst);
            }
        }
    }

    /// The marked pages of `span`, those that touch it, in order and joined
    /// where they are neighbours, each with its whole page; only those whose
    /// first byte `wanted` says yes to. They are marked no longer, unless
    /// `keep`.
    pub fn take(&self, span: Span, keep: bool, wanted: impl Fn(Iova) -> bool) -> Vec<Span> {
        let page = |iova: Iova| iova.0.wrapping_shr(self.shift);
        let (first, last) = (page(span.first()), page(span.last()));
        let mut found: Vec<Span> = Vec::new();
        let mut take = |word: u64, bits: &AtomicU64| {
            let mut set = bits.load(Ordering::SeqCst) & mask(word, first, last);
            let mut taken = 0_u64;
            while set != 0 {
                let bit = set.trailing_zeros();
                set &= set.wrapping_sub(1);
                let number = word << WORD | u64::from(bit);
                let page = Iova(number.wrapping_shl(self.shift));
                if wanted(page) {
                    taken |= 1_u64.wrapping_shl(bit);
                    add(&mut found, page, self.shift);
                }
            }
            if !keep && taken != 0 {
                bits.fetch_and(!taken, Ordering::SeqCst);
            }
        };
        visit(
            &self.root,
            LEVELS,
            0,
            (first >> WORD, last >> WORD),
            &mut take,
        );
        found
    }

    fn word(&self, word: u64) -> Option<&AtomicU64> {
        let mut node = &self.root;
        let mut level = LEVELS;
        loop {
            let slot = node.0.get(place(level, word))?;
            level = level.wrapping_sub(1);
            match slot.get_or_init(|| Child::new(level)) {
                Child::Node(below) => node = below,
                Child::Leaf(words) => {
                    let mask = (1_u64 << LEAF).wrapping_sub(1);
                    return words.get(usize::try_from(word & mask).ok()?);
                }
            }
        }
    }
}

/// The bits of `word` that stand for the pages from `first` to `last`.
fn mask(word: u64, first: u64, last: u64) -> u64 {
    let low = match word == first >> WORD {
        true => u64::MAX << (first & 63),
        false => u64::MAX,
    };
    match word == last >> WORD {
        true => low & u64::MAX >> 63_u64.wrapping_sub(last & 63),
        false => low,
    }
}

/// Adds the page that starts at `page`.
fn add(found: &mut Vec<Span>, page: Iova, shift: u32) {
    let offset = 1_u64.wrapping_shl(shift).wrapping_sub(1);
    let end = Iova(page.0 | offset);
    if let Some(last) = found.last_mut()
        && last.last().checked_add(1) == Some(page)
        && let Some(joined) = Span::new(last.first(), end)
    {
        *last = joined;
    } else {
        found.extend(Span::new(page, end));
    }
}

/// Calls `take` with each word that there is from the first to the last of
/// `range`. `base` is the number of the node's first word.
fn visit(
    node: &Node,
    level: u32,
    base: u64,
    range: (u64, u64),
    take: &mut impl FnMut(u64, &AtomicU64),
) {
    let below = level.wrapping_sub(1);
    let shift = LEAF.wrapping_add(below.wrapping_mul(NODE));
    for (at, slot) in (0_u64..).zip(&node.0) {
        let first = base | at.wrapping_shl(shift);
        let last = first | 1_u64.wrapping_shl(shift).wrapping_sub(1);
        if first > range.1 {
            return;
        }
        if last < range.0 {
            continue;
        }
        match slot.get() {
            None => {}
            Some(Child::Node(node)) => visit(node, below, first, range, take),
            Some(Child::Leaf(words)) => {
                for (number, bits) in (first..).zip(words) {
                    if (range.0..=range.1).contains(&number) {
                        take(number, bits);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn span(first: u64, last: u64) -> Span {
        Span::new(Iova(first), Iova(last)).unwrap()
    }

    fn all(log: &DirtyLog, keep: bool) -> Vec<Span> {
        log.take(Span::whole(), keep, |_| true)
    }

    #[test]
    fn a_log_is_a_set_of_pages_as_a_naive_one_is() {
        let log = DirtyLog::new(4096);
        let mut naive = BTreeSet::new();
        let mut seed = 7_u64;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let first = seed >> 20 & 0xfff_ffff | seed >> 62 << 60;
            let last = first + (seed >> 45 & 0xf_ffff);
            log.insert(span(first, last));
            naive.extend(first >> 12..=last >> 12);
        }
        let window = span(0x10_0000, 0x500_0000);
        let pages = |spans: &[Span]| -> BTreeSet<u64> {
            let pages = |one: &Span| one.first().0 >> 12..=one.last().0 >> 12;
            spans.iter().flat_map(pages).collect()
        };
        let odd = |page: Iova| page.0 >> 12 & 1 == 1;
        let expected: BTreeSet<u64> = naive
            .range(0x100..=0x5000)
            .copied()
            .filter(|page| page & 1 == 1)
            .collect();
        assert_eq!(pages(&log.take(window, false, odd)), expected);
        naive.retain(|page| !expected.contains(page));
        assert_eq!(pages(&all(&log, true)), naive);
        assert_eq!(pages(&all(&log, false)), naive);
        assert!(all(&log, false).is_empty());
    }

    #[test]
    fn the_ends_of_all_addresses_can_be_marked_at_every_page_size() {
        for granule in [512, 2048, 4096, 1 << 30] {
            let log = DirtyLog::new(granule);
            log.insert(span(0, 0));
            log.insert(span(u64::MAX, u64::MAX));
            let first = span(0, granule - 1);
            let last = span(u64::MAX - (granule - 1), u64::MAX);
            assert_eq!(all(&log, false), [first, last]);
        }
    }

    #[test]
    fn nothing_is_marked_while_it_is_off_and_turning_it_on_forgets() {
        let log = DirtyLog::new(4096);
        log.mark(span(0, 0));
        assert!(all(&log, true).is_empty());
        log.set(true);
        log.mark(span(0x1000, 0x2fff));
        assert_eq!(all(&log, true), [span(0x1000, 0x2fff)]);
        log.set(false);
        assert_eq!(all(&log, true), [span(0x1000, 0x2fff)]);
        log.set(true);
        assert!(all(&log, true).is_empty());
    }
}
