//! IOMMU_IOAS_CHANGE_PROCESS: another process pays for what is pinned. Linux
//! `drivers/iommu/iommufd/ioas.c`, `iommufd_ioas_change_process`.

use iogate_host::{FileId, Host};
use tracing::Level;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use crate::trace::Told;
use crate::{Answer, Client, Errno};

/// `struct iommu_ioas_change_process`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct ChangeProcess {
    size: u32,
    reserved: u32,
}

impl Argument for ChangeProcess {
    const MINIMUM: u32 = 8;
}

/// IOMMU_IOAS_CHANGE_PROCESS.
pub(super) fn change(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, ChangeProcess>| {
        if call.body.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        host.ioas_change_process(file, client)?;
        Ok(Answer::value(0))
    };
    answer(client, argument, run, |_, result| {
        tracing::event!(
            name: "ioctl_ioas_change_process",
            target: "iogate",
            Level::INFO,
            file = file.0,
            result = %Told(result),
        );
    })
}
