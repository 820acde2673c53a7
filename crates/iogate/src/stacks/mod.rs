//! `--stacks`: call stacks of maps, unmaps and register writes.
//!
//! A stack is taken while its thread waits in the call: the stack pointer and
//! the instruction are in `/proc/TID/syscall`, the stack's memory and the list
//! of mapped files are read and followed at that moment. Functions and lines
//! are found out when a report is written. `docs/report.md` tells what can be relied on.

mod capture;
mod elf;
mod symbols;
mod unwind;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_checker::{Frame, StackId};
use iogate_dma::Source;
use iogate_host::Actor;

use capture::Capture;
use symbols::Symbols;
use unwind::Unwinders;

/// Different stacks that are kept; of calls beyond none is.
const MOST_STACKS: usize = 10_000;

/// The stacks of a session.
#[derive(Default)]
pub(crate) struct Stacks {
    state: Mutex<State>,
    unwinders: Mutex<Unwinders>,
}

#[derive(Default)]
struct State {
    captures: Vec<Arc<Capture>>,
    index: HashMap<Arc<Capture>, StackId>,
    last_writes: HashMap<Source, StackId>,
    frames: HashMap<StackId, Vec<Frame>>,
    symbols: Symbols,
}

impl Stacks {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the stack of a thread that waits in a call.
    pub(crate) fn take(&self, actor: Actor) -> Option<StackId> {
        let mut unwinders = self
            .unwinders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let capture = capture::of(actor.process, actor.thread, &mut unwinders)?;
        drop(unwinders);
        let mut state = self.lock();
        if let Some(known) = state.index.get(&capture) {
            return Some(*known);
        }
        let id = StackId(u32::try_from(state.captures.len()).ok()?);
        if state.captures.len() >= MOST_STACKS {
            return None;
        }
        let capture = Arc::new(capture);
        state.captures.push(Arc::clone(&capture));
        state.index.insert(capture, id);
        Some(id)
    }

    /// A thread is about to write a register of `device`.
    pub(crate) fn writes(&self, device: Source, actor: Actor) {
        let taken = self.take(actor);
        let mut state = self.lock();
        match taken {
            Some(stack) => state.last_writes.insert(device, stack),
            None => state.last_writes.remove(&device),
        };
    }

    /// The stack of the last write of a register of `device`.
    pub(crate) fn last_write(&self, device: Source) -> Option<StackId> {
        self.lock().last_writes.get(&device).copied()
    }

    /// The frames of a stack, innermost first.
    pub(crate) fn frames(&self, stack: StackId) -> Vec<Frame> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(frames) = state.frames.get(&stack) {
            return frames.clone();
        }
        let capture = usize::try_from(stack.0).ok();
        let Some(capture) = capture.and_then(|index| state.captures.get(index)) else {
            return Vec::new();
        };
        let frames = state.symbols.frames(capture);
        state.frames.insert(stack, frames.clone());
        frames
    }
}
