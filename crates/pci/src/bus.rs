//! A worker's way to memory and interrupts for as long as one life of its
//! function lasts.

use iogate_dma::{Access, DmaError, Iova, Line, Port, Width};

use crate::Endpoint;

/// One life of a function: from one reset to the next. A model keeps the life
/// that its state belongs to beside that state, under the same lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Life(pub(crate) u64);

/// Why a request of a worker did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BusError {
    /// The access was refused; the fault is already reported. The device
    /// answers as its specification says.
    #[error(transparent)]
    Refused(DmaError),
    /// The function was reset: there is nobody left to answer to.
    #[error("the function was reset")]
    Reset,
}

/// The bus above a function, for one quantum of its worker.
///
/// Requests are made only while Bus Master Enable is set, and nothing leaves
/// any more once the life has ended: that is asked under the port's guard, so
/// that whoever resets the function and waits for a grace has seen the last
/// request of the old life.
pub struct Bus<'w> {
    endpoint: &'w Endpoint,
    port: &'w mut Port,
    life: Life,
}

impl<'w> Bus<'w> {
    /// The bus for work on behalf of `life`, taken from the model's state.
    pub fn new(endpoint: &'w Endpoint, port: &'w mut Port, life: Life) -> Self {
        Self {
            endpoint,
            port,
            life,
        }
    }

    /// Reads `into.len()` bytes at `iova`. On an error a part may be filled.
    pub fn read(&mut self, iova: Iova, into: &mut [u8]) -> Result<(), BusError> {
        self.check(iova, into.len(), Access::Read)?;
        let (endpoint, life) = (self.endpoint, self.life);
        let done = self.port.read_while(iova, into, || endpoint.life() == life);
        done.map_err(BusError::from)
    }

    /// Writes `from` at `iova`. On an error a part may be written.
    pub fn write(&mut self, iova: Iova, from: &[u8]) -> Result<(), BusError> {
        self.check(iova, from.len(), Access::Write)?;
        let (endpoint, life) = (self.endpoint, self.life);
        let done = self
            .port
            .write_while(iova, from, || endpoint.life() == life);
        done.map_err(BusError::from)
    }

    /// Reads `N` bytes at `iova`.
    pub fn read_array<const N: usize>(&mut self, iova: Iova) -> Result<[u8; N], BusError> {
        let mut bytes = [0; N];
        self.read(iova, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads `width` bytes at `iova` as one access with acquire order, where
    /// memory can do that: an index before what it announces.
    pub fn load(&mut self, iova: Iova, width: Width) -> Result<u64, BusError> {
        self.check(iova, bytes(width), Access::Read)?;
        let (endpoint, life) = (self.endpoint, self.life);
        let done = self
            .port
            .load_while(iova, width, || endpoint.life() == life);
        done.map_err(BusError::from)
    }

    /// Writes the low `width` bytes of `value` at `iova` as one access with
    /// release order, where memory can do that: an index after what it
    /// announces.
    pub fn store(&mut self, iova: Iova, width: Width, value: u64) -> Result<(), BusError> {
        self.check(iova, bytes(width), Access::Write)?;
        let (endpoint, life) = (self.endpoint, self.life);
        let done = self
            .port
            .store_while(iova, width, value, || endpoint.life() == life);
        done.map_err(BusError::from)
    }

    /// [`Endpoint::raise`], unless the life has ended.
    pub fn raise(&self, vector: u16) {
        self.endpoint.raise_in(self.life, vector);
    }

    /// [`Endpoint::set_line`], unless the life has ended.
    pub fn set_line(&self, line: Line) {
        self.endpoint.set_line_in(self.life, line);
    }

    /// Says, in words for a person, what the device did about its last fault.
    pub fn answered(&self, answer: &str) {
        self.port.answered(answer);
    }

    /// Whether the function has not been reset since.
    pub fn is_alive(&self) -> bool {
        self.endpoint.life() == self.life
    }

    fn check(&mut self, iova: Iova, length: usize, access: Access) -> Result<(), BusError> {
        if !self.is_alive() {
            return Err(BusError::Reset);
        }
        if !self.endpoint.command().bus_master() {
            let length = u64::try_from(length).unwrap_or(u64::MAX);
            return Err(self.port.not_master(iova, length, access).into());
        }
        Ok(())
    }
}

fn bytes(width: Width) -> usize {
    match width {
        Width::Byte => 1,
        Width::Word => 2,
        Width::Dword => 4,
        Width::Qword => 8,
    }
}

impl From<DmaError> for BusError {
    fn from(error: DmaError) -> Self {
        match error {
            DmaError::Stopped => Self::Reset,
            error => Self::Refused(error),
        }
    }
}
