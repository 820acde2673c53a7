//! `struct iommu_test_cmd`: 72 bytes, of which 16 are common, 48 the operation's
//! own, and a word that ends them.

/// A copy of the program's structure.
pub(crate) struct Argument<'a>(pub(crate) &'a mut [u8; 72]);

impl Argument<'_> {
    /// The operation.
    pub(crate) fn op(&self) -> u32 {
        self.word(4)
    }

    /// The object that it is done to.
    pub(crate) fn id(&self) -> u32 {
        self.word(8)
    }

    /// The 32 bits at `offset`.
    pub(crate) fn word(&self, offset: usize) -> u32 {
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.copied().map_or(0, u32::from_ne_bytes)
    }

    /// The 64 bits at `offset`.
    pub(crate) fn quad(&self, offset: usize) -> u64 {
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.copied().map_or(0, u64::from_ne_bytes)
    }

    /// Sets the 32 bits at `offset`.
    pub(crate) fn set_word(&mut self, offset: usize, value: u32) {
        if let Some(rest) = self.0.get_mut(offset..)
            && let Some(bytes) = rest.first_chunk_mut()
        {
            *bytes = value.to_ne_bytes();
        }
    }

    /// Sets the 64 bits at `offset`.
    pub(crate) fn set_quad(&mut self, offset: usize, value: u64) {
        if let Some(rest) = self.0.get_mut(offset..)
            && let Some(bytes) = rest.first_chunk_mut()
        {
            *bytes = value.to_ne_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_they_were_set_and_nothing_lies_past_the_end() {
        let mut bytes = [0; 72];
        let mut argument = Argument(&mut bytes);
        argument.set_word(8, 5);
        argument.set_quad(64, 7);
        argument.set_quad(65, u64::MAX);
        assert_eq!((argument.id(), argument.quad(64)), (5, 7));
        assert_eq!((argument.quad(65), argument.word(72)), (0, 0));
    }
}
