//! What a program does with `/dev/vfio/devices/vfioN` before and after the
//! device's own calls. Linux `drivers/vfio/device_cdev.c`.

use crate::iommufd::{Attached, Failure};
use crate::state::State;
use crate::{Error, ErrorKind, FileId, FileKind, Host, Path, Retired};

/// What an open file of a device's own node is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Binding {
    iommufd: FileId,
    /// The device's number there.
    id: u32,
    /// Its index among the host's devices.
    index: usize,
}

impl Host {
    /// VFIO_DEVICE_BIND_IOMMUFD, first part: EINVAL for a file that was got by
    /// way of a group or is bound, EBUSY while the group is open. Linux
    /// `vfio_device_block_group`.
    pub fn cdev_check_bind(&self, file: FileId) -> Result<(), Error> {
        let mut state = self.lock();
        self.check_bind(&mut state, file).map(drop)
    }

    /// VFIO_DEVICE_BIND_IOMMUFD, second part: EACCES or EINVAL for the token
    /// that was given, or not given. Linux `vfio_df_check_token`.
    pub fn cdev_check_token(&self, file: FileId, token: Option<[u8; 16]>) -> Result<(), Error> {
        let mut state = self.lock();
        let index = self.check_bind(&mut state, file)?;
        self.match_token(&mut state, index, token)
    }

    /// VFIO_DEVICE_BIND_IOMMUFD, the rest. Says the device's number in the iommufd.
    /// EBADFD if `iommufd` is none; EINVAL if another file of the device is
    /// bound; EPERM if its group's DMA is somebody else's. Linux
    /// `vfio_df_ioctl_bind_iommufd`, `vfio_df_open`.
    pub fn cdev_bind(&self, file: FileId, iommufd: FileId) -> Result<u32, Error> {
        let mut state = self.lock();
        let index = self.check_bind(&mut state, file)?;
        if self.kind(iommufd) != Some(FileKind::Iommufd) {
            return Err(Error::new(
                ErrorKind::BadFile,
                "the descriptor is no iommufd",
            ));
        }
        if state
            .bindings
            .values()
            .any(|binding| binding.index == index)
        {
            return Err(Error::invalid("the device is bound by another file"));
        }
        let id = self.bind(&mut state, iommufd, index)?;
        if let Err(error) = self.open_device(index) {
            let mut nothing = Retired::default();
            self.unbind(&mut state, iommufd, id, &mut nothing);
            return Err(error);
        }
        let number = self.device(index)?.group;
        let group = state.group(number)?;
        group.bound_devices = group.bound_devices.saturating_add(1);
        let binding = Binding { iommufd, id, index };
        state.bindings.insert(file, binding);
        self.set_usable(file, true);
        Ok(id)
    }

    /// Undoes a bind whose caller could not be told.
    pub fn cdev_unbind(&self, file: FileId) -> Retired {
        let mut retired = Retired::default();
        let mut state = self.lock();
        self.set_usable(file, false);
        self.close_cdev(&mut state, file, &mut retired);
        retired
    }

    /// VFIO_DEVICE_ATTACH_IOMMUFD_PT: as
    /// [`cdev_check_bound`](Self::cdev_check_bound); else as
    /// `iommufd_device_attach` or, for a device that is attached,
    /// `iommufd_device_replace` says. Linux
    /// `vfio_iommufd_physical_attach_ioas`.
    pub fn cdev_attach(&self, file: FileId, pt: u32) -> Result<Attached, Failure> {
        let mut state = self.lock();
        let binding = self.binding(&state, file)?;
        self.attach_pt(&mut state, binding.iommufd, binding.id, pt)
    }

    /// VFIO_DEVICE_DETACH_IOMMUFD_PT: as
    /// [`cdev_check_bound`](Self::cdev_check_bound); a device that is not
    /// attached is left alone. Linux `vfio_iommufd_physical_detach_ioas`.
    pub fn cdev_detach(&self, file: FileId) -> Result<Retired, Error> {
        let mut retired = Retired::default();
        let mut state = self.lock();
        let binding = self.binding(&state, file)?;
        self.detach_pt(&mut state, binding.iommufd, binding.id, &mut retired);
        Ok(retired)
    }

    /// VFIO_DEVICE_ATTACH_IOMMUFD_PT with a PASID, which gets the page table
    /// or is moved to it: as [`cdev_check_bound`](Self::cdev_check_bound);
    /// ENOENT without the object; EINVAL unless the device sends such PASIDs,
    /// this page table and the device's own were made for PASIDs, and it suits
    /// the device; ENOSPC from 2^31 up. Linux
    /// `vfio_iommufd_physical_pasid_attach_ioas`.
    pub fn cdev_attach_pasid(&self, file: FileId, pasid: u32, pt: u32) -> Result<Attached, Error> {
        let mut state = self.lock();
        let binding = self.binding(&state, file)?;
        let device = (binding.id, &**self.device(binding.index)?);
        let iommufd = binding.iommufd;
        let retired = self.attach_device_pasid(&mut state, iommufd, device, (pasid, pt))?;
        Ok(Attached { hwpt: pt, retired })
    }

    /// VFIO_DEVICE_DETACH_IOMMUFD_PT with a PASID; one that has no page table
    /// is left alone. Linux `vfio_iommufd_physical_pasid_detach_ioas`.
    pub fn cdev_detach_pasid(&self, file: FileId, pasid: u32) -> Result<Retired, Error> {
        let mut state = self.lock();
        let binding = self.binding(&state, file)?;
        let device = (binding.id, &**self.device(binding.index)?);
        self.detach_device_pasid(&mut state, binding.iommufd, device, pasid)
    }

    /// EOPNOTSUPP for a device whose driver knows no PASIDs: a mediated one.
    pub fn cdev_check_pasids(&self, file: FileId) -> Result<(), Error> {
        let device = match self.kind(file) {
            Some(FileKind::Device(index)) => self.device(index)?,
            _ => return Ok(()),
        };
        match device.is_emulated() {
            true => Err(Error::new(
                ErrorKind::Unsupported,
                "a mediated device has no PASIDs",
            )),
            false => Ok(()),
        }
    }

    /// EINVAL unless bound; ENOTTY for a file that was got by way of a group.
    pub fn cdev_check_bound(&self, file: FileId) -> Result<(), Error> {
        self.binding(&self.lock(), file).map(drop)
    }

    fn binding(&self, state: &State, file: FileId) -> Result<Binding, Error> {
        if self.file(file).is_some_and(|file| file.path == Path::Group) {
            return Err(Error::new(
                ErrorKind::NoSuchCall,
                "the file was got by way of a group",
            ));
        }
        let binding = state.bindings.get(&file).copied();
        binding.ok_or(Error::invalid("the device is not bound"))
    }

    /// The device of a file that may be bound.
    fn check_bind(&self, state: &mut State, file: FileId) -> Result<usize, Error> {
        let entry = self.file(file);
        let Some((FileKind::Device(index), Path::Cdev)) = entry.map(|file| (file.kind, file.path))
        else {
            return Err(Error::invalid(
                "the file was not opened by the device's own node",
            ));
        };
        let number = self.device(index)?.group;
        if state.group(number)?.opener.is_some() {
            return Err(Error::new(ErrorKind::Busy, "the device's group is open"));
        }
        if state.bindings.contains_key(&file) {
            return Err(Error::invalid("the device is bound already"));
        }
        Ok(index)
    }

    /// The last descriptor of a device's own node went. Linux
    /// `vfio_df_unbind_iommufd`.
    pub(crate) fn close_cdev(&self, state: &mut State, file: FileId, retired: &mut Retired) {
        let Some(binding) = state.bindings.remove(&file) else {
            return;
        };
        self.shut_device(binding.index, retired);
        self.settle_exports(state, retired);
        if let Ok(device) = self.device(binding.index) {
            let device = (binding.id, &**device);
            self.detach_device_pasids(state, binding.iommufd, device, retired);
        }
        self.unbind(state, binding.iommufd, binding.id, retired);
        let number = self.device(binding.index).map(|device| device.group);
        if let Ok(group) = number.and_then(|number| state.group(number)) {
            group.bound_devices = group.bound_devices.saturating_sub(1);
        }
    }
}

impl State {
    /// The iommufd that a device file of its own node is bound to.
    pub(crate) fn iommufd_of(&self, file: FileId) -> Option<FileId> {
        Some(self.bindings.get(&file)?.iommufd)
    }

    /// The number that the device has in an iommufd.
    pub(crate) fn id_in(&self, iommufd: FileId, index: usize) -> Option<u32> {
        let mut bindings = self.bindings.values();
        let bound = bindings.find(|one| one.iommufd == iommufd && one.index == index);
        bound.map(|binding| binding.id)
    }
}
