//! Driving the devices that iogate knows: a DMA and an interrupt on edu,
//! Identify on nvme. Never a write to a medium.

mod edu;
mod nvme;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use iogate_dma::{Iova, Rights};
use iogate_passthrough::device::CONFIG_REGION;
use iogate_passthrough::{Buffer, Container, Device, Iommufd, Region};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::facts::{Exercised, Function, Opened};

/// How long a device may take for anything that is asked of it here.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where mappings are made.
pub(super) enum Dma<'a> {
    Container(&'a Container),
    Ioas(&'a Iommufd, u32),
}

impl Dma<'_> {
    fn map(&self, iova: Iova, buffer: &Buffer) -> io::Result<()> {
        match self {
            Self::Container(container) => container.map(iova, buffer, Rights::READ_WRITE),
            Self::Ioas(iommufd, ioas) => iommufd.map(*ioas, iova, buffer, Rights::READ_WRITE),
        }
    }

    fn unmap(&self, iova: Iova, buffer: &Buffer) -> io::Result<()> {
        let length = buffer.length() as u64;
        let unmapped = match self {
            Self::Container(container) => container.unmap(iova, length)?,
            Self::Ioas(iommufd, ioas) => iommufd.unmap(*ioas, iova, length)?,
        };
        if unmapped != length {
            return Err(io::Error::other(format!(
                "{unmapped} of {length} bytes were unmapped"
            )));
        }
        Ok(())
    }
}

type Failed = (String, io::Error);

/// Drives `device` if its kind is known, and notes what worked.
pub(super) fn device(
    function: &mut Function,
    device: &Device,
    opened: &Opened,
    dma: &Dma<'_>,
    path: &'static str,
) -> Result<(), Failed> {
    let exercise = match function.kind() {
        "edu" => edu::exercise,
        "nvme" => nvme::exercise,
        _ => return Ok(()),
    };
    let name = function.kind();
    let what = Bench::new(device, opened, dma)
        .and_then(|bench| exercise(&bench))
        .map_err(|error| (format!("exercise {name}"), error))?;
    function.exercised.push(Exercised { path, what });
    Ok(())
}

/// A device with one buffer mapped for it and one interrupt to wait for.
struct Bench<'a> {
    device: &'a Device,
    bar0: &'a Region,
    dma: &'a Dma<'a>,
    buffer: Buffer,
    interrupt: OwnedFd,
}

/// Low enough for a function with 28 address bits.
const IOVA: Iova = Iova(0x10_0000);
const PAGE: usize = 4096;

impl<'a> Bench<'a> {
    fn new(device: &'a Device, opened: &'a Opened, dma: &'a Dma<'a>) -> io::Result<Self> {
        let region = |index| {
            opened
                .regions
                .iter()
                .find_map(|(n, region)| (*n == index).then_some(region))
                .ok_or_else(|| io::Error::other(format!("it has no region {index}")))
        };
        let config = region(CONFIG_REGION)?;
        // Memory space and bus mastering, which an open function lacks.
        let mut command = [0; 2];
        device.read(config, 4, &mut command)?;
        command[0] |= 0b110;
        device.write(config, 4, &command)?;
        let buffer = Buffer::new(8 * PAGE)?;
        dma.map(IOVA, &buffer)?;
        Ok(Self {
            device,
            bar0: region(0)?,
            dma,
            buffer,
            interrupt: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// The address that the device uses for byte `offset` of the buffer.
    fn iova(&self, offset: usize) -> u64 {
        IOVA.0.saturating_add(offset as u64)
    }

    fn read32(&self, offset: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.device.read(self.bar0, offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write32(&self, offset: u64, value: u32) -> io::Result<()> {
        self.device.write(self.bar0, offset, &value.to_le_bytes())
    }

    /// Two 32-bit writes: not every function takes a 64-bit one.
    fn write64(&self, offset: u64, value: u64) -> io::Result<()> {
        let (low, high) = (value & 0xffff_ffff, value >> 32);
        self.write32(offset, u32::try_from(low).unwrap_or(0))?;
        self.write32(offset + 4, u32::try_from(high).unwrap_or(0))
    }

    fn use_interrupt(&self, index: u32) -> io::Result<()> {
        self.device.set_interrupts(index, &[self.interrupt.as_fd()])
    }

    fn wait_for_interrupt(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.interrupt, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        if poll(&mut fds, Some(&patience))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no interrupt came"));
        }
        rustix::io::read(&self.interrupt, &mut [0; 8])?;
        Ok(())
    }

    /// Waits until `done` says so.
    fn wait_until(&self, what: &str, done: impl Fn() -> io::Result<bool>) -> io::Result<()> {
        let begun = std::time::Instant::now();
        while !done()? {
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, what.to_owned()));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    fn finish(&self, interrupt_index: u32) -> io::Result<()> {
        self.device.disable_interrupts(interrupt_index)?;
        self.dma.unmap(IOVA, &self.buffer)
    }
}
