//! Resets that a client asks for. Linux `drivers/vfio/pci/vfio_pci_core.c`,
//! and `drivers/pci/pci.c` for what the host saves and restores.

use std::sync::atomic::Ordering;

use iogate_pci::{ResetKind, config};

use crate::slot::{DeviceState, Slot};
use crate::state::State;
use crate::{Device, Error, ErrorKind, FileId, FileKind, Host, Owner, Presence, Retired};

/// A device that a hot reset affects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affected {
    /// Its index.
    pub device: usize,
    /// Its group.
    pub group: u32,
    /// Its PCI segment.
    pub segment: u16,
    /// Its bus.
    pub bus: u8,
    /// Its device and function number, as in a requester id.
    pub devfn: u8,
}

/// What the numbers in the answer to VFIO_DEVICE_GET_PCI_HOT_RESET_INFO are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HotResetIds {
    /// Groups.
    Groups,
    /// Devices in the iommufd that the asking file is bound to: 0 for one that
    /// belongs to it without being bound, u32::MAX for somebody else's.
    Devices {
        /// None is somebody else's.
        owned: bool,
    },
}

/// The answer to VFIO_DEVICE_GET_PCI_HOT_RESET_INFO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HotResetInfo {
    /// What the numbers are.
    pub ids: HotResetIds,
    /// The devices, each with its number.
    pub devices: Vec<(u32, Affected)>,
}

/// VFIO_PCI_DEVID_OWNED and VFIO_PCI_DEVID_NOT_OWNED.
const OWNED: u32 = 0;
const NOT_OWNED: u32 = u32::MAX;

impl Host {
    /// VFIO_DEVICE_RESET. `vfio_pci_ioctl_reset`.
    pub fn reset_device(&self, device: usize) -> Result<Retired, Error> {
        let slot = self.slot(device)?;
        let mut retired = Retired::default();
        let mut state = slot.lock();
        // The function is woken first.
        if let Some(at) = slot
            .endpoint()
            .capability(config::capability::POWER_MANAGEMENT)
        {
            let control = u64::from(at).saturating_add(4);
            let _ = slot.endpoint().write_config(control, &[0]);
        }
        self.reset_function(slot, &mut state, &mut retired);
        drop(state);
        self.look_at_exports(&mut retired);
        Ok(retired)
    }

    /// Resets a function, but keeps what the host saves before and restores
    /// afterwards: the header, Device Control, the interrupts.
    /// `pci_try_reset_function`.
    pub(crate) fn reset_function(
        &self,
        slot: &Slot,
        state: &mut DeviceState,
        retired: &mut Retired,
    ) {
        self.reset_kind(slot, state, ResetKind::FunctionLevel, retired);
    }

    fn reset_kind(
        &self,
        slot: &Slot,
        state: &mut DeviceState,
        kind: ResetKind,
        retired: &mut Retired,
    ) {
        let endpoint = slot.endpoint();
        let command = endpoint.command();
        let mut header = [0; 2];
        endpoint.read_config(config::register::CACHE_LINE.into(), &mut header);
        let express = slot.capabilities.express.map(|at| {
            let at = u64::from(at).saturating_add(8);
            let mut control = [0; 2];
            endpoint.read_config(at, &mut control);
            (at, control)
        });
        slot.reset_migration(state);
        endpoint.reset();
        slot.device.function.reset(kind);
        let _ = endpoint.write_config(config::register::CACHE_LINE.into(), &header);
        if let Some((at, [low, high])) = express {
            // Not bit 15, which would reset again.
            let _ = endpoint.write_config(at, &[low, high & 0x7f]);
        }
        slot.write_command(command.0);
        state.irqs.restore(slot, &self.config.delivery);
        slot.asleep
            .store(state.low_power.is_some(), Ordering::SeqCst);
        if kind == ResetKind::FunctionLevel {
            self.reset_virtual_functions(slot);
        }
        retired.grace = Some(self.config.gate.grace());
    }

    /// The devices that a hot reset of `device` affects: those on its bus.
    /// ENODEV on a root bus, which cannot be reset.
    /// `vfio_pci_ioctl_get_pci_hot_reset_info`.
    pub fn hot_reset_set(&self, device: usize) -> Result<Vec<Affected>, Error> {
        let source = self.device(device)?.source;
        let bus = |device: &Device| (device.source.segment, device.source.requester.bus());
        if source.requester.bus() == 0 {
            return Err(Error::new(
                ErrorKind::NoDevice,
                "a root bus cannot be reset",
            ));
        }
        let here = (source.segment, source.requester.bus());
        let devices = self.config.devices.iter();
        let is_there = |other: &Device| self.presence(other.index) != Presence::Absent;
        let affected = devices.filter(|other| bus(other) == here && is_there(other));
        Ok(affected
            .map(|other| {
                let [bus, devfn] = other.source.requester.0.to_be_bytes();
                Affected {
                    device: other.index,
                    group: other.group,
                    segment: other.source.segment,
                    bus,
                    devfn,
                }
            })
            .collect())
    }

    /// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO as `file` asks it: the errors of
    /// [`hot_reset_set`](Self::hot_reset_set). `vfio_pci_fill_devs`.
    pub fn hot_reset_info(&self, file: FileId, device: usize) -> Result<HotResetInfo, Error> {
        let affected = self.hot_reset_set(device)?.into_iter();
        let mut state = self.lock();
        let Some(iommufd) = state.iommufd_of(file) else {
            return Ok(HotResetInfo {
                ids: HotResetIds::Groups,
                devices: affected.map(|one| (one.group, one)).collect(),
            });
        };
        let mut number = |one: &Affected| match state.id_in(iommufd, one.device) {
            Some(id) => id,
            None if owns(&mut state, iommufd, one) => OWNED,
            None => NOT_OWNED,
        };
        let devices: Vec<_> = affected.map(|one| (number(&one), one)).collect();
        let owned = devices.iter().all(|(id, _)| *id != NOT_OWNED);
        Ok(HotResetInfo {
            ids: HotResetIds::Devices { owned },
            devices,
        })
    }

    /// VFIO_DEVICE_PCI_HOT_RESET as a device file of its own node asks it:
    /// EINVAL if a device that the reset affects is not of its iommufd.
    /// `vfio_pci_dev_set_hot_reset`.
    pub fn hot_reset_own(&self, file: FileId, device: usize) -> Result<Retired, Error> {
        let affected = self.hot_reset_set(device)?;
        let mut state = self.lock();
        let iommufd = state.iommufd_of(file);
        let iommufd = iommufd.ok_or(Error::invalid("the device is not bound"))?;
        let all = affected.iter().all(|one| owns(&mut state, iommufd, one));
        drop(state);
        self.hot_reset(device, |_| all)
    }

    /// VFIO_DEVICE_PCI_HOT_RESET with the caller's groups: EINVAL if one of
    /// `files` is no group or if they leave out a device that the reset
    /// affects. `vfio_pci_ioctl_pci_hot_reset_groups`.
    pub fn hot_reset_groups(&self, device: usize, files: &[FileId]) -> Result<Retired, Error> {
        let mut groups = Vec::with_capacity(files.len());
        for file in files {
            match self.kind(*file) {
                Some(FileKind::Group(number)) => groups.push(number),
                _ => return Err(Error::invalid("a descriptor is no group")),
            }
        }
        self.hot_reset(device, |affected| groups.contains(&affected.group))
    }

    /// Resets the bus of `device` if the caller owns all that is on it.
    /// `vfio_pci_dev_set_hot_reset`.
    fn hot_reset(&self, device: usize, owns: impl Fn(&Affected) -> bool) -> Result<Retired, Error> {
        let affected = self.hot_reset_set(device)?;
        if !affected.iter().all(owns) {
            return Err(Error::invalid("not all affected devices are the caller's"));
        }
        let mut retired = Retired::default();
        for one in &affected {
            let slot = self.slot(one.device)?;
            let mut state = slot.lock();
            self.reset_kind(slot, &mut state, ResetKind::Bus, &mut retired);
        }
        self.look_at_exports(&mut retired);
        Ok(retired)
    }
}

/// Whether a device's group is the iommufd's.
fn owns(state: &mut State, iommufd: FileId, one: &Affected) -> bool {
    let group = state.group(one.group);
    group.is_ok_and(|group| group.owner() == Owner::Iommufd(iommufd))
}
