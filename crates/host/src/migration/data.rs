//! What flows over a migration's data descriptor. The file operations are as
//! those of Linux `drivers/vfio/pci/mlx5/main.c`: `mlx5vf_save_read`,
//! `mlx5vf_resume_write`, `mlx5vf_precopy_ioctl`.

use std::sync::Arc;

use iogate_pci::migration;

use crate::iommufd::Readiness;
use crate::slot::{DeviceState, Slot};
use crate::{Error, ErrorKind, FileId, FileKind, Host};

/// Which way the data of a session flows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// The client reads.
    Saving,
    /// The client writes.
    Resuming,
}

/// One transfer, from the state that began it to the one that ends it.
pub(super) struct Session {
    pub(super) file: FileId,
    /// What was written, or what there is to read.
    pub(super) bytes: Vec<u8>,
    /// Where the next read begins.
    position: usize,
    /// A write was refused.
    failed: bool,
    /// Told whether there is something to read.
    readiness: Option<Arc<dyn Readiness>>,
}

/// The answer to VFIO_MIG_GET_PRECOPY_INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrecopyInfo {
    /// Bytes that there are to read of what was there at the beginning.
    pub initial_bytes: u64,
    /// Bytes of what changed since.
    pub dirty_bytes: u64,
    /// Whether the flags of the answer mean something.
    pub has_flags: bool,
}

impl Session {
    pub(super) fn new(file: FileId) -> Self {
        Self {
            file,
            bytes: Vec::new(),
            position: 0,
            failed: false,
            readiness: None,
        }
    }

    fn left(&self) -> &[u8] {
        self.bytes.get(self.position..).unwrap_or_default()
    }

    /// Tells whether bytes, or the end after all of them, can be read.
    fn tell(&self, early: bool) {
        if let Some(readiness) = &self.readiness {
            match early && self.left().is_empty() {
                true => readiness.drained(),
                false => readiness.filled(),
            }
        }
    }
}

impl Drop for Session {
    /// Whoever waits finds that the transfer is over.
    fn drop(&mut self) {
        if let Some(readiness) = &self.readiness {
            readiness.filled();
        }
    }
}

const OVER: Error = Error::new(ErrorKind::NoDevice, "the transfer is over");
const WRONG_WAY: Error = Error::new(
    ErrorKind::BadDescriptor,
    "the data flows the other way over this descriptor",
);

impl Host {
    /// The device of a data descriptor that flows this way: EBADF if it flows
    /// the other way, EINVAL if it is none.
    fn data_slot(&self, file: FileId, wanted: Direction) -> Result<&Slot, Error> {
        match self.kind(file) {
            Some(FileKind::Migration { device, direction }) if direction == wanted => {
                self.slot(device)
            }
            Some(FileKind::Migration { .. }) => Err(WRONG_WAY),
            _ => Err(Error::invalid("no data of a migration")),
        }
    }

    /// Reads at most `length` bytes of a device's state and has `give` take
    /// them; what it refuses is read again. 0 at the end. ENODEV when the
    /// transfer is over; ENOMSG in a PRE_COPY state when there is no more now.
    pub fn migration_read<E: From<Error>>(
        &self,
        file: FileId,
        length: usize,
        give: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let slot = self.data_slot(file, Direction::Saving)?;
        let mut state = slot.lock();
        let early = state.migration.state.is_early();
        let session = state.migration.session_of(file)?;
        let left = session.left();
        let now = left.get(..length).unwrap_or(left);
        if now.is_empty() && length != 0 && early {
            let reason = "all that is known of the state before STOP_COPY was read";
            return Err(Error::new(ErrorKind::NoMessage, reason).into());
        }
        let (now, position) = (now.to_vec(), session.position);
        // The client's memory may keep its reader waiting.
        drop(state);
        give(&now)?;
        let end = position.saturating_add(now.len());
        if let Ok(session) = slot.lock().migration.session_of(file) {
            session.position = session.position.max(end);
            session.tell(early);
        }
        Ok(now.len())
    }

    /// Takes more of a state to load. ENODEV when the transfer is over or a
    /// write before was refused; EINVAL for what cannot be a state of this
    /// device.
    pub fn migration_write(&self, file: FileId, bytes: &[u8]) -> Result<(), Error> {
        let slot = self.data_slot(file, Direction::Resuming)?;
        let mut state = slot.lock();
        let session = state.migration.session_of(file)?;
        if session.failed {
            return Err(OVER);
        }
        let length = session.bytes.len().saturating_add(bytes.len());
        if length <= migration::MOST {
            session.bytes.extend(bytes);
        }
        let checked = migration::check(&*slot.device.function, &session.bytes);
        if length > migration::MOST || checked.is_err() {
            session.failed = true;
            return Err(REFUSED);
        }
        Ok(())
    }

    /// VFIO_MIG_GET_PRECOPY_INFO: ENOTTY on a descriptor to write to, EINVAL
    /// outside of the PRE_COPY states, ENODEV when this transfer is over.
    /// What is known early does not change: what does change is all read in
    /// STOP_COPY.
    pub fn precopy_info(&self, file: FileId) -> Result<PrecopyInfo, Error> {
        let slot = self.data_slot(file, Direction::Saving)?;
        let mut state = slot.lock();
        let has_flags = state.migration.precopy_info_v2;
        if !state.migration.state.is_early() {
            return Err(Error::invalid("the device is in no PRE_COPY state"));
        }
        let session = state.migration.session_of(file)?;
        Ok(PrecopyInfo {
            initial_bytes: u64::try_from(session.left().len()).unwrap_or(u64::MAX),
            dirty_bytes: 0,
            has_flags,
        })
    }

    /// Whether a descriptor of a migration's data is one to read from;
    /// `None` if it is none.
    pub fn migration_direction(&self, file: FileId) -> Option<Direction> {
        match self.kind(file)? {
            FileKind::Migration { direction, .. } => Some(direction),
            _ => None,
        }
    }

    /// Has `readiness` told from now on whether there is something to read:
    /// bytes, the end of all of them, or that the transfer is over.
    /// `mlx5vf_save_poll`.
    pub fn migration_watch(
        &self,
        file: FileId,
        readiness: Arc<dyn Readiness>,
    ) -> Result<(), Error> {
        let slot = self.data_slot(file, Direction::Saving)?;
        let mut state = slot.lock();
        let session = state.migration.session_of(file)?;
        session.readiness = Some(readiness);
        state.migration.tell();
        Ok(())
    }
}

pub(super) const REFUSED: Error = Error::invalid("this is no state that the device can take");

impl super::Migration {
    /// Tells what there is to read in the present state.
    pub(super) fn tell(&self) {
        if let Some(session) = &self.session {
            session.tell(self.state.is_early());
        }
    }

    /// The session of a data descriptor: ENODEV if it is over.
    fn session_of(&mut self, file: FileId) -> Result<&mut Session, Error> {
        let session = self.session.as_mut();
        session.filter(|session| session.file == file).ok_or(OVER)
    }
}

impl Slot {
    /// Takes the state that was written. Nothing is no state: who wants none
    /// resets the device. include/uapi/linux/vfio.h, RESUMING -> STOP.
    pub(super) fn load(&self, state: &mut DeviceState) -> Result<(), Error> {
        let Some(session) = state.migration.session.take() else {
            return Ok(());
        };
        if session.failed {
            return Err(REFUSED);
        }
        let loaded = migration::load(&*self.device.function, &session.bytes);
        loaded.map_err(|_| REFUSED)?;
        self.settle_power(state);
        Ok(())
    }
}
