//! Devices of an iommufd: bound, attached to a page table with the rest of
//! their group, moved, detached. Linux `drivers/iommu/iommufd/device.c`.

use std::sync::Arc;

use super::fault::User;
use super::objects::{BoundDevice, GroupKey, Object};
use super::unit::{Unit, UnitData};
use super::{Context, Failure};
use crate::state::State;
use crate::{Error, ErrorKind, FileId, Host, Owner, Retired, Translation};

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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HwInfo {
    /// What the unit says of itself.
    pub data: UnitData,
    /// `enum iommufd_hw_capabilities`.
    pub capabilities: u64,
    /// Bits of a PASID; 0: none.
    pub max_pasid_log2: u8,
}

/// IOMMU_HW_CAP_DIRTY_TRACKING.
const DIRTY_TRACKING: u64 = 1;
/// IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED.
const ATS_NOT_SUPPORTED: u64 = 8;

impl Host {
    /// IOMMU_GET_HW_INFO. ENOENT. Linux `iommufd_get_hw_info`.
    pub fn iommufd_hw_info(&self, file: FileId, device: u32) -> Result<HwInfo, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let unit = &context.objects.device(device)?.unit;
        let dirty_tracking = match unit.features.tracks_dirty {
            true => DIRTY_TRACKING,
            false => 0,
        };
        Ok(HwInfo {
            data: unit.data.clone(),
            capabilities: ATS_NOT_SUPPORTED | dirty_tracking,
            max_pasid_log2: unit.features.pasid_bits,
        })
    }

    /// Binds a device: EPERM if its group's DMA is somebody else's. Linux
    /// `iommufd_device_bind`.
    pub(crate) fn bind(&self, state: &mut State, file: FileId, index: usize) -> Result<u32, Error> {
        let device = self.device(index)?;
        let iommu = match &device.translation {
            Translation::Unit(iommu) => iommu,
            Translation::Emulated => return self.bind_access(state, file, index),
            // It has no node of its own.
            Translation::NoIommu => return Err(Error::invalid("the device has no IOMMU")),
        };
        let mut unit = Unit::plain(iommu);
        unit.features.pasid_bits = device.function.endpoint().pasid_bits();
        let group = device.group;
        state.group(group)?.claim(Owner::Iommufd(file))?;
        let bound = Object::Device(BoundDevice {
            group: GroupKey::Machine(group),
            unit: Arc::new(unit),
        });
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
        if is_access(state, file, id) {
            return self.drop_access(state, file, id, retired);
        }
        self.detach_pt(state, file, id, retired);
        let Some(context) = state.iommufds.get_mut(&file) else {
            return;
        };
        if let Ok(device) = context.objects.device(id) {
            let group = device.group;
            context.drop_pasids(id);
            context.objects.remove(id);
            if let GroupKey::Machine(number) = group
                && let Ok(group) = state.group(number)
            {
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
        if is_access(state, file, id) {
            return self.attach_access(state, file, id, pt);
        }
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        match context.objects.any(pt)? {
            Object::Hwpt(_) => self.use_hwpt(state, file, id, pt),
            Object::Ioas(_) => self.use_ioas(state, file, id, pt),
            Object::Device(_) | Object::Access(_) | Object::Nodeless(_) | Object::FaultQueue(_) => {
                Err(Error::invalid("a device cannot be attached to this object").into())
            }
        }
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
        let tables = context
            .objects
            .ioas(ioas)?
            .domains
            .iter()
            .map(|domain| domain.hwpt);
        let is_auto = |hwpt: &u32| context.objects.hwpt(*hwpt).is_ok_and(|hwpt| hwpt.is_auto);
        let tables: Vec<u32> = tables.filter(is_auto).collect();
        for hwpt in tables {
            match self.use_hwpt(state, file, id, hwpt) {
                Err(failure) if failure.error.kind == ErrorKind::Invalid => {}
                other => return other,
            }
        }
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let device = context.objects.device(id)?.clone();
        context.check_group(id, &device, None)?;
        let is_attached = |link: &Link| link.devices.contains(&id);
        let is_move = context.links.get(&device.group).is_some_and(is_attached);
        let space = Arc::clone(&context.objects.ioas(ioas)?.space);
        if !is_move {
            context
                .objects
                .ioas(ioas)?
                .reserve_for(id, &device.unit.iommu)?;
        }
        let table = device.unit.table(&[]);
        let made = table
            .map_err(Failure::from)
            .and_then(|table| context.new_hwpt(self, &mut state.private, ioas, table, true));
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
        let device = context.objects.device(id)?.clone();
        context.check_group(id, &device, Some(hwpt))?;
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
        if !table.takes_pasids && context.has_pasids(id) {
            return Err(Error::invalid("the page table was not made for PASIDs").into());
        }
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
            let iommu = &context.objects.device(*newcomer)?.unit.iommu;
            context.objects.ioas(ioas)?.reserve_for(*newcomer, iommu)
        });
        let fits = fits.and_then(|()| table.check_unit(&device.unit));
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
        let view = context.objects.hwpt(hwpt)?.view(&space);
        context.links.insert(device.group, Link { hwpt, devices });
        let mut retired = Retired::default();
        if before != Some(hwpt) {
            context.hand_over(User::Group(device.group), id, Some(hwpt));
            if let GroupKey::Machine(number) = device.group {
                self.attach(state.group(number)?, Some(view));
            }
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
        if context.objects.access(id).is_ok() {
            if let Ok(left) = self.change_ioas(context, id, None) {
                retired.merge(left);
            }
            return;
        }
        let Ok(device) = context.objects.device(id) else {
            return;
        };
        let group = device.group;
        let Some(link) = context.links.get_mut(&group) else {
            return;
        };
        if !link.devices.contains(&id) {
            return;
        }
        link.devices.retain(|attached| *attached != id);
        let (hwpt, is_last) = (link.hwpt, link.devices.is_empty());
        if is_last {
            context.links.remove(&group);
        }
        let ioas = context.objects.hwpt(hwpt).map(|table| table.ioas);
        if let Ok(ioas) = ioas.and_then(|ioas| context.objects.ioas(ioas)) {
            ioas.space.release(id.into());
        }
        if !is_last {
            return;
        }
        context.hand_over(User::Group(group), id, None);
        if let GroupKey::Machine(number) = group
            && let Ok(group) = state.group(number)
        {
            // Borrowed apart: the group's state is not changed by this.
            self.attach(group, None);
        }
        retired.grace = Some(self.config.gate.grace());
        if let Some(context) = state.iommufds.get_mut(&file) {
            context.put_hwpt(self, &mut state.private, hwpt, retired);
        }
    }
}

/// Whether the device with this number is a mediated one.
fn is_access(state: &State, file: FileId, id: u32) -> bool {
    let context = state.iommufds.get(&file);
    context.is_some_and(|context| context.objects.access(id).is_ok())
}

impl Context {
    /// EINVAL if the rest of the device's group is attached to another page
    /// table than `hwpt`.
    fn check_group(&self, id: u32, device: &BoundDevice, hwpt: Option<u32>) -> Result<(), Error> {
        match self.links.get(&device.group) {
            Some(link) if link.devices.contains(&id) || Some(link.hwpt) == hwpt => Ok(()),
            Some(_) => Err(Error::invalid(
                "the rest of the group is attached to another page table",
            )),
            None => Ok(()),
        }
    }

    /// Whether a device uses the page table.
    pub(super) fn uses_hwpt(&self, id: u32) -> bool {
        let mut pasids = self.pasids.values();
        self.links.values().any(|link| link.hwpt == id) || pasids.any(|hwpt| *hwpt == id)
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
        if !self.uses_hwpt(id) && self.objects.hwpt(id).is_ok_and(|hwpt| hwpt.is_auto) {
            self.drop_hwpt(host, private, id, retired);
        }
    }
}
