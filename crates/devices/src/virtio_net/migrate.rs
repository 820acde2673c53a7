//! The state of the device on its way to another one.

use iogate_pci::{After, Migrate, StateError, StateReader, StateWriter, StillWorking};

use super::VirtioNet;
use super::ring::Position;
use super::state::{Cause, MAX_QUEUES};

impl Migrate for VirtioNet {
    fn shape(&self, into: &mut StateWriter) {
        self.lock().shape(into);
    }

    fn quiesce(&self) -> Result<(), StillWorking> {
        self.rest.begin()
    }

    fn resume(&self) -> After {
        self.rest.end();
        let mut state = self.lock();
        if state.take_loaded() {
            // What was told but had not reached the driver went with the
            // machine that the state comes from; once too often is harmless.
            for queue in 0..MAX_QUEUES {
                if state.is_enabled(queue) {
                    self.tell(&mut state, Cause::Queue(queue));
                }
            }
            self.tell(&mut state, Cause::Configuration);
        }
        match self.backend.has_news() {
            true => After::Work,
            false => state.after(),
        }
    }

    fn save(&self, into: &mut StateWriter) {
        let state = self.lock();
        state.save(into);
        let positions = match &*self.lock_scratch() {
            Some(scratch) => scratch.positions(state.generation()),
            None => [Position::default(); MAX_QUEUES],
        };
        for position in positions {
            into.u16(position.next);
            into.u16(position.used);
            into.bool(position.silent);
        }
    }

    fn load(&self, mut from: StateReader<'_>) -> Result<(), StateError> {
        let mut state = self.lock();
        let new = state.load(&mut from)?;
        let mut positions = [Position::default(); MAX_QUEUES];
        for position in &mut positions {
            *position = Position {
                next: from.u16()?,
                used: from.u16()?,
                silent: from.bool()?,
            };
        }
        from.finish()?;
        *state = new;
        let mut scratch = self.lock_scratch();
        let scratch = scratch.get_or_insert_default();
        scratch.set_positions(state.generation(), &positions);
        self.endpoint.set_line(state.line());
        Ok(())
    }
}

impl VirtioNet {
    fn tell(&self, state: &mut super::state::State, cause: Cause) {
        self.interrupt(state, cause, |vector| self.endpoint.raise(vector));
    }
}
