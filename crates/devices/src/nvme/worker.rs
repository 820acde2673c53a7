//! One quantum of a controller's worker: commands in, completions out.

use iogate_dma::Iova;
use iogate_pci::{After, BusError, Life};

use super::Nvme;
use super::buffer::Paths;
use super::prp::{Segment, gather};
use super::spec::command::Command;
use super::spec::completion::Status;
use super::spec::log::ErrorEntry;
use super::state::{State, Transition, Waiting};

/// Commands of one quantum.
const COMMANDS: u32 = 32;
/// Bytes of data after which a quantum ends.
const DATA: u64 = 1 << 20;
/// Maximum Data Transfer Size, as a power of two of pages: 512 KiB.
pub(super) const MDTS: u8 = 7;
pub(super) const MAX_TRANSFER: u64 = 4096 << MDTS;
/// Bytes that are moved at a time.
const CHUNK: usize = 64 << 10;

/// Why a command, or the whole quantum, goes no further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// The command ends with this status.
    Status(Status),
    /// A request for its data was refused.
    Refused,
    /// The function was reset.
    Reset,
}

impl From<BusError> for Stop {
    fn from(error: BusError) -> Self {
        match error {
            BusError::Refused(_) => Self::Refused,
            BusError::Reset => Self::Reset,
        }
    }
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// What a command leaves to be done.
pub(super) enum Reply {
    /// A completion with this Dword 0.
    Complete(u32),
    /// Nothing yet: it is answered later.
    Hold,
}

/// Buffers that a worker keeps from one quantum to the next.
#[derive(Default)]
pub(super) struct Scratch {
    /// [`CHUNK`] bytes once used.
    data: Vec<u8>,
    segments: Vec<Segment>,
}

/// A quantum under way.
pub(super) struct Quantum<'w> {
    pub(super) nvme: &'w Nvme,
    bus: Paths<'w>,
    life: Life,
    scratch: Scratch,
    /// Bytes of data so far.
    moved: u64,
    /// Vectors to raise when the quantum ends.
    vectors: u128,
}

impl<'w> Quantum<'w> {
    pub(super) fn new(nvme: &'w Nvme, bus: Paths<'w>, life: Life, scratch: Scratch) -> Self {
        Self {
            nvme,
            bus,
            life,
            scratch,
            moved: 0,
            vectors: 0,
        }
    }

    pub(super) fn into_scratch(self) -> Scratch {
        self.scratch
    }

    /// Does the quantum.
    pub(super) fn run(&mut self) -> After {
        let done = self.transition().and_then(|()| self.commands());
        self.interrupt();
        match done {
            Ok(()) => self.nvme.lock().after(),
            // Work of the new life has been announced by its own register
            // accesses.
            Err(_) => After::Nothing,
        }
    }

    /// Works on the state, unless it belongs to another life.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T, Stop> {
        let mut state = self.nvme.lock();
        match state.life == self.life {
            true => Ok(work(&mut state)),
            false => Err(Stop::Reset),
        }
    }

    fn transition(&mut self) -> Result<(), Stop> {
        // Disable, enable, shut down: at most one of each follows another.
        for _ in 0..3 {
            match self.with(|state| state.transition())? {
                Some(Transition::Disable) => self.with(State::disable)?,
                Some(Transition::Enable) => self.with(State::enable)?,
                Some(Transition::Shutdown) => {
                    // A failure has no place to be told.
                    let _ = self.nvme.storage.flush();
                    self.with(|state| {
                        if state.transition() == Some(Transition::Shutdown) {
                            state.csts.set_shst(2);
                        }
                    })?;
                }
                None => break,
            }
        }
        Ok(())
    }

    fn commands(&mut self) -> Result<(), Stop> {
        for _ in 0..COMMANDS {
            self.events()?;
            let stop = |state: &mut State| match state.transition() {
                Some(_) => None,
                None => state.waiting(),
            };
            let Some(waiting) = self.with(stop)? else {
                return Ok(());
            };
            self.command(&waiting)?;
            if self.moved >= DATA {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Answers a held Asynchronous Event Request, if there is news.
    fn events(&mut self) -> Result<(), Stop> {
        let due = self.with(|state| match state.can_tell() {
            true => state.events.take(),
            false => None,
        })?;
        match due {
            Some((cid, dw0)) => self.complete(0, cid, dw0, Status::SUCCESS),
            None => Ok(()),
        }
    }

    fn command(&mut self, waiting: &Waiting) -> Result<(), Stop> {
        let mut entry = [0; 64];
        if let Err(error) = self.bus.read(Iova(waiting.address), &mut entry) {
            return self.fatal(error);
        }
        self.with(|state| state.fetched(waiting.sq))?;
        let command = Command::parse(&entry);
        let cid = command.cdw0.cid();
        let (dw0, status) = match self.execute(waiting.sq, &command) {
            Ok(Reply::Complete(dw0)) => (dw0, Status::SUCCESS),
            Ok(Reply::Hold) => return Ok(()),
            Err(Stop::Status(status)) => (0, status),
            Err(Stop::Refused) => {
                let answer = format!("answered NVMe status 0x04, sq {} cid {cid}", waiting.sq);
                self.bus.answered(&answer);
                (0, Status::DATA_TRANSFER)
            }
            Err(Stop::Reset) => return Err(Stop::Reset),
        };
        if status != Status::SUCCESS {
            self.record(waiting.sq, &command, status)?;
        }
        self.complete(waiting.sq, cid, dw0, status)
    }

    fn execute(&mut self, sq: u16, command: &Command) -> Result<Reply, Stop> {
        // Fused operations and SGLs are not supported.
        if command.cdw0.fuse() != 0 || command.cdw0.psdt() != 0 {
            return Err(Status::INVALID_FIELD.into());
        }
        match sq {
            0 => self.admin(command),
            _ => self.io(command).map(Reply::Complete),
        }
    }

    /// Keeps an error for the error log page.
    fn record(&self, sqid: u16, command: &Command, status: Status) -> Result<(), Stop> {
        self.with(|state| {
            state.counters.errors = state.counters.errors.saturating_add(1);
            let [_, _, low, high] = status.dw3(0, false).into_bits().to_le_bytes();
            state.last_error = ErrorEntry {
                count: state.counters.errors,
                sqid,
                cid: command.cdw0.cid(),
                status: u16::from_le_bytes([low, high]),
                nsid: command.nsid,
            };
        })
    }

    /// Writes a completion for a command of `sq`. There is room: it was asked
    /// for before the command was fetched, and hosts only ever make more.
    pub(super) fn complete(
        &mut self,
        sq: u16,
        cid: u16,
        dw0: u32,
        status: Status,
    ) -> Result<(), Stop> {
        let Some(place) = self.with(|state| state.place(sq))? else {
            return Ok(());
        };
        let dw2 = u32::from(sq) << 16 | place.head;
        let dw3 = status.dw3(cid, place.phase).into_bits();
        let mut head = [0; 12];
        for (byte, value) in head.iter_mut().zip(
            dw0.to_le_bytes()
                .into_iter()
                .chain([0; 4])
                .chain(dw2.to_le_bytes()),
        ) {
            *byte = value;
        }
        // The phase tag last: the host looks at nothing else before it.
        let written = self.bus.write(Iova(place.address), &head).and_then(|()| {
            let last = place.address.wrapping_add(12);
            self.bus.write(Iova(last), &dw3.to_le_bytes())
        });
        if let Err(error) = written {
            return self.fatal(error);
        }
        if let Some(vector) = self.with(|state| state.completed(place.cq))? {
            self.vectors |= 1_u128.wrapping_shl(vector.into());
        }
        Ok(())
    }

    /// An entry of a queue cannot be reached.
    fn fatal(&mut self, error: BusError) -> Result<(), Stop> {
        if error == BusError::Reset {
            return Err(Stop::Reset);
        }
        self.bus.answered("set Controller Fatal Status (CSTS.CFS)");
        self.with(|state| state.csts.set_cfs(true))
    }

    fn interrupt(&mut self) {
        let mut vectors = std::mem::take(&mut self.vectors);
        while let Ok(vector @ 0..128) = u16::try_from(vectors.trailing_zeros()) {
            self.bus.raise(vector);
            vectors &= vectors.wrapping_sub(1);
        }
        let bus = &self.bus;
        // A life that has ended has no line.
        let _ = self.with(|state| bus.set_line(state.line()));
    }

    /// Writes a data structure to where a command wants it.
    pub(super) fn answer(&mut self, command: &Command, data: &[u8]) -> Result<(), Stop> {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.gather(command, length)?;
        let mut rest = data;
        for segment in &self.scratch.segments {
            let now = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_checked(now).unwrap_or((rest, &[]));
            self.bus.write(Iova(segment.address), now)?;
            rest = later;
        }
        Ok(())
    }

    /// Finds the segments of a command's data.
    fn gather(&mut self, command: &Command, length: u64) -> Result<(), Stop> {
        self.moved = self.moved.saturating_add(length);
        let prps = (command.prp1, command.prp2);
        gather(&mut self.bus, prps, length, &mut self.scratch.segments)
    }

    /// Moves `length` bytes of a command's data through the scratch buffer, a
    /// chunk at a time: `step` is given the bus, the address, the offset in
    /// the data and the buffer.
    pub(super) fn transfer(
        &mut self,
        command: &Command,
        length: u64,
        mut step: impl FnMut(&mut Paths<'w>, Iova, u64, &mut [u8]) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        self.gather(command, length)?;
        self.scratch.data.resize(CHUNK, 0);
        let mut offset = 0_u64;
        for segment in &self.scratch.segments {
            let mut address = segment.address;
            let mut rest = segment.length;
            while rest != 0 {
                let now = usize::try_from(rest).map_or(CHUNK, |rest| rest.min(CHUNK));
                let buffer = self.scratch.data.get_mut(..now).unwrap_or_default();
                step(&mut self.bus, Iova(address), offset, buffer)?;
                let now = u64::try_from(now).unwrap_or(rest);
                // A segment does not wrap: its pieces were joined by addresses
                // that do not.
                address = address.wrapping_add(now);
                offset = offset.saturating_add(now);
                rest = rest.saturating_sub(now);
            }
        }
        Ok(())
    }

    /// Counts data that no PRP entry names.
    pub(super) fn charge(&mut self, bytes: u64) {
        self.moved = self.moved.saturating_add(bytes);
    }
}
