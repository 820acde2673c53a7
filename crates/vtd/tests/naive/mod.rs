//! A model of translation written from the specification alone: byte memory, plain masks, one step a line, nothing of the
//! crate. VT-d 4.1 chapters 3, 7 and 9. Slow and obvious; used by property tests, fuzzing and the comparison with QEMU.
#![allow(
    dead_code,
    unused_imports,
    reason = "each program that takes this file uses a part of it"
)]

pub(crate) mod choices;
pub(crate) mod generate;
pub(crate) mod history;
pub(crate) mod memory;
pub(crate) mod tables;
pub(crate) mod translate;
pub(crate) mod unit;

pub(crate) use choices::Choices;

pub(crate) use translate::{Access, Answer, Question, translate};
pub(crate) use unit::Unit;
