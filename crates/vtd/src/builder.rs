//! How a unit is put together.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use iogate_dma::{Gate, Memory, Message, RequesterId};

use crate::Capabilities;
use crate::events::Deliver;
use crate::unit::Vtd;

/// Says that [`Vtd::work`] has something to do. It must not block and must not
/// call the unit.
pub(crate) type Wake = Box<dyn Fn() + Send + Sync>;

/// Why a unit cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The capabilities contradict each other.
    #[error("the capabilities contradict each other: {0}")]
    Capabilities(&'static str),
}

/// Puts a unit together; from [`Vtd::builder`].
pub struct Builder {
    ram: Arc<dyn Memory>,
    capabilities: Capabilities,
    scope: Option<BTreeSet<RequesterId>>,
    deliver: Deliver,
    wake: Option<Wake>,
    gate: Arc<Gate>,
}

impl Builder {
    pub(crate) fn new(ram: Arc<dyn Memory>) -> Self {
        Self {
            ram,
            capabilities: Capabilities::default(),
            scope: None,
            deliver: Box::new(|_| {}),
            wake: None,
            gate: Arc::new(Gate::new()),
        }
    }

    /// What the unit offers.
    #[must_use]
    pub fn capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// The functions behind the unit; without it all of segment 0. Requests of
    /// others are refused.
    #[must_use]
    pub fn scope(mut self, scope: impl IntoIterator<Item = RequesterId>) -> Self {
        self.scope = Some(scope.into_iter().collect());
        self
    }

    /// Who takes messages to the guest's interrupt controller: those of
    /// devices after remapping, and the unit's own. It must not block and must
    /// not call the unit.
    #[must_use]
    pub fn deliver(mut self, deliver: impl Fn(Message) + Send + Sync + 'static) -> Self {
        self.deliver = Box::new(deliver);
        self
    }

    /// Has register writes return at once: what they ask for is done by
    /// [`Vtd::work`], after `wake` said so, on a thread of the embedder.
    #[must_use]
    pub fn deferred(mut self, wake: impl Fn() + Send + Sync + 'static) -> Self {
        self.wake = Some(Box::new(wake));
        self
    }

    /// The gate of the workers behind the unit, if they have one already.
    #[must_use]
    pub fn gate(mut self, gate: Arc<Gate>) -> Self {
        self.gate = gate;
        self
    }

    /// Builds the unit, in its state of power-on.
    ///
    /// # Errors
    /// If the capabilities contradict each other.
    pub fn build(self) -> Result<Arc<Vtd>, BuildError> {
        if let Some(rule) = self.capabilities.contradiction() {
            return Err(BuildError::Capabilities(rule));
        }
        let remapping =
            crate::remap::Remapping::new(&self.gate, self.scope.as_ref(), &self.capabilities);
        Ok(Arc::new(Vtd {
            ram: self.ram,
            capabilities: self.capabilities,
            limits: self.capabilities.into(),
            scope: self.scope,
            gate: self.gate,
            deliver: self.deliver,
            wake: self.wake,
            live: crate::live::Live::default(),
            caches: crate::cache::Caches::default(),
            registers: Mutex::new(crate::registers::Registers::new(self.capabilities)),
            turn: Mutex::default(),
            device_tlbs: Mutex::default(),
            pages: Mutex::default(),
            remapping,
            observers: Mutex::default(),
        }))
    }
}
