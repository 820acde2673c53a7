//! What a program does with `/dev/vfio/N`. Linux `drivers/vfio/group.c`.

use crate::iommufd::Failure;
use crate::no_iommu::check_raw_io;
use crate::state::{File, State};
use crate::{
    Caller, Error, ErrorKind, FileId, FileKind, Group, Host, Owner, Path, Presence, Retired,
};

/// What VFIO_GROUP_GET_STATUS says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    /// Its devices can be used.
    pub viable: bool,
    /// It was set to a container.
    pub has_container: bool,
}

impl Group {
    /// Whether its node can be opened: EBUSY while it is open or a device of
    /// it is bound by its own node. `vfio_group_fops_open`.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.bound_devices > 0 {
            return Err(busy("a device of the group is bound to an iommufd"));
        }
        if self.opener.is_some() {
            return Err(busy("the group is open already"));
        }
        Ok(())
    }
}

impl Host {
    /// VFIO_GROUP_GET_STATUS. `vfio_group_ioctl_get_status`.
    pub fn group_status(&self, number: u32) -> Result<GroupStatus, Error> {
        let mut state = self.lock();
        let group = state.group(number)?;
        Ok(GroupStatus {
            viable: group.is_viable(),
            has_container: group.container.is_some(),
        })
    }

    /// VFIO_GROUP_SET_CONTAINER with a container or an iommufd: EINVAL if the
    /// group has one, EBADFD if `container` is neither. With a container, EPERM
    /// if somebody else does DMA with the group's devices, if devices with and
    /// without IOMMU would be together, or for one without and without
    /// CAP_SYS_RAWIO; else what attaching to its address space says. An iommufd
    /// gets an IOAS for VFIO calls if it has none, and claims devices when they
    /// are opened; for a device without IOMMU, EINVAL if it has one.
    /// `vfio_group_ioctl_set_container`, `vfio_container_attach_group`.
    pub fn set_container(
        &self,
        number: u32,
        container: Option<FileId>,
        caller: &dyn Caller,
    ) -> Result<Retired, Failure> {
        let mut state = self.lock();
        let group = state.group(number)?;
        if group.container.is_some() {
            let reason = "the group was set to a container already";
            return Err(Error::invalid(reason).into());
        }
        if let Some(iommufd) = container
            && self.kind(iommufd) == Some(FileKind::Iommufd)
        {
            let is_without = self.has_no_iommu(group);
            match is_without {
                true => state.set_without_iommu(iommufd)?,
                false => self.compat_ioas_create(&mut state, iommufd)?,
            }
            state.group(number)?.container = Some(iommufd);
            return Ok(Retired::default());
        }
        let is_container = |file: &FileId| self.kind(*file) == Some(FileKind::Container);
        let container = container.filter(is_container).ok_or(Error::new(
            ErrorKind::BadFile,
            "the descriptor is neither a container nor an iommufd",
        ))?;
        let has_units = !self.is_emulated(group) && !self.has_no_iommu(group);
        self.check_company(&mut state, number, container, caller)?;
        if has_units {
            state.group(number)?.claim(Owner::Container(container))?;
        }
        let joined = self.join_container(&mut state, number, container);
        if let Err(failure) = joined {
            state.group(number)?.release();
            return Err(failure);
        }
        state.group(number)?.container = Some(container);
        Ok(Retired::default())
    }

    /// VFIO_GROUP_UNSET_CONTAINER: EINVAL if it has none, EBUSY while device
    /// files are open. `vfio_group_ioctl_unset_container`.
    pub fn unset_container(&self, number: u32) -> Result<Retired, Error> {
        let mut retired = Retired::default();
        let mut state = self.lock();
        let group = state.group(number)?;
        if group.container.is_none() {
            return Err(Error::invalid("the group was not set to a container"));
        }
        if group.device_files > 0 {
            return Err(busy("device files of the group are open"));
        }
        self.detach_group(&mut state, number, &mut retired);
        Ok(retired)
    }

    /// VFIO_GROUP_GET_DEVICE_FD: the device called `name`, which may be
    /// followed by options. ENODEV if the group has no such device; EINVAL for
    /// unknown options, for a token that the device has no use for, and
    /// without a container whose IOMMU is set; EACCES without the token that
    /// it wants. With an iommufd instead, the
    /// device is bound to it and attached to its IOAS for VFIO calls: ENODEV if
    /// that is gone, EPERM if somebody else does DMA with the group's devices.
    /// A device without IOMMU is neither: EPERM without CAP_SYS_RAWIO or if the
    /// iommufd has such an IOAS.
    /// `vfio_device_get_from_name`, `vfio_pci_core_match`, `vfio_df_group_open`.
    pub fn device_file(
        &self,
        number: u32,
        name: &[u8],
        caller: &dyn Caller,
    ) -> Result<(FileId, Retired), Failure> {
        let mut state = self.lock();
        let (index, token) = self.find_device(state.group(number)?, name)?;
        self.match_token(&mut state, index, token)?;
        let container = state.group(number)?.container;
        let container = container.ok_or(Error::invalid("the group was not set to a container"))?;
        let is_without = self.device(index)?.has_no_iommu();
        let retired = if state.iommufds.contains_key(&container) {
            match is_without {
                true => {
                    check_raw_io(caller)?;
                    state.check_without_ioas(container)?;
                    Retired::default()
                }
                false => self.compat_open(&mut state, container, index)?,
            }
        } else if state.has_iommu(container) {
            if is_without {
                check_raw_io(caller)?;
            }
            Retired::default()
        } else {
            return Err(Error::invalid("the container's IOMMU was not set").into());
        };
        if let Err(error) = self.open_device(index) {
            let mut retired = Box::new(retired);
            self.compat_close(&mut state, index, &mut retired);
            return Err(Failure { error, retired });
        }
        let group = state.group(number)?;
        group.device_files = group.device_files.saturating_add(1);
        let file = self.enter(File {
            kind: FileKind::Device(index),
            path: Path::Group,
            usable: true,
        });
        Ok((file, retired))
    }

    /// The device of that name, and the token after it.
    fn find_device(&self, group: &Group, name: &[u8]) -> Result<(usize, Option<[u8; 16]>), Error> {
        for &index in &group.members {
            let device = self.device(index)?;
            let Some(options) = name.strip_prefix(device.name.as_bytes()) else {
                continue;
            };
            if device.is_emulated() && !options.is_empty() {
                // Options are of PCI devices.
                continue;
            }
            let is_named = options.first().is_none_or(|byte| *byte == b' ');
            if is_named && self.presence(index) == Presence::Bound {
                return Ok((index, token(options)?));
            }
        }
        Err(Error::new(
            ErrorKind::NoDevice,
            "the group has no device of that name",
        ))
    }

    /// The last descriptor of a group's file went; its device files hold the
    /// file itself. `vfio_group_fops_release`.
    pub(crate) fn close_group(&self, state: &mut State, number: u32, retired: &mut Retired) {
        let Ok(group) = state.group(number) else {
            return;
        };
        if group.device_files > 0 {
            group.orphaned = true;
            return;
        }
        group.opener = None;
        group.orphaned = false;
        self.detach_group(state, number, retired);
    }

    /// A device file that was got by way of the group went.
    /// `vfio_df_group_close`.
    pub(crate) fn close_device(&self, state: &mut State, index: usize, retired: &mut Retired) {
        self.shut_device(index, retired);
        self.settle_exports(state, retired);
        self.compat_close(state, index, retired);
        let Ok(number) = self.device(index).map(|device| device.group) else {
            return;
        };
        let Ok(group) = state.group(number) else {
            return;
        };
        group.device_files = group.device_files.saturating_sub(1);
        if group.orphaned {
            self.close_group(state, number, retired);
        }
    }

    /// Takes the group out of its container.
    fn detach_group(&self, state: &mut State, number: u32, retired: &mut Retired) {
        let Ok(group) = state.group(number) else {
            return;
        };
        let Some(container) = group.container.take() else {
            return;
        };
        if state.iommufds.contains_key(&container) {
            self.forget_iommufd(state, container, retired);
        } else if let Ok(group) = state.group(number) {
            group.release();
            self.leave_container(state, number, container, retired);
        }
    }
}

/// The token in what follows a device's name: ` vf_token=UUID` at most.
/// `vfio_pci_core_match`.
fn token(options: &[u8]) -> Result<Option<[u8; 16]>, Error> {
    const TOKEN: &[u8] = b"vf_token=";
    const UUID: usize = 36;
    let mut token = None;
    let mut rest = options;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b' ' {
            rest = after;
        } else if let Some(text) = rest.strip_prefix(TOKEN).filter(|_| token.is_none()) {
            let found = text
                .split_at_checked(UUID)
                .and_then(|(text, after)| Some((uuid(text)?, after)));
            let (found, after) = found.ok_or(Error::invalid("vf_token is no UUID"))?;
            token = Some(found);
            rest = after;
        } else {
            return Err(Error::invalid("unknown option after the device's name"));
        }
    }
    Ok(token)
}

/// The bytes of a UUID in text: groups of 8, 4, 4, 4 and 12 digits.
fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut uuid = [0; 16];
    let mut digits = text.iter().enumerate().filter_map(|(at, byte)| match at {
        8 | 13 | 18 | 23 => (*byte != b'-').then_some(None),
        _ => Some(char::from(*byte).to_digit(16)),
    });
    for byte in &mut uuid {
        let (high, low) = (digits.next()??, digits.next()??);
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    digits.next().is_none().then_some(uuid)
}

fn busy(reason: &'static str) -> Error {
    Error::new(ErrorKind::Busy, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_uuid_after_the_name_and_the_only_option() {
        let text = "00112233-4455-6677-8899-aAbBcCdDeEfF";
        let expected: [u8; 16] = std::array::from_fn(|at| u8::try_from(at * 0x11).unwrap());
        let of = |text: &str| token(text.as_bytes());
        assert_eq!(of(&format!("  vf_token={text} ")), Ok(Some(expected)));
        assert_eq!(of(" "), Ok(None));
        for wrong in [
            " vf_token=".to_owned(),
            format!(" vf_token={}", &text[1..]),
            format!(" vf_token={}", text.replace('-', "0")),
            format!(" vf_token={}", text.replace('2', "g")),
            format!(" vf_token={text} vf_token={text}"),
            format!(" vf_token={text}0"),
            " other".to_owned(),
        ] {
            assert_eq!(of(&wrong).unwrap_err().kind, ErrorKind::Invalid, "{wrong}");
        }
    }
}
