//! Calls on `/dev/vfio/N`. Linux `drivers/vfio/group.c`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::{Argument, read_value};
use super::{Call, number, told, unknown};
use crate::{Answer, Client, Errno, Named, iommufd};

/// `struct vfio_group_status`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Status {
    argsz: u32,
    flags: u32,
}

impl Argument for Status {
    const MINIMUM: usize = 8;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// VFIO_GROUP_FLAGS_*.
mod flag {
    pub(super) const VIABLE: u32 = 1;
    pub(super) const CONTAINER_SET: u32 = 2;
}

/// Bytes that a device's name may have at most, its end included: a page.
const NAME_LIMIT: usize = 4096;

/// One call on the group with this number. `vfio_group_fops_unl_ioctl`.
pub(crate) fn ioctl(call: &Call<'_>, group: u32, command: u32) -> Result<Answer, Errno> {
    const GET_STATUS: u32 = number(3);
    const SET_CONTAINER: u32 = number(4);
    const UNSET_CONTAINER: u32 = number(5);
    const GET_DEVICE_FD: u32 = number(6);
    match command {
        GET_STATUS => {
            let result = status(call, group);
            told!("ioctl_group_get_status", call, result, group = group)
        }
        SET_CONTAINER => {
            let result = set_container(call, group);
            told!("ioctl_group_set_container", call, result, group = group)
        }
        UNSET_CONTAINER => {
            let unset = call.host.unset_container(group);
            let result = unset.map(Answer::from).map_err(Errno::from);
            told!("ioctl_group_unset_container", call, result, group = group)
        }
        GET_DEVICE_FD => {
            let mut name = [0; NAME_LIMIT];
            let read = read_name(call.client, call.argument, &mut name);
            let name = read.and_then(|length| name.get(..length).ok_or(Errno::EINVAL));
            let result = name.and_then(|name| device_file(call, group, name));
            told!(
                "ioctl_group_get_device_fd",
                call,
                result,
                group = group,
                name = format_args!("{}", name.unwrap_or_default().escape_ascii()),
            )
        }
        _ => unknown(call.file, command, Errno::ENOTTY),
    }
}

fn status(call: &Call<'_>, group: u32) -> Result<Answer, Errno> {
    let mut body: Status = call.read()?;
    let status = call.host.group_status(group)?;
    body.flags = match status.viable {
        true => flag::VIABLE,
        false => 0,
    };
    if status.has_container {
        body.flags |= flag::CONTAINER_SET;
    }
    call.write(&body, Status::MINIMUM)?;
    Ok(Answer::value(0))
}

fn set_container(call: &Call<'_>, group: u32) -> Result<Answer, Errno> {
    let fd = i32::from_ne_bytes(read_value(call.client, call.argument)?);
    let container = match call.client.named(fd)? {
        Named::Ours(file) => Some(file),
        Named::Other => None,
    };
    match call.host.set_container(group, container, call.client) {
        Ok(retired) => Ok(retired.into()),
        Err(failure) => iommufd::refuse(failure),
    }
}

fn device_file(call: &Call<'_>, group: u32, name: &[u8]) -> Result<Answer, Errno> {
    match call.host.device_file(group, name, call.client) {
        Ok((file, retired)) => Ok(Answer {
            install: Some(file),
            after: retired.into(),
            ..Answer::default()
        }),
        Err(failure) => iommufd::refuse(failure),
    }
}

/// Reads a string up to its end: how long it is. EFAULT; EINVAL if it is longer
/// than a page. `strndup_user`.
fn read_name(client: &dyn Client, address: u64, into: &mut [u8]) -> Result<usize, Errno> {
    const STEP: u64 = 64;
    let mut length = 0_usize;
    let mut at = address;
    while length < into.len() {
        // Never past a boundary of memory that may end there.
        let step = STEP.wrapping_sub(at & STEP.wrapping_sub(1));
        let step = usize::try_from(step).unwrap_or(1);
        let rest = into.get_mut(length..).unwrap_or_default();
        let piece = match rest.len() > step {
            true => rest.get_mut(..step).unwrap_or_default(),
            false => rest,
        };
        client.read(at, piece)?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            return Ok(length.saturating_add(end));
        }
        length = length.saturating_add(piece.len());
        at = at.checked_add(STEP).ok_or(Errno::EFAULT)? & !STEP.wrapping_sub(1);
    }
    Err(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn the_status_is_the_kernels() {
        same_layout!(Status, bindings::vfio_group_status, { argsz: argsz, flags: flags });
        assert_eq!(flag::VIABLE, bindings::VFIO_GROUP_FLAGS_VIABLE);
        assert_eq!(
            flag::CONTAINER_SET,
            bindings::VFIO_GROUP_FLAGS_CONTAINER_SET
        );
    }
}
