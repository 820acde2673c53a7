//! Links that tell the trace of what devices do and are allowed to do. They
//! stand in a session only when somebody wants to hear of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use iogate_dma::{Fault, InFlight, Iova, Outcome, Port, Request, Translate};
use iogate_pci::{After, ConfigEffect, Endpoint, Function, Migrate, ResetKind, Wake};

/// An address space whose accesses are told of.
pub(crate) struct WatchedSpace {
    inner: Arc<dyn Translate>,
    /// First and last byte of what is left of the access under way: it is
    /// told of once, however many pieces of memory it meets.
    rest: Mutex<Option<(Iova, Iova)>>,
}

impl WatchedSpace {
    pub(crate) fn new(inner: Arc<dyn Translate>) -> Self {
        Self {
            inner,
            rest: Mutex::default(),
        }
    }
}

impl Translate for WatchedSpace {
    fn translate<'g>(
        &'g self,
        guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        let outcome = self.inner.translate(guard, request)?;
        let span = request.span;
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        if rest.take() != Some((span.first(), span.last())) {
            tracing::event!(
                name: "dma_access",
                target: "iogate",
                tracing::Level::INFO,
                device = %request.source,
                access = %request.access,
                iova = %span.first(),
                length = span.last_offset().saturating_add(1),
            );
        }
        if let Outcome::Memory(run) = &outcome
            && run.length() <= span.last_offset()
        {
            let next = span.first().0.checked_add(run.length());
            *rest = next.map(|next| (Iova(next), span.last()));
        }
        Ok(outcome)
    }
}

/// A function whose work is told of.
pub(crate) struct WatchedFunction(pub(crate) Arc<dyn Function>);

impl Function for WatchedFunction {
    fn endpoint(&self) -> &Endpoint {
        self.0.endpoint()
    }

    fn model(&self) -> &'static str {
        self.0.model()
    }

    fn read_bar(&self, bar: u8, offset: u64, into: &mut [u8]) {
        self.0.read_bar(bar, offset, into);
    }

    fn write_bar(&self, bar: u8, offset: u64, from: &[u8]) -> After {
        self.0.write_bar(bar, offset, from)
    }

    fn work(&self, port: &mut Port) -> After {
        let begun = Instant::now();
        let after = self.0.work(port);
        tracing::event!(
            name: "dma_work",
            target: "iogate",
            tracing::Level::INFO,
            device = %port.source(),
            microseconds = begun.elapsed().as_secs_f64() * 1e6,
        );
        after
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        self.0.read_config(offset, into);
    }

    fn write_config(&self, offset: u64, from: &[u8]) -> (ConfigEffect, After) {
        self.0.write_config(offset, from)
    }

    fn attend(&self, wake: Wake) {
        self.0.attend(wake);
    }

    fn reset(&self, kind: ResetKind) {
        self.0.reset(kind);
    }

    fn migrate(&self) -> Option<&dyn Migrate> {
        self.0.migrate()
    }
}
