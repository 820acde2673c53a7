//! `movs`, `stos`, `lods`, `cmps` and `scas`, once or repeated.

use iced_x86::{Mnemonic as M, OpKind, Register};

use crate::Done;
use crate::arithmetic::{self, ALL, DF, Width, ZF};
use crate::execute::{Cpu, Not, is_repeated};

/// Elements that one execution moves: whoever wants to interrupt the program
/// waits no longer than that.
const MOST: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    Compare,
    Scan,
}

impl Kind {
    fn of(name: M) -> Option<Self> {
        Some(match name {
            M::Movsb | M::Movsw | M::Movsd | M::Movsq => Self::Move,
            M::Stosb | M::Stosw | M::Stosd | M::Stosq => Self::Store,
            M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Self::Load,
            M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => Self::Compare,
            M::Scasb | M::Scasw | M::Scasd | M::Scasq => Self::Scan,
            _ => return None,
        })
    }
}

impl Cpu<'_> {
    /// Executes a string instruction; `None` if it is none.
    pub(crate) fn string(&mut self) -> Result<Option<Done>, Not> {
        let instruction = self.instruction;
        // Some have a name in common with instructions on vectors.
        let is_string = (0..instruction.op_count()).any(|operand| {
            matches!(
                instruction.op_kind(operand),
                OpKind::MemoryESRDI | OpKind::MemorySegRSI
            )
        });
        let Some(kind) = Kind::of(instruction.mnemonic()).filter(|_| is_string) else {
            return Ok(None);
        };
        let size = instruction.memory_size().size();
        let width = Width(size);
        let bytes = u64::try_from(size).map_err(|_| Not::Known)?;
        let step = if self.registers.flag(DF) {
            bytes.wrapping_neg()
        } else {
            bytes
        };
        let repeated = is_repeated(instruction);
        let left = if repeated {
            self.register(Register::RCX)?
        } else {
            1
        };
        for _ in 0..left.min(MOST) {
            self.element_of_string(kind, width, step)?;
            if repeated {
                self.advance(Register::RCX, u64::MAX)?;
                let goes_on = self.registers.flag(ZF) != instruction.has_repne_prefix();
                if matches!(kind, Kind::Compare | Kind::Scan) && !goes_on {
                    return Ok(Some(Done::Completed));
                }
            }
        }
        Ok(Some(match left > MOST {
            true => Done::Partly,
            false => Done::Completed,
        }))
    }

    fn element_of_string(&mut self, kind: Kind, width: Width, step: u64) -> Result<(), Not> {
        match kind {
            Kind::Move => {
                let value = self.load(self.address(1)?, width)?;
                self.store(self.address(0)?, width, value)?;
                self.advance(Register::RSI, step)?;
                self.advance(Register::RDI, step)
            }
            Kind::Store => {
                let value = self.operand(1)?;
                self.store(self.address(0)?, width, value)?;
                self.advance(Register::RDI, step)
            }
            Kind::Load => {
                let value = self.load(self.address(1)?, width)?;
                self.set_operand(0, value)?;
                self.advance(Register::RSI, step)
            }
            Kind::Compare => {
                let a = self.load(self.address(0)?, width)?;
                let b = self.load(self.address(1)?, width)?;
                self.compare(width, a, b);
                self.advance(Register::RSI, step)?;
                self.advance(Register::RDI, step)
            }
            Kind::Scan => {
                let a = self.operand(0)?;
                let b = self.load(self.address(1)?, width)?;
                self.compare(width, a, b);
                self.advance(Register::RDI, step)
            }
        }
    }

    fn compare(&mut self, width: Width, a: u64, b: u64) {
        let (_, flags) = arithmetic::subtract(width, a, b, false);
        self.registers.set_flags(ALL, flags);
    }

    fn advance(&mut self, register: Register, by: u64) -> Result<(), Not> {
        let value = self.register(register)?.wrapping_add(by);
        self.set_register(register, value)
    }
}
