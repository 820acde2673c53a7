//! Which pages devices wrote by way of a page table. Linux
//! `drivers/iommu/iommufd/io_pagetable.c`, `iopt_set_dirty_tracking`,
//! `iopt_read_and_clear_dirty_data`.

use std::sync::Arc;

use iogate_dma::{Access, DirtyLog, Fault, InFlight, Iova, Outcome, Request, Span, Translate};

use super::Context;
use crate::{Error, ErrorKind, FileId, Host, Ioas, Retired};

/// An IOAS as it is seen by way of a page table that records what is written.
pub(super) struct TrackedSpace {
    space: Arc<Ioas>,
    log: Arc<DirtyLog>,
}

impl TrackedSpace {
    pub(super) fn new(space: Arc<Ioas>, log: Arc<DirtyLog>) -> Self {
        Self { space, log }
    }
}

impl Translate for TrackedSpace {
    fn translate<'g>(
        &'g self,
        guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        let outcome = self.space.translate(guard, request)?;
        if request.access == Access::Write
            && self.log.is_on()
            && let Outcome::Memory(run) = &outcome
            && let Some(span) = Span::with_length(request.span.first(), run.length())
        {
            self.log.insert(span);
        }
        Ok(outcome)
    }
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
    pub fn hwpt_set_dirty_tracking(
        &self,
        file: FileId,
        id: u32,
        on: bool,
    ) -> Result<Retired, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let log = context.objects.hwpt(id)?.dirty.as_ref();
        log.ok_or(NO_DIRTY)?.set(on);
        // Who found it off may still be writing.
        Ok(self.grace())
    }

    /// IOMMU_HWPT_GET_DIRTY_BITMAP: the mapped pages of `range` that were
    /// written, each with all its bytes, neighbours joined. ENOENT; EOPNOTSUPP
    /// as above; EOVERFLOW, EINVAL for a range that wraps, is empty or is not of
    /// whole pages. Linux `iommufd_check_iova_range`.
    pub fn hwpt_dirty_pages(
        &self,
        file: FileId,
        id: u32,
        range: DirtyRange,
    ) -> Result<(Vec<Span>, Retired), Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let hwpt = context.objects.hwpt(id)?;
        let log = hwpt.dirty.as_ref().ok_or(NO_DIRTY)?;
        let ioas = context.objects.ioas(hwpt.ioas)?;
        let span = check_range(&range, ioas.alignment)?;
        let is_mapped = |page| ioas.space.space().area_at(page).is_some();
        let written = log.take(span, range.keep, is_mapped);
        // What was marked before is written by then.
        Ok((written, self.grace()))
    }

    /// The pages with these addresses were written by way of the page table:
    /// ENOENT; EINVAL unless it tracks that.
    pub fn hwpt_set_dirty(&self, file: FileId, id: u32, iova: &[Iova]) -> Result<(), Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let log = context.objects.hwpt(id)?.dirty.as_ref();
        let log = log.filter(|log| log.is_on());
        let log = log.ok_or(Error::invalid("dirty tracking is off"))?;
        for span in iova.iter().filter_map(|at| Span::new(*at, *at)) {
            log.insert(span);
        }
        Ok(())
    }

    fn grace(&self) -> Retired {
        Retired {
            grace: Some(self.config.gate.grace()),
            ..Retired::default()
        }
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
