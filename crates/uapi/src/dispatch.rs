//! The way of a call: numbers collide between kinds of file, so the kind comes
//! first.

use iogate_host::{FileId, FileKind, Host};

use crate::{Answer, Client, Errno, iommufd};

const DEVICE_BIND_IOMMUFD: u32 = 0x3b76;
const DEVICE_ATTACH_IOMMUFD_PT: u32 = 0x3b77;
const DEVICE_DETACH_IOMMUFD_PT: u32 = 0x3b78;

/// One ioctl on one of our files: `command` is its full number, `argument`
/// what the program passed with it.
pub fn ioctl(
    host: &Host,
    file: FileId,
    command: u32,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    match host.kind(file).ok_or(Errno::EBADF)? {
        FileKind::Iommufd => iommufd::ioctl(host, file, command, argument, client),
        FileKind::Device(_) => match command {
            DEVICE_BIND_IOMMUFD => iommufd::bind(host, file, argument, client),
            DEVICE_ATTACH_IOMMUFD_PT => iommufd::attach_pt(host, file, argument, client),
            DEVICE_DETACH_IOMMUFD_PT => iommufd::detach_pt(host, file, argument, client),
            _ => Err(Errno::ENOTTY),
        },
        FileKind::Container | FileKind::Group(_) => Err(Errno::ENOTTY),
    }
}
