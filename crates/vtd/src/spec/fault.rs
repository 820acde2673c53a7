//! Fault reasons. VT-d 4.1 section 7.1.3 (table 25 and following) and appendix A.

/// Why a request was refused, as the fault recording registers say it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reason(pub u8);
