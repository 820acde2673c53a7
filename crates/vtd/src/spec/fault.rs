//! Fault reasons. VT-d 4.1 section 7.1.3 (table 25 and following) and appendix A.

use std::fmt;

/// Why a request was refused, as the fault recording registers say it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reason(pub u8);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        impl Reason {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// What it says, in a few words.
            pub const fn text(self) -> &'static str {
                match self.0 {
                    $($code => $text,)*
                    _ => "unknown",
                }
            }
        }
    };
}

reasons! {
    /// LRT.2: the root entry is not present.
    ROOT_NOT_PRESENT = 0x01, "root entry not present";
    /// LCT.2: the context entry is not present.
    CONTEXT_NOT_PRESENT = 0x02, "context entry not present";
    /// LCT.4: the context entry has a type or width that the unit does not
    /// have.
    CONTEXT_INVALID = 0x03, "context entry invalid";
    /// LGN.1: the address is beyond the domain's width.
    BEYOND_WIDTH = 0x04, "address beyond the width";
    /// LGN.2: no right to write.
    WRITE = 0x05, "no right to write";
    /// LGN.3: no right to read.
    READ = 0x06, "no right to read";
    /// LSL.1: a second-stage table cannot be read.
    TABLE_ACCESS = 0x07, "page table not accessible";
    /// LRT.1: the root table cannot be read.
    ROOT_ACCESS = 0x08, "root table not accessible";
    /// LCT.1: the context table cannot be read.
    CONTEXT_ACCESS = 0x09, "context table not accessible";
    /// LRT.3: a reserved bit of the root entry is set.
    ROOT_RESERVED = 0x0a, "reserved bits in the root entry";
    /// LCT.3: a reserved bit of the context entry is set.
    CONTEXT_RESERVED = 0x0b, "reserved bits in the context entry";
    /// LSL.2: a reserved bit of a second-stage entry is set.
    TABLE_RESERVED = 0x0c, "reserved bits in a page-table entry";
    /// LCT.5: translated and translation requests are not allowed.
    CONTEXT_BLOCKS = 0x0d, "context entry blocks requests of this type";
    /// LGN.4: the output lies in the interrupt range.
    INTERRUPT_RANGE = 0x0e, "output in the interrupt range";

    /// IRIR.1: a reserved field of the interrupt request is set.
    INTERRUPT_RESERVED = 0x20, "reserved bits in the interrupt request";
    /// IRIR.2: the index is beyond the table.
    INTERRUPT_INDEX = 0x21, "interrupt index beyond the table";
    /// IRTE.2: the entry is not present.
    INTERRUPT_NOT_PRESENT = 0x22, "interrupt entry not present";
    /// IRTE.1: the table cannot be read.
    INTERRUPT_ACCESS = 0x23, "interrupt table not accessible";
    /// IRTE.3: a reserved field of the entry is set.
    INTERRUPT_ENTRY_RESERVED = 0x24, "reserved bits in the interrupt entry";
    /// IRIR.3: interrupts of compatibility format are blocked.
    INTERRUPT_COMPATIBILITY = 0x25, "interrupt of compatibility format blocked";
    /// IRTE.4: the source is not the one that the entry allows.
    INTERRUPT_SOURCE = 0x26, "interrupt from a source not allowed";
    /// IPD.1: the posted-interrupt descriptor cannot be accessed.
    POSTED_ACCESS = 0x27, "posted descriptor not accessible";
    /// IPD.2: a reserved field of the posted-interrupt descriptor is set.
    POSTED_RESERVED = 0x28, "reserved bits in the posted descriptor";

    /// RTA.1: the root table's type is reserved or not supported.
    ROOT_TYPE = 0x30, "root table type invalid";
    /// RTA.2: a request with PASID in legacy mode.
    PASID_IN_LEGACY = 0x31, "request with PASID in legacy mode";
    /// RTA.3: a page request in legacy mode.
    PAGE_REQUEST_IN_LEGACY = 0x32, "page request in legacy mode";
    /// SRT.1: the root table cannot be read.
    SM_ROOT_ACCESS = 0x38, "root table not accessible";
    /// SRT.2: the root entry is not present.
    SM_ROOT_NOT_PRESENT = 0x39, "root entry not present";
    /// SRT.3: a reserved bit of the root entry is set.
    SM_ROOT_RESERVED = 0x3a, "reserved bits in the root entry";
    /// SCT.1: the context table cannot be read.
    SM_CONTEXT_ACCESS = 0x40, "context table not accessible";
    /// SCT.2: the context entry is not present.
    SM_CONTEXT_NOT_PRESENT = 0x41, "context entry not present";
    /// SCT.3: a reserved bit of the context entry is set.
    SM_CONTEXT_RESERVED = 0x42, "reserved bits in the context entry";
    /// SCT.4: the context entry asks for what the unit does not have.
    SM_CONTEXT_INVALID = 0x43, "context entry invalid";
    /// SCT.5: Device-TLB Enable is clear.
    SM_CONTEXT_BLOCKS = 0x44, "context entry blocks requests of this type";
    /// SCT.6: PASID Enable is clear.
    SM_PASID_DISABLED = 0x45, "PASID not enabled";
    /// SCT.7: the PASID is beyond the directory.
    SM_PASID_BEYOND = 0x46, "PASID beyond the directory";
    /// SCT.8: Page Request Enable is clear.
    SM_PAGE_REQUEST_DISABLED = 0x47, "page requests not enabled";
    /// SCT.9: RID_PASID is beyond what the unit has.
    SM_RID_PASID = 0x48, "RID_PASID invalid";
    /// SPD.1: the PASID directory cannot be read.
    SM_DIRECTORY_ACCESS = 0x50, "PASID directory not accessible";
    /// SPD.2: the directory entry is not present.
    SM_DIRECTORY_NOT_PRESENT = 0x51, "PASID directory entry not present";
    /// SPD.3: a reserved bit of the directory entry is set.
    SM_DIRECTORY_RESERVED = 0x52, "reserved bits in the PASID directory entry";
    /// SPT.1: the PASID table cannot be read.
    SM_PASID_ACCESS = 0x58, "PASID table not accessible";
    /// SPT.2: the PASID entry is not present.
    SM_PASID_NOT_PRESENT = 0x59, "PASID entry not present";
    /// SPT.3: a reserved bit of the PASID entry is set.
    SM_PASID_RESERVED = 0x5a, "reserved bits in the PASID entry";
    /// SPT.4: the PASID entry asks for what the unit does not have.
    SM_PASID_INVALID = 0x5b, "PASID entry invalid";
    /// SPT.5: execute requests are not enabled.
    SM_EXECUTE_DISABLED = 0x5c, "execute requests not enabled";
    /// SPT.6: supervisor requests are not enabled.
    SM_SUPERVISOR_DISABLED = 0x5d, "supervisor requests not enabled";
    /// SFS.1: a first-stage table cannot be read.
    SM_FIRST_ACCESS = 0x70, "first-stage table not accessible";
    /// SFS.2: a first-stage entry is not present.
    SM_FIRST_NOT_PRESENT = 0x71, "first-stage entry not present";
    /// SFS.3: a reserved bit of a first-stage entry is set.
    SM_FIRST_RESERVED = 0x72, "reserved bits in a first-stage entry";
    /// SFS.4: the top first-stage table cannot be read.
    SM_FIRST_TOP_ACCESS = 0x73, "top first-stage table not accessible";
    /// SFS.5: the address of a first-stage table is beyond the second stage.
    SM_FIRST_TABLE_BEYOND = 0x74, "first-stage table beyond the second stage";
    /// SFS.6: the second stage forbids to read the top first-stage table.
    SM_FIRST_TOP_READ = 0x75, "top first-stage table not readable";
    /// SFS.7: the second stage forbids to read a first-stage table.
    SM_FIRST_READ = 0x76, "first-stage table not readable";
    /// SFS.8: the second stage forbids to write a first-stage table.
    SM_FIRST_WRITE = 0x77, "first-stage table not writable";
    /// SSS.1: a second-stage table cannot be read.
    SM_SECOND_ACCESS = 0x78, "second-stage table not accessible";
    /// SSS.2: a second-stage entry gives no right at all.
    SM_SECOND_NOT_PRESENT = 0x79, "second-stage entry not present";
    /// SSS.3: a reserved bit of a second-stage entry is set.
    SM_SECOND_RESERVED = 0x7a, "reserved bits in a second-stage entry";
    /// SSS.4: the top second-stage table cannot be read.
    SM_SECOND_TOP_ACCESS = 0x7b, "top second-stage table not accessible";
    /// SGN.1: the address is not canonical.
    SM_NOT_CANONICAL = 0x80, "address not canonical";
    /// SGN.2: a user's request to a supervisor's page.
    SM_USER = 0x81, "user request to a supervisor page";
    /// SGN.3: no right to execute.
    SM_EXECUTE = 0x82, "no right to execute";
    /// SGN.4: the address is beyond the unit's width.
    SM_BEYOND_WIDTH = 0x83, "address beyond the width";
    /// SGN.5: the first stage's output is beyond the second stage's width.
    SM_NESTED_BEYOND_WIDTH = 0x84, "intermediate address beyond the width";
    /// SGN.6: no right to write.
    SM_WRITE = 0x85, "no right to write";
    /// SGN.7: no right to read.
    SM_READ = 0x86, "no right to read";
    /// SGN.8: the output lies in the interrupt range.
    SM_INTERRUPT_RANGE = 0x87, "output in the interrupt range";
    /// SGN.9: a first-stage entry cannot be updated atomically.
    SM_FIRST_UPDATE = 0x90, "first-stage entry cannot be updated";
    /// SGN.10: a second-stage entry cannot be updated atomically.
    SM_SECOND_UPDATE = 0x91, "second-stage entry cannot be updated";
}

impl Reason {
    /// Whether it is a reason of interrupt remapping: its record holds an index
    /// where those of requests hold an address. Section 5.1.4.1.
    pub const fn is_interrupt(self) -> bool {
        self.0 >= 0x20 && self.0 < 0x30
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x} ({})", self.0, self.text())
    }
}
