//! What a unit can do and how it is set, as its registers say it. VT-d 4.1 sections 11.4.2 and 11.4.3.

/// A unit, as far as translation depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    /// Bits of a guest address (MGAW + 1).
    pub(crate) guest_bits: u32,
    /// Bits of a physical address (HAW), which no register says.
    pub(crate) host_bits: u32,
    /// SAGAW: bit 1 for 39 bits, 2 for 48, 3 for 57.
    pub(crate) widths: u64,
    pub(crate) second_2m: bool,
    pub(crate) second_1g: bool,
    pub(crate) first_1g: bool,
    pub(crate) first_5_levels: bool,
    pub(crate) device_tlb: bool,
    pub(crate) pass_through: bool,
    pub(crate) snoop: bool,
    pub(crate) nested: bool,
    pub(crate) execute_requests: bool,
    pub(crate) supervisor_requests: bool,
    pub(crate) extended_accessed: bool,
    pub(crate) second_accessed: bool,
    /// Bits of a PASID (PSS + 1), 0 without PASIDs.
    pub(crate) pasid_bits: u32,
    pub(crate) scalable: bool,
    pub(crate) first_stage: bool,
    pub(crate) second_stage: bool,
    pub(crate) rid_pasid: bool,
    pub(crate) rid_privileged: bool,
    pub(crate) page_requests: bool,
    /// RTADDR_REG as the last Set Root Table Pointer found it.
    pub(crate) root: u64,
    /// GSTS.TES.
    pub(crate) translates: bool,
}

impl Unit {
    /// The unit with these CAP_REG and ECAP_REG, translation off.
    pub(crate) fn new(cap: u64, ecap: u64, host_bits: u32) -> Self {
        let cap_bit = |bit: u32| cap >> bit & 1 != 0;
        let ecap_bit = |bit: u32| ecap >> bit & 1 != 0;
        Self {
            guest_bits: (cap >> 16 & 0x3f) as u32 + 1,
            host_bits,
            widths: cap >> 8 & 0x1f,
            second_2m: cap_bit(34),
            second_1g: cap_bit(35),
            first_1g: cap_bit(56),
            first_5_levels: cap_bit(60),
            device_tlb: ecap_bit(2),
            pass_through: ecap_bit(6),
            snoop: ecap_bit(7),
            nested: ecap_bit(26),
            execute_requests: ecap_bit(30),
            supervisor_requests: ecap_bit(31),
            extended_accessed: ecap_bit(34),
            second_accessed: ecap_bit(45),
            pasid_bits: if ecap_bit(40) {
                (ecap >> 35 & 0x1f) as u32 + 1
            } else {
                0
            },
            scalable: ecap_bit(43),
            second_stage: ecap_bit(46),
            first_stage: ecap_bit(47),
            rid_pasid: ecap_bit(49),
            rid_privileged: ecap_bit(53),
            page_requests: ecap_bit(29),
            root: 0,
            translates: false,
        }
    }
}
