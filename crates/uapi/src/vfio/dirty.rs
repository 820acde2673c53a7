//! Dirty pages as bitmaps in the client. Linux
//! `drivers/vfio/vfio_iommu_type1.c`, `update_user_bitmap`.

use iogate_dma::Span;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::Argument;
use super::{Call, told};
use crate::{Answer, Client, Errno};

/// `struct vfio_bitmap`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Bitmap {
    pub(super) pgsize: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Where it is in the client.
    pub(super) data: u64,
}

/// `struct vfio_iommu_type1_dirty_bitmap`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DirtyBitmap {
    argsz: u32,
    flags: u32,
}

/// Bytes of [`DirtyBitmap`].
const DIRTY: usize = 8;

impl Argument for DirtyBitmap {
    const MINIMUM: usize = DIRTY;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// `struct vfio_iommu_type1_dirty_bitmap_get`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DirtyBitmapGet {
    iova: u64,
    size: u64,
    bitmap: Bitmap,
}

/// The largest bitmap, that of 2^31 - 1 pages: 256 MiB.
pub(super) const DIRTY_BITMAP_BYTES_MAX: u64 = 1 << 28;

/// Where a process's addresses end. arch/x86/include/asm/page_64_types.h,
/// TASK_SIZE_MAX.
const ADDRESSES_END: u64 = (1 << 47) - 4096;

mod flag {
    /// VFIO_IOMMU_DIRTY_PAGES_FLAG_*.
    pub(super) const START: u32 = 1;
    pub(super) const STOP: u32 = 2;
    pub(super) const GET_BITMAP: u32 = 4;
}

impl Bitmap {
    /// EINVAL unless the bitmap can be in a process and is as large as a range
    /// of `size` bytes needs. `verify_bitmap_size`.
    pub(super) fn check(&self, size: u64) -> Result<(), Errno> {
        let end = self.data.checked_add(self.size);
        if end.is_none_or(|end| end > ADDRESSES_END) {
            return Err(Errno::EINVAL);
        }
        // The lowest bit of the page size decides; none is no page size.
        let pages = size.checked_shr(self.pgsize.trailing_zeros());
        let pages = pages.filter(|pages| *pages != 0).ok_or(Errno::EINVAL)?;
        let needed = pages.div_ceil(64).checked_mul(8).ok_or(Errno::EINVAL)?;
        match (needed..=DIRTY_BITMAP_BYTES_MAX).contains(&self.size) {
            true => Ok(()),
            false => Err(Errno::EINVAL),
        }
    }
}

/// Marks pages in a client's bitmap, in whole 64-bit words.
pub(super) struct Writer<'c> {
    client: &'c dyn Client,
    data: u64,
    shift: u32,
    /// The address of the first page.
    base: u64,
}

impl<'c> Writer<'c> {
    pub(super) fn new(client: &'c dyn Client, bitmap: &Bitmap, base: u64) -> Self {
        Self {
            client,
            data: bitmap.data,
            shift: bitmap.pgsize.trailing_zeros(),
            base,
        }
    }

    /// Writes the bits of all pages of `span`: set for those in `dirty`, in
    /// order, else clear. Bits before it keep their value, bits after it in the
    /// same word are cleared.
    pub(super) fn mark(&self, span: Span, dirty: &[Span]) -> Result<(), Errno> {
        let page = |iova: u64| iova.wrapping_sub(self.base).checked_shr(self.shift);
        let first = page(span.first().0).ok_or(Errno::EINVAL)?;
        let last = page(span.last().0).ok_or(Errno::EINVAL)?;
        let runs = dirty.iter().filter_map(|run| {
            let from = run.first().max(span.first());
            let to = run.last().min(span.last());
            Some((page(from.0)?, page(to.0)?))
        });
        let mut runs = runs.fuse();
        let mut run = runs.next();
        let mut word = first >> 6;
        let mut at = word
            .checked_mul(8)
            .and_then(|offset| self.data.checked_add(offset))
            .ok_or(Errno::EFAULT)?;
        // A run of words at a time.
        let mut words = [0_u64; 512];
        while word <= last >> 6 {
            let mut used = 0_usize;
            for (value, number) in words.iter_mut().zip(word..=last >> 6) {
                *value = 0;
                while let Some((from, to)) = run.filter(|(from, _)| from >> 6 <= number) {
                    *value |= bits(number, from, to);
                    if to >> 6 > number {
                        // The rest of the run is in words to come.
                        break;
                    }
                    run = runs.next();
                }
                if number == first >> 6 && first & 63 != 0 {
                    let mut old = [0; 8];
                    self.client.read(at, &mut old)?;
                    let kept = (1_u64 << (first & 63)).wrapping_sub(1);
                    *value |= u64::from_ne_bytes(old) & kept;
                }
                used = used.saturating_add(1);
            }
            let bytes = words.get(..used).unwrap_or_default().as_bytes();
            self.client.write(at, bytes)?;
            let done = u64::try_from(used).unwrap_or(u64::MAX);
            word = word.saturating_add(done);
            at = at
                .checked_add(done.saturating_mul(8))
                .ok_or(Errno::EFAULT)?;
        }
        Ok(())
    }
}

/// The bits of `word` that stand for the pages from `first` to `last`.
fn bits(word: u64, first: u64, last: u64) -> u64 {
    let from = match first >> 6 < word {
        true => 0,
        false => first & 63,
    };
    let to = match last >> 6 > word {
        true => 63,
        false => last & 63,
    };
    u64::MAX << from & u64::MAX >> 63_u64.wrapping_sub(to)
}

/// VFIO_IOMMU_DIRTY_PAGES. `vfio_iommu_type1_dirty_pages`.
pub(super) fn dirty_pages(call: &Call<'_>) -> Result<Answer, Errno> {
    let mut body = DirtyBitmap::new_zeroed();
    let result = run(call, &mut body);
    told!("ioctl_dirty_pages", call, result, flags = body.flags)
}

fn run(call: &Call<'_>, body: &mut DirtyBitmap) -> Result<Answer, Errno> {
    call.host.check_dirty(call.file)?;
    *body = call.read()?;
    match body.flags {
        flag::START => call.host.track_dirty(call.file, true)?,
        flag::STOP => call.host.track_dirty(call.file, false)?,
        flag::GET_BITMAP => get_bitmap(call, body.argsz)?,
        // Unknown flags, several, or none.
        _ => return Err(Errno::EINVAL),
    }
    Ok(Answer::value(0))
}

fn get_bitmap(call: &Call<'_>, argsz: u32) -> Result<(), Errno> {
    let room = usize::try_from(argsz).unwrap_or(usize::MAX);
    if room.saturating_sub(DIRTY) < size_of::<DirtyBitmapGet>() {
        return Err(Errno::EINVAL);
    }
    let mut get = DirtyBitmapGet::new_zeroed();
    call.client.read(call.at(DIRTY)?, get.as_mut_bytes())?;
    let DirtyBitmapGet { iova, size, bitmap } = get;
    if size != 0 && iova.checked_add(size.wrapping_sub(1)).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    bitmap.check(size)?;
    let writer = Writer::new(call.client, &bitmap, iova);
    let report = |span, dirty: &[_]| writer.mark(span, dirty);
    call.host
        .dirty_bitmap(call.file, (iova, size), bitmap.pgsize, report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn structures_and_flags_are_the_kernels() {
        same_layout!(Bitmap, bindings::vfio_bitmap, {
            pgsize: pgsize, size: size, data: data,
        });
        same_layout!(DirtyBitmap, bindings::vfio_iommu_type1_dirty_bitmap, {
            argsz: argsz, flags: flags,
        });
        same_layout!(DirtyBitmapGet, bindings::vfio_iommu_type1_dirty_bitmap_get, {
            iova: iova, size: size, bitmap: bitmap,
        });
        assert_eq!(flag::START, bindings::VFIO_IOMMU_DIRTY_PAGES_FLAG_START);
        assert_eq!(flag::STOP, bindings::VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP);
        assert_eq!(
            flag::GET_BITMAP,
            bindings::VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP
        );
    }
}
