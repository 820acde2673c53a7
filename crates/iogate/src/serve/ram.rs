//! The guest's memory as the clients tell of it: each socket of a virtual
//! machine tells of all of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use iogate_dma::{
    Fault, Gpa, InFlight, Iova, MemoryError, Outcome, Request, Rights, Run, Span, Translate,
};
use iogate_memory::{Backing, GuestMemory, GuestRange, MapError, Remote};
use iogate_vfio_user::{DmaMap, Errno, Peer};

/// What one client has told of.
#[derive(Default)]
pub(crate) struct ClientRam(BTreeMap<Gpa, GuestRange>);

impl ClientRam {
    /// Makes a mapping. A file that cannot be mapped is left to the client,
    /// which is asked for each access then.
    pub(crate) fn range(
        memory: &Arc<GuestMemory>,
        client: &Arc<Peer>,
        map: DmaMap,
    ) -> Result<GuestRange, Errno> {
        let span = guest(map.span)?;
        let asked = || Backing::Remote(Arc::new(Asked(Arc::clone(client))));
        let range = match map.file {
            Some((file, offset)) => {
                let file = Backing::File {
                    file: Arc::new(file),
                    offset,
                };
                match memory.map(span, map.rights, file) {
                    Err(MapError::File { .. } | MapError::Refused { .. }) => {
                        memory.map(span, map.rights, asked())
                    }
                    mapped => mapped,
                }
            }
            None => memory.map(span, map.rights, asked()),
        };
        range.map_err(|error| match error {
            MapError::Ranges(_) => Errno::NOSPC,
            _ => Errno::INVAL,
        })
    }

    /// Keeps a mapping until it is taken back.
    pub(crate) fn put(&mut self, range: GuestRange) {
        self.0.insert(range.span().first(), range);
    }

    /// Gives a mapping back, to be let go of where no lock is held.
    #[must_use]
    pub(crate) fn take(&mut self, span: Span<Iova>) -> Option<GuestRange> {
        self.0.remove(&Gpa(span.first().0))
    }

    /// Gives all of them back.
    #[must_use]
    pub(crate) fn take_all(&mut self) -> Vec<GuestRange> {
        std::mem::take(&mut self.0).into_values().collect()
    }
}

/// A client's addresses are the guest's.
fn guest(span: Span<Iova>) -> Result<Span<Gpa>, Errno> {
    Span::new(Gpa(span.first().0), Gpa(span.last().0)).ok_or(Errno::INVAL)
}

/// Memory that the client is asked for.
struct Asked(Arc<Peer>);

impl Remote for Asked {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let read = self.0.dma_read(Iova(at.0), into);
        read.map_err(|_| MemoryError::Gone { address: at.0 })
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let written = self.0.dma_write(Iova(at.0), from);
        written.map_err(|_| MemoryError::Gone { address: at.0 })
    }
}

/// The address space of a device that no unit translates for.
pub(crate) struct Untranslated(pub(crate) Arc<GuestMemory>);

impl Translate for Untranslated {
    fn translate<'g>(
        &'g self,
        _: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        let first = request.span.first().0;
        let length = request.span.last_offset().saturating_add(1);
        let run = Run::new(&*self.0, first, length, Rights::READ_WRITE);
        Ok(Outcome::Memory(run))
    }
}
