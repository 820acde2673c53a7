//! An access that is refused.

use std::fmt;

use crate::{Access, Gpa, Iova, Source, Span};

/// Which of two nested stages refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// Stage 1 (Arm), first stage (VT-d): owned by the guest.
    First,
    /// Stage 2 (Arm), second stage (VT-d): owned by the host.
    Second,
}

/// Where in a page-table walk an access was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Walk {
    /// The stage.
    pub stage: Stage,
    /// The level, 1 for the tables of the smallest pages.
    pub level: u8,
    /// The table whose entry refused.
    pub table: Gpa,
}

/// Why an access is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum FaultReason {
    /// Nothing is mapped there.
    NotMapped,
    /// The mapping does not allow this access.
    Permission,
    /// The mapping stands, but the memory behind it was taken away.
    Revoked,
    /// The address is reserved or outside the aperture.
    Reserved,
    /// The device is attached to no address space.
    Blocked,
    /// The request's PASID is attached to no address space.
    NoPasid,
    /// The device stands behind no IOMMU, so that the address is a physical
    /// one, of memory that nobody has named.
    Physical,
    /// The function's Bus Master Enable bit is clear.
    NotMaster,
    /// It was to fail, so that its failure can be tested.
    Injected,
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotMapped => "not mapped",
            Self::Permission => "against the mapping's permission",
            Self::Revoked => "the memory behind the mapping is gone",
            Self::Reserved => "reserved address",
            Self::Blocked => "the device is attached to no address space",
            Self::NoPasid => "nothing is attached to the PASID",
            Self::Physical => {
                "a physical address: the device has no IOMMU, and what is there is unknown"
            }
            Self::NotMaster => "bus mastering is disabled",
            Self::Injected => "injected",
        })
    }
}

/// An access that is refused, and why.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("DMA fault: {source_id} {access} at {span}: {reason}")]
pub struct Fault {
    /// Who made the access.
    pub source_id: Source,
    /// The bytes refused: from the first refused byte to the end of the
    /// access.
    pub span: Span<Iova>,
    /// What the access would have done.
    pub access: Access,
    /// Why it is refused.
    pub reason: FaultReason,
    /// Where in a walk, if page tables were walked.
    pub walk: Option<Walk>,
    /// Whether a page request may cure it.
    pub recoverable: bool,
}

/// Who is told of refused accesses.
pub trait FaultSink: Send + Sync {
    /// An access was refused. Called once per refused access of a device,
    /// without any lock of the chain held.
    fn fault(&self, fault: &Fault);

    /// What the device did about the last fault of `source`, in words for a
    /// person ("answered NVMe status 0x04, sq 1 cid 17").
    fn answered(&self, source: Source, answer: &str);
}
