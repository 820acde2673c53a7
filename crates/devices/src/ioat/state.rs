//! The registers of the engine and the state of its channel.

use iogate_dma::Line;
use iogate_pci::{After, Life};

use super::spec::descriptor;
use super::spec::registers::{
    COMPATIBLE, Capabilities, ChannelCommand, ChannelControl, ChannelError, InterruptControl,
    Status, VERSION, offset,
};
use crate::registers::{merge, show};

pub(super) struct State {
    /// The life that all this belongs to.
    pub(super) life: Life,
    transfer_capacity: u8,
    interrupt_control: InterruptControl,
    attention: u32,
    pub(super) control: ChannelControl,
    /// Submitted since the chain began.
    submitted: u16,
    /// Done since the chain began.
    done: u16,
    status: Status,
    /// The descriptor that was completed last.
    completed: u64,
    chain: u64,
    /// The descriptor that comes next.
    next: u64,
    pub(super) completion: u64,
    pub(super) error: ChannelError,
    error_mask: u32,
    /// The worker has a descriptor in hand.
    busy: bool,
    /// What is to be done when it has put it down.
    resetting: bool,
    suspending: bool,
    /// The chain address was written while a reset was under way.
    rearm: bool,
}

/// A descriptor to fetch.
#[derive(Clone, Copy)]
pub(super) struct Job {
    pub(super) address: u64,
    /// It is the first of its chain.
    pub(super) first: bool,
}

impl State {
    /// Power-on: halted.
    pub(super) fn new(life: Life, transfer_capacity: u8) -> Self {
        Self {
            life,
            transfer_capacity,
            interrupt_control: InterruptControl::new(),
            attention: 0,
            control: ChannelControl::new(),
            submitted: 0,
            done: 0,
            status: Status::Halted,
            completed: 0,
            chain: 0,
            next: 0,
            completion: 0,
            error: ChannelError::new(),
            error_mask: 0,
            busy: false,
            resetting: false,
            suspending: false,
            rearm: false,
        }
    }

    /// The most bytes of a transfer, as a power of two.
    pub(super) fn transfer_capacity(&self) -> u8 {
        self.transfer_capacity
    }

    /// CHANSTS, as registers show it and completions report it.
    pub(super) fn channel_status(&self) -> u64 {
        self.completed | self.status.bits()
    }

    pub(super) fn line(&self) -> Line {
        match self.attention != 0 && self.interrupt_control.master() {
            true => Line::Asserted,
            false => Line::Deasserted,
        }
    }

    /// Reads at any offset, in any length. Interrupt Control and Attention
    /// Status change by being read.
    pub(super) fn read(&mut self, at: u64, into: &mut [u8]) {
        into.fill(0);
        let attention = self.attention != 0;
        let interrupt_control = self
            .interrupt_control
            .with_status(attention)
            .with_interrupt(attention && self.interrupt_control.master());
        let capabilities = Capabilities::new().with_fill(true);
        let command = ChannelCommand::new().with_reset(self.resetting);
        show(at, into, offset::CHANCNT, [1]);
        show(at, into, offset::XFERCAP, [self.transfer_capacity]);
        show(at, into, offset::INTRCTRL, [interrupt_control.into_bits()]);
        show(at, into, offset::ATTNSTATUS, self.attention.to_le_bytes());
        show(at, into, offset::CBVER, [VERSION]);
        let capabilities = capabilities.into_bits().to_le_bytes();
        show(at, into, offset::DMACAPABILITY, capabilities);
        let control = self.control.into_bits().to_le_bytes();
        show(at, into, offset::CHANCTRL, control);
        show(at, into, offset::DMA_COMP, COMPATIBLE.to_le_bytes());
        show(at, into, offset::CHANCMD, [command.into_bits()]);
        show(at, into, offset::DMACOUNT, self.submitted.to_le_bytes());
        let status = self.channel_status().to_le_bytes();
        show(at, into, offset::CHANSTS, status);
        show(at, into, offset::CHAINADDR, self.chain.to_le_bytes());
        show(at, into, offset::CHANCMP, self.completion.to_le_bytes());
        let error = self.error.into_bits().to_le_bytes();
        show(at, into, offset::CHANERR, error);
        show(at, into, offset::CHANERRMSK, self.error_mask.to_le_bytes());
        // Reading takes: asked as a write would ask.
        if merge(at, into, offset::INTRCTRL, [0]).is_some() {
            self.interrupt_control.set_master(false);
        }
        if merge(at, into, offset::ATTNSTATUS, [0; 4]).is_some() {
            self.attention = 0;
        }
    }

    /// Writes at any offset, in any length.
    pub(super) fn write(&mut self, at: u64, from: &[u8]) -> After {
        if let Some([value]) = merge(at, from, offset::INTRCTRL, [0]) {
            let value = InterruptControl::from_bits(value);
            self.interrupt_control = InterruptControl::new()
                .with_master(value.master())
                .with_msix(value.msix());
        }
        let kept = self.control.with_interrupt_disable(false).into_bits();
        if let Some(value) = merge(at, from, offset::CHANCTRL, kept.to_le_bytes()) {
            let value = ChannelControl::from_bits(u16::from_le_bytes(value));
            let disabled = self.control.interrupt_disable() && !value.interrupt_disable();
            self.control = value.with_interrupt_disable(disabled);
        }
        let completion = self.completion.to_le_bytes();
        if let Some(value) = merge(at, from, offset::CHANCMP, completion) {
            self.completion = u64::from_le_bytes(value) & !0x7;
        }
        if let Some(value) = merge(at, from, offset::CHANERR, [0; 4]) {
            let cleared = u32::from_le_bytes(value);
            self.error = ChannelError::from_bits(self.error.into_bits() & !cleared);
        }
        let mask = self.error_mask.to_le_bytes();
        if let Some(value) = merge(at, from, offset::CHANERRMSK, mask) {
            self.error_mask = u32::from_le_bytes(value);
        }
        if let Some([value]) = merge(at, from, offset::CHANCMD, [0]) {
            self.command(ChannelCommand::from_bits(value));
        }
        if let Some(value) = merge(at, from, offset::CHAINADDR, self.chain.to_le_bytes()) {
            self.chain = u64::from_le_bytes(value);
            self.arm();
        }
        let submitted = self.submitted.to_le_bytes();
        if let Some(value) = merge(at, from, offset::DMACOUNT, submitted) {
            self.submit(u16::from_le_bytes(value));
        }
        self.after()
    }

    fn command(&mut self, command: ChannelCommand) {
        if command.reset() {
            self.resetting = true;
            self.rearm = false;
            self.settle();
        } else if command.suspend() || command.abort() {
            if matches!(self.status, Status::Active | Status::Idle | Status::Armed) {
                self.suspending = true;
                self.settle();
            }
        } else if command.resume() && self.status == Status::Suspended {
            self.run();
        }
    }

    /// A new chain begins, unless one is under way.
    fn arm(&mut self) {
        if self.resetting {
            self.rearm = true;
        } else if self.status != Status::Active {
            self.submitted = 0;
            self.done = 0;
            self.completed = 0;
            self.next = self.chain;
            self.status = Status::Armed;
        }
    }

    fn submit(&mut self, count: u16) {
        if self.resetting {
            return;
        }
        self.submitted = count;
        if matches!(self.status, Status::Armed | Status::Idle) {
            self.run();
        }
    }

    fn run(&mut self) {
        self.status = match self.submitted == self.done {
            true => Status::Idle,
            false => Status::Active,
        };
    }

    /// Does what waited for the worker to put its descriptor down.
    fn settle(&mut self) {
        if self.busy {
            return;
        }
        if self.resetting {
            self.submitted = 0;
            self.done = 0;
            self.completed = 0;
            self.control.set_interrupt_disable(false);
            self.suspending = false;
            // Halted before the reset is seen to have ended.
            self.status = Status::Halted;
            self.resetting = false;
            if std::mem::take(&mut self.rearm) {
                self.arm();
            }
        } else if std::mem::take(&mut self.suspending) && self.status != Status::Halted {
            self.status = Status::Suspended;
        }
    }

    /// Whether the worker has something to do.
    pub(super) fn after(&self) -> After {
        match self.status == Status::Active {
            true => After::Work,
            false => After::Nothing,
        }
    }

    /// Takes the next descriptor in hand.
    pub(super) fn begin(&mut self) -> Option<Job> {
        if self.status != Status::Active || self.submitted == self.done {
            return None;
        }
        self.busy = true;
        Some(Job {
            address: self.next,
            first: self.done == 0,
        })
    }

    /// What a completion of the descriptor in hand reports.
    pub(super) fn report(&self, address: u64) -> u64 {
        let status = match self.submitted == self.done.wrapping_add(1) {
            true => Status::Idle,
            false => Status::Active,
        };
        aligned(address) | status.bits()
    }

    /// The descriptor in hand is done.
    pub(super) fn finish(&mut self, address: u64, next: u64) {
        self.completed = aligned(address);
        self.next = next;
        self.done = self.done.wrapping_add(1);
        self.run();
    }

    /// The descriptor in hand failed; says what a completion reports.
    pub(super) fn fail(&mut self, error: ChannelError) -> u64 {
        self.error = ChannelError::from_bits(self.error.into_bits() | error.into_bits());
        self.status = Status::Halted;
        self.channel_status()
    }

    /// The descriptor in hand is put down.
    pub(super) fn put_down(&mut self) {
        self.busy = false;
        self.settle();
    }

    /// The channel interrupts, if it may; says whether by a message as well.
    pub(super) fn interrupt(&mut self) -> bool {
        if self.control.interrupt_disable() {
            return false;
        }
        self.control.set_interrupt_disable(true);
        self.attention |= 1;
        self.interrupt_control.msix() || self.interrupt_control.master()
    }
}

/// The bits of an address that CHANSTS has room for.
fn aligned(address: u64) -> u64 {
    address & !descriptor::SIZE.saturating_sub(1)
}
