//! From a function's message or line to the signal that a program waits for;
//! and the windows of I/O addresses that messages are written to.
//!
//! A host binds a [`Signal`] to a vector and programs the [`Message`] it gets
//! into the function; the function writes that message; [`Delivery`] finds
//! the signal again.
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use iogate_dma::{Interrupts, Source};
//! use iogate_interrupt::{Delivery, Signal, Window};
//!
//! struct Counter(AtomicU64);
//! impl Signal for Counter {
//!     fn signal(&self) {
//!         self.0.fetch_add(1, Ordering::SeqCst);
//!     }
//! }
//! let counter = Arc::new(Counter(AtomicU64::new(0)));
//! let delivery = Delivery::new(Window::X86);
//! let source: Source = "0000:01:00.0".parse()?;
//! let message = delivery.bind(source, 0, counter.clone())?;
//! delivery.message(source, message);
//! assert_eq!(counter.0.load(Ordering::SeqCst), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Message`]: iogate_dma::Message
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

mod delivery;
mod line;
mod window;

pub use delivery::{BindError, Delivery, Signal};
pub use window::{Doorbells, Need, Window, WindowFull, WindowKind};
