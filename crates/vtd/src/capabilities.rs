//! What a unit can do, and how its capability registers say so.

/// What a unit offers to its guest. The default is legacy mode: second-stage
/// tables of 48 bits, queued invalidation, 8 fault records, caching mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    scalable: bool,
}

impl Capabilities {
    /// Adds scalable mode: PASID tables, first stage, nesting.
    #[must_use]
    pub const fn scalable(mut self) -> Self {
        self.scalable = true;
        self
    }

    /// Whether scalable mode is offered.
    pub const fn is_scalable(&self) -> bool {
        self.scalable
    }
}
