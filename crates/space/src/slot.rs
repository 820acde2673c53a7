//! One entry of the radix: two words that a reader gets as a pair.
//!
//! The writer, of whom there is one at a time, gives the first word a new
//! sequence number with every change, and marks it busy while it replaces an
//! output that a reader may be taking. A reader that finds the same first
//! word before and after it took the second has a pair that stood together.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use iogate_dma::Rights;

/// What a slot says of its range of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    /// No area.
    Empty,
    /// The node of this number says more.
    Child(u64),
    /// All of one area, without output.
    Unfilled(Rights),
    /// All of one area, and where its first byte goes.
    Filled(Rights, u64),
    /// All of one area whose memory was taken away.
    Revoked(Rights),
}

const STATE: u64 = 7;
const EMPTY: u64 = 0;
const CHILD: u64 = 1;
const UNFILLED: u64 = 2;
const FILLED: u64 = 3;
const REVOKED: u64 = 4;
const BUSY: u64 = 5;
const RIGHTS_SHIFT: u32 = 3;
/// 2^59 changes of one slot, more than a machine lives to make.
const SEQUENCE: u64 = 1 << 5;

/// State and rights with a sequence number, and an output. Aligned so that
/// both words are in one cache line.
#[derive(Default)]
#[repr(align(16))]
pub(crate) struct Slot {
    meta: AtomicU64,
    output: AtomicU64,
}

impl Slot {
    /// The two words, if they stand together at once.
    #[inline]
    pub(crate) fn pair(&self) -> Option<Pair> {
        let meta = self.meta.load(Ordering::Acquire);
        let output = self.output.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let after = self.meta.load(Ordering::Relaxed);
        (meta == after).then_some(Pair { meta, output })
    }

    #[inline]
    pub(crate) fn read(&self) -> Content {
        let mut rounds = 0_u32;
        loop {
            match self.pair().and_then(Pair::content) {
                Some(content) => return content,
                None => wait(&mut rounds),
            }
        }
    }

    /// For the one writer only.
    pub(crate) fn write(&self, content: Content) {
        let (state, rights, output) = match content {
            Content::Empty => (EMPTY, Rights::NONE, None),
            Content::Child(node) => (CHILD, Rights::NONE, Some(node)),
            Content::Unfilled(rights) => (UNFILLED, rights, None),
            Content::Filled(rights, output) => (FILLED, rights, Some(output)),
            Content::Revoked(rights) => (REVOKED, rights, None),
        };
        let old = self.meta.load(Ordering::Relaxed);
        let sequence = (old | (SEQUENCE - 1)).wrapping_add(1);
        if let Some(output) = output {
            if matches!(old & STATE, CHILD | FILLED) {
                self.meta.store(sequence | BUSY, Ordering::Relaxed);
            }
            // Who gets the new output also gets a first word that is not the
            // one before it, even if this write did not mark it busy: then
            // the old output was withdrawn by an earlier write.
            fence(Ordering::Release);
            self.output.store(output, Ordering::Relaxed);
        }
        let bits = u64::from(rights.bits()) << RIGHTS_SHIFT;
        self.meta.store(sequence | bits | state, Ordering::Release);
    }
}

/// The two words of a slot as they stood together.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    meta: u64,
    output: u64,
}

impl Pair {
    /// `None` while the writer is at it.
    #[inline]
    fn content(self) -> Option<Content> {
        Some(match self.meta & STATE {
            CHILD => Content::Child(self.output),
            FILLED => Content::Filled(self.rights(), self.output),
            UNFILLED => Content::Unfilled(self.rights()),
            REVOKED => Content::Revoked(self.rights()),
            EMPTY => Content::Empty,
            _ => return None,
        })
    }

    /// The node that the slot stands for.
    #[inline]
    pub(crate) fn child(self) -> Option<u64> {
        (self.meta & STATE == CHILD).then_some(self.output)
    }

    /// Rights and output.
    #[inline]
    pub(crate) fn filled(self) -> Option<(Rights, u64)> {
        (self.meta & STATE == FILLED).then_some((self.rights(), self.output))
    }

    #[inline]
    fn rights(self) -> Rights {
        Rights::from_bits(u8::try_from(self.meta >> RIGHTS_SHIFT & 3).unwrap_or(0))
    }
}

/// The writer is between two stores; it may have lost its CPU there.
#[cold]
fn wait(rounds: &mut u32) {
    *rounds = rounds.saturating_add(1);
    if *rounds < 64 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_reader_gets_only_pairs_that_were_written_together() {
        let slot = Slot::default();
        let stop = AtomicBool::new(false);
        let contents = |number: u64| match number % 4 {
            0 => Content::Filled(Rights::READ, number << 8),
            1 => Content::Child(number << 8 | 1),
            2 => Content::Filled(Rights::WRITE, number << 8 | 2),
            _ => Content::Revoked(Rights::READ_WRITE),
        };
        let read = || {
            let mut seen = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                match slot.read() {
                    Content::Filled(Rights::READ, output) => assert_eq!(output & 255, 0),
                    Content::Child(node) => assert_eq!(node & 255, 1),
                    Content::Filled(Rights::WRITE, output) => assert_eq!(output & 255, 2),
                    Content::Revoked(Rights::READ_WRITE) | Content::Empty => {}
                    other => panic!("{other:?} was never written"),
                }
                seen = seen.wrapping_add(1);
            }
            seen
        };
        std::thread::scope(|scope| {
            let readers = [scope.spawn(read), scope.spawn(read)];
            for number in 0..3_000_000 {
                slot.write(contents(number));
            }
            stop.store(true, Ordering::Relaxed);
            for reader in readers {
                assert!(reader.join().unwrap() > 0);
            }
        });
    }
}
