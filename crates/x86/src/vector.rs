//! Loads and stores of vector registers, SSE to AVX-512 without masks.

use iced_x86::{Mnemonic as M, Register};

use crate::Vector;
use crate::execute::{Cpu, Not};

/// What a load does to the register's bytes that it does not fill.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Above {
    /// The first 16 bytes are filled or cleared, the rest is kept: SSE.
    Kept,
    /// Cleared: AVX.
    Cleared,
}

impl Cpu<'_> {
    /// Executes the instruction, if it is one of these.
    pub(crate) fn vector(&mut self) -> Result<bool, Not> {
        let above = match self.instruction.mnemonic() {
            M::Movups
            | M::Movupd
            | M::Movaps
            | M::Movapd
            | M::Movdqu
            | M::Movdqa
            | M::Lddqu
            | M::Movntps
            | M::Movntpd
            | M::Movntdq
            | M::Movntdqa
            | M::Movd
            | M::Movq
            | M::Movss
            | M::Movsd => Above::Kept,
            M::Vmovups
            | M::Vmovupd
            | M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqu
            | M::Vmovdqa
            | M::Vmovdqu8
            | M::Vmovdqu16
            | M::Vmovdqu32
            | M::Vmovdqu64
            | M::Vmovdqa32
            | M::Vmovdqa64
            | M::Vlddqu
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovntdqa
            | M::Vmovd
            | M::Vmovq
            | M::Vmovss
            | M::Vmovsd => Above::Cleared,
            M::Movlps | M::Movlpd => return self.half(0, Above::Kept),
            M::Movhps | M::Movhpd => return self.half(8, Above::Kept),
            M::Vmovlps | M::Vmovlpd => return self.half(0, Above::Cleared),
            M::Vmovhps | M::Vmovhpd => return self.half(8, Above::Cleared),
            M::Vbroadcastss
            | M::Vbroadcastsd
            | M::Vbroadcastf128
            | M::Vbroadcasti128
            | M::Vpbroadcastb
            | M::Vpbroadcastw
            | M::Vpbroadcastd
            | M::Vpbroadcastq => {
                return self.broadcast();
            }
            M::Pextrb
            | M::Pextrw
            | M::Pextrd
            | M::Pextrq
            | M::Vpextrb
            | M::Vpextrw
            | M::Vpextrd
            | M::Vpextrq => return self.extract(),
            M::Pinsrb | M::Pinsrw | M::Pinsrd | M::Pinsrq => return self.insert(Above::Kept),
            M::Vpinsrb | M::Vpinsrw | M::Vpinsrd | M::Vpinsrq => {
                return self.insert(Above::Cleared);
            }
            _ => return Ok(false),
        };
        let size = self.instruction.memory_size().size();
        if self.is_memory(1) && self.instruction.op_count() == 2 {
            let register = self.instruction.op0_register();
            let mut value = self.vector_register(register)?;
            clear(&mut value, above);
            self.load_bytes(self.address(1)?, value.get_mut(..size).ok_or(Not::Known)?)?;
            self.set_vector_register(register, value)?;
        } else if self.is_memory(0) && self.instruction.op_count() == 2 {
            let value = self.vector_register(self.instruction.op1_register())?;
            self.store_bytes(self.address(0)?, value.get(..size).ok_or(Not::Known)?)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Moves 8 bytes from or to a half of an xmm register.
    fn half(&mut self, at: usize, above: Above) -> Result<bool, Not> {
        let part = at..at.saturating_add(8);
        if self.is_memory(0) {
            let value = self.vector_register(self.instruction.op1_register())?;
            self.store_bytes(self.address(0)?, value.get(part).ok_or(Not::Known)?)?;
            return Ok(true);
        }
        let last = self.instruction.op_count().saturating_sub(1);
        if !self.is_memory(last) {
            return Ok(false);
        }
        self.merge(above, part, last)
    }

    /// Loads operand `from` into a part of what operand 1, or operand 0 where
    /// there are but two, holds.
    fn merge(
        &mut self,
        above: Above,
        part: std::ops::Range<usize>,
        from: u32,
    ) -> Result<bool, Not> {
        let other = if above == Above::Cleared { 1 } else { 0 };
        let mut value = self.vector_register(self.instruction.op_register(other))?;
        if above == Above::Cleared {
            value.get_mut(16..).ok_or(Not::Known)?.fill(0);
        }
        let part = value.get_mut(part).ok_or(Not::Known)?;
        self.load_bytes(self.address(from)?, part)?;
        self.set_vector_register(self.instruction.op0_register(), value)?;
        Ok(true)
    }

    fn broadcast(&mut self) -> Result<bool, Not> {
        if !self.is_memory(1) {
            return Ok(false);
        }
        let size = self.instruction.memory_size().size();
        let register: Register = self.instruction.op0_register();
        let mut value = [0; 64];
        let mut element = [0; 16];
        let element = element.get_mut(..size).ok_or(Not::Known)?;
        self.load_bytes(self.address(1)?, element)?;
        let filled = value.get_mut(..register.size()).ok_or(Not::Known)?;
        for place in filled.chunks_exact_mut(size.max(1)) {
            place.copy_from_slice(element);
        }
        self.set_vector_register(register, value)?;
        Ok(true)
    }

    /// The bytes of the element of an xmm register that operand `index` names.
    fn element(&mut self, index: u32) -> Result<std::ops::Range<usize>, Not> {
        let size = self.instruction.memory_size().size();
        let index = usize::try_from(self.operand(index)?).map_err(|_| Not::Known)?;
        let elements = 16_usize.checked_div(size).ok_or(Not::Known)?;
        let at = (index & elements.saturating_sub(1)).saturating_mul(size);
        Ok(at..at.saturating_add(size))
    }

    fn extract(&mut self) -> Result<bool, Not> {
        if !self.is_memory(0) {
            return Ok(false);
        }
        let part = self.element(2)?;
        let value = self.vector_register(self.instruction.op1_register())?;
        self.store_bytes(self.address(0)?, value.get(part).ok_or(Not::Known)?)?;
        Ok(true)
    }

    fn insert(&mut self, above: Above) -> Result<bool, Not> {
        let last = self.instruction.op_count().saturating_sub(1);
        let from = last.saturating_sub(1);
        if !self.is_memory(from) {
            return Ok(false);
        }
        let part = self.element(last)?;
        self.merge(above, part, from)
    }
}

fn clear(value: &mut Vector, above: Above) {
    match above {
        Above::Kept => {
            if let Some(low) = value.get_mut(..16) {
                low.fill(0);
            }
        }
        Above::Cleared => value.fill(0),
    }
}
