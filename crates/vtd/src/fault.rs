//! Requests that were refused: recorded for the guest, and the fault event.
//! VT-d 4.1 sections 7.2 and 7.3.

use iogate_dma::{Access, Kind, Privilege, Request, RequesterId, Source};

use crate::Vtd;
use crate::registers::Registers;
use crate::spec::fault::Reason;
use crate::spec::registers::{FaultRecordHigh, FaultRecordLow, FaultStatus, offset};

/// What was refused, as a fault recording register wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) source: Source,
    /// Input address; for an interrupt its index, shifted as FRCD wants it.
    pub(crate) address: u64,
    pub(crate) access: Access,
    pub(crate) privilege: Privilege,
    pub(crate) what: What,
    pub(crate) reason: Reason,
}

/// What kind of request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// An access, or an ATS translation request.
    Access(Kind),
    /// A page request.
    PageRequest,
    /// An interrupt request.
    Interrupt,
}

impl Refused {
    /// A request, refused at its first byte.
    pub(crate) fn request(request: &Request, reason: Reason) -> Self {
        Self {
            source: request.source,
            address: request.span.first().0,
            access: request.access,
            privilege: request.privilege,
            what: What::Access(request.kind),
            reason,
        }
    }

    /// An interrupt request with this index of the remapping table.
    pub(crate) fn interrupt(source: RequesterId, index: u16, reason: Reason) -> Self {
        Self {
            source: source.into(),
            address: u64::from(index) << 48,
            access: Access::Write,
            privilege: Privilege::User,
            what: What::Interrupt,
            reason,
        }
    }

    /// The record of it, in use.
    fn record(&self) -> Record {
        let high = FaultRecordHigh::new()
            .with_fault(true)
            .with_source(self.source.requester.0)
            .with_reason(self.reason.0);
        let high = match self.what {
            What::Interrupt => high,
            What::Access(kind) => {
                let (type_1, type_2) = match self.access {
                    Access::Write => (false, false),
                    Access::Read | Access::Execute => (true, false),
                    Access::Atomic => (true, true),
                };
                high.with_type_1(type_1)
                    .with_type_2(type_2)
                    .with_address_type(match kind {
                        Kind::Untranslated => 0,
                        Kind::TranslationRequest => 1,
                        Kind::Translated => 2,
                    })
            }
            What::PageRequest => high.with_type_2(true),
        };
        let high = match self.source.pasid {
            None => high,
            Some(pasid) => high
                .with_pasid_present(true)
                .with_pasid(pasid.as_u32())
                .with_privileged(self.privilege == Privilege::Supervisor)
                .with_execute(self.access == Access::Execute),
        };
        Record {
            low: FaultRecordLow::new().with_info(self.address >> 12),
            high,
        }
    }
}

/// One fault recording register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Record {
    pub(crate) low: FaultRecordLow,
    pub(crate) high: FaultRecordHigh,
}

/// FSTS_REG and the fault recording registers.
#[derive(Debug)]
pub(crate) struct Faults {
    pub(crate) overflow: bool,
    pub(crate) queue_error: bool,
    pub(crate) completion_error: bool,
    pub(crate) time_out: bool,
    /// The record that made PPF set.
    pub(crate) first: u8,
    pub(crate) records: Vec<Record>,
    /// Where the next fault is recorded.
    pub(crate) next: usize,
}

impl Faults {
    pub(crate) fn new(records: u16) -> Self {
        Self {
            overflow: false,
            queue_error: false,
            completion_error: false,
            time_out: false,
            first: 0,
            records: vec![Record::default(); records.into()],
            next: 0,
        }
    }

    /// PPF: whether a record is in use.
    fn is_pending(&self) -> bool {
        self.records.iter().any(|record| record.high.fault())
    }

    /// FSTS_REG.
    pub(crate) fn status(&self) -> FaultStatus {
        let pending = self.is_pending();
        FaultStatus::new()
            .with_overflow(self.overflow)
            .with_pending(pending)
            .with_queue_error(self.queue_error)
            .with_completion_error(self.completion_error)
            .with_time_out(self.time_out)
            .with_record(if pending { self.first } else { 0 })
    }

    /// Whether nothing is left that the guest has to service.
    fn is_clear(&self) -> bool {
        let errors = self.queue_error || self.completion_error || self.time_out;
        !errors && !self.overflow && !self.is_pending()
    }

    /// Neither requests nor interrupts are remapped any more: faults are
    /// recorded from the first register on again. Section 7.2.
    pub(crate) fn restart(&mut self) {
        self.next = 0;
    }

    /// The 8 bytes at `slot` of the register page.
    pub(crate) fn quad(&self, slot: u16) -> u64 {
        let (index, half) = place(slot);
        match self.records.get(index) {
            Some(record) if half == Half::Low => record.low.into_bits(),
            Some(record) => record.high.into_bits(),
            None => 0,
        }
    }

    /// Records a fault, unless it repeats the newest record, or cannot be
    /// recorded.
    fn record(&mut self, record: Record) {
        let newest = match self.next.checked_sub(1) {
            Some(newest) => newest,
            None => self.records.len().wrapping_sub(1),
        };
        // Section 11.4.7.6, F: faults of a source that has one pending may be
        // collapsed. Those that would say nothing new are.
        if self.overflow || self.records.get(newest) == Some(&record) {
            return;
        }
        let was_pending = self.is_pending();
        let count = self.records.len();
        match self.records.get_mut(self.next) {
            Some(register) if !register.high.fault() => *register = record,
            _ => {
                self.overflow = true;
                return;
            }
        }
        if !was_pending {
            self.first = u8::try_from(self.next).unwrap_or(u8::MAX);
        }
        self.next = match self.next.wrapping_add(1) {
            next if next < count => next,
            _ => 0,
        };
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Low,
    High,
}

/// Which record, and which half of it, stands at `at`.
fn place(at: u16) -> (usize, Half) {
    let half = if at & 8 == 0 { Half::Low } else { Half::High };
    match at.checked_sub(offset::FRCD) {
        Some(within) => (usize::from(within >> 4), half),
        None => (usize::MAX, half),
    }
}

impl Registers {
    /// Changes the fault status and raises the fault event, unless another
    /// cause of it is pending already. Section 7.3.
    pub(crate) fn raise_fault_event(&mut self, act: impl FnOnce(&mut Faults)) {
        let was_clear = self.faults.is_clear();
        act(&mut self.faults);
        if was_clear && !self.faults.is_clear() {
            self.outbox.extend(self.fault_event.raise());
        }
    }

    /// The guest writes FSTS_REG.
    pub(crate) fn write_fault_status(&mut self, value: u32) {
        let cleared = FaultStatus::from_bits(value);
        let faults = &mut self.faults;
        faults.overflow &= !cleared.overflow();
        faults.queue_error &= !cleared.queue_error();
        faults.completion_error &= !cleared.completion_error();
        faults.time_out &= !cleared.time_out();
        self.fault_serviced();
    }

    /// The guest writes a dword of a fault recording register: F alone can be
    /// written, and cleared.
    pub(crate) fn write_fault_record(&mut self, at: u16, value: u32) {
        let (index, half) = place(at);
        if half == Half::Low || at & 4 == 0 || value >> 31 == 0 {
            return;
        }
        if let Some(record) = self.faults.records.get_mut(index) {
            record.high.set_fault(false);
            self.fault_serviced();
        }
    }

    fn fault_serviced(&mut self) {
        if self.faults.is_clear() {
            self.fault_event.serviced();
        }
    }
}

impl Vtd {
    /// Records a refused request that is to be recorded (Fault Processing
    /// Disable was looked at), and raises the fault event. Called under guards:
    /// it takes the registers' lock for a moment and calls `deliver`, which
    /// does not block.
    pub(crate) fn record(&self, refused: &Refused) {
        tracing::event!(
            name: "vtd_fault",
            target: "iogate",
            tracing::Level::INFO,
            source = %refused.source,
            address = %format_args!("{:#x}", refused.address),
            access = %refused.access,
            reason = refused.reason.0,
            result = refused.reason.text(),
        );
        let record = refused.record();
        self.with_registers(|registers| {
            registers.raise_fault_event(|faults| faults.record(record));
        });
    }
}
