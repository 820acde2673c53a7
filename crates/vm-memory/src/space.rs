//! The address space of one function behind a unit, as a `GuestMemory`.

use std::iter::FusedIterator;
use std::sync::Arc;

use iogate_dma::{
    Access, Fault, InFlight, Iova, Outcome, Participant, Request, Source, Span, Translate,
};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{
    Error, GuestMemoryBackendSliceIterator, GuestMemorySliceIterator, Result,
};
use vm_memory::iommu::{Error as IommuError, IovaRange};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions, VolatileSlice,
};

/// What one function of a VMM sees through its unit. It belongs to the
/// function's worker, which enters it for each bounded piece of work.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use iogate_dma::{RequesterId, Source};
/// # use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
/// # fn work(ram: Arc<GuestMemoryMmap>, unit: Arc<iogate_vtd::Vtd>) -> Result<(), vm_memory::guest_memory::Error> {
/// let source = Source::from(RequesterId(0x28));
/// let worker = unit.gate().join();
/// let mut space = iogate_vm_memory::DeviceSpace::new(ram, unit, source, worker);
/// let memory = space.enter();
/// let word: u64 = memory.load(GuestAddress(0x1000), std::sync::atomic::Ordering::Acquire)?;
/// # Ok(())
/// # }
/// ```
pub struct DeviceSpace<M> {
    ram: Arc<M>,
    unit: Arc<dyn Translate>,
    source: Source,
    participant: Participant,
}

impl<M: GuestMemoryBackend> DeviceSpace<M> {
    /// The space of `source` behind `unit`, whose guest has `ram`. The
    /// participant is one of the unit's gate.
    pub fn new(
        ram: Arc<M>,
        unit: Arc<dyn Translate>,
        source: Source,
        participant: Participant,
    ) -> Self {
        Self {
            ram,
            unit,
            source,
            participant,
        }
    }

    /// Enters the space: invalidations of the guest that come now are done
    /// when the result is dropped, so keep it for one bounded piece of work.
    pub fn enter(&mut self) -> Entered<'_, M> {
        Entered {
            ram: &self.ram,
            unit: &*self.unit,
            source: self.source,
            guard: self.participant.enter(),
        }
    }
}

/// A function's address space while its worker uses it.
pub struct Entered<'p, M> {
    ram: &'p M,
    unit: &'p dyn Translate,
    source: Source,
    guard: InFlight<'p>,
}

impl<M: GuestMemoryBackend> Entered<'_, M> {
    /// Where the first contiguous piece of `span` is in RAM, and its bytes.
    fn piece(&self, span: Span<Iova>, access: Access) -> Result<(GuestAddress, u64)> {
        let request = Request::new(self.source, span, access);
        match self.unit.translate(&self.guard, &request) {
            Ok(Outcome::Memory(run)) if run.length() > 0 => {
                Ok((GuestAddress(run.address()), run.length()))
            }
            Ok(_) => Err(cannot(span, "the address leads to no memory".to_owned())),
            Err(fault) => Err(refused(&fault)),
        }
    }
}

fn cannot(span: Span<Iova>, reason: String) -> Error {
    Error::IommuError(IommuError::CannotResolve {
        iova_range: IovaRange {
            base: GuestAddress(span.first().0),
            length: usize::try_from(span.last_offset().saturating_add(1)).unwrap_or(usize::MAX),
        },
        reason,
    })
}

pub(crate) fn refused(fault: &Fault) -> Error {
    cannot(fault.span, fault.reason.to_string())
}

pub(crate) fn access_of(permissions: Permissions) -> Access {
    match permissions {
        Permissions::No | Permissions::Read => Access::Read,
        Permissions::Write => Access::Write,
        Permissions::ReadWrite => Access::Atomic,
    }
}

impl<M: GuestMemoryBackend> GuestMemory for Entered<'_, M> {
    type PhysicalMemory = M;
    type Bitmap = <M::R as GuestMemoryRegion>::B;

    /// Whether all of the range is accessible. What the unit refuses is an
    /// access that it refused: its guest is told.
    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        let slices = GuestMemory::get_slices(self, addr, count, access);
        slices.is_ok_and(|mut slices| slices.all(|slice| slice.is_ok()))
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        let count = u64::try_from(count).map_err(|_| Error::GuestAddressOverflow)?;
        let rest = Span::with_length(Iova(addr.0), count);
        if rest.is_none() && count != 0 {
            return Err(Error::GuestAddressOverflow);
        }
        Ok(Slices {
            space: self,
            rest,
            access: access_of(access),
            piece: None,
        })
    }
}

/// What is left of `span` behind its first `done` bytes.
fn after(span: Span<Iova>, done: u64) -> Option<Span<Iova>> {
    Span::new(span.first().checked_add(done)?, span.last())
}

/// The slices of a range, piece by piece as it is translated.
struct Slices<'a, M: GuestMemoryBackend> {
    space: &'a Entered<'a, M>,
    rest: Option<Span<Iova>>,
    access: Access,
    piece: Option<GuestMemoryBackendSliceIterator<'a, M>>,
}

impl<'a, M: GuestMemoryBackend> Iterator for Slices<'a, M> {
    type Item = Result<VolatileSlice<'a, BS<'a, <M::R as GuestMemoryRegion>::B>>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.piece.as_mut().and_then(Iterator::next) {
                Some(Ok(slice)) => return Some(Ok(slice)),
                Some(Err(error)) => {
                    (self.piece, self.rest) = (None, None);
                    return Some(Err(error));
                }
                None => {}
            }
            let span = self.rest?;
            let (at, length) = match self.space.piece(span, self.access) {
                Ok(piece) => piece,
                Err(error) => {
                    (self.piece, self.rest) = (None, None);
                    return Some(Err(error));
                }
            };
            self.rest = after(span, length);
            let count = usize::try_from(length).unwrap_or(usize::MAX);
            self.piece = Some(GuestMemoryBackend::get_slices(self.space.ram, at, count));
        }
    }
}

impl<M: GuestMemoryBackend> FusedIterator for Slices<'_, M> {}

impl<'a, M: GuestMemoryBackend> GuestMemorySliceIterator<'a, BS<'a, <M::R as GuestMemoryRegion>::B>>
    for Slices<'a, M>
{
}
