//! Global commands, and invalidation by registers. VT-d 4.1 sections 11.4.4,
//! 6.5.1.

use iogate_dma::{Iova, RequesterId, Span};

use crate::Vtd;
use crate::capabilities::MAX_ADDRESS_MASK;
use crate::invalidate::Invalidation;
use crate::registers::Registers;
use crate::spec::registers::{
    ContextCommand, Global, Granularity, InvalidateAddress, IotlbInvalidate, RootTableAddress,
    TableMode,
};

/// What a guest asked for by GCMD_REG.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Command {
    /// What is to stay on from now on.
    pub(crate) enabled: Global,
    /// RTADDR_REG, if it is to be put in force, as it was then.
    pub(crate) root: Option<u64>,
    /// IRTA_REG, likewise.
    pub(crate) interrupt_table: Option<u64>,
}

/// Whether ICC or IVT is set.
pub(super) fn is_invalidation(command: u64) -> bool {
    command >> 63 != 0
}

/// The bits of a requester id that `function_mask` lets differ. VT-d 4.1
/// section 11.4.6.1, FM.
pub(crate) fn function_bits(function_mask: u8) -> u16 {
    match function_mask & 3 {
        0 => 0,
        1 => 0b100,
        2 => 0b110,
        _ => 0b111,
    }
}

/// The 2^`mask` pages that `page` lies among; all of the space if they are that
/// many.
pub(crate) fn pages(page: u64, mask: u8) -> Span<Iova> {
    let beyond = 1_u64.checked_shl(u32::from(mask).saturating_add(12));
    let low = beyond.map_or(u64::MAX, |beyond| beyond.wrapping_sub(1));
    let first = page << 12 & !low;
    Span::new(Iova(first), Iova(first | low)).unwrap_or_else(Span::whole)
}

impl Registers {
    pub(super) fn write_command(&mut self, value: Global) {
        let remapping = self.capabilities.has_interrupt_remapping();
        let queue = self.capabilities.has_queued_invalidation();
        let enabled = Global::new()
            .with_translation(value.translation())
            .with_queued_invalidation(queue && value.queued_invalidation())
            .with_interrupt_remapping(remapping && value.interrupt_remapping())
            .with_compatibility_interrupts(remapping && value.compatibility_interrupts());
        let before = self.command;
        let mut command = Command {
            enabled,
            root: before.and_then(|command| command.root),
            interrupt_table: before.and_then(|command| command.interrupt_table),
        };
        if value.root_pointer() {
            command.root = Some(self.root);
            self.status.set_root_pointer(false);
        }
        if value.interrupt_pointer() && remapping {
            command.interrupt_table = Some(self.interrupt_table);
            self.status.set_interrupt_pointer(false);
        }
        self.command = Some(command);
    }

    /// The command is in force: the guest may see it.
    fn show(&mut self, command: &Command, status: Global) {
        let was = self.status;
        self.status = status;
        if !status.queued_invalidation() {
            self.queue.head = 0;
        } else if !was.queued_invalidation() {
            self.queue.begin();
        }
        if !status.translation() && !status.interrupt_remapping() {
            self.faults.restart();
        }
        // A command that came meanwhile includes what this one asked for, and
        // is to be done again: that is harmless.
        if self.command == Some(*command) {
            self.command = None;
        }
        if let Some(later) = self.command {
            if later.root.is_some() {
                self.status.set_root_pointer(false);
            }
            if later.interrupt_table.is_some() {
                self.status.set_interrupt_pointer(false);
            }
        }
    }
}

impl Vtd {
    /// Puts a global command in force, waits until no request goes by what was
    /// before, and shows it.
    pub(super) fn command(&self, command: Command) {
        let (before, status) = self.with_registers(|registers| {
            let before = registers.status;
            let mut status = command
                .enabled
                .with_root_pointer(before.root_pointer())
                .with_interrupt_pointer(before.interrupt_pointer());
            if let Some(root) = command.root {
                self.live.set_root(root);
                status.set_root_pointer(true);
            }
            if let Some(table) = command.interrupt_table {
                self.live.set_interrupt_table(table);
                status.set_interrupt_pointer(true);
            }
            self.live.set_status(status.into_bits());
            (before, status)
        });
        let pointers = self.capabilities.has_invalidating_pointers();
        let switched = before.translation() != status.translation();
        let replaced = command.root.is_some();
        if switched || replaced {
            self.gate.grace().wait();
        }
        if switched && !status.translation() {
            self.release_page_requests();
        }
        if switched || replaced && pointers {
            self.invalidate(&self.everything());
        }
        if command.interrupt_table.is_some() && pointers {
            self.invalidate_interrupt_entries(&[crate::remap::InterruptEntries::All]);
        }
        if command.interrupt_table.is_some()
            || before.interrupt_remapping() != status.interrupt_remapping()
            || before.compatibility_interrupts() != status.compatibility_interrupts()
        {
            self.interrupt_remapping_changed();
        }
        self.with_registers(|registers| registers.show(&command, status));
    }

    /// Whether registers may invalidate now: neither while the queue is on, nor
    /// in scalable mode. VT-d 4.1 section 6.5.
    fn registers_invalidate(&self, registers: &Registers) -> bool {
        let root = RootTableAddress::from_bits(self.live.root());
        !registers.status.queued_invalidation() && root.mode() == TableMode::Legacy
    }

    /// CCMD_REG. VT-d 4.1 section 11.4.6.1.
    pub(super) fn context_command(&self, raw: u64) {
        let command = ContextCommand::from_bits(raw);
        let domain = command.domain();
        let asked = match command.requested() {
            Granularity::Reserved => None,
            Granularity::Global => Some(Invalidation::ContextGlobal),
            Granularity::Domain => Some(Invalidation::ContextDomain { domain }),
            Granularity::Selective => Some(Invalidation::ContextDevice {
                domain,
                source: RequesterId(command.source()),
                mask: function_bits(command.function_mask()),
            }),
        };
        let done = self.invalidate_by_register(asked);
        let actual = if done {
            command.requested()
        } else {
            Granularity::Reserved
        };
        self.with_registers(|registers| {
            registers.context_command = ContextCommand::from_bits(registers.context_command)
                .with_actual(actual)
                .with_invalidate(false)
                .into_bits();
        });
    }

    /// IOTLB_REG with IVA_REG. VT-d 4.1 section 11.4.8.
    pub(super) fn iotlb_command(&self, raw: u64, address: u64) {
        let command = IotlbInvalidate::from_bits(raw);
        let address = InvalidateAddress::from_bits(address);
        let domain = command.domain();
        let asked = match command.requested() {
            Granularity::Reserved => None,
            Granularity::Global => Some(Invalidation::IotlbGlobal),
            Granularity::Domain => Some(Invalidation::IotlbDomain { domain }),
            Granularity::Selective if address.mask() > MAX_ADDRESS_MASK => None,
            Granularity::Selective => Some(Invalidation::IotlbPages {
                domain,
                span: pages(address.page(), address.mask()),
                leaf_only: address.leaf_only(),
            }),
        };
        let done = self.invalidate_by_register(asked);
        let actual = if done {
            command.requested()
        } else {
            Granularity::Reserved
        };
        self.with_registers(|registers| {
            registers.iotlb_command = IotlbInvalidate::from_bits(registers.iotlb_command)
                .with_actual(actual)
                .with_invalidate(false)
                .into_bits();
        });
    }

    /// Whether it was done: an invalidation that is not understood, or not
    /// allowed now, is not.
    fn invalidate_by_register(&self, asked: Option<Invalidation>) -> bool {
        let allowed = self.with_registers(|registers| self.registers_invalidate(registers));
        let Some(invalidation) = asked.filter(|_| allowed) else {
            return false;
        };
        crate::queue::tell(&invalidation);
        self.invalidate(&[invalidation]);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_of_pages_is_aligned_and_may_cover_the_whole_space() {
        assert_eq!(
            pages(0x12345, 4),
            Span::new(Iova(0x1234_0000), Iova(0x1234_ffff)).unwrap()
        );
        assert_eq!(pages(7, 52), Span::whole());
        assert_eq!(pages(7, 63), Span::whole());
    }
}
