//! The guest's side: what a driver does, and what it sees.

mod device_tlb;
mod events;
mod faults;
pub(crate) mod guest;
mod linux;
mod pages;
mod properties;
mod queue;
mod registers;
mod state;
