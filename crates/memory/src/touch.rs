//! The only instructions that touch client memory, and what they return when
//! it is not there.
//!
//! Every routine has one instruction that accesses memory, at a known place.
//! The fault handler knows these places: it puts the signal's number in `rdx`
//! and continues at [`failed`]. So a routine returns `rdx` 0 when it is done,
//! and SIGSEGV or SIGBUS when the memory was missing.
//!
//! The compiler sees calls of foreign code with raw pointers. Bytes that
//! another process changes at the same time are no data race of the Rust
//! abstract machine, in which this memory does not exist.

use std::arch::naked_asm;

use iogate_dma::{MemoryError, Width};

/// What a routine returns, in `rax` and `rdx` (System V ABI, two integers).
#[repr(C)]
struct Touched {
    /// Loads and exchanges: what stood there. Copies: elements not copied.
    value: u64,
    /// 0, or the signal that stopped the access.
    signal: u64,
}

macro_rules! routine {
    ($name:ident ( $($argument:ident : $type:ty),* ) $($line:literal),+) => {
        #[unsafe(naked)]
        unsafe extern "sysv64" fn $name($($argument: $type),*) -> Touched {
            naked_asm!($($line,)+ "xor edx, edx", "ret")
        }
    };
}

routine!(load_byte(from: *const u8) "movzx eax, byte ptr [rdi]");
routine!(load_word(from: *const u8) "movzx eax, word ptr [rdi]");
routine!(load_dword(from: *const u8) "mov eax, dword ptr [rdi]");
routine!(load_qword(from: *const u8) "mov rax, qword ptr [rdi]");
routine!(store_byte(to: *mut u8, value: u64) "mov byte ptr [rdi], sil");
routine!(store_word(to: *mut u8, value: u64) "mov word ptr [rdi], si");
routine!(store_dword(to: *mut u8, value: u64) "mov dword ptr [rdi], esi");
routine!(store_qword(to: *mut u8, value: u64) "mov qword ptr [rdi], rsi");
routine!(exchange_byte(at: *mut u8, current: u64, new: u64)
    "mov rax, rsi", "lock cmpxchg byte ptr [rdi], dl");
routine!(exchange_word(at: *mut u8, current: u64, new: u64)
    "mov rax, rsi", "lock cmpxchg word ptr [rdi], dx");
routine!(exchange_dword(at: *mut u8, current: u64, new: u64)
    "mov rax, rsi", "lock cmpxchg dword ptr [rdi], edx");
routine!(exchange_qword(at: *mut u8, current: u64, new: u64)
    "mov rax, rsi", "lock cmpxchg qword ptr [rdi], rdx");
// The third argument only puts the count where the string instructions want
// it: `to` is rdi, `from` rsi, `count` rcx.
routine!(copy_qwords(to: *mut u8, from: *const u8, unused: u64, count: u64)
    "rep movsq", "mov rax, rcx");
routine!(copy_bytes(to: *mut u8, from: *const u8, unused: u64, count: u64)
    "rep movsb", "mov rax, rcx");

/// Where a routine continues after a fault: `rdx` holds the signal, `rcx`, if
/// it was copying, the elements that are left.
#[unsafe(naked)]
unsafe extern "sysv64" fn failed() -> Touched {
    naked_asm!("mov rax, rcx", "ret")
}

/// Bytes of `mov rax, rsi` (REX.W, opcode, ModRM).
const MOV_RAX_RSI: u64 = 3;

/// Where to continue if the instruction at `instruction` is one that touches
/// client memory; `None` if it is not. Async-signal-safe.
#[allow(clippy::arithmetic_side_effects)] // An address inside of a function.
pub(crate) fn continuation(instruction: u64) -> Option<u64> {
    let at_start = [
        load_byte as *const () as u64,
        load_word as *const () as u64,
        load_dword as *const () as u64,
        load_qword as *const () as u64,
        store_byte as *const () as u64,
        store_word as *const () as u64,
        store_dword as *const () as u64,
        store_qword as *const () as u64,
        copy_qwords as *const () as u64,
        copy_bytes as *const () as u64,
    ];
    let after_mov = [
        exchange_byte as *const () as u64 + MOV_RAX_RSI,
        exchange_word as *const () as u64 + MOV_RAX_RSI,
        exchange_dword as *const () as u64 + MOV_RAX_RSI,
        exchange_qword as *const () as u64 + MOV_RAX_RSI,
    ];
    (at_start.contains(&instruction) || after_mov.contains(&instruction))
        .then_some(failed as *const () as u64)
}

/// An access that did not come to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stopped {
    /// Bytes that were accessed before the one that failed.
    pub(crate) done: u64,
    signal: u64,
}

impl Stopped {
    /// The error of an access that began at `address`. SIGBUS means that the
    /// mapping is there and its page is not; SIGSEGV that there is no mapping,
    /// or none that allows the access.
    pub(crate) fn error(self, address: u64) -> MemoryError {
        let address = address.saturating_add(self.done);
        if self.signal == libc::SIGBUS.unsigned_abs().into() {
            MemoryError::Gone { address }
        } else {
            MemoryError::Absent { address }
        }
    }
}

impl Touched {
    fn into_result(self) -> Result<u64, Stopped> {
        match self.signal {
            0 => Ok(self.value),
            signal => Err(Stopped { done: 0, signal }),
        }
    }
}

/// Copies `length` bytes. Not atomic as a whole, and copies aligned quadwords
/// in no particular order.
///
/// # Safety
/// The fault handler is installed. `from` and `to` do not overlap; each is
/// valid for `length` bytes, or lies in address space that is reserved for
/// client memory, where anything or nothing may be mapped.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, length: usize) -> Result<(), Stopped> {
    let qwords = (length >> 3) as u64;
    // SAFETY: the caller's promise; whole quadwords of `length` bytes.
    let left = unsafe { copy_qwords(to, from, 0, qwords) }.value;
    // What is left: the odd bytes, and after a fault everything from the
    // quadword that failed on, so that the byte that fails becomes known.
    let done = (qwords.saturating_sub(left) as usize) << 3;
    let left = length.saturating_sub(done);
    if left == 0 {
        return Ok(());
    }
    // SAFETY: as above; `done + left` is `length`.
    let end = unsafe {
        copy_bytes(
            to.wrapping_add(done),
            from.wrapping_add(done),
            0,
            left as u64,
        )
    };
    match end.signal {
        0 => Ok(()),
        signal => Err(Stopped {
            done: (length as u64).saturating_sub(end.value),
            signal,
        }),
    }
}

/// Loads `width` bytes as one access if `from` is aligned, with acquire order
/// (every x86-64 load has it).
///
/// # Safety
/// As for [`copy`].
pub(crate) unsafe fn load(from: *const u8, width: Width) -> Result<u64, Stopped> {
    // SAFETY: the caller's promise, passed on.
    let touched = unsafe {
        match width {
            Width::Byte => load_byte(from),
            Width::Word => load_word(from),
            Width::Dword => load_dword(from),
            Width::Qword => load_qword(from),
        }
    };
    touched.into_result()
}

/// Stores the low `width` bytes of `value` as one access if `to` is aligned,
/// with release order (every x86-64 store has it).
///
/// # Safety
/// As for [`copy`].
pub(crate) unsafe fn store(to: *mut u8, width: Width, value: u64) -> Result<(), Stopped> {
    // SAFETY: the caller's promise, passed on.
    let touched = unsafe {
        match width {
            Width::Byte => store_byte(to, value),
            Width::Word => store_word(to, value),
            Width::Dword => store_dword(to, value),
            Width::Qword => store_qword(to, value),
        }
    };
    touched.into_result().map(|_| ())
}

/// Replaces the `width` bytes at `at` by `new` if `current` stands there, in
/// one access of sequentially consistent order. Returns what stood there.
///
/// # Safety
/// As for [`copy`].
pub(crate) unsafe fn compare_exchange(
    at: *mut u8,
    width: Width,
    current: u64,
    new: u64,
) -> Result<u64, Stopped> {
    // SAFETY: the caller's promise, passed on.
    let (touched, mask) = unsafe {
        match width {
            Width::Byte => (exchange_byte(at, current, new), 0xff),
            Width::Word => (exchange_word(at, current, new), 0xffff),
            Width::Dword => (exchange_dword(at, current, new), 0xffff_ffff),
            Width::Qword => (exchange_qword(at, current, new), u64::MAX),
        }
    };
    touched.into_result().map(|value| value & mask)
}
