//! Interrupts of a served function: vectors and the line, bound to eventfds of
//! the client, which has the interrupt controller.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iogate_dma::{Interrupts, Line, Message, Source};
use iogate_interrupt::{Delivery, Signal};
use iogate_pci::Endpoint;
use iogate_vfio_user::{Errno, IrqAction, IrqData, SetIrqs};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Interrupt types. Linux include/uapi/linux/vfio.h, `VFIO_PCI_INTX_IRQ_INDEX`
/// and following.
pub(crate) mod index {
    pub(crate) const INTX: u32 = 0;
    pub(crate) const MSI: u32 = 1;
    pub(crate) const MSIX: u32 = 2;
    pub(crate) const ERROR: u32 = 3;
    pub(crate) const REQUEST: u32 = 4;
    pub(crate) const COUNT: u32 = 5;
}

/// An eventfd of a client.
struct Eventfd(OwnedFd);

impl Signal for Eventfd {
    fn signal(&self) {
        // The client chooses whether its eventfd waits; this never does. A full
        // count is a signal that nobody has taken yet.
        let mut poll = [PollFd::new(&self.0, PollFlags::OUT)];
        if rustix::event::poll(&mut poll, Some(&Timespec::default())) == Ok(1) {
            let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        }
    }
}

/// The bus above a served function.
///
/// MSI messages are told apart by the low bits of their data alone: their
/// registers hold what the guest wrote there, its own controller's address and
/// vector.
pub(crate) struct Wires {
    delivery: Arc<Delivery>,
    /// The bits of the data that count, plus one; 0 while MSI is not set up.
    msi: AtomicU32,
}

impl Wires {
    pub(crate) fn new(delivery: Arc<Delivery>) -> Self {
        Self {
            delivery,
            msi: AtomicU32::new(0),
        }
    }
}

impl Interrupts for Wires {
    fn message(&self, source: Source, message: Message) {
        let message = match self.msi.load(Ordering::Acquire) {
            0 => message,
            vectors => {
                let vector = message.data & vectors.saturating_sub(1);
                let vector = u16::try_from(vector).unwrap_or_default();
                self.delivery.message_of(vector)
            }
        };
        self.delivery.message(source, message);
    }

    fn line(&self, source: Source, line: Line) {
        self.delivery.line(source, line);
    }
}

/// Which kind of interrupt is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Kind {
    #[default]
    None,
    Intx,
    Msi {
        vectors: u16,
    },
    Msix,
}

/// What a client has set up.
#[derive(Default)]
pub(crate) struct Irqs {
    kind: Kind,
    vectors: BTreeMap<u16, Arc<Eventfd>>,
    line: Option<Arc<Eventfd>>,
    error: Option<Arc<Eventfd>>,
    request: Option<Arc<Eventfd>>,
}

/// The function whose interrupts they are.
pub(crate) struct Of<'f> {
    pub(crate) endpoint: &'f Endpoint,
    pub(crate) source: Source,
    pub(crate) wires: &'f Wires,
}

/// Whether interrupt `at` of a call is meant.
fn is_meant(data: &IrqData<'_>, at: usize) -> bool {
    match data {
        IrqData::Bool(bytes) => bytes.get(at).is_some_and(|byte| *byte != 0),
        IrqData::None | IrqData::Eventfds(_) => true,
    }
}

impl Irqs {
    /// Does what a client asks for.
    pub(crate) fn set(&mut self, of: &Of<'_>, set: SetIrqs<'_>) -> Result<(), Errno> {
        match (set.index, set.action) {
            (index::INTX, IrqAction::Trigger) => self.trigger_line(of, set),
            (index::INTX, action) => self.mask_line(of, action, &set.data),
            (index::MSI | index::MSIX, IrqAction::Trigger) => self.trigger_messages(of, set),
            (index::ERROR, IrqAction::Trigger) => Self::trigger_single(&mut self.error, set),
            (index::REQUEST, IrqAction::Trigger) => Self::trigger_single(&mut self.request, set),
            _ => Err(Errno::NOTTY),
        }
    }

    fn trigger_line(&mut self, of: &Of<'_>, set: SetIrqs<'_>) -> Result<(), Errno> {
        if !matches!(self.kind, Kind::Intx | Kind::None) {
            return Err(Errno::INVAL);
        }
        match set.data {
            IrqData::None if set.count == 0 => self.clear(of),
            IrqData::Eventfds(files) => {
                let signal = files.into_iter().next().map(|file| Arc::new(Eventfd(file)));
                self.line.clone_from(&signal);
                let delivery = &of.wires.delivery;
                delivery.bind_line(of.source, signal.map(|signal| signal as _));
                self.kind = Kind::Intx;
            }
            data => {
                if let Some(line) = self.line.as_ref().filter(|_| is_meant(&data, 0)) {
                    line.signal();
                }
            }
        }
        Ok(())
    }

    fn mask_line(&self, of: &Of<'_>, action: IrqAction, data: &IrqData<'_>) -> Result<(), Errno> {
        let delivery = &of.wires.delivery;
        match data {
            // Only KVM's own interrupt controller unmasks by eventfd; the
            // client has another way.
            IrqData::Eventfds(files) if !files.is_empty() => return Err(Errno::NOTTY),
            data if !is_meant(data, 0) => {}
            _ if action == IrqAction::Mask => delivery.mask(of.source),
            _ => delivery.unmask(of.source),
        }
        Ok(())
    }

    fn trigger_messages(&mut self, of: &Of<'_>, set: SetIrqs<'_>) -> Result<(), Errno> {
        let is_msix = set.index == index::MSIX;
        let is_set_up = match self.kind {
            Kind::Msi { .. } => !is_msix,
            Kind::Msix => is_msix,
            Kind::None | Kind::Intx => false,
        };
        let range = set.start..set.start.saturating_add(set.count);
        match set.data {
            IrqData::None if set.count == 0 => {
                if is_set_up {
                    self.clear(of);
                }
                Ok(())
            }
            IrqData::Eventfds(files) => {
                if !is_set_up {
                    self.enable(of, is_msix, range.end)?;
                }
                let mut files = files.into_iter();
                for vector in range {
                    let vector = u16::try_from(vector).map_err(|_| Errno::INVAL)?;
                    self.bind(of, vector, files.next())?;
                }
                Ok(())
            }
            data => {
                for (at, vector) in range.enumerate() {
                    let vector = u16::try_from(vector).map_err(|_| Errno::INVAL)?;
                    let signal = self.vectors.get(&vector);
                    if let Some(signal) = signal.filter(|_| is_meant(&data, at)) {
                        signal.signal();
                    }
                }
                Ok(())
            }
        }
    }

    fn enable(&mut self, of: &Of<'_>, is_msix: bool, vectors: u32) -> Result<(), Errno> {
        if self.kind != Kind::None {
            return Err(Errno::INVAL);
        }
        let vectors = u16::try_from(vectors).map_err(|_| Errno::INVAL)?;
        self.kind = match is_msix {
            true => Kind::Msix,
            false => Kind::Msi { vectors },
        };
        let restored = self.restore(of);
        if restored.is_err() {
            self.kind = Kind::None;
        }
        restored
    }

    /// Has the function send what is set up, also after a reset that forgot
    /// it.
    pub(crate) fn restore(&self, of: &Of<'_>) -> Result<(), Errno> {
        match self.kind {
            Kind::None | Kind::Intx => {}
            Kind::Msi { vectors } => {
                let first = of.wires.delivery.message_of(0);
                let enabled = of.endpoint.enable_msi(vectors, first);
                enabled.map_err(|_| Errno::INVAL)?;
                let told_apart = u32::from(vectors.next_power_of_two());
                of.wires.msi.store(told_apart, Ordering::Release);
            }
            Kind::Msix => {
                of.endpoint.enable_msix().map_err(|_| Errno::INVAL)?;
                for vector in self.vectors.keys() {
                    arm(of, *vector);
                }
            }
        }
        Ok(())
    }

    fn bind(&mut self, of: &Of<'_>, vector: u16, file: Option<OwnedFd>) -> Result<(), Errno> {
        let delivery = &of.wires.delivery;
        match file {
            Some(file) => {
                let signal = Arc::new(Eventfd(file));
                let bound = delivery.bind(of.source, vector, Arc::clone(&signal) as _);
                bound.map_err(|_| Errno::INVAL)?;
                self.vectors.insert(vector, signal);
                if self.kind == Kind::Msix {
                    arm(of, vector);
                }
            }
            None => {
                if let Some(msix) = of.endpoint.msix().filter(|_| self.kind == Kind::Msix) {
                    msix.mask(vector);
                }
                self.vectors.remove(&vector);
                delivery.unbind(of.source, vector);
            }
        }
        Ok(())
    }

    fn trigger_single(signal: &mut Option<Arc<Eventfd>>, set: SetIrqs<'_>) -> Result<(), Errno> {
        match set.data {
            IrqData::None if set.count == 0 => *signal = None,
            IrqData::Eventfds(files) => {
                *signal = files.into_iter().next().map(|file| Arc::new(Eventfd(file)));
            }
            data => {
                if let Some(signal) = signal.as_ref().filter(|_| is_meant(&data, 0)) {
                    signal.signal();
                }
            }
        }
        Ok(())
    }

    /// Takes vectors and line down.
    pub(crate) fn clear(&mut self, of: &Of<'_>) {
        let delivery = &of.wires.delivery;
        if matches!(self.kind, Kind::Msi { .. } | Kind::Msix) {
            of.endpoint.disable_messages();
        }
        of.wires.msi.store(0, Ordering::Release);
        delivery.unbind_all(of.source);
        delivery.bind_line(of.source, None);
        self.vectors.clear();
        self.line = None;
        self.kind = Kind::None;
    }

    /// Takes everything down: the client is gone.
    pub(crate) fn clear_all(&mut self, of: &Of<'_>) {
        self.clear(of);
        self.error = None;
        self.request = None;
    }
}

/// Lets a bound MSI-X vector out of the function.
fn arm(of: &Of<'_>, vector: u16) {
    if let Some(msix) = of.endpoint.msix() {
        msix.program(vector, of.wires.delivery.message_of(vector));
        msix.unmask(vector);
    }
}
