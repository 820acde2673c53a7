//! A [`Machine`](iogate_machine::Machine) as sysfs shows one: a pure map from
//! path to file, link or directory, and the device nodes beside it. Nothing
//! here touches a file system; mounts are made from it, and trapped paths are
//! answered from it.
//!
//! | part | items |
//! |---|---|
//! | what a function shows | [`FunctionFacts`], [`Resource`] |
//! | the tree | [`Tree`], [`Node`] |
//! | how it changes | [`Change`], [`sr_iov_files`] |
//! | how it lies over the machine's own | [`Overlay`] |
//! | nodes in `/dev` | [`DeviceNode`], [`device_nodes`] |
//!
//! Paths and contents are those of Linux: Documentation/ABI/testing/
//! sysfs-bus-pci, sysfs-kernel-iommu_groups, sysfs-devices-vfio-dev;
//! drivers/pci/pci-sysfs.c, drivers/iommu/iommu.c. The functions' own
//! directories are below [`DEVICES`], so that links of the machine's own sysfs
//! into its own `/sys/devices/pci*` keep working.
//!
//! There are no `resourceN` files: registers are reached through VFIO only, and
//! a file that could not be mapped would mislead.
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

mod change;
mod drivers;
mod facts;
mod function;
mod groups;
mod mediated;
mod nodes;
mod overlay;
mod sriov;
mod tree;

pub use change::Change;
pub use facts::{FunctionFacts, Presence, Resource};
pub use nodes::{DeviceNode, NodeKind, device_nodes};
pub use overlay::{Clash, HostPci, Overlay};
pub use sriov::{SrIovFacts, SrIovFile, sr_iov_files};
pub use tree::{Node, Settings, Tree};

/// The directory that holds the host bridges of the machine, as
/// `/sys/devices/platform/...` does on machines without ACPI.
pub const DEVICES: &str = "/sys/devices/iogate";
