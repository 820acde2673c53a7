//! Calls on a device. Linux `drivers/vfio/vfio_main.c`,
//! `vfio_device_fops_unl_ioctl`, and `drivers/vfio/pci/vfio_pci_core.c`.

use iogate_host::{IoWrite, IrqIndex, Region, RegionCapability};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::{Argument, Chain, Placed};
use super::{Call, Fds, feature, irqs, number, reset, told, unknown};
use crate::region::{memory_offset, region_and_offset, region_offset};
use crate::{Answer, Errno, iommufd};

/// `struct vfio_device_info`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DeviceInfo {
    argsz: u32,
    flags: u32,
    num_regions: u32,
    num_irqs: u32,
    cap_offset: u32,
    pad: u32,
}

impl Argument for DeviceInfo {
    const MINIMUM: usize = 16;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// `struct vfio_region_info`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

impl Argument for RegionInfo {
    const MINIMUM: usize = 32;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// `struct vfio_irq_info`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct IrqInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    count: u32,
}

impl Argument for IrqInfo {
    const MINIMUM: usize = 16;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

/// `struct vfio_device_ioeventfd`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct IoEventfd {
    argsz: u32,
    flags: u32,
    offset: u64,
    data: u64,
    fd: i32,
    reserved: u32,
}

impl Argument for IoEventfd {
    const MINIMUM: usize = 32;
    fn argsz(&self) -> u32 {
        self.argsz
    }
}

mod flag {
    /// VFIO_DEVICE_FLAGS_*.
    pub(super) const RESET: u32 = 1;
    pub(super) const PCI: u32 = 2;
    /// VFIO_REGION_INFO_FLAG_*.
    pub(super) const READ: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const MMAP: u32 = 4;
    pub(super) const CAPS: u32 = 8;
    /// VFIO_IRQ_INFO_*.
    pub(super) const EVENTFD: u32 = 1;
    pub(super) const MASKABLE: u32 = 2;
    pub(super) const AUTOMASKED: u32 = 4;
    pub(super) const NORESIZE: u32 = 8;
    /// VFIO_DEVICE_IOEVENTFD_SIZE_MASK.
    pub(super) const SIZE_MASK: u32 = 15;
}

/// VFIO_REGION_INFO_CAP_*.
mod capability {
    pub(super) const SPARSE_MMAP: u16 = 1;
    pub(super) const TYPE: u16 = 2;
    pub(super) const MSIX_MAPPABLE: u16 = 3;
}

/// VFIO_PCI_NUM_REGIONS and VFIO_PCI_NUM_IRQS.
const REGIONS: u32 = 9;
const IRQS: u32 = 5;

/// One call on a device file. Until it gives access, everything but binding it
/// is EINVAL.
pub(crate) fn ioctl(call: &Call<'_>, command: u32) -> Result<Answer, Errno> {
    const GET_INFO: u32 = number(7);
    const GET_REGION_INFO: u32 = number(8);
    const GET_IRQ_INFO: u32 = number(9);
    const SET_IRQS: u32 = number(10);
    const RESET: u32 = number(11);
    const GET_PCI_HOT_RESET_INFO: u32 = number(12);
    const PCI_HOT_RESET: u32 = number(13);
    const IOEVENTFD: u32 = number(16);
    const FEATURE: u32 = number(17);
    const BIND_IOMMUFD: u32 = number(18);
    const ATTACH_IOMMUFD_PT: u32 = number(19);
    const DETACH_IOMMUFD_PT: u32 = number(20);
    let Call {
        host,
        file,
        argument,
        client,
    } = *call;
    if command == BIND_IOMMUFD {
        return iommufd::bind(host, file, argument, client);
    }
    let device = match host.device_access(file) {
        Ok(device) => device,
        Err(error) => return unknown(file, command, error.into()),
    };
    let is_emulated = host.device(device).is_ok_and(|one| one.is_emulated());
    match command {
        // Of PCI functions: drivers of mediated devices know none of these.
        GET_PCI_HOT_RESET_INFO | PCI_HOT_RESET | IOEVENTFD | FEATURE if is_emulated => {
            unknown(file, command, Errno::ENOTTY)
        }
        GET_INFO => get_info(call),
        GET_REGION_INFO => get_region_info(call, device),
        GET_IRQ_INFO => get_irq_info(call, device),
        SET_IRQS => irqs::set_irqs(call, device),
        RESET => reset::reset(call, device),
        GET_PCI_HOT_RESET_INFO => reset::get_hot_reset_info(call, device),
        PCI_HOT_RESET => reset::hot_reset(call, device),
        IOEVENTFD => ioeventfd(call, device),
        FEATURE => feature::feature(call, device),
        ATTACH_IOMMUFD_PT => iommufd::attach_pt(host, file, argument, client),
        DETACH_IOMMUFD_PT => iommufd::detach_pt(host, file, argument, client),
        _ => unknown(file, command, Errno::ENOTTY),
    }
}

/// VFIO_DEVICE_GET_INFO. `vfio_pci_ioctl_get_info`.
fn get_info(call: &Call<'_>) -> Result<Answer, Errno> {
    let run = || {
        let mut info: DeviceInfo = call.read()?;
        let room = usize::try_from(info.argsz).unwrap_or(usize::MAX);
        info.flags = flag::PCI | flag::RESET;
        info.num_regions = REGIONS;
        info.num_irqs = IRQS;
        call.write(&info, room)?;
        Ok(Answer::value(0))
    };
    told!("ioctl_device_get_info", call, run())
}

/// VFIO_DEVICE_GET_REGION_INFO. `vfio_pci_ioctl_get_region_info`.
fn get_region_info(call: &Call<'_>, device: usize) -> Result<Answer, Errno> {
    let mut info = RegionInfo::new_zeroed();
    let result = fill_region_info(call, device, &mut info);
    told!(
        "ioctl_device_get_region_info",
        call,
        result,
        index = info.index,
        size = format_args!("{:#x}", info.size),
    )
}

fn fill_region_info(
    call: &Call<'_>,
    device: usize,
    info: &mut RegionInfo,
) -> Result<Answer, Errno> {
    *info = call.read()?;
    let region = Region::from_index(info.index.into())?;
    let known = call.host.region_info(device, region)?;
    info.offset = match known.is_memory {
        true => memory_offset(info.index),
        false => region_offset(info.index),
    };
    info.size = known.size;
    info.flags = 0;
    for (has, flag) in [
        (known.readable, flag::READ),
        (known.writable, flag::WRITE),
        (known.mappable, flag::MMAP),
    ] {
        if has {
            info.flags |= flag;
        }
    }
    let chain = region_capabilities(&known.capabilities);
    if !chain.is_empty() {
        info.flags |= flag::CAPS;
        info.cap_offset = 0;
        match chain.write(call, info.argsz)? {
            Placed::At(offset) => info.cap_offset = offset,
            Placed::Needs(argsz) => info.argsz = argsz,
        }
    }
    call.write(info, RegionInfo::MINIMUM)?;
    Ok(Answer::value(0))
}

fn region_capabilities(capabilities: &[RegionCapability]) -> Chain {
    let mut chain = Chain::after(size_of::<RegionInfo>());
    for one in capabilities {
        match one {
            RegionCapability::SparseMmap(areas) => {
                let count = u32::try_from(areas.len()).unwrap_or(u32::MAX);
                let mut body = count.to_ne_bytes().to_vec();
                body.extend([0; 4]);
                for (offset, size) in areas {
                    body.extend(offset.to_ne_bytes());
                    body.extend(size.to_ne_bytes());
                }
                chain.add(capability::SPARSE_MMAP, 1, &body);
            }
            RegionCapability::Type { kind, subtype } => {
                chain.add(capability::TYPE, 1, [*kind, *subtype].as_bytes());
            }
            RegionCapability::MsixMappable => chain.add(capability::MSIX_MAPPABLE, 1, &[]),
        }
    }
    chain
}

/// VFIO_DEVICE_GET_IRQ_INFO. `vfio_pci_ioctl_get_irq_info`.
fn get_irq_info(call: &Call<'_>, device: usize) -> Result<Answer, Errno> {
    let mut info = IrqInfo::new_zeroed();
    let run = |info: &mut IrqInfo| {
        *info = call.read()?;
        let index = IrqIndex::from_index(info.index).ok_or(Errno::EINVAL)?;
        let known = call.host.irq_info(device, index)?;
        info.count = known.count;
        info.flags = flag::EVENTFD;
        if known.automasked {
            info.flags |= flag::MASKABLE | flag::AUTOMASKED;
        }
        if known.fixed {
            info.flags |= flag::NORESIZE;
        }
        call.write(info, IrqInfo::MINIMUM)?;
        Ok(Answer::value(0))
    };
    let result = run(&mut info);
    told!(
        "ioctl_device_get_irq_info",
        call,
        result,
        index = info.index,
        count = info.count,
    )
}

/// VFIO_DEVICE_IOEVENTFD. `vfio_pci_ioctl_ioeventfd`.
fn ioeventfd(call: &Call<'_>, device: usize) -> Result<Answer, Errno> {
    let mut body = IoEventfd::new_zeroed();
    let result = run_ioeventfd(call, device, &mut body);
    told!(
        "ioctl_device_ioeventfd",
        call,
        result,
        flags = body.flags,
        offset = format_args!("{:#x}", body.offset),
        data = format_args!("{:#x}", body.data),
    )
}

fn run_ioeventfd(call: &Call<'_>, device: usize, body: &mut IoEventfd) -> Result<Answer, Errno> {
    *body = call.read()?;
    let width = body.flags & flag::SIZE_MASK;
    if body.flags & !flag::SIZE_MASK != 0 || !width.is_power_of_two() || body.fd < -1 {
        return Err(Errno::EINVAL);
    }
    let (region, offset) = region_and_offset(body.offset)?;
    let Region::Bar(bar) = region else {
        return Err(Errno::EINVAL);
    };
    let [width, ..] = width.to_le_bytes();
    let write = IoWrite {
        bar,
        offset,
        width,
        data: body.data,
    };
    let set = call
        .host
        .set_ioeventfd(device, write, body.fd, &Fds(call.client));
    Ok(set?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(DeviceInfo, bindings::vfio_device_info, {
            argsz: argsz, flags: flags, num_regions: num_regions, num_irqs: num_irqs,
            cap_offset: cap_offset,
        });
        same_layout!(RegionInfo, bindings::vfio_region_info, {
            argsz: argsz, flags: flags, index: index, cap_offset: cap_offset, size: size,
            offset: offset,
        });
        same_layout!(IrqInfo, bindings::vfio_irq_info, {
            argsz: argsz, flags: flags, index: index, count: count,
        });
        same_layout!(IoEventfd, bindings::vfio_device_ioeventfd, {
            argsz: argsz, flags: flags, offset: offset, data: data, fd: fd, reserved: reserved,
        });
    }

    #[test]
    fn flags_and_numbers_are_the_kernels() {
        let pairs = [
            (flag::RESET, bindings::VFIO_DEVICE_FLAGS_RESET),
            (flag::PCI, bindings::VFIO_DEVICE_FLAGS_PCI),
            (flag::READ, bindings::VFIO_REGION_INFO_FLAG_READ),
            (flag::WRITE, bindings::VFIO_REGION_INFO_FLAG_WRITE),
            (flag::MMAP, bindings::VFIO_REGION_INFO_FLAG_MMAP),
            (flag::CAPS, bindings::VFIO_REGION_INFO_FLAG_CAPS),
            (flag::EVENTFD, bindings::VFIO_IRQ_INFO_EVENTFD),
            (flag::MASKABLE, bindings::VFIO_IRQ_INFO_MASKABLE),
            (flag::AUTOMASKED, bindings::VFIO_IRQ_INFO_AUTOMASKED),
            (flag::NORESIZE, bindings::VFIO_IRQ_INFO_NORESIZE),
            (flag::SIZE_MASK, bindings::VFIO_DEVICE_IOEVENTFD_SIZE_MASK),
            (REGIONS, bindings::VFIO_PCI_NUM_REGIONS),
            (IRQS, bindings::VFIO_PCI_NUM_IRQS),
            (
                capability::SPARSE_MMAP.into(),
                bindings::VFIO_REGION_INFO_CAP_SPARSE_MMAP,
            ),
            (capability::TYPE.into(), bindings::VFIO_REGION_INFO_CAP_TYPE),
            (
                capability::MSIX_MAPPABLE.into(),
                bindings::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
            ),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn region_capabilities_have_the_kernels_sizes() {
        let sparse = RegionCapability::SparseMmap(vec![(0, 0x1000), (0x2000, 0x1000)]);
        let kind = RegionCapability::Type {
            kind: 1,
            subtype: 2,
        };
        let size = |one: RegionCapability| region_capabilities(&[one]).length();
        let areas = 2 * size_of::<bindings::vfio_region_sparse_mmap_area>();
        assert_eq!(
            size(sparse),
            size_of::<bindings::vfio_region_info_cap_sparse_mmap>() + areas
        );
        assert_eq!(size(kind), size_of::<bindings::vfio_region_info_cap_type>());
        assert_eq!(
            size(RegionCapability::MsixMappable),
            size_of::<bindings::vfio_info_cap_header>()
        );
    }
}
