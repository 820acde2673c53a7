//! Messages of the unit itself (fault, invalidation, page-request events) on
//! their way to the guest. VT-d 4.1 sections 7.3, 6.5.2.8, 7.5.

use iogate_dma::Message;

use crate::spec::registers::EventControl;

/// Takes a message to the guest's interrupt controller. It must not block and
/// must not call the unit.
pub(crate) type Deliver = Box<dyn Fn(Message) + Send + Sync>;

/// The four registers of one event: control, data, address, upper address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Event {
    pub(crate) masked: bool,
    pub(crate) pending: bool,
    pub(crate) data: u32,
    pub(crate) address: u64,
}

/// One register of an event, by its place among the four.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Control,
    Data,
    Address,
    UpperAddress,
}

impl Event {
    /// At power-on: masked.
    pub(crate) const RESET: Self = Self {
        masked: true,
        pending: false,
        data: 0,
        address: 0,
    };

    /// The cause has come up: its message, or none while it is held back.
    pub(crate) fn raise(&mut self) -> Option<Message> {
        self.pending = self.masked;
        (!self.masked).then_some(Message {
            address: self.address,
            data: self.data,
        })
    }

    /// The guest cleared every status that the event is of: a message held back
    /// is dropped.
    pub(crate) fn serviced(&mut self) {
        self.pending = false;
    }

    /// Control and data as they stand in the page.
    pub(crate) fn control_and_data(&self) -> u64 {
        let control = EventControl::new()
            .with_pending(self.pending)
            .with_masked(self.masked);
        u64::from(control.into_bits()) | u64::from(self.data) << 32
    }

    /// The guest writes one of the four: the message that it lets go.
    pub(crate) fn write(&mut self, part: Part, value: u32) -> Option<Message> {
        const LOW: u64 = 0xffff_ffff;
        match part {
            Part::Control => {
                self.masked = EventControl::from_bits(value).masked();
                if self.pending {
                    return self.raise();
                }
            }
            Part::Data => self.data = value,
            Part::Address => self.address = self.address & !LOW | u64::from(value & !3),
            Part::UpperAddress => self.address = self.address & LOW | u64::from(value) << 32,
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programmed() -> Event {
        let mut event = Event::RESET;
        event.write(Part::Data, 0x1_0021);
        event.write(Part::Address, 0xfee0_100f);
        event.write(Part::UpperAddress, 0x12);
        event
    }

    #[test]
    fn a_masked_event_is_held_back_until_it_is_unmasked() {
        let mut event = programmed();
        assert_eq!(event.raise(), None);
        assert_eq!(event.control_and_data() as u32, 3 << 30);
        let message = Message {
            address: 0x12_fee0_100c,
            data: 0x1_0021,
        };
        assert_eq!(event.write(Part::Control, 0), Some(message));
        assert_eq!(event.control_and_data() as u32, 0);
        assert_eq!(event.write(Part::Control, 0), None, "sent once");
    }

    #[test]
    fn a_held_message_is_dropped_when_its_causes_are_serviced() {
        let mut event = programmed();
        event.raise();
        event.serviced();
        assert_eq!(event.write(Part::Control, 0), None);
    }

    #[test]
    fn the_pending_bit_cannot_be_written() {
        let mut event = programmed();
        assert_eq!(event.write(Part::Control, 3 << 30), None);
        assert_eq!(event.control_and_data() as u32, 1 << 31);
    }
}
