//! Queued invalidation. VT-d 4.1 section 6.5.2.

mod decode;
mod told;

use iogate_dma::{DeviceTlbError, MemoryError, RequesterId, Width};

use crate::Vtd;
use crate::registers::Registers;
use crate::spec::descriptor::Wait;
use crate::spec::registers::{
    QueueAddress, QueueErrorInfo, QueueErrorRecord, RootTableAddress, TableMode,
};

use decode::Descriptor;
pub(crate) use told::tell;

/// Descriptors that are done before others have their turn.
const QUANTUM: usize = 256;

/// The queue's registers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Queue {
    /// IQA_REG as written last.
    pub(crate) address: u64,
    /// IQA_REG as it was when the queue was enabled.
    pub(crate) active: u64,
    /// IQH_REG: everything before it is done.
    pub(crate) head: u32,
    /// IQT_REG.
    pub(crate) tail: u32,
    /// ICS_REG.IWC.
    pub(crate) completed: bool,
    /// IQERCD_REG.
    pub(crate) error: QueueErrorRecord,
}

impl Queue {
    /// The queue is enabled.
    pub(crate) fn begin(&mut self) {
        self.active = self.address;
    }
}

/// What the queue holds now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    address: QueueAddress,
    head: u32,
    tail: u32,
    capabilities: crate::Capabilities,
}

impl Run {
    /// Bytes of a descriptor.
    fn width(&self) -> u32 {
        if self.address.wide() { 32 } else { 16 }
    }

    /// Bytes of the queue, at most 512 KiB.
    fn bytes(&self) -> u32 {
        4096 << (self.address.size() & 7)
    }

    /// Where the descriptor after that at `at` is.
    fn after(&self, at: u32) -> u32 {
        at.wrapping_add(self.width()) & self.bytes().wrapping_sub(1)
    }
}

/// How far a run came, and what the guest is to be told.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    head: u32,
    completed: bool,
    error: Option<QueueErrorInfo>,
    timed_out: Option<RequesterId>,
    unexpected: Option<RequesterId>,
}

impl Registers {
    /// What the queue has to do, if it is enabled, has something, and no error
    /// stops it.
    pub(crate) fn next_run(&self) -> Option<Run> {
        let stopped = self.faults.queue_error || self.faults.time_out;
        let Queue {
            active, head, tail, ..
        } = self.queue;
        (self.status.queued_invalidation() && !stopped && head != tail).then_some(Run {
            address: QueueAddress::from_bits(active),
            head,
            tail,
            capabilities: self.capabilities,
        })
    }

    fn ran(&mut self, outcome: &Outcome) {
        self.queue.head = outcome.head;
        if outcome.completed && !self.queue.completed {
            // One that the guest has not seen yet is not told again.
            self.queue.completed = true;
            self.outbox.extend(self.invalidation_event.raise());
        }
        if let Some(source) = outcome.unexpected {
            let faults = &mut self.faults;
            if !faults.completion_error {
                self.queue.error.set_completion_source(source.0);
            }
            self.raise_fault_event(|faults| faults.completion_error = true);
        }
        if let Some(source) = outcome.timed_out {
            self.queue.error.set_time_out_source(source.0);
            self.raise_fault_event(|faults| faults.time_out = true);
        }
        if let Some(info) = outcome.error {
            self.queue.error.set_info(info as u8);
            self.raise_fault_event(|faults| faults.queue_error = true);
        }
    }
}

impl Vtd {
    /// Does what the queue holds, up to a wait descriptor, an error, or a
    /// bound.
    pub(crate) fn run_queue(&self, run: &Run) {
        let outcome = match self.check(run) {
            Ok(()) => self.run_descriptors(run),
            Err(error) => Outcome {
                head: run.head,
                error: Some(error),
                ..Outcome::default()
            },
        };
        if let Some(error) = outcome.error {
            told::error(outcome.head, error);
        }
        self.with_registers(|registers| registers.ran(&outcome));
    }

    /// Whether descriptors can be fetched at all.
    fn check(&self, run: &Run) -> Result<(), QueueErrorInfo> {
        let mode = RootTableAddress::from_bits(self.live.root()).mode();
        match mode {
            TableMode::Legacy => {}
            TableMode::Scalable if run.address.wide() => {}
            TableMode::Scalable => return Err(QueueErrorInfo::Width),
            TableMode::Reserved | TableMode::Abort => return Err(QueueErrorInfo::TableMode),
        }
        if run.tail >= run.bytes() {
            return Err(QueueErrorInfo::Tail);
        }
        if run.tail & run.width().wrapping_sub(1) != 0 {
            return Err(QueueErrorInfo::TailAlignment);
        }
        Ok(())
    }

    fn run_descriptors(&self, run: &Run) -> Outcome {
        let mut outcome = Outcome {
            head: run.head,
            ..Outcome::default()
        };
        let mut invalidations = Vec::new();
        let mut interrupts = Vec::new();
        let flush = |invalidations: &mut Vec<_>, interrupts: &mut Vec<_>| {
            if !invalidations.is_empty() {
                self.invalidate(invalidations);
                invalidations.clear();
            }
            if !interrupts.is_empty() {
                self.invalidate_interrupt_entries(interrupts);
                interrupts.clear();
            }
        };
        for done in 0_usize.. {
            // A device that did not answer takes the next wait descriptor with
            // it, wherever that is.
            let enough = done >= QUANTUM && outcome.timed_out.is_none();
            if enough || outcome.head == run.tail {
                break;
            }
            let descriptor = match self.fetch_descriptor(run, outcome.head) {
                Ok(descriptor) => descriptor,
                Err(error) => {
                    outcome.error = Some(error);
                    break;
                }
            };
            outcome.head = run.after(outcome.head);
            match descriptor {
                Descriptor::Invalidate(invalidation) => {
                    tell(&invalidation);
                    invalidations.push(invalidation);
                }
                Descriptor::Interrupts(entries) => {
                    told::interrupts(entries);
                    interrupts.push(entries);
                }
                Descriptor::DeviceTlb(invalidation) => {
                    // A device that asks again must not be given what the
                    // guest has just invalidated here.
                    flush(&mut invalidations, &mut interrupts);
                    let result = self.invalidate_device_tlb(&invalidation);
                    told::device_tlb(&invalidation, result);
                    match result {
                        Ok(()) => {}
                        Err(DeviceTlbError::TimedOut) => {
                            outcome.timed_out = Some(invalidation.source);
                        }
                        Err(DeviceTlbError::Unexpected) => {
                            outcome.unexpected = Some(invalidation.source);
                        }
                    }
                }
                Descriptor::Respond(response) => {
                    flush(&mut invalidations, &mut interrupts);
                    let known = self.page_response(&response);
                    told::page_response(&response, known);
                }
                Descriptor::Wait { wait, address } => {
                    flush(&mut invalidations, &mut interrupts);
                    if wait.drain_page_requests() {
                        self.drain_page_requests();
                    }
                    // What waits for a device that did not answer is aborted:
                    // its status is never written. Section 6.5.2.10.
                    let result = match outcome.timed_out {
                        None => self.complete(wait, address),
                        Some(_) => Ok(()),
                    };
                    told::wait(wait, address, outcome.timed_out.is_some(), result);
                    outcome.completed = wait.interrupt() && outcome.timed_out.is_none();
                    break;
                }
            }
        }
        flush(&mut invalidations, &mut interrupts);
        outcome
    }

    /// The descriptor at `at` of the queue.
    fn fetch_descriptor(&self, run: &Run, at: u32) -> Result<Descriptor, QueueErrorInfo> {
        let mut bytes = [0; 32];
        let length = usize::try_from(run.width()).unwrap_or(0);
        let address = (run.address.page() << 12).checked_add(at.into());
        let read = address.ok_or(QueueErrorInfo::Fetch).and_then(|address| {
            let into = bytes.get_mut(..length).unwrap_or_default();
            let read = self.ram.read(address, into);
            read.map_err(|_| QueueErrorInfo::Fetch)
        });
        read?;
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        decode::decode(words, &run.capabilities)
    }

    /// Writes a wait descriptor's status.
    fn complete(&self, wait: Wait, address: u64) -> Result<(), MemoryError> {
        if !wait.status_write() {
            return Ok(());
        }
        let data = wait.data();
        match self.ram.store(address, Width::Dword, data.into()) {
            Err(MemoryError::NotAtomic { .. }) => self.ram.write(address, &data.to_le_bytes()),
            done => done,
        }
    }
}
