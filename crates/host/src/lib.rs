//! The kernel's object model for device assignment as pure state: containers,
//! groups, device files, I/O address spaces, page tables. No system call is
//! made here and no descriptor is known: a file is a [`FileId`], a client's
//! memory is [`Pages`], who calls is a [`Caller`].
//!
//! What is modelled is what the kernel promises, including the oddities that
//! programs can see; each rule names the kernel file and function.
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

mod access;
mod bars;
mod caller;
mod cdev;
mod config;
mod config_region;
mod container;
mod device;
mod emulated;
mod error;
mod event;
mod group;
mod group_file;
mod info;
mod interpose;
mod ioas;
mod ioeventfd;
pub mod iommufd;
mod irqs;
mod kvm;
mod ledger;
mod logging;
mod migration;
mod no_iommu;
mod observer;
mod pages;
mod part;
mod private;
mod reset;
mod retired;
mod slot;
mod sriov;
mod state;
mod type1;

pub use access::Region;
pub use caller::{Actor, Caller, Memlock};
pub use config::{GroupConfig, HostConfig, Iommu, MemlockMode, Reserved, ReservedKind};
pub use device::{Device, Translation};
pub use error::{Error, ErrorKind};
pub use event::{Event, Watch};
pub use group::{Group, Owner};
pub use group_file::GroupStatus;
pub use info::{IrqInfo, RegionCapability, RegionInfo};
pub use interpose::Interpose;
pub use ioas::{Ioas, MapFailure, Mapping, Reach};
pub use ioeventfd::IoWrite;
pub use irqs::{Descriptors, IrqAction, IrqData, IrqIndex, IrqRequest};
pub use kvm::Coherency;
pub use ledger::{Charge, Payer};
pub use logging::LOG_RANGES;
pub use migration::{Direction, MigrationChange, MigrationState, PrecopyInfo};
pub use observer::{Observer, SpaceId, Via};
pub use pages::{Pages, PinError, Pinned};
pub use private::{Piece, PrivateMemory};
pub use reset::{Affected, HotResetIds, HotResetInfo};
pub use retired::Retired;
pub use sriov::{Configured, Presence};
pub use state::{FileKind, Host, Node, Path};
pub use type1::{MapDma, Type1Info, UnmapMode, UnmapRange};

/// An open file of ours: `/dev/vfio/vfio`, a group, a device or `/dev/iommu`.
/// Duplicates of a descriptor are the same file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u64);
