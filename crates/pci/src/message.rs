//! The MSI capability's registers. PCI Local Bus 3.0 section 6.8.1.

use iogate_dma::Message;

use crate::config::ConfigSpace;

/// Where the capability's registers stand.
#[derive(Clone, Copy)]
pub(crate) struct MsiRegisters {
    /// Offset of the capability.
    at: u16,
    /// Vectors offered: 1-32.
    offered: u16,
    /// Whether there are mask and pending bits.
    maskable: bool,
}

impl MsiRegisters {
    pub(crate) fn find(config: &ConfigSpace, at: u16) -> Self {
        let control = config.get16(at.saturating_add(2));
        Self {
            at,
            offered: 1 << (control >> 1 & 7).min(5),
            maskable: control & 1 << 8 != 0,
        }
    }

    fn control(&self, config: &ConfigSpace) -> u16 {
        config.get16(self.at.saturating_add(2))
    }

    pub(crate) fn offered(&self) -> u16 {
        self.offered
    }

    pub(crate) fn enabled(&self, config: &ConfigSpace) -> bool {
        self.control(config) & 1 != 0
    }

    /// Vectors that software has allotted, at most those offered.
    pub(crate) fn allotted(&self, config: &ConfigSpace) -> u16 {
        let exponent = (self.control(config) >> 4 & 7).min(5);
        (1 << exponent).min(self.offered)
    }

    /// Enables with at least `vectors`, or disables with 0.
    pub(crate) fn enable(&self, config: &mut ConfigSpace, vectors: u16) {
        let exponent = match u16::try_from(vectors.next_power_of_two().trailing_zeros()) {
            Ok(exponent) => exponent.min(5),
            Err(_) => 0,
        };
        let rest = self.control(config) & !0x71;
        let control = rest | exponent << 4 | u16::from(vectors != 0);
        config.set(self.at.saturating_add(2), &control.to_le_bytes());
    }

    pub(crate) fn program(&self, config: &mut ConfigSpace, message: Message) {
        let address = message.address & !3;
        config.set(self.at.saturating_add(4), &address.to_le_bytes());
        let [d0, d1, _, _] = message.data.to_le_bytes();
        config.set(self.at.saturating_add(12), &[d0, d1]);
    }

    /// The message of `vector`: its number stands in the low bits of the data
    /// that the allotted vectors take.
    pub(crate) fn message(&self, config: &ConfigSpace, vector: u16) -> Message {
        let low = u64::from(config.get32(self.at.saturating_add(4)));
        let high = u64::from(config.get32(self.at.saturating_add(8)));
        let data = config.get16(self.at.saturating_add(12));
        let taken = self.allotted(config).saturating_sub(1);
        Message {
            address: high << 32 | low & !3,
            data: u32::from(data & !taken | vector & taken),
        }
    }

    pub(crate) fn masked(&self, config: &ConfigSpace) -> u32 {
        match self.maskable {
            true => config.get32(self.at.saturating_add(16)),
            false => 0,
        }
    }

    /// Shows `pending` in the Pending Bits register.
    pub(crate) fn show_pending(&self, config: &mut ConfigSpace, pending: u32) {
        if self.maskable {
            config.set(self.at.saturating_add(20), &pending.to_le_bytes());
        }
    }
}
