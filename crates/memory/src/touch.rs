//! The only instructions that touch client memory, and what they return when
//! it is not there.
//!
//! The routines access memory at their beginning. The fault handler knows
//! where that is: it puts the signal's number in `rdx` and continues at
//! [`failed`]. So a routine returns `rdx` 0 when it is done, and SIGSEGV or
//! SIGBUS when the memory was missing.
//!
//! The compiler sees calls of foreign code with raw pointers. Bytes that
//! another process changes at the same time are no data race of the Rust
//! abstract machine, in which this memory does not exist.

use std::arch::naked_asm;

use iogate_dma::{MemoryError, Width};

/// What a routine returns, in `rax` and `rdx` (System V ABI, two integers).
#[repr(C)]
struct Touched {
    /// What stood there.
    value: u64,
    /// 0, or the signal that stopped the access.
    signal: u64,
}

/// What a copying routine returns, in the same way.
#[repr(C)]
struct Copied {
    /// Elements not copied.
    left: usize,
    /// 0, or the signal that stopped the copy.
    signal: u64,
}

macro_rules! routine {
    ($name:ident ( $($argument:ident : $type:ty),* ) -> $output:ident: $($line:literal),+) => {
        #[unsafe(naked)]
        unsafe extern "sysv64" fn $name($($argument: $type),*) -> $output {
            naked_asm!($($line,)+ "xor edx, edx", "ret")
        }
    };
}

routine!(load_byte(from: *const u8) -> Touched: "movzx eax, byte ptr [rdi]");
routine!(load_word(from: *const u8) -> Touched: "movzx eax, word ptr [rdi]");
routine!(load_dword(from: *const u8) -> Touched: "mov eax, dword ptr [rdi]");
routine!(load_qword(from: *const u8) -> Touched: "mov rax, qword ptr [rdi]");
routine!(store_byte(to: *mut u8, value: u64) -> Touched: "mov byte ptr [rdi], sil");
routine!(store_word(to: *mut u8, value: u64) -> Touched: "mov word ptr [rdi], si");
routine!(store_dword(to: *mut u8, value: u64) -> Touched: "mov dword ptr [rdi], esi");
routine!(store_qword(to: *mut u8, value: u64) -> Touched: "mov qword ptr [rdi], rsi");
routine!(exchange_byte(at: *mut u8, current: u64, new: u64) -> Touched:
    "mov rax, rsi", "lock cmpxchg byte ptr [rdi], dl");
routine!(exchange_word(at: *mut u8, current: u64, new: u64) -> Touched:
    "mov rax, rsi", "lock cmpxchg word ptr [rdi], dx");
routine!(exchange_dword(at: *mut u8, current: u64, new: u64) -> Touched:
    "mov rax, rsi", "lock cmpxchg dword ptr [rdi], edx");
routine!(exchange_qword(at: *mut u8, current: u64, new: u64) -> Touched:
    "mov rax, rsi", "lock cmpxchg qword ptr [rdi], rdx");
// Copies of `count` ≥ 1 elements. `unused` only puts the count where the
// string instruction wants it: `to` is rdi, `from` rsi, `count` rcx.
routine!(copy_fast(to: *mut u8, from: *const u8, unused: usize, count: usize) -> Copied:
    "rep movsq", "mov rax, rcx");
routine!(copy_qwords(to: *mut u8, from: *const u8, unused: usize, count: usize) -> Copied:
    "2: mov rax, qword ptr [rsi]", "mov qword ptr [rdi], rax",
    "add rsi, 8", "add rdi, 8", "dec rcx", "jnz 2b", "xor eax, eax");
routine!(copy_dwords(to: *mut u8, from: *const u8, unused: usize, count: usize) -> Copied:
    "2: mov eax, dword ptr [rsi]", "mov dword ptr [rdi], eax",
    "add rsi, 4", "add rdi, 4", "dec rcx", "jnz 2b", "xor eax, eax");
routine!(copy_words(to: *mut u8, from: *const u8, unused: usize, count: usize) -> Copied:
    "2: mov ax, word ptr [rsi]", "mov word ptr [rdi], ax",
    "add rsi, 2", "add rdi, 2", "dec rcx", "jnz 2b", "xor eax, eax");
routine!(copy_bytes(to: *mut u8, from: *const u8, unused: usize, count: usize) -> Copied:
    "2: mov al, byte ptr [rsi]", "mov byte ptr [rdi], al",
    "inc rsi", "inc rdi", "dec rcx", "jnz 2b", "xor eax, eax");

/// Where a routine continues after a fault: `rdx` holds the signal, `rcx`, if
/// it was copying, the elements that are left.
#[unsafe(naked)]
unsafe extern "sysv64" fn failed() {
    naked_asm!("mov rax, rcx", "ret")
}

/// Where to continue if the instruction at `instruction` is one that touches
/// client memory; `None` if it is not. Async-signal-safe.
///
/// In every routine the instructions that touch memory begin in the first
/// [`TOUCHING`] bytes, whatever the assembler's choice of encodings, and what
/// else begins there works on registers and cannot fault. No routine is
/// shorter.
pub(crate) fn continuation(instruction: u64) -> Option<u64> {
    const TOUCHING: u64 = 4;
    let routines = [
        load_byte as *const (),
        load_word as *const (),
        load_dword as *const (),
        load_qword as *const (),
        store_byte as *const (),
        store_word as *const (),
        store_dword as *const (),
        store_qword as *const (),
        exchange_byte as *const (),
        exchange_word as *const (),
        exchange_dword as *const (),
        exchange_qword as *const (),
        copy_fast as *const (),
        copy_qwords as *const (),
        copy_dwords as *const (),
        copy_words as *const (),
        copy_bytes as *const (),
    ];
    routines
        .iter()
        .any(|routine| instruction.wrapping_sub(*routine as u64) < TOUCHING)
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
        if self.signal == u64::from(libc::SIGBUS.unsigned_abs()) {
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

/// The longest copy that is done in order.
const SHORT: usize = 64;

/// Copies `length` bytes. Up to [`SHORT`] of them are copied in ascending
/// order by quadwords, and the odd rest by a dword, a word and a byte, each
/// whole where it is aligned: a program that sees the end of a short write
/// sees all of it. More bytes are copied as fast as the machine can, in no
/// order.
///
/// # Safety
/// The fault handler is installed. `to` and `from` do not overlap; each is
/// valid for `length` bytes, or lies in address space that is reserved for
/// client memory, where anything or nothing may be mapped.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, length: usize) -> Result<(), Stopped> {
    let whole = if length > SHORT {
        copy_fast
    } else {
        copy_qwords
    };
    let mut left = length;
    // A routine leaves the bytes that are no whole element to the next one.
    // After a fault they all try again, so that the last names the very byte.
    for (routine, shift) in [
        (whole as Copy, 3),
        (copy_dwords, 2),
        (copy_words, 1),
        (copy_bytes, 0),
    ] {
        let count = left >> shift;
        if count == 0 {
            continue;
        }
        let done = length.saturating_sub(left);
        // SAFETY: the caller's promise, for the elements in the bytes left.
        let end = unsafe { routine(to.wrapping_add(done), from.wrapping_add(done), 0, count) };
        left = left.saturating_sub(count.saturating_sub(end.left) << shift);
        if shift == 0 && end.signal != 0 {
            return Err(Stopped {
                done: length.saturating_sub(left) as u64,
                signal: end.signal,
            });
        }
    }
    Ok(())
}

type Copy = unsafe extern "sysv64" fn(*mut u8, *const u8, usize, usize) -> Copied;

/// Loads `width` bytes as one access if `from` is aligned, with acquire order
/// (every x86-64 load has it).
///
/// # Safety
/// As for [`copy`].
#[inline]
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
#[inline]
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
