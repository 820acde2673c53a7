//! One access as it arrives at an IOMMU.

use crate::{Access, Iova, Source, Span};

/// Whether the requester acts for a supervisor (PASID prefix, Privileged Mode
/// Requested). PCI Express Base 6.0 section 6.20.2.2.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Privilege {
    /// An ordinary request.
    #[default]
    User,
    /// A request in privileged mode.
    Supervisor,
}

/// The Address Type of a request. PCI Express Base 6.0 section 2.2.4.1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Kind {
    /// The address is still to be translated.
    #[default]
    Untranslated,
    /// An ATS translation request: asks for the translation, touches nothing.
    TranslationRequest,
    /// The address comes from an earlier ATS translation.
    Translated,
}

/// One access: who, where, what.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// Who makes it.
    pub source: Source,
    /// The bytes it touches.
    pub span: Span<Iova>,
    /// What it does to them.
    pub access: Access,
    /// On whose behalf.
    pub privilege: Privilege,
    /// Whether the address is translated already.
    pub kind: Kind,
}

impl Request {
    /// An ordinary untranslated request.
    pub fn new(source: Source, span: Span<Iova>, access: Access) -> Self {
        Self {
            source,
            span,
            access,
            privilege: Privilege::User,
            kind: Kind::Untranslated,
        }
    }
}
