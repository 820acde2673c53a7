//! Which input addresses somebody cares for.

use iogate_dma::{Iova, Span};

/// A section of the input addresses of a source: all of them, or a span. A
/// mapping that passes a border of a section is cut there, so borders should
/// lie between pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section(Option<Span<Iova>>);

impl Section {
    /// All input addresses.
    pub const ALL: Self = Self(None);

    /// The input addresses.
    pub fn span(self) -> Span<Iova> {
        self.0.unwrap_or_else(Span::whole)
    }
}

impl From<Span<Iova>> for Section {
    fn from(span: Span<Iova>) -> Self {
        Self(Some(span))
    }
}
