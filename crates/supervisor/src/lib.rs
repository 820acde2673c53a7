//! An unmodified program under a supervisor: its VFIO, iommufd and KVM-VFIO
//! calls are taken by seccomp user notification and answered by
//! `iogate-uapi`; it finds the nodes and the PCI functions in a mount namespace
//! of its own or, where none can be had, by having its path calls answered too.
//!
//! Three processes make a session. The *supervisor*, which calls [`run`], stays
//! outside of the namespaces and answers; the *guardian*, its child, builds
//! them and reaps; the *program* is the guardian's child. Whichever of the
//! first two dies, the other one ends all the rest.
//!
//! | part | files |
//! |---|---|
//! | what is noticed | `filter`, `listener`, `receive` |
//! | who calls | `thread`, `client_process`, `client`, `numbers`, `open`, `unmapping` |
//! | what it holds | `object`, `held`, `kvm`, `core`, `watch`, `eventfd`, `eventfds` |
//! | its memory | `pages`, `shared` |
//! | mapped registers | `mmio` |
//! | what it sees | `namespace`, `nodes`; or `paths`; what changes of it: `presented`, `attributes` |
//! | processes | `run`, `guardian`, `user`, `control`, `process`, `signals`, `alarm`, `worker` |
//!
//! # Limits
//!
//! A filter sees the arguments of a call and nothing else. Unseen are: plain
//! `read` and `write` after `lseek` of a descriptor whose number the program
//! chose, `io_uring` (both are warned about once),
//! opens of a node by a symbolic link of another name or with O_CREAT (the
//! node is then opened, and EBUSY comes, at the first call on it). A call that
//! a signal interrupts before it is taken gives EINTR, as no VFIO call does.
//! Under an ordinary user all memory of a process that is not dumpable
//! (PR_SET_DUMPABLE) is reached as private memory is, and by a device only
//! where the process itself may reach it: `/proc` keeps the rest for root.
//! Programs run with PR_SET_NO_NEW_PRIVS.
#![deny(unsafe_op_in_unsafe_fn)]
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

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("iogate-supervisor knows the system calls of x86-64 Linux");

mod alarm;
mod attributes;
mod beside;
mod client;
mod client_process;
mod control;
mod core;
mod doctor;
mod eventfd;
mod eventfds;
mod events;
mod filter;
mod guardian;
mod held;
mod kvm;
mod listener;
mod mmio;
mod namespace;
mod nodes;
mod numbers;
mod object;
mod open;
mod pages;
mod paths;
mod presented;
mod process;
mod receive;
mod run;
mod say;
mod session;
mod shared;
mod signals;
mod tap;
mod thread;
mod unmapping;
mod user;
mod watch;
mod worker;

pub use beside::{Caught, HeldSignals};
pub use doctor::{Need, Problem, Step, Way, doctor};
pub use namespace::inside_session;
pub use process::Straggler;
pub use run::run;
pub use session::{Attributes, Ended, Session, StartError, Status, Unmapping};
pub use signals::die_of;
pub use tap::open_tap;
pub use user::{User, UserError};
