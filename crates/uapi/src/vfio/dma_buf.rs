//! VFIO_DEVICE_FEATURE_DMA_BUF: parts of a BAR as a buffer that a descriptor
//! holds. Linux `drivers/vfio/pci/vfio_pci_dmabuf.c`,
//! `vfio_pci_core_feature_dma_buf`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Call;
use super::argument::read_value;
use super::feature::{FEATURE, Feature};
use crate::{Answer, Errno};

/// `struct vfio_device_feature_dma_buf`, without the parts that follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DmaBuf {
    region_index: u32,
    open_flags: u32,
    flags: u32,
    nr_ranges: u32,
}

/// `struct vfio_region_dma_range`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// Regions below this are BARs. VFIO_PCI_ROM_REGION_INDEX.
const ROM: u32 = 6;
/// Parts that a buffer may have: past this, ENOMEM. Linux has the allocator's
/// limit.
const MOST: u32 = 1 << 16;
/// Parts are of whole pages.
const PAGE_MASK: u64 = 4095;

/// Gives a descriptor of a buffer. EINVAL for no part, unknown flags and parts
/// that are not of whole pages; ENODEV for a region that is no BAR.
pub(super) fn get(call: &Call<'_>, device: usize, body: &Feature) -> Result<Answer, Errno> {
    const HEAD: usize = size_of::<DmaBuf>();
    const PART: usize = size_of::<Range>();
    if !body.is_got(HEAD)? {
        return Ok(Answer::value(0));
    }
    let head: [u8; HEAD] = read_value(call.client, call.at(FEATURE)?)?;
    let head = DmaBuf::read_from_bytes(&head).map_err(|_| Errno::EINVAL)?;
    if head.nr_ranges == 0 || head.flags != 0 {
        return Err(Errno::EINVAL);
    }
    if head.region_index >= ROM {
        return Err(Errno::ENODEV);
    }
    if head.nr_ranges > MOST {
        return Err(Errno::ENOMEM);
    }
    let mut parts = Vec::new();
    let mut total = 0_u64;
    let mut at = call.at(FEATURE.saturating_add(HEAD))?;
    for _ in 0..head.nr_ranges {
        let part: [u8; PART] = read_value(call.client, at)?;
        let Range { offset, length } = Range::read_from_bytes(&part).map_err(|_| Errno::EINVAL)?;
        parts.push((offset, length));
        at = at.checked_add(16).ok_or(Errno::EFAULT)?;
    }
    for (offset, length) in &parts {
        if *length == 0 || (offset | length) & PAGE_MASK != 0 {
            return Err(Errno::EINVAL);
        }
        total = total.checked_add(*length).ok_or(Errno::EINVAL)?;
    }
    // DMA_IOVA_USE_SWIOTLB is the highest bit of a length.
    if total >> 63 != 0 {
        return Err(Errno::EINVAL);
    }
    let [bar, ..] = head.region_index.to_le_bytes();
    let file = call.host.export_bar(device, bar, &parts)?;
    Ok(Answer {
        install: Some(file),
        ..Answer::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(Range, bindings::vfio_region_dma_range, {
            offset: offset, length: length,
        });
        assert_eq!(
            size_of::<DmaBuf>(),
            size_of::<bindings::vfio_device_feature_dma_buf>()
        );
        assert_eq!(11, bindings::VFIO_DEVICE_FEATURE_DMA_BUF);
    }
}
