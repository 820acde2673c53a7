//! What of the capabilities a walk has to know.

use iogate_paging::vtd::{FirstStage, LargePages, Levels, SecondStage, SupervisorWrites};

use crate::Capabilities;
use crate::spec::registers::ExtendedCapability;

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
    /// Sizes of pages (CAP.SSLPS, CAP.FS1GP); the first stage always has those
    /// of 2 MiB.
    pub(crate) second_large: LargePages,
    /// First-stage tables of 5 levels (CAP.FS5LP).
    pub(crate) first_five: bool,
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
        let extended = capabilities.extended_capability_register();
        let extended = ExtendedCapability::from_bits(extended);
        let width = u32::from(capabilities.width());
        Self {
            scalable,
            input_bits: width,
            output_bits: width.clamp(48, 52),
            second_levels: [true, width >= 48, width >= 57],
            second_large: LargePages {
                two_mib: capabilities.has_2m_pages(),
                one_gib: capabilities.has_1g_pages(),
            },
            first_five: capabilities.has_first_stage_5_level(),
            first: extended.first_stage(),
            second: extended.second_stage(),
            nested: capabilities.has_nested(),
            pass_through: capabilities.has_pass_through(),
            device_tlb: capabilities.has_device_tlb(),
            pasid: extended.pasid(),
            page_requests: capabilities.has_page_requests(),
            snoop_control: capabilities.has_snoop_control(),
            supervisor: extended.supervisor_requests(),
            execute: extended.execute_requests(),
            extended_accessed: extended.extended_accessed(),
            second_flags: extended.second_stage_accessed_dirty(),
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
                one_gib: self.second_large.one_gib,
            },
            no_execute: false,
            supervisor_writes: SupervisorWrites::Allowed,
            extended_accessed: false,
        }
    }
}
