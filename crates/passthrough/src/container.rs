//! `/dev/vfio/vfio` with the type 1 IOMMU.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use iogate_dma::{Iova, Rights, Span};

use crate::Buffer;
use crate::call::{self, Argument};

const GET_API_VERSION: u8 = 100;
const CHECK_EXTENSION: u8 = 101;
const SET_IOMMU: u8 = 102;
const IOMMU_GET_INFO: u8 = 112;
const IOMMU_MAP_DMA: u8 = 113;
const IOMMU_UNMAP_DMA: u8 = 114;

/// VFIO_TYPE1v2_IOMMU.
pub const TYPE1V2: u32 = 3;

/// An open container.
pub struct Container(File);

/// What VFIO_IOMMU_GET_INFO says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IommuInfo {
    /// Supported page sizes, one bit each; 0 if not told.
    pub page_sizes: u64,
    /// IOVA ranges that may be mapped; empty if not told.
    pub ranges: Vec<Span>,
    /// Mappings that may still be made, if told.
    pub mappings_left: Option<u32>,
    /// Page sizes of dirty tracking and the largest bitmap, if offered.
    pub dirty_tracking: Option<(u64, u64)>,
}

impl Container {
    /// Opens `/dev/vfio/vfio`.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/vfio/vfio")?;
        Ok(Self(file))
    }

    /// VFIO_GET_API_VERSION: 0 is the only one so far.
    pub fn api_version(&self) -> io::Result<u32> {
        call::with_number(self.as_fd(), GET_API_VERSION, 0)
    }

    /// VFIO_CHECK_EXTENSION.
    pub fn has_extension(&self, extension: u32) -> io::Result<bool> {
        Ok(call::with_number(self.as_fd(), CHECK_EXTENSION, extension)? > 0)
    }

    /// VFIO_SET_IOMMU.
    pub fn set_iommu(&self, kind: u32) -> io::Result<()> {
        call::with_number(self.as_fd(), SET_IOMMU, kind).map(drop)
    }

    /// VFIO_IOMMU_GET_INFO with its capabilities.
    pub fn info(&self) -> io::Result<IommuInfo> {
        const HAS_PAGE_SIZES: u32 = 1;
        const HAS_CAPABILITIES: u32 = 2;
        let answer = Argument::new(24).call_growing(self.as_fd(), IOMMU_GET_INFO)?;
        let flags = answer.get_u32(4);
        let mut info = IommuInfo::default();
        if flags & HAS_PAGE_SIZES != 0 {
            info.page_sizes = answer.get_u64(8);
        }
        if flags & HAS_CAPABILITIES != 0 {
            for (id, at) in answer.capabilities(answer.get_u32(16)) {
                match id {
                    1 => info.ranges = ranges(&answer, at),
                    2 => {
                        let (sizes, most) = (answer.get_u64(at + 16), answer.get_u64(at + 24));
                        info.dirty_tracking = Some((sizes, most));
                    }
                    3 => info.mappings_left = Some(answer.get_u32(at + 8)),
                    _ => {}
                }
            }
        }
        Ok(info)
    }

    /// VFIO_IOMMU_MAP_DMA of the whole buffer.
    pub fn map(&self, iova: Iova, buffer: &Buffer, rights: Rights) -> io::Result<()> {
        Argument::new(32)
            .u32(4, u32::from(rights.bits()))
            .u64(8, buffer.address())
            .u64(16, iova.0)
            .u64(24, buffer.length() as u64)
            .call(self.as_fd(), IOMMU_MAP_DMA)
            .map(drop)
    }

    /// VFIO_IOMMU_UNMAP_DMA; returns the bytes that were unmapped.
    pub fn unmap(&self, iova: Iova, length: u64) -> io::Result<u64> {
        let mut argument = Argument::new(24).u64(8, iova.0).u64(16, length);
        argument.call(self.as_fd(), IOMMU_UNMAP_DMA)?;
        Ok(argument.get_u64(16))
    }
}

fn ranges(answer: &Argument, at: usize) -> Vec<Span> {
    const SANE: u32 = 4096;
    let count = answer.get_u32(at + 8).min(SANE) as usize;
    (0..count)
        .map(|n| at + 16 + 16 * n)
        .filter_map(|at| Span::new(Iova(answer.get_u64(at)), Iova(answer.get_u64(at + 8))))
        .collect()
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
