//! Page tables that a device uses for single processes: by PASID, beside the
//! one that it uses without. Linux `drivers/iommu/iommufd/device.c` with a
//! PASID, and `iommufd_hwpt_pasid_compat`.

use std::sync::Arc;

use iogate_dma::{Pasid, Source, Translate};

use super::Context;
use super::fault::User;
use super::objects::Object;
use crate::state::State;
use crate::{Device, Error, ErrorKind, FileId, Host, Retired, SpaceId};

/// Whether a PASID gets its first page table or another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidChange {
    /// EBUSY if it has one.
    Attach,
    /// EINVAL if it has none.
    Replace,
}

impl Host {
    /// Gives a PASID of a device without a node a page table. ENOENT without
    /// the objects; EINVAL unless the device sends such PASIDs and this page
    /// table and the device's own were made for them, and the page table suits
    /// the device. On an error nothing has changed.
    pub fn pasid_attach(
        &self,
        file: FileId,
        object: u32,
        pasid: u32,
        pt: u32,
        change: PasidChange,
    ) -> Result<Retired, Error> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let id = context.objects.nodeless(object)?;
        context.attach_pasid(id, pasid, pt, change)?;
        Ok(self.passing())
    }

    /// Gives a PASID of a device of the machine its first page table, or
    /// another: as [`pasid_attach`](Self::pasid_attach) says, but ENOSPC from
    /// 2^31 up. Linux `vfio_iommufd_physical_pasid_attach_ioas`.
    pub(crate) fn attach_device_pasid(
        &self,
        state: &mut State,
        file: FileId,
        (id, device): (u32, &Device),
        (raw, pt): (u32, u32),
    ) -> Result<Retired, Error> {
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let change = match context.pasids.contains_key(&(id, raw)) {
            true => PasidChange::Replace,
            false if i32::try_from(raw).is_err() => {
                return Err(Error::new(
                    ErrorKind::NoSpace,
                    "the PASID is no such number",
                ));
            }
            false => PasidChange::Attach,
        };
        let view = context.attach_pasid(id, raw, pt, change)?;
        self.set_pasid(device, raw, Some(view));
        Ok(self.passing())
    }

    /// Takes a PASID of a device of the machine its page table; without one
    /// nothing happens. Linux `vfio_iommufd_physical_pasid_detach_ioas`.
    pub(crate) fn detach_device_pasid(
        &self,
        state: &mut State,
        file: FileId,
        (id, device): (u32, &Device),
        pasid: u32,
    ) -> Result<Retired, Error> {
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        if context.pasids.remove(&(id, pasid)).is_none() {
            return Ok(Retired::default());
        }
        context.hand_over(User::Pasid(id, pasid), id, None);
        self.set_pasid(device, pasid, None);
        Ok(self.passing())
    }

    /// Takes all PASIDs of a device of the machine their page tables. Linux
    /// `vfio_iommufd_physical_unbind`.
    pub(crate) fn detach_device_pasids(
        &self,
        state: &mut State,
        file: FileId,
        device: (u32, &Device),
        retired: &mut Retired,
    ) {
        let context = state.iommufds.get(&file);
        let pasids = context.map_or_else(Vec::new, |context| context.pasids_of(device.0));
        for pasid in pasids {
            if let Ok(left) = self.detach_device_pasid(state, file, device, pasid) {
                retired.merge(left);
            }
        }
    }

    /// Has what a device sends with a PASID enter a space, or none.
    fn set_pasid(&self, device: &Device, raw: u32, view: Option<(SpaceId, Arc<dyn Translate>)>) {
        let Some(pasid) = Pasid::new(raw) else {
            return;
        };
        let (space, translate) = view.unzip();
        device.attachment.set_pasid(pasid, translate);
        let source = Source {
            pasid: Some(pasid),
            ..device.source
        };
        self.config.observer.attached(source, space);
    }

    /// What has to pass before the old page table is out of use.
    fn passing(&self) -> Retired {
        Retired {
            grace: Some(self.config.gate.grace()),
            ..Retired::default()
        }
    }

    /// Takes a PASID's page table away; without one nothing happens. ENOENT
    /// without the object.
    pub fn pasid_detach(&self, file: FileId, object: u32, pasid: u32) -> Result<Retired, Error> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let id = context.objects.nodeless(object)?;
        let had = context.pasids.remove(&(id, pasid)).is_some();
        context.hand_over(User::Pasid(id, pasid), id, None);
        Ok(Retired {
            grace: had.then(|| self.config.gate.grace()),
            ..Retired::default()
        })
    }

    /// The page table of a PASID. ENOENT without the object.
    pub fn pasid_hwpt(&self, file: FileId, object: u32, pasid: u32) -> Result<Option<u32>, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let id = context.objects.nodeless(object)?;
        Ok(context.pasids.get(&(id, pasid)).copied())
    }
}

impl Context {
    /// Gives a PASID of a device a page table, and says what the device sees
    /// by it.
    fn attach_pasid(
        &mut self,
        id: u32,
        pasid: u32,
        pt: u32,
        change: PasidChange,
    ) -> Result<(SpaceId, Arc<dyn Translate>), Error> {
        let device = self.objects.device(id)?;
        let hwpt = match self.objects.any(pt)? {
            Object::Hwpt(hwpt) => hwpt,
            // What an attach makes of an IOAS is not for PASIDs.
            _ => return Err(Error::invalid("the page table was not made for PASIDs")),
        };
        // PASID 0 stands for requests without one: `IOMMU_NO_PASID`.
        let sends = pasid != 0
            && u64::from(pasid) >> device.unit.features.pasid_bits == 0
            && device.unit.features.pasid_bits != 0;
        let own = self.links.get(&device.group).map(|link| link.hwpt);
        let own = own.map(|own| self.objects.hwpt(own));
        let is_own_fit = own.is_none_or(|own| own.is_ok_and(|own| own.takes_pasids));
        if !sends || !is_own_fit || !hwpt.takes_pasids {
            return Err(Error::invalid("device or page table do not take PASIDs"));
        }
        match (change, self.pasids.contains_key(&(id, pasid))) {
            (PasidChange::Attach, true) => {
                return Err(Error::new(ErrorKind::Busy, "the PASID has a page table"));
            }
            (PasidChange::Replace, false) => {
                return Err(Error::invalid("the PASID has no page table"));
            }
            _ => {}
        }
        hwpt.check_unit(&device.unit)?;
        let view = hwpt.view(&self.objects.ioas(hwpt.ioas)?.space);
        if self.pasids.insert((id, pasid), pt) != Some(pt) {
            self.hand_over(User::Pasid(id, pasid), id, Some(pt));
        }
        Ok(view)
    }

    /// The PASIDs of a device that have page tables.
    fn pasids_of(&self, device: u32) -> Vec<u32> {
        let all = (device, 0)..=(device, u32::MAX);
        let pasids = self.pasids.range(all);
        pasids.map(|((_, pasid), _)| *pasid).collect()
    }

    /// Takes all PASIDs of a device their page tables.
    pub(super) fn drop_pasids(&mut self, device: u32) {
        for pasid in self.pasids_of(device) {
            self.pasids.remove(&(device, pasid));
            self.hand_over(User::Pasid(device, pasid), device, None);
        }
    }

    /// Whether one of the device's PASIDs has a page table.
    pub(super) fn has_pasids(&self, device: u32) -> bool {
        let all = (device, 0)..=(device, u32::MAX);
        self.pasids.range(all).next().is_some()
    }
}
