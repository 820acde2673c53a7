//! What a device is asked about itself. Linux
//! `drivers/vfio/pci/vfio_pci_core.c`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use iogate_dma::Span;
use iogate_interrupt::Signal;
use iogate_pci::BarSpace;

use crate::slot::LowPower;
use crate::{Error, Host, IrqIndex, Region, Retired};

/// What VFIO_DEVICE_GET_REGION_INFO says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RegionInfo {
    /// Bytes; 0 for a region that the device does not have.
    pub size: u64,
    /// It can be read.
    pub readable: bool,
    /// It can be written.
    pub writable: bool,
    /// It can be mapped.
    pub mappable: bool,
    /// It is plain memory, which a mapping is of: nothing executes the
    /// accesses.
    pub is_memory: bool,
    /// More about it.
    pub capabilities: Vec<RegionCapability>,
}

/// More about a region. include/uapi/linux/vfio.h, VFIO_REGION_INFO_CAP_*.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RegionCapability {
    /// Only these parts can be mapped: offset and size.
    SparseMmap(Vec<(u64, u64)>),
    /// A region of a device's own.
    Type {
        /// What it is.
        kind: u32,
        /// Which of those.
        subtype: u32,
    },
    /// The part with the MSI-X table can be mapped too.
    MsixMappable,
}

/// What VFIO_DEVICE_GET_IRQ_INFO says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IrqInfo {
    /// How many there are.
    pub count: u32,
    /// They can be masked, and are when they fire.
    pub automasked: bool,
    /// Vectors cannot be added without disabling all.
    pub fixed: bool,
}

/// Bytes of a page: what is smaller cannot be mapped alone.
const PAGE: u64 = 4096;

impl Host {
    /// Lets programs map the device's registers in memory, too. Whoever runs
    /// them answers for it that each access is executed on the device.
    pub fn map_registers(&self, device: usize) -> Result<(), Error> {
        let slot = self.slot(device)?;
        slot.maps_registers.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether programs may map the registers of any device.
    pub fn maps_registers(&self) -> bool {
        let mut slots = self.slots.iter();
        slots.any(|slot| slot.maps_registers.load(Ordering::SeqCst))
    }

    /// VFIO_DEVICE_GET_REGION_INFO. EINVAL for VGA ranges, which ours lack.
    /// `vfio_pci_ioctl_get_region_info`.
    pub fn region_info(&self, device: usize, region: Region) -> Result<RegionInfo, Error> {
        let slot = self.slot(device)?;
        Ok(match region {
            Region::Bar(index) => match slot.endpoint().bar(index) {
                None => RegionInfo::default(),
                Some(bar) => {
                    let registers =
                        bar.space == BarSpace::Memory && slot.maps_registers.load(Ordering::SeqCst);
                    let mappable = (bar.mappable || registers) && bar.size >= PAGE;
                    let msix = mappable && slot.capabilities.has_msix_table(index);
                    RegionInfo {
                        size: bar.size,
                        readable: true,
                        writable: true,
                        mappable,
                        is_memory: slot.endpoint().bar_memory(index).is_some(),
                        capabilities: msix
                            .then_some(RegionCapability::MsixMappable)
                            .into_iter()
                            .collect(),
                    }
                }
            },
            Region::Config => RegionInfo {
                size: slot.capabilities.config_size,
                readable: true,
                writable: true,
                ..RegionInfo::default()
            },
            Region::Rom => RegionInfo::default(),
            Region::Vga => return Err(Error::invalid("the device has no VGA ranges")),
        })
    }

    /// VFIO_DEVICE_GET_IRQ_INFO. EINVAL for errors of a device that is not PCI
    /// Express. `vfio_pci_ioctl_get_irq_info`.
    pub fn irq_info(&self, device: usize, index: IrqIndex) -> Result<IrqInfo, Error> {
        let slot = self.slot(device)?;
        if index == IrqIndex::Error && slot.capabilities.express.is_none() {
            return Err(Error::invalid("the device is not PCI Express"));
        }
        Ok(IrqInfo {
            count: self.irq_count(device, index)?,
            automasked: index == IrqIndex::Intx,
            fixed: !matches!(index, IrqIndex::Intx | IrqIndex::Msix),
        })
    }

    /// Whether `length` bytes at `offset` of a region may be mapped: EINVAL
    /// for anything but a mappable BAR's own bytes. `vfio_pci_core_mmap`.
    pub fn check_mmap(
        &self,
        device: usize,
        region: Region,
        offset: u64,
        length: u64,
    ) -> Result<(), Error> {
        let info = match region {
            Region::Bar(_) => self.region_info(device, region)?,
            _ => return Err(Error::invalid("only BARs can be mapped")),
        };
        if !info.mappable {
            return Err(Error::invalid("the BAR cannot be mapped"));
        }
        let span = Span::with_length(iogate_dma::Iova(offset), length);
        match span.is_some_and(|span| span.last().0 < info.size) {
            true => Ok(()),
            false => Err(Error::invalid("past the end of the BAR")),
        }
    }

    /// VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: EINVAL if it is in force. The parts
    /// of BARs that the device gave out are taken back.
    /// `vfio_pci_runtime_pm_entry`.
    pub fn enter_low_power(
        &self,
        device: usize,
        wakeup: Option<Arc<dyn Signal>>,
    ) -> Result<Retired, Error> {
        let slot = self.slot(device)?;
        let mut state = slot.lock();
        if state.low_power.is_some() {
            return Err(Error::invalid("the device is in low power already"));
        }
        state.low_power = Some(LowPower { wakeup });
        slot.settle_power(&state);
        drop(state);
        let mut retired = Retired::default();
        self.look_at_exports(&mut retired);
        Ok(retired)
    }

    /// VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: the device gives out its BARs again.
    /// `vfio_pci_runtime_pm_exit`.
    pub fn leave_low_power(&self, device: usize) -> Result<Retired, Error> {
        let slot = self.slot(device)?;
        let mut state = slot.lock();
        state.low_power = None;
        slot.settle_power(&state);
        drop(state);
        let mut retired = Retired::default();
        self.look_at_exports(&mut retired);
        Ok(retired)
    }
}
