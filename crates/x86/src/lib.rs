//! One instruction of a program, executed outside of the processor: on its
//! registers, and on memory that whoever calls provides.
//!
//! What is known is what compilers and drivers emit to reach device registers:
//! moves in all widths, arithmetic with an operand in memory, exchanges and
//! locked forms, string instructions, loads and stores of vectors, also masked
//! ones. The rest is [`Stopped::Unknown`]. Semantics: AMD64 Architecture Programmer's
//! Manual volumes 3 and 4; Intel SDM volume 2. Flags that these leave undefined
//! have some value.
//!
//! ```
//! use iogate_x86::{Done, Inaccessible, Memory, NoVectors, Registers, execute};
//!
//! struct Clock;
//! impl Memory for Clock {
//!     fn read(&mut self, _address: u64, into: &mut [u8]) -> Result<(), Inaccessible> {
//!         into.fill(7);
//!         Ok(())
//!     }
//!     fn write(&mut self, address: u64, _from: &[u8]) -> Result<(), Inaccessible> {
//!         Err(Inaccessible(address))
//!     }
//! }
//!
//! let mut registers = Registers::default();
//! // mov eax, [rbx]
//! let done = execute(&[0x8b, 0x03], &mut registers, &mut NoVectors, &mut Clock);
//! assert_eq!(done, Ok(Done::Completed));
//! assert_eq!((registers.general[0], registers.rip), (0x0707_0707, 2));
//! ```
#![forbid(unsafe_code)]
#![warn(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

mod arithmetic;
mod execute;
mod integer;
mod masked;
mod string;
mod vector;
mod xsave;

pub use execute::{LONGEST, execute, is_whole};
pub use xsave::{Layout, Xsave};

/// The integer registers of a thread in 64-bit mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15: as encoded.
    pub general: [u64; 16],
    /// Of the instruction to execute.
    pub rip: u64,
    /// rflags.
    pub flags: u64,
    /// The base of the fs segment.
    pub fs: u64,
    /// The base of the gs segment.
    pub gs: u64,
}

/// Memory that cannot be accessed, from this address on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inaccessible(pub u64);

/// What instructions read and write. Every access of an instruction is one
/// call, of 1 to 64 bytes; only its first bytes' address is known to exist.
pub trait Memory {
    /// Fills `into` from `address` on.
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Inaccessible>;

    /// Writes `from` to `address` and on.
    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Inaccessible>;
}

/// Bits 511 to 0 of a vector register, the lowest byte first.
pub type Vector = [u8; 64];

/// The vector registers, which are fetched only for instructions that use
/// them.
pub trait Vectors {
    /// Register `index`, 0 to 31; what the processor lacks is zero. `None` if
    /// registers cannot be had.
    fn get(&mut self, index: usize) -> Option<Vector>;

    /// Sets a register; `None` as for [`get`](Self::get).
    fn set(&mut self, index: usize, value: Vector) -> Option<()>;

    /// Mask register `index`, k0 to k7, as for [`get`](Self::get).
    fn mask(&mut self, index: usize) -> Option<u64>;
}

/// No vector registers: instructions that use them are unknown.
#[derive(Clone, Copy, Debug)]
pub struct NoVectors;

impl Vectors for NoVectors {
    fn get(&mut self, _index: usize) -> Option<Vector> {
        None
    }

    fn set(&mut self, _index: usize, _value: Vector) -> Option<()> {
        None
    }

    fn mask(&mut self, _index: usize) -> Option<u64> {
        None
    }
}

/// How far an instruction came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Done {
    /// It is done, and rip is behind it or where it jumped.
    Completed,
    /// A repeated one has done some of its work, which its registers tell; rip
    /// is still on it.
    Partly,
}

/// Why an instruction was not executed. Registers are as before, or those of a
/// repeated instruction that has come that far; memory may have been accessed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// It is none of those known.
    Unknown(Unknown),
    /// Memory said no.
    Inaccessible(Inaccessible),
}

impl From<Inaccessible> for Stopped {
    fn from(inaccessible: Inaccessible) -> Self {
        Self::Inaccessible(inaccessible)
    }
}

/// An instruction that is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unknown {
    /// Its name: `fild`; `invalid` if it is none.
    pub mnemonic: String,
    /// All of it: `fild dword ptr [rax]`.
    pub text: String,
}
