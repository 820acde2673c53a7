//! A unit as the `Iommu` of vm-memory's own `IommuMemory`.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use iogate_dma::{Gate, Iova, Outcome, Request, Source, Span, Stay, Translate};
use vm_memory::iommu::{Error, Iommu, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, Permissions};

use crate::space::access_of;

/// A unit as an `Iommu`, for one function.
///
/// Each translation fills an `Iotlb` of its own, from the unit and its cache.
/// So no memory grows, and a result keeps the unit's invalidations waiting for
/// as long as it lives.
pub struct Compatible {
    unit: Arc<dyn Translate>,
    gate: Arc<Gate>,
    source: Source,
}

impl Compatible {
    /// The view of `source` behind `unit`; the gate is the unit's.
    pub fn new(unit: Arc<dyn Translate>, gate: Arc<Gate>, source: Source) -> Self {
        Self { unit, gate, source }
    }
}

impl fmt::Debug for Compatible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compatible")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// The mappings of one access, and the stay that keeps them true.
pub struct Mappings {
    iotlb: Iotlb,
    _stay: Stay,
}

impl Deref for Mappings {
    type Target = Iotlb;
    fn deref(&self) -> &Iotlb {
        &self.iotlb
    }
}

impl Iommu for Compatible {
    type IotlbGuard<'a> = Mappings;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Mappings>, Error> {
        let cannot = |reason: String| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason,
        };
        let stay = self.gate.join().stay();
        let mut iotlb = Iotlb::new();
        let bytes = u64::try_from(length).unwrap_or(u64::MAX);
        let mut rest = Span::with_length(Iova(iova.0), bytes);
        if bytes != 0 && rest.is_none_or(|span| span.last() == Iova(u64::MAX)) {
            // An Iotlb keeps ranges by their end, which 2^64 cannot be.
            return Err(cannot("it reaches the top of the address space".to_owned()));
        }
        while let Some(span) = rest {
            let guard = stay.guard();
            let request = Request::new(self.source, span, access_of(access));
            let run = match self.unit.translate(&guard, &request) {
                Ok(Outcome::Memory(run)) if run.length() > 0 => run,
                Ok(_) => return Err(cannot("it leads to no memory".to_owned())),
                Err(fault) => return Err(cannot(fault.reason.to_string())),
            };
            let here = usize::try_from(run.length()).unwrap_or(usize::MAX);
            iotlb.set_mapping(
                GuestAddress(span.first().0),
                GuestAddress(run.address()),
                here,
                access,
            )?;
            let next = span.first().checked_add(run.length());
            rest = next.and_then(|next| Span::new(next, span.last()));
        }
        let mappings = Mappings { iotlb, _stay: stay };
        Iotlb::lookup(mappings, iova, length, access)
            .map_err(|_| cannot("a piece of it is not mapped".to_owned()))
    }
}
