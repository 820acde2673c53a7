//! `/dev/vfio/N`.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::call::{self, Argument};
use crate::{Container, Device};

const GET_STATUS: u8 = 103;
const SET_CONTAINER: u8 = 104;
const UNSET_CONTAINER: u8 = 105;
const GET_DEVICE_FD: u8 = 106;

/// An open group. Only one opener at a time.
pub struct Group(File);

/// What VFIO_GROUP_GET_STATUS says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    /// No member is bound to a host driver.
    pub viable: bool,
    /// The group is in a container.
    pub in_container: bool,
}

impl Group {
    /// Opens `/dev/vfio/NUMBER`.
    pub fn open(number: u32) -> io::Result<Self> {
        let path = format!("/dev/vfio/{number}");
        Ok(Self(OpenOptions::new().read(true).write(true).open(path)?))
    }

    /// VFIO_GROUP_GET_STATUS.
    pub fn status(&self) -> io::Result<GroupStatus> {
        let mut argument = Argument::new(8);
        argument.call(self.as_fd(), GET_STATUS)?;
        let flags = argument.get_u32(4);
        Ok(GroupStatus {
            viable: flags & 1 != 0,
            in_container: flags & 2 != 0,
        })
    }

    /// VFIO_GROUP_SET_CONTAINER.
    pub fn set_container(&self, container: &Container) -> io::Result<()> {
        call::with_descriptor(self.as_fd(), SET_CONTAINER, container.as_fd()).map(drop)
    }

    /// VFIO_GROUP_UNSET_CONTAINER.
    pub fn unset_container(&self) -> io::Result<()> {
        call::with_number(self.as_fd(), UNSET_CONTAINER, 0).map(drop)
    }

    /// VFIO_GROUP_GET_DEVICE_FD. On real hardware this resets the function.
    pub fn device(&self, name: &str) -> io::Result<Device> {
        let name = CString::new(name)?;
        let fd = call::with_text(self.as_fd(), GET_DEVICE_FD, &name)?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just installed this descriptor for us.
        Ok(Device::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
