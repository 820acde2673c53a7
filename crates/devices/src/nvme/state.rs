//! Everything about a controller that registers show or change.

use iogate_dma::Line;
use iogate_pci::{After, Life};

use super::buffer::Registers;
use super::event::{Event, Events};
use super::features::{Features, Limits};
use super::queue::{CompletionQueue, SubmissionQueue};
use super::spec::log::{Counters, ErrorEntry};
use super::spec::registers::{Aqa, Cap, Cc, Csts, VERSION, offset};

/// Entries of a queue, less one.
pub(super) const LAST_ENTRY: u16 = 1023;

/// The registers, the queues and what hangs on them.
pub(super) struct State {
    /// The life that all this belongs to.
    pub(super) life: Life,
    cc: Cc,
    pub(super) csts: Csts,
    aqa: Aqa,
    asq: u64,
    acq: u64,
    pub(super) buffer: Registers,
    /// Interrupt Mask.
    mask: u32,
    /// CC.EN was cleared and the worker has not yet cleaned up.
    disabling: bool,
    /// By queue identifier; 0 is the admin queue.
    submission: Vec<Option<SubmissionQueue>>,
    completion: Vec<Option<CompletionQueue>>,
    /// The submission queue that is asked first.
    turn: usize,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) counters: Counters,
    pub(super) last_error: ErrorEntry,
}

/// What the worker must do before commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transition {
    Disable,
    Enable,
    Shutdown,
}

/// A command to fetch.
pub(super) struct Waiting {
    /// Its submission queue.
    pub(super) sq: u16,
    /// Where it stands.
    pub(super) address: u64,
}

/// A place for a completion.
pub(super) struct Place {
    pub(super) address: u64,
    pub(super) phase: bool,
    /// Head of the submission queue, as reported.
    pub(super) head: u32,
    pub(super) cq: u16,
}

impl State {
    /// Power-on: disabled, with `queues` I/O queue pairs on offer and a memory
    /// buffer of `buffer` bytes.
    pub(super) fn new(life: Life, queues: u16, buffer: u64) -> Self {
        let slots = usize::from(queues).saturating_add(1);
        Self {
            life,
            cc: Cc::new(),
            csts: Csts::new(),
            aqa: Aqa::new(),
            asq: 0,
            acq: 0,
            buffer: Registers::new(buffer),
            mask: 0,
            disabling: false,
            submission: (0..slots).map(|_| None).collect(),
            completion: (0..slots).map(|_| None).collect(),
            turn: 0,
            features: Features::default(),
            events: Events::default(),
            counters: Counters::default(),
            last_error: ErrorEntry::default(),
        }
    }

    /// I/O queue pairs on offer.
    pub(super) fn queues(&self) -> u16 {
        u16::try_from(self.submission.len().saturating_sub(1)).unwrap_or(u16::MAX)
    }

    pub(super) fn limits(&self) -> Limits {
        let submission = self.submission.iter().skip(1).flatten().next().is_some();
        let completion = self.completion.iter().skip(1).flatten().next().is_some();
        Limits {
            queues: self.queues(),
            has_queues: submission || completion,
        }
    }

    pub(super) fn cc(&self) -> Cc {
        self.cc
    }

    /// Reads the dword at `at`, which is a multiple of 4. Doorbells and what
    /// is reserved read as zero.
    pub(super) fn read(&self, at: u64) -> u32 {
        let cap = Cap::new()
            .with_mqes(LAST_ENTRY)
            .with_cqr(true)
            .with_to(20)
            .with_css(1)
            .with_cmbs(self.buffer.is_there());
        match at {
            offset::CAP => low(cap.into_bits()),
            offset::CAP_HIGH => high(cap.into_bits()),
            offset::VS => VERSION,
            offset::INTMS | offset::INTMC => self.mask,
            offset::CC => self.cc.into_bits(),
            offset::CSTS => self.csts.into_bits(),
            offset::AQA => self.aqa.into_bits(),
            offset::ASQ => low(self.asq),
            offset::ASQ_HIGH => high(self.asq),
            offset::ACQ => low(self.acq),
            offset::ACQ_HIGH => high(self.acq),
            offset::CMBLOC => self.buffer.location(),
            offset::CMBSZ => self.buffer.sizes(),
            offset::CMBMSC => low(self.buffer.space()),
            offset::CMBMSC_HIGH => high(self.buffer.space()),
            offset::CMBSTS => self.buffer.status(),
            _ => 0,
        }
    }

    /// Writes the register at `at`, below the doorbells.
    pub(super) fn write(&mut self, at: u64, value: u32) -> After {
        match at {
            offset::INTMS => self.mask |= value,
            offset::INTMC => self.mask &= !value,
            offset::CC => self.configure(Cc::from_bits(value)),
            offset::AQA => self.aqa = Aqa::from_bits(value & 0x0fff_0fff),
            // Queues begin at a page: the low bits are reserved.
            offset::ASQ => self.asq = join(value & !0xfff, high(self.asq)),
            offset::ASQ_HIGH => self.asq = join(low(self.asq), value),
            offset::ACQ => self.acq = join(value & !0xfff, high(self.acq)),
            offset::ACQ_HIGH => self.acq = join(low(self.acq), value),
            offset::CMBMSC => self
                .buffer
                .set_space(join(value, high(self.buffer.space()))),
            offset::CMBMSC_HIGH => self.buffer.set_space(join(low(self.buffer.space()), value)),
            _ => {}
        }
        self.after()
    }

    fn configure(&mut self, cc: Cc) {
        self.disabling |= self.cc.en() && !cc.en();
        match (self.cc.shn(), cc.shn()) {
            (0, 1 | 2) => self.csts.set_shst(1),
            (1 | 2, 0) => self.csts.set_shst(0),
            _ => {}
        }
        self.cc = cc;
    }

    /// Writes the doorbell at `at` bytes into the doorbells.
    pub(super) fn ring(&mut self, at: u64, value: u32) -> After {
        if !self.csts.rdy() {
            return After::Nothing;
        }
        let index = usize::try_from(at >> 3).unwrap_or(usize::MAX);
        let tail = at & 4 == 0;
        let submission = self.submission.get_mut(index).and_then(Option::as_mut);
        let completion = self.completion.get_mut(index).and_then(Option::as_mut);
        let rung = match (submission, completion) {
            (Some(queue), _) if tail => queue.ring(value),
            (_, Some(queue)) if !tail => queue.ring(value),
            _ => {
                self.events.happen(Event::InvalidDoorbell);
                return self.after();
            }
        };
        if rung.is_err() {
            self.events.happen(Event::InvalidValue);
        }
        self.after()
    }

    /// Whether the worker has something to do.
    pub(super) fn after(&self) -> After {
        let event = self.can_tell() && self.events.is_due();
        match self.transition().is_some() || event || self.waiting().is_some() {
            true => After::Work,
            false => After::Nothing,
        }
    }

    /// What must happen before commands, if anything.
    pub(super) fn transition(&self) -> Option<Transition> {
        let running = self.csts.rdy() || self.csts.cfs();
        if self.disabling || (running && !self.cc.en()) {
            Some(Transition::Disable)
        } else if self.cc.en() && !running {
            Some(Transition::Enable)
        } else if self.csts.shst() == 1 {
            Some(Transition::Shutdown)
        } else {
            None
        }
    }

    /// Ends a controller reset: queues are gone and registers reset, but for
    /// those of the admin queue and of the memory buffer. NVM Express 1.4
    /// section 7.3.2.
    pub(super) fn disable(&mut self) {
        let fresh = Self::new(self.life, self.queues(), self.buffer.size());
        *self = Self {
            cc: self.cc,
            aqa: self.aqa,
            asq: self.asq,
            acq: self.acq,
            buffer: self.buffer,
            counters: self.counters,
            last_error: self.last_error,
            ..fresh
        };
    }

    /// Makes the admin queues and becomes ready; or fails fatally, when the
    /// configuration is not one that is supported.
    pub(super) fn enable(&mut self) {
        let (asqs, acqs) = (self.aqa.asqs(), self.aqa.acqs());
        let supported = self.cc.mps() == 0 && self.cc.css() == 0 && self.cc.ams() == 0;
        if !supported || asqs == 0 || acqs == 0 {
            self.csts.set_cfs(true);
            return;
        }
        self.set_submission(0, Some(SubmissionQueue::new(self.asq, asqs, 0)));
        self.set_completion(0, Some(CompletionQueue::new(self.acq, acqs, 0, true)));
        self.csts.set_rdy(true);
    }

    pub(super) fn submission(&self, id: u16) -> Option<&SubmissionQueue> {
        self.submission.get(usize::from(id))?.as_ref()
    }

    pub(super) fn set_submission(&mut self, id: u16, queue: Option<SubmissionQueue>) {
        if let Some(slot) = self.submission.get_mut(usize::from(id)) {
            *slot = queue;
        }
    }

    pub(super) fn completion(&self, id: u16) -> Option<&CompletionQueue> {
        self.completion.get(usize::from(id))?.as_ref()
    }

    pub(super) fn set_completion(&mut self, id: u16, queue: Option<CompletionQueue>) {
        if let Some(slot) = self.completion.get_mut(usize::from(id)) {
            *slot = queue;
        }
    }

    /// Whether a submission queue completes to `cq`.
    pub(super) fn is_used(&self, cq: u16) -> bool {
        self.submission.iter().flatten().any(|queue| queue.cq == cq)
    }

    /// Completions that fit in a queue.
    pub(super) fn room(&self, cq: u16) -> u32 {
        self.completion(cq).map_or(0, CompletionQueue::room)
    }

    fn is_running(&self) -> bool {
        self.csts.rdy() && !self.csts.cfs()
    }

    /// Whether an Asynchronous Event Request can be answered now.
    pub(super) fn can_tell(&self) -> bool {
        self.is_running() && self.room(0) > 0
    }

    /// The next command by round robin. A queue whose completions have no room
    /// waits.
    pub(super) fn waiting(&self) -> Option<Waiting> {
        if !self.is_running() {
            return None;
        }
        let ids = 0..self.submission.len();
        let turns = ids.clone().skip(self.turn).chain(ids.take(self.turn));
        turns.into_iter().find_map(|id| {
            let sq = u16::try_from(id).ok()?;
            let queue = self.submission(sq)?;
            (!queue.is_empty() && self.room(queue.cq) > 0).then(|| Waiting {
                sq,
                address: queue.front(),
            })
        })
    }

    /// The command of `sq` was fetched: the next queue has its turn.
    pub(super) fn fetched(&mut self, sq: u16) {
        let slot = self.submission.get_mut(usize::from(sq));
        if let Some(queue) = slot.and_then(Option::as_mut) {
            queue.advance();
        }
        self.turn = usize::from(sq).saturating_add(1);
    }

    /// Where the completion of a command of `sq` goes.
    pub(super) fn place(&self, sq: u16) -> Option<Place> {
        let submission = self.submission(sq)?;
        let completion = self.completion(submission.cq)?;
        Some(Place {
            address: completion.back(),
            phase: completion.phase,
            head: submission.head(),
            cq: submission.cq,
        })
    }

    /// A completion was written to `cq`: its vector, if it interrupts.
    pub(super) fn completed(&mut self, cq: u16) -> Option<u16> {
        let slot = self.completion.get_mut(usize::from(cq));
        let queue = slot.and_then(Option::as_mut)?;
        queue.advance();
        queue.interrupts.then_some(queue.vector)
    }

    /// The INTx pin: asserted while a queue that interrupts holds completions
    /// and its vector is not masked. NVM Express 1.4 section 7.5.1.
    pub(super) fn line(&self) -> Line {
        let mut queues = self.completion.iter().flatten();
        let asserted = queues.any(|queue| {
            let masked = self.mask & 1_u32.wrapping_shl(queue.vector.into()) != 0;
            queue.interrupts && !queue.is_empty() && !(masked && queue.vector < 32)
        });
        match asserted {
            true => Line::Asserted,
            false => Line::Deasserted,
        }
    }
}

fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
