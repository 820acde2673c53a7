//! When the device looks for the next packet by itself before it asks for a
//! notification.
//!
//! A notification costs the driver a trap, many times what a look costs. A
//! driver that runs beside the device and goes on at once is seen without
//! one. Where looks are in vain, as for a driver that shares the device's
//! processor, they are soon given up, and tried again now and then.

/// Looks after the last packet: some tens of microseconds.
const LOOKS: u16 = 256;
/// After so many watches in vain there are none for a while.
const IN_VAIN: u16 = 4;
/// Notified batches of packets until the next try. A try where the driver shares
/// the processor may cost a time slice.
const PAUSE: u16 = 4096;

/// What came of the last watches over a queue.
#[derive(Default)]
pub(super) struct Watch {
    in_vain: u16,
    pause: u16,
}

impl Watch {
    /// How many looks a watch that begins now has.
    pub(super) fn looks(&mut self) -> u16 {
        if self.in_vain >= IN_VAIN {
            self.pause = self.pause.saturating_sub(1);
            if self.pause != 0 {
                return 0;
            }
            // One try.
            self.in_vain = IN_VAIN.saturating_sub(1);
        }
        LOOKS
    }

    /// The watch has found something.
    pub(super) fn found(&mut self) {
        self.in_vain = self.in_vain.saturating_sub(1);
    }

    /// The watch has found nothing.
    pub(super) fn missed(&mut self) {
        self.in_vain = self.in_vain.saturating_add(1);
        self.pause = PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_in_vain_are_given_up_and_tried_again_after_a_pause() {
        let mut watch = Watch::default();
        for _ in 0..IN_VAIN {
            assert_eq!(watch.looks(), LOOKS);
            watch.missed();
        }
        for _ in 0..2 {
            for _ in 1..PAUSE {
                assert_eq!(watch.looks(), 0);
            }
            assert_eq!(watch.looks(), LOOKS);
            watch.missed();
        }
    }

    #[test]
    fn a_watch_that_finds_something_is_followed_by_others() {
        let mut watch = Watch::default();
        for _ in 0..3 * IN_VAIN {
            assert_eq!(watch.looks(), LOOKS);
            watch.missed();
            assert_eq!(watch.looks(), LOOKS);
            watch.found();
        }
    }
}
