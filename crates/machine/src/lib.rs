//! The machine that a session shows: IOMMUs, bridges and devices, read from a
//! machine file and from `--device` arguments and built into one immutable
//! [`Machine`].
//!
//! ```
//! use iogate_machine::{Machine, Model, Property, PropertyKind, Text};
//!
//! let models = [Model {
//!     name: "nvme",
//!     properties: vec![Property { name: "size", kind: PropertyKind::Size }],
//! }];
//! let file = Text {
//!     name: "machine.toml",
//!     bytes: b"version = 1\n[[device]]\nmodel = \"nvme\"\nsize = \"64 MiB\"\n",
//! };
//! let machine = Machine::load(Some(file), &[], &models)?;
//! assert_eq!(machine.devices().count(), 1);
//!
//! let arguments = ["nvme,sise=64M".to_owned()];
//! let error = Machine::load(None, &arguments, &models).unwrap_err();
//! assert!(error.to_string().contains("did you mean `size`?"));
//! # Ok::<(), iogate_machine::Error>(())
//! ```
//!
//! # The machine file
//! TOML, at most [`MAX_FILE_BYTES`]. Every key but those marked * may be left
//! out. A size is a number of bytes or a text such as `"64 MiB"`; an address
//! of memory is a number or a text such as `"0xfee00000"`.
//!
//! | table | keys |
//! |---|---|
//! | top | `version` * (1), `memlock` (`"off"`, `"enforce"`), `dma_entry_limit` (65535) |
//! | `[[iommu]]` | `name` *, `kind` (`"generic"`), `iova-bits` (48), `page-sizes` (`["4 KiB", "2 MiB", "1 GiB"]`), `msi-window` (`"x86"`, `"software"`, `"none"`, or `{ base = 0x8000000, size = "1 MiB" }`), `coherency` (true), `dirty-tracking` (false), `pasid-bits` (0), `reserved` (list of `{ start, end, type }`: `end` is the last byte, `type` is `"direct"`, `"direct-relaxable"` or `"reserved"`) |
//! | `[[iommu]]` of `kind = "vtd"` | `name` *, `at`, `mode` (`"legacy"`, `"scalable"`), `iova-bits` (48; or 39, 57), `page-sizes`, `first-stage`, `nested` (in scalable mode true), `ats` (false), `page-requests` (false), `pasid-bits` (20 in scalable mode), `snoop-control` (false), `caching-mode` (true), `fault-records` (8) |
//! | `[[bridge]]` | `name` *, `kind` * (`"root-port"`, `"upstream-port"`, `"downstream-port"`, `"pcie-pci-bridge"`, `"pci-bridge"`), `behind`, `at`, `acs` (true for root and downstream ports), `iommu` |
//! | `[[device]]` | `model` *, `name`, `behind`, `at`, `group`, `driver` (`"vfio-pci"`), `iommu`, `ats` (as the unit), `acs` (false), `mmio` (`"trap"`, `"map"`), `mediated` (false), `uuid`, and what the model knows |
//!
//! A file without `[[device]]` is a machine without devices.
//!
//! - `behind` names a bridge. A device without it gets a root port of its own,
//!   with ACS; devices whose `at` names one bus share that port, and an `at`
//!   on bus 00 is an integrated device on the root bus.
//! - `at` is an address such as `"0000:01:00.0"`; addresses not given follow
//!   [`iogate_pci::topology::Topology::new`].
//! - `group` forces a group number on the device and on all that cannot be
//!   isolated from it; one number on two devices merges their groups.
//! - `driver` other than `"vfio-pci"` is a driver of the machine's own kernel
//!   that holds the device (`"none"`: no driver).
//! - `vfs`, where the model knows it, is a number of virtual functions: they
//!   have places, groups and node numbers of their own, after all others, and
//!   are not there until a program enables them.
//! - `mmio` says whether registers in memory BARs are reached by reads and
//!   writes of the device file only, or by mappings too.
//! - `iommu` names the unit that translates a function and all behind it; the
//!   first unit if nothing is said. Without `[[iommu]]` there is one, `iommu0`.
//!   `"none"` is no unit: such a device reaches memory by physical addresses.
//! - `mediated` makes a device a mediated one: software behind no bridge and no
//!   unit, known by its `uuid`.
//!
//! # Arguments
//! `MODEL[,key=value]...` is one `[[device]]` with the same keys; a comma in a
//! value is written twice.
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

mod argument;
mod build;
mod describe;
mod diagnostic;
mod entries;
mod fields;
mod groups;
mod mediated;
mod model;
mod quantity;
mod tables;
mod units;

pub use diagnostic::{Error, Finding};
pub use fields::{Model, Property, PropertyKind};
pub use model::{
    BridgeEntry, DeviceEntry, Driver, FunctionEntry, FunctionKind, Group, Iommu, IommuKind,
    Machine, Memlock, Mmio, Properties, Reserved, ReservedKind, Translation, Value, Vtd,
};

/// The largest machine file that is read.
pub const MAX_FILE_BYTES: usize = 1 << 20;
/// The most `[[iommu]]` entries of a machine.
pub const MAX_IOMMUS: usize = 64;
/// The most `[[bridge]]` entries of a machine.
pub const MAX_BRIDGES: usize = 256;
/// The most devices of a machine.
pub const MAX_DEVICES: usize = 256;
/// The most virtual functions of a machine.
pub const MAX_VIRTUAL_FUNCTIONS: usize = 256;
/// The property by which a model that knows it says how many virtual functions
/// a device has, as a whole number: the machine places them.
pub const VIRTUAL_FUNCTIONS: &str = "vfs";
/// The most reserved regions of an IOMMU.
pub const MAX_RESERVED: usize = 256;

/// The devices of the default machine, as arguments.
pub const DEFAULT_DEVICES: [&str; 2] = ["edu", "nvme,size=64M"];

/// A machine file: what to call it in messages, and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// Usually the path that the user gave.
    pub name: &'a str,
    /// The content, not yet known to be text.
    pub bytes: &'a [u8],
}

impl Machine {
    /// Builds the machine of a file and of `--device` arguments. Arguments add
    /// to the file's devices; without a file they take the place of the
    /// default machine's, and without both the machine is the default.
    ///
    /// # Errors
    /// Everything found wrong, each with its place.
    pub fn load(
        file: Option<Text<'_>>,
        arguments: &[String],
        models: &[Model],
    ) -> Result<Self, Error> {
        let mut report = diagnostic::Report::default();
        let entries = entries::read(file, arguments, models, &mut report);
        report.check()?;
        let machine = build::build(&entries, &mut report);
        report.check()?;
        machine.ok_or_else(|| report.into_error())
    }

    /// One edu and one nvme of 64 MiB, each in a group of its own behind a
    /// root port of its own.
    ///
    /// # Errors
    /// If `models` lacks one of [`DEFAULT_DEVICES`].
    pub fn default_machine(models: &[Model]) -> Result<Self, Error> {
        Self::load(None, &[], models)
    }
}
