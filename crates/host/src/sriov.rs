//! Virtual functions: they come and go, and a token guards them. Linux
//! `drivers/pci/iov.c` and `drivers/vfio/pci/vfio_pci_core.c`.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use iogate_pci::ResetKind;

use crate::slot::Slot;
use crate::state::State;
use crate::{Error, ErrorKind, Host, Retired};

/// Whether a function is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Presence {
    /// It is, bound to its VFIO driver: so is every function that is not
    /// virtual.
    Bound,
    /// It is, without a driver.
    Unbound,
    /// Its driver lets go of it, as soon as its user does.
    Leaving,
    /// It is not.
    Absent,
}

/// What a slot knows of SR-IOV without a lock.
#[derive(Default)]
pub(crate) struct Role {
    presence: AtomicU8,
    /// Virtual functions that are enabled.
    enabled: AtomicU16,
}

impl Role {
    pub(crate) fn presence(&self) -> Presence {
        match self.presence.load(Ordering::SeqCst) {
            0 => Presence::Bound,
            1 => Presence::Unbound,
            2 => Presence::Leaving,
            _ => Presence::Absent,
        }
    }

    fn set_presence(&self, presence: Presence) {
        self.presence.store(presence as u8, Ordering::SeqCst);
    }

    /// Whether virtual functions are enabled.
    pub(crate) fn has_enabled(&self) -> bool {
        self.enabled.load(Ordering::SeqCst) > 0
    }
}

/// A physical function's side.
pub(crate) struct SrIov {
    /// Its virtual functions, by index, in the order of their numbers.
    functions: Vec<usize>,
    /// How many of the first ones are enabled.
    enabled: u16,
    /// How many of those are gone already, while all are being disabled.
    gone: u16,
    /// Whether functions are bound to their driver when they come.
    autoprobe: bool,
    /// `struct vfio_pci_vf_token`.
    token: [u8; 16],
}

/// The outcome of a change of the number of virtual functions.
#[derive(Default)]
#[must_use = "what is retired must be waited for"]
pub struct Configured {
    /// The device that is still open and that the change waits for: it goes on
    /// when it is asked for again.
    pub waits_for: Option<usize>,
    /// What has gone.
    pub retired: Retired,
}

impl Host {
    /// Makes `functions` the virtual functions of `physical`, in the order of
    /// their numbers: they are absent until they are enabled. `token` is one
    /// that nobody can know. For whoever builds the host, before anything is
    /// open.
    pub fn add_virtual_functions(
        &self,
        physical: usize,
        functions: Vec<usize>,
        token: [u8; 16],
    ) -> Result<(), Error> {
        self.device(physical)?;
        for &function in &functions {
            let slot = self.slot(function)?;
            slot.role.set_presence(Presence::Absent);
            // Whoever is given twice stays with the first.
            let _ = slot.owner.set(physical);
        }
        let sr_iov = SrIov {
            functions,
            enabled: 0,
            gone: 0,
            autoprobe: true,
            token,
        };
        self.lock().sr_iov.insert(physical, sr_iov);
        Ok(())
    }

    /// Whether the device with this index is there.
    pub fn presence(&self, device: usize) -> Presence {
        self.slot(device)
            .map_or(Presence::Absent, |slot| slot.role.presence())
    }

    /// How many virtual functions are enabled, or are on their way out.
    pub fn enabled_virtual_functions(&self, physical: usize) -> u16 {
        let state = self.lock();
        let sr_iov = state.sr_iov.get(&physical);
        sr_iov.map_or(0, |sr_iov| sr_iov.enabled)
    }

    /// Whether virtual functions are bound to a driver when they come.
    pub fn autoprobes(&self, physical: usize) -> bool {
        let state = self.lock();
        let sr_iov = state.sr_iov.get(&physical);
        sr_iov.is_some_and(|sr_iov| sr_iov.autoprobe)
    }

    /// Sets that, for those that come from now on.
    /// `sriov_drivers_autoprobe_store`.
    pub fn set_autoprobes(&self, physical: usize, autoprobe: bool) {
        if let Some(sr_iov) = self.lock().sr_iov.get_mut(&physical) {
            sr_iov.autoprobe = autoprobe;
        }
    }

    /// Enables `count` virtual functions, or disables all by 0: ERANGE above
    /// those there are, EBUSY for another number than 0 while some are
    /// enabled, ENOENT for a function without SR-IOV. Functions go one after
    /// the other; one that is open is asked for, and the rest waits for it.
    /// `sriov_numvfs_store`, `vfio_pci_core_sriov_configure`.
    pub fn set_virtual_functions(&self, physical: usize, count: u16) -> Result<Configured, Error> {
        let mut state = self.lock();
        let sr_iov = state.sr_iov.get_mut(&physical).ok_or(Error::new(
            ErrorKind::NotFound,
            "the function has no virtual functions",
        ))?;
        if usize::from(count) > sr_iov.functions.len() {
            return Err(Error::new(
                ErrorKind::Range,
                "the function has not so many virtual functions",
            ));
        }
        if count == sr_iov.enabled {
            return Ok(Configured::default());
        }
        if count == 0 {
            return self.disable(&mut state, physical);
        }
        if sr_iov.enabled > 0 {
            return Err(Error::new(
                ErrorKind::Busy,
                "virtual functions are enabled already: disable them before",
            ));
        }
        sr_iov.enabled = count;
        let presence = match sr_iov.autoprobe {
            true => Presence::Bound,
            false => Presence::Unbound,
        };
        let slot = self.slot(physical)?;
        slot.role.enabled.store(count, Ordering::SeqCst);
        slot.power_on();
        slot.endpoint().enable_virtual_functions(count);
        for &function in sr_iov.functions.iter().take(count.into()) {
            let slot = self.slot(function)?;
            slot.endpoint().reset();
            slot.device.function.reset(ResetKind::FunctionLevel);
            slot.role.set_presence(presence);
        }
        Ok(Configured::default())
    }

    /// `sriov_del_vfs`, with `vfio_unregister_group_dev` for each.
    fn disable(&self, state: &mut State, physical: usize) -> Result<Configured, Error> {
        let mut retired = Retired::default();
        while let Some(function) = state.next_to_go(physical) {
            let role = &self.slot(function)?.role;
            let was = role.presence();
            if was == Presence::Bound {
                role.set_presence(Presence::Leaving);
            }
            if was != Presence::Unbound && self.is_open(function) {
                if was == Presence::Bound {
                    self.request(function);
                }
                return Ok(Configured {
                    waits_for: Some(function),
                    retired,
                });
            }
            role.set_presence(Presence::Absent);
            self.revoke_group(state, function, &mut retired)?;
            if let Some(sr_iov) = state.sr_iov.get_mut(&physical) {
                sr_iov.gone = sr_iov.gone.saturating_add(1);
            }
        }
        if let Some(sr_iov) = state.sr_iov.get_mut(&physical) {
            sr_iov.enabled = 0;
            sr_iov.gone = 0;
        }
        let slot = self.slot(physical)?;
        slot.endpoint().enable_virtual_functions(0);
        slot.role.enabled.store(0, Ordering::SeqCst);
        Ok(Configured {
            waits_for: None,
            retired,
        })
    }

    /// Signals the eventfd by which the user of a device is asked to let go of
    /// it. Says whether there is one. `vfio_pci_core_request`.
    pub fn request(&self, device: usize) -> bool {
        let Ok(slot) = self.slot(device) else {
            return false;
        };
        slot.lock().irqs.request()
    }

    /// The group of a function that has gone is there no more if that was its
    /// last one: its open file is good for nothing from now on.
    /// `vfio_device_remove_group`.
    fn revoke_group(
        &self,
        state: &mut State,
        function: usize,
        retired: &mut Retired,
    ) -> Result<(), Error> {
        let number = self.device(function)?.group;
        if self.group_exists(state, number) {
            return Ok(());
        }
        let opener = state.group(number)?.opener;
        if let Some(file) = opener {
            self.close_group(state, number, retired);
            self.revoke_file(file);
        }
        Ok(())
    }

    /// Whether a group has a function that a VFIO driver holds.
    pub(crate) fn group_exists(&self, state: &mut State, number: u32) -> bool {
        let group = state.group(number);
        group.is_ok_and(|group| {
            let mut members = group.members.iter();
            members.any(|&member| {
                let presence = self.presence(member);
                matches!(presence, Presence::Bound | Presence::Leaving)
            })
        })
    }

    /// VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: ENOTTY unless the device has virtual
    /// functions. `vfio_pci_core_feature_token`.
    pub fn set_vf_token(&self, device: usize, token: [u8; 16]) -> Result<(), Error> {
        let mut state = self.lock();
        let sr_iov = state.sr_iov.get_mut(&device).ok_or(NO_TOKEN)?;
        sr_iov.token = token;
        Ok(())
    }

    /// Whether the device has a token to be set: ENOTTY.
    pub fn check_vf_token(&self, device: usize) -> Result<(), Error> {
        let state = self.lock();
        state.sr_iov.get(&device).map(drop).ok_or(NO_TOKEN)
    }

    /// Checks the token given with an open of a device, or sets it: a virtual
    /// function wants that of its physical one, EACCES; so does a physical
    /// function while a virtual one is in use, and takes any otherwise; every
    /// other function takes none, EINVAL. `vfio_pci_core_match_token_uuid`.
    pub(crate) fn match_token(
        &self,
        state: &mut State,
        device: usize,
        token: Option<[u8; 16]>,
    ) -> Result<(), Error> {
        let owner = state
            .sr_iov
            .values()
            .find(|sr_iov| sr_iov.functions.contains(&device));
        if let Some(owner) = owner {
            return check(owner.token, token);
        }
        let Some(sr_iov) = state.sr_iov.get_mut(&device) else {
            return match token {
                Some(_) => Err(Error::invalid("the device is no SR-IOV function")),
                None => Ok(()),
            };
        };
        let is_used = |function: &usize| self.slot(*function).is_ok_and(|s| s.lock().opens > 0);
        if sr_iov.functions.iter().any(is_used) {
            return check(sr_iov.token, token);
        }
        sr_iov.token = token.unwrap_or(sr_iov.token);
        Ok(())
    }

    /// A physical function was reset: that has reset the virtual ones too.
    /// PCI Express Base 6.0 section 9.2.2.2; what the kernel restores of it
    /// brings them back as at power-on.
    pub(crate) fn reset_virtual_functions(&self, slot: &Slot) {
        if !slot.role.has_enabled() {
            return;
        }
        for other in self.slots.iter() {
            if other.owner.get() == Some(&slot.device.index)
                && other.role.presence() != Presence::Absent
            {
                let mut state = other.lock();
                other.reset_migration(&mut state);
                other.endpoint().reset();
                other.device.function.reset(ResetKind::FunctionLevel);
                other.settle_power(&state);
            }
        }
    }
}

impl State {
    /// The next virtual function to go, if not all have gone.
    fn next_to_go(&self, physical: usize) -> Option<usize> {
        let sr_iov = self.sr_iov.get(&physical)?;
        let next = (sr_iov.gone < sr_iov.enabled).then_some(sr_iov.gone)?;
        sr_iov.functions.get(usize::from(next)).copied()
    }
}

fn check(expected: [u8; 16], token: Option<[u8; 16]>) -> Result<(), Error> {
    let reason = match token {
        Some(token) if token == expected => return Ok(()),
        Some(_) => "this is not the VF token of the device",
        None => "the device wants a VF token",
    };
    Err(Error::new(ErrorKind::Denied, reason))
}

const NO_TOKEN: Error = Error::new(ErrorKind::NoSuchCall, "the device has no virtual functions");
