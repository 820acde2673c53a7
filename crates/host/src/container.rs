//! Containers: groups that share one address space. Linux
//! `drivers/vfio/container.c` and the attach side of
//! `drivers/vfio/vfio_iommu_type1.c`.

use std::sync::Arc;

use iogate_dma::{DirtyLog, Iova, Translate};

use crate::emulated::{EmulatedSpace, WriteRule};
use crate::iommufd::Failure;
use crate::no_iommu::check_raw_io;
use crate::state::State;
use crate::{
    Caller, Error, ErrorKind, FileId, Group, Host, Ioas, Iommu, PinError, Pinned, Retired, SpaceId,
    Via,
};

/// The page size that mappings are made of at least: the processor's.
pub(crate) const PAGE: u64 = 4096;

/// How type1 treats a range that cuts a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Version {
    /// VFIO_TYPE1_IOMMU: the mapping's first address decides.
    One,
    /// VFIO_TYPE1v2_IOMMU: an error.
    Two,
}

/// A container. It lives until its file is closed and no group is left.
pub(crate) struct Container {
    is_open: bool,
    groups: Vec<u32>,
    limit: u32,
    pub(crate) iommu: Option<Type1>,
    /// VFIO_NOIOMMU_IOMMU is set instead.
    pub(crate) is_without_iommu: bool,
}

/// The IOMMU driver of a container, once it is set.
pub(crate) struct Type1 {
    pub(crate) version: Version,
    pub(crate) space: Arc<Ioas>,
    /// Page sizes that every group's IOMMU has, one bit each.
    pub(crate) page_sizes: u64,
    /// Whether every group's IOMMU enforces cache coherency.
    pub(crate) coherent: bool,
    /// Mappings that may still be made.
    pub(crate) available: u32,
    /// Whether dirty pages are tracked, and what mediated devices wrote.
    pub(crate) written: Arc<DirtyLog>,
    /// Mappings whose addresses are invalid.
    pub(crate) invalid: u32,
    /// Whether a unit shows the mappings: their pages are pinned then, and
    /// all count as written.
    pub(crate) has_units: bool,
    /// Whether a unit has ever limited where mappings may lie.
    pub(crate) is_limited: bool,
    /// Whether a group of mediated devices is in the container.
    pub(crate) has_emulated: bool,
}

impl Type1 {
    /// Bytes of the smallest page.
    pub(crate) fn granule(&self) -> u64 {
        1_u64
            .checked_shl(self.page_sizes.trailing_zeros())
            .unwrap_or(PAGE)
    }

    /// Pins the pages of all mappings, for the first unit: on an error of none,
    /// and what was pinned in vain. `vfio_iommu_replay`.
    fn fill(&self, state: &mut State) -> Result<(), (PinError, Vec<Box<dyn Pinned>>)> {
        let mut next = Some(Iova(0));
        while let Some((span, _)) = next.and_then(|from| self.space.space().next_area(from)) {
            if let Err(error) = self.space.fill(&mut state.private, span.first()) {
                return Err((error, self.clear(state)));
            }
            next = span.last().checked_add(1);
        }
        Ok(())
    }

    /// Lets go of the pages of all mappings, with the last unit.
    /// `vfio_iommu_unmap_unpin_reaccount`.
    fn clear(&self, state: &mut State) -> Vec<Box<dyn Pinned>> {
        let mut pages = Vec::new();
        let mut next = Some(Iova(0));
        while let Some((span, _)) = next.and_then(|from| self.space.space().next_area(from)) {
            pages.extend(self.space.clear(&mut state.private, span.first()));
            next = span.last().checked_add(1);
        }
        pages
    }
}

impl Container {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            is_open: true,
            groups: Vec::new(),
            limit,
            iommu: None,
            is_without_iommu: false,
        }
    }
}

/// Extensions that VFIO_CHECK_EXTENSION knows. include/uapi/linux/vfio.h.
mod extension {
    pub(super) const TYPE1: u64 = 1;
    pub(super) const TYPE1_V2: u64 = 3;
    pub(super) const COHERENT: u64 = 4;
    pub(super) const NO_IOMMU: u64 = 8;
    pub(super) const UNMAP_ALL: u64 = 9;
    pub(super) const UPDATE_VADDR: u64 = 10;
}

impl State {
    pub(crate) fn container(&mut self, file: FileId) -> Result<&mut Container, Error> {
        self.containers.get_mut(&file).ok_or(NO_CONTAINER)
    }

    pub(crate) fn has_iommu(&self, file: FileId) -> bool {
        let container = self.containers.get(&file);
        container.is_some_and(|one| one.iommu.is_some() || one.is_without_iommu)
    }
}

impl Host {
    /// VFIO_CHECK_EXTENSION: 1 or 0, as the drivers say that could be the
    /// container's. `vfio_container_ioctl_check_extension`,
    /// `vfio_iommu_type1_check_extension`, `vfio_noiommu_ioctl`.
    pub fn check_extension(&self, file: FileId, id: u64) -> Result<bool, Error> {
        let mut state = self.lock();
        let container = state.container(file)?;
        let (iommu, groups) = (container.iommu.as_ref(), &container.groups);
        let without = container
            .groups
            .first()
            .map(|group| self.is_without(*group));
        if id == extension::NO_IOMMU {
            return Ok(iommu.is_none() && without != Some(false) && self.offers_no_iommu());
        }
        if without == Some(true) && !groups.is_empty() {
            return Ok(false);
        }
        Ok(match id {
            extension::TYPE1 | extension::TYPE1_V2 | extension::UNMAP_ALL => true,
            extension::COHERENT => iommu.is_some_and(|iommu| iommu.coherent),
            // Mediated devices use addresses at any time.
            extension::UPDATE_VADDR => iommu.is_some_and(|iommu| !iommu.has_emulated),
            _ => false,
        })
    }

    /// VFIO_SET_IOMMU: EINVAL without a group or if it is set already, ENODEV
    /// if no driver that the container may have knows `id`, EPERM for devices
    /// without IOMMU and without CAP_SYS_RAWIO; else what attaching the groups
    /// says. `vfio_ioctl_set_iommu`, `vfio_noiommu_open`.
    pub fn set_iommu(&self, file: FileId, id: u64, caller: &dyn Caller) -> Result<(), Error> {
        let mut state = self.lock();
        let container = state.container(file)?;
        if container.groups.is_empty() {
            return Err(Error::invalid("the container has no group"));
        }
        if container.iommu.is_some() || container.is_without_iommu {
            return Err(Error::invalid("the container's IOMMU is set already"));
        }
        if container.groups.iter().any(|group| self.is_without(*group)) {
            if id != extension::NO_IOMMU {
                return Err(NO_DRIVER);
            }
            check_raw_io(caller)?;
            container.is_without_iommu = true;
            return Ok(());
        }
        let version = match id {
            extension::TYPE1 => Version::One,
            extension::TYPE1_V2 => Version::Two,
            // The driver says that it knows it, and then refuses to be it.
            extension::UNMAP_ALL => return Err(Error::invalid("an extension is no IOMMU type")),
            _ => return Err(NO_DRIVER),
        };
        let (groups, available) = (container.groups.clone(), container.limit);
        let space = state.new_space(&self.config);
        let mut iommu = Type1 {
            version,
            space,
            page_sizes: 0,
            coherent: true,
            available,
            written: Arc::new(DirtyLog::new(PAGE)),
            invalid: 0,
            has_units: false,
            is_limited: false,
            has_emulated: false,
        };
        for &number in &groups {
            if let Err(error) = self.reserve(&state, number, &iommu.space) {
                state.spaces.remove(&iommu.space.id());
                return Err(error);
            }
        }
        self.summarise(&state, &groups, &mut iommu);
        for &number in &groups {
            let group = state.group(number)?;
            self.attach(group, Some(self.view(group, &iommu)));
        }
        state.container(file)?.iommu = Some(iommu);
        Ok(())
    }

    /// Whether the device of the group with this number has no IOMMU.
    fn is_without(&self, number: u32) -> bool {
        let mut devices = self.config.devices.iter();
        devices.any(|device| device.group == number && device.has_no_iommu())
    }

    /// EPERM if a group with an IOMMU and one without would be together, or
    /// for one without, and without CAP_SYS_RAWIO.
    /// `vfio_container_attach_group`.
    pub(crate) fn check_company(
        &self,
        state: &mut State,
        number: u32,
        file: FileId,
        caller: &dyn Caller,
    ) -> Result<(), Error> {
        let is_without = self.is_without(number);
        if is_without {
            check_raw_io(caller)?;
        }
        let mut others = state.container(file)?.groups.iter();
        match others.any(|other| self.is_without(*other) != is_without) {
            true => Err(Error::new(
                ErrorKind::NotPermitted,
                "devices with and without IOMMU cannot be in one container",
            )),
            false => Ok(()),
        }
    }

    /// Adds a group to a container; if its IOMMU is set, EBUSY while addresses
    /// are invalid and EINVAL if mappings lie where the group's devices cannot
    /// reach; EFAULT, ENOMEM if the first unit has their memory pinned and that
    /// cannot be. `vfio_iommu_type1_attach_group`.
    pub(crate) fn join_container(
        &self,
        state: &mut State,
        number: u32,
        file: FileId,
    ) -> Result<(), Failure> {
        let container = state.container(file)?;
        if let Some(mut iommu) = container.iommu.take() {
            let mut groups = container.groups.clone();
            groups.push(number);
            let joined = self.join(state, number, &iommu);
            if joined.is_ok() {
                self.summarise(state, &groups, &mut iommu);
                let group = state.group(number)?;
                self.attach(group, Some(self.view(group, &iommu)));
            }
            state.container(file)?.iommu = Some(iommu);
            joined?;
        }
        state.container(file)?.groups.push(number);
        Ok(())
    }

    /// Has a group's units show the mappings.
    fn join(&self, state: &mut State, number: u32, iommu: &Type1) -> Result<(), Failure> {
        if iommu.invalid > 0 {
            let reason = "addresses of the container's mappings are invalid";
            return Err(Error::new(ErrorKind::Busy, reason).into());
        }
        self.reserve(state, number, &iommu.space)?;
        if iommu.has_units || self.units(state, number).next().is_none() {
            return Ok(());
        }
        iommu.fill(state).map_err(|(error, pages)| {
            iommu.space.release(u64::from(number));
            Failure {
                error: error.into(),
                retired: Box::new(self.retire(pages)),
            }
        })
    }

    /// How a group's devices see the container's mappings.
    fn view(&self, group: &Group, iommu: &Type1) -> (SpaceId, Arc<dyn Translate>) {
        let space = Arc::clone(&iommu.space);
        let id = space.id();
        if !self.is_emulated(group) {
            return (id, space);
        }
        let memory = Arc::clone(&self.config.memory);
        let written = Some(Arc::clone(&iommu.written));
        let rule = WriteRule::ReadAndWrite;
        (
            id,
            Arc::new(EmulatedSpace::new(space, memory, rule, written)),
        )
    }

    /// Removes a group; the last takes the address space with it.
    /// `vfio_container_detach_group`, `vfio_iommu_type1_detach_group`.
    pub(crate) fn leave_container(
        &self,
        state: &mut State,
        number: u32,
        file: FileId,
        retired: &mut Retired,
    ) {
        let Ok(container) = state.container(file) else {
            return;
        };
        container.groups.retain(|member| *member != number);
        let groups = container.groups.clone();
        container.is_without_iommu &= !groups.is_empty();
        if let Some(mut iommu) = container.iommu.take() {
            if let Ok(group) = state.group(number) {
                self.attach(group, None);
            }
            if groups.is_empty() {
                release_all(state, &iommu.space, retired);
            } else {
                iommu.space.release(u64::from(number));
                let had_units = iommu.has_units;
                self.summarise(state, &groups, &mut iommu);
                if had_units && !iommu.has_units {
                    retired.pages.extend(iommu.clear(state));
                }
                if let Ok(container) = state.container(file) {
                    container.iommu = Some(iommu);
                }
            }
            retired.grace = Some(self.config.gate.grace());
        }
        state.forget_container(file);
    }

    pub(crate) fn close_container(&self, state: &mut State, file: FileId) {
        if let Ok(container) = state.container(file) {
            container.is_open = false;
        }
        state.forget_container(file);
    }

    /// The units that a group's devices stand behind; none for mediated ones.
    fn units<'h>(&'h self, state: &'h State, number: u32) -> impl Iterator<Item = &'h Iommu> {
        let members = state.groups.get(&number).map(|group| &group.members);
        let members = members.into_iter().flatten();
        members.filter_map(|&index| Some(&**self.device(index).ok()?.unit()?))
    }

    fn reserve(&self, state: &State, number: u32, space: &Ioas) -> Result<(), Error> {
        for unit in self.units(state, number) {
            space.reserve(u64::from(number), unit).map_err(|_| {
                Error::invalid("a mapping lies where the group's devices cannot reach")
            })?;
        }
        Ok(())
    }

    /// What all groups' units have in common. Page sizes below the processor's
    /// are folded into it. `vfio_update_pgsize_bitmap`.
    fn summarise(&self, state: &State, groups: &[u32], iommu: &mut Type1) {
        iommu.page_sizes = u64::MAX;
        iommu.coherent = true;
        iommu.has_units = false;
        iommu.has_emulated = false;
        for &number in groups {
            for unit in self.units(state, number) {
                iommu.page_sizes &= unit.page_sizes;
                iommu.coherent &= unit.coherent;
                iommu.has_units = true;
            }
            let group = state.groups.get(&number);
            iommu.has_emulated |= group.is_some_and(|group| self.is_emulated(group));
        }
        iommu.is_limited |= iommu.has_units;
        let small = PAGE.saturating_sub(1);
        if iommu.page_sizes & small != 0 {
            iommu.page_sizes = iommu.page_sizes & !small | PAGE;
        }
    }
}

impl State {
    /// A container goes when its file is closed and no group is left.
    fn forget_container(&mut self, file: FileId) {
        let container = self.containers.get(&file);
        if container.is_some_and(|container| !container.is_open && container.groups.is_empty()) {
            self.containers.remove(&file);
        }
    }
}

/// Removes all mappings of a space that no device is attached to any more.
pub(crate) fn release_all(state: &mut State, space: &Arc<Ioas>, retired: &mut Retired) {
    while let Some((span, _)) = space.space().next_area(Iova(0)) {
        let Some(mut area) = space.unmap(&mut state.private, span.first(), (Via::Release, None))
        else {
            break;
        };
        retired.pages.extend(area.payload.take_pinned());
    }
    state.spaces.remove(&space.id());
}

const NO_DRIVER: Error = Error::new(
    ErrorKind::NoDevice,
    "no IOMMU driver of that type for these groups",
);
const NO_CONTAINER: Error = Error::invalid("the container is not open");
