//! Opening every assignable function, by group and by cdev.

use std::io;

use iogate_passthrough::container::TYPE1V2;
use iogate_passthrough::device::CONFIG_REGION;
use iogate_passthrough::{Container, Device, Group, IommuInfo, Iommufd};

use super::exercise::{self, Dma};
use super::facts::{Facts, Function, Opened};

/// Opens each assignable function, reads what it says of itself, and drives it
/// if asked to.
pub(super) fn all(facts: &mut Facts, exercise: bool) {
    for function in facts.functions.iter_mut().filter(|f| f.is_assignable()) {
        if let Err((step, error)) = by_group(function, exercise) {
            function.problem(format!("by group: {step}: {error}"), remedy(&error));
        }
        if function.cdev.is_some()
            && let Err((step, error)) = by_cdev(function, exercise)
        {
            function.problem(format!("by cdev: {step}: {error}"), remedy(&error));
        }
    }
}

type Failed = (String, io::Error);

fn step(name: impl Into<String>) -> impl FnOnce(io::Error) -> Failed {
    |error| (name.into(), error)
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "give the user access to the device node (a udev rule, or chown), or run as root"
        }
        io::ErrorKind::ResourceBusy => "end the program that has the group or the device open",
        io::ErrorKind::NotFound => "load the module: vfio-pci, vfio_iommu_type1 or iommufd",
        io::ErrorKind::OutOfMemory => "raise RLIMIT_MEMLOCK (ulimit -l)",
        _ => "see the kernel's log",
    }
}

fn by_group(function: &mut Function, exercise: bool) -> Result<(), Failed> {
    let Some(number) = function.group else {
        return Ok(());
    };
    let container = Container::open().map_err(step("open /dev/vfio/vfio"))?;
    let group = Group::open(number).map_err(step(format!("open /dev/vfio/{number}")))?;
    let status = group.status().map_err(step("VFIO_GROUP_GET_STATUS"))?;
    if !status.viable {
        return Ok(());
    }
    group
        .set_container(&container)
        .map_err(step("VFIO_GROUP_SET_CONTAINER"))?;
    container
        .set_iommu(TYPE1V2)
        .map_err(step("VFIO_SET_IOMMU"))?;
    let iommu = container.info().map_err(step("VFIO_IOMMU_GET_INFO"))?;
    let device = group
        .device(&function.source.to_string())
        .map_err(step("VFIO_GROUP_GET_DEVICE_FD"))?;
    let opened = describe(&device, iommu)?;
    if exercise {
        let dma = Dma::Container(&container);
        exercise::device(function, &device, &opened, &dma, "group")?;
    }
    function.by_group = Some(opened);
    Ok(())
}

fn by_cdev(function: &mut Function, exercise: bool) -> Result<(), Failed> {
    let Some(number) = function.cdev else {
        return Ok(());
    };
    let iommufd = Iommufd::open().map_err(step("open /dev/iommu"))?;
    let device =
        Device::open_cdev(number).map_err(step(format!("open /dev/vfio/devices/vfio{number}")))?;
    device
        .bind(&iommufd)
        .map_err(step("VFIO_DEVICE_BIND_IOMMUFD"))?;
    let ioas = iommufd.allocate_ioas().map_err(step("IOMMU_IOAS_ALLOC"))?;
    device
        .attach(ioas)
        .map_err(step("VFIO_DEVICE_ATTACH_IOMMUFD_PT"))?;
    let (ranges, alignment) = iommufd
        .iova_ranges(ioas)
        .map_err(step("IOMMU_IOAS_IOVA_RANGES"))?;
    let iommu = IommuInfo {
        page_sizes: alignment,
        ranges,
        ..IommuInfo::default()
    };
    let opened = describe(&device, iommu)?;
    if exercise {
        let dma = Dma::Ioas(&iommufd, ioas);
        exercise::device(function, &device, &opened, &dma, "cdev")?;
    }
    function.by_cdev = Some(opened);
    device
        .detach()
        .map_err(step("VFIO_DEVICE_DETACH_IOMMUFD_PT"))?;
    iommufd.destroy(ioas).map_err(step("IOMMU_DESTROY"))
}

fn describe(device: &Device, iommu: IommuInfo) -> Result<Opened, Failed> {
    const SANE: u32 = 64;
    let info = device.info().map_err(step("VFIO_DEVICE_GET_INFO"))?;
    let mut opened = Opened {
        info: Some(info),
        iommu,
        ..Opened::default()
    };
    for index in 0..info.regions.min(SANE) {
        // Regions that a function does not have may be refused.
        if let Ok(region) = device.region(index)
            && region.size > 0
        {
            opened.regions.push((index, region));
        }
    }
    for index in 0..info.interrupts.min(SANE) {
        if let Ok(interrupt) = device.interrupt(index)
            && interrupt.count > 0
        {
            opened.interrupts.push((index, interrupt));
        }
    }
    if let Some((_, config)) = opened.regions.iter().find(|(n, _)| *n == CONFIG_REGION) {
        opened.capabilities = capabilities(device, config).map_err(step("read of config space"))?;
    }
    Ok(opened)
}

/// The capability lists of config space, by name. PCI Local Bus 3.0 section
/// 6.7, PCI Express Base 6.0 section 7.6.
fn capabilities(device: &Device, config: &iogate_passthrough::Region) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let byte = |offset: u64| -> io::Result<u8> {
        let mut byte = [0];
        device.read(config, offset, &mut byte)?;
        Ok(byte[0])
    };
    let mut at = u64::from(byte(0x34)? & !3);
    for _ in 0..48 {
        if at < 0x40 {
            break;
        }
        found.push(match byte(at)? {
            0x01 => "power management".to_owned(),
            0x05 => "MSI".to_owned(),
            0x09 => "vendor-specific".to_owned(),
            0x10 => "PCI Express".to_owned(),
            0x11 => "MSI-X".to_owned(),
            id => format!("capability {id:#04x}"),
        });
        at = u64::from(byte(at + 1)? & !3);
    }
    let mut at = 0x100;
    for _ in 0..960 {
        if at < 0x100 || at + 4 > config.size {
            break;
        }
        let mut header = [0; 4];
        device.read(config, at, &mut header)?;
        let header = u32::from_le_bytes(header);
        match header & 0xffff {
            0 | 0xffff => break,
            0x0001 => found.push("AER".to_owned()),
            0x000d => found.push("ACS".to_owned()),
            0x000e => found.push("ARI".to_owned()),
            0x000f => found.push("ATS".to_owned()),
            0x0010 => found.push("SR-IOV".to_owned()),
            0x001b => found.push("PASID".to_owned()),
            id => found.push(format!("extended capability {id:#06x}")),
        }
        at = u64::from(header >> 20);
    }
    Ok(found)
}
