//! `/dev/iommu` and its address spaces.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use iogate_dma::{Iova, Rights, Span};

use crate::Buffer;
use crate::call::Argument;

const DESTROY: u8 = 0x80;
const IOAS_ALLOC: u8 = 0x81;
const IOAS_IOVA_RANGES: u8 = 0x84;
const IOAS_MAP: u8 = 0x85;
const IOAS_UNMAP: u8 = 0x86;

/// An open iommufd context.
pub struct Iommufd(File);

impl Iommufd {
    /// Opens `/dev/iommu`.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/iommu")?;
        Ok(Self(file))
    }

    /// IOMMU_IOAS_ALLOC; returns the id of the address space.
    pub fn allocate_ioas(&self) -> io::Result<u32> {
        let mut argument = Argument::new(12);
        argument.call(self.as_fd(), IOAS_ALLOC)?;
        Ok(argument.get_u32(8))
    }

    /// IOMMU_DESTROY.
    pub fn destroy(&self, object: u32) -> io::Result<()> {
        Argument::new(8)
            .u32(4, object)
            .call(self.as_fd(), DESTROY)
            .map(drop)
    }

    /// IOMMU_IOAS_IOVA_RANGES: what may be mapped, and the alignment of
    /// addresses and lengths.
    pub fn iova_ranges(&self, ioas: u32) -> io::Result<(Vec<Span>, u64)> {
        const ROOM: usize = 256;
        let mut pairs = vec![[0_u64; 2]; ROOM];
        let mut argument = Argument::new(32)
            .u32(4, ioas)
            .u32(8, ROOM as u32)
            .u64(16, pairs.as_mut_ptr().expose_provenance() as u64);
        argument.call(self.as_fd(), IOAS_IOVA_RANGES)?;
        let count = argument.get_u32(8) as usize;
        let ranges = pairs
            .iter()
            .take(count)
            .filter_map(|[first, last]| Span::new(Iova(*first), Iova(*last)))
            .collect();
        Ok((ranges, argument.get_u64(24)))
    }

    /// IOMMU_IOAS_MAP of the whole buffer at a fixed address.
    pub fn map(&self, ioas: u32, iova: Iova, buffer: &Buffer, rights: Rights) -> io::Result<()> {
        const FIXED: u32 = 1;
        let writeable = u32::from(rights.can_write()) << 1;
        let readable = u32::from(rights.can_read()) << 2;
        Argument::new(40)
            .u32(4, FIXED | writeable | readable)
            .u32(8, ioas)
            .u64(16, buffer.address())
            .u64(24, buffer.length() as u64)
            .u64(32, iova.0)
            .call(self.as_fd(), IOAS_MAP)
            .map(drop)
    }

    /// IOMMU_IOAS_UNMAP; returns the bytes that were unmapped.
    pub fn unmap(&self, ioas: u32, iova: Iova, length: u64) -> io::Result<u64> {
        let mut argument = Argument::new(24)
            .u32(4, ioas)
            .u64(8, iova.0)
            .u64(16, length);
        argument.call(self.as_fd(), IOAS_UNMAP)?;
        Ok(argument.get_u64(16))
    }
}

impl AsFd for Iommufd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
