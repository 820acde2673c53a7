//! Who is told what happens to address spaces.

use iogate_dma::{Rights, Source, Span};

use crate::Actor;

/// A number for an address space, unique in a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SpaceId(pub u64);

/// The call that made a change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Via {
    /// VFIO_IOMMU_MAP_DMA.
    MapDma,
    /// VFIO_IOMMU_UNMAP_DMA.
    UnmapDma,
    /// IOMMU_IOAS_MAP.
    IoasMap,
    /// IOMMU_IOAS_MAP_FILE.
    IoasMapFile,
    /// IOMMU_IOAS_COPY.
    IoasCopy,
    /// IOMMU_IOAS_UNMAP.
    IoasUnmap,
    /// The last user of the address space went.
    Release,
    /// The client took its memory away (munmap and the like).
    ClientUnmap,
}

impl Via {
    /// The short name that reports show.
    pub fn name(self) -> &'static str {
        match self {
            Self::MapDma => "MAP_DMA",
            Self::UnmapDma => "UNMAP_DMA",
            Self::IoasMap => "IOAS_MAP",
            Self::IoasMapFile => "IOAS_MAP_FILE",
            Self::IoasCopy => "IOAS_COPY",
            Self::IoasUnmap => "IOAS_UNMAP",
            Self::Release => "release",
            Self::ClientUnmap => "munmap",
        }
    }
}

/// Who is told what happens to address spaces, in the order in which it
/// happens. Called with the object model locked: must not call back into it.
pub trait Observer: Send + Sync {
    /// `span` became a mapping.
    fn mapped(&self, space: SpaceId, span: Span, rights: Rights, via: Via, by: Option<Actor>);

    /// The mapping of exactly `span` went.
    fn unmapped(&self, space: SpaceId, span: Span, via: Via, by: Option<Actor>);

    /// The memory behind `span` went, the mapping stands.
    fn revoked(&self, space: SpaceId, span: Span, by: Option<Actor>);

    /// `source` makes its requests in `space` now, or in none.
    fn attached(&self, source: Source, space: Option<SpaceId>);
}
