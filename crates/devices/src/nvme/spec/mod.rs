//! Registers and structures of the NVM Express Base Specification 1.4, one
//! family a file.

pub(crate) mod command;
pub(crate) mod completion;
pub(crate) mod feature;
pub(crate) mod identify;
pub(crate) mod log;
pub(crate) mod page;
pub(crate) mod registers;
