//! The links that an injection puts before address spaces, the interrupt
//! controller and registers.

use std::sync::{Arc, Mutex, PoisonError};

use iogate_dma::{
    Fault, FaultReason, InFlight, Interrupts, Iova, Kind, Line, Message, Outcome, Port, Request,
    Source, Translate,
};
use iogate_pci::{After, ConfigEffect, Endpoint, Function, Migrate, ResetKind, Wake};

use crate::Injection;

impl Injection {
    /// An address space that accesses may not reach.
    pub fn space(self: &Arc<Self>, inner: Arc<dyn Translate>) -> Arc<dyn Translate> {
        Arc::new(Refusing {
            injection: Arc::clone(self),
            inner,
            rest: Mutex::default(),
        })
    }

    /// An interrupt controller that messages may not reach.
    pub fn interrupts(self: &Arc<Self>, inner: Arc<dyn Interrupts>) -> Arc<dyn Interrupts> {
        Arc::new(Losing {
            injection: Arc::clone(self),
            inner,
        })
    }

    /// A function that may vanish.
    pub fn function(self: &Arc<Self>, inner: Arc<dyn Function>) -> Arc<dyn Function> {
        Arc::new(Vanishing {
            injection: Arc::clone(self),
            inner,
        })
    }
}

struct Refusing {
    injection: Arc<Injection>,
    inner: Arc<dyn Translate>,
    /// First and last byte of what is left of the access under way: an access
    /// counts once, however many pieces of memory it meets.
    rest: Mutex<Option<(Iova, Iova)>>,
}

impl Translate for Refusing {
    fn translate<'g>(
        &'g self,
        guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        let span = request.span;
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = rest.take() == Some((span.first(), span.last()));
        let counts = !goes_on && request.kind != Kind::TranslationRequest;
        if counts && self.injection.refuses(request) {
            return Err(Fault {
                source_id: request.source,
                span,
                access: request.access,
                reason: FaultReason::Injected,
                walk: None,
                recoverable: false,
            });
        }
        let outcome = self.inner.translate(guard, request)?;
        if let Outcome::Memory(run) = &outcome
            && run.length() <= span.last_offset()
        {
            let next = span.first().0.checked_add(run.length());
            *rest = next.map(|next| (Iova(next), span.last()));
        }
        Ok(outcome)
    }
}

struct Losing {
    injection: Arc<Injection>,
    inner: Arc<dyn Interrupts>,
}

impl Interrupts for Losing {
    fn message(&self, source: Source, message: Message) {
        if !self.injection.loses(source, message.data) {
            self.inner.message(source, message);
        }
    }

    fn line(&self, source: Source, line: Line) {
        self.inner.line(source, line);
    }
}

struct Vanishing {
    injection: Arc<Injection>,
    inner: Arc<dyn Function>,
}

impl Vanishing {
    fn answers(&self) -> bool {
        self.injection.register(self.inner.endpoint().source())
    }
}

impl Function for Vanishing {
    fn endpoint(&self) -> &Endpoint {
        self.inner.endpoint()
    }

    fn model(&self) -> &'static str {
        self.inner.model()
    }

    fn read_bar(&self, bar: u8, offset: u64, into: &mut [u8]) {
        match self.answers() {
            true => self.inner.read_bar(bar, offset, into),
            false => into.fill(0xff),
        }
    }

    fn write_bar(&self, bar: u8, offset: u64, from: &[u8]) -> After {
        match self.answers() {
            true => self.inner.write_bar(bar, offset, from),
            false => After::Nothing,
        }
    }

    fn work(&self, port: &mut Port) -> After {
        match self.injection.is_gone(port.source()) {
            true => After::Nothing,
            false => self.inner.work(port),
        }
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        self.inner.read_config(offset, into);
    }

    fn write_config(&self, offset: u64, from: &[u8]) -> (ConfigEffect, After) {
        self.inner.write_config(offset, from)
    }

    fn attend(&self, wake: Wake) {
        self.inner.attend(wake);
    }

    fn reset(&self, kind: ResetKind) {
        self.inner.reset(kind);
    }

    fn migrate(&self) -> Option<&dyn Migrate> {
        self.inner.migrate()
    }
}
