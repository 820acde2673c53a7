//! A device's interrupts as VFIO_DEVICE_SET_IRQS arranges them. Linux
//! `drivers/vfio/pci/vfio_pci_intrs.c`.

use std::collections::BTreeMap;
use std::sync::Arc;

use iogate_interrupt::{Delivery, Signal};
use iogate_pci::config;

use crate::slot::{DeviceState, Slot};
use crate::{Error, ErrorKind, Event, Host, Retired, Watch};

/// The interrupts of a PCI device. include/uapi/linux/vfio.h,
/// VFIO_PCI_INTX_IRQ_INDEX and following.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IrqIndex {
    /// The INTx line.
    Intx,
    /// MSI vectors.
    Msi,
    /// MSI-X vectors.
    Msix,
    /// An error of the device; PCI Express only.
    Error,
    /// The host wants the device back.
    Request,
}

impl IrqIndex {
    /// The interrupt with this index.
    pub fn from_index(index: u32) -> Option<Self> {
        Some(match index {
            0 => Self::Intx,
            1 => Self::Msi,
            2 => Self::Msix,
            3 => Self::Error,
            4 => Self::Request,
            _ => return None,
        })
    }
}

/// What to do with interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IrqAction {
    /// VFIO_IRQ_SET_ACTION_MASK.
    Mask,
    /// VFIO_IRQ_SET_ACTION_UNMASK.
    Unmask,
    /// VFIO_IRQ_SET_ACTION_TRIGGER.
    Trigger,
}

/// With what data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IrqData<'d> {
    /// VFIO_IRQ_SET_DATA_NONE.
    None,
    /// VFIO_IRQ_SET_DATA_BOOL: one byte each.
    Bool(&'d [u8]),
    /// VFIO_IRQ_SET_DATA_EVENTFD: one descriptor each, -1 for none.
    Eventfd(&'d [i32]),
}

/// VFIO_DEVICE_SET_IRQS, its range checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IrqRequest<'d> {
    /// Which interrupts.
    pub index: IrqIndex,
    /// What to do; `None` for a combination that no interrupt knows.
    pub action: Option<IrqAction>,
    /// With what.
    pub data: IrqData<'d>,
    /// The first of them.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// The caller's descriptors.
pub trait Descriptors {
    /// What goes wrong with descriptors, and everything else.
    type Error: From<Error>;

    /// An eventfd to signal.
    fn eventfd(&self, fd: i32) -> Result<Arc<dyn Signal>, Self::Error>;

    /// Has [`Host::event`] called with `event` when the eventfd is signalled.
    fn watch(&self, fd: i32, event: Event) -> Result<Box<dyn Watch>, Self::Error>;
}

/// What is set up. At most one of INTx, MSI and MSI-X is.
#[derive(Default)]
pub(crate) struct Irqs {
    kind: Kind,
    error: Option<Arc<dyn Signal>>,
    request: Option<Arc<dyn Signal>>,
}

#[derive(Default)]
enum Kind {
    #[default]
    None,
    Intx {
        trigger: Option<Arc<dyn Signal>>,
        unmask: Option<Box<dyn Watch>>,
    },
    Msi {
        /// Vectors enabled in the device.
        allotted: u32,
        signals: BTreeMap<u16, Arc<dyn Signal>>,
    },
    Msix {
        signals: BTreeMap<u16, Arc<dyn Signal>>,
    },
}

impl Host {
    /// How many interrupts the device has of a kind.
    /// `vfio_pci_get_irq_count`.
    pub fn irq_count(&self, device: usize, index: IrqIndex) -> Result<u32, Error> {
        let slot = self.slot(device)?;
        let endpoint = slot.endpoint();
        Ok(match index {
            IrqIndex::Intx => {
                let mut pin = [0];
                endpoint.read_config(config::register::INTERRUPT_PIN.into(), &mut pin);
                u32::from(pin != [0])
            }
            IrqIndex::Msi => endpoint.msi_vectors().into(),
            IrqIndex::Msix => endpoint
                .msix()
                .map_or(0, |msix| msix.layout().vectors.into()),
            IrqIndex::Error => u32::from(slot.capabilities.express.is_some()),
            IrqIndex::Request => 1,
        })
    }

    /// VFIO_DEVICE_SET_IRQS with a range that [`irq_count`](Self::irq_count)
    /// allows and as much data as `count` says. ENOTTY for what an interrupt
    /// does not support, EINVAL for what does not fit its state, EBUSY for a
    /// second unmask eventfd, ERANGE for no vectors at all.
    /// `vfio_pci_set_irqs_ioctl`.
    pub fn set_irqs<D: Descriptors>(
        &self,
        device: usize,
        request: &IrqRequest<'_>,
        descriptors: &D,
    ) -> Result<Retired, D::Error> {
        let slot = self.slot(device)?;
        let mut retired = Retired::default();
        let mut state = slot.lock();
        let DeviceState { irqs, .. } = &mut *state;
        let mut change = Change {
            slot,
            device,
            delivery: &self.config.delivery,
            request,
            descriptors,
            retired: &mut retired,
        };
        match (request.index, request.action) {
            (IrqIndex::Intx, Some(IrqAction::Mask)) => change.mask_intx(irqs)?,
            (IrqIndex::Intx, Some(IrqAction::Unmask)) => change.unmask_intx(irqs)?,
            (IrqIndex::Intx, Some(IrqAction::Trigger)) => change.trigger_intx(irqs)?,
            (IrqIndex::Msi | IrqIndex::Msix, Some(IrqAction::Trigger)) => {
                change.trigger_messages(irqs)?;
            }
            (IrqIndex::Error, Some(IrqAction::Trigger)) if slot.capabilities.express.is_some() => {
                change.trigger_single(&mut irqs.error)?;
            }
            (IrqIndex::Request, Some(IrqAction::Trigger)) => {
                change.trigger_single(&mut irqs.request)?;
            }
            _ => return Err(NOT_SUPPORTED.into()),
        }
        drop(state);
        Ok(retired)
    }

    /// The eventfd that unmasks the device's INTx was signalled.
    pub(crate) fn unmask_event(&self, device: usize) {
        if let Ok(slot) = self.slot(device) {
            let state = slot.lock();
            if matches!(state.irqs.kind, Kind::Intx { .. }) {
                self.config.delivery.unmask(slot.device.source);
            }
        }
    }
}

impl Irqs {
    /// Asks the user to let go of the device, if it has said how; whether it
    /// has.
    pub(crate) fn request(&self) -> bool {
        let request = self.request.as_ref();
        request.map(|signal| signal.signal()).is_some()
    }

    /// Whether MSI is set up.
    pub(crate) fn is_msi(&self) -> bool {
        matches!(self.kind, Kind::Msi { .. })
    }

    /// Takes everything down.
    pub(crate) fn disable_all(&mut self, slot: &Slot, delivery: &Delivery, retired: &mut Retired) {
        self.disable(slot, delivery, retired);
        self.error = None;
        self.request = None;
    }

    fn disable(&mut self, slot: &Slot, delivery: &Delivery, retired: &mut Retired) {
        let source = slot.device.source;
        match std::mem::take(&mut self.kind) {
            Kind::None => {}
            Kind::Intx { unmask, .. } => {
                delivery.bind_line(source, None);
                retired.watches.extend(unmask);
            }
            Kind::Msi { .. } | Kind::Msix { .. } => {
                slot.endpoint().disable_messages();
                delivery.unbind_all(source);
            }
        }
    }

    /// Programs the device anew, after a reset that forgot its messages.
    pub(crate) fn restore(&self, slot: &Slot, delivery: &Delivery) {
        let endpoint = slot.endpoint();
        match &self.kind {
            Kind::None | Kind::Intx { .. } => {}
            Kind::Msi { allotted, .. } => {
                let vectors = u16::try_from(*allotted).unwrap_or(u16::MAX);
                // The device had as many before.
                let _ = endpoint.enable_msi(vectors, delivery.message_of(0));
            }
            Kind::Msix { signals } => {
                let _ = endpoint.enable_msix();
                for &vector in signals.keys() {
                    arm(slot, delivery, vector);
                }
            }
        }
    }
}

/// Lets a bound MSI-X vector out of the device.
fn arm(slot: &Slot, delivery: &Delivery, vector: u16) {
    if let Some(msix) = slot.endpoint().msix() {
        msix.program(vector, delivery.message_of(vector));
        msix.unmask(vector);
    }
}

/// One call of SET_IRQS under way.
struct Change<'c, D> {
    slot: &'c Slot,
    device: usize,
    delivery: &'c Delivery,
    request: &'c IrqRequest<'c>,
    descriptors: &'c D,
    retired: &'c mut Retired,
}

impl<D: Descriptors> Change<'_, D> {
    fn is_single(&self) -> bool {
        self.request.start == 0 && self.request.count == 1
    }

    /// Whether data of the first interrupt, if it is a boolean, says yes.
    fn first_is_meant(&self) -> bool {
        match self.request.data {
            IrqData::Bool(bytes) => bytes.first().is_some_and(|byte| *byte != 0),
            _ => true,
        }
    }

    /// `vfio_pci_set_intx_mask`.
    fn mask_intx(&self, irqs: &mut Irqs) -> Result<(), D::Error> {
        if !matches!(irqs.kind, Kind::Intx { .. }) || !self.is_single() {
            return Err(Error::invalid("INTx is not set up, or the range is not 0, 1").into());
        }
        if let IrqData::Eventfd(_) = self.request.data {
            return Err(NOT_SUPPORTED.into());
        }
        if self.first_is_meant() {
            self.delivery.mask(self.slot.device.source);
        }
        Ok(())
    }

    /// `vfio_pci_set_intx_unmask`.
    fn unmask_intx(&mut self, irqs: &mut Irqs) -> Result<(), D::Error> {
        let Kind::Intx { unmask, .. } = &mut irqs.kind else {
            return Err(Error::invalid("INTx is not set up").into());
        };
        if !self.is_single() {
            return Err(Error::invalid("INTx is one interrupt, 0").into());
        }
        match self.request.data {
            IrqData::Eventfd(fds) => match fds.first() {
                Some(&fd) if fd >= 0 => {
                    let event = Event::Unmask {
                        device: self.device,
                    };
                    let watch = self.descriptors.watch(fd, event)?;
                    if unmask.is_some() {
                        self.retired.watches.push(watch);
                        let reason = "INTx has an eventfd to unmask it already";
                        return Err(Error::new(ErrorKind::Busy, reason).into());
                    }
                    *unmask = Some(watch);
                }
                _ => self.retired.watches.extend(unmask.take()),
            },
            _ if self.first_is_meant() => self.delivery.unmask(self.slot.device.source),
            _ => {}
        }
        Ok(())
    }

    /// `vfio_pci_set_intx_trigger`.
    fn trigger_intx(&mut self, irqs: &mut Irqs) -> Result<(), D::Error> {
        let is_intx = matches!(irqs.kind, Kind::Intx { .. });
        if is_intx && self.request.count == 0 && self.request.data == IrqData::None {
            irqs.disable(self.slot, self.delivery, self.retired);
            return Ok(());
        }
        if !(is_intx || matches!(irqs.kind, Kind::None)) || !self.is_single() {
            return Err(OTHER_KIND.into());
        }
        if let IrqData::Eventfd(fds) = self.request.data {
            let new = match fds.first() {
                Some(&fd) if fd >= 0 => Some(self.descriptors.eventfd(fd)?),
                _ => None,
            };
            let source = self.slot.device.source;
            self.delivery.bind_line(source, new.clone());
            match &mut irqs.kind {
                Kind::Intx { trigger, .. } => *trigger = new,
                kind => {
                    *kind = Kind::Intx {
                        trigger: new,
                        unmask: None,
                    }
                }
            }
            return Ok(());
        }
        let Kind::Intx { trigger, .. } = &irqs.kind else {
            return Err(Error::invalid("INTx is not set up").into());
        };
        if let Some(signal) = trigger.as_ref().filter(|_| self.first_is_meant()) {
            signal.signal();
        }
        Ok(())
    }

    /// `vfio_pci_set_msi_trigger`.
    fn trigger_messages(&mut self, irqs: &mut Irqs) -> Result<(), D::Error> {
        let is_msix = self.request.index == IrqIndex::Msix;
        let is_set_up = match irqs.kind {
            Kind::Msi { .. } => !is_msix,
            Kind::Msix { .. } => is_msix,
            _ => false,
        };
        if is_set_up && self.request.count == 0 && self.request.data == IrqData::None {
            irqs.disable(self.slot, self.delivery, self.retired);
            return Ok(());
        }
        if !is_set_up && !matches!(irqs.kind, Kind::None) {
            return Err(OTHER_KIND.into());
        }
        if let IrqData::Eventfd(fds) = self.request.data {
            if is_set_up {
                return self.set_block(&mut irqs.kind, fds);
            }
            self.enable_messages(&mut irqs.kind, is_msix)?;
            let set = self.set_block(&mut irqs.kind, fds);
            if set.is_err() {
                irqs.disable(self.slot, self.delivery, self.retired);
            }
            return set;
        }
        let (Kind::Msi { signals, .. } | Kind::Msix { signals }) = &irqs.kind else {
            return Err(Error::invalid("these vectors are not set up").into());
        };
        let end = self.request.start.saturating_add(self.request.count);
        for (index, vector) in (self.request.start..end).enumerate() {
            let is_meant = match self.request.data {
                IrqData::Bool(bytes) => bytes.get(index).is_some_and(|byte| *byte != 0),
                _ => true,
            };
            let signal = u16::try_from(vector).ok().and_then(|at| signals.get(&at));
            if let Some(signal) = signal.filter(|_| is_meant) {
                signal.signal();
            }
        }
        Ok(())
    }

    /// `vfio_msi_enable`.
    fn enable_messages(&self, kind: &mut Kind, is_msix: bool) -> Result<(), D::Error> {
        let allotted = self.request.start.saturating_add(self.request.count);
        if allotted == 0 {
            return Err(Error::new(ErrorKind::Range, "no vectors at all").into());
        }
        let refused = |_| Error::invalid("the device does not have these vectors");
        let endpoint = self.slot.endpoint();
        if is_msix {
            endpoint.enable_msix().map_err(refused)?;
            *kind = Kind::Msix {
                signals: BTreeMap::new(),
            };
        } else {
            let vectors = u16::try_from(allotted).unwrap_or(u16::MAX);
            let first = self.delivery.message_of(0);
            endpoint.enable_msi(vectors, first).map_err(refused)?;
            *kind = Kind::Msi {
                allotted,
                signals: BTreeMap::new(),
            };
        }
        Ok(())
    }

    /// Sets a block of vectors, or none of it. `vfio_msi_set_block`.
    fn set_block(&self, kind: &mut Kind, fds: &[i32]) -> Result<(), D::Error> {
        for (&fd, vector) in fds.iter().zip(self.request.start..) {
            if let Err(error) = self.set_vector(kind, vector, fd) {
                for vector in self.request.start..vector {
                    self.unset_vector(kind, vector);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// `vfio_msi_set_vector_signal`.
    fn set_vector(&self, kind: &mut Kind, vector: u32, fd: i32) -> Result<(), D::Error> {
        self.unset_vector(kind, vector);
        if fd < 0 {
            return Ok(());
        }
        let beyond = Error::invalid("the vector is beyond those that were enabled");
        let vector_u16 = u16::try_from(vector).map_err(|_| beyond)?;
        let (is_msix, signals) = match kind {
            Kind::Msi { allotted, signals } if vector < *allotted => (false, signals),
            Kind::Msix { signals } => (true, signals),
            _ => return Err(beyond.into()),
        };
        let signal = self.descriptors.eventfd(fd)?;
        let source = self.slot.device.source;
        self.delivery
            .bind(source, vector_u16, Arc::clone(&signal))
            .map_err(|_| beyond)?;
        signals.insert(vector_u16, signal);
        if is_msix {
            arm(self.slot, self.delivery, vector_u16);
        }
        Ok(())
    }

    fn unset_vector(&self, kind: &mut Kind, vector: u32) {
        let Ok(vector) = u16::try_from(vector) else {
            return;
        };
        let removed = match kind {
            Kind::Msi { signals, .. } => signals.remove(&vector),
            Kind::Msix { signals } => {
                if let Some(msix) = self.slot.endpoint().msix() {
                    msix.mask(vector);
                }
                signals.remove(&vector)
            }
            _ => None,
        };
        if removed.is_some() {
            self.delivery.unbind(self.slot.device.source, vector);
        }
    }

    /// `vfio_pci_set_ctx_trigger_single`.
    fn trigger_single(&self, signal: &mut Option<Arc<dyn Signal>>) -> Result<(), D::Error> {
        if self.request.start != 0 || self.request.count > 1 {
            return Err(Error::invalid("there is one such interrupt, 0").into());
        }
        let is_empty = self.request.count == 0;
        match (self.request.data, &signal) {
            (IrqData::None, Some(set)) => {
                if is_empty {
                    *signal = None;
                } else {
                    set.signal();
                }
                Ok(())
            }
            (IrqData::Bool(_), set) if !is_empty => {
                if let Some(set) = set.as_ref().filter(|_| self.first_is_meant()) {
                    set.signal();
                }
                Ok(())
            }
            (IrqData::Eventfd(fds), _) if !is_empty => {
                match fds.first() {
                    Some(-1) => *signal = None,
                    Some(&fd) if fd >= 0 => *signal = Some(self.descriptors.eventfd(fd)?),
                    _ => {}
                }
                Ok(())
            }
            _ => Err(Error::invalid("nothing to trigger").into()),
        }
    }
}

const NOT_SUPPORTED: Error = Error::new(
    ErrorKind::NoSuchCall,
    "the interrupt does not support this action",
);
const OTHER_KIND: Error =
    Error::invalid("another kind of interrupt is set up, or the range is wrong");
