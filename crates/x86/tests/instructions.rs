//! What the comparison with the processor does not reach: repetition in
//! pieces, memory that says no, instructions that few processors have.

#![allow(missing_docs)]

use std::collections::BTreeMap;

use iogate_x86::{
    Done, Inaccessible, Layout, Memory, NoVectors, Registers, Stopped, Vectors, Xsave, execute,
    is_whole,
};

/// Sparse bytes; those never written read as zero, and from `end` on there are
/// none.
struct Bytes {
    bytes: BTreeMap<u64, u8>,
    end: u64,
}

impl Bytes {
    fn until(end: u64) -> Self {
        Self {
            bytes: BTreeMap::new(),
            end,
        }
    }
}

impl Memory for Bytes {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Inaccessible> {
        for (at, byte) in (address..).zip(into) {
            if at >= self.end {
                return Err(Inaccessible(at));
            }
            *byte = self.bytes.get(&at).copied().unwrap_or_default();
        }
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Inaccessible> {
        for (at, byte) in (address..).zip(from) {
            if at >= self.end {
                return Err(Inaccessible(at));
            }
            self.bytes.insert(at, *byte);
        }
        Ok(())
    }
}

fn run(code: &[u8], registers: &mut Registers, memory: &mut Bytes) -> Result<Done, Stopped> {
    execute(code, registers, &mut NoVectors, memory)
}

/// rep stosb
const FILL: [u8; 2] = [0xf3, 0xaa];

#[test]
fn a_long_repetition_is_done_in_pieces() {
    let mut memory = Bytes::until(u64::MAX);
    let mut registers = Registers::default();
    registers.general[0] = 0x5a;
    registers.general[1] = 10_000;
    registers.general[7] = 0x1000;
    let mut pieces = 1;
    while run(&FILL, &mut registers, &mut memory) == Ok(Done::Partly) {
        assert_eq!(registers.rip, 0);
        pieces += 1;
    }
    assert_eq!((registers.rip, registers.general[1]), (2, 0));
    assert_eq!(registers.general[7], 0x1000 + 10_000);
    assert_eq!((memory.bytes.len(), pieces), (10_000, 3));
}

#[test]
fn a_repetition_that_meets_the_end_of_memory_keeps_what_it_has_done() {
    let mut memory = Bytes::until(0x1005);
    let mut registers = Registers::default();
    registers.general[1] = 8;
    registers.general[7] = 0x1000;
    let stopped = run(&FILL, &mut registers, &mut memory);
    assert_eq!(stopped, Err(Stopped::Inaccessible(Inaccessible(0x1005))));
    assert_eq!(
        (registers.rip, registers.general[1], registers.general[7]),
        (0, 3, 0x1005)
    );
}

#[test]
fn a_comparison_that_meets_the_end_of_memory_keeps_its_place_and_the_old_flags() {
    let mut memory = Bytes::until(0x1005);
    let mut registers = Registers {
        flags: 1,
        ..Registers::default()
    };
    registers.general[1] = 8;
    registers.general[6] = 0x800;
    registers.general[7] = 0x1000;
    // repe cmpsb, of zeros
    let stopped = run(&[0xf3, 0xa6], &mut registers, &mut memory);
    assert_eq!(stopped, Err(Stopped::Inaccessible(Inaccessible(0x1005))));
    assert_eq!((registers.general[1], registers.general[6]), (3, 0x805));
    assert_eq!((registers.rip, registers.flags), (0, 1));
}

/// Registers that are all the same, with k1 naming the first two elements.
struct Masks;

impl Vectors for Masks {
    fn get(&mut self, _: usize) -> Option<iogate_x86::Vector> {
        Some([7; 64])
    }
    fn set(&mut self, _: usize, _: iogate_x86::Vector) -> Option<()> {
        Some(())
    }
    fn mask(&mut self, _: usize) -> Option<u64> {
        Some(3)
    }
}

#[test]
fn elements_that_a_mask_does_not_name_are_not_accessed() {
    let mut memory = Bytes::until(0x1010);
    let mut registers = Registers::default();
    registers.general[0] = 0x1000;
    // vmovdqu64 [rax]{k1}, zmm0
    let code = [0x62, 0xf1, 0xfe, 0x49, 0x7f, 0x00];
    let done = execute(&code, &mut registers, &mut Masks, &mut memory);
    assert_eq!((done, memory.bytes.len()), (Ok(Done::Completed), 16));
    // vmovdqu64 zmm0{k1}, [rax]
    let code = [0x62, 0xf1, 0xfe, 0x49, 0x6f, 0x00];
    let done = execute(&code, &mut registers, &mut Masks, &mut memory);
    assert_eq!(done, Ok(Done::Completed));
    // Without a mask it is too long for this memory.
    let code = [0x62, 0xf1, 0xfe, 0x48, 0x6f, 0x00];
    let stopped = execute(&code, &mut registers, &mut Masks, &mut memory);
    assert!(matches!(stopped, Err(Stopped::Inaccessible(_))));
}

#[test]
fn memory_that_says_no_leaves_registers_alone() {
    let mut registers = Registers::default();
    registers.general[4] = 0x2000;
    registers.general[3] = 0x1000;
    let before = registers;
    // pop [rbx]
    let stopped = run(&[0x8f, 0x03], &mut registers, &mut Bytes::until(0x1000));
    assert_eq!(stopped, Err(Stopped::Inaccessible(Inaccessible(0x2000))));
    assert_eq!(registers, before);
}

#[test]
fn sixty_four_bytes_move_at_once() {
    let mut memory = Bytes::until(u64::MAX);
    for at in 0..64 {
        memory.bytes.insert(0x1000 + u64::from(at), at);
    }
    let mut registers = Registers::default();
    registers.general[3] = 0x1000;
    registers.general[2] = 0x4000;
    // movdir64b rdx, [rbx]
    let code = [0x66, 0x0f, 0x38, 0xf8, 0x13];
    assert_eq!(run(&code, &mut registers, &mut memory), Ok(Done::Completed));
    assert_eq!(memory.bytes.get(&0x403f), Some(&63));
    // movdiri [rbx], rax
    registers.general[0] = 0x1122_3344_5566_7788;
    registers.rip = 0;
    let code = [0x48, 0x0f, 0x38, 0xf9, 0x03];
    assert_eq!(run(&code, &mut registers, &mut memory), Ok(Done::Completed));
    assert_eq!(memory.bytes.get(&0x1000), Some(&0x88));
}

#[test]
fn what_is_not_known_is_named() {
    let mut registers = Registers::default();
    // fild dword ptr [rax]
    let stopped = run(&[0xdb, 0x00], &mut registers, &mut Bytes::until(0));
    let Err(Stopped::Unknown(unknown)) = stopped else {
        panic!("{stopped:?}");
    };
    assert_eq!(unknown.mnemonic, "fild");
    assert!(unknown.text.contains("[rax]"), "{}", unknown.text);
    for code in [&[][..], &[0x0f], &[0x06]] {
        let stopped = run(code, &mut registers, &mut Bytes::until(0));
        assert!(matches!(stopped, Err(Stopped::Unknown(unknown)) if unknown.mnemonic == "invalid"));
    }
}

#[test]
fn an_instruction_that_is_cut_off_is_told_apart() {
    // mov dword ptr [rbx+0x12345678], 0x9abcdef0
    let code = [
        0xc7, 0x83, 0x78, 0x56, 0x34, 0x12, 0xf0, 0xde, 0xbc, 0x9a, 0x90,
    ];
    for length in 0..10 {
        assert!(!is_whole(&code[..length]), "{length}");
    }
    assert!(is_whole(&code[..10]) && is_whole(&code));
    assert!(is_whole(&[0x06; 8]), "no instruction");
}

#[test]
fn any_bytes_end_in_some_answer() {
    let mut state = 1_u64;
    let mut memory = Bytes::until(u64::MAX - 64);
    for _ in 0..200_000 {
        let mut code = [0; 15];
        for byte in &mut code {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = state.to_be_bytes()[0];
        }
        let mut registers = Registers {
            general: [state; 16],
            ..Registers::default()
        };
        let _ = run(&code, &mut registers, &mut memory);
        memory.bytes.clear();
    }
}

#[test]
fn a_vector_register_is_the_same_in_the_area() {
    let layout = Layout::of_processor();
    let mut area = vec![0; 8192];
    let mut xsave = Xsave {
        layout,
        area: &mut area,
    };
    let mut value = [0; 64];
    value[..16].copy_from_slice(b"sixteen letters!");
    assert_eq!(xsave.get(3), Some([0; 64]));
    xsave.set(3, value).unwrap();
    assert_eq!(xsave.get(3), Some(value));
    assert_eq!(xsave.get(2), Some([0; 64]));
    assert_eq!(&area[160 + 48..160 + 64], b"sixteen letters!");
    assert_eq!(area[512], 2, "only SSE is in use");
}

#[test]
fn an_area_that_is_too_short_has_no_registers() {
    let mut area = vec![0; 100];
    let mut xsave = Xsave {
        layout: Layout::of_processor(),
        area: &mut area,
    };
    assert_eq!((xsave.get(0), xsave.set(0, [1; 64])), (None, None));
}
