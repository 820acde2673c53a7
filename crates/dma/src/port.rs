//! A device model's way to memory: requests in, bytes or a fault out.

use std::sync::Arc;

use crate::{
    Access, Atc, Attachment, Fault, FaultReason, FaultSink, Interrupts, Iova, MemoryError, Message,
    Outcome, Participant, Pasid, Request, Source, Span, Translate, Width, WriteLog,
};

/// Why a device's access did not happen. The fault is already reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DmaError {
    /// The access was refused.
    #[error(transparent)]
    Refused(#[from] Fault),
    /// The access is empty or passes the top of the address space.
    #[error("the access is empty or wraps around the address space")]
    Malformed,
    /// The caller's own condition stopped it; nothing is reported.
    #[error("the access was stopped by the device")]
    Stopped,
}

/// The port through which one function does DMA. It belongs to the function's
/// worker; nothing is locked and nothing is allocated on the way.
///
/// It remembers no translation of its own: spaces answer in a few nanoseconds.
/// A function with ATS has an [`Atc`] because its driver counts on it.
pub struct Port {
    source: Source,
    attachment: Arc<Attachment>,
    participant: Participant,
    faults: Arc<dyn FaultSink>,
    version: u64,
    space: Option<Arc<dyn Translate>>,
    /// Where writes are marked.
    log: Option<Arc<WriteLog>>,
    interrupts: Option<Arc<dyn Interrupts>>,
    atc: Option<Arc<Atc>>,
}

/// Pieces that are done under one guard, at most. Entering costs as much as
/// some translations do; who waits for a grace waits for no more than these.
const PIECES: u32 = 16;

/// What an access came to that was made.
enum Made {
    Access,
    /// It was an interrupt.
    Message(Message),
}

impl Port {
    /// The port of `source`, whose requests enter the space that `attachment`
    /// names.
    pub fn new(
        source: Source,
        attachment: Arc<Attachment>,
        participant: Participant,
        faults: Arc<dyn FaultSink>,
    ) -> Self {
        let (version, space) = attachment.get();
        Self {
            log: attachment.log(),
            source,
            attachment,
            participant,
            faults,
            version,
            space,
            interrupts: None,
            atc: None,
        }
    }

    /// Sends interrupts that are written through this port, as 4 aligned bytes
    /// to an address that is a doorbell, to `interrupts`. Without it such
    /// writes are refused.
    #[must_use]
    pub fn with_interrupts(self, interrupts: Arc<dyn Interrupts>) -> Self {
        Self {
            interrupts: Some(interrupts),
            ..self
        }
    }

    /// Asks for translations by `atc` while it is enabled. What the IOMMU gives
    /// no right to is then tried untranslated, so that it is refused as any
    /// other request.
    #[must_use]
    pub fn with_atc(self, atc: Arc<Atc>) -> Self {
        Self {
            atc: Some(atc),
            ..self
        }
    }

    /// Who this port's requests come from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Has further requests carry `pasid`, or none.
    pub fn set_pasid(&mut self, pasid: Option<Pasid>) {
        self.source.pasid = pasid;
    }

    /// Reads `into.len()` bytes at `iova`. On an error a part may be filled.
    pub fn read(&mut self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        self.read_while(iova, into, || true)
    }

    /// Like [`read`](Self::read), for as long as `alive` says yes. It is asked
    /// under the guard of each piece: who makes it say no and then waits for
    /// a [`Grace`](crate::Grace) has seen the last of the access.
    pub fn read_while(
        &mut self,
        iova: Iova,
        into: &mut [u8],
        alive: impl Fn() -> bool,
    ) -> Result<(), DmaError> {
        let mut rest = into;
        self.walk(iova, rest.len(), Access::Read, alive, |outcome, length| {
            let (now, later) = std::mem::take(&mut rest)
                .split_at_mut_checked(length)
                .unwrap_or_default();
            rest = later;
            match outcome {
                Outcome::Memory(run) => run.read(now).map(|()| Made::Access),
                Outcome::Message { address } => Err(MemoryError::Absent { address: *address }),
            }
        })
    }

    /// Writes `from` at `iova`. On an error a part may be written.
    pub fn write(&mut self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        self.write_while(iova, from, || true)
    }

    /// Like [`write`](Self::write), for as long as `alive` says yes, as in
    /// [`read_while`](Self::read_while).
    pub fn write_while(
        &mut self,
        iova: Iova,
        from: &[u8],
        alive: impl Fn() -> bool,
    ) -> Result<(), DmaError> {
        let mut rest = from;
        self.walk(iova, from.len(), Access::Write, alive, |outcome, length| {
            let (now, later) = rest.split_at_checked(length).unwrap_or_default();
            rest = later;
            match outcome {
                Outcome::Memory(run) => run.write(now).map(|()| Made::Access),
                Outcome::Message { .. } => message(outcome, now),
            }
        })
    }

    /// Reads `width` bytes at `iova`, little-endian, as one access with acquire
    /// order where they lie in one piece of memory that can do that, and as
    /// bytes elsewhere; while `alive` says yes.
    pub fn load_while(
        &mut self,
        iova: Iova,
        width: Width,
        alive: impl Fn() -> bool,
    ) -> Result<u64, DmaError> {
        let mut bytes = [0; 8];
        let mut rest = bytes_of(&mut bytes, width);
        let length = rest.len();
        self.walk(iova, length, Access::Read, alive, |outcome, length| {
            let (now, later) = std::mem::take(&mut rest)
                .split_at_mut_checked(length)
                .unwrap_or_default();
            rest = later;
            match outcome {
                Outcome::Memory(run) if run.length() >= width.bytes() => match run.load(width) {
                    Ok(value) => {
                        for (to, from) in now.iter_mut().zip(value.to_le_bytes()) {
                            *to = from;
                        }
                        Ok(Made::Access)
                    }
                    Err(error) if is_plain(error) => run.read(now).map(|()| Made::Access),
                    Err(error) => Err(error),
                },
                Outcome::Memory(run) => run.read(now).map(|()| Made::Access),
                Outcome::Message { address } => Err(MemoryError::Absent { address: *address }),
            }
        })?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the low `width` bytes of `value` at `iova`, little-endian, as
    /// one access with release order under the same conditions as
    /// [`load_while`](Self::load_while).
    pub fn store_while(
        &mut self,
        iova: Iova,
        width: Width,
        value: u64,
        alive: impl Fn() -> bool,
    ) -> Result<(), DmaError> {
        let mut bytes = value.to_le_bytes();
        let mut rest: &[u8] = bytes_of(&mut bytes, width);
        self.walk(iova, rest.len(), Access::Write, alive, |outcome, length| {
            let (now, later) = rest.split_at_checked(length).unwrap_or_default();
            rest = later;
            match outcome {
                Outcome::Memory(run) if run.length() >= width.bytes() => {
                    let stored = match run.store(width, value) {
                        Err(error) if is_plain(error) => run.write(now),
                        done => done,
                    };
                    stored.map(|()| Made::Access)
                }
                Outcome::Memory(run) => run.write(now).map(|()| Made::Access),
                Outcome::Message { .. } => message(outcome, now),
            }
        })
    }

    /// Reads `N` bytes at `iova`.
    pub fn read_array<const N: usize>(&mut self, iova: Iova) -> Result<[u8; N], DmaError> {
        let mut bytes = [0; N];
        self.read(iova, &mut bytes)?;
        Ok(bytes)
    }

    /// Reports that the function's Bus Master Enable bit kept it from making
    /// `access`, and returns the error that the caller passes on.
    pub fn not_master(&mut self, iova: Iova, length: u64, access: Access) -> DmaError {
        match Span::with_length(iova, length) {
            Some(span) => self.refuse(span, access, FaultReason::NotMaster),
            None => DmaError::Malformed,
        }
    }

    /// Says, in words for a person, what the device did about its last fault.
    pub fn answered(&self, answer: &str) {
        self.faults.answered(self.source, answer);
    }

    /// Translates piece by piece and hands each to `copy`, with its length.
    fn walk(
        &mut self,
        iova: Iova,
        length: usize,
        access: Access,
        alive: impl Fn() -> bool,
        mut copy: impl FnMut(&Outcome<'_>, usize) -> Result<Made, MemoryError>,
    ) -> Result<(), DmaError> {
        let length = u64::try_from(length).map_err(|_| DmaError::Malformed)?;
        let whole = Span::with_length(iova, length).ok_or(DmaError::Malformed)?;
        let mut first = iova;
        loop {
            let Some(span) = Span::new(first, whole.last()) else {
                return Ok(());
            };
            match self.pieces(span, access, &alive, &mut copy) {
                Ok(None) => return Err(DmaError::Stopped),
                Ok(Some(done)) if done > span.last_offset() => return Ok(()),
                Ok(Some(done)) => match first.checked_add(done) {
                    Some(next) => first = next,
                    None => return Ok(()),
                },
                Err(fault) => {
                    self.faults.fault(&fault);
                    return Err(DmaError::Refused(fault));
                }
            }
        }
    }

    /// Does contiguous pieces of `whole`, from its first on, under one guard:
    /// as many as [`PIECES`]. Returns their bytes, at least one, or `None` when
    /// `alive` says no.
    fn pieces(
        &mut self,
        whole: Span,
        access: Access,
        alive: &impl Fn() -> bool,
        copy: &mut impl FnMut(&Outcome<'_>, usize) -> Result<Made, MemoryError>,
    ) -> Result<Option<u64>, Fault> {
        let guard = self.participant.enter();
        // Read after entering, so that who replaces the attachment and waits
        // for a grace knows that this worker has seen the new one.
        if self.attachment.version() != self.version {
            (self.version, self.space) = self.attachment.get();
            self.log = self.attachment.log();
        }
        let mut done = 0_u64;
        for _ in 0..PIECES {
            let rest = whole.first().checked_add(done);
            let Some(span) = rest.and_then(|first| Span::new(first, whole.last())) else {
                break;
            };
            if !alive() {
                return Ok(None);
            }
            let request = Request::new(self.source, span, access);
            let refused = |reason| Fault {
                source_id: request.source,
                span,
                access,
                reason,
                walk: None,
                recoverable: false,
            };
            let space = self
                .space
                .as_ref()
                .ok_or_else(|| refused(FaultReason::Blocked))?;
            let translated = match &self.atc {
                Some(atc) if atc.is_enabled() => atc.translate(&**space, &guard, &request)?,
                _ => None,
            };
            let outcome = space
                .translate(&guard, translated.as_ref().unwrap_or(&request))
                .map_err(|fault| Fault { span, ..fault })?;
            let asked = span.last_offset().saturating_add(1);
            let bytes = match &outcome {
                Outcome::Memory(run) => run.length().min(asked),
                Outcome::Message { .. } => asked,
            };
            let length = usize::try_from(bytes).map_err(|_| refused(FaultReason::Reserved))?;
            if length == 0 {
                return Err(refused(FaultReason::NotMapped));
            }
            let copied = copy(&outcome, length);
            if matches!(access, Access::Write | Access::Atomic)
                && let Some(log) = &self.log
                && let Some(written) = Span::with_length(span.first(), bytes)
            {
                // Also after a failure: a part of it may have been written.
                log.mark(written);
            }
            let made = copied.map_err(|error| {
                refused(match error {
                    MemoryError::Absent { .. } => FaultReason::Reserved,
                    _ => FaultReason::Revoked,
                })
            })?;
            if let Made::Message(message) = made {
                let interrupts = self.interrupts.as_ref();
                interrupts
                    .ok_or_else(|| refused(FaultReason::Reserved))?
                    .message(self.source, message);
            }
            done = done.saturating_add(bytes);
        }
        Ok(Some(done))
    }

    fn refuse(&mut self, span: Span, access: Access, reason: FaultReason) -> DmaError {
        let fault = Fault {
            source_id: self.source,
            span,
            access,
            reason,
            walk: None,
            recoverable: false,
        };
        self.faults.fault(&fault);
        DmaError::Refused(fault)
    }
}

/// The interrupt that a write of `from` is.
fn message(outcome: &Outcome<'_>, from: &[u8]) -> Result<Made, MemoryError> {
    match (outcome, <[u8; 4]>::try_from(from)) {
        (&Outcome::Message { address }, Ok(data)) if address % 4 == 0 => {
            let data = u32::from_le_bytes(data);
            Ok(Made::Message(Message { address, data }))
        }
        (&Outcome::Message { address }, _) => Err(MemoryError::Absent { address }),
        (Outcome::Memory(run), _) => Err(MemoryError::Absent {
            address: run.address(),
        }),
    }
}

/// The low `width` bytes.
fn bytes_of(bytes: &mut [u8; 8], width: Width) -> &mut [u8] {
    match width {
        Width::Byte => &mut bytes[..1],
        Width::Word => &mut bytes[..2],
        Width::Dword => &mut bytes[..4],
        Width::Qword => &mut bytes[..],
    }
}

/// Whether the bytes can be moved, though not as one access.
fn is_plain(error: MemoryError) -> bool {
    matches!(
        error,
        MemoryError::NotAtomic { .. } | MemoryError::Misaligned { .. }
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{Gate, InFlight};

    struct Unmapped;
    impl Translate for Unmapped {
        fn translate<'g>(
            &'g self,
            _: &'g InFlight<'_>,
            request: &Request,
        ) -> Result<Outcome<'g>, Fault> {
            Err(Fault {
                source_id: request.source,
                span: request.span,
                access: request.access,
                reason: FaultReason::NotMapped,
                walk: None,
                recoverable: false,
            })
        }
    }

    struct Silence;
    impl FaultSink for Silence {
        fn fault(&self, fault: &Fault) {
            panic!("reported {fault}");
        }
        fn answered(&self, _: Source, _: &str) {}
    }

    #[test]
    fn whether_an_access_goes_on_is_asked_under_the_guard_and_no_is_not_a_fault() {
        let gate = Arc::new(Gate::new());
        let attachment = Arc::new(Attachment::new());
        attachment.set(Some(Arc::new(Unmapped)));
        let source = "01:00.0".parse().unwrap();
        let mut port = Port::new(source, attachment, gate.join(), Arc::new(Silence));
        let asked = Cell::new(0);
        let alive = || {
            asked.set(asked.get() + 1);
            assert!(!gate.grace().has_passed(), "the guard is not held");
            false
        };
        let stopped = Err(DmaError::Stopped);
        assert_eq!(port.read_while(Iova(0), &mut [0; 8], alive), stopped);
        assert_eq!(port.write_while(Iova(0), &[0; 8], alive), stopped);
        assert_eq!(asked.get(), 2);
    }
}
