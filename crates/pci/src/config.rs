//! Configuration space: 4096 bytes, each with the bits that software may
//! change, and the numbers of its registers.

/// Bytes of a function's configuration space. PCI Express Base 6.0 section 7.2.
pub const SIZE: u64 = 4096;

/// Offsets in the type 0 header, in bytes. PCI Local Bus 3.0 section 6.1.
pub mod register {
    /// Vendor ID, 16 bits.
    pub const VENDOR: u16 = 0x00;
    /// Device ID, 16 bits.
    pub const DEVICE: u16 = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// Revision ID, 8 bits.
    pub const REVISION: u16 = 0x08;
    /// Class Code, 24 bits.
    pub const CLASS: u16 = 0x09;
    /// Cache Line Size, 8 bits.
    pub const CACHE_LINE: u16 = 0x0c;
    /// Header Type, 8 bits.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// First of six Base Address Registers, 32 bits each.
    pub const BAR0: u16 = 0x10;
    /// Subsystem Vendor ID, 16 bits.
    pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
    /// Subsystem ID, 16 bits.
    pub const SUBSYSTEM: u16 = 0x2e;
    /// Capabilities Pointer, 8 bits.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt Line, 8 bits.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt Pin, 8 bits: 0 for none, 1 for INTA.
    pub const INTERRUPT_PIN: u16 = 0x3d;
    /// Where capabilities begin.
    pub const AFTER_HEADER: u16 = 0x40;
    /// Where extended capabilities begin.
    pub const EXTENDED: u16 = 0x100;
}

/// Capability IDs. PCI Code and ID Assignment 1.11 section 2.
pub mod capability {
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x01;
    /// Message Signalled Interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor Specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// Extended capability IDs. PCI Code and ID Assignment 1.11 section 3.
pub mod extended {
    /// Alternative Routing-ID Interpretation.
    pub const ARI: u16 = 0x000e;
    /// Address Translation Services.
    pub const ATS: u16 = 0x000f;
    /// Single Root I/O Virtualization.
    pub const SR_IOV: u16 = 0x0010;
    /// Process Address Space ID.
    pub const PASID: u16 = 0x001b;
}

/// Bits of the Status register. PCI Local Bus 3.0 section 6.2.3.
pub(crate) mod status {
    pub(crate) const INTERRUPT: u8 = 1 << 3;
    pub(crate) const CAPABILITIES: u8 = 1 << 4;
}

/// The Command register. PCI Local Bus 3.0 section 6.2.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Command(pub u16);

impl Command {
    /// I/O Space Enable.
    pub const IO: u16 = 1 << 0;
    /// Memory Space Enable.
    pub const MEMORY: u16 = 1 << 1;
    /// Bus Master Enable.
    pub const MASTER: u16 = 1 << 2;
    /// Interrupt Disable.
    pub const INTX_DISABLE: u16 = 1 << 10;

    /// Whether I/O BARs answer.
    pub const fn io_enabled(self) -> bool {
        self.0 & Self::IO != 0
    }
    /// Whether memory BARs answer.
    pub const fn memory_enabled(self) -> bool {
        self.0 & Self::MEMORY != 0
    }
    /// Whether the function may make requests, messages included.
    pub const fn bus_master(self) -> bool {
        self.0 & Self::MASTER != 0
    }
    /// Whether the INTx line is kept silent.
    pub const fn intx_disabled(self) -> bool {
        self.0 & Self::INTX_DISABLE != 0
    }
}

/// What software may do with the bits of one byte; other bits are read-only.
#[derive(Clone, Copy, Default)]
struct Byte {
    value: u8,
    power_on: u8,
    writable: u8,
    /// Writing 1 clears.
    clearable: u8,
}

/// The bytes of a configuration space with their write masks. What lies
/// outside reads as ones and takes no writes, as on a bus without a target.
#[derive(Clone)]
pub(crate) struct ConfigSpace {
    bytes: Vec<Byte>,
}

impl ConfigSpace {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![Byte::default(); 4096],
        }
    }

    fn byte(&self, at: u16) -> Byte {
        self.bytes.get(usize::from(at)).copied().unwrap_or_default()
    }

    /// Defines bytes: their value at power-on and the bits that software may
    /// write.
    pub(crate) fn define(&mut self, at: u16, power_on: &[u8], writable: &[u8]) {
        let cells = self.bytes.get_mut(usize::from(at)..).unwrap_or_default();
        for (index, (cell, value)) in cells.iter_mut().zip(power_on).enumerate() {
            cell.value = *value;
            cell.power_on = *value;
            cell.writable = writable.get(index).copied().unwrap_or(0);
        }
    }

    /// Defines the bits of one byte that are cleared by writing 1.
    pub(crate) fn define_clearable(&mut self, at: u16, bits: u8) {
        if let Some(cell) = self.bytes.get_mut(usize::from(at)) {
            cell.clearable = bits;
        }
    }

    /// Reads as software does.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        into.fill(0xff);
        let cells = usize::try_from(offset)
            .ok()
            .and_then(|first| self.bytes.get(first..))
            .unwrap_or_default();
        for (byte, cell) in into.iter_mut().zip(cells) {
            *byte = cell.value;
        }
    }

    /// Writes as software does.
    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) {
        let cells = usize::try_from(offset)
            .ok()
            .and_then(|first| self.bytes.get_mut(first..))
            .unwrap_or_default();
        for (cell, byte) in cells.iter_mut().zip(from) {
            cell.value = (cell.value & !cell.writable) | (byte & cell.writable);
            cell.value &= !(byte & cell.clearable);
        }
    }

    /// The register's value, little-endian.
    pub(crate) fn get16(&self, at: u16) -> u16 {
        u16::from_le_bytes([self.byte(at).value, self.byte(at.saturating_add(1)).value])
    }

    /// The register's value, little-endian.
    pub(crate) fn get32(&self, at: u16) -> u32 {
        u32::from(self.get16(at)) | u32::from(self.get16(at.saturating_add(2))) << 16
    }

    /// Sets a value whatever the masks say, as the function itself does.
    pub(crate) fn set(&mut self, at: u16, value: &[u8]) {
        let cells = self.bytes.get_mut(usize::from(at)..).unwrap_or_default();
        for (cell, value) in cells.iter_mut().zip(value) {
            cell.value = *value;
        }
    }

    /// The offsets of the bytes that software may change, with the bits that
    /// it may.
    pub(crate) fn changeable(&self) -> impl Iterator<Item = (u16, u8)> {
        let cells = (0_u16..).zip(&self.bytes);
        let cells = cells.map(|(at, cell)| (at, cell.writable | cell.clearable));
        cells.filter(|(_, bits)| *bits != 0)
    }

    /// Whether software may write all of these bits of a byte.
    pub(crate) fn is_writable(&self, at: u16, bits: u8) -> bool {
        self.byte(at).writable & bits == bits
    }

    /// The value of one byte.
    pub(crate) fn get8(&self, at: u16) -> u8 {
        self.byte(at).value
    }

    /// Power-on values for every byte outside `kept`.
    pub(crate) fn reset(&mut self, kept: impl Fn(usize) -> bool) {
        for (at, cell) in self.bytes.iter_mut().enumerate() {
            if !kept(at) {
                cell.value = cell.power_on;
            }
        }
    }

    /// The offset of the first capability with this id. The list is followed
    /// through at most 48 entries, the most that fit.
    pub(crate) fn capability(&self, id: u8) -> Option<u16> {
        let mut at = u16::from(self.byte(register::CAPABILITIES).value);
        for _ in 0..48 {
            if at < register::AFTER_HEADER {
                return None;
            }
            if self.byte(at).value == id {
                return Some(at);
            }
            at = u16::from(self.byte(at.saturating_add(1)).value);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writable_bits_change_and_ones_clear_clearable_bits() {
        let mut config = ConfigSpace::new();
        config.define(0x40, &[0b1010_0001], &[0b0000_1111]);
        config.define_clearable(0x40, 0b1000_0000);
        config.write(0x40, &[0b0111_0110]);
        assert_eq!(config.get16(0x40), 0b1010_0110);
        config.write(0x40, &[0b1000_0000]);
        assert_eq!(config.get16(0x40), 0b0010_0000);
    }

    #[test]
    fn outside_of_the_space_reads_are_ones_and_writes_are_dropped() {
        let mut config = ConfigSpace::new();
        let mut bytes = [0; 4];
        config.write(4094, &[1; 4]);
        config.read(4094, &mut bytes);
        assert_eq!(bytes, [0, 0, 0xff, 0xff]);
        config.read(u64::MAX, &mut bytes);
        assert_eq!(bytes, [0xff; 4]);
    }
}
