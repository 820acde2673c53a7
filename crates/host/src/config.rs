//! What a host consists of before any file is open.

use std::sync::Arc;

use iogate_dma::{Gate, Iova, Memory, Span};
use iogate_interrupt::Delivery;

use crate::{Device, Observer};

/// The kinds of reserved range. include/linux/iommu.h, enum iommu_resv_type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReservedKind {
    /// Mapped one to one at all times.
    Direct,
    /// Mapped one to one until a driver takes the device: not excluded from
    /// what user space may map.
    DirectRelaxable,
    /// Never to be used.
    Reserved,
    /// The hardware's window for interrupt messages.
    Msi,
    /// A window that software maps doorbells into.
    SoftwareMsi,
}

/// A reserved range of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Reserved {
    /// The bytes.
    pub span: Span,
    /// Why.
    pub kind: ReservedKind,
}

/// One IOMMU as its domains see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Iommu {
    /// Its index.
    pub index: usize,
    /// Highest address that a mapping may touch.
    pub aperture_last: Iova,
    /// Page sizes, one bit each; the lowest is the granule.
    pub page_sizes: u64,
    /// Reserved ranges, ascending.
    pub reserved: Vec<Reserved>,
    /// Whether it can force DMA to snoop caches.
    pub coherent: bool,
    /// Whether its page tables can record which pages were written.
    pub tracks_dirty: bool,
    /// Bits of a PASID that it tells apart, 0-20; 0: it takes no PASIDs.
    pub pasid_bits: u8,
}

/// One isolation group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupConfig {
    /// The N of `/dev/vfio/N`.
    pub number: u32,
    /// Whether no member is bound to a driver that does DMA on its own.
    pub viable: bool,
}

/// Whether RLIMIT_MEMLOCK is enforced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum MemlockMode {
    /// Pinned memory is not counted.
    #[default]
    Off,
    /// As the kernel does.
    Enforce,
}

/// What a host consists of.
pub struct HostConfig {
    /// The groups, bridges' groups included where they hold devices.
    pub groups: Vec<GroupConfig>,
    /// The functions bound to a VFIO driver, by index.
    pub devices: Vec<Arc<Device>>,
    /// Mappings a container may hold; the kernel's default is 65,535.
    pub dma_entry_limit: u32,
    /// Whether RLIMIT_MEMLOCK counts.
    pub memlock: MemlockMode,
    /// What pinned pages are addresses of.
    pub memory: Arc<dyn Memory>,
    /// Where workers pass.
    pub gate: Arc<Gate>,
    /// Where interrupts go.
    pub delivery: Arc<Delivery>,
    /// Who is told.
    pub observer: Arc<dyn Observer>,
}
