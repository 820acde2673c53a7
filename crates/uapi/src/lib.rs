//! Bytes in and out: every VFIO, iommufd and KVM-VFIO call is decoded, run on
//! the object model of `iogate-host` and answered with the kernel's errno.
//! Client memory and descriptors are behind [`Client`]; no system call is made.
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

mod answer;
mod attribute;
mod calls;
mod client;
mod data;
mod dispatch;
mod errno;
mod iommufd;
mod kvm;
mod region;
mod stream;
mod trace;
mod vfio;

pub use answer::{After, Answer};
pub use attribute::{Attribute, Stored, store_attribute};
pub use calls::names as call_names;
pub use client::{BadAddress, Client, Named};
pub use dispatch::ioctl;
pub use errno::Errno;
pub use iommufd::IoasListener;
pub use kvm::kvm_device_attr;
pub use region::{load, memory_offset, mmap, read, region_of, region_offset, store, write};
pub use stream::{read_stream, write_stream};
