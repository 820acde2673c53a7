//! What the requests of a source enter: context and PASID entries, decoded
//! into three words that a cache can hold.

use bitfield_struct::bitfield;
use iogate_dma::DomainKey;
use iogate_paging::vtd::{FirstStage, Levels, SecondStage, SupervisorWrites};

use super::limits::Limits;

/// Which tables a request passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Space {
    /// None: the address stays.
    PassThrough,
    /// The first stage.
    First(FirstStage, u64),
    /// The second stage.
    Second(SecondStage, u64),
    /// The first stage, whose tables and output pass the second.
    Nested {
        first: (FirstStage, u64),
        second: (SecondStage, u64),
    },
}

/// [`Space`] without its tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    PassThrough,
    First,
    Second,
    Nested,
}

/// All of a domain but the addresses of its tables.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(crate) struct Head {
    /// DID.
    pub(crate) id: u16,
    /// The PASID that the domain's translations are tagged with: RID_PASID
    /// for requests without one.
    #[bits(20)]
    pub(crate) pasid: u32,
    /// Whether there is such a PASID: in scalable mode.
    pub(crate) scalable: bool,
    /// Whether requests pass the first stage, and the second.
    pub(crate) has_first: bool,
    pub(crate) has_second: bool,
    /// AW.
    #[bits(3)]
    pub(crate) second_width: u8,
    /// SSADE.
    pub(crate) second_flags: bool,
    /// FSPM.
    pub(crate) first_five: bool,
    /// SRE.
    pub(crate) supervisor: bool,
    /// ERE.
    pub(crate) execute: bool,
    /// WPE.
    pub(crate) write_protect: bool,
    /// NXE.
    pub(crate) no_execute: bool,
    /// EAFE.
    pub(crate) extended_accessed: bool,
    /// FPD of any structure on the way.
    pub(crate) quiet: bool,
    /// DTE, or TT of 01b.
    pub(crate) device_tlb: bool,
    /// PRE.
    pub(crate) page_requests: bool,
    #[bits(12)]
    __: u16,
}

impl Head {
    /// Which tables requests pass.
    pub(crate) const fn kind(self) -> Kind {
        match (self.has_first(), self.has_second()) {
            (false, false) => Kind::PassThrough,
            (true, false) => Kind::First,
            (false, true) => Kind::Second,
            (true, true) => Kind::Nested,
        }
    }
}

/// What the requests of a source enter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Domain {
    pub(crate) head: Head,
    /// SSPTPTR.
    pub(crate) second: u64,
    /// FSPTPTR.
    pub(crate) first: u64,
}

impl Domain {
    /// The domain of everybody while translation is off.
    pub(crate) const OFF: Self = Self {
        head: Head::new(),
        second: 0,
        first: 0,
    };

    /// The tables that a request passes.
    #[inline]
    pub(crate) fn space(&self, limits: &Limits) -> Space {
        match self.head.kind() {
            Kind::PassThrough => Space::PassThrough,
            Kind::Second => Space::Second(self.second_stage(limits), self.second),
            Kind::First => Space::First(self.first_stage(limits), self.first),
            Kind::Nested => Space::Nested {
                first: (self.first_stage(limits), self.first),
                second: (self.second_stage(limits), self.second),
            },
        }
    }

    /// The form of its second stage.
    #[inline]
    pub(crate) fn second_stage(&self, limits: &Limits) -> SecondStage {
        // The entry was refused if its width is none of these.
        let levels = match self.head.second_width() {
            1 => Levels::Three,
            3 => Levels::Five,
            _ => Levels::Four,
        };
        limits.second_stage(levels, self.head.second_flags())
    }

    #[inline]
    fn first_stage(&self, limits: &Limits) -> FirstStage {
        let levels = if self.head.first_five() {
            Levels::Five
        } else {
            Levels::Four
        };
        FirstStage {
            no_execute: self.head.no_execute(),
            supervisor_writes: if self.head.write_protect() {
                SupervisorWrites::Refused
            } else {
                SupervisorWrites::Allowed
            },
            extended_accessed: self.head.extended_accessed(),
            ..limits.first_stage(levels)
        }
    }

    /// Names what it maps and who may invalidate it.
    pub(crate) fn key(&self) -> DomainKey {
        let head = self.head.with_quiet(false).with_device_tlb(false);
        let head = head.with_page_requests(false);
        // Tables map the same whichever PASID leads to them.
        let head = head.with_pasid(0);
        DomainKey([head.into_bits(), self.second, self.first, 0])
    }
}
