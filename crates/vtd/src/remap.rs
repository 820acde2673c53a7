//! Interrupt remapping: what becomes of a message that a function writes.
//! VT-d 4.1 section 5.

mod behind;
mod blocked;
mod entries;
mod post;
mod routes;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_dma::{
    Access, Gate, InFlight, Interrupts, Iova, Line, MemoryError, Message, Outcome, Participant,
    Request, RequesterId, Source, Span, Translate as _, Width,
};

use crate::fault::Refused;
use crate::spec::interrupt::{Format, Interrupt};
use crate::spec::irte::{self, Irte, PostedLow, RemappedLow, SourceCheck};
use crate::spec::registers::{Global, InterruptTableAddress};
use crate::{Capabilities, Vtd};

pub use blocked::{Blocked, Cause};
pub use post::Posting;
pub use routes::{Route, Routed};

use behind::Behind;
use entries::{Entries, Entry};
use routes::Routes;

/// How often an entry is read again that changes while it is read.
const RETRIES: usize = 8;

/// Threads that can send at once without waiting for each other.
const SEATS: usize = 8;

/// The interrupt entry cache, the routes that depend on it, and who may send.
pub(crate) struct Remapping {
    entries: Entries,
    routes: Routes,
    behind: Behind,
    /// Whether the posted format is offered.
    posted: bool,
    /// What makes invalidations wait for messages on their way.
    seats: [Mutex<Participant>; SEATS],
}

impl Remapping {
    pub(crate) fn new(
        gate: &Arc<Gate>,
        scope: Option<&BTreeSet<RequesterId>>,
        capabilities: &Capabilities,
    ) -> Self {
        Self {
            entries: Entries::new(),
            routes: Routes::default(),
            behind: Behind::new(scope),
            posted: capabilities.has_posted_interrupts(),
            seats: std::array::from_fn(|_| Mutex::new(gate.join())),
        }
    }

    /// A place at the gate, for a thread that has none of its own.
    // The seat is below SEATS.
    #[allow(clippy::indexing_slicing)]
    fn seat(&self) -> MutexGuard<'_, Participant> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static SEAT: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SEATS;
        }
        self.seats[SEAT.with(|seat| *seat)]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of a message that is let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Remapped {
    /// It is this one for the interrupt controller. With extended interrupt
    /// mode bits 31:8 of the destination stand in bits 63:40 of the address,
    /// as KVM takes them.
    Message(Message),
    /// It is written to a posted interrupt descriptor.
    Posted(Posting),
}

/// Which entries of the interrupt entry cache are invalidated. VT-d 4.1 section
/// 6.5.2.7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InterruptEntries {
    All,
    /// The 2 to the power of `mask` entries that `index` lies among, aligned.
    Selected {
        index: u16,
        mask: u8,
    },
}

impl InterruptEntries {
    /// First and last index.
    fn range(self) -> (u16, u16) {
        match self {
            Self::All => (0, u16::MAX),
            Self::Selected { index, mask } => {
                let beyond = 1_u32.checked_shl(mask.into()).unwrap_or(0);
                let low = u16::try_from(beyond.wrapping_sub(1)).unwrap_or(u16::MAX);
                (index & !low, index | low)
            }
        }
    }
}

impl Vtd {
    /// What becomes of `message` if `source` writes it now. Nothing is
    /// delivered, posted or recorded: that is [`send_msi`](Self::send_msi)'s.
    ///
    /// Takes no lock, and neither allocates nor makes a system call when the
    /// entry is cached. Who keeps the result instead of asking for each message
    /// wants to know when it changes: see [`route`](Self::route).
    ///
    /// # Errors
    /// If the message is blocked.
    #[inline]
    pub fn remap(&self, source: RequesterId, message: Message) -> Result<Remapped, Blocked> {
        if !self.remapping.behind.contains(source) {
            return Err(Blocked::of(Cause::NotBehind));
        }
        let status = Global::from_bits(self.live.status());
        let format = Format::of(message);
        if format == Format::NoInterrupt {
            return Err(Blocked::of(Cause::NoInterrupt));
        }
        if !status.interrupt_remapping() {
            return Ok(Remapped::Message(message));
        }
        let table = InterruptTableAddress::from_bits(self.live.interrupt_table());
        let Format::Remappable { index, reserved } = format else {
            // Section 5.1.4: with extended interrupt mode CFIS says nothing.
            return if status.compatibility_interrupts() && !table.extended() {
                Ok(Remapped::Message(message))
            } else {
                Err(Blocked::of(Cause::Compatibility))
            };
        };
        if reserved {
            return Err(Blocked::at(index, Cause::RequestReserved));
        }
        // Section 11.4.10: the table has 2 to the power of Size + 1 entries.
        if index >> 1 >> table.size() != 0 {
            return Err(Blocked::at(index, Cause::Index));
        }
        // Below the largest table's 65,536.
        #[allow(clippy::cast_possible_truncation)]
        let index = index as u16;
        match self.remapping.entries.get(index) {
            Some(entry) if entry.source().admits(source) => Ok(Remapped::Message(entry.message())),
            Some(entry) => Err(Blocked::by(index, Cause::Source, entry.is_silent())),
            None => self.look_up(source, index),
        }
    }

    /// Reads the entry from memory, and caches it if it is of the remapped
    /// format: a posted one needs memory for each interrupt anyway.
    #[cold]
    #[inline(never)]
    fn look_up(&self, source: RequesterId, index: u16) -> Result<Remapped, Blocked> {
        let vacancy = self.remapping.entries.vacancy(index);
        // Behind the vacancy: if the table is another one now, what is read
        // here finds the vacancy gone.
        let table = InterruptTableAddress::from_bits(self.live.interrupt_table());
        let entry = self
            .fetch(table, index)
            .map_err(|_| Blocked::at(index.into(), Cause::Table))?;
        tracing::event!(
            name: "vtd_irte_fetch",
            target: "iogate",
            tracing::Level::TRACE,
            source = %source,
            index,
            high = format_args!("{:#018x}", entry.high),
            low = format_args!("{:#018x}", entry.low),
        );
        let blocked = |cause| Err(Blocked::by(index, cause, entry.is_silent()));
        if !entry.is_present() {
            return blocked(Cause::NotPresent);
        }
        let extended = table.extended();
        let reserved =
            entry.low & self.reserved_low(entry, extended) | entry.high & reserved_high(entry);
        if reserved != 0 {
            return blocked(Cause::EntryReserved);
        }
        if !entry.source().admits(source) {
            return blocked(Cause::Source);
        }
        if entry.is_posted() {
            return Ok(Remapped::Posted(posting(index, entry)));
        }
        let interrupt = interrupt(entry, extended);
        if let Some(cached) = Entry::new(interrupt, entry.source(), entry.is_silent()) {
            vacancy.fill(cached);
        }
        Ok(Remapped::Message(interrupt.message()))
    }

    /// Both halves of an entry as they stood there at one moment: software
    /// changes them at once.
    fn fetch(&self, table: InterruptTableAddress, index: u16) -> Result<Irte, MemoryError> {
        let offset = u64::from(index).saturating_mul(irte::BYTES);
        let address = (table.page() << 12).saturating_add(offset);
        let mut low = self.ram.load(address, Width::Qword)?;
        let mut high = 0;
        for _ in 0..RETRIES {
            high = self.ram.load(address.saturating_add(8), Width::Qword)?;
            let again = self.ram.load(address, Width::Qword)?;
            if again == low {
                break;
            }
            low = again;
        }
        Ok(Irte { low, high })
    }

    fn reserved_low(&self, entry: Irte, extended: bool) -> u64 {
        const MODE: u64 = 1 << 15;
        match (entry.is_posted(), self.remapping.posted) {
            (true, true) => PostedLow::RESERVED,
            // Section 9.9: the mode is reserved where CAP.PI is clear.
            (true, false) => MODE,
            (false, _) if extended => RemappedLow::RESERVED,
            (false, _) => RemappedLow::RESERVED | RemappedLow::RESERVED_XAPIC,
        }
    }

    /// Whether extended interrupt mode is on.
    fn extended(&self) -> bool {
        InterruptTableAddress::from_bits(self.live.interrupt_table()).extended()
    }

    /// A function wrote `message`: it is remapped and delivered, or posted, or
    /// blocked and recorded. What is written elsewhere than to
    /// fee00000-feefffff is a DMA write of four bytes, and translated as such.
    ///
    /// Posting wants memory that can [compare and
    /// exchange](iogate_dma::Memory::compare_exchange); where it cannot, the
    /// interrupt is blocked as one whose descriptor cannot be accessed.
    ///
    /// When an invalidation of interrupt entries is done, what was remapped by
    /// the entries of before has been delivered.
    pub fn send_msi(&self, source: RequesterId, message: Message) {
        let mut seat = self.remapping.seat();
        let guard = seat.enter();
        let blocked = match self.remap(source, message) {
            Ok(Remapped::Message(message)) => {
                (self.deliver)(message);
                return;
            }
            Ok(Remapped::Posted(posting)) => match self.post(posting) {
                Ok(notification) => {
                    if let Some(notification) = notification {
                        (self.deliver)(notification);
                    }
                    return;
                }
                Err(blocked) => blocked,
            },
            Err(Blocked {
                cause: Cause::NoInterrupt,
                ..
            }) => {
                self.write_dword(&guard, source, message);
                return;
            }
            Err(blocked) => blocked,
        };
        self.block(source, message, blocked);
    }

    /// A message that is no interrupt is a write. Its refusal was recorded.
    fn write_dword(&self, guard: &InFlight<'_>, source: RequesterId, message: Message) {
        let Some(span) = Span::with_length(Iova(message.address), 4) else {
            return;
        };
        let request = Request::new(source.into(), span, Access::Write);
        if let Ok(Outcome::Memory(run)) = self.translate(guard, &request) {
            // Memory that is not there takes a write as a bus does: silently.
            let _ = run.write(&message.data.to_le_bytes());
        }
    }

    fn block(&self, source: RequesterId, message: Message, blocked: Blocked) {
        tracing::event!(
            name: "vtd_interrupt_blocked",
            target: "iogate",
            tracing::Level::DEBUG,
            source = %source,
            address = format_args!("{:#x}", message.address),
            data = format_args!("{:#x}", message.data),
            index = blocked.index,
            cause = %blocked.cause,
        );
        let Some(reason) = blocked.cause.reason().filter(|_| !blocked.silent) else {
            return;
        };
        self.record(&Refused::interrupt(source, blocked.index, reason));
    }

    /// Drops cached entries and tells the routes concerned. When it returns
    /// nothing is delivered any more by what the entries said before. Called
    /// without a guard or the registers held.
    pub(crate) fn invalidate_interrupt_entries(&self, batch: &[InterruptEntries]) {
        for entries in batch {
            let (first, last) = entries.range();
            self.remapping.entries.clear(first, last);
        }
        self.gate.grace().wait();
        for entries in batch {
            let (first, last) = entries.range();
            self.tell_routes(first.into(), last.into());
        }
    }

    /// The table, or whether interrupts are remapped at all, is another now:
    /// everything is looked up again. Called as
    /// [`invalidate_interrupt_entries`](Self::invalidate_interrupt_entries) is.
    pub(crate) fn interrupt_remapping_changed(&self) {
        self.remapping.entries.clear(0, u16::MAX);
        self.gate.grace().wait();
        self.tell_routes(0, u32::MAX);
    }
}

impl Interrupts for Vtd {
    fn message(&self, source: Source, message: Message) {
        self.send_msi(source.requester, message);
    }

    /// Lines end at an I/O APIC, which sends messages.
    fn line(&self, _source: Source, _line: Line) {}
}

fn reserved_high(entry: Irte) -> u64 {
    if entry.is_posted() {
        SourceCheck::RESERVED_POSTED
    } else {
        SourceCheck::RESERVED
    }
}

fn interrupt(entry: Irte, extended: bool) -> Interrupt {
    let low = RemappedLow::from_bits(entry.low);
    Interrupt {
        logical: low.logical(),
        redirection_hint: low.redirection_hint(),
        level: low.level(),
        delivery_mode: low.delivery_mode(),
        vector: low.vector(),
        destination: destination(low.destination(), extended),
    }
}

/// The id in a destination field: all of it, or bits 15:8.
fn destination(field: u32, extended: bool) -> u32 {
    if extended { field } else { field >> 8 & 0xff }
}

fn posting(index: u16, entry: Irte) -> Posting {
    let low = PostedLow::from_bits(entry.low);
    let high = u64::from(entry.source().descriptor_high());
    Posting {
        descriptor: iogate_dma::Gpa(high << 32 | u64::from(low.descriptor_low()) << 6),
        vector: low.vector(),
        urgent: low.urgent(),
        index,
        silent: entry.is_silent(),
    }
}
