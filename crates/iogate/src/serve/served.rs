//! One function on its socket: what the protocol asks for, done on the function
//! as every program behind VFIO would have it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iogate_dma::{Atc, Gate, Iova, Rights, Source, Span};
use iogate_memory::GuestMemory;
use iogate_pci::{After, ConfigEffect, Function, ResetKind, config};
use iogate_vfio_user::{Device, DeviceInfo, DmaMap, Errno, Irq, Peer, Region, SetIrqs};

use super::interrupts::{Irqs, Of, Wires, index};
use super::ram::ClientRam;
use super::seat::Seat;
use super::worker::Waker;

/// Regions of a PCI function. Linux include/uapi/linux/vfio.h,
/// `VFIO_PCI_CONFIG_REGION_INDEX` and `VFIO_PCI_NUM_REGIONS`.
const CONFIG: u32 = 7;
const REGIONS: u32 = 9;

/// `VFIO_IRQ_INFO_*`.
mod irq_flags {
    pub(super) const EVENTFD: u32 = 1 << 0;
    pub(super) const MASKABLE: u32 = 1 << 1;
    pub(super) const AUTOMASKED: u32 = 1 << 2;
    pub(super) const NORESIZE: u32 = 1 << 3;
}

/// How long a reset waits for accesses that are under way. One that waits for
/// the client waits for longer: the client waits for us.
const PATIENCE: Duration = Duration::from_millis(500);

/// A function that is served.
pub(crate) struct Served {
    pub(crate) source: Source,
    pub(crate) function: Arc<dyn Function>,
    pub(crate) wires: Arc<Wires>,
    /// Where its worker meets who takes mappings away.
    pub(crate) gate: Arc<Gate>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) waker: Arc<Waker>,
    /// Its own translations, if it may have some.
    pub(crate) atc: Option<Arc<Atc>>,
    pub(crate) seat: Arc<Seat>,
    pub(crate) ram: Mutex<ClientRam>,
    pub(crate) irqs: Mutex<Irqs>,
}

impl Served {
    fn ram(&self) -> MutexGuard<'_, ClientRam> {
        self.ram.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn irqs(&self) -> MutexGuard<'_, Irqs> {
        self.irqs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where BAR 0 has its registers, once the guest's firmware has placed it
    /// and enabled it.
    pub(crate) fn placed(&self) -> Option<u64> {
        let endpoint = self.function.endpoint();
        let enabled = endpoint.command().memory_enabled();
        endpoint.bar_address(0).filter(|at| enabled && *at != 0)
    }

    fn of(&self) -> Of<'_> {
        Of {
            endpoint: self.function.endpoint(),
            source: self.source,
            wires: &self.wires,
        }
    }

    fn after(&self, after: After) {
        if after == After::Work {
            self.waker.wake();
        }
    }

    /// Has the function ask for translations as its ATS capability says.
    fn settle_atc(&self) {
        let enabled = self.function.endpoint().ats_enabled();
        if let Some(atc) = self.atc.as_ref().filter(|atc| atc.is_enabled() != enabled) {
            atc.set_enabled(enabled);
        }
    }

    /// Resets the function; interrupts that are set up stay so.
    fn start_over(&self, kind: ResetKind) {
        self.function.endpoint().reset();
        self.settle_atc();
        self.function.reset(kind);
        let mut grace = self.gate.grace();
        let end = Instant::now().checked_add(PATIENCE);
        while !grace.has_passed() && end.is_some_and(|end| Instant::now() < end) {
            std::thread::sleep(Duration::from_micros(50));
        }
        // It cannot refuse what it took before.
        let _ = self.irqs().restore(&self.of());
    }

    fn config_size(&self) -> u64 {
        let express = config::capability::EXPRESS;
        match self.function.endpoint().capability(express) {
            Some(_) => config::SIZE,
            None => 256,
        }
    }

    /// Whether an access touches the MSI-X table. Its entries are the client's
    /// to keep: the function's own hold what [`Irqs`] puts there.
    fn is_table(&self, bar: u8, offset: u64, length: usize) -> bool {
        let layout = self.function.endpoint().msix().map(|msix| msix.layout());
        layout.is_some_and(|layout| {
            let first = u64::from(layout.table_offset);
            let end = offset.saturating_add(length as u64);
            bar == layout.table_bar
                && offset < first.saturating_add(layout.table_size())
                && first < end
        })
    }

    fn bar_index(&self, region: u32) -> Result<u8, Errno> {
        let index = u8::try_from(region).map_err(|_| Errno::INVAL)?;
        let bar = self.function.endpoint().bar(index);
        bar.map(|_| index).ok_or(Errno::INVAL)
    }
}

impl Device for Served {
    fn connected(&self, client: &Arc<Peer>) -> Result<(), Errno> {
        self.seat.take(client)
    }

    fn disconnected(&self, client: &Peer) {
        if !self.seat.is(client) {
            return;
        }
        // The next client finds the function as at power-on.
        self.start_over(ResetKind::FunctionLevel);
        self.irqs().clear_all(&self.of());
        let ranges = self.ram().take_all();
        drop(ranges);
        self.seat.leave();
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            regions: REGIONS,
            irqs: index::COUNT,
            reset: true,
            pci: true,
        }
    }

    fn region(&self, index: u32) -> Result<Region<'_>, Errno> {
        if index == CONFIG {
            return Ok(Region {
                size: self.config_size(),
                rights: Rights::READ_WRITE,
                ..Region::default()
            });
        }
        let Ok(index) = self.bar_index(index) else {
            return Ok(Region::default());
        };
        let endpoint = self.function.endpoint();
        let memory = endpoint.bar_memory(index);
        Ok(Region {
            size: endpoint.bar(index).map_or(0, |bar| bar.size),
            rights: Rights::READ_WRITE,
            file: memory.and_then(|memory| memory.file()),
            ..Region::default()
        })
    }

    fn region_read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        if region == CONFIG {
            self.function.read_config(offset, into);
            return Ok(());
        }
        let bar = self.bar_index(region)?;
        if self.is_table(bar, offset, into.len()) {
            into.fill(0xff);
        } else {
            self.function.read_bar(bar, offset, into);
        }
        Ok(())
    }

    fn region_write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        if region == CONFIG {
            let (effect, after) = self.function.write_config(offset, from);
            self.after(after);
            self.settle_atc();
            if effect == ConfigEffect::FunctionReset {
                self.start_over(ResetKind::FunctionLevel);
            }
            self.seat.tell();
            return Ok(());
        }
        let bar = self.bar_index(region)?;
        if !self.is_table(bar, offset, from.len()) {
            self.after(self.function.write_bar(bar, offset, from));
        }
        Ok(())
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        let endpoint = self.function.endpoint();
        let (count, flags) = match index {
            index::INTX => {
                let mut pin = [0];
                endpoint.read_config(config::register::INTERRUPT_PIN.into(), &mut pin);
                let flags = irq_flags::MASKABLE | irq_flags::AUTOMASKED;
                (u32::from(pin != [0]), flags)
            }
            index::MSI => (endpoint.msi_vectors().into(), irq_flags::NORESIZE),
            index::MSIX => {
                let layout = endpoint.msix().map(|msix| msix.layout());
                (layout.map_or(0, |layout| layout.vectors.into()), 0)
            }
            // Without the first QEMU warns its user.
            index::ERROR | index::REQUEST => (1, irq_flags::NORESIZE),
            _ => return Err(Errno::INVAL),
        };
        Ok(Irq {
            count,
            flags: flags | irq_flags::EVENTFD,
        })
    }

    fn set_irqs(&self, _: &Peer, set: SetIrqs<'_>) -> Result<(), Errno> {
        self.irqs().set(&self.of(), set)
    }

    fn dma_map(&self, client: &Arc<Peer>, map: DmaMap) -> Result<(), Errno> {
        let range = ClientRam::range(&self.memory, client, map)?;
        self.ram().put(range);
        Ok(())
    }

    fn dma_unmap(&self, _: &Peer, span: Span<Iova>) {
        let range = self.ram().take(span);
        drop(range);
    }

    fn reset(&self, _: &Peer) -> Result<(), Errno> {
        self.start_over(ResetKind::Bus);
        Ok(())
    }
}
