//! The register file: what a guest reads and writes. VT-d 4.1 section 11.

mod command;
pub(crate) mod mask;
mod page;

use std::mem;
use std::sync::{MutexGuard, PoisonError};

use iogate_dma::Message;

use crate::Vtd;
use crate::capabilities::Capabilities;
use crate::events::Event;
use crate::fault::Faults;
use crate::invalidate::Invalidation;
use crate::pages::PageQueue;
use crate::queue::Queue;
use crate::spec::registers::Global;

pub(crate) use command::{Command, function_bits, pages};

/// Bytes of a unit's registers, which stand at a multiple of it.
pub const REGISTER_BYTES: u64 = 0x1000;

/// The registers' own state, behind the unit's one lock.
#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) capabilities: Capabilities,
    /// GSTS_REG as the guest sees it: what has come into force.
    pub(crate) status: Global,
    /// RTADDR_REG as written last.
    pub(crate) root: u64,
    /// IRTA_REG as written last.
    pub(crate) interrupt_table: u64,
    /// CCMD_REG; ICC is set while it is to be done.
    pub(crate) context_command: u64,
    /// IVA_REG, which cannot be read.
    pub(crate) invalidate_address: u64,
    /// IOTLB_REG; IVT is set while it is to be done.
    pub(crate) iotlb_command: u64,
    pub(crate) faults: Faults,
    pub(crate) fault_event: Event,
    pub(crate) queue: Queue,
    pub(crate) invalidation_event: Event,
    pub(crate) pages: PageQueue,
    /// A global command that is not in force yet.
    pub(crate) command: Option<Command>,
    /// Messages to deliver when the lock is dropped.
    pub(crate) outbox: Vec<Message>,
}

/// A piece of work, taken from the registers.
#[derive(Debug)]
enum Job {
    Command(Command),
    Context(u64),
    Iotlb(u64, u64),
    Queue(crate::queue::Run),
}

impl Registers {
    /// At power-on.
    pub(crate) fn new(capabilities: Capabilities) -> Self {
        Self {
            capabilities,
            status: Global::new(),
            root: 0,
            interrupt_table: 0,
            context_command: 0,
            invalidate_address: 0,
            iotlb_command: 0,
            faults: Faults::new(capabilities.fault_record_count()),
            fault_event: Event::RESET,
            queue: Queue::default(),
            invalidation_event: Event::RESET,
            pages: PageQueue::RESET,
            command: None,
            outbox: Vec::new(),
        }
    }

    /// Whether something is to be done.
    pub(crate) fn has_work(&self) -> bool {
        self.next_job().is_some()
    }

    /// What is to be done next. It stays to be done until its end is put down.
    fn next_job(&self) -> Option<Job> {
        if let Some(command) = self.command {
            return Some(Job::Command(command));
        }
        if command::is_invalidation(self.context_command) {
            return Some(Job::Context(self.context_command));
        }
        if command::is_invalidation(self.iotlb_command) {
            return Some(Job::Iotlb(self.iotlb_command, self.invalidate_address));
        }
        self.next_run().map(Job::Queue)
    }
}

impl Vtd {
    fn lock_registers(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the registers, and delivers what it leaves to deliver.
    pub(crate) fn with_registers<R>(&self, act: impl FnOnce(&mut Registers) -> R) -> R {
        let mut registers = self.lock_registers();
        let result = act(&mut registers);
        let messages = mem::take(&mut registers.outbox);
        drop(registers);
        for message in messages {
            (self.deliver)(message);
        }
        result
    }

    /// A guest reads `into.len()` bytes at `offset` of the register page.
    /// Fills all of `into`: zeros where no register is.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        // Past the last address nothing is looked up.
        into.fill(0);
        let registers = self.lock_registers();
        let mut slot = None;
        for (at, byte) in (offset..=u64::MAX).zip(into.iter_mut()) {
            let (number, value) = match slot {
                Some((number, value)) if number == at & !7 => (number, value),
                _ => (at & !7, registers.quad(at & !7)),
            };
            slot = Some((number, value));
            let shift = (at & 7).saturating_mul(8);
            *byte = u8::try_from(value >> shift & 0xff).unwrap_or(0);
        }
    }

    /// A guest writes `from` at `offset` of the register page. What it asks for
    /// is done when this returns, or, with [`Builder::deferred`], by
    /// [`work`](Self::work). Without the latter it is not called under a guard.
    ///
    /// Registers are written by 4 or 8 bytes at a multiple of 4; anything else
    /// is ignored (VT-d 4.1 section 11.2).
    ///
    /// [`Builder::deferred`]: crate::Builder::deferred
    pub fn write(&self, offset: u64, from: &[u8]) {
        let words = match *from {
            [a, b, c, d] => [Some([a, b, c, d]), None],
            [a, b, c, d, e, f, g, h] => [Some([a, b, c, d]), Some([e, f, g, h])],
            _ => [None, None],
        };
        let [Some(low), high] = words.map(|word| word.map(u32::from_le_bytes)) else {
            return;
        };
        if offset & 3 != 0 {
            return;
        }
        tracing::event!(
            name: "vtd_write",
            target: "iogate",
            tracing::Level::INFO,
            offset = %format_args!("{offset:#x}"),
            value = %format_args!("{:#x}", u64::from(low) | u64::from(high.unwrap_or(0)) << 32),
            length = from.len(),
        );
        let has_work = self.with_registers(|registers| {
            registers.write_dword(offset, low);
            if let (Some(high), Some(next)) = (high, offset.checked_add(4)) {
                registers.write_dword(next, high);
            }
            registers.has_work()
        });
        if has_work {
            self.have_worked();
        }
    }

    /// There is work: it is done here, or who does it is woken.
    fn have_worked(&self) {
        match &self.wake {
            Some(wake) => wake(),
            None => while self.work() {},
        }
    }

    /// Does one bounded quantum of what registers and queues ask for; says
    /// whether more is to do. Not called under a guard. If another thread is
    /// about it already, it is left to that one.
    pub fn work(&self) -> bool {
        let Ok(turn) = self.turn.try_lock() else {
            return false;
        };
        match self.with_registers(|registers| registers.next_job()) {
            None => return false,
            Some(Job::Command(command)) => self.command(command),
            Some(Job::Context(command)) => self.context_command(command),
            Some(Job::Iotlb(command, address)) => self.iotlb_command(command, address),
            Some(Job::Queue(run)) => self.run_queue(&run),
        }
        // Looked at after the turn is over: who could not have it since is
        // served by us.
        drop(turn);
        self.lock_registers().has_work()
    }

    /// Does something while no work is under way.
    pub(crate) fn between_work<R>(&self, act: impl FnOnce() -> R) -> R {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act();
        drop(turn);
        // Who wanted to work meanwhile went away.
        if self.lock_registers().has_work() {
            self.have_worked();
        }
        result
    }

    /// Returns the unit to its state of power-on. Not called under a guard.
    pub fn reset(&self) {
        self.between_work(|| {
            self.with_registers(|registers| {
                *registers = Registers::new(self.capabilities);
                self.live.set_status(0);
                self.live.set_root(0);
                self.live.set_interrupt_table(0);
            });
            self.release_page_requests();
            self.forget();
        });
    }

    /// Drops all that is cached, and has everybody look again.
    pub(crate) fn forget(&self) {
        self.gate.grace().wait();
        self.invalidate(&self.everything());
        self.invalidate_interrupt_entries(&[crate::remap::InterruptEntries::All]);
        self.interrupt_remapping_changed();
    }

    /// What invalidates all translations.
    pub(crate) fn everything(&self) -> Vec<Invalidation> {
        let mut all = vec![Invalidation::ContextGlobal];
        if self.capabilities.is_scalable() {
            all.push(Invalidation::PasidGlobal);
        }
        all.push(Invalidation::IotlbGlobal);
        all
    }
}
