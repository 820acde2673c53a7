//! The calls on `/dev/iommu`, and those of a device's own node that bind and
//! attach it. Which are answered is said by [`iogate_host::iommufd`].
//!
//! | file | calls |
//! |---|---|
//! | `argument` | how all of them are read and answered |
//! | `object` | IOMMU_DESTROY, IOMMU_OPTION |
//! | `ioas` | IOMMU_IOAS_ALLOC, IOVA_RANGES, ALLOW_IOVAS |
//! | `map` | IOMMU_IOAS_MAP, MAP_FILE, COPY, UNMAP |
//! | `hwpt` | IOMMU_HWPT_ALLOC, SET_DIRTY_TRACKING, GET_DIRTY_BITMAP |
//! | `device` | IOMMU_GET_HW_INFO |
//! | `fault` | IOMMU_FAULT_QUEUE_ALLOC, and the files that it makes |
//! | `viommu` | IOMMU_HWPT_INVALIDATE, VIOMMU_ALLOC, VDEVICE_ALLOC, VEVENTQ_ALLOC, HW_QUEUE_ALLOC |
//! | `process` | IOMMU_IOAS_CHANGE_PROCESS |
//! | `extension` | what the session offers beyond: IOMMU_TEST_CMD |
//! | `compat` | IOMMU_VFIO_IOAS, the calls of a VFIO container |
//! | `follow` | none: an IOAS that shows what a guest's domain maps |
//! | `cdev` | VFIO_DEVICE_BIND_IOMMUFD, ATTACH and DETACH_IOMMUFD_PT |

mod argument;
mod cdev;
mod compat;
mod device;
mod extension;
pub(crate) mod fault;
mod follow;
mod hwpt;
mod ioas;
mod map;
mod object;
mod process;
mod viommu;

use iogate_host::iommufd::Failure;
use iogate_host::{FileId, Host};

use crate::{Answer, Client, Errno, vfio};

pub(crate) use cdev::{attach_pt, bind, detach_pt};
pub use follow::IoasListener;

/// `_IO(';', nr)`: the type that all numbers share, and the number.
const TYPE: u32 = 0x3b00;

/// One call on `/dev/iommu`. A number that is not known is ENOTTY, whatever its
/// argument. Linux `drivers/iommu/iommufd/main.c`, `iommufd_fops_ioctl`.
pub(crate) fn ioctl(
    host: &Host,
    file: FileId,
    command: u32,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    if command & !0xff != TYPE {
        return Err(Errno::ENOTTY);
    }
    let call = match command & 0xff {
        0..0x80 => {
            let call = vfio::Call {
                host,
                file,
                argument,
                client,
            };
            return compat::ioctl(&call, command);
        }
        0x80 => object::destroy,
        0x81 => ioas::alloc,
        0x82 => ioas::allow_iovas,
        0x83 => map::copy,
        0x84 => ioas::iova_ranges,
        0x85 => map::map,
        0x86 => map::unmap,
        0x87 => object::option,
        0x88 => compat::vfio_ioas,
        0x89 => hwpt::alloc,
        0x8a => device::hw_info,
        0x8b => hwpt::set_dirty_tracking,
        0x8c => hwpt::get_dirty_bitmap,
        0x8d => viommu::invalidate,
        0x8e => fault::alloc,
        0x8f => map::map_file,
        0x90 => viommu::viommu_alloc,
        0x91 => viommu::vdevice_alloc,
        0x92 => process::change,
        0x93 => viommu::veventq_alloc,
        0x94 => viommu::hw_queue_alloc,
        0xa0 if host.extension().is_some() => extension::call,
        _ => {
            tracing::event!(
                name: "ioctl_unknown",
                target: "iogate",
                tracing::Level::INFO,
                file = file.0,
                command = format_args!("{command:#x}"),
                result = %Errno::ENOTTY,
            );
            return Err(Errno::ENOTTY);
        }
    };
    call(host, file, argument, client)
}

/// A refusal as an answer that keeps what is left to be done.
pub(crate) fn refuse(failure: Failure) -> Result<Answer, Errno> {
    let Failure { error, retired } = failure;
    if retired.grace.is_none() && retired.pages.is_empty() {
        return Err(error.into());
    }
    Ok(Answer::failed(error.into(), (*retired).into()))
}

/// Asserts that a structure of ours has the size, the alignment and the
/// offsets of the bindings' one: `{ ours: theirs, … }`.
#[cfg(test)]
macro_rules! same_layout {
    ($ours:ty, $theirs:ty, { $($field:ident: $field_there:ident),* $(,)? }) => {
        assert_eq!(size_of::<$ours>(), size_of::<$theirs>());
        assert_eq!(align_of::<$ours>(), align_of::<$theirs>());
        $(assert_eq!(
            std::mem::offset_of!($ours, $field),
            std::mem::offset_of!($theirs, $field_there),
        );)*
    };
}
#[cfg(test)]
pub(crate) use same_layout;
