//! Mediated devices of the machine: each is an access to an IOAS, with no page
//! table and no unit between. Linux `drivers/vfio/iommufd.c`,
//! `vfio_iommufd_emulated_bind` and what follows it.

use std::sync::Arc;

use super::access::Access;
use super::objects::Object;
use super::{Attached, Context, Failure, PAGE_SIZE};
use crate::emulated::{EmulatedSpace, WriteRule};
use crate::state::State;
use crate::{Device, Error, FileId, Host, Retired};

impl Host {
    /// Binds a mediated device: nobody owns its DMA.
    pub(super) fn bind_access(
        &self,
        state: &mut State,
        file: FileId,
        index: usize,
    ) -> Result<u32, Error> {
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        context.objects.insert(Object::Access(Access {
            ioas: None,
            // It may ask for pages to be pinned.
            alignment: PAGE_SIZE,
            device: Some(index),
        }))
    }

    /// Has a mediated device use an IOAS, or another than before. ENOENT
    /// without it, also for a page table; EADDRINUSE if a mapping is not of
    /// whole pages. Linux `vfio_iommufd_emulated_attach_ioas`,
    /// `iommufd_access_change_ioas_id`.
    pub(super) fn attach_access(
        &self,
        state: &mut State,
        file: FileId,
        id: u32,
        ioas: u32,
    ) -> Result<Attached, Failure> {
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let retired = self.change_ioas(context, id, Some(ioas))?;
        Ok(Attached {
            hwpt: ioas,
            retired,
        })
    }

    /// Has an access use another IOAS, or none: what it pinned is unpinned.
    pub(super) fn change_ioas(
        &self,
        context: &mut Context,
        id: u32,
        ioas: Option<u32>,
    ) -> Result<Retired, Error> {
        let access = context.objects.access(id)?;
        let mut space = None;
        if let Some(ioas) = ioas {
            space = Some(Arc::clone(&context.objects.ioas(ioas)?.space));
            if access.ioas == Some(ioas) {
                return Ok(Retired::default());
            }
            let ioas = context.objects.ioas_mut(ioas)?;
            ioas.add_user(id, access.alignment)?;
        }
        let pages = match access.ioas {
            Some(old) => context.objects.ioas_mut(old)?.remove_user(id),
            None => Vec::new(),
        };
        context.objects.access_mut(id)?.ioas = ioas;
        let mut retired = self.retire(pages);
        if let Some(device) = self.device_of(access) {
            let view = space.map(|space| {
                let memory = Arc::clone(&self.config.memory);
                let id = space.id();
                let view = EmulatedSpace::new(space, memory, WriteRule::Write, None);
                (id, Arc::new(view) as _)
            });
            self.attach_device(device, view);
            retired.grace = Some(self.config.gate.grace());
        }
        Ok(retired)
    }

    fn device_of(&self, access: Access) -> Option<&Arc<Device>> {
        self.device(access.device?).ok()
    }
}
