//! IOMMU_VFIO_IOAS, and the calls of a VFIO container on an iommufd. Linux
//! `drivers/iommu/iommufd/vfio_compat.c`.

use iogate_dma::{Iova, Rights, Span};
use iogate_host::iommufd::CompatMap;
use iogate_host::{FileId, Host};
use tracing::Level;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use super::refuse;
use crate::trace::Told;
use crate::vfio::argument::{Chain, Placed};
use crate::vfio::type1::{Info, Map, UNMAP, Unmap, capability, flag};
use crate::vfio::{self, number, told};
use crate::{Answer, Client, Errno};

/// Mappings that may still be made: there is no limit.
const AVAILABLE: u32 = u32::MAX;

/// `enum iommufd_vfio_ioas_op`.
const GET: u16 = 0;
const SET: u16 = 1;
const CLEAR: u16 = 2;

/// `struct iommu_vfio_ioas`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct VfioIoas {
    size: u32,
    ioas_id: u32,
    op: u16,
    reserved: u16,
}

impl Argument for VfioIoas {
    const MINIMUM: u32 = 12;
}

/// IOMMU_VFIO_IOAS. Linux `iommufd_vfio_ioas`.
pub(super) fn vfio_ioas(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, VfioIoas>| {
        let body = &mut call.body;
        if body.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match body.op {
            GET => {
                body.ioas_id = host.compat_ioas(file)?;
                call.respond()?;
            }
            SET => host.set_compat_ioas(file, Some(body.ioas_id))?,
            CLEAR => host.set_compat_ioas(file, None)?,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Ok(Answer::value(0))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_vfio_ioas",
            target: "iogate",
            Level::INFO,
            file = file.0,
            op = body.op,
            ioas = body.ioas_id,
            result = %Told(result),
        );
    })
}

/// A call of a VFIO container. Linux `iommufd_vfio_ioctl`.
pub(super) fn ioctl(call: &vfio::Call<'_>, command: u32) -> Result<Answer, Errno> {
    const GET_API_VERSION: u32 = number(0);
    const CHECK_EXTENSION: u32 = number(1);
    const SET_IOMMU: u32 = number(2);
    const GET_INFO: u32 = number(12);
    const MAP_DMA: u32 = number(13);
    const UNMAP_DMA: u32 = number(14);
    let (host, file) = (call.host, call.file);
    match command {
        GET_API_VERSION => told!("ioctl_get_api_version", call, Ok(Answer::value(0))),
        CHECK_EXTENSION => {
            let known = host.compat_check_extension(file, call.argument);
            let result = known.map(|known| Answer::value(known.into()));
            told!(
                "ioctl_check_extension",
                call,
                result.map_err(Errno::from),
                extension = call.argument,
            )
        }
        SET_IOMMU => {
            let set = host.compat_set_iommu(file, call.argument, call.client);
            let result = set.map(|()| Answer::value(0));
            told!(
                "ioctl_set_iommu",
                call,
                result.map_err(Errno::from),
                kind = call.argument,
            )
        }
        GET_INFO => {
            let mut info = Info::new_zeroed();
            let result = get_info(call, &mut info);
            told!("ioctl_get_info", call, result, argsz = info.argsz)
        }
        MAP_DMA => {
            let mut body = Map::new_zeroed();
            let result = map(call, &mut body);
            told!(
                "ioctl_map_dma",
                call,
                result,
                flags = body.flags,
                iova = format_args!("{:#x}", body.iova),
                size = format_args!("{:#x}", body.size),
                vaddr = format_args!("{:#x}", body.vaddr),
            )
        }
        UNMAP_DMA => {
            let mut body = Unmap::new_zeroed();
            let result = unmap(call, &mut body);
            told!(
                "ioctl_unmap_dma",
                call,
                result,
                flags = body.flags,
                iova = format_args!("{:#x}", body.iova),
                size = format_args!("{:#x}", body.size),
            )
        }
        _ => vfio::unknown(file, command, Errno::ENOTTY),
    }
}

/// `argsz` always becomes what everything needs. Linux
/// `iommufd_vfio_iommu_get_info`.
fn get_info(call: &vfio::Call<'_>, info: &mut Info) -> Result<Answer, Errno> {
    *info = call.read()?;
    let known = call.host.compat_info(call.file)?;
    let argsz = info.argsz;
    info.flags = flag::INFO_PGSIZES | flag::INFO_CAPS;
    info.iova_pgsizes = known.page_sizes;
    let mut chain = Chain::after(size_of::<Info>());
    chain.add(capability::DMA_AVAIL, 1, &AVAILABLE.to_ne_bytes());
    let count = u32::try_from(known.ranges.len()).unwrap_or(u32::MAX);
    let mut body = count.to_ne_bytes().to_vec();
    body.extend([0; 4]);
    for range in &known.ranges {
        body.extend(range.first().0.to_ne_bytes());
        body.extend(range.last().0.to_ne_bytes());
    }
    chain.add(capability::IOVA_RANGE, 1, &body);
    if let Placed::At(offset) = chain.write(call, argsz)? {
        info.cap_offset = offset;
    }
    info.argsz = chain.end()?;
    call.write(info, usize::try_from(argsz).unwrap_or(usize::MAX))?;
    Ok(Answer::value(0))
}

/// Linux `iommufd_vfio_map_dma`.
fn map(call: &vfio::Call<'_>, body: &mut Map) -> Result<Answer, Errno> {
    *body = call.read()?;
    if body.flags & !(flag::READ | flag::WRITE) != 0 {
        return Err(Errno::EINVAL);
    }
    call.host.compat_ioas(call.file)?;
    super::map::check_memory(body.vaddr, body.size)?;
    let map = CompatMap {
        iova: body.iova,
        size: body.size,
        rights: Rights::new(body.flags & flag::READ != 0, body.flags & flag::WRITE != 0),
    };
    let pages = || call.client.pages(body.vaddr, body.size);
    match call.host.compat_map(call.file, map, pages, call.client) {
        Ok(()) => Ok(Answer::value(0)),
        Err(failure) => refuse(failure),
    }
}

/// Linux `iommufd_vfio_unmap_dma`.
fn unmap(call: &vfio::Call<'_>, body: &mut Unmap) -> Result<Answer, Errno> {
    *body = call.read()?;
    if body.flags & !flag::ALL != 0 {
        return Err(Errno::EINVAL);
    }
    call.host.compat_ioas(call.file)?;
    let span = if body.flags & flag::ALL != 0 {
        if body.iova != 0 || body.size != 0 {
            return Err(Errno::EINVAL);
        }
        None
    } else if body.size == 0 {
        return Err(Errno::EINVAL);
    } else {
        let span = Span::with_length(Iova(body.iova), body.size);
        Some(span.ok_or(Errno::EOVERFLOW)?)
    };
    let unmapped = call.host.compat_unmap(call.file, span, call.client)?;
    let after = unmapped.retired.into();
    if let Err(error) = unmapped.outcome {
        return Ok(Answer::failed(error.into(), after));
    }
    body.size = unmapped.bytes;
    // What is unmapped stays so, even if the client cannot be told.
    match call.write(body, UNMAP) {
        Ok(()) => Ok(Answer {
            after,
            ..Answer::default()
        }),
        Err(errno) => Ok(Answer::failed(errno, after)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use iommufd_bindings::iommufd as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(VfioIoas, bindings::iommu_vfio_ioas, {
            size: size, ioas_id: ioas_id, op: op, reserved: __reserved,
        });
    }
}
