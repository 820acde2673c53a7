//! Vector registers in an XSAVE area of the standard format. AMD64
//! Architecture Programmer's Manual volume 2 section 11.5.

use crate::{Vector, Vectors};

/// Where the parts of an XSAVE area stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The mask registers, 8 bytes each: component 5.
    masks: Option<usize>,
    /// Bits 255-128 of the registers 0-15, 16 bytes each: component 2.
    upper_128: Option<usize>,
    /// Bits 511-256 of the registers 0-15, 32 bytes each: component 6.
    upper_256: Option<usize>,
    /// The registers 16-31, 64 bytes each: component 7.
    upper_registers: Option<usize>,
}

/// Bits 127-0 of the registers 0-15.
const LOW: usize = 160;
/// XSTATE_BV: which components are not in their initial state.
const PRESENT: usize = 512;

impl Layout {
    /// That of this processor: CPUID function 0xd.
    pub fn of_processor() -> Self {
        let component = |index: u32| {
            if std::arch::x86_64::__cpuid(0).eax < 0xd {
                return None;
            }
            let found = std::arch::x86_64::__cpuid_count(0xd, index);
            let offset = usize::try_from(found.ebx).ok()?;
            (found.eax > 0 && offset > 0).then_some(offset)
        };
        Self {
            masks: component(5),
            upper_128: component(2),
            upper_256: component(6),
            upper_registers: component(7),
        }
    }
}

/// The vector registers in an XSAVE area.
#[derive(Debug)]
pub struct Xsave<'a> {
    /// The layout.
    pub layout: Layout,
    /// The area; at least 576 bytes, or there are no registers.
    pub area: &'a mut [u8],
}

/// A piece of a register: where it stands, which bytes of the register it is,
/// and the component that it belongs to.
type Piece = (usize, std::ops::Range<usize>, u32);

impl Xsave<'_> {
    fn pieces(&self, index: usize) -> [Option<Piece>; 3] {
        let at = |base: Option<usize>, index: usize, size: usize| {
            base?.checked_add(index.checked_mul(size)?)
        };
        if let Some(index) = index.checked_sub(16) {
            let whole = at(self.layout.upper_registers, index, 64);
            return [whole.map(|at| (at, 0..64, 7)), None, None];
        }
        let low = at(Some(LOW), index, 16).map(|at| (at, 0..16, 1));
        let middle = at(self.layout.upper_128, index, 16).map(|at| (at, 16..32, 2));
        let high = at(self.layout.upper_256, index, 32).map(|at| (at, 32..64, 6));
        [low, middle, high]
    }

    fn present(&self) -> Option<u64> {
        let bytes = self.area.get(PRESENT..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }
}

impl Vectors for Xsave<'_> {
    fn get(&mut self, index: usize) -> Option<Vector> {
        let present = self.present()?;
        let mut value = [0; 64];
        for (at, part, component) in self.pieces(index).into_iter().flatten() {
            let length = part.len();
            // An area may be shorter than what the processor could fill.
            let from = self.area.get(at..at.checked_add(length)?);
            if let Some(from) = from
                && present >> component & 1 != 0
            {
                value.get_mut(part)?.copy_from_slice(from);
            }
        }
        Some(value)
    }

    fn set(&mut self, index: usize, value: Vector) -> Option<()> {
        for (at, part, component) in self.pieces(index).into_iter().flatten() {
            let present = self.present()?;
            let from = value.get(part)?;
            let absent = present >> component & 1 == 0;
            if absent && from.iter().all(|byte| *byte == 0) {
                continue;
            }
            let into = self.area.get_mut(at..at.checked_add(from.len())?)?;
            into.copy_from_slice(from);
            let present = present | 1 << component;
            let mask = self.area.get_mut(PRESENT..)?.first_chunk_mut()?;
            *mask = present.to_le_bytes();
        }
        Some(())
    }

    fn mask(&mut self, index: usize) -> Option<u64> {
        let at = self.layout.masks?.checked_add(index.checked_mul(8)?)?;
        if self.present()? >> 5 & 1 == 0 {
            return Some(0);
        }
        let bytes = self.area.get(at..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }
}
