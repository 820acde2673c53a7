//! rust-vmm's guest memory before and behind an iogate unit.
//!
//! | who has | and wants | takes |
//! |---|---|---|
//! | a `GuestMemoryBackend` | to give a unit its guest's RAM | [`Ram`] |
//! | a unit | device code that wants a `GuestMemory`, such as `virtio-queue`, behind it | [`DeviceSpace`] |
//! | a unit | an `Iommu` for `IommuMemory`, where code names that type | [`Compatible`] |
//!
//! [`DeviceSpace`] is the fast one: an access costs what the unit's own
//! translation costs. [`Compatible`] has to go through a `vm_memory::Iotlb`,
//! which is made anew for each access. Both are honest about invalidation: the
//! unit's guest is told that an invalidation is done when the last access that
//! began before it is over.
#![forbid(unsafe_code)]
#![warn(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

mod compatible;
mod ram;
mod space;

pub use compatible::Compatible;
pub use ram::Ram;
pub use space::{DeviceSpace, Entered};
