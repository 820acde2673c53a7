//! Guest memory as words by address; what is in no range is not there.

use std::cell::RefCell;
use std::collections::BTreeMap;

/// Guest memory: zeros where nothing was written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plain {
    /// First byte and the byte behind the last.
    pub(crate) ranges: Vec<(u64, u64)>,
    pub(crate) words: BTreeMap<u64, u64>,
    /// What was asked for and is not there.
    pub(crate) missed: RefCell<Vec<u64>>,
    /// If it is wanted: what was read.
    pub(crate) visited: RefCell<Option<Vec<u64>>>,
}

impl Plain {
    pub(crate) fn new(ranges: &[(u64, u64)]) -> Self {
        Self {
            ranges: ranges.to_vec(),
            words: BTreeMap::new(),
            missed: RefCell::default(),
            visited: RefCell::default(),
        }
    }

    pub(crate) fn is_there(&self, address: u64) -> bool {
        self.ranges
            .iter()
            .any(|&(first, behind)| first <= address && address < behind)
    }

    /// The word at a multiple of 8; `None` where no memory is.
    pub(crate) fn word(&self, address: u64) -> Option<u64> {
        if !self.is_there(address) {
            self.missed.borrow_mut().push(address);
            return None;
        }
        if let Some(visited) = &mut *self.visited.borrow_mut() {
            visited.push(address);
        }
        Some(self.words.get(&address).copied().unwrap_or(0))
    }

    pub(crate) fn set(&mut self, address: u64, word: u64) {
        assert!(self.is_there(address) && address.is_multiple_of(8));
        self.words.insert(address, word);
    }
}
