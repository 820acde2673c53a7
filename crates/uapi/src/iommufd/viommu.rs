//! The calls of virtual IOMMUs and of page tables on top of others, which no
//! unit has: what is checked before that shows. Linux
//! `drivers/iommu/iommufd/viommu.c`, and `hw_pagetable.c`,
//! `iommufd_hwpt_invalidate`.

use iogate_host::{FileId, Host};
use tracing::Level;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use crate::trace::Told;
use crate::{Answer, Client, Errno};

/// IOMMU_HWPT_INVALIDATE_ENTRY_NUM_MAX.
const MOST_ENTRIES: u32 = 1 << 19;
/// VEVENTQ_MAX_DEPTH.
const DEEPEST: u32 = 1 << 19;
/// PAGE_SIZE.
const LONGEST_ENTRY: u32 = 4096;

/// `struct iommu_hwpt_invalidate`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Invalidate {
    size: u32,
    hwpt_id: u32,
    data_uptr: u64,
    data_type: u32,
    entry_len: u32,
    entry_num: u32,
    reserved: u32,
}

impl Argument for Invalidate {
    const MINIMUM: u32 = 32;
}

/// `struct iommu_viommu_alloc`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct ViommuAlloc {
    size: u32,
    flags: u32,
    kind: u32,
    dev_id: u32,
    hwpt_id: u32,
    out_viommu_id: u32,
    data_len: u32,
    reserved: u32,
    data_uptr: u64,
}

impl Argument for ViommuAlloc {
    const MINIMUM: u32 = 24;
}

/// `struct iommu_vdevice_alloc`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct VdeviceAlloc {
    size: u32,
    viommu_id: u32,
    dev_id: u32,
    out_vdevice_id: u32,
    virt_id: u64,
}

impl Argument for VdeviceAlloc {
    const MINIMUM: u32 = 24;
}

/// `struct iommu_veventq_alloc`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct VeventqAlloc {
    size: u32,
    flags: u32,
    viommu_id: u32,
    kind: u32,
    veventq_depth: u32,
    out_veventq_id: u32,
    out_veventq_fd: u32,
    reserved: u32,
}

impl Argument for VeventqAlloc {
    const MINIMUM: u32 = 28;
}

/// `struct iommu_hw_queue_alloc`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct HwQueueAlloc {
    size: u32,
    flags: u32,
    viommu_id: u32,
    kind: u32,
    index: u32,
    out_hw_queue_id: u32,
    nesting_parent_iova: u64,
    length: u64,
}

impl Argument for HwQueueAlloc {
    const MINIMUM: u32 = 40;
}

/// IOMMU_HWPT_INVALIDATE: how many entries were done is told in any case, and
/// none is, since no page table is on top of another.
pub(super) fn invalidate(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, Invalidate>| {
        let body = call.body;
        call.body.entry_num = 0;
        let refused = if body.reserved != 0 {
            Errno::EOPNOTSUPP
        } else if body.entry_num > 0
            && (body.data_uptr == 0
                || body.entry_len == 0
                || body.entry_len > LONGEST_ENTRY
                || body.entry_num > MOST_ENTRIES)
        {
            Errno::EINVAL
        } else {
            match host.hwpt_check(file, body.hwpt_id) {
                Ok(()) => Errno::EINVAL,
                Err(error) => error.into(),
            }
        };
        call.respond()?;
        Err(refused)
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_hwpt_invalidate",
            target: "iogate",
            Level::INFO,
            file = file.0,
            hwpt = body.hwpt_id,
            result = %Told(result),
        );
    })
}

/// IOMMU_VIOMMU_ALLOC. Linux `iommufd_viommu_alloc_ioctl`.
pub(super) fn viommu_alloc(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, ViommuAlloc>| {
        let body = &call.body;
        if body.flags != 0 || body.kind == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        host.iommufd_unit(file, body.dev_id)?;
        Err(Errno::EOPNOTSUPP)
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_viommu_alloc",
            target: "iogate",
            Level::INFO,
            file = file.0,
            device = body.dev_id,
            hwpt = body.hwpt_id,
            result = %Told(result),
        );
    })
}

/// IOMMU_VDEVICE_ALLOC: there is no virtual IOMMU that it could be of. Linux
/// `iommufd_vdevice_alloc_ioctl`.
pub(super) fn vdevice_alloc(
    _: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |_: &mut Call<'_, VdeviceAlloc>| Err(Errno::ENOENT);
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_vdevice_alloc",
            target: "iogate",
            Level::INFO,
            file = file.0,
            viommu = body.viommu_id,
            device = body.dev_id,
            result = %Told(result),
        );
    })
}

/// IOMMU_VEVENTQ_ALLOC: there is no virtual IOMMU whose events they would be.
/// Linux `iommufd_veventq_alloc`.
pub(super) fn veventq_alloc(
    _: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, VeventqAlloc>| {
        let body = &call.body;
        if body.flags != 0 || body.reserved != 0 || body.kind == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match body.veventq_depth {
            1..=DEEPEST => Err(Errno::ENOENT),
            _ => Err(Errno::EINVAL),
        }
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_veventq_alloc",
            target: "iogate",
            Level::INFO,
            file = file.0,
            viommu = body.viommu_id,
            result = %Told(result),
        );
    })
}

/// IOMMU_HW_QUEUE_ALLOC: there is no virtual IOMMU whose queue it would be.
/// Linux `iommufd_hw_queue_alloc_ioctl`.
pub(super) fn hw_queue_alloc(
    _: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, HwQueueAlloc>| {
        let body = &call.body;
        if body.flags != 0 || body.kind == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let last = body.length.checked_sub(1).ok_or(Errno::EINVAL)?;
        match body.nesting_parent_iova.checked_add(last) {
            Some(_) => Err(Errno::ENOENT),
            None => Err(Errno::EOVERFLOW),
        }
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_hw_queue_alloc",
            target: "iogate",
            Level::INFO,
            file = file.0,
            viommu = body.viommu_id,
            result = %Told(result),
        );
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use iommufd_bindings::iommufd as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(Invalidate, bindings::iommu_hwpt_invalidate, {
            size: size, hwpt_id: hwpt_id, data_uptr: data_uptr, data_type: data_type,
            entry_len: entry_len, entry_num: entry_num, reserved: __reserved,
        });
        same_layout!(ViommuAlloc, bindings::iommu_viommu_alloc, {
            size: size, flags: flags, kind: type_, dev_id: dev_id, hwpt_id: hwpt_id,
            out_viommu_id: out_viommu_id, data_len: data_len, reserved: __reserved,
            data_uptr: data_uptr,
        });
        same_layout!(VdeviceAlloc, bindings::iommu_vdevice_alloc, {
            size: size, viommu_id: viommu_id, dev_id: dev_id,
            out_vdevice_id: out_vdevice_id, virt_id: virt_id,
        });
        same_layout!(VeventqAlloc, bindings::iommu_veventq_alloc, {
            size: size, flags: flags, viommu_id: viommu_id, kind: type_,
            veventq_depth: veventq_depth, out_veventq_id: out_veventq_id,
            out_veventq_fd: out_veventq_fd, reserved: __reserved,
        });
        same_layout!(HwQueueAlloc, bindings::iommu_hw_queue_alloc, {
            size: size, flags: flags, viommu_id: viommu_id, kind: type_, index: index,
            out_hw_queue_id: out_hw_queue_id, nesting_parent_iova: nesting_parent_iova,
            length: length,
        });
    }
}
