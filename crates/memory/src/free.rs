//! Which parts of a range of addresses are free: first fit, lowest first.

use std::collections::BTreeMap;

/// The free parts of a range. No two of them touch.
#[derive(Debug)]
pub(crate) struct FreeSpace {
    /// First address and length.
    parts: BTreeMap<u64, u64>,
}

impl FreeSpace {
    /// All of 0 to `length` is free.
    pub(crate) fn new(length: u64) -> Self {
        Self {
            parts: BTreeMap::from([(0, length)]),
        }
    }

    /// Takes `length` bytes at a multiple of `alignment`; `None` if no part
    /// is large enough, or if one of the two numbers is 0.
    pub(crate) fn take(&mut self, length: u64, alignment: u64) -> Option<u64> {
        if length == 0 {
            return None;
        }
        let fit = |(&first, &size): (&u64, &u64)| {
            let start = first.checked_next_multiple_of(alignment)?;
            let (end, part_end) = (start.checked_add(length)?, first.checked_add(size)?);
            (end <= part_end).then_some((first, start, end, part_end))
        };
        if alignment == 0 {
            return None;
        }
        let (first, start, end, part_end) = self.parts.iter().find_map(fit)?;
        self.parts.remove(&first);
        self.insert(first, start);
        self.insert(end, part_end);
        Some(start)
    }

    /// Gives `length` bytes from `start` back; they were taken before.
    pub(crate) fn put(&mut self, start: u64, length: u64) {
        let mut first = start;
        let mut end = start.saturating_add(length);
        if let Some((&before, &size)) = self.parts.range(..start).next_back()
            && before.saturating_add(size) == start
        {
            first = before;
        }
        if let Some(size) = self.parts.remove(&end) {
            end = end.saturating_add(size);
        }
        self.insert(first, end);
    }

    fn insert(&mut self, first: u64, end: u64) {
        if let Some(length) = end.checked_sub(first)
            && length > 0
        {
            self.parts.insert(first, length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_aligned_and_disjoint_and_comes_back_whole() {
        let mut free = FreeSpace::new(1 << 20);
        let odd = free.take(4096, 1).unwrap();
        let a = free.take(0x1_0000, 0x1_0000).unwrap();
        let b = free.take(0x2_0000, 0x2_0000).unwrap();
        assert_eq!((odd, a, b), (0, 0x1_0000, 0x2_0000));
        free.put(a, 0x1_0000);
        free.put(odd, 4096);
        free.put(b, 0x2_0000);
        assert_eq!(free.take(1 << 20, 1 << 20), Some(0));
    }

    #[test]
    fn a_part_that_only_fits_unaligned_is_passed_over() {
        let mut free = FreeSpace::new(0x3000);
        assert_eq!(free.take(0x1000, 0x1000), Some(0));
        assert_eq!(free.take(0x2000, 0x2000), None);
        assert_eq!(free.take(0x2000, 0x1000), Some(0x1000));
        assert_eq!(free.take(1, 1), None);
    }

    #[test]
    fn nothing_and_no_alignment_are_refused() {
        let mut free = FreeSpace::new(0x1000);
        assert_eq!(free.take(0, 1), None);
        assert_eq!(free.take(1, 0), None);
        assert_eq!(free.take(u64::MAX, 1), None);
    }
}
