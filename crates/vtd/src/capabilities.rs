//! What a unit can do, and how its capability registers say so. VT-d 4.1
//! sections 11.4.2 and 11.4.3.

use crate::spec::registers::{Capability, ExtendedCapability, Version, offset};

/// The most fault recording registers that the register page has room for.
pub const MAX_FAULT_RECORDS: u16 = 222;

/// The largest address mask of page-selective invalidation (MAMV): 1 GiB.
pub const MAX_ADDRESS_MASK: u8 = 18;

/// What a unit offers to its guest. The default is legacy mode: second-stage
/// tables of 39 and 48 bits with pages of 4 KiB, 2 MiB and 1 GiB, pass-through,
/// queued invalidation, 8 fault records, caching mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    width: u8,
    pages_2m: bool,
    pages_1g: bool,
    pass_through: bool,
    caching_mode: bool,
    snoop_control: bool,
    queued_invalidation: bool,
    pointers_invalidate: bool,
    fault_records: u16,
    device_tlb: bool,
    page_requests: bool,
    scalable: bool,
    first_stage: bool,
    nested: bool,
    first_stage_5_level: bool,
    pasid_bits: u8,
    execute_requests: bool,
    interrupt_remapping: bool,
    extended_interrupt_mode: bool,
    posted_interrupts: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            width: 48,
            pages_2m: true,
            pages_1g: true,
            pass_through: true,
            caching_mode: true,
            snoop_control: false,
            queued_invalidation: true,
            pointers_invalidate: false,
            fault_records: 8,
            device_tlb: false,
            page_requests: false,
            scalable: false,
            first_stage: true,
            nested: false,
            first_stage_5_level: false,
            pasid_bits: 20,
            execute_requests: false,
            interrupt_remapping: false,
            extended_interrupt_mode: false,
            posted_interrupts: false,
        }
    }
}

impl Capabilities {
    /// The widest second-stage input, 39, 48 or 57 bits; narrower ones of these
    /// are offered too (CAP.MGAW, CAP.SAGAW).
    #[must_use]
    pub const fn address_width(mut self, bits: u8) -> Self {
        self.width = bits;
        self
    }

    /// Adds scalable mode: PASID tables, first stage, requests with PASID
    /// (ECAP.SMTS, FSTS, SSTS, PASID).
    #[must_use]
    pub const fn scalable(mut self) -> Self {
        self.scalable = true;
        self
    }

    /// Takes the first stage away (ECAP.FSTS): the guest has second-stage tables
    /// in scalable mode too, where caching mode counts, so that its domains can
    /// be followed. Section 6.1: what is not present in a first stage is never
    /// cached, and so never invalidated.
    #[must_use]
    pub const fn without_first_stage(mut self) -> Self {
        self.first_stage = false;
        self
    }

    /// Adds nested translation (ECAP.NEST); needs scalable mode.
    #[must_use]
    pub const fn nested(mut self) -> Self {
        self.nested = true;
        self
    }

    /// Adds first-stage tables of 5 levels (CAP.FS5LP); needs scalable mode.
    #[must_use]
    pub const fn first_stage_5_level(mut self) -> Self {
        self.first_stage_5_level = true;
        self
    }

    /// How many bits a PASID has, 1 to 20 (ECAP.PSS); 20 unless it is said.
    #[must_use]
    pub const fn pasid_bits(mut self, bits: u8) -> Self {
        self.pasid_bits = bits;
        self
    }

    /// Tells requests to execute from those to read (ECAP.ERS); needs scalable
    /// mode.
    #[must_use]
    pub const fn execute_requests(mut self) -> Self {
        self.execute_requests = true;
        self
    }

    /// Takes pages of 1 GiB away (CAP.SSLPS, CAP.FS1GP).
    #[must_use]
    pub const fn without_1g_pages(mut self) -> Self {
        self.pages_1g = false;
        self
    }

    /// Takes pages of 2 MiB and of 1 GiB away (CAP.SSLPS, CAP.FS1GP).
    #[must_use]
    pub const fn without_large_pages(mut self) -> Self {
        self.pages_2m = false;
        self.pages_1g = false;
        self
    }

    /// Takes pass-through entries away (ECAP.PT).
    #[must_use]
    pub const fn without_pass_through(mut self) -> Self {
        self.pass_through = false;
        self
    }

    /// Takes caching mode away (CAP.CM): the guest need not invalidate what was
    /// not present, so that nobody can follow its domains.
    #[must_use]
    pub const fn without_caching_mode(mut self) -> Self {
        self.caching_mode = false;
        self
    }

    /// Lets page tables ask for snooping (ECAP.SC).
    #[must_use]
    pub const fn snoop_control(mut self) -> Self {
        self.snoop_control = true;
        self
    }

    /// Takes queued invalidation away (ECAP.QI): registers alone remain.
    #[must_use]
    pub const fn without_queued_invalidation(mut self) -> Self {
        self.queued_invalidation = false;
        self
    }

    /// Lets the commands that set a table's address invalidate what is cached
    /// of the old one (CAP.ESRTPS, CAP.ESIRTPS).
    #[must_use]
    pub const fn pointers_invalidate(mut self) -> Self {
        self.pointers_invalidate = true;
        self
    }

    /// How many fault recording registers there are, 1 to
    /// [`MAX_FAULT_RECORDS`] (CAP.NFR).
    #[must_use]
    pub const fn fault_records(mut self, records: u16) -> Self {
        self.fault_records = records;
        self
    }

    /// Adds translation requests and device-TLBs (ECAP.DT); needs queued
    /// invalidation.
    #[must_use]
    pub const fn device_tlb(mut self) -> Self {
        self.device_tlb = true;
        self
    }

    /// Adds page requests (ECAP.PRS, ECAP.PDS); needs device-TLBs and scalable
    /// mode.
    #[must_use]
    pub const fn page_requests(mut self) -> Self {
        self.page_requests = true;
        self
    }

    /// Adds interrupt remapping (ECAP.IR); needs queued invalidation.
    #[must_use]
    pub const fn interrupt_remapping(mut self) -> Self {
        self.interrupt_remapping = true;
        self
    }

    /// Adds 32-bit APIC ids (ECAP.EIM); needs interrupt remapping.
    #[must_use]
    pub const fn extended_interrupt_mode(mut self) -> Self {
        self.extended_interrupt_mode = true;
        self
    }

    /// Adds posted interrupts (CAP.PI); needs interrupt remapping.
    #[must_use]
    pub const fn posted_interrupts(mut self) -> Self {
        self.posted_interrupts = true;
        self
    }
}

impl Capabilities {
    /// Bits of the widest second-stage input.
    pub const fn width(&self) -> u8 {
        self.width
    }

    /// Whether scalable mode is offered.
    pub const fn is_scalable(&self) -> bool {
        self.scalable
    }

    /// Whether a first stage is offered.
    pub const fn has_first_stage(&self) -> bool {
        self.scalable && self.first_stage
    }

    /// Whether nested translation is offered.
    pub const fn has_nested(&self) -> bool {
        self.nested
    }

    /// Whether first-stage tables of 5 levels are offered.
    pub const fn has_first_stage_5_level(&self) -> bool {
        self.first_stage_5_level
    }

    /// Bits of a PASID; 0 without scalable mode.
    pub const fn pasid_width(&self) -> u8 {
        if self.scalable { self.pasid_bits } else { 0 }
    }

    /// Whether requests to execute are told from those to read.
    pub const fn has_execute_requests(&self) -> bool {
        self.execute_requests
    }

    /// Whether pages of 2 MiB are offered.
    pub const fn has_2m_pages(&self) -> bool {
        self.pages_2m
    }

    /// Whether pages of 1 GiB are offered.
    pub const fn has_1g_pages(&self) -> bool {
        self.pages_1g
    }

    /// Whether pass-through entries are offered.
    pub const fn has_pass_through(&self) -> bool {
        self.pass_through
    }

    /// Whether the guest invalidates what was not present too.
    pub const fn has_caching_mode(&self) -> bool {
        self.caching_mode
    }

    /// Whether page tables may ask for snooping.
    pub const fn has_snoop_control(&self) -> bool {
        self.snoop_control
    }

    /// Whether queued invalidation is offered.
    pub const fn has_queued_invalidation(&self) -> bool {
        self.queued_invalidation
    }

    /// Whether setting a table's address invalidates.
    pub const fn has_invalidating_pointers(&self) -> bool {
        self.pointers_invalidate
    }

    /// How many fault recording registers there are.
    pub const fn fault_record_count(&self) -> u16 {
        self.fault_records
    }

    /// Whether device-TLBs are offered.
    pub const fn has_device_tlb(&self) -> bool {
        self.device_tlb
    }

    /// Whether page requests are offered.
    pub const fn has_page_requests(&self) -> bool {
        self.page_requests
    }

    /// Whether interrupt remapping is offered.
    pub const fn has_interrupt_remapping(&self) -> bool {
        self.interrupt_remapping
    }

    /// Whether 32-bit APIC ids are offered.
    pub const fn has_extended_interrupt_mode(&self) -> bool {
        self.extended_interrupt_mode
    }

    /// Whether posted interrupts are offered.
    pub const fn has_posted_interrupts(&self) -> bool {
        self.posted_interrupts
    }

    /// What contradicts what, if something does.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        let rules = [
            (
                matches!(self.width, 39 | 48 | 57),
                "the address width is 39, 48 or 57",
            ),
            (
                self.fault_records >= 1 && self.fault_records <= MAX_FAULT_RECORDS,
                "there are 1 to 222 fault records",
            ),
            (
                self.pasid_bits >= 1 && self.pasid_bits <= 20,
                "a PASID has 1 to 20 bits",
            ),
            (
                self.queued_invalidation || !self.scalable,
                "scalable mode needs queued invalidation",
            ),
            (
                self.queued_invalidation || !self.device_tlb,
                "device-TLBs need queued invalidation",
            ),
            (
                self.queued_invalidation || !self.interrupt_remapping,
                "interrupt remapping needs queued invalidation",
            ),
            (
                self.has_first_stage() || !self.nested,
                "nested translation needs scalable mode and a first stage",
            ),
            (
                self.has_first_stage() || !self.first_stage_5_level,
                "a first stage needs scalable mode",
            ),
            (
                self.scalable || !self.execute_requests,
                "requests to execute need scalable mode",
            ),
            (
                self.scalable || !self.page_requests,
                "page requests need scalable mode",
            ),
            (
                self.device_tlb || !self.page_requests,
                "page requests need device-TLBs",
            ),
            (
                self.interrupt_remapping || !self.extended_interrupt_mode,
                "extended interrupt mode needs interrupt remapping",
            ),
            (
                self.interrupt_remapping || !self.posted_interrupts,
                "posted interrupts need interrupt remapping",
            ),
        ];
        let broken = rules.iter().find(|(holds, _)| !holds);
        broken.map(|(_, rule)| *rule)
    }

    /// The Version Register: 1.0, the version of the registers' layout.
    pub(crate) const fn version(&self) -> u32 {
        Version::new().with_major(1).into_bits()
    }

    /// The Capability Register.
    pub fn capability_register(&self) -> u64 {
        let widths = match self.width {
            39 => 0b0010,
            48 => 0b0110,
            _ => 0b1110,
        };
        let records = u8::try_from(self.fault_records.saturating_sub(1)).unwrap_or(u8::MAX);
        Capability::new()
            .with_domains(6)
            .with_caching_mode(self.caching_mode)
            .with_guest_widths(widths)
            .with_max_width(self.width.saturating_sub(1) & 0x3f)
            .with_fault_offset(offset::FRCD >> 4)
            .with_second_stage_pages(u8::from(self.pages_2m) | u8::from(self.pages_1g) << 1)
            .with_page_selective(true)
            .with_fault_records(records)
            .with_max_address_mask(MAX_ADDRESS_MASK)
            .with_write_draining(true)
            .with_read_draining(true)
            .with_first_stage_1g(self.has_first_stage() && self.pages_1g)
            .with_posted_interrupts(self.posted_interrupts)
            .with_first_stage_5_level(self.first_stage_5_level)
            .with_interrupt_pointer_invalidates(
                self.pointers_invalidate && self.interrupt_remapping,
            )
            .with_root_pointer_invalidates(self.pointers_invalidate)
            .into_bits()
    }

    /// The Extended Capability Register.
    pub fn extended_capability_register(&self) -> u64 {
        let handles = if self.interrupt_remapping { 15 } else { 0 };
        let pasid = self.pasid_width().saturating_sub(1) & 0x1f;
        ExtendedCapability::new()
            .with_coherent(true)
            .with_queued_invalidation(self.queued_invalidation)
            .with_device_tlb(self.device_tlb)
            .with_interrupt_remapping(self.interrupt_remapping)
            .with_extended_interrupt_mode(self.extended_interrupt_mode)
            .with_pass_through(self.pass_through)
            .with_snoop_control(self.snoop_control)
            .with_iotlb_offset(offset::IVA >> 4)
            .with_max_handle_mask(handles)
            .with_nested(self.nested)
            .with_page_requests(self.page_requests)
            .with_execute_requests(self.execute_requests)
            .with_supervisor_requests(self.scalable)
            .with_extended_accessed(self.has_first_stage())
            .with_pasid_size(pasid)
            .with_pasid(self.scalable)
            .with_page_request_draining(self.page_requests)
            .with_scalable_mode(self.scalable)
            .with_second_stage_accessed_dirty(self.scalable)
            .with_second_stage(self.scalable)
            .with_first_stage(self.has_first_stage())
            .with_scalable_coherent(self.scalable)
            .with_rid_pasid(self.scalable)
            .into_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_legacy_default_is_what_linux_is_known_to_take() {
        // 0xd2008c222f0402 and 0xf43 booted Debian's kernels; here are more
        // domains (ND), 39 bits too (SAGAW), caching mode and 8 records.
        let known = 0x00d2_008c_222f_0402_u64;
        let ours = Capabilities::default().capability_register();
        let more = 6 | 0b0110 << 8 | 1 << 7 | 7 << 40;
        assert_eq!(ours, known & !(7 | 0x1f << 8) | more);
        assert_eq!(
            Capabilities::default().extended_capability_register(),
            0xf43
        );
    }

    #[test]
    fn scalable_mode_is_what_linux_is_known_to_take() {
        // 0x1c998a0000f43, without page requests (bit 29) and with what that
        // unit lacked: extended accessed (34), second-stage flags (45),
        // RID_PASID (49).
        let ours = Capabilities::default()
            .scalable()
            .extended_capability_register();
        assert_eq!(
            ours,
            0x1_c998_a000_0f43 & !(1 << 29) | 1 << 34 | 1 << 45 | 1 << 49
        );
        let cap = Capabilities::default().scalable().capability_register();
        assert_ne!(cap & 1 << 56, 0);
    }

    #[test]
    fn contradictions_are_named() {
        let fine = Capabilities::default();
        assert_eq!(fine.contradiction(), None);
        assert_eq!(
            fine.scalable()
                .nested()
                .device_tlb()
                .page_requests()
                .contradiction(),
            None
        );
        for broken in [
            fine.address_width(40),
            fine.fault_records(0),
            fine.fault_records(223),
            fine.scalable().pasid_bits(21),
            fine.nested(),
            fine.first_stage_5_level(),
            fine.device_tlb().page_requests(),
            fine.scalable().page_requests(),
            fine.execute_requests(),
            fine.extended_interrupt_mode(),
            fine.posted_interrupts(),
            fine.without_queued_invalidation().scalable(),
            fine.without_queued_invalidation().device_tlb(),
            fine.without_queued_invalidation().interrupt_remapping(),
        ] {
            assert!(broken.contradiction().is_some(), "{broken:?}");
        }
    }
}
