//! Fault reasons: why a request was refused, as the fault recording registers
//! say it. VT-d 4.1 section 7.1.3 and appendix A.

/// A fault reason, with the specification's condition code in its comment. A
/// condition is qualified if Fault Processing Disable of the structures used
/// keeps it from being recorded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reason(pub u8);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        impl Reason {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// What it means, for a person.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    _ => "an unknown reason",
                }
            }
        }
    };
}

reasons! {
    /// LRT.2.
    ROOT_ABSENT = 0x01, "the root entry is not present";
    /// LCT.2. Qualified.
    CONTEXT_ABSENT = 0x02, "the context entry is not present";
    /// LCT.4: AW or TT not supported, or the second stage's root cannot be
    /// read. Qualified.
    CONTEXT_INVALID = 0x03, "the context entry is invalid";
    /// LGN.1: beyond the lesser of MGAW and AW. Qualified.
    ADDRESS_WIDTH = 0x04, "the address is beyond the domain's width";
    /// LGN.2. Qualified.
    NO_WRITE = 0x05, "the second stage does not allow writing";
    /// LGN.3. Qualified.
    NO_READ = 0x06, "the second stage does not allow reading";
    /// LSS.1. Qualified.
    SECOND_ACCESS = 0x07, "a second-stage entry cannot be read";
    /// LRT.1.
    ROOT_ACCESS = 0x08, "the root entry cannot be read";
    /// LCT.1.
    CONTEXT_ACCESS = 0x09, "the context entry cannot be read";
    /// LRT.3.
    ROOT_RESERVED = 0x0a, "a reserved bit is set in the root entry";
    /// LCT.3. Qualified.
    CONTEXT_RESERVED = 0x0b, "a reserved bit is set in the context entry";
    /// LSS.2. Qualified.
    SECOND_RESERVED = 0x0c, "a reserved bit is set in a second-stage entry";
    /// LCT.5. Qualified.
    TYPE_BLOCKED = 0x0d, "the context entry serves no device-TLB";
    /// LGN.4. Qualified.
    INTERRUPT_RANGE = 0x0e, "the output lies in the interrupt range";

    /// IRM.1: a reserved field is set in the request.
    REMAP_REQUEST_RESERVED = 0x20, "a reserved bit is set in the interrupt request";
    /// IRM.2.
    REMAP_INDEX = 0x21, "the interrupt index is beyond the table";
    /// IRM.3. Qualified.
    REMAP_ABSENT = 0x22, "the interrupt entry is not present";
    /// IRM.4.
    REMAP_ACCESS = 0x23, "the interrupt entry cannot be read";
    /// IRM.5. Qualified.
    REMAP_RESERVED = 0x24, "a reserved bit is set in the interrupt entry";
    /// IRM.6.
    REMAP_COMPATIBILITY = 0x25, "interrupts of the compatibility format are blocked";
    /// IRM.7. Qualified.
    REMAP_SOURCE = 0x26, "the interrupt's source is not the entry's";
    /// IPD.1. Qualified.
    POSTED_ACCESS = 0x27, "the posted-interrupt descriptor cannot be accessed";
    /// IPD.2. Qualified.
    POSTED_RESERVED = 0x28, "a reserved bit is set in the posted-interrupt descriptor";

    /// RTA.1.
    ROOT_TABLE_INVALID = 0x30, "the root table address register is invalid";
    /// RTA.2.
    PASID_IN_LEGACY = 0x31, "a request with PASID meets a legacy root table";
    /// RTA.3.
    PAGE_REQUEST_IN_LEGACY = 0x32, "a page request meets a legacy root table";
    /// SRT.1.
    SM_ROOT_ACCESS = 0x38, "the root entry cannot be read";
    /// SRT.2.
    SM_ROOT_ABSENT = 0x39, "the root entry is not present";
    /// SRT.3.
    SM_ROOT_RESERVED = 0x3a, "a reserved bit is set in the root entry";
    /// SCT.1.
    SM_CONTEXT_ACCESS = 0x40, "the context entry cannot be read";
    /// SCT.2. Qualified.
    SM_CONTEXT_ABSENT = 0x41, "the context entry is not present";
    /// SCT.3. Qualified.
    SM_CONTEXT_RESERVED = 0x42, "a reserved bit is set in the context entry";
    /// SCT.4. Qualified.
    SM_CONTEXT_INVALID = 0x43, "the context entry is invalid";
    /// SCT.5. Qualified.
    SM_NO_DEVICE_TLB = 0x44, "the context entry serves no device-TLB";
    /// SCT.6. Qualified.
    SM_NO_PASID = 0x45, "the context entry takes no PASID";
    /// SCT.7. Qualified.
    SM_PASID_BEYOND = 0x46, "the PASID is beyond the directory";
    /// SCT.8. Qualified.
    SM_NO_PAGE_REQUESTS = 0x47, "the context entry takes no page request";
    /// SCT.9. Qualified.
    SM_RID_PASID = 0x48, "RID_PASID is beyond the directory";
    /// SPD.1.
    SM_DIRECTORY_ACCESS = 0x50, "the PASID directory entry cannot be read";
    /// SPD.2. Qualified.
    SM_DIRECTORY_ABSENT = 0x51, "the PASID directory entry is not present";
    /// SPD.3. Qualified.
    SM_DIRECTORY_RESERVED = 0x52, "a reserved bit is set in the PASID directory entry";
    /// SPT.1.
    SM_PASID_ACCESS = 0x58, "the PASID table entry cannot be read";
    /// SPT.2. Qualified.
    SM_PASID_ABSENT = 0x59, "the PASID table entry is not present";
    /// SPT.3. Qualified.
    SM_PASID_RESERVED = 0x5a, "a reserved bit is set in the PASID table entry";
    /// SPT.4. Qualified.
    SM_PASID_INVALID = 0x5b, "the PASID table entry is invalid";
    /// SPT.5. Qualified.
    SM_NO_EXECUTE_REQUESTS = 0x5c, "the PASID table entry takes no request to execute";
    /// SPT.6. Qualified.
    SM_NO_SUPERVISOR = 0x5d, "the PASID table entry takes no privileged request";
    /// SFS.1. Qualified.
    FIRST_ACCESS = 0x70, "a first-stage entry cannot be read";
    /// SFS.2. Qualified.
    FIRST_ABSENT = 0x71, "a first-stage entry is not present";
    /// SFS.3. Qualified.
    FIRST_RESERVED = 0x72, "a reserved bit is set in a first-stage entry";
    /// SFS.4. Qualified.
    FIRST_ROOT_ACCESS = 0x73, "the first stage's root table cannot be read";
    /// SFS.5. Qualified.
    FIRST_TABLE_WIDTH = 0x74, "a first-stage table lies beyond the second stage's width";
    /// SFS.6. Qualified.
    FIRST_ROOT_NO_READ = 0x75, "the second stage does not allow reading the first's root table";
    /// SFS.7. Qualified.
    FIRST_NO_READ = 0x76, "the second stage does not allow reading a first-stage table";
    /// SFS.8. Qualified.
    FIRST_NO_WRITE = 0x77, "the second stage does not allow setting a first-stage flag";
    /// SSS.1. Qualified.
    SM_SECOND_ACCESS = 0x78, "a second-stage entry cannot be read";
    /// SSS.2. Qualified.
    SM_SECOND_ABSENT = 0x79, "a second-stage entry allows nothing";
    /// SSS.3. Qualified.
    SM_SECOND_RESERVED = 0x7a, "a reserved bit is set in a second-stage entry";
    /// SSS.4. Qualified.
    SM_SECOND_ROOT_ACCESS = 0x7b, "the second stage's root table cannot be read";
    /// SSS.5. Qualified.
    SM_SECOND_NO_SNOOP = 0x7c, "a second-stage flag is to be set without snooping";
    /// SGN.1. Qualified.
    NOT_CANONICAL = 0x80, "the address is not canonical";
    /// SGN.2. Qualified.
    NOT_USER = 0x81, "the first stage does not allow user requests";
    /// SGN.3. Qualified.
    NO_EXECUTE = 0x82, "the page does not allow execution";
    /// SGN.4. Qualified.
    SM_ADDRESS_WIDTH = 0x83, "the address is beyond the domain's width";
    /// SGN.5. Qualified.
    SM_NESTED_WIDTH = 0x84, "the first stage's output is beyond the second's width";
    /// SGN.6. Qualified.
    SM_NO_WRITE = 0x85, "the page does not allow writing";
    /// SGN.7. Qualified.
    SM_NO_READ = 0x86, "the page does not allow reading";
    /// SGN.8. Qualified.
    SM_INTERRUPT_RANGE = 0x87, "the output lies in the interrupt range";
    /// SFS.9. Qualified.
    FIRST_NO_SNOOP = 0x90, "a first-stage flag is to be set without snooping";
    /// SFS.10. Qualified.
    FIRST_FLAG = 0x91, "a first-stage flag cannot be set";
}

impl Reason {
    /// Whether Fault Processing Disable of the structures that a request used
    /// keeps the fault from being recorded.
    pub const fn is_qualified(self) -> bool {
        !matches!(
            self,
            Self::ROOT_ABSENT
                | Self::ROOT_ACCESS
                | Self::CONTEXT_ACCESS
                | Self::ROOT_RESERVED
                | Self::REMAP_REQUEST_RESERVED
                | Self::REMAP_INDEX
                | Self::REMAP_ACCESS
                | Self::REMAP_COMPATIBILITY
                | Self::ROOT_TABLE_INVALID
                | Self::PASID_IN_LEGACY
                | Self::PAGE_REQUEST_IN_LEGACY
                | Self::SM_ROOT_ACCESS
                | Self::SM_ROOT_ABSENT
                | Self::SM_ROOT_RESERVED
                | Self::SM_CONTEXT_ACCESS
                | Self::SM_DIRECTORY_ACCESS
                | Self::SM_PASID_ACCESS
        )
    }

    /// Whether an ATS translation request that meets it is answered with
    /// success and without rights, and nothing is recorded: what a page request
    /// may cure.
    pub const fn is_recoverable(self) -> bool {
        matches!(
            self,
            Self::NO_WRITE
                | Self::NO_READ
                | Self::FIRST_ABSENT
                | Self::SM_SECOND_ABSENT
                | Self::FIRST_ROOT_NO_READ
                | Self::FIRST_NO_READ
                | Self::FIRST_NO_WRITE
                | Self::NOT_USER
                | Self::NO_EXECUTE
                | Self::SM_NO_WRITE
                | Self::SM_NO_READ
        )
    }
}
