//! VFIO_DEVICE_SET_IRQS. Linux `drivers/vfio/vfio_main.c`,
//! `vfio_set_irqs_validate_and_prepare`.

use iogate_host::{IrqAction, IrqData, IrqIndex, IrqRequest};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::Argument;
use super::{Call, Fds, told};
use crate::{Answer, Errno};

/// `struct vfio_irq_set`, without the data that follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
}

/// Bytes of [`IrqSet`].
const IRQ_SET: usize = 20;

impl Argument for IrqSet {
    const MINIMUM: usize = IRQ_SET;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// VFIO_IRQ_SET_*.
mod flag {
    pub(super) const DATA_NONE: u32 = 1;
    pub(super) const DATA_BOOL: u32 = 2;
    pub(super) const DATA_EVENTFD: u32 = 4;
    pub(super) const MASK: u32 = 8;
    pub(super) const UNMASK: u32 = 16;
    pub(super) const TRIGGER: u32 = 32;
    pub(super) const DATA_TYPE_MASK: u32 = 7;
    pub(super) const ACTION_TYPE_MASK: u32 = 56;
}

/// VFIO_DEVICE_SET_IRQS. `vfio_pci_ioctl_set_irqs`.
pub(super) fn set_irqs(call: &Call<'_>, device: usize) -> Result<Answer, Errno> {
    let mut body = IrqSet::new_zeroed();
    let result = run(call, device, &mut body);
    told!(
        "ioctl_device_set_irqs",
        call,
        result,
        flags = body.flags,
        index = body.index,
        start = body.start,
        count = body.count,
    )
}

fn run(call: &Call<'_>, device: usize, body: &mut IrqSet) -> Result<Answer, Errno> {
    *body = call.read()?;
    let index = IrqIndex::from_index(body.index).ok_or(Errno::EINVAL)?;
    let most = call.host.irq_count(device, index)?;
    let end = body.start.checked_add(body.count).ok_or(Errno::EINVAL)?;
    if body.flags & !(flag::DATA_TYPE_MASK | flag::ACTION_TYPE_MASK) != 0
        || body.start >= most
        || end > most
    {
        return Err(Errno::EINVAL);
    }
    // At most as many as the device has vectors: 2,048.
    let count = usize::try_from(body.count).map_err(|_| Errno::EINVAL)?;
    let (mut bools, mut fds);
    let data = match body.flags & flag::DATA_TYPE_MASK {
        flag::DATA_NONE => IrqData::None,
        flag::DATA_BOOL => {
            bools = vec![0_u8; count];
            read_data(call, body.argsz, &mut bools)?;
            IrqData::Bool(&bools)
        }
        flag::DATA_EVENTFD => {
            fds = vec![0_i32; count];
            read_data(call, body.argsz, fds.as_mut_bytes())?;
            IrqData::Eventfd(&fds)
        }
        _ => return Err(Errno::EINVAL),
    };
    let request = IrqRequest {
        index,
        action: match body.flags & flag::ACTION_TYPE_MASK {
            flag::MASK => Some(IrqAction::Mask),
            flag::UNMASK => Some(IrqAction::Unmask),
            flag::TRIGGER => Some(IrqAction::Trigger),
            _ => None,
        },
        data,
        start: body.start,
        count: body.count,
    };
    let set = call.host.set_irqs(device, &request, &Fds(call.client));
    Ok(set?.into())
}

/// Fills `into` with what follows the structure: EINVAL if the client says that
/// it is shorter.
fn read_data(call: &Call<'_>, argsz: u32, into: &mut [u8]) -> Result<(), Errno> {
    let room = usize::try_from(argsz).unwrap_or(usize::MAX);
    if room.saturating_sub(IRQ_SET) < into.len() {
        return Err(Errno::EINVAL);
    }
    Ok(call.client.read(call.at(IRQ_SET)?, into)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn the_structure_and_its_flags_are_the_kernels() {
        assert_eq!(IRQ_SET, size_of::<IrqSet>());
        same_layout!(IrqSet, bindings::vfio_irq_set, {
            argsz: argsz, flags: flags, index: index, start: start, count: count,
        });
        let pairs = [
            (flag::DATA_NONE, bindings::VFIO_IRQ_SET_DATA_NONE),
            (flag::DATA_BOOL, bindings::VFIO_IRQ_SET_DATA_BOOL),
            (flag::DATA_EVENTFD, bindings::VFIO_IRQ_SET_DATA_EVENTFD),
            (flag::MASK, bindings::VFIO_IRQ_SET_ACTION_MASK),
            (flag::UNMASK, bindings::VFIO_IRQ_SET_ACTION_UNMASK),
            (flag::TRIGGER, bindings::VFIO_IRQ_SET_ACTION_TRIGGER),
            (flag::DATA_TYPE_MASK, bindings::VFIO_IRQ_SET_DATA_TYPE_MASK),
            (
                flag::ACTION_TYPE_MASK,
                bindings::VFIO_IRQ_SET_ACTION_TYPE_MASK,
            ),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs);
        }
    }
}
