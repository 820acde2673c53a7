//! Registers under accesses of any length and alignment: files of 32-bit
//! registers, and single registers of any size.

/// Fills `into`, a read at `offset`, from the dwords that `register` gives
/// for offsets that are multiples of 4. Reading them has no side effect.
pub(crate) fn read(offset: u64, into: &mut [u8], register: impl Fn(u64) -> u32) {
    for (byte, at) in into.iter_mut().zip(offset..=u64::MAX) {
        let dword = register(at & !3).to_le_bytes();
        *byte = match at & 3 {
            0 => dword[0],
            1 => dword[1],
            2 => dword[2],
            _ => dword[3],
        };
    }
}

/// The whole dwords of a write at `offset`, each with its own offset. A write
/// that is not aligned to 4 bytes has none.
pub(crate) fn dwords(offset: u64, from: &[u8]) -> impl Iterator<Item = (u64, u32)> {
    let (whole, _) = from.as_chunks::<4>();
    let whole = if offset.is_multiple_of(4) { whole } else { &[] };
    (offset..=u64::MAX)
        .step_by(4)
        .zip(whole.iter().map(|bytes| u32::from_le_bytes(*bytes)))
}

/// Puts the bytes of the register at `at` that the read at `offset` covers
/// into it.
pub(crate) fn show<const N: usize>(offset: u64, into: &mut [u8], at: u64, register: [u8; N]) {
    for (byte, place) in into.iter_mut().zip(offset..=u64::MAX) {
        let index = place
            .checked_sub(at)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(value) = index.and_then(|index| register.get(index)) {
            *byte = *value;
        }
    }
}

/// The register at `at`, which holds `register`, after a write at `offset`;
/// `None` if the write does not touch it.
pub(crate) fn merge<const N: usize>(
    offset: u64,
    from: &[u8],
    at: u64,
    register: [u8; N],
) -> Option<[u8; N]> {
    let mut merged = register;
    let mut touched = false;
    for (byte, place) in from.iter().zip(offset..=u64::MAX) {
        let index = place
            .checked_sub(at)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(value) = index.and_then(|index| merged.get_mut(index)) {
            *value = *byte;
            touched = true;
        }
    }
    touched.then_some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_takes_the_bytes_that_it_covers_of_each_register() {
        let mut into = [0xff; 4];
        show(0x12, &mut into, 0x10, [1, 2, 3, 4]);
        show(0x12, &mut into, 0x15, [9]);
        assert_eq!(into, [3, 4, 0xff, 9]);
        assert_eq!(merge(0x12, &[7, 8, 9], 0x10, [0; 4]), Some([0, 0, 7, 8]));
        assert_eq!(merge(0x0f, &[7, 8], 0x10, [5, 5]), Some([8, 5]));
        assert_eq!(merge(0x14, &[7], 0x10, [0; 4]), None);
        assert_eq!(merge(u64::MAX, &[7, 8], 0, [0; 4]), None);
    }
}
