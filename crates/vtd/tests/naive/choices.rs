//! Decisions taken from bytes: the same for a seed, a property test and a fuzzer.

/// A string of bytes as a source of decisions. Behind its end every choice is the first.
#[derive(Clone, Debug)]
pub(crate) struct Choices<'a> {
    bytes: &'a [u8],
}

impl<'a> Choices<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((&byte, rest)) => {
                self.bytes = rest;
                byte
            }
            None => 0,
        }
    }

    pub(crate) fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    /// A number below `count`, which is from 1 to 65,536.
    pub(crate) fn below(&mut self, count: u64) -> u64 {
        let mut number = u64::from(self.byte());
        if count > 256 {
            number = number << 8 | u64::from(self.byte());
        }
        number % count.max(1)
    }

    /// True in about `chance` of 256 cases, and never behind the end.
    pub(crate) fn rarely(&mut self, chance: u8) -> bool {
        self.byte() > u8::MAX - chance
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        let index = self.below(all.len() as u64) as usize;
        all[index]
    }
}

/// `length` bytes that follow from `seed`, by xorshift64*.
pub(crate) fn bytes_of_seed(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes());
    }
    bytes.truncate(length);
    bytes
}
