//! A container's mappings. Linux `drivers/vfio/vfio_iommu_type1.c`.

use iogate_dma::Rights;
use iogate_host::{MapDma, UnmapMode, UnmapRange};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::{Argument, Chain, Placed};
use super::dirty::{Bitmap, DIRTY_BITMAP_BYTES_MAX, Writer};
use super::{Call, told};
use crate::{Answer, Errno};

/// `struct vfio_iommu_type1_info`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Info {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) iova_pgsizes: u64,
    pub(crate) cap_offset: u32,
    pub(crate) pad: u32,
}

impl Argument for Info {
    const MINIMUM: usize = 16;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// `struct vfio_iommu_type1_dma_map`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Map {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) vaddr: u64,
    pub(crate) iova: u64,
    pub(crate) size: u64,
}

impl Argument for Map {
    const MINIMUM: usize = 32;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// `struct vfio_iommu_type1_dma_unmap`, with the bitmap that may follow it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Unmap {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) iova: u64,
    pub(crate) size: u64,
}

/// Bytes of [`Unmap`].
pub(crate) const UNMAP: usize = 24;

impl Argument for Unmap {
    const MINIMUM: usize = UNMAP;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

pub(crate) mod flag {
    /// VFIO_IOMMU_INFO_*.
    pub(crate) const INFO_PGSIZES: u32 = 1;
    pub(crate) const INFO_CAPS: u32 = 2;
    /// VFIO_DMA_MAP_FLAG_*.
    pub(crate) const READ: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const MAP_VADDR: u32 = 4;
    /// VFIO_DMA_UNMAP_FLAG_*.
    pub(crate) const GET_DIRTY_BITMAP: u32 = 1;
    pub(crate) const ALL: u32 = 2;
    pub(crate) const UNMAP_VADDR: u32 = 4;
}

/// VFIO_IOMMU_TYPE1_INFO_CAP_*.
pub(crate) mod capability {
    pub(crate) const IOVA_RANGE: u16 = 1;
    pub(crate) const MIGRATION: u16 = 2;
    pub(crate) const DMA_AVAIL: u16 = 3;
}

/// VFIO_IOMMU_GET_INFO, capabilities in the kernel's order: migration,
/// mappings available, ranges. `vfio_iommu_type1_get_info`.
pub(super) fn get_info(call: &Call<'_>) -> Result<Answer, Errno> {
    let mut info = Info::new_zeroed();
    let result = fill_info(call, &mut info);
    told!(
        "ioctl_get_info",
        call,
        result,
        argsz = info.argsz,
        page_sizes = format_args!("{:#x}", info.iova_pgsizes),
    )
}

fn fill_info(call: &Call<'_>, info: &mut Info) -> Result<Answer, Errno> {
    *info = call.read()?;
    let room = usize::try_from(info.argsz).unwrap_or(usize::MAX);
    let known = call.host.type1_info(call.file)?;
    info.flags = flag::INFO_PGSIZES | flag::INFO_CAPS;
    info.iova_pgsizes = known.page_sizes;
    let mut chain = Chain::after(size_of::<Info>());
    let smallest = known.page_sizes & known.page_sizes.wrapping_neg();
    let mut migration = [0_u64; 3];
    migration[1] = smallest;
    migration[2] = DIRTY_BITMAP_BYTES_MAX;
    chain.add(capability::MIGRATION, 1, migration.as_bytes());
    chain.add(capability::DMA_AVAIL, 1, &known.available.to_ne_bytes());
    if !known.ranges.is_empty() {
        let count = u32::try_from(known.ranges.len()).unwrap_or(u32::MAX);
        let mut body = count.to_ne_bytes().to_vec();
        body.extend([0; 4]);
        for range in &known.ranges {
            body.extend(range.first().0.to_ne_bytes());
            body.extend(range.last().0.to_ne_bytes());
        }
        chain.add(capability::IOVA_RANGE, 1, &body);
    }
    match chain.write(call, info.argsz)? {
        Placed::At(offset) => info.cap_offset = offset,
        Placed::Needs(argsz) => info.argsz = argsz,
    }
    call.write(info, room)?;
    Ok(Answer::value(0))
}

/// VFIO_IOMMU_MAP_DMA. `vfio_iommu_type1_map_dma`.
pub(super) fn map(call: &Call<'_>) -> Result<Answer, Errno> {
    let mut body = Map::new_zeroed();
    let result = run_map(call, &mut body);
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

fn run_map(call: &Call<'_>, body: &mut Map) -> Result<Answer, Errno> {
    *body = call.read()?;
    if body.flags & !(flag::READ | flag::WRITE | flag::MAP_VADDR) != 0 {
        return Err(Errno::EINVAL);
    }
    let request = MapDma {
        iova: body.iova,
        address: body.vaddr,
        size: body.size,
        rights: Rights::new(body.flags & flag::READ != 0, body.flags & flag::WRITE != 0),
        update: body.flags & flag::MAP_VADDR != 0,
    };
    let pages = || call.client.pages(body.vaddr, body.size);
    let retired = call.host.map_dma(call.file, &request, pages, call.client)?;
    Ok(retired.into())
}

/// VFIO_IOMMU_UNMAP_DMA. `vfio_iommu_type1_unmap_dma`.
pub(super) fn unmap(call: &Call<'_>) -> Result<Answer, Errno> {
    let mut body = Unmap::new_zeroed();
    let result = run_unmap(call, &mut body);
    told!(
        "ioctl_unmap_dma",
        call,
        result,
        flags = body.flags,
        iova = format_args!("{:#x}", body.iova),
        size = format_args!("{:#x}", body.size),
    )
}

fn run_unmap(call: &Call<'_>, body: &mut Unmap) -> Result<Answer, Errno> {
    *body = call.read()?;
    let has = |flag: u32| body.flags & flag != 0;
    if has(!(flag::GET_DIRTY_BITMAP | flag::ALL | flag::UNMAP_VADDR)) {
        return Err(Errno::EINVAL);
    }
    let mut mode = match has(flag::UNMAP_VADDR) {
        true => UnmapMode::Invalidate,
        false => UnmapMode::Remove,
    };
    let mut bitmap = Bitmap::new_zeroed();
    if has(flag::GET_DIRTY_BITMAP) {
        let needed = UNMAP.saturating_add(size_of::<Bitmap>());
        let room = usize::try_from(body.argsz).unwrap_or(usize::MAX);
        if has(flag::ALL | flag::UNMAP_VADDR) || room < needed {
            return Err(Errno::EINVAL);
        }
        call.client.read(call.at(UNMAP)?, bitmap.as_mut_bytes())?;
        bitmap.check(body.size)?;
        mode = UnmapMode::Report {
            page_size: bitmap.pgsize,
        };
    }
    let (iova, size) = (body.iova, body.size);
    let range = match has(flag::ALL) {
        true => UnmapRange::All { iova, size },
        false => UnmapRange::Range { iova, size },
    };
    let writer = Writer::new(call.client, &bitmap, iova);
    let report = |span, dirty: &[_]| writer.mark(span, dirty);
    let unmapped = call
        .host
        .unmap_dma(call.file, range, mode, report, call.client);
    match unmapped {
        Ok((bytes, retired)) => {
            body.size = bytes;
            // What is unmapped stays so, even if the client cannot be told.
            match call.write(body, UNMAP) {
                Ok(()) => Ok(Answer {
                    after: retired.into(),
                    ..Answer::default()
                }),
                Err(errno) => Ok(Answer::failed(errno, retired.into())),
            }
        }
        Err((errno, retired)) if retired.grace.is_some() => {
            Ok(Answer::failed(errno, retired.into()))
        }
        Err((errno, _)) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(Info, bindings::vfio_iommu_type1_info, {
            argsz: argsz, flags: flags, iova_pgsizes: iova_pgsizes, cap_offset: cap_offset,
        });
        same_layout!(Map, bindings::vfio_iommu_type1_dma_map, {
            argsz: argsz, flags: flags, vaddr: vaddr, iova: iova, size: size,
        });
        same_layout!(Unmap, bindings::vfio_iommu_type1_dma_unmap, {
            argsz: argsz, flags: flags, iova: iova, size: size,
        });
    }

    #[test]
    fn flags_and_capabilities_are_the_kernels() {
        assert_eq!(flag::INFO_PGSIZES, bindings::VFIO_IOMMU_INFO_PGSIZES);
        assert_eq!(flag::INFO_CAPS, bindings::VFIO_IOMMU_INFO_CAPS);
        assert_eq!(flag::READ, bindings::VFIO_DMA_MAP_FLAG_READ);
        assert_eq!(flag::WRITE, bindings::VFIO_DMA_MAP_FLAG_WRITE);
        assert_eq!(flag::MAP_VADDR, bindings::VFIO_DMA_MAP_FLAG_VADDR);
        assert_eq!(
            flag::GET_DIRTY_BITMAP,
            bindings::VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
        );
        assert_eq!(flag::ALL, bindings::VFIO_DMA_UNMAP_FLAG_ALL);
        assert_eq!(flag::UNMAP_VADDR, bindings::VFIO_DMA_UNMAP_FLAG_VADDR);
        let ids = [
            (
                capability::IOVA_RANGE,
                bindings::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
            ),
            (
                capability::MIGRATION,
                bindings::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
            ),
            (
                capability::DMA_AVAIL,
                bindings::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
            ),
        ];
        for (ours, theirs) in ids {
            assert_eq!(u32::from(ours), theirs);
        }
    }
}
