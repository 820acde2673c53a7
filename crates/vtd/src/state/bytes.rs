//! Numbers to bytes and back, with a place for every error.

use super::StateError;

#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn flag(&mut self, value: bool) {
        self.bytes.push(value.into());
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// A number that is far below 2^32.
    pub(super) fn count(&mut self, value: usize) {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX));
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

pub(super) struct Reader<'b> {
    all: &'b [u8],
    /// How many bytes are read.
    at: usize,
    /// Where the number that was read last began.
    last: usize,
}

impl<'b> Reader<'b> {
    pub(super) fn new(all: &'b [u8]) -> Self {
        Self {
            all,
            at: 0,
            last: 0,
        }
    }

    /// Something is wrong with the number that was read last.
    pub(super) fn error(&self, what: &'static str) -> StateError {
        StateError {
            at: self.last,
            what,
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let rest = self.all.get(self.at..).unwrap_or_default();
        let found = rest.first_chunk::<N>().ok_or(StateError {
            at: self.all.len(),
            what: "the end comes too early",
        })?;
        self.last = self.at;
        self.at = self.at.saturating_add(N);
        Ok(*found)
    }

    pub(super) fn u16(&mut self) -> Result<u16, StateError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, StateError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, StateError> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn flag(&mut self, what: &'static str) -> Result<bool, StateError> {
        match self.take()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(self.error(what)),
        }
    }

    /// This very number, of `length` bytes.
    pub(super) fn expect(
        &mut self,
        value: u64,
        length: usize,
        what: &'static str,
    ) -> Result<(), StateError> {
        let found = match length {
            4 => self.u32()?.into(),
            _ => self.u64()?,
        };
        if found == value {
            Ok(())
        } else {
            Err(self.error(what))
        }
    }

    /// A number without bits outside of `mask`.
    pub(super) fn masked(&mut self, mask: u64, what: &'static str) -> Result<u64, StateError> {
        let value = self.u64()?;
        if value & !mask == 0 {
            Ok(value)
        } else {
            Err(self.error(what))
        }
    }

    /// The same, of 32 bits.
    pub(super) fn masked_u32(&mut self, mask: u32, what: &'static str) -> Result<u32, StateError> {
        let value = self.u32()?;
        if value & !mask == 0 {
            Ok(value)
        } else {
            Err(self.error(what))
        }
    }

    /// A number up to `most`.
    pub(super) fn count(&mut self, most: usize, what: &'static str) -> Result<usize, StateError> {
        let value = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if value <= most {
            Ok(value)
        } else {
            Err(self.error(what))
        }
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<(), StateError> {
        if self.at == self.all.len() {
            Ok(())
        } else {
            Err(StateError {
                at: self.at,
                what: "more than a state",
            })
        }
    }
}
