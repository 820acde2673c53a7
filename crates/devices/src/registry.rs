//! The models that there are, and how one is made from its properties.

use std::sync::Arc;

use iogate_dma::{Interrupts, SharedMemory, Source};
use iogate_pci::{Function, LayoutError};

use crate::properties::{Checked, Properties, Property, nearest};
use crate::{edu, ioat, nvme, virtio_net};

/// A kind of device.
#[derive(Clone, Copy)]
pub struct Model {
    /// Its name, as in `--device nvme`.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// The properties that it knows.
    pub properties: &'static [Property],
    pub(crate) build: Build,
    /// Makes a virtual function of such a device, where it can have any.
    pub(crate) build_virtual: Option<Build>,
}

/// Makes a device from its checked properties.
pub(crate) type Build = fn(&Checked<'_>, Slot) -> Result<Arc<dyn Function>, BuildError>;

/// Makes the plain memory of a device's BAR: given are the BAR's index and size
/// in bytes, whole pages.
pub type MakeMemory = Arc<dyn Fn(u8, u64) -> std::io::Result<Arc<dyn SharedMemory>> + Send + Sync>;

/// Opens the tap interface of this name: each read gives a frame, each write
/// takes one.
pub type OpenTap = Arc<dyn Fn(&str) -> std::io::Result<std::fs::File> + Send + Sync>;

/// Where a device is plugged in.
pub struct Slot {
    /// Its requester id.
    pub source: Source,
    /// Where its interrupts go.
    pub interrupts: Arc<dyn Interrupts>,
    /// Where memory that programs can map comes from; `None` if no device here
    /// wants any.
    pub memory: Option<MakeMemory>,
    /// Where tap interfaces come from; `None` if no device here wants any.
    pub tap: Option<OpenTap>,
}

impl Slot {
    /// The plain memory of BAR `bar`, of `size` bytes.
    pub(crate) fn make_memory(
        &self,
        bar: u8,
        size: u64,
    ) -> Result<Arc<dyn SharedMemory>, BuildError> {
        let made = match &self.memory {
            Some(make) => make(bar, size),
            None => Err(std::io::ErrorKind::Unsupported.into()),
        };
        made.map_err(|error| BuildError::Memory { size, error })
    }
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No model has this name.
    #[error("unknown model {name:?}{}", suggestion(*nearest))]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// The name that was perhaps meant.
        nearest: Option<&'static str>,
    },
    /// The model has no such property.
    #[error("unknown property {name:?}{}", suggestion(*nearest))]
    UnknownProperty {
        /// The name given.
        name: String,
        /// The name that was perhaps meant.
        nearest: Option<&'static str>,
    },
    /// The property's value is of another kind.
    #[error("property {property:?} wants {wanted}")]
    Kind {
        /// The property.
        property: &'static str,
        /// What it wants, in words.
        wanted: &'static str,
    },
    /// The property's value is out of its range.
    #[error("property {property:?} is {value}: {rule}")]
    Range {
        /// The property.
        property: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// The model has no virtual functions.
    #[error("the model has no virtual functions")]
    NotVirtual,
    /// A file that a property names cannot be used.
    #[error("cannot use {path}: {error}")]
    File {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// There is no memory for a BAR.
    #[error("cannot make memory of {size:#x} bytes: {error}")]
    Memory {
        /// Bytes.
        size: u64,
        /// Why.
        error: std::io::Error,
    },
    /// The model's configuration space is impossible.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean {name:?}?"))
}

static MODELS: [Model; 4] = [edu::MODEL, ioat::MODEL, nvme::MODEL, virtio_net::MODEL];

/// All models, by name.
pub fn models() -> &'static [Model] {
    &MODELS
}

/// Makes a device of `model` for `slot`. Every property is checked, unknown
/// ones are errors.
pub fn build(
    model: &str,
    properties: &Properties,
    slot: Slot,
) -> Result<Arc<dyn Function>, BuildError> {
    let found = find(model)?;
    let checked = Checked::new(properties, found.properties)?;
    (found.build)(&checked, slot)
}

/// Makes a virtual function for `slot`, of a device of `model` that has these
/// properties.
pub fn build_virtual(
    model: &str,
    properties: &Properties,
    slot: Slot,
) -> Result<Arc<dyn Function>, BuildError> {
    let found = find(model)?;
    let build = found.build_virtual.ok_or(BuildError::NotVirtual)?;
    let checked = Checked::new(properties, found.properties)?;
    build(&checked, slot)
}

fn find(model: &str) -> Result<&'static Model, BuildError> {
    let found = models().iter().find(|known| known.name == model);
    found.ok_or_else(|| BuildError::UnknownModel {
        name: model.to_owned(),
        nearest: nearest(model, models().iter().map(|known| known.name)),
    })
}
