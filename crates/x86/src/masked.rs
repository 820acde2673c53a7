//! Loads and stores of those elements of a vector that a mask names: AVX-512 by
//! mask registers, AVX by the signs of another vector. The rest of memory is
//! not accessed.

use iced_x86::{Mnemonic as M, Register};

use crate::Vector;
use crate::execute::{Cpu, Not};

/// What happens to the elements of a load that are not named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    Kept,
    Cleared,
}

impl Cpu<'_> {
    /// Executes the instruction, if it is one of these.
    pub(crate) fn masked(&mut self) -> Result<bool, Not> {
        let name = self.instruction.mnemonic();
        match name {
            M::Vmaskmovps | M::Vpmaskmovd => return self.masked_by_signs(4),
            M::Vmaskmovpd | M::Vpmaskmovq => return self.masked_by_signs(8),
            _ if !self.instruction.has_op_mask() => return Ok(false),
            _ => {}
        }
        let size = match name {
            M::Vmovdqu8 => 1,
            M::Vmovdqu16 => 2,
            M::Vmovdqu32 | M::Vmovdqa32 | M::Vmovups | M::Vmovaps | M::Vmovss => 4,
            M::Vmovdqu64 | M::Vmovdqa64 | M::Vmovupd | M::Vmovapd | M::Vmovsd => 8,
            _ => return Ok(false),
        };
        let mask = self.op_mask()?;
        if self.is_memory(1) {
            let others = match self.instruction.zeroing_masking() {
                true => Others::Cleared,
                false => Others::Kept,
            };
            self.load_elements(1, size, mask, others)?;
        } else if self.is_memory(0) {
            self.store_elements(1, size, mask)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// The mask is the signs of the elements of operand 1.
    fn masked_by_signs(&mut self, size: usize) -> Result<bool, Not> {
        let register = self.instruction.op1_register();
        let signs = self.vector_register(register)?;
        let elements = signs.get(..register.size()).ok_or(Not::Known)?;
        let mut mask = 0_u64;
        for (bit, element) in (0..64).zip(elements.chunks_exact(size)) {
            let set = element.last().is_some_and(|byte| byte & 0x80 != 0);
            mask |= u64::from(set) << bit;
        }
        if self.is_memory(2) {
            self.load_elements(2, size, mask, Others::Cleared)?;
        } else if self.is_memory(0) {
            self.store_elements(2, size, mask)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Loads elements of `size` bytes of operand `from` into operand 0.
    fn load_elements(
        &mut self,
        from: u32,
        size: usize,
        mask: u64,
        others: Others,
    ) -> Result<(), Not> {
        let register: Register = self.instruction.op0_register();
        let address = self.address(from)?;
        let old = self.vector_register(register)?;
        let mut value: Vector = [0; 64];
        let whole = value
            .get_mut(..self.instruction.memory_size().size())
            .ok_or(Not::Known)?;
        for (index, (element, old)) in whole
            .chunks_exact_mut(size)
            .zip(old.chunks_exact(size))
            .enumerate()
        {
            if is_named(mask, index) {
                self.load_bytes(place(address, index, size), element)?;
            } else if others == Others::Kept {
                element.copy_from_slice(old);
            }
        }
        self.set_vector_register(register, value)
    }

    /// Stores elements of `size` bytes of register operand `from` to operand 0.
    fn store_elements(&mut self, from: u32, size: usize, mask: u64) -> Result<(), Not> {
        let register = self.instruction.op_register(from);
        let address = self.address(0)?;
        let value = self.vector_register(register)?;
        let whole = value.get(..self.instruction.memory_size().size());
        let whole = whole.ok_or(Not::Known)?;
        for (index, element) in whole.chunks_exact(size).enumerate() {
            if is_named(mask, index) {
                self.store_bytes(place(address, index, size), element)?;
            }
        }
        Ok(())
    }
}

fn is_named(mask: u64, index: usize) -> bool {
    u32::try_from(index).is_ok_and(|index| mask.checked_shr(index).unwrap_or_default() & 1 != 0)
}

fn place(address: u64, index: usize, size: usize) -> u64 {
    let offset = u64::try_from(index.saturating_mul(size)).unwrap_or_default();
    address.wrapping_add(offset)
}
