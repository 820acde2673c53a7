//! VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_ATTACH_IOMMUFD_PT and
//! VFIO_DEVICE_DETACH_IOMMUFD_PT. Linux `drivers/vfio/device_cdev.c`.

use iogate_host::iommufd::{Attached, Failure};
use iogate_host::{FileId, Host};
use tracing::Level;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use super::refuse;
use crate::trace::Told;
use crate::{Answer, Client, Errno, Named};

/// VFIO_DEVICE_BIND_FLAG_TOKEN.
const TOKEN: u32 = 1;
/// VFIO_DEVICE_ATTACH_PASID and VFIO_DEVICE_DETACH_PASID.
const PASID: u32 = 1;

/// `struct vfio_device_bind_iommufd`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct BindIommufd {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    out_devid: u32,
    token_uuid_ptr: u64,
}

impl Argument for BindIommufd {
    const MINIMUM: u32 = 16;
}

/// `struct vfio_device_attach_iommufd_pt`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct AttachPt {
    argsz: u32,
    flags: u32,
    pt_id: u32,
    pasid: u32,
}

/// `struct vfio_device_detach_iommufd_pt`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct DetachPt {
    argsz: u32,
    flags: u32,
    pasid: u32,
}

/// VFIO_DEVICE_BIND_IOMMUFD: the one call that an unbound file answers. Linux
/// `vfio_df_ioctl_bind_iommufd`.
pub(crate) fn bind(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, BindIommufd>| {
        let body = &mut call.body;
        if body.iommufd < 0 || body.flags & !TOKEN != 0 {
            return Err(Errno::EINVAL);
        }
        host.cdev_check_bind(file)?;
        let token = match body.flags & TOKEN {
            0 => None,
            _ => {
                let mut uuid = [0; 16];
                client.read(body.token_uuid_ptr, &mut uuid)?;
                Some(uuid)
            }
        };
        host.cdev_check_token(file, token)?;
        let Named::Ours(iommufd) = client.named(body.iommufd)? else {
            return Err(Errno::EBADFD);
        };
        body.out_devid = host.cdev_bind(file, iommufd)?;
        let id = body.out_devid.to_ne_bytes();
        let Err(errno) = call.respond_at(12, &id) else {
            return Ok(Answer::value(0));
        };
        Ok(Answer::failed(errno, host.cdev_unbind(file).into()))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_device_bind_iommufd",
            target: "iogate",
            Level::INFO,
            file = file.0,
            iommufd = body.iommufd,
            device = body.out_devid,
            result = %Told(result),
        );
    })
}

/// VFIO_DEVICE_ATTACH_IOMMUFD_PT: attaches, or moves what is attached. Linux
/// `vfio_df_ioctl_attach_pt`.
pub(crate) fn attach_pt(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let mut body = AttachPt::new_zeroed();
    let result = attach(host, file, argument, client, &mut body);
    tracing::event!(
        name: "ioctl_device_attach_iommufd_pt",
        target: "iogate",
        Level::INFO,
        file = file.0,
        flags = body.flags,
        pt = body.pt_id,
        pasid = (body.flags & PASID != 0).then_some(body.pasid),
        result = %Told(&result),
    );
    result
}

fn attach(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
    body: &mut AttachPt,
) -> Result<Answer, Errno> {
    read_part(client, argument, body.as_mut_bytes(), 0, 12)?;
    if body.argsz < 12 || body.flags & !PASID != 0 {
        return Err(Errno::EINVAL);
    }
    if body.flags & PASID != 0 {
        host.cdev_check_pasids(file)?;
    }
    let attached = if body.flags & PASID == 0 {
        host.cdev_attach(file, body.pt_id)
    } else if body.argsz < 16 {
        return Err(Errno::EINVAL);
    } else {
        read_part(client, argument, body.as_mut_bytes(), 12, 16)?;
        host.cdev_attach_pasid(file, body.pasid, body.pt_id)
            .map_err(Failure::from)
    };
    let Attached { hwpt, mut retired } = match attached {
        Ok(attached) => attached,
        Err(failure) => return refuse(failure),
    };
    body.pt_id = hwpt;
    let at = argument.checked_add(8).ok_or(Errno::EFAULT)?;
    if client.write(at, &hwpt.to_ne_bytes()).is_err() {
        // The program cannot know of it.
        retired.merge(host.cdev_detach(file)?);
        return Ok(Answer::failed(Errno::EFAULT, retired.into()));
    }
    Ok(retired.into())
}

/// VFIO_DEVICE_DETACH_IOMMUFD_PT. Linux `vfio_df_ioctl_detach_pt`.
pub(crate) fn detach_pt(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let mut body = DetachPt::new_zeroed();
    let result = detach(host, file, argument, client, &mut body);
    tracing::event!(
        name: "ioctl_device_detach_iommufd_pt",
        target: "iogate",
        Level::INFO,
        file = file.0,
        flags = body.flags,
        pasid = (body.flags & PASID != 0).then_some(body.pasid),
        result = %Told(&result),
    );
    result
}

fn detach(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
    body: &mut DetachPt,
) -> Result<Answer, Errno> {
    read_part(client, argument, body.as_mut_bytes(), 0, 8)?;
    if body.argsz < 8 || body.flags & !PASID != 0 {
        return Err(Errno::EINVAL);
    }
    if body.flags & PASID != 0 {
        host.cdev_check_pasids(file)?;
        if body.argsz < 12 {
            return Err(Errno::EINVAL);
        }
        read_part(client, argument, body.as_mut_bytes(), 8, 12)?;
        return Ok(host.cdev_detach_pasid(file, body.pasid)?.into());
    }
    Ok(host.cdev_detach(file)?.into())
}

/// Fills the bytes from `from` to `to` of `body` from the same bytes of the
/// client's structure.
fn read_part(
    client: &dyn Client,
    address: u64,
    body: &mut [u8],
    from: usize,
    to: usize,
) -> Result<(), Errno> {
    let at = u64::try_from(from)
        .ok()
        .and_then(|from| address.checked_add(from));
    let part = body.get_mut(from..to).ok_or(Errno::EFAULT)?;
    Ok(client.read(at.ok_or(Errno::EFAULT)?, part)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(BindIommufd, bindings::vfio_device_bind_iommufd, {
            argsz: argsz, flags: flags, iommufd: iommufd, out_devid: out_devid,
            token_uuid_ptr: token_uuid_ptr,
        });
        same_layout!(AttachPt, bindings::vfio_device_attach_iommufd_pt, {
            argsz: argsz, flags: flags, pt_id: pt_id, pasid: pasid,
        });
        same_layout!(DetachPt, bindings::vfio_device_detach_iommufd_pt, {
            argsz: argsz, flags: flags, pasid: pasid,
        });
    }
}
