//! Which pages devices wrote by way of a page table. Linux
//! `drivers/iommu/iommufd/io_pagetable.c`, `iopt_set_dirty_tracking`,
//! `iopt_read_and_clear_dirty_data`.

use std::collections::BTreeSet;

use iogate_dma::{Iova, Span};

use super::Context;
use crate::{Error, ErrorKind, FileId, Host};

/// Pages that were written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct DirtyPages {
    is_on: bool,
    /// First bytes of pages.
    pages: BTreeSet<Iova>,
}

/// A look at a range for pages that were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyRange {
    /// First byte.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that each bit of the bitmap stands for.
    pub page_size: u64,
    /// Whether the pages still count as written afterwards.
    pub keep: bool,
}

const NO_DIRTY: Error = Error::new(
    ErrorKind::Unsupported,
    "the page table was not made for dirty tracking",
);

impl Host {
    /// IOMMU_HWPT_SET_DIRTY_TRACKING: turned on, nothing counts as written.
    /// ENOENT; EOPNOTSUPP for a page table that was not made for it. Linux
    /// `iommufd_hwpt_set_dirty_tracking`.
    pub fn hwpt_set_dirty_tracking(&self, file: FileId, id: u32, on: bool) -> Result<(), Error> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let dirty = context.objects.hwpt_mut(id)?.dirty.as_mut();
        let dirty = dirty.ok_or(NO_DIRTY)?;
        if on {
            dirty.pages.clear();
        }
        dirty.is_on = on;
        Ok(())
    }

    /// IOMMU_HWPT_GET_DIRTY_BITMAP: the mapped pages of `range` that were
    /// written, each with all its bytes. ENOENT; EOPNOTSUPP as above;
    /// EOVERFLOW, EINVAL for a range that wraps, is empty or is not of whole
    /// pages. Linux `iommufd_check_iova_range`.
    pub fn hwpt_dirty_pages(
        &self,
        file: FileId,
        id: u32,
        range: DirtyRange,
    ) -> Result<Vec<Span>, Error> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let hwpt = context.objects.hwpt(id)?;
        let granule = hwpt.unit.granule();
        if hwpt.dirty.is_none() {
            return Err(NO_DIRTY);
        }
        let ioas = context.objects.ioas(hwpt.ioas)?;
        let span = check_range(&range, ioas.alignment)?;
        let space = std::sync::Arc::clone(&ioas.space);
        let dirty = context.objects.hwpt_mut(id)?.dirty.as_mut();
        let dirty = dirty.ok_or(NO_DIRTY)?;
        let written: Vec<Iova> = dirty
            .pages
            .range(span.first()..=span.last())
            .copied()
            .filter(|page| space.space().area_at(*page).is_some())
            .collect();
        if !range.keep {
            for page in &written {
                dirty.pages.remove(page);
            }
        }
        let page = |first: &Iova| Span::with_length(*first, granule);
        Ok(written.iter().filter_map(page).collect())
    }

    /// The page with `iova` was written by way of the page table: ENOENT;
    /// EINVAL unless it tracks that.
    pub fn hwpt_set_dirty(&self, file: FileId, id: u32, iova: &[Iova]) -> Result<(), Error> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let hwpt = context.objects.hwpt_mut(id)?;
        let mask = !hwpt.unit.granule().wrapping_sub(1);
        let dirty = hwpt.dirty.as_mut().filter(|dirty| dirty.is_on);
        let dirty = dirty.ok_or(Error::invalid("dirty tracking is off"))?;
        dirty.pages.extend(iova.iter().map(|at| Iova(at.0 & mask)));
        Ok(())
    }
}

fn check_range(range: &DirtyRange, alignment: u64) -> Result<Span, Error> {
    let last = range.length.checked_sub(1);
    let last = last.and_then(|length| range.iova.checked_add(length));
    let last = last.ok_or(Error::new(
        ErrorKind::Overflow,
        "the range passes the top of the address space",
    ))?;
    let is_whole = |size: u64| {
        let mask = size.wrapping_sub(1);
        range.iova & mask == 0 && last.wrapping_add(1) & mask == 0
    };
    match Span::new(Iova(range.iova), Iova(last)) {
        Some(span) if range.page_size != 0 && is_whole(alignment) && is_whole(range.page_size) => {
            Ok(span)
        }
        _ => Err(Error::invalid("the range is not of whole pages")),
    }
}
