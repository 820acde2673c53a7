//! Calls on `/dev/vfio/vfio`. Linux `drivers/vfio/container.c`,
//! `vfio_fops_unl_ioctl`.

use super::{Call, dirty, number, told, type1, unknown};
use crate::{Answer, Errno};

/// VFIO_API_VERSION.
const API_VERSION: i64 = 0;

/// One call on a container. Before its IOMMU is set, what it does not know is
/// EINVAL; afterwards ENOTTY.
pub(crate) fn ioctl(call: &Call<'_>, command: u32) -> Result<Answer, Errno> {
    const GET_API_VERSION: u32 = number(0);
    const CHECK_EXTENSION: u32 = number(1);
    const SET_IOMMU: u32 = number(2);
    const GET_INFO: u32 = number(12);
    const MAP_DMA: u32 = number(13);
    const UNMAP_DMA: u32 = number(14);
    const DIRTY_PAGES: u32 = number(17);
    match command {
        GET_API_VERSION => told!(
            "ioctl_get_api_version",
            call,
            Ok(Answer::value(API_VERSION))
        ),
        CHECK_EXTENSION => {
            let known = call.host.check_extension(call.file, call.argument);
            let result = known.map(|known| Answer::value(known.into()));
            told!(
                "ioctl_check_extension",
                call,
                result.map_err(Errno::from),
                extension = call.argument,
            )
        }
        SET_IOMMU => {
            let set = call.host.set_iommu(call.file, call.argument, call.client);
            let result = set.map(|()| Answer::value(0));
            told!(
                "ioctl_set_iommu",
                call,
                result.map_err(Errno::from),
                kind = call.argument,
            )
        }
        _ => {
            if let Err(error) = call.host.check_type1(call.file) {
                return unknown(call.file, command, error.into());
            }
            match command {
                GET_INFO => type1::get_info(call),
                MAP_DMA => type1::map(call),
                UNMAP_DMA => type1::unmap(call),
                DIRTY_PAGES => dirty::dirty_pages(call),
                _ => unknown(call.file, command, Errno::ENOTTY),
            }
        }
    }
}
