//! Drives edu and nvme through the `vfio-ioctls` crate, by either of its back ends, `type1v2` (container and group) or
//! `iommufd` (the device's own node), and in the modes that are opened without it.

mod container;

use std::alloc::Layout;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use container::{Container, Opened};
use iommufd_ioctls::IommuFd;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX as BAR0, VFIO_PCI_CONFIG_REGION_INDEX as CONFIG,
    VFIO_PCI_INTX_IRQ_INDEX as INTX, VFIO_PCI_MSI_IRQ_INDEX as MSI,
    VFIO_PCI_MSIX_IRQ_INDEX as MSIX,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioIommufd, VfioOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const PAGE: usize = 4096;
/// edu reaches 28 bits of address.
const IOVA: u64 = 0x10_0000;

/// edu's registers and commands.
mod edu {
    pub(crate) const LIVENESS: u64 = 0x04;
    pub(crate) const IRQ_RAISE: u64 = 0x60;
    pub(crate) const IRQ_ACK: u64 = 0x64;
    pub(crate) const DMA_SOURCE: u64 = 0x80;
    pub(crate) const DMA_DESTINATION: u64 = 0x88;
    pub(crate) const DMA_COUNT: u64 = 0x90;
    pub(crate) const DMA_COMMAND: u64 = 0x98;
    pub(crate) const BUFFER: u64 = 0x4_0000;
    pub(crate) const START: u64 = 1;
    pub(crate) const TO_MEMORY: u64 = 2;
}

fn main() -> ExitCode {
    let mode = std::env::args().nth(1).unwrap_or_default();
    match run(&mode) {
        Ok(()) => {
            println!("done");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mode: &str) -> Outcome {
    let edu = find("edu", |vendor, device, _| {
        (vendor, device) == (0x1234, 0x11e8)
    })?;
    let nvme = find("NVMe controller", |_, _, class| class == 0x01_0802)?;
    for round in 0..2 {
        let space = Space::open(mode)?;
        let device = space.device(&edu)?;
        drive_edu(&device, space.mappings())?;
        println!("ok edu, round {round}");
        let other = space.device(&nvme)?;
        look_at_nvme(&other)?;
        println!("ok nvme beside it, round {round}");
    }
    Ok(())
}

/// What devices are opened in.
enum Space {
    Crate(Arc<dyn VfioOps>),
    Own(Container),
}

impl Space {
    fn open(mode: &str) -> Outcome<Self> {
        Ok(match mode {
            "type1v2" => Self::Crate(Arc::new(VfioContainer::new(None)?)),
            "iommufd" => {
                let iommufd = Arc::new(IommuFd::new()?);
                Self::Crate(Arc::new(VfioIommufd::new(iommufd, None, None)?))
            }
            _ => Self::Own(Container::open(mode)?),
        })
    }

    fn device(&self, function: &Path) -> Outcome<Opened> {
        match self {
            Self::Crate(space) => Ok(VfioDevice::new(function, Arc::clone(space), true)?.into()),
            Self::Own(container) => container.device(function),
        }
    }

    fn mappings(&self) -> &dyn VfioOps {
        match self {
            Self::Crate(space) => space.as_ref(),
            Self::Own(container) => container,
        }
    }
}

/// The sysfs directory of the first function that `wanted` (vendor, device, class) accepts.
fn find(what: &str, wanted: impl Fn(u32, u32, u32) -> bool) -> Outcome<PathBuf> {
    let number = |directory: &Path, name: &str| -> Outcome<u32> {
        let text = std::fs::read_to_string(directory.join(name))?;
        Ok(u32::from_str_radix(
            text.trim().trim_start_matches("0x"),
            16,
        )?)
    };
    for entry in std::fs::read_dir("/sys/bus/pci/devices")? {
        let path = entry?.path();
        let (vendor, device) = (number(&path, "vendor")?, number(&path, "device")?);
        if wanted(vendor, device, number(&path, "class")?) {
            return Ok(path);
        }
    }
    Err(format!("no {what} in /sys/bus/pci/devices").into())
}

fn ensure(holds: bool, otherwise: &str) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

fn read32(device: &VfioDevice, region: u32, at: u64) -> u32 {
    let mut bytes = [0; 4];
    device.region_read(region, &mut bytes, at);
    u32::from_le_bytes(bytes)
}

fn write32(device: &VfioDevice, at: u64, value: u32) {
    device.region_write(BAR0, &value.to_le_bytes(), at);
}

fn enable(device: &VfioDevice) -> Outcome {
    device.region_write(CONFIG, &6_u16.to_le_bytes(), 4);
    ensure(
        read32(device, CONFIG, 4) & 6 == 6,
        "memory and bus mastering do not stay enabled",
    )
}

fn drive_edu(device: &VfioDevice, space: &dyn VfioOps) -> Outcome {
    ensure(
        read32(device, CONFIG, 0) == 0x11e8_1234,
        "vendor and device in config space",
    )?;
    ensure(device.get_region_size(BAR0) == 1 << 20, "size of BAR 0")?;
    ensure(
        device.get_irq_info(INTX).is_some_and(|irq| irq.count == 1)
            && device.get_irq_info(MSI).is_some_and(|irq| irq.count == 1),
        "interrupts of edu",
    )?;
    enable(device)?;
    write32(device, edu::LIVENESS, 0x0f0f_1234);
    ensure(
        read32(device, BAR0, edu::LIVENESS) == !0x0f0f_1234,
        "liveness",
    )?;
    interrupts(device)?;
    transfers(device, space)?;
    device.reset();
    enable(device)
}

fn interrupts(device: &VfioDevice) -> Outcome {
    let event = EventFd::new(EFD_NONBLOCK)?;
    device.enable_msi(vec![&event])?;
    device.trigger_irq(MSI, 0)?;
    ensure(arrives(&event), "loopback trigger")?;
    write32(device, edu::IRQ_RAISE, 1);
    ensure(arrives(&event), "MSI")?;
    write32(device, edu::IRQ_ACK, 1);
    device.disable_msi()?;

    let resample = EventFd::new(EFD_NONBLOCK)?;
    device.enable_irq(INTX, vec![&event])?;
    device.set_irq_resample_fd(INTX, vec![&resample])?;
    write32(device, edu::IRQ_RAISE, 1);
    ensure(arrives(&event), "INTx")?;
    resample.write(1)?;
    ensure(
        arrives(&event),
        "INTx that is still raised after the resample",
    )?;
    write32(device, edu::IRQ_ACK, 1);
    device.unmask_irq(INTX)?;
    ensure(event.read().is_err(), "INTx although it was acknowledged")?;
    Ok(device.disable_irq(INTX)?)
}

fn arrives(event: &EventFd) -> bool {
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        if event.read().is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Zeroed pages that are only touched through volatile accesses: the device uses them too.
struct Pages {
    start: *mut u8,
    layout: Layout,
}

impl Pages {
    fn new(pages: usize) -> Outcome<Self> {
        let layout = Layout::from_size_align(pages * PAGE, PAGE)?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        ensure(!start.is_null(), "no memory")?;
        Ok(Self { start, layout })
    }

    fn set(&self, at: usize, value: u8) {
        assert!(at < self.layout.size());
        // SAFETY: within the allocation, and volatile because the device may access it.
        unsafe { self.start.add(at).write_volatile(value) };
    }

    fn get(&self, at: usize) -> u8 {
        assert!(at < self.layout.size());
        // SAFETY: as in `set`.
        unsafe { self.start.add(at).read_volatile() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.start, self.layout) };
    }
}

fn pattern(at: usize) -> u8 {
    (at * 7 % 251).to_le_bytes()[0]
}

fn transfers(device: &VfioDevice, space: &dyn VfioOps) -> Outcome {
    let pages = Pages::new(2)?;
    // SAFETY: the pages are only accessed through volatile reads and writes while they are mapped.
    unsafe { space.vfio_dma_map(IOVA, 2 * PAGE, pages.start)? };
    for at in 0..PAGE {
        pages.set(at, pattern(at));
    }
    let page = PAGE as u64;
    transfer(device, IOVA, edu::BUFFER, 0)?;
    transfer(device, edu::BUFFER, IOVA + page, edu::TO_MEMORY)?;
    ensure(
        (0..PAGE).all(|at| pages.get(PAGE + at) == pattern(at)),
        "what came back is not what was sent",
    )?;
    space.vfio_dma_unmap(IOVA, 2 * PAGE)?;
    for at in 0..PAGE {
        pages.set(PAGE + at, 0);
    }
    transfer(device, edu::BUFFER, IOVA + page, edu::TO_MEMORY)?;
    ensure(
        (0..PAGE).all(|at| pages.get(PAGE + at) == 0),
        "memory was written after its unmap",
    )?;
    // SAFETY: as above.
    unsafe { space.vfio_dma_map(IOVA, PAGE, pages.start)? };
    // SAFETY: as above; this one must fail.
    let again = unsafe { space.vfio_dma_map(IOVA, PAGE, pages.start) };
    ensure(again.is_err(), "a second mapping of the same IOVA")?;
    Ok(space.vfio_dma_unmap(IOVA, PAGE)?)
}

/// One page; waits until edu says it is over.
fn transfer(device: &VfioDevice, source: u64, destination: u64, direction: u64) -> Outcome {
    let write = |at: u64, value: u64| device.region_write(BAR0, &value.to_le_bytes(), at);
    write(edu::DMA_SOURCE, source);
    write(edu::DMA_DESTINATION, destination);
    write(edu::DMA_COUNT, PAGE as u64);
    write(edu::DMA_COMMAND, edu::START | direction);
    let since = Instant::now();
    while u64::from(read32(device, BAR0, edu::DMA_COMMAND)) & edu::START != 0 {
        ensure(
            since.elapsed() < Duration::from_secs(5),
            "a transfer does not end",
        )?;
    }
    Ok(())
}

fn look_at_nvme(device: &VfioDevice) -> Outcome {
    ensure(
        read32(device, CONFIG, 8) >> 8 == 0x01_0802,
        "class in config space",
    )?;
    enable(device)?;
    ensure(read32(device, BAR0, 8) >= 0x1_0000, "NVMe version")?;
    let vectors = device.get_irq_info(MSIX).map_or(0, |irq| irq.count);
    ensure(vectors >= 2, "MSI-X vectors")?;
    let events = [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?];
    device.enable_msix(events.iter().collect())?;
    device.trigger_irq(MSIX, 1)?;
    ensure(arrives(&events[1]), "loopback trigger of vector 1")?;
    ensure(events[0].read().is_err(), "vector 0 was triggered as well")?;
    Ok(device.disable_msix()?)
}
