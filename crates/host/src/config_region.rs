//! Configuration space as vfio-pci shows it: the device's own registers, but
//! interrupts are set up by VFIO_DEVICE_SET_IRQS and only by it. Linux
//! `drivers/vfio/pci/vfio_pci_config.c`.

use std::sync::atomic::Ordering;

use iogate_pci::{After, ConfigEffect, Endpoint, config};

use crate::slot::{DeviceState, Slot};
use crate::{Host, Retired};

/// Bytes of configuration space of a function that is not PCI Express.
const CONVENTIONAL: u64 = 256;

/// The byte after the Command register, whose upper half has Interrupt Disable.
const COMMAND_END: u64 = 6;

/// Where the capabilities of a function are. They do not move.
pub(crate) struct Capabilities {
    /// Bytes of configuration space.
    pub(crate) config_size: u64,
    pub(crate) express: Option<u16>,
    power: Option<u16>,
    /// Offset and length of the MSI capability.
    msi: Option<(u16, usize)>,
    /// BAR, first byte and end of the MSI-X table.
    msix: Option<(u8, u64, u64)>,
    msix_at: Option<u16>,
    /// Bytes that are shown as others: next pointers that skip capabilities
    /// nobody knows the length of, by their offsets.
    skips: Vec<(u16, u8)>,
}

/// Capabilities that vfio-pci shows. `pci_cap_length`.
const SHOWN: [u8; 9] = [0x01, 0x02, 0x03, 0x05, 0x07, 0x08, 0x09, 0x10, 0x11];
/// SATA and Advanced Features, likewise.
const SHOWN_LATER: [u8; 2] = [0x12, 0x13];

impl Capabilities {
    pub(crate) fn find(endpoint: &Endpoint) -> Self {
        let express = endpoint.capability(config::capability::EXPRESS);
        let msix = endpoint.msix().map(|msix| {
            let layout = msix.layout();
            let first = u64::from(layout.table_offset);
            let end = first.saturating_add(layout.table_size());
            (layout.table_bar, first, end)
        });
        Self {
            config_size: match express {
                Some(_) => config::SIZE,
                None => CONVENTIONAL,
            },
            express,
            power: endpoint.capability(config::capability::POWER_MANAGEMENT),
            msi: endpoint.capability(config::capability::MSI).map(|at| {
                let control = read16(endpoint, at.saturating_add(2));
                // 64-bit addresses; per-vector masking.
                let length = match (control & 1 << 7 != 0, control & 1 << 8 != 0) {
                    (false, false) => 10,
                    (true, false) => 14,
                    (false, true) => 20,
                    (true, true) => 24,
                };
                (at, length)
            }),
            msix,
            msix_at: endpoint.capability(config::capability::MSIX),
            skips: skips(endpoint)
                .into_iter()
                .chain(hidden(endpoint))
                .collect(),
        }
    }

    /// First byte and end of the MSI-X table in `bar`; empty if it is not
    /// there.
    pub(crate) fn msix_table(&self, bar: u8) -> (u64, u64) {
        match self.msix {
            Some((table_bar, first, end)) if table_bar == bar => (first, end),
            _ => (u64::MAX, u64::MAX),
        }
    }

    /// Whether the MSI-X table is in `bar`.
    pub(crate) fn has_msix_table(&self, bar: u8) -> bool {
        self.msix.is_some_and(|(table_bar, _, _)| table_bar == bar)
    }
}

fn read16(endpoint: &Endpoint, at: u16) -> u16 {
    let mut bytes = [0; 2];
    endpoint.read_config(at.into(), &mut bytes);
    u16::from_le_bytes(bytes)
}

/// The next pointers to change so that unknown capabilities are passed over.
/// `vfio_cap_init`.
fn skips(endpoint: &Endpoint) -> Vec<(u16, u8)> {
    let mut skips = Vec::new();
    let mut link = config::register::CAPABILITIES;
    let mut at = read16(endpoint, link).to_le_bytes()[0];
    let mut skipped = false;
    // No more than 48 capabilities fit.
    for _ in 0..48 {
        if at < 0x40 {
            break;
        }
        let [id, next] = read16(endpoint, at.into()).to_le_bytes();
        if SHOWN.contains(&id) || SHOWN_LATER.contains(&id) {
            if skipped {
                skips.push((link, at));
            }
            skipped = false;
            link = u16::from(at).saturating_add(1);
        } else {
            skipped = true;
        }
        at = next;
    }
    if skipped {
        skips.push((link, 0));
    }
    skips
}

/// The bytes to change so that the PASID capability, which is the kernel's, is
/// passed over; the first of all stays in the list without its name, or nothing
/// is there if it is the only one. `vfio_ecap_init`.
fn hidden(endpoint: &Endpoint) -> Vec<(u16, u8)> {
    const NEXT: u32 = 0xffc0_0000;
    let mut last = None;
    let mut at = config::register::EXTENDED;
    // No more than 480 capabilities fit.
    for _ in 0..480 {
        let mut header = [0; 4];
        endpoint.read_config(at.into(), &mut header);
        let header = u32::from_le_bytes(header);
        let next = header & NEXT;
        if header & 0xffff == u32::from(config::extended::PASID) {
            let (at, shown) = match last {
                Some((at, before)) => (at, before & !NEXT | next),
                None => (at, next),
            };
            return (at..).zip(shown.to_le_bytes()).collect();
        }
        last = Some((at, header));
        match u16::try_from(next >> 20) {
            Ok(next) if next > at => at = next,
            _ => break,
        }
    }
    Vec::new()
}

/// The client's view of the MSI capability, which is not the device's: its
/// address and data are the host's. `vfio_msi_config_write`.
#[derive(Default)]
pub(crate) struct VirtualMsi {
    bytes: [u8; 24],
}

impl VirtualMsi {
    pub(crate) fn new(endpoint: &Endpoint, capabilities: &Capabilities) -> Self {
        let mut bytes = [0; 24];
        if let Some((at, _)) = capabilities.msi {
            endpoint.read_config(at.into(), &mut bytes);
        }
        Self { bytes }
    }
}

impl Host {
    pub(crate) fn read_config(&self, slot: &Slot, offset: u64, into: &mut [u8]) {
        slot.device.function.read_config(offset, into);
        if let Some((at, length)) = slot.capabilities.msi {
            let state = slot.lock();
            let shown = state.msi.bytes.get(2..length).unwrap_or_default();
            overlay(offset, into, u64::from(at).saturating_add(2), shown);
        }
        for (at, next) in &slot.capabilities.skips {
            overlay(offset, into, u64::from(*at), &[*next]);
        }
    }

    /// Writes in naturally aligned pieces of at most 4 bytes, as the kernel
    /// does, so that no piece touches two registers with different rules.
    pub(crate) fn write_config(&self, slot: &Slot, offset: u64, from: &[u8]) -> Retired {
        let mut retired = Retired::default();
        let mut state = slot.lock();
        let mut rest = from;
        let mut at = offset;
        while !rest.is_empty() {
            let aligned = 1_usize << at.trailing_zeros().min(2);
            let largest = 1_usize << rest.len().max(1).ilog2().min(2);
            let length = aligned.min(largest);
            let (now, later) = rest.split_at_checked(length).unwrap_or_default();
            self.write_piece(slot, &mut state, at, now, &mut retired);
            rest = later;
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        retired
    }

    fn write_piece(
        &self,
        slot: &Slot,
        state: &mut DeviceState,
        at: u64,
        from: &[u8],
        retired: &mut Retired,
    ) {
        let inside = |first: u16, length: u64| {
            at >= u64::from(first) && at < u64::from(first).saturating_add(length)
        };
        let capabilities = &slot.capabilities;
        if let Some((msi, length)) = capabilities.msi
            && inside(msi, u64::try_from(length).unwrap_or(0))
        {
            slot.write_msi(state, at.saturating_sub(msi.into()), from);
            return;
        }
        // The MSI-X capability takes no writes: SET_IRQS enables it.
        if capabilities.msix_at.is_some_and(|msix| inside(msix, 12)) {
            return;
        }
        let end = at.saturating_add(u64::try_from(from.len()).unwrap_or(u64::MAX));
        let is_command = at < COMMAND_END && end >= COMMAND_END;
        if is_command && slot.endpoint().command().intx_disabled() {
            // Enabling INTx unmasks it. Before the write, so that a line that
            // is asserted is signalled once. `vfio_basic_config_write`.
            self.config.delivery.unmask(slot.device.source);
        }
        if slot.role.has_enabled() && slot.sleeps_by(at, from) {
            // A function with virtual ones stays awake.
            // `vfio_pci_set_power_state`.
            return;
        }
        let (effect, after) = slot.device.function.write_config(at, from);
        if after == After::Work {
            retired.work = Some(slot.device.index);
        }
        slot.settle_power(state);
        if effect == ConfigEffect::FunctionReset {
            self.reset_function(slot, state, retired);
        }
    }
}

impl Slot {
    /// Whether a write would put the function into a state of low power.
    fn sleeps_by(&self, at: u64, from: &[u8]) -> bool {
        let control = self
            .capabilities
            .power
            .map(|at| u64::from(at).saturating_add(4));
        let byte = control.and_then(|control| control.checked_sub(at));
        let byte = byte.and_then(|byte| from.get(usize::try_from(byte).ok()?));
        byte.is_some_and(|byte| byte & 3 != 0)
    }

    /// Takes note of the power state, after a write that may have changed it.
    pub(crate) fn settle_power(&self, state: &DeviceState) {
        let power = self.capabilities.power;
        let power = power.map_or(0, |at| read16(self.endpoint(), at.saturating_add(4)) & 3);
        // Memory does not answer in D3hot.
        let asleep = power == 3 || state.low_power.is_some();
        self.asleep.store(asleep, Ordering::SeqCst);
    }

    /// A write to the client's MSI capability. Its control word reaches the
    /// device too, with MSI Enable only while SET_IRQS has MSI set up.
    fn write_msi(&self, state: &mut DeviceState, at: u64, from: &[u8]) {
        let msi = &mut state.msi.bytes;
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let mut control = false;
        for (cell, byte) in msi.iter_mut().enumerate().skip(at).zip(from) {
            match cell {
                // Enable and Multiple Message Enable.
                (2, cell) => {
                    *cell = *cell & !0x71 | byte & 0x71;
                    control = true;
                }
                (0 | 1 | 3, _) => {}
                (_, cell) => *cell = *byte,
            }
        }
        if !control {
            return;
        }
        let is_set_up = state.irqs.is_msi();
        if let (Some(flags), Some((capability, _))) = (msi.get_mut(2), self.capabilities.msi) {
            if !is_set_up {
                *flags &= !1;
            }
            let most = *flags >> 1 & 7;
            if *flags >> 4 & 7 > most {
                *flags = *flags & !0x70 | most << 4;
            }
            if is_set_up {
                let at = u64::from(capability).saturating_add(2);
                let _ = self.endpoint().write_config(at, &[*flags]);
            }
        }
    }
}

/// Puts the bytes of `from`, which stand at `first`, over those of `into`,
/// which stand at `offset`.
fn overlay(offset: u64, into: &mut [u8], first: u64, from: &[u8]) {
    for (byte, at) in into.iter_mut().zip(offset..) {
        let index = at
            .checked_sub(first)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(new) = index.and_then(|index| from.get(index)) {
            *byte = *new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_replaces_the_bytes_that_both_have() {
        let mut bytes = [0; 4];
        overlay(10, &mut bytes, 12, &[1, 2, 3]);
        assert_eq!(bytes, [0, 0, 1, 2]);
        overlay(10, &mut bytes, 8, &[4, 5, 6]);
        assert_eq!(bytes, [6, 0, 1, 2]);
        overlay(0, &mut bytes, 12, &[9]);
        assert_eq!(bytes, [6, 0, 1, 2]);
    }
}
