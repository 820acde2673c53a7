//! The state of a whole function as a stream of bytes: what it was built as,
//! its configuration space and pending interrupts, the model's own state, and
//! a checksum.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `IOGATEMG` |
//! | 4 | the version, [`VERSION`] |
//! | 4 | length of the shape |
//! | | the shape: model, identification, BARs, vectors, which bytes of configuration space move, the model's own part |
//! | 4 | length of the state |
//! | | the state: configuration space, pending interrupts, the model's own part |
//! | 4 | CRC-32 (IEEE 802.3) of all before |
//!
//! What software programs in the destination by itself does not move: the
//! Command register, BAR addresses, MSI and MSI-X with their messages. A host
//! of VFIO saves and restores these, as Linux's include/uapi/linux/vfio.h says
//! of the STOP state.

use crate::migrate::{StateError, StateReader, StateWriter};
use crate::{BarSpace, BarWidth, Function};

/// The version of the encoding and of every model's part in it.
pub const VERSION: u32 = 1;

/// Bytes of a stream at most.
pub const MOST: usize = 64 << 10;

const MAGIC: &[u8; 8] = b"IOGATEMG";

/// What a stream of this function begins with, which every function that may
/// take it begins with too; `None` for a function that stays.
pub fn shape(function: &dyn Function) -> Option<Vec<u8>> {
    let migrate = function.migrate()?;
    let endpoint = function.endpoint();
    let mut shape = StateWriter::default();
    let name = function.model().as_bytes();
    shape.u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
    shape.bytes(name);
    for (at, length) in [(0x00, 4), (0x08, 4), (0x2c, 4)] {
        let mut bytes = [0; 4];
        endpoint.read_config(at, &mut bytes);
        shape.bytes(bytes.get(..length).unwrap_or_default());
    }
    for bar in endpoint.bars() {
        shape.u8(bar.index);
        shape.bool(bar.space == BarSpace::Io);
        shape.bool(bar.width == BarWidth::Bits64);
        shape.u64(bar.size);
    }
    shape.u16(endpoint.msi_vectors());
    shape.u16(endpoint.msix().map_or(0, |msix| msix.layout().vectors));
    endpoint.moving(&mut shape);
    migrate.shape(&mut shape);
    let shape = shape.finish();
    let mut head = StateWriter::default();
    head.bytes(MAGIC);
    head.u32(VERSION);
    head.u32(u32::try_from(shape.len()).unwrap_or(u32::MAX));
    head.bytes(&shape);
    Some(head.finish())
}

/// The whole stream of a function that is at rest; `None` for one that stays.
pub fn save(function: &dyn Function) -> Option<Vec<u8>> {
    let migrate = function.migrate()?;
    let mut state = StateWriter::default();
    function.endpoint().save(&mut state);
    migrate.save(&mut state);
    let state = state.finish();
    let mut stream = StateWriter::default();
    stream.bytes(&shape(function)?);
    stream.u32(u32::try_from(state.len()).unwrap_or(u32::MAX));
    stream.bytes(&state);
    let mut stream = stream.finish();
    let sum = checksum(&stream);
    stream.extend(sum.to_le_bytes());
    Some(stream)
}

/// Whether a stream that begins with `bytes` may be one for this function.
pub fn check(function: &dyn Function, bytes: &[u8]) -> Result<(), StateError> {
    let shape = shape(function).ok_or(StateError::Other)?;
    let same = shape.iter().zip(bytes).all(|(ours, theirs)| ours == theirs);
    match same && bytes.len() <= MOST {
        true => Ok(()),
        false => Err(StateError::Other),
    }
}

/// Loads a whole stream into a function that is at rest, or nothing of it.
pub fn load(function: &dyn Function, stream: &[u8]) -> Result<(), StateError> {
    let migrate = function.migrate().ok_or(StateError::Other)?;
    check(function, stream)?;
    let (body, sum) = stream.split_last_chunk().ok_or(StateError::Short)?;
    let head = shape(function).ok_or(StateError::Other)?;
    let mut reader = StateReader::new(body);
    reader.bytes(head.len())?;
    let length = usize::try_from(reader.u32()?).map_err(|_| StateError::Short)?;
    if reader.left() < length {
        return Err(StateError::Short);
    }
    let mut state = StateReader::new(reader.bytes(length)?);
    reader.finish()?;
    if checksum(body) != u32::from_le_bytes(*sum) {
        return Err(StateError::Impossible("another checksum than its own"));
    }
    let endpoint = function.endpoint();
    let moved = endpoint.parse(&mut state)?;
    migrate.load(state)?;
    endpoint.load(moved);
    Ok(())
}

/// CRC-32 with the reflected polynomial of IEEE 802.3.
pub fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = 0_u32.wrapping_sub(sum & 1);
            sum = sum >> 1 ^ carry & 0xedb8_8320;
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_ieee_802_3() {
        // The check value of "123456789" in catalogues of CRCs.
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
        assert_eq!(checksum(b""), 0);
    }
}
