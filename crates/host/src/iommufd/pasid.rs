//! Page tables that a device uses for single processes: by PASID, beside the
//! one that it uses without. Linux `drivers/iommu/iommufd/device.c` with a
//! PASID, and `iommufd_hwpt_pasid_compat`.

use super::Context;
use super::fault::User;
use super::objects::Object;
use crate::{Error, ErrorKind, FileId, Host, Retired};

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
        let device = context.objects.device(id)?;
        let hwpt = match context.objects.any(pt)? {
            Object::Hwpt(hwpt) => hwpt,
            // What an attach makes of an IOAS is not for PASIDs.
            _ => return Err(Error::invalid("the page table was not made for PASIDs")),
        };
        let sends = u64::from(pasid) >> device.unit.features.pasid_bits == 0
            && device.unit.features.pasid_bits != 0;
        let own = context.links.get(&device.group).map(|link| link.hwpt);
        let own = own.map(|own| context.objects.hwpt(own));
        let is_own_fit = own.is_none_or(|own| own.is_ok_and(|own| own.takes_pasids));
        if !sends || !is_own_fit || !hwpt.takes_pasids {
            return Err(Error::invalid("device or page table do not take PASIDs"));
        }
        match (change, context.pasids.contains_key(&(id, pasid))) {
            (PasidChange::Attach, true) => {
                return Err(Error::new(ErrorKind::Busy, "the PASID has a page table"));
            }
            (PasidChange::Replace, false) => {
                return Err(Error::invalid("the PASID has no page table"));
            }
            _ => {}
        }
        hwpt.check_unit(&device.unit)?;
        if context.pasids.insert((id, pasid), pt) != Some(pt) {
            context.hand_over(User::Pasid(id, pasid), id, Some(pt));
        }
        Ok(Retired {
            grace: Some(self.config.gate.grace()),
            ..Retired::default()
        })
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
    /// Takes all PASIDs of a device their page tables.
    pub(super) fn drop_pasids(&mut self, device: u32) {
        let all = (device, 0)..=(device, u32::MAX);
        let pasids: Vec<_> = self.pasids.range(all).map(|(key, _)| *key).collect();
        for (_, pasid) in pasids {
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
