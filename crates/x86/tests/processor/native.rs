//! A page of code that executes one instruction with given registers.

use std::sync::atomic::{Ordering, compiler_fence};

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};
use iogate_x86::Vector;

/// Bytes of the memory that instructions work on.
pub(crate) const ARENA: usize = 4096;

const CODE: usize = 0;
/// Where the instruction stands, and where the code goes on behind it.
const INSTRUCTION: usize = 2048;
const TAIL: usize = 2176;
const STATE: usize = 8192;
const ARENA_AT: usize = 16384;
const ALL: usize = 20480;

#[repr(C)]
struct State {
    general: [u64; 16],
    flags: u64,
    stack: u64,
    general_after: [u64; 16],
    flags_after: u64,
    vectors: [Vector; 32],
    masks: [u64; 8],
}

/// What of vectors the processor has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Features {
    pub(crate) avx: bool,
    pub(crate) avx512: bool,
}

pub(crate) struct Machine {
    base: *mut u8,
    features: Features,
}

fn general(index: usize) -> Register {
    Register::RAX + u32::try_from(index).unwrap()
}

impl Machine {
    pub(crate) fn new() -> Self {
        // SAFETY: a new mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                ALL,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        let mut machine = Self {
            base: base.cast(),
            features: Features {
                avx: std::is_x86_feature_detected!("avx"),
                avx512: std::is_x86_feature_detected!("avx512bw"),
            },
        };
        machine.assemble();
        machine
    }

    pub(crate) fn features(&self) -> Features {
        self.features
    }

    fn at(&self, offset: usize) -> u64 {
        u64::try_from(self.base.addr() + offset).unwrap()
    }

    pub(crate) fn arena(&self) -> u64 {
        self.at(ARENA_AT)
    }

    pub(crate) fn instruction(&self) -> u64 {
        self.at(INSTRUCTION)
    }

    /// Where a jump may go.
    pub(crate) fn target(&self) -> u64 {
        self.at(TAIL)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= ALL);
        // SAFETY: the bytes lie in the mapping, of which there is no reference.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(at), bytes.len()) };
    }

    fn state(&mut self) -> &mut State {
        // SAFETY: the state lies in the mapping, aligned; any bytes are one.
        unsafe { &mut *self.base.add(STATE).cast::<State>() }
    }

    fn assemble(&mut self) {
        let state = self.at(STATE);
        let slot = |offset: usize| {
            let address = state + u64::try_from(offset).unwrap();
            MemoryOperand::with_base_displ(Register::RIP, address.cast_signed())
        };
        let saved = [
            Register::RBX,
            Register::RBP,
            Register::R12,
            Register::R13,
            Register::R14,
            Register::R15,
        ];
        let mut head = Vec::new();
        let mut tail = Vec::new();
        for register in saved {
            head.push(Instruction::with1(Code::Push_r64, register));
        }
        let stack = slot(std::mem::offset_of!(State, stack));
        head.push(Instruction::with2(Code::Mov_rm64_r64, stack, Register::RSP));
        let (load, store, first, count) = if self.features.avx512 {
            (
                Code::EVEX_Vmovdqu64_zmm_k1z_zmmm512,
                Code::EVEX_Vmovdqu64_zmmm512_k1z_zmm,
                Register::ZMM0,
                32,
            )
        } else if self.features.avx {
            (
                Code::VEX_Vmovdqu_ymm_ymmm256,
                Code::VEX_Vmovdqu_ymmm256_ymm,
                Register::YMM0,
                16,
            )
        } else {
            (
                Code::Movdqu_xmm_xmmm128,
                Code::Movdqu_xmmm128_xmm,
                Register::XMM0,
                16,
            )
        };
        let vector = |index: u32| {
            slot(std::mem::offset_of!(State, vectors) + 64 * usize::try_from(index).unwrap())
        };
        for index in 0..count {
            head.push(Instruction::with2(load, first + index, vector(index)));
        }
        if self.features.avx512 {
            for index in 0..8 {
                let from =
                    slot(std::mem::offset_of!(State, masks) + 8 * usize::try_from(index).unwrap());
                let register = Register::K0 + index;
                head.push(Instruction::with2(Code::VEX_Kmovq_kr_km64, register, from));
            }
        }
        let flags = slot(std::mem::offset_of!(State, flags));
        head.push(Instruction::with1(Code::Push_rm64, flags));
        head.push(Ok(Instruction::with(Code::Popfq)));
        // The stack last: nothing is pushed from there on.
        for index in (0..16).filter(|index| *index != 4).chain([4]) {
            let from = slot(8 * index);
            head.push(Instruction::with2(Code::Mov_r64_rm64, general(index), from));
        }
        head.push(Instruction::with_branch(
            Code::Jmp_rel32_64,
            self.at(INSTRUCTION),
        ));

        let after = std::mem::offset_of!(State, general_after);
        for index in 0..16 {
            let into = slot(after + 8 * index);
            tail.push(Instruction::with2(Code::Mov_rm64_r64, into, general(index)));
        }
        tail.push(Instruction::with2(Code::Mov_r64_rm64, Register::RSP, stack));
        tail.push(Ok(Instruction::with(Code::Pushfq)));
        let flags = slot(std::mem::offset_of!(State, flags_after));
        tail.push(Instruction::with1(Code::Pop_rm64, flags));
        tail.push(Ok(Instruction::with(Code::Cld)));
        for index in 0..count {
            tail.push(Instruction::with2(store, vector(index), first + index));
        }
        if self.features.avx {
            tail.push(Ok(Instruction::with(Code::VEX_Vzeroupper)));
        }
        for register in saved.into_iter().rev() {
            tail.push(Instruction::with1(Code::Pop_r64, register));
        }
        tail.push(Ok(Instruction::with(Code::Retnq)));
        for (at, instructions) in [(CODE, head), (TAIL, tail)] {
            let mut encoder = Encoder::new(64);
            let mut ip = self.at(at);
            for instruction in instructions {
                let length = encoder.encode(&instruction.unwrap(), ip).unwrap();
                ip += u64::try_from(length).unwrap();
            }
            let bytes = encoder.take_buffer();
            assert!(bytes.len() < INSTRUCTION);
            self.put(at, &bytes);
        }
    }

    pub(crate) fn set(
        &mut self,
        (general, flags): (&[u64; 16], u64),
        (vectors, masks): (&[Vector; 32], &[u64; 8]),
        memory: &[u8; ARENA],
    ) {
        let state = self.state();
        state.general = *general;
        state.flags = flags;
        state.vectors = *vectors;
        state.masks = *masks;
        self.put(ARENA_AT, memory);
    }

    /// Executes the instruction.
    pub(crate) fn run(&mut self, instruction: &[u8]) {
        self.put(INSTRUCTION, instruction);
        let from = INSTRUCTION + instruction.len();
        let distance = i32::try_from(TAIL).unwrap() - i32::try_from(from + 5).unwrap();
        let mut jump = vec![0xe9];
        jump.extend(distance.to_le_bytes());
        self.put(from, &jump);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the code was assembled above as a function of the C calling
        // convention. The instruction works on the arena and on registers that
        // the function saves, and goes on at the tail.
        unsafe {
            let code: extern "C" fn() = std::mem::transmute(self.base.add(CODE));
            code();
        }
        compiler_fence(Ordering::SeqCst);
    }

    pub(crate) fn get(&mut self) -> ([u64; 16], u64, [Vector; 32]) {
        let state = self.state();
        let (general, flags) = (state.general_after, state.flags_after);
        let mut vectors = state.vectors;
        self.narrow(&mut vectors);
        (general, flags, vectors)
    }

    /// Clears what the processor lacks.
    pub(crate) fn narrow(&self, vectors: &mut [Vector; 32]) {
        if self.features.avx512 {
            return;
        }
        let width = if self.features.avx { 32 } else { 16 };
        for (index, vector) in vectors.iter_mut().enumerate() {
            vector[if index < 16 { width } else { 0 }..].fill(0);
        }
    }

    pub(crate) fn memory(&self) -> &[u8; ARENA] {
        // SAFETY: the arena lies in the mapping.
        unsafe { &*self.base.add(ARENA_AT).cast() }
    }
}
