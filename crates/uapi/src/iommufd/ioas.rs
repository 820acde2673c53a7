//! IOMMU_IOAS_ALLOC, IOMMU_IOAS_IOVA_RANGES and IOMMU_IOAS_ALLOW_IOVAS: address
//! spaces and what may be mapped in them. Linux
//! `drivers/iommu/iommufd/ioas.c`.

use iogate_dma::{Iova, Span};
use iogate_host::{FileId, Host};
use tracing::Level;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use crate::trace::Told;
use crate::{Answer, Client, Errno};

/// Ranges that one call may allow: past this, ENOMEM.
const ALLOWED_LIMIT: u32 = 1 << 16;

/// `struct iommu_ioas_alloc`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

impl Argument for IoasAlloc {
    const MINIMUM: u32 = 12;
}

/// `struct iommu_iova_range`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IovaRange {
    start: u64,
    last: u64,
}

/// `struct iommu_ioas_iova_ranges`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IoasIovaRanges {
    size: u32,
    ioas_id: u32,
    num_iovas: u32,
    reserved: u32,
    allowed_iovas: u64,
    out_iova_alignment: u64,
}

impl Argument for IoasIovaRanges {
    const MINIMUM: u32 = 32;
}

/// `struct iommu_ioas_allow_iovas`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IoasAllowIovas {
    size: u32,
    ioas_id: u32,
    num_iovas: u32,
    reserved: u32,
    allowed_iovas: u64,
}

impl Argument for IoasAllowIovas {
    const MINIMUM: u32 = 24;
}

/// IOMMU_IOAS_ALLOC. Linux `iommufd_ioas_alloc_ioctl`.
pub(super) fn alloc(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, IoasAlloc>| {
        if call.body.flags != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        call.body.out_ioas_id = host.ioas_alloc(file)?;
        call.respond().inspect_err(|_| {
            // The program cannot know of it: as if it had never been.
            let _ = host.iommufd_destroy(file, call.body.out_ioas_id);
        })?;
        Ok(Answer::value(0))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_ioas_alloc",
            target: "iogate",
            Level::INFO,
            file = file.0,
            ioas = body.out_ioas_id,
            result = %Told(result),
        );
    })
}

/// IOMMU_IOAS_IOVA_RANGES. Linux `iommufd_ioas_iova_ranges`.
pub(super) fn iova_ranges(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, IoasIovaRanges>| {
        if call.body.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let ranges = host.ioas_iova_ranges(file, call.body.ioas_id)?;
        let room = call.body.num_iovas;
        call.body.num_iovas = u32::try_from(ranges.spans.len()).unwrap_or(u32::MAX);
        call.body.out_iova_alignment = ranges.alignment;
        let fits = usize::try_from(room).unwrap_or(usize::MAX);
        let reply: Vec<u8> = ranges
            .spans
            .iter()
            .take(fits)
            .flat_map(|span| {
                let (start, last) = (span.first().0, span.last().0);
                IovaRange { start, last }.as_bytes().to_vec()
            })
            .collect();
        if !reply.is_empty() {
            client.write(call.body.allowed_iovas, &reply)?;
        }
        call.respond()?;
        if call.body.num_iovas > room {
            return Err(Errno::EMSGSIZE);
        }
        Ok(Answer::value(0))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_ioas_iova_ranges",
            target: "iogate",
            Level::INFO,
            file = file.0,
            ioas = body.ioas_id,
            ranges = body.num_iovas,
            alignment = body.out_iova_alignment,
            result = %Told(result),
        );
    })
}

/// IOMMU_IOAS_ALLOW_IOVAS. Linux `iommufd_ioas_allow_iovas`.
pub(super) fn allow_iovas(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, IoasAllowIovas>| {
        if call.body.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        host.ioas_check(file, call.body.ioas_id)?;
        let allowed = read_ranges(client, call.body.allowed_iovas, call.body.num_iovas)?;
        host.ioas_allow_iovas(file, call.body.ioas_id, &allowed)?;
        Ok(Answer::value(0))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_ioas_allow_iovas",
            target: "iogate",
            Level::INFO,
            file = file.0,
            ioas = body.ioas_id,
            ranges = body.num_iovas,
            result = %Told(result),
        );
    })
}

/// Linux `iommufd_ioas_load_iovas`. A range of a single byte is refused too.
fn read_ranges(client: &dyn Client, address: u64, count: u32) -> Result<Vec<Span>, Errno> {
    if count > ALLOWED_LIMIT {
        return Err(Errno::ENOMEM);
    }
    let mut spans = Vec::new();
    let mut at = Some(address);
    for _ in 0..count {
        let here = at.ok_or(Errno::EFAULT)?;
        let mut range = IovaRange::new_zeroed();
        client.read(here, range.as_mut_bytes())?;
        let span = Span::new(Iova(range.start), Iova(range.last))
            .filter(|span| span.last_offset() != 0)
            .ok_or(Errno::EINVAL)?;
        spans.push(span);
        at = here.checked_add(16);
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use iommufd_bindings::iommufd as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(IoasAlloc, bindings::iommu_ioas_alloc, {
            size: size, flags: flags, out_ioas_id: out_ioas_id,
        });
        same_layout!(IovaRange, bindings::iommu_iova_range, { start: start, last: last });
        same_layout!(IoasIovaRanges, bindings::iommu_ioas_iova_ranges, {
            size: size, ioas_id: ioas_id, num_iovas: num_iovas, reserved: __reserved,
            allowed_iovas: allowed_iovas, out_iova_alignment: out_iova_alignment,
        });
        same_layout!(IoasAllowIovas, bindings::iommu_ioas_allow_iovas, {
            size: size, ioas_id: ioas_id, num_iovas: num_iovas, reserved: __reserved,
            allowed_iovas: allowed_iovas,
        });
    }
}
