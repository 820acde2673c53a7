//! What of the capabilities a walk has to know.

use iogate_paging::vtd::{FirstStage, LargePages, Levels, SecondStage, SupervisorWrites};

use crate::Capabilities;

/// What a unit's structures may say, by its capability registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// Scalable mode (ECAP.SMTS).
    pub(crate) scalable: bool,
    /// Bits of an input address (CAP.MGAW + 1).
    pub(crate) input_bits: u32,
    /// Bits of a guest-physical address (HAW).
    pub(crate) output_bits: u32,
    /// Second-stage tables of 3, 4 and 5 levels (CAP.SAGAW).
    pub(crate) second_levels: [bool; 3],
    /// Sizes of second-stage pages (CAP.SSLPS).
    pub(crate) second_large: LargePages,
    /// First-stage tables of 5 levels (CAP.FS5LP).
    pub(crate) first_five: bool,
    /// First-stage pages of 1 GiB (CAP.FS1GP).
    pub(crate) first_one_gib: bool,
    /// First stage (ECAP.FSTS), second stage (ECAP.SSTS), nesting (ECAP.NEST),
    /// pass-through (ECAP.PT).
    pub(crate) first: bool,
    pub(crate) second: bool,
    pub(crate) nested: bool,
    pub(crate) pass_through: bool,
    /// Device-TLBs (ECAP.DT), PASIDs (ECAP.PASID), page requests (ECAP.PRS).
    pub(crate) device_tlb: bool,
    pub(crate) pasid: bool,
    pub(crate) page_requests: bool,
    /// Snoop control (ECAP.SC).
    pub(crate) snoop_control: bool,
    /// Privileged requests (ECAP.SRS), requests to execute (ECAP.ERS).
    pub(crate) supervisor: bool,
    pub(crate) execute: bool,
    /// Extended accessed flags (ECAP.EAFS), second-stage flags (ECAP.SSADS).
    pub(crate) extended_accessed: bool,
    pub(crate) second_flags: bool,
}

impl From<Capabilities> for Limits {
    fn from(capabilities: Capabilities) -> Self {
        let scalable = capabilities.is_scalable();
        Self {
            scalable,
            input_bits: 48,
            output_bits: 48,
            second_levels: [true, true, false],
            second_large: LargePages::ALL,
            first_five: false,
            first_one_gib: true,
            first: scalable,
            second: true,
            nested: scalable,
            pass_through: true,
            device_tlb: true,
            pasid: scalable,
            page_requests: scalable,
            snoop_control: true,
            supervisor: scalable,
            execute: false,
            extended_accessed: scalable,
            second_flags: scalable,
        }
    }
}

impl Limits {
    /// The levels that AW names; `None` if the unit has no such tables.
    pub(crate) const fn levels(&self, width: u8) -> Option<Levels> {
        let [three, four, five] = self.second_levels;
        match width {
            1 if three => Some(Levels::Three),
            2 if four => Some(Levels::Four),
            3 if five => Some(Levels::Five),
            _ => None,
        }
    }

    /// Whether a structure's address is within the guest's memory space.
    pub(crate) const fn fits(&self, address: u64) -> bool {
        address.unbounded_shr(self.output_bits) == 0
    }

    /// Second-stage tables of `levels`; with accessed and dirty flags if
    /// `flags`.
    #[inline]
    pub(crate) const fn second_stage(&self, levels: Levels, flags: bool) -> SecondStage {
        let bits = levels.bits();
        SecondStage {
            levels,
            input_bits: if bits < self.input_bits {
                bits
            } else {
                self.input_bits
            },
            output_bits: self.output_bits,
            large: self.second_large,
            snoop_control: self.snoop_control,
            execute: false,
            flags,
        }
    }

    /// First-stage tables of `levels`, with nothing optional.
    #[inline]
    pub(crate) const fn first_stage(&self, levels: Levels) -> FirstStage {
        FirstStage {
            levels,
            output_bits: self.output_bits,
            large: LargePages {
                two_mib: true,
                one_gib: self.first_one_gib,
            },
            no_execute: false,
            supervisor_writes: SupervisorWrites::Allowed,
            extended_accessed: false,
        }
    }
}
