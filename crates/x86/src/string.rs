//! `movs`, `stos` and `lods`, once or repeated.

use iced_x86::{Mnemonic, OpKind, Register};

use crate::Done;
use crate::arithmetic::{DF, Width};
use crate::execute::{Cpu, Not};

/// Elements that one execution moves: whoever wants to interrupt the program
/// waits no longer than that.
const MOST: u64 = 4096;

impl Cpu<'_> {
    /// Executes a string instruction; `None` if it is none.
    pub(crate) fn string(&mut self) -> Result<Option<Done>, Not> {
        let instruction = self.instruction;
        let is_string = (0..instruction.op_count()).any(|operand| {
            matches!(
                instruction.op_kind(operand),
                OpKind::MemoryESRDI | OpKind::MemorySegRSI
            )
        });
        let name = match instruction.mnemonic() {
            // A name in common with moves of vectors.
            Mnemonic::Movsd if is_string => Mnemonic::Movsb,
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsq if is_string => Mnemonic::Movsb,
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq if is_string => {
                Mnemonic::Stosb
            }
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq if is_string => {
                Mnemonic::Lodsb
            }
            _ => return Ok(None),
        };
        let size = instruction.memory_size().size();
        let width = Width(size);
        let bytes = u64::try_from(size).map_err(|_| Not::Known)?;
        let step = if self.registers.flag(DF) {
            bytes.wrapping_neg()
        } else {
            bytes
        };
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let left = if repeated {
            self.register(Register::RCX)?
        } else {
            1
        };
        for _ in 0..left.min(MOST) {
            match name {
                Mnemonic::Movsb => {
                    let value = self.load(self.address(1)?, width)?;
                    self.store(self.address(0)?, width, value)?;
                    self.advance(Register::RSI, step)?;
                    self.advance(Register::RDI, step)?;
                }
                Mnemonic::Stosb => {
                    let value = self.operand(1)?;
                    self.store(self.address(0)?, width, value)?;
                    self.advance(Register::RDI, step)?;
                }
                _ => {
                    let value = self.load(self.address(1)?, width)?;
                    self.set_operand(0, value)?;
                    self.advance(Register::RSI, step)?;
                }
            }
            if repeated {
                self.advance(Register::RCX, u64::MAX)?;
            }
        }
        Ok(Some(match left > MOST {
            true => Done::Partly,
            false => Done::Completed,
        }))
    }

    fn advance(&mut self, register: Register, by: u64) -> Result<(), Not> {
        let value = self.register(register)?.wrapping_add(by);
        self.set_register(register, value)
    }
}
