//! Base Address Registers. PCI Local Bus 3.0 section 6.2.5.1.

/// The space that a BAR lies in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BarSpace {
    /// I/O ports.
    Io,
    /// Memory.
    Memory,
}

/// How wide a BAR's address is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BarWidth {
    /// One register.
    Bits32,
    /// Two registers: this one and the next.
    Bits64,
}

/// One Base Address Register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Bar {
    /// 0-5: the first register.
    pub index: u8,
    /// Bytes: a power of two.
    pub size: u64,
    /// Memory or I/O.
    pub space: BarSpace,
    /// 32 or 64 bits.
    pub width: BarWidth,
    /// Reads have no side effects, writes may be merged.
    pub prefetchable: bool,
    /// Plain memory, which a program may map: accesses need not reach the
    /// model.
    pub mappable: bool,
}

impl Bar {
    /// Registers in memory below 4 GiB; `size` is 16 bytes to 2 GiB.
    pub const fn memory32(index: u8, size: u64) -> Self {
        Self {
            index,
            size,
            space: BarSpace::Memory,
            width: BarWidth::Bits32,
            prefetchable: false,
            mappable: false,
        }
    }

    /// Registers in memory anywhere; `size` is 16 bytes to 2^63.
    pub const fn memory64(index: u8, size: u64) -> Self {
        Self {
            width: BarWidth::Bits64,
            ..Self::memory32(index, size)
        }
    }

    /// I/O ports; `size` is 4 to 256 bytes.
    pub const fn io(index: u8, size: u64) -> Self {
        Self {
            space: BarSpace::Io,
            ..Self::memory32(index, size)
        }
    }

    /// The same BAR, prefetchable.
    pub const fn prefetchable(self) -> Self {
        Self {
            prefetchable: true,
            ..self
        }
    }

    /// The same BAR, mappable by a program.
    pub const fn mappable(self) -> Self {
        Self {
            mappable: true,
            ..self
        }
    }

    /// The read-only low bits of the register: space, width, prefetchable.
    pub const fn flags(&self) -> u32 {
        match (self.space, self.width) {
            (BarSpace::Io, _) => 1,
            (BarSpace::Memory, BarWidth::Bits32) => (self.prefetchable as u32) << 3,
            (BarSpace::Memory, BarWidth::Bits64) => 4 | (self.prefetchable as u32) << 3,
        }
    }

    /// Whether the size and the index are ones that registers can express.
    pub(crate) fn is_valid(&self) -> bool {
        let (least, most) = match (self.space, self.width) {
            (BarSpace::Io, _) => (4, 256),
            (BarSpace::Memory, BarWidth::Bits32) => (16, 1 << 31),
            (BarSpace::Memory, BarWidth::Bits64) => (16, 1 << 63),
        };
        let registers = match self.width {
            BarWidth::Bits32 => 5,
            BarWidth::Bits64 => 4,
        };
        self.index <= registers
            && self.size.is_power_of_two()
            && (least..=most).contains(&self.size)
    }
}
