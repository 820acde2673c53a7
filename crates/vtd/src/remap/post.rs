//! Posting: an interrupt that is set in a descriptor in memory, of which its
//! owner is notified. VT-d 4.1 section 5.2.
//!
//! The guest's memory must be able to [compare and
//! exchange](iogate_dma::Memory::compare_exchange): where it cannot, posting is
//! a failed access to the descriptor. Hardware changes the whole descriptor at
//! once; here the request is set first and the notification decided by the
//! word that holds it, so that an owner which clears ON and then takes the
//! requests misses none.

use iogate_dma::{Gpa, MemoryError, Message, Width};

use super::{Blocked, Cause, destination};
use crate::Vtd;
use crate::spec::interrupt::Interrupt;
use crate::spec::posted::{NOTIFICATION, Notification, REQUEST_WORD, RESERVED_WORDS};

/// How often a word is tried that others keep changing.
const TRIES: usize = 1024;

/// An interrupt that is to be posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Posting {
    /// The descriptor, a multiple of 64.
    pub descriptor: Gpa,
    /// The vector that is set in it.
    pub vector: u8,
    /// Whether notifications cannot be suppressed.
    pub urgent: bool,
    /// The entry that says so.
    pub index: u16,
    /// Whether the entry has failures not recorded.
    pub silent: bool,
}

impl Vtd {
    /// Posts an interrupt. Returns the notification to deliver, if one is.
    pub(super) fn post(&self, posting: Posting) -> Result<Option<Message>, Blocked> {
        let blocked = |cause| Blocked::by(posting.index, cause, posting.silent);
        let failed = |_: MemoryError| blocked(Cause::Descriptor);
        let at = |offset: u64| posting.descriptor.0.saturating_add(offset);
        let mut reserved = self
            .ram
            .load(at(NOTIFICATION), Width::Qword)
            .map_err(failed)?
            & Notification::RESERVED;
        for offset in RESERVED_WORDS {
            reserved |= self.ram.load(at(offset), Width::Qword).map_err(failed)?;
        }
        if reserved != 0 {
            return Err(blocked(Cause::DescriptorReserved));
        }
        let word = u64::from(posting.vector >> 6).saturating_mul(REQUEST_WORD);
        let request = 1_u64 << (posting.vector & 63);
        self.change(at(word), |requests| Some(requests | request))
            .map_err(failed)?;
        let before = self
            .change(at(NOTIFICATION), |word| {
                let word = Notification::from_bits(word);
                notifies(word, posting).then(|| word.with_outstanding(true).into_bits())
            })
            .map_err(failed)?;
        let before = Notification::from_bits(before);
        let interrupt = Interrupt {
            logical: false,
            redirection_hint: false,
            level: false,
            delivery_mode: 0,
            vector: before.vector(),
            destination: destination(before.destination(), self.extended()),
        };
        Ok(notifies(before, posting).then(|| interrupt.message()))
    }

    /// Replaces the word at `address` by what `change` makes of it, atomically,
    /// unless that is `None`. Returns what stood there.
    fn change(
        &self,
        address: u64,
        change: impl Fn(u64) -> Option<u64>,
    ) -> Result<u64, MemoryError> {
        let mut seen = self.ram.load(address, Width::Qword)?;
        for _ in 0..TRIES {
            let Some(new) = change(seen) else {
                return Ok(seen);
            };
            let found = self
                .ram
                .compare_exchange(address, Width::Qword, seen, new)?;
            if found == seen {
                return Ok(seen);
            }
            seen = found;
        }
        Err(MemoryError::NotAtomic { address })
    }
}

/// Section 5.2.3: none is outstanding, and they are not suppressed or the
/// interrupt is urgent.
fn notifies(word: Notification, posting: Posting) -> bool {
    !word.outstanding() && (posting.urgent || !word.suppressed())
}
