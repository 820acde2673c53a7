//! Registers and structures in memory, as the specification lays them out: one
//! family a file.

pub mod capability;
pub mod context;
pub mod descriptor;
pub mod fault;
pub mod interrupt;
pub mod irte;
pub mod page_request;
pub mod pasid;
pub mod posted;
pub mod registers;
pub mod root;
