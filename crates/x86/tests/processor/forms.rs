//! Random instances of an instruction form with an operand in memory.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind,
    Register,
};

use crate::native::Features;

/// The numbers of an input, and xorshift64* when there are no more.
pub(crate) struct Random(u64, Vec<u8>);

impl Random {
    pub(crate) fn of_seed(seed: u64) -> Self {
        Self(seed | 1 << 40, Vec::new())
    }

    pub(crate) fn of_input(bytes: &[u8]) -> Self {
        let mut bytes = bytes.to_vec();
        bytes.reverse();
        Self(1 << 40 | 1, bytes)
    }

    pub(crate) fn next(&mut self) -> u64 {
        if let Some(rest) = self.1.len().checked_sub(8) {
            let word = self.1.split_off(rest);
            return u64::from_le_bytes(word.try_into().unwrap());
        }
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 32) % limit
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    fn register(&mut self, first: Register, count: u64) -> Register {
        first + u32::try_from(self.below(count)).unwrap()
    }
}

/// An instruction and the registers to execute it with.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) instruction: Instruction,
    pub(crate) general: [u64; 16],
    /// Where the operand lies.
    address: u64,
    /// Where the address of a jump has to stand.
    pub(crate) target: Option<u64>,
}

/// Whether a form can have an operand in memory, in 64-bit mode.
pub(crate) fn has_memory(code: Code) -> bool {
    let form = code.op_code();
    form.is_instruction()
        && form.mode64()
        && !matches!(form.encoding(), EncodingKind::MVEX | EncodingKind::D3NOW)
        && form.op_kinds().iter().any(|kind| is_memory(*kind))
}

fn is_memory(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::mem
            | Kind::mem_offs
            | Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem
            | Kind::zmm_or_mem
            | Kind::seg_rSI
            | Kind::es_rDI
    )
}

/// What a form needs that the processor lacks.
pub(crate) fn lacks(code: Code, features: Features) -> Option<String> {
    let lacking = code
        .cpuid_features()
        .iter()
        .find(|feature| !match **feature {
            CpuidFeature::AVX => features.avx,
            CpuidFeature::AVX2 => std::is_x86_feature_detected!("avx2"),
            CpuidFeature::AVX512F => features.avx512,
            CpuidFeature::AVX512VL => std::is_x86_feature_detected!("avx512vl"),
            CpuidFeature::AVX512BW => std::is_x86_feature_detected!("avx512bw"),
            CpuidFeature::AVX512DQ => std::is_x86_feature_detected!("avx512dq"),
            CpuidFeature::BMI1 => std::is_x86_feature_detected!("bmi1"),
            CpuidFeature::BMI2 => std::is_x86_feature_detected!("bmi2"),
            CpuidFeature::LZCNT => std::is_x86_feature_detected!("lzcnt"),
            CpuidFeature::POPCNT => std::is_x86_feature_detected!("popcnt"),
            CpuidFeature::MOVBE => std::is_x86_feature_detected!("movbe"),
            CpuidFeature::SSE3 => std::is_x86_feature_detected!("sse3"),
            CpuidFeature::SSE4_1 => std::is_x86_feature_detected!("sse4.1"),
            CpuidFeature::CMPXCHG16B => std::is_x86_feature_detected!("cmpxchg16b"),
            CpuidFeature::INTEL8086
            | CpuidFeature::INTEL186
            | CpuidFeature::INTEL286
            | CpuidFeature::INTEL386
            | CpuidFeature::INTEL486
            | CpuidFeature::X64
            | CpuidFeature::CX8
            | CpuidFeature::CMOV
            | CpuidFeature::SSE
            | CpuidFeature::SSE2 => true,
            _ => false,
        });
    lacking.map(|feature| format!("{feature:?}"))
}

/// An instance; `None` if these operands make none.
pub(crate) fn instance(code: Code, arena: u64, random: &mut Random) -> Option<Case> {
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    let form = code.op_code();
    let mnemonic = code.mnemonic();
    let mut general = [0; 16];
    for value in &mut general {
        *value = random.next();
    }
    let aligned = if is_aligned(mnemonic) { 63 } else { 0 };
    let address = arena + ((1024 + random.below(2048)) & !aligned);
    general[4] = arena + 1024 + 8 * random.below(256);
    let mut used = Vec::new();
    for (operand, kind) in (0..).zip(form.op_kinds()) {
        match kind {
            Kind::seg_rSI => {
                instruction.set_op_kind(operand, OpKind::MemorySegRSI);
                general[6] = arena + 1024 + random.below(2048);
            }
            Kind::es_rDI => {
                instruction.set_op_kind(operand, OpKind::MemoryESRDI);
                general[7] = arena + 1024 + random.below(2048);
            }
            Kind::mem_offs => {
                instruction.set_op_kind(operand, OpKind::Memory);
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(address);
            }
            kind if is_memory(*kind) => {
                instruction.set_op_kind(operand, OpKind::Memory);
                used = place(&mut instruction, &mut general, address, random);
            }
            _ => {}
        }
    }
    for (operand, kind) in (0..).zip(form.op_kinds()) {
        if is_memory(*kind) {
            continue;
        }
        other(&mut instruction, operand, *kind, random)?;
    }
    prefixes(&mut instruction, &mut general, random);
    if matches!(
        mnemonic,
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && instruction.op1_kind() == OpKind::Register
    {
        let register = instruction.op1_register().full_register();
        if used.contains(&register) {
            return None;
        }
        let index = random.below(2000).cast_signed() - 1000;
        general[register.number()] = index.cast_unsigned();
    }
    let jumps = matches!(mnemonic, Mnemonic::Call | Mnemonic::Jmp);
    // A jump would find its target changed by the push before it.
    Some(Case {
        target: jumps.then_some(address),
        instruction,
        general,
        address,
    })
}

/// Chooses base, index, scale and displacement, and the registers' values.
fn place(
    instruction: &mut Instruction,
    general: &mut [u64; 16],
    address: u64,
    random: &mut Random,
) -> Vec<Register> {
    instruction.set_memory_displ_size(1);
    if random.below(10) == 0 {
        instruction.set_memory_base(Register::RIP);
        instruction.set_memory_displ_size(8);
        instruction.set_memory_displacement64(address);
        return Vec::new();
    }
    let base = random.register(Register::RAX, 16);
    instruction.set_memory_base(base);
    let displacement = match random.below(3) {
        0 => 0,
        1 => random.below(256).cast_signed() - 128,
        _ => random.below(1000).cast_signed() - 500,
    };
    instruction.set_memory_displ_size(8);
    instruction.set_memory_displacement64(displacement.cast_unsigned());
    let mut rest = address.wrapping_sub(displacement.cast_unsigned());
    let mut used = vec![base];
    let index = random.register(Register::RAX, 16);
    if random.below(2) == 0 && index != base && index != Register::RSP && base != Register::RSP {
        let scale = random.below(4);
        instruction.set_memory_index(index);
        instruction.set_memory_index_scale(1 << scale);
        rest = rest.wrapping_sub(general[index.number()] << scale);
        used.push(index);
    }
    general[base.number()] = rest;
    used
}

/// An operand that is not in memory; `None` for those that nothing known has.
fn other(
    instruction: &mut Instruction,
    operand: u32,
    kind: Kind,
    random: &mut Random,
) -> Option<()> {
    let register = match kind {
        Kind::r8_reg => random.register(Register::AL, 20),
        Kind::r16_reg => random.register(Register::AX, 16),
        Kind::r32_reg | Kind::r32_vvvv => random.register(Register::EAX, 16),
        Kind::r64_reg | Kind::r64_vvvv => random.register(Register::RAX, 16),
        Kind::xmm_reg | Kind::xmm_vvvv => random.register(Register::XMM0, 32),
        Kind::ymm_reg | Kind::ymm_vvvv => random.register(Register::YMM0, 32),
        Kind::zmm_reg | Kind::zmm_vvvv => random.register(Register::ZMM0, 32),
        Kind::al => Register::AL,
        Kind::cl => Register::CL,
        Kind::ax => Register::AX,
        Kind::eax => Register::EAX,
        Kind::rax => Register::RAX,
        _ => {
            let value = random.next();
            let [byte, other, ..] = value.to_le_bytes();
            let (kind, value) = match kind {
                Kind::imm8 => (OpKind::Immediate8, u64::from(byte)),
                Kind::imm8_const_1 => (OpKind::Immediate8, 1),
                Kind::imm8sex16 => (OpKind::Immediate8to16, extend(byte)),
                Kind::imm8sex32 => (OpKind::Immediate8to32, extend(byte)),
                Kind::imm8sex64 => (OpKind::Immediate8to64, extend(byte)),
                Kind::imm16 => {
                    let value = u16::from_le_bytes([byte, other]);
                    (OpKind::Immediate16, u64::from(value))
                }
                Kind::imm32 => (OpKind::Immediate32, value >> 32),
                Kind::imm32sex64 => (
                    OpKind::Immediate32to64,
                    (value.cast_signed() >> 32).cast_unsigned(),
                ),
                _ => return None,
            };
            instruction.set_op_kind(operand, kind);
            instruction.set_immediate_u64(operand, value);
            return Some(());
        }
    };
    instruction.set_op_kind(operand, OpKind::Register);
    instruction.set_op_register(operand, register);
    Some(())
}

fn extend(byte: u8) -> u64 {
    i64::from(byte.cast_signed()).cast_unsigned()
}

fn prefixes(instruction: &mut Instruction, general: &mut [u64; 16], random: &mut Random) {
    let form = instruction.op_code();
    let is_string = form
        .op_kinds()
        .iter()
        .any(|kind| matches!(kind, Kind::seg_rSI | Kind::es_rDI));
    if is_string && random.below(2) == 0 {
        match is_comparison(instruction.mnemonic()) && random.below(2) == 0 {
            true => instruction.set_has_repne_prefix(true),
            false => instruction.set_has_rep_prefix(true),
        }
        general[1] = random.below(24);
    }
    let name = format!("{:?}", instruction.mnemonic());
    let maskable = form.can_use_op_mask_register() && !name.contains("broadcast");
    if maskable && random.below(2) == 0 {
        let mask = Register::K1 + u32::try_from(random.below(7)).unwrap();
        instruction.set_op_mask(mask);
        if form.can_use_zeroing_masking() && instruction.op0_kind() == OpKind::Register {
            instruction.set_zeroing_masking(random.below(2) == 0);
        }
    }
    if form.can_use_lock_prefix() && random.below(3) == 0 {
        instruction.set_has_lock_prefix(true);
    }
}

/// String instructions that compare.
fn is_comparison(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq
    )
}

/// Operands that must be aligned.
fn is_aligned(mnemonic: Mnemonic) -> bool {
    let name = format!("{mnemonic:?}");
    let name = name.strip_prefix('V').unwrap_or(&name).to_lowercase();
    name.starts_with("mova")
        || name.starts_with("movdqa")
        || name.starts_with("movnt")
        || mnemonic == Mnemonic::Cmpxchg16b
}

/// Makes values equal where instructions compare them.
pub(crate) fn make_equal(case: &Case, random: &mut Random, mut write: impl FnMut(u64, &[u8])) {
    match case.instruction.mnemonic() {
        Mnemonic::Cmpxchg => write(case.address, &case.general[0].to_le_bytes()),
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => {
            let half = if case.instruction.mnemonic() == Mnemonic::Cmpxchg8b {
                4
            } else {
                8
            };
            write(case.address, &case.general[0].to_le_bytes()[..half]);
            write(
                case.address + u64::try_from(half).unwrap(),
                &case.general[2].to_le_bytes()[..half],
            );
        }
        name if is_comparison(name) => {
            let size = case.instruction.memory_size().size();
            let element = case.general[0].to_le_bytes();
            let same = element[..size].repeat(8);
            // Either way from where it begins.
            for at in [case.general[6], case.general[7]] {
                write(at - u64::try_from(4 * size).unwrap(), &same);
            }
        }
        Mnemonic::Bsf
        | Mnemonic::Bsr
        | Mnemonic::Tzcnt
        | Mnemonic::Lzcnt
        | Mnemonic::Popcnt
        | Mnemonic::Neg
        | Mnemonic::Or => {
            let mut bytes = [0; 8];
            bytes[usize::try_from(random.below(8)).unwrap()] = random.next().to_le_bytes()[3] & 1;
            write(case.address, &bytes);
        }
        _ => {}
    }
}

/// Of `all` flags those that the manuals define after an instruction.
pub(crate) fn defined_flags(case: &Case, all: u64) -> u64 {
    const CF: u64 = 1;
    const PF: u64 = 4;
    const AF: u64 = 0x10;
    const ZF: u64 = 0x40;
    const SF: u64 = 0x80;
    const OF: u64 = 0x800;
    let instruction = &case.instruction;
    use Mnemonic as M;
    let undefined = match instruction.mnemonic() {
        M::And | M::Or | M::Xor | M::Test => AF,
        M::Andn => AF | PF,
        M::Bt | M::Bts | M::Btr | M::Btc => OF | SF | AF | PF,
        M::Bsf | M::Bsr => CF | OF | SF | AF | PF,
        M::Tzcnt | M::Lzcnt => OF | SF | PF | AF,
        M::Imul => SF | ZF | AF | PF,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => {
            let bytes = instruction.memory_size().size();
            let count = match instruction.op1_kind() {
                OpKind::Register => case.general[1] & 0xff,
                _ => instruction.immediate(1),
            } & if bytes == 8 { 0x3f } else { 0x1f };
            let bits = 8 * u64::try_from(bytes).unwrap();
            let is_shift = matches!(instruction.mnemonic(), M::Shl | M::Sal | M::Shr);
            let overflow = if count > 1 { OF } else { 0 };
            let carry = if is_shift && count >= bits { CF } else { 0 };
            let adjust = match instruction.mnemonic() {
                M::Shl | M::Sal | M::Shr | M::Sar if count > 0 => AF,
                _ => 0,
            };
            overflow | carry | adjust
        }
        _ => 0,
    };
    all & !undefined
}
