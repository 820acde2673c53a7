//! A few words that are written and read as one, without a lock.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use zerocopy::FromZeros;

/// Set in a version while its words are being written.
const BUSY: u64 = 1;
const STEP: u64 = 2;
const COUNT: u64 = 0xffff_ffff;

/// `N` words and a half, for caches: a reader that meets a writer gets nothing,
/// a writer that meets another one writes nothing, and nobody waits.
#[derive(Debug)]
#[cfg_attr(not(loom), derive(FromZeros))]
#[repr(C)]
pub struct Slot<const N: usize> {
    /// The low half counts writes; the high half is the half word.
    version: AtomicU64,
    words: [AtomicU64; N],
}

impl<const N: usize> Default for Slot<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Slot<N> {
    /// A slot that was never written.
    pub fn new() -> Self {
        Self {
            version: AtomicU64::new(0),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// The half word and the words as one writer left them; `None` if the slot
    /// was never written or is being written.
    #[inline]
    pub fn read(&self) -> Option<(u32, [u64; N])> {
        self.read_first()
    }

    /// The half word and the first `M` words, in the same way.
    #[inline]
    pub fn read_first<const M: usize>(&self) -> Option<(u32, [u64; M])> {
        let version = self.version.load(Ordering::Acquire);
        if version & BUSY != 0 || version == 0 {
            return None;
        }
        let mut words = [0; M];
        for (word, place) in words.iter_mut().zip(&self.words) {
            *word = place.load(Ordering::Relaxed);
        }
        // Without this the version could be read again before the words are.
        fence(Ordering::Acquire);
        let half = u32::try_from(version >> 32).unwrap_or(0);
        (self.version.load(Ordering::Relaxed) == version).then_some((half, words))
    }

    /// Replaces half word and words, unless somebody else is at it. Says
    /// whether it did.
    #[inline]
    pub fn write(&self, half: u32, words: [u64; N]) -> bool {
        self.replace(self.version.load(Ordering::Relaxed), half, words)
    }

    /// Writes zeros if the slot holds what `matches`, as one. A write that
    /// happens meanwhile is left as it is.
    pub fn clear_if(&self, matches: impl FnOnce(&[u64; N]) -> bool) {
        let version = self.version.load(Ordering::Acquire);
        if let Some((_, words)) = self.read()
            && matches(&words)
        {
            // If the words are of a later version, this fails.
            self.replace(version, 0, [0; N]);
        }
    }

    #[inline]
    fn replace(&self, version: u64, half: u32, words: [u64; N]) -> bool {
        let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
        if version & BUSY != 0
            || self
                .version
                .compare_exchange(version, version | BUSY, acquire, relaxed)
                .is_err()
        {
            return false;
        }
        // Without this a reader could see a word before it sees the flag.
        fence(Ordering::Release);
        for (word, place) in words.into_iter().zip(&self.words) {
            place.store(word, Ordering::Relaxed);
        }
        let count = (version & COUNT).wrapping_add(STEP) & COUNT;
        let version = u64::from(half) << 32 | count;
        self.version.store(version, Ordering::Release);
        true
    }
}
