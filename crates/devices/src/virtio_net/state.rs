//! The registers of the device, and what they set up. Virtio 1.2 section
//! 4.1.4.

use iogate_dma::Line;
use iogate_pci::{After, Life};

use super::ring::Place;
use super::spec::common::{Features, Isr, NO_VECTOR, Status, offset};
use super::spec::network;
use super::spec::pci::NOTIFY_MULTIPLIER;
use crate::registers::{merge, show};

mod moved;

/// Queue pairs at most, and with the control queue the queues.
pub(super) const MAX_PAIRS: u16 = 8;
pub(super) const MAX_QUEUES: usize = 17;
/// Entries of a queue, unless the driver asks otherwise.
const DEFAULT_SIZE: u16 = 256;

/// What a device has from the beginning.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    pub(super) mac: [u8; 6],
    /// Queue pairs, 1 to 8.
    pub(super) pairs: u16,
    pub(super) role: Role,
}

/// What the function is to SR-IOV.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing.
    Alone,
    /// It has virtual functions, at least one.
    Physical { vfs: u16 },
    /// It is a virtual function.
    Virtual,
}

impl Setup {
    pub(super) fn queues(&self) -> u16 {
        self.pairs.saturating_mul(2).saturating_add(1)
    }

    fn features(&self) -> Features {
        Features::new()
            .with_mac(true)
            .with_mrg_rxbuf(true)
            .with_status(true)
            .with_ctrl_vq(true)
            .with_ctrl_rx(true)
            .with_mq(self.pairs > 1)
            .with_indirect_desc(true)
            .with_event_idx(true)
            .with_version_1(true)
            .with_access_platform(true)
            .with_sr_iov(matches!(self.role, Role::Physical { .. }))
    }
}

/// The registers of one queue.
#[derive(Clone, Copy)]
struct Queue {
    place: Place,
    vector: u16,
    enabled: bool,
}

pub(super) struct State {
    /// The life that all this belongs to.
    pub(super) life: Life,
    setup: Setup,
    /// Vectors of MSI-X.
    vectors: u16,
    /// Tells one initialization by a driver from the next.
    generation: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    config_generation: u8,
    status: Status,
    queue_select: u16,
    queues: [Queue; MAX_QUEUES],
    isr: Isr,
    /// Queues that the worker is to look at.
    notified: u32,
    /// Pairs that the driver uses.
    pairs: u16,
    link: bool,
    /// The worker is in a quantum.
    working: bool,
    /// The driver reset the device in the middle of it.
    resetting: bool,
    /// The state came from elsewhere, and the driver is not yet woken.
    loaded: bool,
}

/// What a quantum goes by.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) life: Life,
    pub(super) generation: u64,
    pub(super) features: Features,
    /// Queues to look at, by bits; none unless the device is live.
    pub(super) notified: u32,
    /// Pairs that the driver uses.
    pub(super) pairs: u16,
    /// Where the queues stand; size 0 for those that are not enabled.
    pub(super) places: [Place; MAX_QUEUES],
    /// The control queue.
    pub(super) control: usize,
}

/// An interrupt to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    Queue(usize),
    Configuration,
}

impl State {
    /// Power-on.
    pub(super) fn new(life: Life, setup: Setup, vectors: u16) -> Self {
        let queue = Queue {
            place: Place {
                size: DEFAULT_SIZE,
                ..Place::default()
            },
            vector: NO_VECTOR,
            enabled: false,
        };
        Self {
            life,
            setup,
            vectors,
            generation: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            config_generation: 0,
            status: Status::new(),
            queue_select: 0,
            queues: [queue; MAX_QUEUES],
            isr: Isr::new(),
            notified: 0,
            pairs: 1,
            link: true,
            working: false,
            resetting: false,
            loaded: false,
        }
    }

    /// Power-on in another life, of the same device.
    pub(super) fn anew(&self, life: Life) -> Self {
        Self {
            generation: self.generation.wrapping_add(1),
            link: self.link,
            ..Self::new(life, self.setup, self.vectors)
        }
    }

    /// Ends a reset by the driver. The generation of the configuration goes
    /// on, as for a device that stayed where it was.
    fn reset(&mut self) {
        let config_generation = self.config_generation;
        *self = self.anew(self.life);
        self.config_generation = config_generation;
    }

    fn features(&self) -> Features {
        Features::from_bits(self.driver_features)
    }

    pub(super) fn line(&self) -> Line {
        match self.isr.into_bits() {
            0 => Line::Deasserted,
            _ => Line::Asserted,
        }
    }

    /// Reads ISR Status, which clears it.
    pub(super) fn take_isr(&mut self) -> u8 {
        std::mem::take(&mut self.isr).into_bits()
    }

    fn queue(&self) -> Option<&Queue> {
        let exists = self.queue_select < self.setup.queues();
        let queue = self.queues.get(usize::from(self.queue_select));
        queue.filter(|_| exists)
    }

    /// Reads the common configuration.
    pub(super) fn read_common(&self, at: u64, into: &mut [u8]) {
        let part = |select: u32, features: u64| match select {
            0 => features,
            1 => features >> 32,
            _ => 0,
        };
        let low = |value: u64| {
            let [a, b, c, d, ..] = value.to_le_bytes();
            [a, b, c, d]
        };
        let offered = part(
            self.device_feature_select,
            self.setup.features().into_bits(),
        );
        let accepted = part(self.driver_feature_select, self.driver_features);
        let select = self.device_feature_select.to_le_bytes();
        show(at, into, offset::DEVICE_FEATURE_SELECT, select);
        show(at, into, offset::DEVICE_FEATURE, low(offered));
        let select = self.driver_feature_select.to_le_bytes();
        show(at, into, offset::DRIVER_FEATURE_SELECT, select);
        show(at, into, offset::DRIVER_FEATURE, low(accepted));
        let vector = self.config_vector.to_le_bytes();
        show(at, into, offset::CONFIG_MSIX_VECTOR, vector);
        let queues = self.setup.queues().to_le_bytes();
        show(at, into, offset::NUM_QUEUES, queues);
        show(at, into, offset::DEVICE_STATUS, [self.status.into_bits()]);
        let generation = [self.config_generation];
        show(at, into, offset::CONFIG_GENERATION, generation);
        let select = self.queue_select.to_le_bytes();
        show(at, into, offset::QUEUE_SELECT, select);
        let Some(queue) = self.queue() else {
            return;
        };
        let place = &queue.place;
        show(at, into, offset::QUEUE_SIZE, place.size.to_le_bytes());
        let vector = queue.vector.to_le_bytes();
        show(at, into, offset::QUEUE_MSIX_VECTOR, vector);
        let enabled = u16::from(queue.enabled).to_le_bytes();
        show(at, into, offset::QUEUE_ENABLE, enabled);
        show(at, into, offset::QUEUE_NOTIFY_OFF, select);
        let address = place.descriptors.to_le_bytes();
        show(at, into, offset::QUEUE_DESC, address);
        show(at, into, offset::QUEUE_DRIVER, place.driver.to_le_bytes());
        show(at, into, offset::QUEUE_DEVICE, place.device.to_le_bytes());
    }

    /// Reads the device configuration.
    pub(super) fn read_device(&self, at: u64, into: &mut [u8]) {
        let status = match self.link {
            true => network::LINK_UP,
            false => 0,
        };
        show(at, into, network::offset::MAC, self.setup.mac);
        let status = status.to_le_bytes();
        show(at, into, network::offset::STATUS, status);
        let pairs = self.setup.pairs.to_le_bytes();
        show(at, into, network::offset::MAX_VIRTQUEUE_PAIRS, pairs);
    }

    /// Writes the common configuration; says whether an interrupt follows.
    pub(super) fn write_common(&mut self, at: u64, from: &[u8]) -> Option<Cause> {
        let touched = |register, value: u32| {
            merge(at, from, register, value.to_le_bytes()).map(u32::from_le_bytes)
        };
        let select = self.device_feature_select;
        if let Some(value) = touched(offset::DEVICE_FEATURE_SELECT, select) {
            self.device_feature_select = value;
        }
        let select = self.driver_feature_select;
        if let Some(value) = touched(offset::DRIVER_FEATURE_SELECT, select) {
            self.driver_feature_select = value;
        }
        let [a, b, c, d, e, f, g, h] = self.driver_features.to_le_bytes();
        let (low, high) = ([a, b, c, d], [e, f, g, h]);
        // What is accepted cannot be changed any more.
        let open = !self.status.features_ok();
        let selected = match self.driver_feature_select {
            0 if open => Some(low),
            1 if open => Some(high),
            _ => None,
        };
        let written = selected.and_then(|old| merge(at, from, offset::DRIVER_FEATURE, old));
        if let Some(new) = written {
            let (low, high) = match self.driver_feature_select {
                0 => (new, high),
                _ => (low, new),
            };
            let (low, high) = (u32::from_le_bytes(low), u32::from_le_bytes(high));
            self.driver_features = u64::from(high) << 32 | u64::from(low);
        }
        let vector = self.config_vector.to_le_bytes();
        if let Some(value) = merge(at, from, offset::CONFIG_MSIX_VECTOR, vector) {
            self.config_vector = self.vector(u16::from_le_bytes(value));
        }
        let select = self.queue_select.to_le_bytes();
        if let Some(value) = merge(at, from, offset::QUEUE_SELECT, select) {
            self.queue_select = u16::from_le_bytes(value);
        }
        let mut cause = None;
        if self.write_queue(at, from).is_err() {
            cause = self.needs_reset();
        }
        if let Some([value]) = merge(at, from, offset::DEVICE_STATUS, [0]) {
            self.write_status(Status::from_bits(value));
        }
        cause
    }

    /// A vector that exists, or none.
    fn vector(&self, vector: u16) -> u16 {
        match vector < self.vectors {
            true => vector,
            false => NO_VECTOR,
        }
    }

    /// Writes the registers of the selected queue; an error if it is enabled
    /// where no queue can be.
    fn write_queue(&mut self, at: u64, from: &[u8]) -> Result<(), ()> {
        let Some(mut queue) = self.queue().copied() else {
            return Ok(());
        };
        let vector = queue.vector.to_le_bytes();
        if let Some(value) = merge(at, from, offset::QUEUE_MSIX_VECTOR, vector) {
            queue.vector = self.vector(u16::from_le_bytes(value));
        }
        let mut impossible = false;
        if !queue.enabled {
            let place = &mut queue.place;
            let size = place.size.to_le_bytes();
            if let Some(value) = merge(at, from, offset::QUEUE_SIZE, size) {
                place.size = u16::from_le_bytes(value);
            }
            for (register, address) in [
                (offset::QUEUE_DESC, &mut place.descriptors),
                (offset::QUEUE_DRIVER, &mut place.driver),
                (offset::QUEUE_DEVICE, &mut place.device),
            ] {
                if let Some(value) = merge(at, from, register, address.to_le_bytes()) {
                    *address = u64::from_le_bytes(value);
                }
            }
            let enable = merge(at, from, offset::QUEUE_ENABLE, [0; 2]);
            if enable.map(u16::from_le_bytes) == Some(1) {
                impossible = !place.is_possible();
                queue.enabled = !impossible;
            }
        }
        if let Some(slot) = self.queues.get_mut(usize::from(self.queue_select)) {
            *slot = queue;
        }
        match impossible {
            true => Err(()),
            false => Ok(()),
        }
    }

    fn write_status(&mut self, status: Status) {
        if status.into_bits() == 0 {
            match self.working {
                // Reads as before until the worker is out of its quantum.
                true => self.resetting = true,
                false => self.reset(),
            }
            return;
        }
        let accepted = self.status.features_ok() || self.is_acceptable();
        let features_ok = status.features_ok() && accepted;
        let was_live = self.status.driver_ok();
        let needs_reset = self.status.needs_reset();
        self.status = status
            .with_features_ok(features_ok)
            .with_driver_ok(status.driver_ok() && features_ok)
            .with_needs_reset(needs_reset);
        if self.status.driver_ok() && !was_live {
            // What was made available before is looked at once.
            self.notified = u32::MAX;
        }
    }

    /// Whether the driver's features are a choice from those offered.
    fn is_acceptable(&self) -> bool {
        let features = self.features();
        let offered = self.setup.features().into_bits();
        self.driver_features & !offered == 0
            && features.version_1()
            && (features.ctrl_vq() || !(features.mq() || features.ctrl_rx()))
    }

    /// The device can do no more until it is reset. Virtio 1.2 section 2.1.2.
    pub(super) fn needs_reset(&mut self) -> Option<Cause> {
        let first = !self.status.needs_reset();
        self.status.set_needs_reset(true);
        (first && self.status.driver_ok()).then_some(Cause::Configuration)
    }

    /// A write to the notification structure.
    pub(super) fn notify(&mut self, at: u64) -> After {
        let queue = at.checked_div(NOTIFY_MULTIPLIER.into());
        let queue = queue.and_then(|queue| u32::try_from(queue).ok());
        let bit = queue.and_then(|queue| 1_u32.checked_shl(queue));
        self.notified |= bit.unwrap_or(0);
        self.after()
    }

    /// Looks at `queues`, by bits, at the next quantum.
    pub(super) fn look_at(&mut self, queues: u32) -> After {
        self.notified |= queues;
        self.after()
    }

    fn is_live(&self) -> bool {
        self.status.driver_ok() && !self.status.needs_reset() && !self.resetting
    }

    /// Whether the worker has something to do.
    pub(super) fn after(&self) -> After {
        match self.is_live() && self.notified != 0 {
            true => After::Work,
            false => After::Nothing,
        }
    }

    /// A quantum begins; with `news` of the back end it looks at the first
    /// receive queue.
    pub(super) fn begin(&mut self, news: bool) -> Plan {
        self.working = true;
        self.notified |= u32::from(news);
        let notified = match self.is_live() {
            true => std::mem::take(&mut self.notified),
            false => 0,
        };
        let mut places = [Place::default(); MAX_QUEUES];
        for (place, queue) in places.iter_mut().zip(&self.queues) {
            if queue.enabled {
                *place = queue.place;
            }
        }
        let features = self.features();
        // Virtio 1.2 section 5.1.2: it follows the pairs, of which there is
        // one without MQ.
        let pairs = match features.mq() {
            true => self.setup.pairs,
            false => 1,
        };
        Plan {
            life: self.life,
            generation: self.generation,
            features,
            notified,
            pairs: self.pairs,
            places,
            control: usize::from(pairs).saturating_mul(2),
        }
    }

    /// The quantum has ended, with `more` to look at.
    pub(super) fn finish(&mut self, more: u32) -> After {
        self.working = false;
        if self.resetting {
            self.reset();
        }
        self.look_at(more)
    }

    /// Uses this many pairs; `false` if there are not so many.
    pub(super) fn use_pairs(&mut self, pairs: u16) -> bool {
        let possible = self.features().mq() && (1..=self.setup.pairs).contains(&pairs);
        if possible {
            self.pairs = pairs;
        }
        possible
    }

    /// The link came or went; says whether an interrupt follows.
    pub(super) fn set_link(&mut self, up: bool) -> Option<Cause> {
        if self.link == up {
            return None;
        }
        self.link = up;
        self.config_generation = self.config_generation.wrapping_add(1);
        let told = self.features().status() && self.status.driver_ok();
        told.then_some(Cause::Configuration)
    }

    /// The vector that tells a cause, or none.
    pub(super) fn vector_of(&self, cause: Cause) -> u16 {
        match cause {
            Cause::Queue(queue) => self
                .queues
                .get(queue)
                .map_or(NO_VECTOR, |queue| queue.vector),
            Cause::Configuration => self.config_vector,
        }
    }

    /// Without messages: a cause shows in ISR Status.
    pub(super) fn set_isr(&mut self, cause: Cause) {
        match cause {
            Cause::Queue(_) => self.isr.set_queue(true),
            Cause::Configuration => self.isr.set_configuration(true),
        }
    }
}
