//! Device files, by group or by `/dev/vfio/devices/vfioN`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use iogate_dma::{Iova, Span};

use crate::Iommufd;
use crate::call::{self, Argument};

const GET_INFO: u8 = 107;
const GET_REGION_INFO: u8 = 108;
const GET_IRQ_INFO: u8 = 109;
const SET_IRQS: u8 = 110;
const RESET: u8 = 111;
const BIND_IOMMUFD: u8 = 118;
const ATTACH_IOMMUFD_PT: u8 = 119;
const DETACH_IOMMUFD_PT: u8 = 120;

/// The region index of config space. VFIO_PCI_CONFIG_REGION_INDEX.
pub const CONFIG_REGION: u32 = 7;

/// An open device file.
pub struct Device(File);

/// What VFIO_DEVICE_GET_INFO says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// VFIO_DEVICE_RESET is supported.
    pub resets: bool,
    /// It is a PCI device.
    pub is_pci: bool,
    /// Number of regions.
    pub regions: u32,
    /// Number of interrupt indices.
    pub interrupts: u32,
}

/// What VFIO_DEVICE_GET_REGION_INFO says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region {
    /// Reads are possible.
    pub readable: bool,
    /// Writes are possible.
    pub writable: bool,
    /// mmap is possible, at least of a part.
    pub mappable: bool,
    /// Bytes; 0 where the region does not exist.
    pub size: u64,
    /// Where it starts in the device file.
    pub offset: u64,
    /// The parts that can be mapped, if not all (offsets in the region).
    pub areas: Vec<Span>,
    /// The MSI-X table may be inside a mapping.
    pub msix_mappable: bool,
}

/// What VFIO_DEVICE_GET_IRQ_INFO says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt {
    /// Can signal an eventfd.
    pub eventfd: bool,
    /// Can be masked and unmasked.
    pub maskable: bool,
    /// Is masked each time that it fires.
    pub automasked: bool,
    /// Vectors must be set up all at once.
    pub fixed_size: bool,
    /// Number of vectors.
    pub count: u32,
}

impl From<OwnedFd> for Device {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl Device {
    /// Opens `/dev/vfio/devices/vfioNUMBER`; it answers nothing before
    /// [`bind`](Self::bind).
    pub fn open_cdev(number: u32) -> io::Result<Self> {
        let path = format!("/dev/vfio/devices/vfio{number}");
        Ok(Self(OpenOptions::new().read(true).write(true).open(path)?))
    }

    /// VFIO_DEVICE_BIND_IOMMUFD; returns the id of the device object. On real
    /// hardware this resets the function.
    pub fn bind(&self, iommufd: &Iommufd) -> io::Result<u32> {
        let raw = u32::try_from(iommufd.as_fd().as_raw_fd()).map_err(io::Error::other)?;
        let mut argument = Argument::new(16).u32(8, raw);
        argument.call(self.as_fd(), BIND_IOMMUFD)?;
        Ok(argument.get_u32(12))
    }

    /// VFIO_DEVICE_ATTACH_IOMMUFD_PT; returns the id of the page table used.
    pub fn attach(&self, object: u32) -> io::Result<u32> {
        let mut argument = Argument::new(12).u32(8, object);
        argument.call(self.as_fd(), ATTACH_IOMMUFD_PT)?;
        Ok(argument.get_u32(8))
    }

    /// VFIO_DEVICE_DETACH_IOMMUFD_PT.
    pub fn detach(&self) -> io::Result<()> {
        Argument::new(8)
            .call(self.as_fd(), DETACH_IOMMUFD_PT)
            .map(drop)
    }

    /// VFIO_DEVICE_GET_INFO.
    pub fn info(&self) -> io::Result<DeviceInfo> {
        let answer = Argument::new(24).call_growing(self.as_fd(), GET_INFO)?;
        let flags = answer.get_u32(4);
        Ok(DeviceInfo {
            resets: flags & 1 != 0,
            is_pci: flags & 2 != 0,
            regions: answer.get_u32(8),
            interrupts: answer.get_u32(12),
        })
    }

    /// VFIO_DEVICE_GET_REGION_INFO.
    pub fn region(&self, index: u32) -> io::Result<Region> {
        const HAS_CAPABILITIES: u32 = 8;
        let answer = Argument::new(32)
            .u32(8, index)
            .call_growing(self.as_fd(), GET_REGION_INFO)?;
        let flags = answer.get_u32(4);
        let mut region = Region {
            readable: flags & 1 != 0,
            writable: flags & 2 != 0,
            mappable: flags & 4 != 0,
            size: answer.get_u64(16),
            offset: answer.get_u64(24),
            areas: Vec::new(),
            msix_mappable: false,
        };
        if flags & HAS_CAPABILITIES != 0 {
            for (id, at) in answer.capabilities(answer.get_u32(12)) {
                match id {
                    1 => region.areas = areas(&answer, at),
                    3 => region.msix_mappable = true,
                    _ => {}
                }
            }
        }
        Ok(region)
    }

    /// VFIO_DEVICE_GET_IRQ_INFO.
    pub fn interrupt(&self, index: u32) -> io::Result<Interrupt> {
        let mut argument = Argument::new(16).u32(8, index);
        argument.call(self.as_fd(), GET_IRQ_INFO)?;
        let flags = argument.get_u32(4);
        Ok(Interrupt {
            eventfd: flags & 1 != 0,
            maskable: flags & 2 != 0,
            automasked: flags & 4 != 0,
            fixed_size: flags & 8 != 0,
            count: argument.get_u32(12),
        })
    }

    /// VFIO_DEVICE_SET_IRQS: vectors `0..` of `index` signal `eventfds`.
    pub fn set_interrupts(&self, index: u32, eventfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        const EVENTFD_TRIGGER: u32 = 1 << 2 | 1 << 5;
        let count = u32::try_from(eventfds.len()).map_err(io::Error::other)?;
        let mut argument = Argument::new(20 + 4 * eventfds.len())
            .u32(4, EVENTFD_TRIGGER)
            .u32(8, index)
            .u32(16, count);
        for (n, fd) in eventfds.iter().enumerate() {
            argument = argument.u32(20 + 4 * n, fd.as_raw_fd().cast_unsigned());
        }
        argument.call(self.as_fd(), SET_IRQS).map(drop)
    }

    /// VFIO_DEVICE_SET_IRQS: all vectors of `index` off.
    pub fn disable_interrupts(&self, index: u32) -> io::Result<()> {
        const NONE_TRIGGER: u32 = 1 | 1 << 5;
        Argument::new(20)
            .u32(4, NONE_TRIGGER)
            .u32(8, index)
            .call(self.as_fd(), SET_IRQS)
            .map(drop)
    }

    /// VFIO_DEVICE_RESET.
    pub fn reset(&self) -> io::Result<()> {
        call::with_number(self.as_fd(), RESET, 0).map(drop)
    }

    /// Reads at `offset` of `region`; a short answer is an error.
    pub fn read(&self, region: &Region, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0
            .read_exact_at(into, region.offset.saturating_add(offset))
    }

    /// Writes at `offset` of `region`; a short answer is an error.
    pub fn write(&self, region: &Region, offset: u64, from: &[u8]) -> io::Result<()> {
        self.0
            .write_all_at(from, region.offset.saturating_add(offset))
    }
}

fn areas(answer: &Argument, at: usize) -> Vec<Span> {
    const SANE: u32 = 4096;
    let count = answer.get_u32(at + 8).min(SANE) as usize;
    (0..count)
        .map(|n| at + 16 + 16 * n)
        .filter_map(|at| Span::with_length(Iova(answer.get_u64(at)), answer.get_u64(at + 8)))
        .collect()
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
