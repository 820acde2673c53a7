//! One unit: its parts, and the ways in for devices.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};

use iogate_dma::{Attachment, Fault, FaultSink, Gate, Memory, Observer, Port, RequesterId, Source};

use crate::ats::DeviceTlbs;
use crate::builder::{Builder, Wake};
use crate::cache::Caches;
use crate::capabilities::Capabilities;
use crate::events::Deliver;
use crate::live::Live;
use crate::pages::Pages;
use crate::registers::Registers;
use crate::remap::Remapping;
use crate::translate::Limits;

/// A VT-d unit.
///
/// ```
/// # use std::sync::{Arc, Mutex};
/// # use iogate_dma::{Memory, MemoryError, Message, RequesterId, Source, Width};
/// # use iogate_vtd::{Capabilities, Vtd};
/// # struct Ram;
/// # impl Memory for Ram {
/// #     fn read(&self, _: u64, into: &mut [u8]) -> Result<(), MemoryError> { into.fill(0); Ok(()) }
/// #     fn write(&self, _: u64, _: &[u8]) -> Result<(), MemoryError> { Ok(()) }
/// #     fn load(&self, _: u64, _: Width) -> Result<u64, MemoryError> { Ok(0) }
/// #     fn store(&self, _: u64, _: Width, _: u64) -> Result<(), MemoryError> { Ok(()) }
/// #     fn compare_exchange(&self, address: u64, _: Width, _: u64, _: u64)
/// #     -> Result<u64, MemoryError> { Err(MemoryError::NotAtomic { address }) }
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let ram = Arc::new(Ram);
/// # let signalled = Arc::new(Mutex::new(Vec::new()));
/// # let irqchip = Arc::clone(&signalled);
/// let rid = RequesterId::new(0, 5, 0).ok_or("no such function")?;
/// let unit = Vtd::builder(ram)
///     .capabilities(Capabilities::default().scalable())
///     .scope([rid])
///     .deliver(move |m: Message| irqchip.lock().unwrap().push((m.address, m.data)))
///     .build()?;
/// unit.write(0x20, &0x1000_u64.to_le_bytes());
/// let mut root = [0; 8];
/// unit.read(0x20, &mut root);
/// assert_eq!(u64::from_le_bytes(root), 0x1000);
/// let mut port = unit.port(Source::from(rid));
/// port.read(iogate_dma::Iova(0x1000), &mut [0; 16])?;
/// unit.send_msi(rid, Message { address: 0xfee0_0000, data: 0x41 });
/// assert_eq!(*signalled.lock().unwrap(), [(0xfee0_0000, 0x41)]);
/// unit.restore(&unit.save())?;
/// # Ok(())
/// # }
/// ```
///
/// The guest's side: [`read`](Self::read), [`write`](Self::write). The devices'
/// side: [`port`](Self::port), or [`Translate`](iogate_dma::Translate) with the
/// unit's [`gate`](Self::gate); [`send_msi`](Self::send_msi). All of it from any
/// thread; the unit starts none.
pub struct Vtd {
    pub(crate) ram: Arc<dyn Memory>,
    pub(crate) capabilities: Capabilities,
    pub(crate) limits: Limits,
    pub(crate) scope: Option<BTreeSet<RequesterId>>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) deliver: Deliver,
    pub(crate) wake: Option<Wake>,
    pub(crate) live: Live,
    pub(crate) caches: Caches,
    pub(crate) registers: Mutex<Registers>,
    /// Held by who does what registers ask for. Locked before `registers`.
    pub(crate) turn: Mutex<()>,
    pub(crate) device_tlbs: Mutex<DeviceTlbs>,
    /// Locked before `registers`.
    pub(crate) pages: Mutex<Pages>,
    pub(crate) remapping: Remapping,
    pub(crate) observers: Mutex<Vec<Weak<dyn Observer>>>,
}

impl Vtd {
    /// Begins a unit whose guest has `ram`, by guest-physical addresses.
    pub fn builder(ram: Arc<dyn Memory>) -> Builder {
        Builder::new(ram)
    }

    /// What the unit offers.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Where workers that translate through the unit meet its invalidations.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// A port of `source` behind the unit, which its interrupts pass too.
    pub fn port(self: &Arc<Self>, source: Source) -> Port {
        let attachment = Attachment::new();
        attachment.set(Some(Arc::clone(self) as _));
        Port::new(
            source,
            Arc::new(attachment),
            self.gate.join(),
            Arc::new(Told),
        )
        .with_interrupts(Arc::clone(self) as _)
    }
}

/// The unit tells its guest of refused requests when it refuses them.
struct Told;

impl FaultSink for Told {
    fn fault(&self, _: &Fault) {}
    fn answered(&self, _: Source, _: &str) {}
}
