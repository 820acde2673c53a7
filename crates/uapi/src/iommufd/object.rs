//! IOMMU_DESTROY and IOMMU_OPTION. Linux `drivers/iommu/iommufd/main.c`.

use iogate_host::iommufd::RlimitMode;
use iogate_host::{FileId, Host};
use tracing::Level;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use crate::trace::Told;
use crate::{Answer, Client, Errno};

/// `enum iommufd_option`.
const RLIMIT_MODE: u32 = 0;
const HUGE_PAGES: u32 = 1;
/// `enum iommufd_option_ops`.
const SET: u16 = 0;
const GET: u16 = 1;

/// `struct iommu_destroy`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Destroy {
    size: u32,
    id: u32,
}

impl Argument for Destroy {
    const MINIMUM: u32 = 8;
}

/// `struct iommu_option`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IommuOption {
    size: u32,
    option_id: u32,
    op: u16,
    reserved: u16,
    object_id: u32,
    val64: u64,
}

impl Argument for IommuOption {
    const MINIMUM: u32 = 24;
}

/// IOMMU_DESTROY. Linux `iommufd_destroy`.
pub(super) fn destroy(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, Destroy>| Ok(host.iommufd_destroy(file, call.body.id)?.into());
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_destroy",
            target: "iogate",
            Level::INFO,
            file = file.0,
            id = body.id,
            result = %Told(result),
        );
    })
}

/// IOMMU_OPTION. Linux `iommufd_option`.
pub(super) fn option(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, IommuOption>| {
        let option = &mut call.body;
        if option.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match option.option_id {
            RLIMIT_MODE => rlimit_mode(host, file, client, option)?,
            HUGE_PAGES => huge_pages(host, file, option)?,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        let value = call.body.val64.to_ne_bytes();
        call.respond_at(16, &value)?;
        Ok(Answer::value(0))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_option",
            target: "iogate",
            Level::INFO,
            file = file.0,
            option = body.option_id,
            op = body.op,
            object = body.object_id,
            value = body.val64,
            result = %Told(result),
        );
    })
}

/// Linux `iommufd_option_rlimit_mode`.
fn rlimit_mode(
    host: &Host,
    file: FileId,
    client: &dyn Client,
    option: &mut IommuOption,
) -> Result<(), Errno> {
    if option.object_id != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    match option.op {
        GET => option.val64 = u64::from(host.rlimit_mode(file)? == RlimitMode::Process),
        SET => {
            let mode = match option.val64 {
                0 => Some(RlimitMode::User),
                1 => Some(RlimitMode::Process),
                _ => None,
            };
            host.set_rlimit_mode(file, mode, client)?;
        }
        _ => return Err(Errno::EOPNOTSUPP),
    }
    Ok(())
}

/// Linux `iommufd_ioas_option`, `iommufd_ioas_option_huge_pages`.
fn huge_pages(host: &Host, file: FileId, option: &mut IommuOption) -> Result<(), Errno> {
    let now = host.ioas_huge_pages(file, option.object_id)?;
    match (option.op, option.val64) {
        (GET, _) => option.val64 = u64::from(now),
        (SET, 0) => host.set_ioas_huge_pages(file, option.object_id, false)?,
        (SET, 1) => host.set_ioas_huge_pages(file, option.object_id, true)?,
        (SET, _) => return Err(Errno::EINVAL),
        _ => return Err(Errno::EOPNOTSUPP),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use iommufd_bindings::iommufd as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(Destroy, bindings::iommu_destroy, { size: size, id: id });
        same_layout!(IommuOption, bindings::iommu_option, {
            size: size, option_id: option_id, op: op, reserved: __reserved,
            object_id: object_id, val64: val64,
        });
    }
}
