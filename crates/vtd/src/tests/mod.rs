//! The guest's side: what a driver does, and what it sees.

mod guest;
mod linux;
