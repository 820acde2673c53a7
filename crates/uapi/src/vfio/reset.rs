//! Resets. Linux `drivers/vfio/pci/vfio_pci_core.c`.

use iogate_host::HotResetIds;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::Argument;
use super::{Call, told};
use crate::{Answer, Errno, Named};

/// `struct vfio_pci_hot_reset_info`, without the devices that follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct HotResetInfo {
    argsz: u32,
    flags: u32,
    count: u32,
}

/// `struct vfio_pci_hot_reset`, without the descriptors that follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct HotReset {
    argsz: u32,
    flags: u32,
    count: u32,
}

/// Bytes of either.
const HOT_RESET: usize = 12;

impl Argument for HotResetInfo {
    const MINIMUM: usize = HOT_RESET;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

impl Argument for HotReset {
    const MINIMUM: usize = HOT_RESET;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// `struct vfio_pci_dependent_device`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DependentDevice {
    /// A group, or a device in an iommufd.
    id: u32,
    segment: u16,
    bus: u8,
    devfn: u8,
}

/// VFIO_PCI_HOT_RESET_FLAG_*.
mod flag {
    pub(super) const DEV_ID: u32 = 1;
    pub(super) const DEV_ID_OWNED: u32 = 2;
}

/// VFIO_DEVICE_RESET. `vfio_pci_ioctl_reset`.
pub(super) fn reset(call: &Call<'_>, device: usize) -> Result<Answer, Errno> {
    let reset = call.host.reset_device(device);
    let result = reset.map(Answer::from).map_err(Errno::from);
    told!("ioctl_device_reset", call, result)
}

/// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: ENOSPC with the number of devices if
/// there is no room for all. `vfio_pci_ioctl_get_pci_hot_reset_info`.
pub(super) fn get_hot_reset_info(call: &Call<'_>, device: usize) -> Result<Answer, Errno> {
    let run = || {
        let mut info: HotResetInfo = call.read()?;
        let known = call.host.hot_reset_info(call.file, device)?;
        let devices: Vec<DependentDevice> = known
            .devices
            .iter()
            .map(|(id, one)| DependentDevice {
                id: *id,
                segment: one.segment,
                bus: one.bus,
                devfn: one.devfn,
            })
            .collect();
        info.flags = match known.ids {
            HotResetIds::Groups => 0,
            HotResetIds::Devices { owned: false } => flag::DEV_ID,
            HotResetIds::Devices { owned: true } => flag::DEV_ID | flag::DEV_ID_OWNED,
        };
        info.count = u32::try_from(devices.len()).map_err(|_| Errno::EINVAL)?;
        let bytes = devices.as_bytes();
        let room = usize::try_from(info.argsz).unwrap_or(usize::MAX);
        let fits = room.saturating_sub(HOT_RESET) >= bytes.len();
        if fits {
            call.client.write(call.at(HOT_RESET)?, bytes)?;
        } else {
            info.flags = 0;
        }
        call.write(&info, HOT_RESET)?;
        match fits {
            true => Ok(Answer::value(0)),
            false => Err(Errno::ENOSPC),
        }
    };
    told!("ioctl_device_get_pci_hot_reset_info", call, run())
}

/// VFIO_DEVICE_PCI_HOT_RESET. `vfio_pci_ioctl_pci_hot_reset`.
pub(super) fn hot_reset(call: &Call<'_>, device: usize) -> Result<Answer, Errno> {
    let result = run_hot_reset(call, device);
    told!("ioctl_device_pci_hot_reset", call, result)
}

fn run_hot_reset(call: &Call<'_>, device: usize) -> Result<Answer, Errno> {
    let body: HotReset = call.read()?;
    // A device of its own node names no groups, any other must.
    if body.flags != 0 || (body.count != 0) == call.host.is_cdev(call.file) {
        return Err(Errno::EINVAL);
    }
    let affected = call.host.hot_reset_set(device)?;
    if body.count == 0 {
        return Ok(call.host.hot_reset_own(call.file, device)?.into());
    }
    let count = usize::try_from(body.count).map_err(|_| Errno::EINVAL)?;
    if count > affected.len() {
        return Err(Errno::EINVAL);
    }
    let mut fds = vec![0_i32; count];
    call.client.read(call.at(HOT_RESET)?, fds.as_mut_bytes())?;
    let mut groups = Vec::with_capacity(count);
    for fd in fds {
        match call.client.named(fd)? {
            Named::Ours(file) if call.host.is_group(file) => groups.push(file),
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(call.host.hot_reset_groups(device, &groups)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn structures_and_flags_are_the_kernels() {
        assert_eq!(HOT_RESET, size_of::<HotReset>());
        same_layout!(HotResetInfo, bindings::vfio_pci_hot_reset_info, {
            argsz: argsz, flags: flags, count: count,
        });
        same_layout!(HotReset, bindings::vfio_pci_hot_reset, {
            argsz: argsz, flags: flags, count: count,
        });
        same_layout!(DependentDevice, bindings::vfio_pci_dependent_device, {
            segment: segment, bus: bus, devfn: devfn,
        });
        assert_eq!(flag::DEV_ID, bindings::VFIO_PCI_HOT_RESET_FLAG_DEV_ID);
        assert_eq!(
            flag::DEV_ID_OWNED,
            bindings::VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED
        );
    }
}
