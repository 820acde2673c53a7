//! Instructions on general registers.

use iced_x86::{Mnemonic as M, Register};

use crate::arithmetic::{self, ALL, CF, OF, PF, SF, Shift, Width, ZF, of_result, when};
use crate::execute::{Cpu, Not};

impl Cpu<'_> {
    /// Executes the instruction, if it is one of these.
    pub(crate) fn integer(&mut self) -> Result<bool, Not> {
        let has_memory = (0..self.instruction.op_count()).any(|operand| self.is_memory(operand));
        if !has_memory {
            return Ok(false);
        }
        Ok(self.moves()?
            || self.two_operands()?
            || self.bits()?
            || self.exchanges()?
            || self.rest()?)
    }

    fn moves(&mut self) -> Result<bool, Not> {
        let name = self.instruction.mnemonic();
        match name {
            M::Mov | M::Movzx | M::Movnti | M::Movdiri => {
                let value = self.operand(1)?;
                self.set_operand(0, value)?;
            }
            M::Movsx | M::Movsxd => {
                let value = self.operand(1)?;
                let value = self.width(1)?.extend(value);
                self.set_operand(0, value)?;
            }
            M::Movbe => {
                let value = self.operand(1)?;
                let unused = 64_u32.saturating_sub(self.width(1)?.bits());
                self.set_operand(0, value.swap_bytes() >> unused)?;
            }
            _ => {
                if let Some(condition) = condition_of_move(name) {
                    // The load happens in any case, and clears the upper half.
                    let value = self.operand(1)?;
                    let old = self.operand(0)?;
                    let met = self.holds(condition);
                    self.set_operand(0, if met { value } else { old })?;
                } else if let Some(condition) = condition_of_set(name) {
                    let met = self.holds(condition);
                    self.set_operand(0, u64::from(met))?;
                } else {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn two_operands(&mut self) -> Result<bool, Not> {
        let carry = self.registers.flag(CF);
        let name = self.instruction.mnemonic();
        let known = matches!(
            name,
            M::Add | M::Adc | M::Sub | M::Sbb | M::Cmp | M::And | M::Or | M::Xor | M::Test
        );
        if !known {
            return Ok(false);
        }
        let width = self.width(0)?;
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        let (result, flags) = match name {
            M::Add => arithmetic::add(width, a, b, false),
            M::Adc => arithmetic::add(width, a, b, carry),
            M::Sub | M::Cmp => arithmetic::subtract(width, a, b, false),
            M::Sbb => arithmetic::subtract(width, a, b, carry),
            _ => {
                let result = match name {
                    M::Or => a | b,
                    M::Xor => a ^ b,
                    _ => a & b,
                } & width.mask();
                (result, of_result(width, result))
            }
        };
        if !matches!(name, M::Cmp | M::Test) {
            self.set_operand(0, result)?;
        }
        self.registers.set_flags(ALL, flags);
        Ok(true)
    }

    fn bits(&mut self) -> Result<bool, Not> {
        let shift = match self.instruction.mnemonic() {
            M::Shl | M::Sal => Shift::Left,
            M::Shr => Shift::Right,
            M::Sar => Shift::RightSigned,
            M::Rol => Shift::RotateLeft,
            M::Ror => Shift::RotateRight,
            M::Rcl => Shift::RotateLeftCarry,
            M::Rcr => Shift::RotateRightCarry,
            M::Bt | M::Bts | M::Btr | M::Btc => return self.bit(),
            M::Bsf | M::Bsr | M::Tzcnt | M::Lzcnt | M::Popcnt => return self.count(),
            M::Shlx | M::Shrx | M::Sarx | M::Rorx => return self.shift_to_register(),
            M::Andn => {
                let width = self.width(0)?;
                let (a, b) = (self.operand(1)?, self.operand(2)?);
                let result = !a & b & width.mask();
                self.set_operand(0, result)?;
                self.registers
                    .set_flags(CF | OF | ZF | SF, of_result(width, result));
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let width = self.width(0)?;
        let (value, count) = (self.operand(0)?, self.operand(1)?);
        let carry = self.registers.flag(CF);
        let (result, which, flags) = arithmetic::shift(shift, width, value, count, carry);
        self.set_operand(0, result)?;
        self.registers.set_flags(which, flags);
        Ok(true)
    }

    /// Shifts by a register or a number, without flags.
    fn shift_to_register(&mut self) -> Result<bool, Not> {
        let width = self.width(0)?;
        let (value, count) = (self.operand(1)?, self.operand(2)?);
        let kind = match self.instruction.mnemonic() {
            M::Shlx => Shift::Left,
            M::Shrx => Shift::Right,
            M::Sarx => Shift::RightSigned,
            _ => Shift::RotateRight,
        };
        let (result, _, _) = arithmetic::shift(kind, width, value, count, false);
        self.set_operand(0, result)?;
        Ok(true)
    }

    /// Tests one bit, and changes it. A register may name one far from the
    /// operand's address.
    fn bit(&mut self) -> Result<bool, Not> {
        let width = self.width(0)?;
        let mut address = self.address(0)?;
        let index = self.operand(1)?;
        if self.is_register(1) {
            let index = width.extend(index).cast_signed();
            let words = index >> width.bits().trailing_zeros();
            let bytes = words
                .cast_unsigned()
                .wrapping_mul(u64::from(width.bits()) >> 3);
            address = address.wrapping_add(bytes);
        }
        let bit = 1_u64.wrapping_shl(low_bits(index) & width.bits().wrapping_sub(1));
        let value = self.load(address, width)?;
        let changed = match self.instruction.mnemonic() {
            M::Bts => Some(value | bit),
            M::Btr => Some(value & !bit),
            M::Btc => Some(value ^ bit),
            _ => None,
        };
        if let Some(changed) = changed {
            self.store(address, width, changed)?;
        }
        self.registers.set_flags(CF, when(value & bit != 0, CF));
        Ok(true)
    }

    fn count(&mut self) -> Result<bool, Not> {
        let width = self.width(0)?;
        let value = self.operand(1)?;
        let bits = width.bits();
        let above = 64_u32.saturating_sub(bits);
        let leading = value.leading_zeros().saturating_sub(above);
        let trailing = value.trailing_zeros().min(bits);
        let result = u64::from(match self.instruction.mnemonic() {
            M::Bsf => trailing,
            M::Bsr => bits.wrapping_sub(1).wrapping_sub(leading),
            M::Tzcnt => trailing,
            M::Lzcnt => leading,
            _ => value.count_ones(),
        });
        match self.instruction.mnemonic() {
            M::Bsf | M::Bsr => {
                // Zero leaves the register as it is, on every processor known.
                if value != 0 {
                    self.set_operand(0, result)?;
                }
                self.registers.set_flags(ZF, when(value == 0, ZF));
            }
            M::Popcnt => {
                self.set_operand(0, result)?;
                self.registers.set_flags(ALL, when(value == 0, ZF));
            }
            _ => {
                self.set_operand(0, result)?;
                let flags = when(value == 0, CF) | when(result == 0, ZF);
                self.registers.set_flags(CF | ZF, flags);
            }
        }
        Ok(true)
    }

    fn exchanges(&mut self) -> Result<bool, Not> {
        match self.instruction.mnemonic() {
            M::Xchg => {
                let (a, b) = (self.operand(0)?, self.operand(1)?);
                let (memory, register) = if self.is_memory(0) { (0, 1) } else { (1, 0) };
                let (to_memory, to_register) = if memory == 0 { (b, a) } else { (a, b) };
                self.set_operand(memory, to_memory)?;
                self.set_operand(register, to_register)?;
            }
            M::Xadd => {
                let width = self.width(0)?;
                let (a, b) = (self.operand(0)?, self.operand(1)?);
                let (sum, flags) = arithmetic::add(width, a, b, false);
                self.set_operand(0, sum)?;
                self.set_operand(1, a)?;
                self.registers.set_flags(ALL, flags);
            }
            M::Cmpxchg => {
                let width = self.width(0)?;
                let accumulator = match width.0 {
                    1 => Register::AL,
                    2 => Register::AX,
                    4 => Register::EAX,
                    _ => Register::RAX,
                };
                let (old, new) = (self.operand(0)?, self.operand(1)?);
                let expected = self.register(accumulator)?;
                let (_, flags) = arithmetic::subtract(width, expected, old, false);
                let equal = flags & ZF != 0;
                self.set_operand(0, if equal { new } else { old })?;
                if !equal {
                    self.set_register(accumulator, old)?;
                }
                self.registers.set_flags(ALL, flags);
            }
            M::Cmpxchg8b => self.exchange_pair(
                Width(4),
                [Register::EAX, Register::EDX, Register::EBX, Register::ECX],
            )?,
            M::Cmpxchg16b => self.exchange_pair(
                Width(8),
                [Register::RAX, Register::RDX, Register::RBX, Register::RCX],
            )?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Compares memory with the pair of the first two registers, and exchanges
    /// it for that of the other two.
    fn exchange_pair(&mut self, width: Width, registers: [Register; 4]) -> Result<(), Not> {
        let address = self.address(0)?;
        let mut bytes = [0; 16];
        let both = width.0.saturating_mul(2);
        let part = bytes.get_mut(..both).ok_or(Not::Known)?;
        self.load_bytes(address, part)?;
        let whole = u128::from_le_bytes(bytes);
        let pair = |low: u64, high: u64| u128::from(low) | u128::from(high) << width.bits();
        let values = registers.map(|register| self.registers.get(register).unwrap_or_default());
        let [a, d, b, c] = values;
        let equal = whole == pair(a, d);
        let new = if equal { pair(b, c) } else { whole };
        let new = new.to_le_bytes();
        self.store_bytes(address, new.get(..both).ok_or(Not::Known)?)?;
        if !equal {
            let halves = [whole, whole >> width.bits()];
            let [accumulator, data, ..] = registers;
            for (register, half) in [accumulator, data].into_iter().zip(halves) {
                let [a, b, c, d, e, f, g, h, ..] = half.to_le_bytes();
                let half = u64::from_le_bytes([a, b, c, d, e, f, g, h]) & width.mask();
                self.set_register(register, half)?;
            }
        }
        self.registers.set_flags(ZF, when(equal, ZF));
        Ok(())
    }

    fn rest(&mut self) -> Result<bool, Not> {
        let name = self.instruction.mnemonic();
        match name {
            M::Inc | M::Dec => {
                let width = self.width(0)?;
                let value = self.operand(0)?;
                let (result, flags) = match name {
                    M::Inc => arithmetic::add(width, value, 1, false),
                    _ => arithmetic::subtract(width, value, 1, false),
                };
                self.set_operand(0, result)?;
                self.registers.set_flags(ALL & !CF, flags);
            }
            M::Neg => {
                let width = self.width(0)?;
                let value = self.operand(0)?;
                let (result, flags) = arithmetic::subtract(width, 0, value, false);
                self.set_operand(0, result)?;
                self.registers.set_flags(ALL, flags);
            }
            M::Not => {
                let value = self.operand(0)?;
                self.set_operand(0, !value)?;
            }
            M::Imul if self.instruction.op_count() > 1 => {
                let width = self.width(0)?;
                let from = self.instruction.op_count().saturating_sub(2);
                let (a, b) = (self.operand(from)?, self.operand(from.saturating_add(1))?);
                let (a, b) = (width.extend(a).cast_signed(), width.extend(b).cast_signed());
                let product = i128::from(a).wrapping_mul(i128::from(b));
                let result = a.wrapping_mul(b).cast_unsigned() & width.mask();
                let fits = product == i128::from(width.extend(result).cast_signed());
                self.set_operand(0, result)?;
                self.registers.set_flags(CF | OF, when(!fits, CF | OF));
            }
            M::Push => {
                let width = self.width(0)?;
                let value = self.operand(0)?;
                self.push(width, value)?;
            }
            M::Pop => {
                let width = self.width(0)?;
                let value = self.load(self.register(Register::RSP)?, width)?;
                self.move_stack(width, u64::wrapping_add)?;
                // An address that uses rsp uses it as it is now.
                self.set_operand(0, value)?;
            }
            M::Call | M::Jmp => {
                let width = self.width(0)?;
                if width.0 != 8 {
                    return Err(Not::Known);
                }
                let target = self.operand(0)?;
                if name == M::Call {
                    self.push(width, self.registers.rip)?;
                }
                self.registers.rip = target;
            }
            M::Movdir64b => {
                let mut bytes = [0; 64];
                self.load_bytes(self.address(1)?, &mut bytes)?;
                let target = self.operand(0)?;
                self.store_bytes(target, &bytes)?;
            }
            // Nothing of a device's is in a cache.
            M::Clflush | M::Clflushopt | M::Clwb => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn push(&mut self, width: Width, value: u64) -> Result<(), Not> {
        let rsp = self.register(Register::RSP)?;
        let size = u64::try_from(width.0).map_err(|_| Not::Known)?;
        self.store(rsp.wrapping_sub(size), width, value)?;
        self.move_stack(width, u64::wrapping_sub)
    }

    fn move_stack(&mut self, width: Width, by: fn(u64, u64) -> u64) -> Result<(), Not> {
        let rsp = self.register(Register::RSP)?;
        let size = u64::try_from(width.0).map_err(|_| Not::Known)?;
        self.set_register(Register::RSP, by(rsp, size))
    }

    /// Whether a condition of cmov and set holds.
    fn holds(&self, condition: Condition) -> bool {
        let flag = |flag| self.registers.flag(flag);
        let less = flag(SF) != flag(OF);
        let (base, wanted) = match condition {
            Condition::Overflow(wanted) => (flag(OF), wanted),
            Condition::Below(wanted) => (flag(CF), wanted),
            Condition::Equal(wanted) => (flag(ZF), wanted),
            Condition::BelowOrEqual(wanted) => (flag(CF) || flag(ZF), wanted),
            Condition::Sign(wanted) => (flag(SF), wanted),
            Condition::Parity(wanted) => (flag(PF), wanted),
            Condition::Less(wanted) => (less, wanted),
            Condition::LessOrEqual(wanted) => (flag(ZF) || less, wanted),
        };
        base == wanted
    }
}

/// A condition, and whether it is to hold or not.
#[derive(Clone, Copy)]
enum Condition {
    Overflow(bool),
    Below(bool),
    Equal(bool),
    BelowOrEqual(bool),
    Sign(bool),
    Parity(bool),
    Less(bool),
    LessOrEqual(bool),
}

fn condition_of_move(name: M) -> Option<Condition> {
    Some(match name {
        M::Cmovo => Condition::Overflow(true),
        M::Cmovno => Condition::Overflow(false),
        M::Cmovb => Condition::Below(true),
        M::Cmovae => Condition::Below(false),
        M::Cmove => Condition::Equal(true),
        M::Cmovne => Condition::Equal(false),
        M::Cmovbe => Condition::BelowOrEqual(true),
        M::Cmova => Condition::BelowOrEqual(false),
        M::Cmovs => Condition::Sign(true),
        M::Cmovns => Condition::Sign(false),
        M::Cmovp => Condition::Parity(true),
        M::Cmovnp => Condition::Parity(false),
        M::Cmovl => Condition::Less(true),
        M::Cmovge => Condition::Less(false),
        M::Cmovle => Condition::LessOrEqual(true),
        M::Cmovg => Condition::LessOrEqual(false),
        _ => return None,
    })
}

fn condition_of_set(name: M) -> Option<Condition> {
    Some(match name {
        M::Seto => Condition::Overflow(true),
        M::Setno => Condition::Overflow(false),
        M::Setb => Condition::Below(true),
        M::Setae => Condition::Below(false),
        M::Sete => Condition::Equal(true),
        M::Setne => Condition::Equal(false),
        M::Setbe => Condition::BelowOrEqual(true),
        M::Seta => Condition::BelowOrEqual(false),
        M::Sets => Condition::Sign(true),
        M::Setns => Condition::Sign(false),
        M::Setp => Condition::Parity(true),
        M::Setnp => Condition::Parity(false),
        M::Setl => Condition::Less(true),
        M::Setge => Condition::Less(false),
        M::Setle => Condition::LessOrEqual(true),
        M::Setg => Condition::LessOrEqual(false),
        _ => return None,
    })
}

fn low_bits(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
