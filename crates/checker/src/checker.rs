//! The checker itself: hears of everything, prints causes, makes the report.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use iogate_dma::{Fault, FaultReason, FaultSink, Rights, Source, Span};
use iogate_host::{Actor, Observer, SpaceId, Via};

use crate::cause::{CauseKey, Causes, MAX_PRINTED};
use crate::history::{Deed, History, Mapping};
use crate::report::Report;
use crate::stack::{Frame, StackId};
use crate::text;

/// Mappings kept as leaks; further ones are only counted.
const MAX_LEAKS: usize = 10_000;

/// What the checker asks others when it writes for a person.
pub trait Outside: Send + Sync {
    /// The name of a device's model.
    fn model(&self, source: Source) -> Option<String>;

    /// The name of a thread, if it still lives.
    fn thread_name(&self, actor: Actor) -> Option<String>;

    /// Takes the stack of a thread whose call is being answered; `None` where
    /// none is wanted or to be had.
    fn stack(&self, _: Actor) -> Option<StackId> {
        None
    }

    /// The stack of the call that last wrote a register of a device.
    fn last_write(&self, _: Source) -> Option<StackId> {
        None
    }

    /// The frames of a stack, innermost first.
    fn frames(&self, _: StackId) -> Vec<Frame> {
        Vec::new()
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) history: History,
    pub(crate) causes: Causes,
    pub(crate) leaks: Vec<(SpaceId, Mapping)>,
    pub(crate) leak_count: u64,
    attached: HashMap<Source, SpaceId>,
    /// The last new cause of each device, still without the device's answer.
    unanswered: HashMap<Source, usize>,
}

/// Remembers, explains, counts.
pub struct Checker {
    pub(crate) started: Instant,
    pub(crate) outside: Box<dyn Outside>,
    state: Mutex<State>,
    output: Mutex<Box<dyn Write + Send>>,
}

impl Checker {
    /// A checker that prints to `output` (the program's standard error).
    pub fn new(outside: Box<dyn Outside>, output: Box<dyn Write + Send>) -> Self {
        Self {
            started: Instant::now(),
            outside,
            state: Mutex::default(),
            output: Mutex::new(output),
        }
    }

    /// Refused accesses so far.
    pub fn faults(&self) -> u64 {
        self.lock().causes.faults
    }

    /// Mappings that were left to be cleaned up, so far.
    pub fn leaks(&self) -> u64 {
        self.lock().leak_count
    }

    /// Ends the session: prints what is still to be said (causes that
    /// repeated, one line for the leaks) and returns the report.
    pub fn finish(&self) -> Report {
        let mut state = self.lock();
        for position in 0..state.causes.list().len().min(MAX_PRINTED) {
            self.print_first(&mut state, position);
        }
        for cause in state.causes.list().iter().take(MAX_PRINTED) {
            if cause.times > 1 {
                self.print(&format!(
                    "iogate: DMA fault {} ({} times): {}",
                    cause.number,
                    cause.times,
                    text::headline(cause, &*self.outside)
                ));
            }
        }
        let unprinted = state.causes.list().len().saturating_sub(MAX_PRINTED);
        if unprinted > 0 || state.causes.beyond > 0 {
            self.print(&format!(
                "iogate: {unprinted} more causes of DMA faults are in the report, {} further faults were only counted",
                state.causes.beyond
            ));
        }
        let live = state.history.live_count();
        let left = state
            .leak_count
            .saturating_add(u64::try_from(live).unwrap_or(u64::MAX));
        if left > 0 {
            self.print(&format!(
                "iogate: {left} mapping{} never unmapped",
                if left == 1 { " was" } else { "s were" }
            ));
        }
        Report::new(self, &state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints a cause when it is complete: the device has answered, or
    /// something else happens first.
    fn print_first(&self, state: &mut State, position: usize) {
        if position >= MAX_PRINTED {
            return;
        }
        if let Some(cause) = state.causes.get_mut(position)
            && !cause.printed
        {
            cause.printed = true;
            let first = crate::cause::Cause {
                times: 1,
                ..cause.clone()
            };
            self.print(&text::cause(&first, &*self.outside));
        }
    }

    fn deed(&self, via: Via, by: Option<Actor>) -> Deed {
        Deed {
            via,
            by,
            at: Instant::now(),
            stack: by.and_then(|by| self.outside.stack(by)),
        }
    }

    fn print(&self, text: &str) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // The program may have closed its standard error: nobody reads then.
        let _ = writeln!(output, "{text}");
    }
}

impl Observer for Checker {
    fn mapped(&self, space: SpaceId, span: Span, rights: Rights, via: Via, by: Option<Actor>) {
        tracing::event!(
            name: "dma_map",
            target: "iogate",
            tracing::Level::INFO,
            space = space.0,
            first = %span.first(),
            last = %span.last(),
            rights = %rights,
            call = via.name(),
        );
        let deed = self.deed(via, by);
        self.lock().history.mapped(space, span, rights, deed);
    }

    fn unmapped(&self, space: SpaceId, span: Span, via: Via, by: Option<Actor>) {
        tracing::event!(
            name: "dma_unmap",
            target: "iogate",
            tracing::Level::INFO,
            space = space.0,
            first = %span.first(),
            last = %span.last(),
            call = via.name(),
        );
        let deed = self.deed(via, by);
        let mut state = self.lock();
        let mapping = state.history.unmapped(space, span, deed);
        if via == Via::Release
            && let Some(mapping) = mapping
        {
            state.leak_count = state.leak_count.saturating_add(1);
            if state.leaks.len() < MAX_LEAKS {
                state.leaks.push((space, mapping));
            }
        }
    }

    fn revoked(&self, space: SpaceId, span: Span, by: Option<Actor>) {
        tracing::event!(
            name: "dma_revoke",
            target: "iogate",
            tracing::Level::INFO,
            space = space.0,
            first = %span.first(),
            last = %span.last(),
        );
        let deed = self.deed(Via::ClientUnmap, by);
        self.lock().history.revoked(space, span, deed);
    }

    fn attached(&self, source: Source, space: Option<SpaceId>) {
        tracing::event!(
            name: "dma_attach",
            target: "iogate",
            tracing::Level::INFO,
            device = %source,
            space = space.map(|space| space.0),
        );
        let mut state = self.lock();
        match space {
            Some(space) => state.attached.insert(source, space),
            None => state.attached.remove(&source),
        };
    }
}

impl FaultSink for Checker {
    fn fault(&self, fault: &Fault) {
        if fault.reason == FaultReason::Injected {
            // No fault of the program's: its cause is told of elsewhere, and
            // the device's answer is to it.
            let mut guard = self.lock();
            let state = &mut *guard;
            if let Some(earlier) = state.unanswered.remove(&fault.source_id) {
                self.print_first(state, earlier);
            }
            return;
        }
        tracing::event!(
            name: "dma_fault",
            target: "iogate",
            tracing::Level::INFO,
            device = %fault.source_id,
            access = %fault.access,
            iova = %fault.span.first(),
            length = fault.span.last_offset().saturating_add(1),
            reason = %fault.reason,
        );
        let stack = self.outside.last_write(fault.source_id.function());
        let mut guard = self.lock();
        let state = &mut *guard;
        let space = state.attached.get(&fault.source_id).copied();
        let key = CauseKey::new(fault, &state.history, space);
        let new = state.causes.count(key, fault, &state.history, space);
        if let Some(cause) = new.and_then(|position| state.causes.get_mut(position)) {
            cause.stack = stack;
        }
        let earlier = match new {
            Some(position) => state.unanswered.insert(fault.source_id, position),
            None => state.unanswered.remove(&fault.source_id),
        };
        if let Some(earlier) = earlier {
            self.print_first(state, earlier);
        }
    }

    fn answered(&self, source: Source, answer: &str) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(position) = state.unanswered.remove(&source) {
            if let Some(cause) = state.causes.get_mut(position) {
                cause.answer = Some(answer.to_owned());
            }
            self.print_first(state, position);
        }
    }
}
