//! What of the registers moves to another device, and how it is checked there.

use iogate_pci::{StateError, StateReader, StateWriter};

use super::super::ring::Place;
use super::super::spec::common::{Isr, Status};
use super::State;

impl State {
    /// Tells one initialization by a driver from the next.
    pub(in super::super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(in super::super) fn is_enabled(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(|queue| queue.enabled)
    }

    /// Whether the state came from elsewhere and its driver, which is at
    /// work, is not yet woken; then it counts as woken.
    pub(in super::super) fn take_loaded(&mut self) -> bool {
        std::mem::take(&mut self.loaded) && self.status.driver_ok()
    }

    /// What another device must have in common with this one.
    pub(in super::super) fn shape(&self, into: &mut StateWriter) {
        into.u16(self.setup.pairs);
        into.u64(self.setup.features().into_bits());
    }

    /// Writes all that the driver has set up and can see.
    pub(in super::super) fn save(&self, into: &mut StateWriter) {
        into.bytes(&self.setup.mac);
        into.bool(self.link);
        into.u32(self.device_feature_select);
        into.u32(self.driver_feature_select);
        into.u64(self.driver_features);
        into.u16(self.config_vector);
        into.u8(self.config_generation);
        into.u8(self.status.into_bits());
        into.u16(self.queue_select);
        into.u8(self.isr.into_bits());
        into.u16(self.pairs);
        for queue in self.queues.iter().take(self.setup.queues().into()) {
            let Place {
                size,
                descriptors,
                driver,
                device,
            } = queue.place;
            into.u16(size);
            into.u64(descriptors);
            into.u64(driver);
            into.u64(device);
            into.u16(queue.vector);
            into.bool(queue.enabled);
        }
    }

    /// The state that another device's [`save`](Self::save) wrote, as one of
    /// this device in its present life.
    pub(in super::super) fn load(&self, from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let mut new = self.anew(self.life);
        let mac = from.array()?;
        let [first, ..]: [u8; 6] = mac;
        if first & 1 != 0 {
            return Err(StateError::Impossible("a MAC address of a group"));
        }
        new.setup.mac = mac;
        let link = from.bool()?;
        new.device_feature_select = from.u32()?;
        new.driver_feature_select = from.u32()?;
        new.driver_features = from.u64()?;
        new.config_vector = self.moved_vector(from)?;
        new.config_generation = from.u8()?;
        let status = from.u8()?;
        new.status = Status::from_bits(status & !RESERVED_STATUS);
        new.queue_select = from.u16()?;
        let isr = from.u8()?;
        new.isr = Isr::from_bits(isr & !RESERVED_ISR);
        new.pairs = from.u16()?;
        let queues = usize::from(self.setup.queues());
        for queue in new.queues.iter_mut().take(queues) {
            queue.place = Place {
                size: from.u16()?,
                descriptors: from.u64()?,
                driver: from.u64()?,
                device: from.u64()?,
            };
            queue.vector = self.moved_vector(from)?;
            queue.enabled = from.bool()?;
            if queue.enabled && !queue.place.is_possible() {
                return Err(StateError::Impossible("a queue where none can be"));
            }
        }
        let accepted = !new.status.features_ok() || new.is_acceptable();
        let begun = !new.status.driver_ok() || new.status.features_ok();
        if status & RESERVED_STATUS != 0 || !accepted || !begun {
            return Err(StateError::Impossible("a status that no driver reaches"));
        }
        let pairs = match new.features().mq() {
            true => 1..=self.setup.pairs,
            false => 1..=1,
        };
        if isr & RESERVED_ISR != 0 || !pairs.contains(&new.pairs) {
            return Err(StateError::Impossible("registers that nobody can set"));
        }
        if link != new.link {
            new.config_generation = new.config_generation.wrapping_add(1);
        }
        // A notification may have been on its way.
        new.notified = u32::MAX;
        new.loaded = true;
        Ok(new)
    }

    fn moved_vector(&self, from: &mut StateReader<'_>) -> Result<u16, StateError> {
        let vector = from.u16()?;
        match self.vector(vector) == vector {
            true => Ok(vector),
            false => Err(StateError::Impossible("a vector that does not exist")),
        }
    }
}

/// Bits of Device Status and ISR Status that have no meaning.
const RESERVED_STATUS: u8 = 0x30;
const RESERVED_ISR: u8 = 0xfc;
