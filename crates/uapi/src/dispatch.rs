//! The way of a call: numbers collide between kinds of file, so the kind comes
//! first.

use iogate_host::{FileId, FileKind, Host};

use crate::vfio::{self, Call};
use crate::{Answer, Client, Errno, calls, iommufd};

/// One ioctl on one of our files: `command` is its full number, `argument`
/// what the program passed with it.
pub fn ioctl(
    host: &Host,
    file: FileId,
    command: u32,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let call = Call {
        host,
        file,
        argument,
        client,
    };
    let kind = host.kind(file).ok_or(Errno::EBADF)?;
    if host.interposer().is_some()
        && let Some(name) = calls::name(kind, command)
        && let Some(answer) = calls::interposed(host, kind, name, client)
    {
        return Ok(answer);
    }
    match kind {
        FileKind::Container => vfio::container::ioctl(&call, command),
        FileKind::Group(number) => vfio::group::ioctl(&call, number, command),
        FileKind::Device(_) => vfio::device::ioctl(&call, command),
        FileKind::Access | FileKind::Buffer | FileKind::FaultQueue => {
            vfio::unknown(file, command, Errno::ENOTTY)
        }
        FileKind::Migration { .. } => vfio::migration::ioctl(&call, command),
        FileKind::Revoked => vfio::unknown(file, command, Errno::ENODEV),
        FileKind::Iommufd => iommufd::ioctl(host, file, command, argument, client),
    }
}
