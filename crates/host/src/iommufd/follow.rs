//! A guest's domain in an IOAS. Its mappings lead to guest-physical addresses;
//! another IOAS says which memory that is, and they become copies of its
//! mappings, as a virtual machine monitor makes them by IOMMU_IOAS_COPY.

use iogate_dma::{Change, Iova, Mapping, Rights, Span};

use super::map::{Part, Place};
use super::{Context, Failure};
use crate::state::State;
use crate::{Error, FileId, Host, Retired, Via};

/// Who makes such changes: nobody's call.
const COPIED: (Via, Option<crate::Actor>) = (Via::IoasCopy, None);
const REMOVED: (Via, Option<crate::Actor>) = (Via::IoasUnmap, None);

/// An IOAS that shows a guest's domain, and the one with the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestSpace {
    /// The iommufd of both.
    pub file: FileId,
    /// The IOAS that maps guest-physical addresses to memory.
    pub ram: u32,
    /// The IOAS that is changed.
    pub ioas: u32,
}

impl Host {
    /// Does one change of a guest's domain, whole or not at all. Where the
    /// guest has no memory nothing is mapped; what its memory does not allow
    /// the mapping does not allow.
    ///
    /// # Errors
    /// ENOENT without one of the spaces; else as
    /// [`ioas_copy`](Self::ioas_copy) to map, and as
    /// [`compat_unmap`](Self::compat_unmap) of the older type, which cuts, to
    /// unmap.
    pub fn follow_guest(&self, space: GuestSpace, change: &Change) -> Result<Retired, Failure> {
        let mut state = self.lock();
        match change {
            Change::Map(mapping) => self.map_guest(&mut state, space, mapping),
            Change::Unmap(span) => self.unmap_guest(&mut state, space, *span),
        }
    }

    fn map_guest(
        &self,
        state: &mut State,
        GuestSpace { file, ram, ioas }: GuestSpace,
        mapping: &Mapping,
    ) -> Result<Retired, Failure> {
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let last = mapping.output.checked_add(mapping.span.last_offset());
        let source = last.and_then(|last| Span::new(Iova(mapping.output), Iova(last)));
        let source = source.ok_or(Error::invalid("the memory passes the top of its space"))?;
        let mut pieces = Vec::new();
        let memory = context.objects.ioas(ram)?;
        let mut left = Some(source);
        while let Some(rest) = left
            && let Some((area, rights)) = memory.space.space().area_in(rest)
            && let Some(both) = area.intersection(&rest)
        {
            let rights = Rights::from_bits(rights.bits() & mapping.rights.bits());
            let skipped = both.first().0.wrapping_sub(source.first().0);
            let to = Iova(mapping.span.first().0.wrapping_add(skipped));
            if rights != Rights::NONE {
                let parts = memory.parts(both)?.into_iter();
                pieces.extend(parts.map(|part| (to, Part { rights, ..part })));
            }
            let next = both.last().checked_add(1);
            left = next.and_then(|next| Span::new(next, source.last()));
        }
        let target = context.objects.ioas_mut(ioas)?;
        for (index, (to, part)) in pieces.iter().enumerate() {
            let place = Place::Fixed(*to);
            let parts = std::slice::from_ref(part);
            let private = &mut state.private;
            let mapped = target.map_parts(self, private, parts, place, part.rights, COPIED);
            if let Err(mut failure) = mapped {
                for (to, part) in pieces.iter().take(index) {
                    if let Some(span) = Span::with_length(*to, part.length) {
                        let retired = &mut failure.retired;
                        let _ = target.unmap(self, private, span, REMOVED, retired);
                    }
                }
                return Err(failure);
            }
        }
        Ok(Retired::default())
    }

    fn unmap_guest(
        &self,
        state: &mut State,
        GuestSpace { file, ioas, .. }: GuestSpace,
        span: Span,
    ) -> Result<Retired, Failure> {
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let target = context.objects.ioas_mut(ioas)?;
        let mut retired = Retired::default();
        target.cut(&mut state.private, span, REMOVED)?;
        if target.space.space().area_in(span).is_some() {
            let private = &mut state.private;
            let (_, outcome) = target.unmap(self, private, span, REMOVED, &mut retired);
            if let Err(error) = outcome {
                let retired = Box::new(retired);
                return Err(Failure { error, retired });
            }
        }
        Ok(retired)
    }
}
