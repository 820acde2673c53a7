//! VFIO_DEVICE_FEATURE. Linux `drivers/vfio/vfio_main.c`,
//! `vfio_ioctl_device_feature` and `vfio_check_feature`.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::{Argument, read_value};
use super::{Call, told};
use crate::{Answer, Errno};

/// `struct vfio_device_feature`, without the data that follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Feature {
    argsz: u32,
    flags: u32,
}

/// Bytes of [`Feature`].
const FEATURE: usize = 8;

impl Argument for Feature {
    const MINIMUM: usize = FEATURE;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// VFIO_DEVICE_FEATURE_*.
mod flag {
    pub(super) const MASK: u32 = 0xffff;
    pub(super) const GET: u32 = 1 << 16;
    pub(super) const SET: u32 = 1 << 17;
    pub(super) const PROBE: u32 = 1 << 18;
}

/// VFIO_DEVICE_FEATURE_*, those that a device without migration, without
/// SR-IOV and without DMA logging has.
mod number {
    pub(super) const LOW_POWER_ENTRY: u32 = 3;
    pub(super) const LOW_POWER_ENTRY_WITH_WAKEUP: u32 = 4;
    pub(super) const LOW_POWER_EXIT: u32 = 5;
}

/// VFIO_DEVICE_FEATURE. ENOTTY for a feature that the device does not have.
pub(super) fn feature(call: &Call<'_>, device: usize) -> Result<Answer, Errno> {
    let mut body = Feature::new_zeroed();
    let result = run(call, device, &mut body);
    told!(
        "ioctl_device_feature",
        call,
        result,
        flags = format_args!("{:#x}", body.flags),
    )
}

fn run(call: &Call<'_>, device: usize, body: &mut Feature) -> Result<Answer, Errno> {
    *body = call.read()?;
    let has = |flag: u32| body.flags & flag != 0;
    if has(!(flag::MASK | flag::GET | flag::SET | flag::PROBE)) {
        return Err(Errno::EINVAL);
    }
    if !has(flag::PROBE) && has(flag::GET) && has(flag::SET) {
        return Err(Errno::EINVAL);
    }
    match body.flags & flag::MASK {
        number::LOW_POWER_ENTRY => {
            if is_set(body, 0)? {
                call.host.enter_low_power(device, None)?;
            }
        }
        number::LOW_POWER_ENTRY_WITH_WAKEUP => {
            // `struct vfio_device_low_power_entry_with_wakeup`.
            if is_set(body, 8)? {
                let [fd, _] = read_pair(call)?;
                let wakeup = call.client.eventfd(fd)?;
                call.host.enter_low_power(device, Some(wakeup))?;
            }
        }
        number::LOW_POWER_EXIT => {
            if is_set(body, 0)? {
                call.host.leave_low_power(device)?;
            }
        }
        _ => return Err(Errno::ENOTTY),
    }
    Ok(Answer::value(0))
}

/// Whether a feature that can only be set, with `data` bytes, is to be set; a
/// probe is not. EINVAL for what it cannot do and for too little data.
fn is_set(body: &Feature, data: usize) -> Result<bool, Errno> {
    let has = |flag: u32| body.flags & flag != 0;
    if has(flag::GET) {
        return Err(Errno::EINVAL);
    }
    if has(flag::PROBE) {
        return Ok(false);
    }
    let room = usize::try_from(body.argsz).unwrap_or(usize::MAX);
    match has(flag::SET) && room.saturating_sub(FEATURE) >= data {
        true => Ok(true),
        false => Err(Errno::EINVAL),
    }
}

fn read_pair(call: &Call<'_>) -> Result<[i32; 2], Errno> {
    let bytes: [u8; 8] = read_value(call.client, call.at(FEATURE)?)?;
    <[i32; 2]>::read_from_bytes(&bytes).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn the_structure_its_flags_and_numbers_are_the_kernels() {
        assert_eq!(FEATURE, size_of::<Feature>());
        same_layout!(Feature, bindings::vfio_device_feature, { argsz: argsz, flags: flags });
        let pairs = [
            (flag::MASK, bindings::VFIO_DEVICE_FEATURE_MASK),
            (flag::GET, bindings::VFIO_DEVICE_FEATURE_GET),
            (flag::SET, bindings::VFIO_DEVICE_FEATURE_SET),
            (flag::PROBE, bindings::VFIO_DEVICE_FEATURE_PROBE),
            (
                number::LOW_POWER_ENTRY,
                bindings::VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY,
            ),
            (
                number::LOW_POWER_ENTRY_WITH_WAKEUP,
                bindings::VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
            ),
            (
                number::LOW_POWER_EXIT,
                bindings::VFIO_DEVICE_FEATURE_LOW_POWER_EXIT,
            ),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs);
        }
        assert_eq!(
            8,
            size_of::<bindings::vfio_device_low_power_entry_with_wakeup>()
        );
    }
}
