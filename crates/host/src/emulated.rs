//! The view of memory that a mediated device has: the mappings of an address
//! space, whose pages it reads and writes through the client's memory by
//! itself, pinned for no longer than the access. Linux
//! `drivers/vfio/vfio_main.c`, `vfio_dma_rw`.

use std::sync::Arc;

use iogate_dma::{
    Access, DirtyLog, Fault, InFlight, Iova, Memory, MemoryError, Outcome, Request, Rights, Run,
    Span, Translate, Width,
};
use iogate_space::{Miss, Segment};

use crate::{Ioas, Pinned};

/// What a mapping has to allow for a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WriteRule {
    /// Writes: `iommufd_access_rw`.
    Write,
    /// Reads, too: `vfio_iommu_type1_dma_rw_chunk`.
    ReadAndWrite,
}

/// An address space as a mediated device sees it. Where a unit's page table
/// shows the same mappings, pages are pinned already and used as they are.
pub(crate) struct EmulatedSpace {
    space: Arc<Ioas>,
    memory: Arc<dyn Memory>,
    rule: WriteRule,
    /// Told of the pages that were written.
    written: Option<Arc<DirtyLog>>,
}

impl EmulatedSpace {
    pub(crate) fn new(
        space: Arc<Ioas>,
        memory: Arc<dyn Memory>,
        rule: WriteRule,
        written: Option<Arc<DirtyLog>>,
    ) -> Self {
        Self {
            space,
            memory,
            rule,
            written,
        }
    }

    /// Pins the `length` bytes at `iova`, which lie in one mapping.
    fn pin(
        &self,
        iova: u64,
        length: usize,
        rights: Rights,
    ) -> Result<Box<dyn Pinned>, MemoryError> {
        let gone = MemoryError::Gone { address: iova };
        let length = u64::try_from(length).map_err(|_| gone)?;
        let part = self.space.space().with_area(Iova(iova), |area| {
            let skipped = iova.saturating_sub(area.span.first().0);
            let offset = area.payload.offset.saturating_add(skipped);
            let left = area.span.last().0.saturating_sub(iova);
            (length.saturating_sub(1) <= left).then(|| (Arc::clone(&area.payload.pages), offset))
        });
        // One that went meanwhile was there when the access began.
        let (pages, offset) = part.flatten().ok_or(gone)?;
        match pages.is_memory() {
            true => pages.lend(offset, length, rights).map_err(|_| gone),
            false => Err(MemoryError::Absent { address: iova }),
        }
    }

    /// Where one access of `width` bytes ends.
    fn word(
        &self,
        iova: u64,
        width: Width,
        rights: Rights,
    ) -> Result<(u64, Box<dyn Pinned>), MemoryError> {
        let bytes = width.bytes();
        let pinned = self.pin(iova, usize::try_from(bytes).unwrap_or(8), rights)?;
        let whole = |segment: &&Segment| segment.length >= bytes;
        match pinned.segments().first().filter(whole) {
            Some(segment) => Ok((segment.output, pinned)),
            None => Err(MemoryError::NotAtomic { address: iova }),
        }
    }

    fn wrote(&self, iova: u64, length: u64) {
        let span = Span::with_length(Iova(iova), length);
        if let (Some(written), Some(span)) = (&self.written, span) {
            written.mark(span);
        }
    }
}

impl Translate for EmulatedSpace {
    fn translate<'g>(
        &'g self,
        guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        let first = request.span.first();
        let area = self.space.space().with_area(first, |area| {
            let is_memory = area.payload.pages.is_memory();
            (area.span, area.rights, is_memory)
        });
        // A device's own memory, which only devices reach: a page table may
        // show it. `iopt_pages_rw_access`.
        if area.is_some_and(|(.., is_memory)| !is_memory) {
            return Err(self.space.fault(request, Miss::Permission));
        }
        if self.rule == WriteRule::ReadAndWrite
            && request.access == Access::Write
            && let Some((_, rights, _)) = area
            && !rights.can_read()
        {
            return Err(self.space.fault(request, Miss::Permission));
        }
        match self.space.translate_or_miss(guard, request) {
            Ok(run) => Ok(Outcome::Memory(run)),
            // Nobody pinned it before: this access does.
            Err(Miss::Unfilled) if let Some((span, rights, _)) = area => {
                let last = span.last().min(request.span.last());
                let length = last.0.saturating_sub(first.0).saturating_add(1);
                Ok(Outcome::Memory(Run::new(self, first.0, length, rights)))
            }
            Err(miss) => Err(self.space.fault(request, miss)),
        }
    }
}

/// Addresses are those of the address space.
impl Memory for EmulatedSpace {
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let pinned = self.pin(iova, into.len(), Rights::READ)?;
        let mut rest = into;
        for segment in pinned.segments() {
            let length = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let length = length.min(rest.len());
            let (now, later) = std::mem::take(&mut rest)
                .split_at_mut_checked(length)
                .unwrap_or_default();
            self.memory.read(segment.output, now)?;
            rest = later;
        }
        Ok(())
    }

    fn write(&self, iova: u64, from: &[u8]) -> Result<(), MemoryError> {
        let pinned = self.pin(iova, from.len(), Rights::WRITE)?;
        let mut rest = from;
        for segment in pinned.segments() {
            let length = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let (now, later) = rest
                .split_at_checked(length.min(rest.len()))
                .unwrap_or_default();
            self.memory.write(segment.output, now)?;
            rest = later;
        }
        self.wrote(iova, u64::try_from(from.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn load(&self, iova: u64, width: Width) -> Result<u64, MemoryError> {
        let (address, _pinned) = self.word(iova, width, Rights::READ)?;
        self.memory.load(address, width)
    }

    fn store(&self, iova: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        let (address, _pinned) = self.word(iova, width, Rights::WRITE)?;
        self.memory.store(address, width, value)?;
        self.wrote(iova, width.bytes());
        Ok(())
    }

    fn compare_exchange(
        &self,
        iova: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let (address, _pinned) = self.word(iova, width, Rights::new(true, true))?;
        let stood = self.memory.compare_exchange(address, width, current, new)?;
        self.wrote(iova, width.bytes());
        Ok(stood)
    }
}
