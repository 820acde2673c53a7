//! IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_FILE, IOMMU_IOAS_COPY and IOMMU_IOAS_UNMAP.
//! Linux `drivers/iommu/iommufd/ioas.c` and, for the order of checks,
//! `drivers/iommu/iommufd/io_pagetable.c`.

use iogate_dma::{Iova, Rights, Span};
use iogate_host::iommufd::{Copied, Mapped, Place};
use iogate_host::{FileId, FileKind, Host, Via};
use tracing::Level;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use super::refuse;
use crate::trace::Told;
use crate::{Answer, Client, Errno, Named};

const FIXED_IOVA: u32 = 1;
const WRITEABLE: u32 = 2;
const READABLE: u32 = 4;

/// A mapping longer than this cannot be described in pages.
const LENGTH_LIMIT: u64 = u64::MAX - 4096;

/// `struct iommu_ioas_map`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

impl Argument for IoasMap {
    const MINIMUM: u32 = 40;
}

/// `struct iommu_ioas_map_file`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IoasMapFile {
    size: u32,
    flags: u32,
    ioas_id: u32,
    fd: i32,
    start: u64,
    length: u64,
    iova: u64,
}

impl Argument for IoasMapFile {
    const MINIMUM: u32 = 40;
}

/// `struct iommu_ioas_copy`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IoasCopy {
    size: u32,
    flags: u32,
    dst_ioas_id: u32,
    src_ioas_id: u32,
    length: u64,
    dst_iova: u64,
    src_iova: u64,
}

impl Argument for IoasCopy {
    const MINIMUM: u32 = 40;
}

/// `struct iommu_ioas_unmap`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IoasUnmap {
    size: u32,
    ioas_id: u32,
    iova: u64,
    length: u64,
}

impl Argument for IoasUnmap {
    const MINIMUM: u32 = 24;
}

/// The flags' meaning, after the checks that every way of mapping begins with:
/// EOPNOTSUPP for a flag that is unknown, EOVERFLOW for a number that is the
/// highest there is, EINVAL for a mapping that allows nothing.
fn check(flags: u32, reserved: u32, numbers: &[u64]) -> Result<Rights, Errno> {
    if flags & !(FIXED_IOVA | WRITEABLE | READABLE) != 0 || reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if numbers.contains(&u64::MAX) {
        return Err(Errno::EOVERFLOW);
    }
    let rights = Rights::new(flags & READABLE != 0, flags & WRITEABLE != 0);
    if rights == Rights::NONE {
        return Err(Errno::EINVAL);
    }
    Ok(rights)
}

fn place(flags: u32, iova: u64) -> Place {
    if flags & FIXED_IOVA != 0 {
        Place::Fixed(Iova(iova))
    } else {
        Place::Anywhere
    }
}

/// EOVERFLOW if the memory would pass the top of its address space, EINVAL if
/// there is none. Linux `iopt_alloc_user_pages` and `iopt_alloc_pages`.
pub(super) fn check_memory(start: u64, length: u64) -> Result<(), Errno> {
    start.checked_add(length).ok_or(Errno::EOVERFLOW)?;
    if length == 0 || length > LENGTH_LIMIT {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// IOMMU_IOAS_MAP. Linux `iommufd_ioas_map`, `iopt_map_user_pages`.
pub(super) fn map(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, IoasMap>| {
        let body = call.body;
        let rights = check(body.flags, body.reserved, &[body.iova, body.length])?;
        host.ioas_check(file, body.ioas_id)?;
        check_memory(body.user_va, body.length)?;
        let mapped = Mapped {
            ioas: body.ioas_id,
            pages: client.pages(body.user_va, body.length),
            length: body.length,
            place: place(body.flags, body.iova),
            rights,
            via: Via::IoasMap,
        };
        match host.ioas_map(file, mapped, client) {
            Ok(iova) => call.body.iova = iova.0,
            Err(failure) => return refuse(failure),
        }
        call.respond()?;
        Ok(Answer::value(0))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_ioas_map",
            target: "iogate",
            Level::INFO,
            file = file.0,
            ioas = body.ioas_id,
            flags = body.flags,
            va = format_args!("{:#x}", body.user_va),
            length = format_args!("{:#x}", body.length),
            iova = format_args!("{:#x}", body.iova),
            result = %Told(result),
        );
    })
}

/// IOMMU_IOAS_MAP_FILE. Linux `iommufd_ioas_map_file`, `iopt_map_file_pages`.
pub(super) fn map_file(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, IoasMapFile>| {
        let body = call.body;
        let rights = check(body.flags, 0, &[body.iova, body.length])?;
        host.ioas_check(file, body.ioas_id)?;
        let named = client.named(body.fd)?;
        check_memory(body.start, body.length)?;
        let pages = match named {
            Named::Ours(buffer) if host.kind(buffer) == Some(FileKind::Buffer) => {
                host.buffer_pages(buffer, body.start, body.length)?
            }
            _ => client.file_pages(body.fd, body.start, body.length)?,
        };
        let mapped = Mapped {
            ioas: body.ioas_id,
            pages,
            length: body.length,
            place: place(body.flags, body.iova),
            rights,
            via: Via::IoasMapFile,
        };
        match host.ioas_map(file, mapped, client) {
            Ok(iova) => call.body.iova = iova.0,
            Err(failure) => return refuse(failure),
        }
        call.respond()?;
        Ok(Answer::value(0))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_ioas_map_file",
            target: "iogate",
            Level::INFO,
            file = file.0,
            ioas = body.ioas_id,
            flags = body.flags,
            fd = body.fd,
            start = format_args!("{:#x}", body.start),
            length = format_args!("{:#x}", body.length),
            iova = format_args!("{:#x}", body.iova),
            result = %Told(result),
        );
    })
}

/// IOMMU_IOAS_COPY. Linux `iommufd_ioas_copy`, `iopt_get_pages`.
pub(super) fn copy(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, IoasCopy>| {
        let body = call.body;
        let rights = check(body.flags, 0, &[body.length, body.src_iova, body.dst_iova])?;
        host.ioas_check(file, body.src_ioas_id)?;
        if body.length == 0 {
            return Err(Errno::EINVAL);
        }
        let source = Span::with_length(Iova(body.src_iova), body.length);
        let copied = Copied {
            from: body.src_ioas_id,
            source: source.ok_or(Errno::EOVERFLOW)?,
            to: body.dst_ioas_id,
            place: place(body.flags, body.dst_iova),
            rights,
        };
        match host.ioas_copy(file, copied, client) {
            Ok(iova) => call.body.dst_iova = iova.0,
            Err(failure) => return refuse(failure),
        }
        call.respond()?;
        Ok(Answer::value(0))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_ioas_copy",
            target: "iogate",
            Level::INFO,
            file = file.0,
            from = body.src_ioas_id,
            source = format_args!("{:#x}", body.src_iova),
            length = format_args!("{:#x}", body.length),
            to = body.dst_ioas_id,
            iova = format_args!("{:#x}", body.dst_iova),
            flags = body.flags,
            result = %Told(result),
        );
    })
}

/// IOMMU_IOAS_UNMAP. Linux `iommufd_ioas_unmap`, `iopt_unmap_iova_range`.
pub(super) fn unmap(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, IoasUnmap>| {
        let body = call.body;
        host.ioas_check(file, body.ioas_id)?;
        let span = if body.iova == 0 && body.length == u64::MAX {
            Span::whole()
        } else if body.iova == u64::MAX || body.length == u64::MAX {
            return Err(Errno::EOVERFLOW);
        } else if body.length == 0 {
            return Err(Errno::EINVAL);
        } else {
            Span::with_length(Iova(body.iova), body.length).ok_or(Errno::EOVERFLOW)?
        };
        let unmapped = host.ioas_unmap(file, body.ioas_id, span, client)?;
        let after = unmapped.retired.into();
        if let Err(error) = unmapped.outcome {
            return Ok(Answer::failed(error.into(), after));
        }
        call.body.length = unmapped.bytes;
        Ok(match call.respond() {
            Ok(()) => Answer {
                after,
                ..Answer::default()
            },
            Err(errno) => Answer::failed(errno, after),
        })
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_ioas_unmap",
            target: "iogate",
            Level::INFO,
            file = file.0,
            ioas = body.ioas_id,
            iova = format_args!("{:#x}", body.iova),
            length = format_args!("{:#x}", body.length),
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
        same_layout!(IoasMap, bindings::iommu_ioas_map, {
            size: size, flags: flags, ioas_id: ioas_id, reserved: __reserved,
            user_va: user_va, length: length, iova: iova,
        });
        same_layout!(IoasMapFile, bindings::iommu_ioas_map_file, {
            size: size, flags: flags, ioas_id: ioas_id, fd: fd, start: start,
            length: length, iova: iova,
        });
        same_layout!(IoasCopy, bindings::iommu_ioas_copy, {
            size: size, flags: flags, dst_ioas_id: dst_ioas_id, src_ioas_id: src_ioas_id,
            length: length, dst_iova: dst_iova, src_iova: src_iova,
        });
        same_layout!(IoasUnmap, bindings::iommu_ioas_unmap, {
            size: size, ioas_id: ioas_id, iova: iova, length: length,
        });
    }
}
