//! Moving a device's state: VFIO_DEVICE_FEATURE_MIGRATION and what belongs to
//! it. Linux `drivers/vfio/vfio_main.c` and, where a driver decides,
//! `drivers/vfio/pci/mlx5/main.c`.

mod data;
mod states;

use iogate_pci::{After, Migrate, migration};

use crate::slot::{DeviceState, Slot};
use crate::state::File;
use crate::{Error, ErrorKind, FileId, FileKind, Host, Path, Retired};

pub use data::{Direction, PrecopyInfo};
pub use states::MigrationState;

use data::Session;

/// A device's migration, as its open files share it.
#[derive(Default)]
pub(crate) struct Migration {
    state: MigrationState,
    session: Option<Session>,
    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 was set.
    precopy_info_v2: bool,
}

/// What a change of state came to.
#[derive(Default)]
pub struct MigrationChange {
    /// The file over which the state flows now, to be handed to the client.
    pub data: Option<FileId>,
    /// What is left to be done.
    pub retired: Retired,
}

const STAYS: Error = Error::new(ErrorKind::NoSuchCall, "the device's state cannot be moved");

impl Host {
    /// ENOTTY unless the device's state can be moved; then it has all optional
    /// states.
    pub fn migration_check(&self, device: usize) -> Result<(), Error> {
        self.slot(device)?.migrate().map(drop)
    }

    /// The state of a device's migration. ENOTTY.
    pub fn migration_state(&self, device: usize) -> Result<MigrationState, Error> {
        let slot = self.slot(device)?;
        slot.migrate()?;
        Ok(slot.lock().migration.state)
    }

    /// Goes to a state, step by step. ENOTTY; EINVAL where no way leads there,
    /// and for a state that cannot be loaded, which is an error that lasts;
    /// EBUSY if the device's worker does not come to rest. After an error the
    /// device is in the last state that it reached.
    /// `mlx5vf_pci_set_device_state`.
    pub fn migration_set(&self, device: usize, to: u32) -> Result<MigrationChange, Error> {
        let slot = self.slot(device)?;
        slot.migrate()?;
        let mut change = MigrationChange::default();
        let mut state = slot.lock();
        self.go(slot, &mut state, to, &mut change)?;
        Ok(change)
    }

    fn go(
        &self,
        slot: &Slot,
        state: &mut DeviceState,
        to: u32,
        change: &mut MigrationChange,
    ) -> Result<(), Error> {
        while state.migration.state.number() != to {
            let to = MigrationState::from_number(to)?;
            let next = state.migration.state.next(to)?;
            match self.step(slot, state, next, change) {
                Ok(()) => {
                    state.migration.state = next;
                    state.migration.tell();
                }
                Err(error) => {
                    if error == data::REFUSED {
                        state.migration.state = MigrationState::Error;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// One arc. `mlx5vf_pci_step_device_state_locked`.
    fn step(
        &self,
        slot: &Slot,
        state: &mut DeviceState,
        next: MigrationState,
        change: &mut MigrationChange,
    ) -> Result<(), Error> {
        use MigrationState as S;
        let now = state.migration.state;
        if now.works() && !next.works() {
            slot.rest()?;
        }
        if now == S::Resuming {
            slot.load(state)?;
        }
        if now.saves() && !next.saves() {
            state.migration.session = None;
        }
        let function = &*slot.device.function;
        if next == S::Resuming {
            self.begin(slot, state, Direction::Resuming, change);
        } else if next.saves() && !now.saves() {
            self.begin(slot, state, Direction::Saving, change);
            if let (Some(session), Some(shape)) =
                (&mut state.migration.session, migration::shape(function))
            {
                session.bytes = shape;
            }
        }
        if next == S::StopCopy
            && now != S::StopCopy
            && let (Some(session), Some(stream)) =
                (&mut state.migration.session, migration::save(function))
        {
            // It begins with what was there before.
            session.bytes = stream;
        }
        if next.works() && !now.works() {
            let after = slot.resume()?;
            if after == After::Work {
                change.retired.work = Some(slot.device.index);
            }
        }
        Ok(())
    }

    fn begin(
        &self,
        slot: &Slot,
        state: &mut DeviceState,
        direction: Direction,
        change: &mut MigrationChange,
    ) {
        let file = self.enter(File {
            kind: FileKind::Migration {
                device: slot.device.index,
                direction,
            },
            path: Path::Group,
            usable: true,
        });
        state.migration.session = Some(Session::new(file));
        change.data = Some(file);
    }

    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: how long the stream of the whole
    /// state is. ENOTTY.
    pub fn migration_data_size(&self, device: usize) -> Result<u64, Error> {
        let slot = self.slot(device)?;
        slot.migrate()?;
        // Its length does not depend on what the device does.
        let stream = migration::save(&*slot.device.function);
        let length = stream.map_or(0, |stream| stream.len());
        Ok(u64::try_from(length).unwrap_or(u64::MAX))
    }

    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, until the last close.
    pub fn set_precopy_info_v2(&self, device: usize) -> Result<(), Error> {
        self.slot(device)?.lock().migration.precopy_info_v2 = true;
        Ok(())
    }
}

impl Slot {
    fn migrate(&self) -> Result<&dyn Migrate, Error> {
        self.device.function.migrate().ok_or(STAYS)
    }

    /// The device makes no requests from now on and gives no interrupts.
    fn rest(&self) -> Result<(), Error> {
        let busy = Error::new(ErrorKind::Busy, "the device does not come to rest");
        self.migrate()?.quiesce().map_err(|_| busy)?;
        self.endpoint().hold();
        Ok(())
    }

    fn resume(&self) -> Result<After, Error> {
        self.endpoint().release();
        Ok(self.migrate()?.resume())
    }

    /// A reset ends all that migration is about, errors included; to be called
    /// before the function is reset. `mlx5vf_pci_aer_reset_done`.
    pub(crate) fn reset_migration(&self, state: &mut DeviceState) {
        if let Some(migrate) = self.device.function.migrate()
            && !state.migration.state.works()
        {
            // What it would work on is forgotten by the reset.
            let _ = migrate.resume();
        }
        state.migration.state = MigrationState::Running;
        state.migration.session = None;
    }

    /// The last file was closed. `vfio_df_device_last_close`,
    /// `mlx5vf_cmd_close_migratable`.
    pub(crate) fn close_migration(&self, state: &mut DeviceState) {
        self.reset_migration(state);
        state.migration.precopy_info_v2 = false;
        state.logging = None;
        self.device.attachment.set_log(None);
    }
}
