//! The unit in front of a device, as page tables are made for it.

use std::sync::Arc;

use iogate_dma::{Iova, Span};

use super::PAGE_SIZE;
use crate::{Error, Iommu};

/// What a unit can beyond plain translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// Page tables that record which pages were written.
    pub tracks_dirty: bool,
    /// Page tables that others are put on top of.
    pub nests: bool,
    /// Page tables that a device's processes share.
    pub takes_pasids: bool,
    /// The kind of description that page tables may be made from, besides none;
    /// `enum iommu_hwpt_data_type`.
    pub data_kind: u32,
    /// Bits of a PASID that the device sends; 0: none.
    pub pasid_bits: u8,
    /// Whether the device asks for pages that are missing (PRI).
    pub asks_for_pages: bool,
}

/// What a unit says of itself in IOMMU_GET_HW_INFO.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UnitData {
    /// `enum iommu_hw_info_type`; 0: none.
    pub kind: u32,
    /// The structure of that kind.
    pub bytes: Vec<u8>,
}

/// How page tables are made from a description that a program gives.
#[derive(Clone, Copy, Debug)]
pub struct Describe {
    /// Bytes of a description, at least and at most: else EINVAL.
    pub length: (u32, u32),
    /// What a page table that is made from a description, or from none, is
    /// like: what it reaches and its page sizes.
    pub table: fn(&Unit, &[u8]) -> Result<Unit, Error>,
}

/// The unit in front of a device, or what a page table of it is like.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The unit.
    pub iommu: Arc<Iommu>,
    /// Lowest address that a mapping may touch.
    pub aperture_first: Iova,
    /// What it can.
    pub features: Features,
    /// What it says of itself.
    pub data: UnitData,
    /// Bytes of the pages by which writes are recorded; `None`: the smallest.
    pub dirty_page: Option<u64>,
    /// How page tables are made other than plainly.
    pub describe: Option<Describe>,
}

impl Unit {
    /// The unit of a device of the machine.
    pub fn plain(iommu: &Arc<Iommu>) -> Self {
        Self {
            iommu: Arc::clone(iommu),
            aperture_first: Iova(0),
            features: Features {
                tracks_dirty: iommu.tracks_dirty,
                takes_pasids: iommu.pasid_bits != 0,
                ..Features::default()
            },
            data: UnitData::default(),
            dirty_page: None,
            describe: None,
        }
    }

    /// What a page table that is made from `description`, empty for none, is
    /// like.
    pub(super) fn table(self: &Arc<Self>, description: &[u8]) -> Result<Arc<Self>, Error> {
        match &self.describe {
            None => Ok(Arc::clone(self)),
            Some(describe) => (describe.table)(self, description).map(Arc::new),
        }
    }

    /// Bytes of the pages by which writes are recorded.
    pub(super) fn dirty_page(&self) -> u64 {
        self.dirty_page.unwrap_or_else(|| self.granule())
    }

    /// The smallest page, in bytes.
    pub(super) fn granule(&self) -> u64 {
        match self.iommu.page_sizes {
            0 => PAGE_SIZE,
            sizes => sizes & sizes.wrapping_neg(),
        }
    }

    /// What no mapping may touch.
    pub(super) fn out_of_reach(&self) -> impl Iterator<Item = Span> + use<> {
        let below = self.aperture_first.0.checked_sub(1);
        let below = below.and_then(|last| Span::new(Iova(0), Iova(last)));
        let above = self.iommu.aperture_last.checked_add(1);
        let above = above.and_then(|first| Span::new(first, Iova(u64::MAX)));
        below.into_iter().chain(above)
    }

    /// Whether it can use whatever page table was made for `other`.
    pub(super) fn reaches(&self, other: &Self) -> bool {
        self.aperture_first <= other.aperture_first
            && self.iommu.aperture_last >= other.iommu.aperture_last
            && other.iommu.page_sizes & !self.iommu.page_sizes == 0
    }
}
