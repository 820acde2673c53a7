//! `/dev/vfio` and `/dev/iommu` of the machine that we run on, as safe calls:
//! real ones, or those of `iogate run`, which cannot be told apart here.
//!
//! | module | holds |
//! |---|---|
//! | [`container`] | `/dev/vfio/vfio` with the type 1 IOMMU |
//! | [`group`] | `/dev/vfio/N` |
//! | [`device`] | device files, by group or by `/dev/vfio/devices/vfioN` |
//! | [`iommufd`] | `/dev/iommu` and its address spaces |
//! | [`buffer`] | memory that devices may be pointed at |
//!
//! Structures and numbers: include/uapi/linux/vfio.h and iommufd.h.

pub mod buffer;
mod call;
pub mod container;
pub mod device;
pub mod group;
pub mod iommufd;

pub use buffer::Buffer;
pub use container::{Container, IommuInfo};
pub use device::{Device, DeviceInfo, Interrupt, Region};
pub use group::{Group, GroupStatus};
pub use iommufd::Iommufd;
