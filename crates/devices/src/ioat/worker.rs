//! One quantum of the channel: descriptors in, copies, completions out.

use iogate_dma::Iova;
use iogate_pci::{After, Bus, BusError, Life};

use super::Ioat;
use super::spec::descriptor::{Descriptor, SIZE, operation};
use super::spec::registers::ChannelError;
use super::state::{Job, State};

/// Descriptors of one quantum.
const DESCRIPTORS: u32 = 64;
/// Bytes after which a quantum ends.
const DATA: u64 = 1 << 20;
/// Bytes that are moved at a time.
const CHUNK: usize = 64 << 10;

/// Why a descriptor goes no further.
enum Stop {
    Error(ChannelError),
    Reset,
}

impl Stop {
    fn from_bus(error: BusError, refused: ChannelError) -> Self {
        match error {
            BusError::Refused(_) => Self::Error(refused),
            BusError::Reset => Self::Reset,
        }
    }
}

pub(super) struct Quantum<'w> {
    pub(super) ioat: &'w Ioat,
    pub(super) bus: Bus<'w>,
    pub(super) life: Life,
    /// [`CHUNK`] bytes once used.
    pub(super) buffer: Vec<u8>,
}

impl Quantum<'_> {
    pub(super) fn run(&mut self) -> After {
        let mut moved = 0_u64;
        for _ in 0..DESCRIPTORS {
            match self.with(State::begin) {
                None => return After::Nothing,
                Some(None) => break,
                Some(Some(job)) => match self.descriptor(job) {
                    Some(bytes) => moved = moved.saturating_add(bytes),
                    None => return After::Nothing,
                },
            }
            if moved >= DATA {
                break;
            }
        }
        self.with(|state| state.after()).unwrap_or(After::Nothing)
    }

    /// Works on the state, unless the function was reset.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut state = self.ioat.lock();
        (state.life == self.life).then(|| work(&mut state))
    }

    /// Does one descriptor; its bytes, or `None` after a reset.
    fn descriptor(&mut self, job: Job) -> Option<u64> {
        let bytes = match self.execute(job) {
            Ok(descriptor) => {
                self.with(|state| state.finish(job.address, descriptor.next))?;
                if descriptor.control.interrupt() {
                    self.interrupt()?;
                }
                descriptor.size.into()
            }
            Err(Stop::Error(error)) => {
                let bits = error.into_bits();
                let answer = format!("set Channel Error (CHANERR) {bits:#x} and halted");
                self.bus.answered(&answer);
                let (status, address, control) =
                    self.with(|state| (state.fail(error), state.completion, state.control))?;
                if control.error_completion() && !error.completion_address() {
                    match self.complete(address, status) {
                        Ok(()) => {}
                        Err(Stop::Error(error)) => {
                            self.with(|state| state.fail(error))?;
                        }
                        Err(Stop::Reset) => return None,
                    }
                }
                if control.error_interrupt() {
                    self.interrupt()?;
                }
                0
            }
            Err(Stop::Reset) => return None,
        };
        self.with(State::put_down)?;
        Some(bytes)
    }

    /// Writes the channel's status to its completion address.
    fn complete(&mut self, address: u64, status: u64) -> Result<(), Stop> {
        let refused = ChannelError::new().with_completion_address(true);
        let written = self.bus.write(Iova(address), &status.to_le_bytes());
        written.map_err(|error| Stop::from_bus(error, refused))
    }

    fn interrupt(&self) -> Option<()> {
        let bus = &self.bus;
        let message = self.with(|state| {
            let message = state.interrupt();
            bus.set_line(state.line());
            message
        })?;
        if message {
            bus.raise(0);
        }
        Some(())
    }

    fn execute(&mut self, job: Job) -> Result<Descriptor, Stop> {
        let nowhere = match job.first {
            true => ChannelError::new().with_chain_address(true),
            false => ChannelError::new().with_next_address(true),
        };
        if !job.address.is_multiple_of(SIZE) {
            return Err(Stop::Error(nowhere));
        }
        let bytes = self.bus.read_array(Iova(job.address));
        let bytes = bytes.map_err(|error| Stop::from_bus(error, nowhere))?;
        let descriptor = Descriptor::parse(&bytes);
        let capacity = self.with(|state| state.transfer_capacity());
        let capacity = capacity.ok_or(Stop::Reset)?;
        if descriptor.size == 0 || descriptor.size > 1_u32.wrapping_shl(capacity.into()) {
            return Err(Stop::Error(ChannelError::new().with_length(true)));
        }
        match descriptor.control.operation() {
            _ if descriptor.control.null() => {}
            operation::COPY => self.copy(&descriptor)?,
            operation::FILL => self.fill(&descriptor)?,
            _ => return Err(Stop::Error(ChannelError::new().with_control(true))),
        }
        if descriptor.control.completion() {
            // In memory before registers show it.
            let report = |state: &mut State| (state.report(job.address), state.completion);
            let (status, address) = self.with(report).ok_or(Stop::Reset)?;
            self.complete(address, status)?;
        }
        Ok(descriptor)
    }

    fn copy(&mut self, descriptor: &Descriptor) -> Result<(), Stop> {
        self.pieces(descriptor, |bus, offset, buffer| {
            let source = Iova(descriptor.source.wrapping_add(offset));
            let refused = ChannelError::new().with_source_address(true);
            let read = bus.read(source, buffer);
            read.map_err(|error| Stop::from_bus(error, refused))
        })
    }

    fn fill(&mut self, descriptor: &Descriptor) -> Result<(), Stop> {
        let pattern = descriptor.source.to_le_bytes();
        self.pieces(descriptor, |_, _, buffer| {
            // Pieces are multiples of 8 but for the last.
            for (byte, value) in buffer.iter_mut().zip(pattern.iter().cycle()) {
                *byte = *value;
            }
            Ok(())
        })
    }

    /// Writes a descriptor's destination a chunk at a time, each filled by
    /// `source` for its offset.
    fn pieces(
        &mut self,
        descriptor: &Descriptor,
        mut source: impl FnMut(&mut Bus<'_>, u64, &mut [u8]) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        self.buffer.resize(CHUNK, 0);
        let mut offset = 0_u64;
        let mut rest = usize::try_from(descriptor.size).unwrap_or(0);
        while rest != 0 {
            let now = rest.min(CHUNK);
            let buffer = self.buffer.get_mut(..now).unwrap_or_default();
            source(&mut self.bus, offset, buffer)?;
            let destination = Iova(descriptor.destination.wrapping_add(offset));
            let refused = ChannelError::new().with_destination_address(true);
            let written = self.bus.write(destination, buffer);
            written.map_err(|error| Stop::from_bus(error, refused))?;
            offset = offset.saturating_add(u64::try_from(now).unwrap_or(u64::MAX));
            rest = rest.saturating_sub(now);
        }
        Ok(())
    }
}
