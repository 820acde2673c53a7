//! Devices of an iommufd: bound, attached to a page table with the rest of
//! their group, moved, detached. Linux `drivers/iommu/iommufd/device.c`.

use std::sync::Arc;

use super::objects::{BoundDevice, Object};
use super::{Context, Failure};
use crate::state::State;
use crate::{Error, ErrorKind, FileId, Host, Owner, Retired};

/// A group that has a page table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    /// The page table, one for the whole group.
    pub(crate) hwpt: u32,
    /// Its attached devices, by number.
    pub(crate) devices: Vec<u32>,
}

/// A device was attached.
#[derive(Default)]
#[must_use = "what is retired must be waited for"]
pub struct Attached {
    /// The page table that it uses now.
    pub hwpt: u32,
    /// What it used before.
    pub retired: Retired,
}

/// What IOMMU_GET_HW_INFO says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HwInfo {
    /// `enum iommufd_hw_capabilities`.
    pub capabilities: u64,
    /// Bits of a PASID; 0: none.
    pub max_pasid_log2: u8,
}

/// IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED.
const ATS_NOT_SUPPORTED: u64 = 8;

impl Host {
    /// IOMMU_GET_HW_INFO. ENOENT. Linux `iommufd_get_hw_info`.
    pub fn iommufd_hw_info(&self, file: FileId, device: u32) -> Result<HwInfo, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        context.objects.device(device)?;
        Ok(HwInfo {
            capabilities: ATS_NOT_SUPPORTED,
            max_pasid_log2: 0,
        })
    }

    /// Binds a device: EPERM if its group's DMA is somebody else's. Linux
    /// `iommufd_device_bind`.
    pub(crate) fn bind(&self, state: &mut State, file: FileId, index: usize) -> Result<u32, Error> {
        let group = self.device(index)?.group;
        state.group(group)?.claim(Owner::Iommufd(file))?;
        let bound = Object::Device(BoundDevice { index, group });
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE);
        let entered = context.and_then(|context| context.objects.insert(bound));
        if entered.is_err() {
            state.group(group)?.release();
        }
        entered
    }

    /// Detaches a device and takes it out of the iommufd, which goes too if
    /// its file is closed and this was its last device. Linux
    /// `iommufd_device_destroy`.
    pub(crate) fn unbind(&self, state: &mut State, file: FileId, id: u32, retired: &mut Retired) {
        self.detach_pt(state, file, id, retired);
        let Some(context) = state.iommufds.get_mut(&file) else {
            return;
        };
        if let Ok(device) = context.objects.device(id) {
            context.objects.remove(id);
            if let Ok(group) = state.group(device.group) {
                group.release();
            }
        }
        self.forget_iommufd(state, file, retired);
    }

    /// Attaches a device to a page table, or to one that shows an IOAS; moves
    /// it if it is attached already. ENOENT without the object; EINVAL if it
    /// is none, if its page table is not for this device's unit, or if the
    /// rest of the group is attached elsewhere; EADDRINUSE, EFAULT, ENOMEM if
    /// the IOAS's mappings do not suit it. On an error nothing has changed.
    /// Linux `iommufd_device_change_pt`.
    pub(crate) fn attach_pt(
        &self,
        state: &mut State,
        file: FileId,
        id: u32,
        pt: u32,
    ) -> Result<Attached, Failure> {
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        match context.objects.any(pt)? {
            Object::Hwpt(_) => self.use_hwpt(state, file, id, pt),
            Object::Ioas(_) => self.use_ioas(state, file, id, pt),
            Object::Device(_) => {
                Err(Error::invalid("a device cannot be attached to this object").into())
            }
        }
    }

    /// Whether the iommufd has an object with this number: ENOENT.
    pub(crate) fn check_object(&self, state: &State, file: FileId, id: u32) -> Result<(), Error> {
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        context.objects.any(id).map(drop)
    }

    /// The first page table that attaches made of the IOAS and that takes the
    /// device, or a new one. Linux `iommufd_device_auto_get_domain`.
    fn use_ioas(
        &self,
        state: &mut State,
        file: FileId,
        id: u32,
        ioas: u32,
    ) -> Result<Attached, Failure> {
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let tables = context.objects.ioas(ioas)?.domains.iter().copied();
        let is_auto = |hwpt: &u32| context.objects.hwpt(*hwpt).is_ok_and(|hwpt| hwpt.is_auto);
        let tables: Vec<u32> = tables.filter(is_auto).collect();
        for hwpt in tables {
            match self.use_hwpt(state, file, id, hwpt) {
                Err(failure) if failure.error.kind == ErrorKind::Invalid => {}
                other => return other,
            }
        }
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let device = context.objects.device(id)?;
        context.check_group(id, device, None)?;
        let iommu = Arc::clone(&self.device(device.index)?.iommu);
        let is_attached = |link: &Link| link.devices.contains(&id);
        let is_move = context.links.get(&device.group).is_some_and(is_attached);
        let space = Arc::clone(&context.objects.ioas(ioas)?.space);
        if !is_move {
            context.objects.ioas(ioas)?.reserve_for(id, &iommu)?;
        }
        let made = context.new_hwpt(self, &mut state.private, ioas, iommu, true);
        let hwpt = made.inspect_err(|_| {
            if !is_move {
                space.release(id.into());
            }
        })?;
        self.use_hwpt(state, file, id, hwpt).map_err(|mut failure| {
            if let Some(context) = state.iommufds.get_mut(&file) {
                context.drop_hwpt(self, &mut state.private, hwpt, &mut failure.retired);
            }
            failure
        })
    }

    /// Linux `iommufd_hw_pagetable_attach`, `iommufd_device_do_replace`.
    fn use_hwpt(
        &self,
        state: &mut State,
        file: FileId,
        id: u32,
        hwpt: u32,
    ) -> Result<Attached, Failure> {
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let device = context.objects.device(id)?;
        context.check_group(id, device, Some(hwpt))?;
        let link = context.links.get(&device.group).cloned();
        let before = link.as_ref().map(|link| link.hwpt);
        let attached = link.map_or(Vec::new(), |link| link.devices);
        let is_replace = attached.contains(&id);
        if is_replace && before == Some(hwpt) {
            return Ok(Attached {
                hwpt,
                retired: Retired::default(),
            });
        }
        let table = context.objects.hwpt(hwpt)?;
        let ioas = table.ioas;
        let of = |hwpt| context.objects.hwpt(hwpt).map(|table| table.ioas);
        let old_ioas = before.and_then(|hwpt| of(hwpt).ok());
        // Devices whose reserved ranges are new to the IOAS.
        let newcomers: Vec<u32> = match is_replace {
            true if old_ioas == Some(ioas) => Vec::new(),
            true => attached.clone(),
            false => vec![id],
        };
        let space = Arc::clone(&context.objects.ioas(ioas)?.space);
        let fits = newcomers.iter().try_for_each(|newcomer| {
            let index = context.objects.device(*newcomer)?.index;
            let iommu = &self.device(index)?.iommu;
            context.objects.ioas(ioas)?.reserve_for(*newcomer, iommu)
        });
        let fits = fits.and_then(
            |()| match table.accepts(&self.device(device.index)?.iommu) {
                true => Ok(()),
                false => Err(Error::invalid("the page table is for another IOMMU")),
            },
        );
        if let Err(error) = fits {
            for newcomer in newcomers {
                space.release(newcomer.into());
            }
            return Err(error.into());
        }
        let mut devices = attached;
        if !is_replace {
            devices.push(id);
        } else if let Some(old) = old_ioas.filter(|old| *old != ioas) {
            for moved in &devices {
                context.objects.ioas(old)?.space.release((*moved).into());
            }
        }
        context.links.insert(device.group, Link { hwpt, devices });
        let mut retired = Retired::default();
        if before != Some(hwpt) {
            self.attach(state.group(device.group)?, Some(&space));
            retired.grace = Some(self.config.gate.grace());
        }
        if let Some(before) = before.filter(|before| *before != hwpt)
            && let Some(context) = state.iommufds.get_mut(&file)
        {
            context.put_hwpt(self, &mut state.private, before, &mut retired);
        }
        Ok(Attached { hwpt, retired })
    }

    /// Detaches a device; the last of its group lets go of the page table. One
    /// that is not attached is left alone. Linux
    /// `iommufd_hw_pagetable_detach`.
    pub(crate) fn detach_pt(
        &self,
        state: &mut State,
        file: FileId,
        id: u32,
        retired: &mut Retired,
    ) {
        let Some(context) = state.iommufds.get_mut(&file) else {
            return;
        };
        let Ok(device) = context.objects.device(id) else {
            return;
        };
        let Some(link) = context.links.get_mut(&device.group) else {
            return;
        };
        if !link.devices.contains(&id) {
            return;
        }
        link.devices.retain(|attached| *attached != id);
        let (hwpt, is_last) = (link.hwpt, link.devices.is_empty());
        if is_last {
            context.links.remove(&device.group);
        }
        let ioas = context.objects.hwpt(hwpt).map(|table| table.ioas);
        if let Ok(ioas) = ioas.and_then(|ioas| context.objects.ioas(ioas)) {
            ioas.space.release(id.into());
        }
        if !is_last {
            return;
        }
        if let Ok(group) = state.group(device.group) {
            // Borrowed apart: the group's state is not changed by this.
            self.attach(group, None);
        }
        retired.grace = Some(self.config.gate.grace());
        if let Some(context) = state.iommufds.get_mut(&file) {
            context.put_hwpt(self, &mut state.private, hwpt, retired);
        }
    }
}

impl Context {
    /// EINVAL if the rest of the device's group is attached to another page
    /// table than `hwpt`.
    fn check_group(&self, id: u32, device: BoundDevice, hwpt: Option<u32>) -> Result<(), Error> {
        match self.links.get(&device.group) {
            Some(link) if link.devices.contains(&id) || Some(link.hwpt) == hwpt => Ok(()),
            Some(_) => Err(Error::invalid(
                "the rest of the group is attached to another page table",
            )),
            None => Ok(()),
        }
    }

    /// One user of a page table less: one that an attach made goes with the
    /// last. Linux `iommufd_hw_pagetable_put`.
    fn put_hwpt(
        &mut self,
        host: &Host,
        private: &mut crate::private::PrivateMemory,
        id: u32,
        retired: &mut Retired,
    ) {
        let is_used = self.links.values().any(|link| link.hwpt == id);
        if !is_used && self.objects.hwpt(id).is_ok_and(|hwpt| hwpt.is_auto) {
            self.drop_hwpt(host, private, id, retired);
        }
    }
}
