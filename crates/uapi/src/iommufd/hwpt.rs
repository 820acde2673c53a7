//! IOMMU_HWPT_ALLOC, IOMMU_HWPT_SET_DIRTY_TRACKING and
//! IOMMU_HWPT_GET_DIRTY_BITMAP. Linux
//! `drivers/iommu/iommufd/hw_pagetable.c`.

use iogate_dma::Span;
use iogate_host::iommufd::{DirtyRange, HwptRequest};
use iogate_host::{Error, ErrorKind, FileId, Host};
use tracing::Level;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use super::refuse;
use crate::trace::Told;
use crate::{Answer, Client, Errno};

/// IOMMU_HWPT_DATA_NONE.
const NO_DATA: u32 = 0;
/// IOMMU_HWPT_DIRTY_TRACKING_ENABLE.
const ENABLE: u32 = 1;
/// IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR.
const NO_CLEAR: u32 = 1;

/// `struct iommu_hwpt_alloc`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct HwptAlloc {
    size: u32,
    flags: u32,
    dev_id: u32,
    pt_id: u32,
    out_hwpt_id: u32,
    reserved: u32,
    data_type: u32,
    data_len: u32,
    data_uptr: u64,
    fault_id: u32,
    reserved2: u32,
}

impl Argument for HwptAlloc {
    const MINIMUM: u32 = 24;
}

/// `struct iommu_hwpt_set_dirty_tracking`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct SetDirtyTracking {
    size: u32,
    flags: u32,
    hwpt_id: u32,
    reserved: u32,
}

impl Argument for SetDirtyTracking {
    const MINIMUM: u32 = 16;
}

/// `struct iommu_hwpt_get_dirty_bitmap`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct GetDirtyBitmap {
    size: u32,
    hwpt_id: u32,
    flags: u32,
    reserved: u32,
    iova: u64,
    length: u64,
    page_size: u64,
    data: u64,
}

impl Argument for GetDirtyBitmap {
    const MINIMUM: u32 = 48;
}

/// IOMMU_HWPT_ALLOC. Linux `iommufd_hwpt_alloc`.
pub(super) fn alloc(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, HwptAlloc>| {
        let body = &mut call.body;
        if body.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if (body.data_type == NO_DATA) != (body.data_len == 0) {
            return Err(Errno::EINVAL);
        }
        let request = HwptRequest {
            device: body.dev_id,
            parent: body.pt_id,
            flags: body.flags,
            data_kind: body.data_type,
            data_length: body.data_len,
            fault_queue: body.fault_id,
        };
        let at = body.data_uptr;
        let read = |into: &mut [u8]| {
            let absent = Error::new(ErrorKind::Fault, "the description is absent");
            client.read(at, into).map_err(|_| absent)
        };
        body.out_hwpt_id = match host.hwpt_alloc(file, request, read) {
            Ok(id) => id,
            Err(failure) => return refuse(failure),
        };
        let Err(errno) = call.respond() else {
            return Ok(Answer::value(0));
        };
        // The program cannot know of it: as if it had never been.
        let retired = host.iommufd_destroy(file, call.body.out_hwpt_id);
        Ok(Answer::failed(errno, retired.unwrap_or_default().into()))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_hwpt_alloc",
            target: "iogate",
            Level::INFO,
            file = file.0,
            device = body.dev_id,
            parent = body.pt_id,
            flags = body.flags,
            hwpt = body.out_hwpt_id,
            result = %Told(result),
        );
    })
}

/// IOMMU_HWPT_SET_DIRTY_TRACKING. Linux `iommufd_hwpt_set_dirty_tracking`.
pub(super) fn set_dirty_tracking(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, SetDirtyTracking>| {
        let body = &call.body;
        if body.flags & !ENABLE != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let on = body.flags & ENABLE != 0;
        Ok(host.hwpt_set_dirty_tracking(file, body.hwpt_id, on)?.into())
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_hwpt_set_dirty_tracking",
            target: "iogate",
            Level::INFO,
            file = file.0,
            hwpt = body.hwpt_id,
            flags = body.flags,
            result = %Told(result),
        );
    })
}

/// IOMMU_HWPT_GET_DIRTY_BITMAP: bits are set in the program's bitmap, never
/// cleared. Linux `iommufd_hwpt_get_dirty_bitmap`.
pub(super) fn get_dirty_bitmap(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, GetDirtyBitmap>| {
        let body = &call.body;
        if body.flags & !NO_CLEAR != 0 || body.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let range = DirtyRange {
            iova: body.iova,
            length: body.length,
            page_size: body.page_size,
            keep: body.flags & NO_CLEAR != 0,
        };
        let (pages, retired) = host.hwpt_dirty_pages(file, body.hwpt_id, range)?;
        set_bits(client, body.data, &range, &pages)?;
        Ok(retired.into())
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_hwpt_get_dirty_bitmap",
            target: "iogate",
            Level::INFO,
            file = file.0,
            hwpt = body.hwpt_id,
            iova = format_args!("{:#x}", body.iova),
            length = format_args!("{:#x}", body.length),
            result = %Told(result),
        );
    })
}

/// Sets the bits of `pages` in the bitmap at `address`, which need not be
/// aligned. Linux `iova_bitmap_set`.
fn set_bits(
    client: &dyn Client,
    address: u64,
    range: &DirtyRange,
    pages: &[Span],
) -> Result<(), Errno> {
    let bit = |iova: u64| {
        let offset = iova.saturating_sub(range.iova);
        offset.checked_div(range.page_size).unwrap_or(0)
    };
    let end = bit(range.iova.saturating_add(range.length.saturating_sub(1)));
    let mut held: Option<(u64, u8)> = None;
    for page in pages {
        for bit in bit(page.first().0)..=bit(page.last().0).min(end) {
            let at = address.checked_add(bit / 8).ok_or(Errno::EFAULT)?;
            let mask = 1 << (bit % 8);
            held = match held {
                Some((known, byte)) if known == at => Some((at, byte | mask)),
                other => {
                    if let Some((known, byte)) = other {
                        client.write(known, &[byte])?;
                    }
                    let mut byte = [0];
                    client.read(at, &mut byte)?;
                    Some((at, byte[0] | mask))
                }
            };
        }
    }
    if let Some((at, byte)) = held {
        client.write(at, &[byte])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use iommufd_bindings::iommufd as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(HwptAlloc, bindings::iommu_hwpt_alloc, {
            size: size, flags: flags, dev_id: dev_id, pt_id: pt_id, out_hwpt_id: out_hwpt_id,
            reserved: __reserved, data_type: data_type, data_len: data_len,
            data_uptr: data_uptr, fault_id: fault_id, reserved2: __reserved2,
        });
        same_layout!(SetDirtyTracking, bindings::iommu_hwpt_set_dirty_tracking, {
            size: size, flags: flags, hwpt_id: hwpt_id, reserved: __reserved,
        });
        same_layout!(GetDirtyBitmap, bindings::iommu_hwpt_get_dirty_bitmap, {
            size: size, hwpt_id: hwpt_id, flags: flags, reserved: __reserved, iova: iova,
            length: length, page_size: page_size, data: data,
        });
    }
}
