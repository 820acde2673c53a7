//! Decoding, operands and addresses: what all instructions have in common.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FastFormatter, Instruction, OpKind, Register,
};

use crate::arithmetic::Width;
use crate::{Done, Memory, Registers, Stopped, Unknown, Vector, Vectors};

/// Bytes of the longest instruction.
pub const LONGEST: usize = 15;

/// Whether `code` begins with a whole instruction, known or not; one that is
/// none counts as whole.
pub fn is_whole(code: &[u8]) -> bool {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::AMD);
    let _ = decoder.decode();
    decoder.last_error() != DecoderError::NoMoreBytes
}

/// Why an instruction is not done yet.
pub(crate) enum Not {
    Known,
    Accessible(crate::Inaccessible),
}

impl From<crate::Inaccessible> for Not {
    fn from(inaccessible: crate::Inaccessible) -> Self {
        Self::Accessible(inaccessible)
    }
}

/// Executes the instruction that `code` begins with: the bytes at rip, up to
/// [`LONGEST`], fewer where memory ends.
///
/// # Errors
/// [`Stopped`].
pub fn execute(
    code: &[u8],
    registers: &mut Registers,
    vectors: &mut dyn Vectors,
    memory: &mut dyn Memory,
) -> Result<Done, Stopped> {
    // Makers differ in what an operand size does to a jump: then it is unknown.
    let mut decoder = Decoder::with_ip(64, code, registers.rip, DecoderOptions::AMD);
    let instruction = decoder.decode();
    let mut cpu = Cpu {
        instruction: &instruction,
        registers: *registers,
        vectors,
        memory,
    };
    cpu.registers.rip = instruction.next_ip();
    let done = match cpu.run() {
        // A repeated one keeps what it has done so far.
        Err(Not::Accessible(inaccessible)) if is_repeated(&instruction) => {
            cpu.registers.rip = registers.rip;
            // It begins anew, as far as flags are concerned.
            cpu.registers.flags = registers.flags;
            Err(inaccessible.into())
        }
        Err(Not::Accessible(inaccessible)) => return Err(inaccessible.into()),
        Err(Not::Known) => return Err(Stopped::Unknown(unknown(&instruction))),
        Ok(Done::Partly) => {
            cpu.registers.rip = registers.rip;
            Ok(Done::Partly)
        }
        Ok(Done::Completed) => Ok(Done::Completed),
    };
    *registers = cpu.registers;
    done
}

/// Whether a string instruction is repeated.
pub(crate) fn is_repeated(instruction: &Instruction) -> bool {
    instruction.has_rep_prefix() || instruction.has_repne_prefix()
}

fn unknown(instruction: &Instruction) -> Unknown {
    if instruction.is_invalid() {
        return Unknown {
            mnemonic: "invalid".to_owned(),
            text: "(no instruction)".to_owned(),
        };
    }
    let mut text = String::new();
    FastFormatter::new().format(instruction, &mut text);
    Unknown {
        mnemonic: format!("{:?}", instruction.mnemonic()).to_lowercase(),
        text,
    }
}

/// One instruction on its way.
pub(crate) struct Cpu<'a> {
    pub(crate) instruction: &'a Instruction,
    /// As they will be when it is done; rip is that of the next.
    pub(crate) registers: Registers,
    vectors: &'a mut dyn Vectors,
    memory: &'a mut dyn Memory,
}

impl Cpu<'_> {
    fn run(&mut self) -> Result<Done, Not> {
        let instruction = self.instruction;
        if instruction.is_invalid() || instruction.is_broadcast() {
            return Err(Not::Known);
        }
        if self.masked()? {
            return Ok(Done::Completed);
        }
        if instruction.has_op_mask() {
            return Err(Not::Known);
        }
        if let Some(done) = self.string()? {
            return Ok(done);
        }
        if self.integer()? || self.vector()? {
            return Ok(Done::Completed);
        }
        Err(Not::Known)
    }

    pub(crate) fn is_memory(&self, operand: u32) -> bool {
        operand < self.instruction.op_count() && self.instruction.op_kind(operand) == OpKind::Memory
    }

    pub(crate) fn is_register(&self, operand: u32) -> bool {
        operand < self.instruction.op_count()
            && self.instruction.op_kind(operand) == OpKind::Register
    }

    /// Where an operand in memory lies.
    pub(crate) fn address(&self, operand: u32) -> Result<u64, Not> {
        let registers = &self.registers;
        let value = |register: Register, _, _| match register {
            Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
            Register::FS => Some(registers.fs),
            Register::GS => Some(registers.gs),
            register => registers.get(register),
        };
        self.instruction
            .virtual_address(operand, 0, value)
            .ok_or(Not::Known)
    }

    /// Reads `width` bytes at an address.
    pub(crate) fn load(&mut self, address: u64, width: Width) -> Result<u64, Not> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..width.0).ok_or(Not::Known)?;
        self.memory.read(address, part)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(crate) fn store(&mut self, address: u64, width: Width, value: u64) -> Result<(), Not> {
        let bytes = value.to_le_bytes();
        Ok(self
            .memory
            .write(address, bytes.get(..width.0).ok_or(Not::Known)?)?)
    }

    pub(crate) fn load_bytes(&mut self, address: u64, into: &mut [u8]) -> Result<(), Not> {
        Ok(self.memory.read(address, into)?)
    }

    pub(crate) fn store_bytes(&mut self, address: u64, from: &[u8]) -> Result<(), Not> {
        Ok(self.memory.write(address, from)?)
    }

    /// The width of an integer operand.
    pub(crate) fn width(&self, operand: u32) -> Result<Width, Not> {
        let size = if self.is_register(operand) {
            self.instruction.op_register(operand).size()
        } else {
            self.instruction.memory_size().size()
        };
        match size {
            1 | 2 | 4 | 8 => Ok(Width(size)),
            _ => Err(Not::Known),
        }
    }

    /// The value of an integer operand; an immediate has its sign in all 64
    /// bits.
    pub(crate) fn operand(&mut self, operand: u32) -> Result<u64, Not> {
        match self.instruction.op_kind(operand) {
            OpKind::Register => self.register(self.instruction.op_register(operand)),
            OpKind::Memory => {
                let (address, width) = (self.address(operand)?, self.width(operand)?);
                self.load(address, width)
            }
            _ => self
                .instruction
                .try_immediate(operand)
                .map_err(|_| Not::Known),
        }
    }

    pub(crate) fn set_operand(&mut self, operand: u32, value: u64) -> Result<(), Not> {
        if self.is_register(operand) {
            return self.set_register(self.instruction.op_register(operand), value);
        }
        let (address, width) = (self.address(operand)?, self.width(operand)?);
        self.store(address, width, value)
    }

    pub(crate) fn register(&self, register: Register) -> Result<u64, Not> {
        self.registers.get(register).ok_or(Not::Known)
    }

    pub(crate) fn set_register(&mut self, register: Register, value: u64) -> Result<(), Not> {
        self.registers.set(register, value).ok_or(Not::Known)
    }

    pub(crate) fn vector_register(&mut self, register: Register) -> Result<Vector, Not> {
        let index = vector_index(register)?;
        self.vectors.get(index).ok_or(Not::Known)
    }

    /// The mask register that says which elements an instruction is for.
    pub(crate) fn op_mask(&mut self) -> Result<u64, Not> {
        let index = self.instruction.op_mask().number();
        self.vectors.mask(index).ok_or(Not::Known)
    }

    pub(crate) fn set_vector_register(
        &mut self,
        register: Register,
        value: Vector,
    ) -> Result<(), Not> {
        let index = vector_index(register)?;
        self.vectors.set(index, value).ok_or(Not::Known)
    }
}

fn vector_index(register: Register) -> Result<usize, Not> {
    match register.is_xmm() || register.is_ymm() || register.is_zmm() {
        true => Ok(register.number()),
        false => Err(Not::Known),
    }
}

/// ah, ch, dh, bh.
fn is_high(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

impl Registers {
    /// The value of a general register of any width.
    pub(crate) fn get(&self, register: Register) -> Option<u64> {
        if register == Register::RIP {
            return Some(self.rip);
        }
        if !register.is_gpr() {
            return None;
        }
        let value = *self.general.get(register.full_register().number())?;
        if is_high(register) {
            return Some(value >> 8 & 0xff);
        }
        Some(value & Width(register.size()).mask())
    }

    /// Sets a general register of any width: 32 bits clear those above.
    pub(crate) fn set(&mut self, register: Register, value: u64) -> Option<()> {
        if !register.is_gpr() {
            return None;
        }
        let full = self.general.get_mut(register.full_register().number())?;
        *full = match register.size() {
            1 if is_high(register) => *full & !0xff00 | (value & 0xff) << 8,
            1 => *full & !0xff | value & 0xff,
            2 => *full & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
        Some(())
    }
}
