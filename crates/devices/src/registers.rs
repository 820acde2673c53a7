//! Registers of 32 bits under accesses of any length and alignment.

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
