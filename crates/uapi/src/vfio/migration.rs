//! The features of VFIO_DEVICE_FEATURE that are about migration, and the call
//! on the descriptor of its data. Linux `drivers/vfio/vfio_main.c`.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::{Argument, read_value};
use super::feature::{FEATURE, Feature, flag};
use super::{Call, number, told, unknown};
use crate::{Answer, Errno};

/// VFIO_MIGRATION_STOP_COPY, VFIO_MIGRATION_P2P and VFIO_MIGRATION_PRE_COPY.
const FLAGS: u64 = 1 | 2 | 4;

/// `struct vfio_device_feature_mig_state`: device_state, data_fd.
type MigState = [u8; 8];

/// `struct vfio_precopy_info`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct PrecopyInfo {
    argsz: u32,
    flags: u32,
    initial_bytes: u64,
    dirty_bytes: u64,
}

impl Argument for PrecopyInfo {
    const MINIMUM: usize = 24;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// VFIO_DEVICE_FEATURE_MIGRATION. `vfio_ioctl_device_feature_migration`.
pub(super) fn features(call: &Call<'_>, device: usize, body: &Feature) -> Result<Answer, Errno> {
    call.host.migration_check(device)?;
    if body.is_got(8)? {
        call.client.write(call.at(FEATURE)?, &FLAGS.to_ne_bytes())?;
    }
    Ok(Answer::value(0))
}

/// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE.
/// `vfio_ioctl_device_feature_mig_device_state`.
pub(super) fn device_state(
    call: &Call<'_>,
    device: usize,
    body: &Feature,
) -> Result<Answer, Errno> {
    call.host.migration_check(device)?;
    let Some(operation) = body.operation(flag::GET | flag::SET, size_of::<MigState>())? else {
        return Ok(Answer::value(0));
    };
    let at = call.at(FEATURE)?;
    let given: MigState = read_value(call.client, at)?;
    let [a, b, c, d, ..] = given;
    let wanted = u32::from_ne_bytes([a, b, c, d]);
    let answer = |state: u32, fd: i32| {
        let [a, b, c, d] = state.to_ne_bytes();
        let [e, f, g, h] = fd.to_ne_bytes();
        call.client.write(at, &[a, b, c, d, e, f, g, h])
    };
    if operation == flag::GET {
        let state = call.host.migration_state(device)?;
        answer(state.number(), -1)?;
        return Ok(Answer::value(0));
    }
    let from = call.host.migration_state(device)?;
    let change = call.host.migration_set(device, wanted);
    let to = call.host.migration_state(device)?;
    tracing::event!(
        name: "migration_state",
        target: "iogate",
        tracing::Level::INFO,
        file = call.file.0,
        from = ?from,
        to = ?to,
        wanted,
        refusal = change.as_ref().err().map(|error| error.reason),
    );
    let change = match change {
        Ok(change) => change,
        Err(error) => {
            answer(wanted, -1)?;
            return Err(error.into());
        }
    };
    let told = match change.data {
        None => answer(wanted, -1).map_err(Errno::from),
        Some(file) => match call.client.install(file) {
            Ok(fd) => answer(wanted, fd).map_err(Errno::from),
            Err(errno) => {
                // Nobody holds it: nothing is left to be done.
                let _ = call.host.close(file);
                Err(errno)
            }
        },
    };
    Ok(match told {
        Ok(()) => change.retired.into(),
        // The device has changed its state all the same.
        Err(errno) => Answer::failed(errno, change.retired.into()),
    })
}

/// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE.
/// `vfio_ioctl_device_feature_migration_data_size`.
pub(super) fn data_size(call: &Call<'_>, device: usize, body: &Feature) -> Result<Answer, Errno> {
    call.host.migration_check(device)?;
    if body.is_got(8)? {
        let size = call.host.migration_data_size(device)?;
        call.client.write(call.at(FEATURE)?, &size.to_ne_bytes())?;
    }
    Ok(Answer::value(0))
}

/// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: EINVAL for a device that has no
/// PRE_COPY state. `vfio_ioctl_device_feature_migration_precopy_info_v2`.
pub(super) fn precopy_info_v2(
    call: &Call<'_>,
    device: usize,
    body: &Feature,
) -> Result<Answer, Errno> {
    if call.host.migration_check(device).is_err() {
        return Err(Errno::EINVAL);
    }
    if body.is_set(0)? {
        call.host.set_precopy_info_v2(device)?;
    }
    Ok(Answer::value(0))
}

/// One call on the descriptor of a migration's data.
pub(crate) fn ioctl(call: &Call<'_>, command: u32) -> Result<Answer, Errno> {
    const GET_PRECOPY_INFO: u32 = number(21);
    match command {
        GET_PRECOPY_INFO => get_precopy_info(call),
        _ => unknown(call.file, command, Errno::ENOTTY),
    }
}

/// VFIO_MIG_GET_PRECOPY_INFO. `vfio_check_precopy_ioctl`,
/// `mlx5vf_precopy_ioctl`.
fn get_precopy_info(call: &Call<'_>) -> Result<Answer, Errno> {
    let mut info = PrecopyInfo::new_zeroed();
    let run = |info: &mut PrecopyInfo| {
        // A descriptor to write to knows no calls.
        if call.host.migration_direction(call.file) != Some(iogate_host::Direction::Saving) {
            return Err(Errno::ENOTTY);
        }
        *info = call.read()?;
        let known = call.host.precopy_info(call.file)?;
        info.initial_bytes = known.initial_bytes;
        info.dirty_bytes = known.dirty_bytes;
        // Else they are left as the program has them.
        if known.has_flags {
            info.flags = 0;
        }
        call.write(info, PrecopyInfo::MINIMUM)?;
        Ok(Answer::value(0))
    };
    let result = run(&mut info);
    told!(
        "ioctl_mig_get_precopy_info",
        call,
        result,
        initial = info.initial_bytes,
        dirty = info.dirty_bytes,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use iogate_host::MigrationState;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn structures_flags_and_states_are_the_kernels() {
        same_layout!(PrecopyInfo, bindings::vfio_precopy_info, {
            argsz: argsz, flags: flags, initial_bytes: initial_bytes, dirty_bytes: dirty_bytes,
        });
        assert_eq!(
            size_of::<MigState>(),
            size_of::<bindings::vfio_device_feature_mig_state>()
        );
        let flags = bindings::VFIO_MIGRATION_STOP_COPY
            | bindings::VFIO_MIGRATION_P2P
            | bindings::VFIO_MIGRATION_PRE_COPY;
        assert_eq!(FLAGS, u64::from(flags));
        let numbers = [
            bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR,
            bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_STOP,
            bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING,
            bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY,
            bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING,
            bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P,
            bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY,
            bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY_P2P,
        ];
        assert_eq!(MigrationState::ALL.map(MigrationState::number), numbers);
    }
}
