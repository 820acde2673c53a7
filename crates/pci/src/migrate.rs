//! What a model does so that its state can move to another function of its
//! kind, and the plain encoding of such a state.

use crate::After;

/// A worker did not leave its quantum: its client's memory does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the function's worker does not come to rest")]
pub struct StillWorking;

/// Why a state cannot be loaded. The function is as it was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateError {
    /// It ends too early.
    #[error("the state ends too early")]
    Short,
    /// Something follows where it should end.
    #[error("the state is longer than this function's")]
    Long,
    /// It is of another version, model or shape.
    #[error("the state is one of another kind of function")]
    Other,
    /// A value that this function can never have.
    #[error("the state holds {0}")]
    Impossible(&'static str),
}

/// The part of a function that moves its state.
///
/// Configuration space and interrupts are moved by
/// [`migration`](crate::migration), which everybody but the model calls.
pub trait Migrate: Send + Sync {
    /// What this function was built as and another must be too, in the
    /// model's own encoding.
    fn shape(&self, into: &mut StateWriter);

    /// Comes to rest: when this returns, the worker is in no quantum, and
    /// [`Function::work`](crate::Function::work) does nothing until
    /// [`resume`](Self::resume). Registers answer on; what they ask for waits.
    /// At rest already, nothing happens.
    fn quiesce(&self) -> Result<(), StillWorking>;

    /// Goes on; says whether there is work.
    fn resume(&self) -> After;

    /// Writes the device's own state. The function is at rest.
    fn save(&self, into: &mut StateWriter);

    /// Takes the state of another function of the same shape, which is all of
    /// `from`, or nothing of it. The function is at rest.
    fn load(&self, from: StateReader<'_>) -> Result<(), StateError>;
}

/// Writes a state, little-endian.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StateWriter(Vec<u8>);

impl StateWriter {
    /// Adds a byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    /// Adds yes or no.
    pub fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    /// Adds 16 bits.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    /// Adds 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Adds 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Adds bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads what a [`StateWriter`] has written, and trusts none of it.
#[derive(Clone, Copy, Debug)]
pub struct StateReader<'s>(&'s [u8]);

impl<'s> StateReader<'s> {
    /// Begins at the first byte.
    pub fn new(bytes: &'s [u8]) -> Self {
        Self(bytes)
    }

    /// Takes a number of bytes.
    pub fn bytes(&mut self, length: usize) -> Result<&'s [u8], StateError> {
        let (now, rest) = self.0.split_at_checked(length).ok_or(StateError::Short)?;
        self.0 = rest;
        Ok(now)
    }

    /// Takes `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (now, rest) = self.0.split_first_chunk().ok_or(StateError::Short)?;
        self.0 = rest;
        Ok(*now)
    }

    /// Takes a byte.
    pub fn u8(&mut self) -> Result<u8, StateError> {
        self.array().map(u8::from_le_bytes)
    }

    /// Takes yes or no.
    pub fn bool(&mut self) -> Result<bool, StateError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError::Impossible("an answer that is not yes or no")),
        }
    }

    /// Takes 16 bits.
    pub fn u16(&mut self) -> Result<u16, StateError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Takes 32 bits.
    pub fn u32(&mut self) -> Result<u32, StateError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes 64 bits.
    pub fn u64(&mut self) -> Result<u64, StateError> {
        self.array().map(u64::from_le_bytes)
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// Ends: nothing may be left.
    pub fn finish(self) -> Result<(), StateError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(StateError::Long),
        }
    }
}
