//! A data structure as the bytes that a host reads.

/// A structure of `N` bytes, zero where nothing is put.
pub(crate) struct Page<const N: usize>(pub(crate) [u8; N]);

impl<const N: usize> Page<N> {
    pub(crate) fn new() -> Self {
        Self([0; N])
    }

    /// Puts a field at its offset; what would pass the end is left out.
    pub(crate) fn put(&mut self, offset: usize, field: &[u8]) {
        let bytes = self.0.get_mut(offset..).unwrap_or_default();
        for (byte, value) in bytes.iter_mut().zip(field) {
            *byte = *value;
        }
    }

    /// Puts a text in a field of `length` bytes, padded with spaces.
    pub(crate) fn put_text(&mut self, offset: usize, length: usize, text: &str) {
        let bytes = self.0.get_mut(offset..).unwrap_or_default();
        let text = text.bytes().chain(std::iter::repeat(b' '));
        for (byte, value) in bytes.iter_mut().take(length).zip(text) {
            *byte = value;
        }
    }
}
