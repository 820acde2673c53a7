//! Mapped registers: every access of the program to a mapping of a device file
//! faults, and is executed for it.
//!
//! A device's memory file is empty, so that a load or store of a mapping
//! raises SIGBUS (BUS_ADRERR). One thread traces the program with ptrace(2)
//! and sees that signal before the program does: `tracer` waits for stops,
//! `access` executes the instruction on the device, `trace` is the calls of
//! ptrace, `processor` keeps the thread where the faulting one runs.
//! `bus_errors` knows what the program itself wants of SIGBUS, and `restore`
//! puts back what the kernel changed of it.
//!
//! Nothing but signals, new tasks and exec stops the program for it, so that
//! the rest runs at full speed. Tasks made with CLONE_UNTRACED are not served.

mod access;
mod bus_errors;
mod processor;
mod restore;
mod trace;
mod tracer;

pub(crate) use bus_errors::{Action, BusErrors};
pub(crate) use tracer::Tracer;
