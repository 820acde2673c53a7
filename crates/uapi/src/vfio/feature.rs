//! VFIO_DEVICE_FEATURE. Linux `drivers/vfio/vfio_main.c`,
//! `vfio_ioctl_device_feature` and `vfio_check_feature`.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::{Argument, read_value};
use super::{Call, dma_buf, logging, migration, told};
use crate::{Answer, Errno};

/// `struct vfio_device_feature`, without the data that follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Feature {
    argsz: u32,
    flags: u32,
}

/// Bytes of [`Feature`].
pub(super) const FEATURE: usize = 8;

impl Argument for Feature {
    const MINIMUM: usize = FEATURE;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// VFIO_DEVICE_FEATURE_*.
pub(super) mod flag {
    pub(super) const MASK: u32 = 0xffff;
    pub(in super::super) const GET: u32 = 1 << 16;
    pub(in super::super) const SET: u32 = 1 << 17;
    pub(super) const PROBE: u32 = 1 << 18;
}

/// VFIO_DEVICE_FEATURE_*, those that a device may have.
mod number {
    pub(super) const PCI_VF_TOKEN: u32 = 0;
    pub(super) const MIGRATION: u32 = 1;
    pub(super) const MIG_DEVICE_STATE: u32 = 2;
    pub(super) const LOW_POWER_ENTRY: u32 = 3;
    pub(super) const LOW_POWER_ENTRY_WITH_WAKEUP: u32 = 4;
    pub(super) const LOW_POWER_EXIT: u32 = 5;
    pub(super) const DMA_LOGGING_START: u32 = 6;
    pub(super) const DMA_LOGGING_STOP: u32 = 7;
    pub(super) const DMA_LOGGING_REPORT: u32 = 8;
    pub(super) const MIG_DATA_SIZE: u32 = 9;
    pub(super) const DMA_BUF: u32 = 11;
    pub(super) const MIG_PRECOPY_INFO_V2: u32 = 12;
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
        number::MIGRATION => return migration::features(call, device, body),
        number::MIG_DEVICE_STATE => return migration::device_state(call, device, body),
        number::DMA_LOGGING_START => return logging::start(call, device, body),
        number::DMA_LOGGING_STOP => return logging::stop(call, device, body),
        number::DMA_LOGGING_REPORT => return logging::report(call, device, body),
        number::MIG_DATA_SIZE => return migration::data_size(call, device, body),
        number::DMA_BUF => return dma_buf::get(call, device, body),
        number::MIG_PRECOPY_INFO_V2 => return migration::precopy_info_v2(call, device, body),
        number::PCI_VF_TOKEN => {
            call.host.check_vf_token(device)?;
            if body.is_set(16)? {
                let token = read_value(call.client, call.at(FEATURE)?)?;
                call.host.set_vf_token(device, token)?;
            }
        }
        number::LOW_POWER_ENTRY => {
            if body.is_set(0)? {
                return Ok(call.host.enter_low_power(device, None)?.into());
            }
        }
        number::LOW_POWER_ENTRY_WITH_WAKEUP => {
            // `struct vfio_device_low_power_entry_with_wakeup`.
            if body.is_set(8)? {
                let [fd, _] = read_pair(call)?;
                let wakeup = call.client.eventfd(fd)?;
                return Ok(call.host.enter_low_power(device, Some(wakeup))?.into());
            }
        }
        number::LOW_POWER_EXIT => {
            if body.is_set(0)? {
                return Ok(call.host.leave_low_power(device)?.into());
            }
        }
        _ => return Err(Errno::ENOTTY),
    }
    Ok(Answer::value(0))
}

impl Feature {
    /// Which of the operations `known`, GET and SET, is asked for, with at
    /// least `data` bytes; `None` for a probe. EINVAL for an operation that is
    /// not known, for none, and for too little data. `vfio_check_feature`.
    pub(super) fn operation(&self, known: u32, data: usize) -> Result<Option<u32>, Errno> {
        let asked = self.flags & (flag::GET | flag::SET);
        if asked & !known != 0 {
            return Err(Errno::EINVAL);
        }
        if self.flags & flag::PROBE != 0 {
            return Ok(None);
        }
        let room = usize::try_from(self.argsz).unwrap_or(usize::MAX);
        match asked != 0 && room.saturating_sub(FEATURE) >= data {
            true => Ok(Some(asked)),
            false => Err(Errno::EINVAL),
        }
    }

    /// Whether a feature that can only be set, with `data` bytes, is to be
    /// set.
    pub(super) fn is_set(&self, data: usize) -> Result<bool, Errno> {
        Ok(self.operation(flag::SET, data)?.is_some())
    }

    /// Whether a feature that can only be got, in `data` bytes, is to be got.
    pub(super) fn is_got(&self, data: usize) -> Result<bool, Errno> {
        Ok(self.operation(flag::GET, data)?.is_some())
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
                number::PCI_VF_TOKEN,
                bindings::VFIO_DEVICE_FEATURE_PCI_VF_TOKEN,
            ),
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
            (number::MIGRATION, bindings::VFIO_DEVICE_FEATURE_MIGRATION),
            (
                number::MIG_DEVICE_STATE,
                bindings::VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
            ),
            (
                number::DMA_LOGGING_START,
                bindings::VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
            ),
            (
                number::DMA_LOGGING_STOP,
                bindings::VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
            ),
            (
                number::DMA_LOGGING_REPORT,
                bindings::VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
            ),
            (
                number::MIG_DATA_SIZE,
                bindings::VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
            ),
            (
                number::MIG_PRECOPY_INFO_V2,
                bindings::VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2,
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
