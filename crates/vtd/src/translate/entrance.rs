//! From a source to its domain: root, context, PASID directory and PASID table
//! entries. VT-d 4.1 sections 3.4 and 7.1.3.

use iogate_dma::{Kind as RequestKind, Pasid, Source, Width};

use super::domain::{Domain, Head};
use crate::Vtd;
use crate::spec::context::{
    CONTEXT_ENTRY, ContextHigh, ContextLow, SCALABLE_CONTEXT_ENTRY, ScalableHigh, ScalableLow,
    TranslationType,
};
use crate::spec::fault::Reason;
use crate::spec::pasid::{
    DIRECTORY_ENTRY, DirectoryEntry, PASID_ENTRY, PasidHigh, PasidLow, PasidMiddle, Stages,
};
use crate::spec::registers::{RootTableAddress, TableMode};
use crate::spec::root::{ROOT_ENTRY, RootHalf};

/// Why a request does not come as far as page tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Denied {
    pub(crate) reason: Reason,
    /// Fault Processing Disable, of a structure read so far.
    pub(crate) quiet: bool,
}

impl Denied {
    const fn of(reason: Reason, quiet: bool) -> Self {
        Self { reason, quiet }
    }
}

impl Vtd {
    /// Reads the structures for `source` as they are now. Translation is on.
    /// `kind` is what the request is, of which some are blocked early.
    pub(crate) fn enter(&self, source: Source, kind: RequestKind) -> Result<Domain, Denied> {
        let root = RootTableAddress::from_bits(self.live.root());
        match root.mode() {
            TableMode::Legacy if source.pasid.is_some() => {
                Err(Denied::of(Reason::PASID_IN_LEGACY, false))
            }
            TableMode::Legacy => self.enter_legacy(root, source, kind),
            TableMode::Scalable if self.limits.scalable => self.enter_scalable(root, source, kind),
            _ => Err(Denied::of(Reason::ROOT_TABLE_INVALID, false)),
        }
    }

    fn enter_legacy(
        &self,
        root: RootTableAddress,
        source: Source,
        kind: RequestKind,
    ) -> Result<Domain, Denied> {
        let deny = |reason| Denied::of(reason, false);
        let at = entry(
            root.address(),
            u64::from(source.requester.bus()),
            ROOT_ENTRY,
        );
        let half = RootHalf::from_bits(self.word(at, 0).ok_or(deny(Reason::ROOT_ACCESS))?);
        let upper = self.word(at, 1).ok_or(deny(Reason::ROOT_ACCESS))?;
        if !half.present() {
            return Err(deny(Reason::ROOT_ABSENT));
        }
        if half.reserved() != 0 || upper != 0 || !self.limits.fits(half.address()) {
            return Err(deny(Reason::ROOT_RESERVED));
        }
        let [_, function] = source.requester.0.to_be_bytes();
        let at = entry(half.address(), u64::from(function), CONTEXT_ENTRY);
        let low = self.word(at, 0).ok_or(deny(Reason::CONTEXT_ACCESS))?;
        let high = self.word(at, 1).ok_or(deny(Reason::CONTEXT_ACCESS))?;
        let (low, high) = (ContextLow::from_bits(low), ContextHigh::from_bits(high));
        let deny = |reason| Denied::of(reason, low.fault_disable());
        if !low.present() {
            return Err(deny(Reason::CONTEXT_ABSENT));
        }
        let reserved = low.reserved() != 0 || high.reserved_low() || high.reserved() != 0;
        if reserved || !self.limits.fits(low.address()) {
            return Err(deny(Reason::CONTEXT_RESERVED));
        }
        let supported = match low.translation_type() {
            TranslationType::Untranslated => true,
            TranslationType::DeviceTlb => self.limits.device_tlb,
            TranslationType::PassThrough => self.limits.pass_through,
            TranslationType::Reserved => false,
        };
        if !supported || self.limits.levels(high.width()).is_none() {
            return Err(deny(Reason::CONTEXT_INVALID));
        }
        let device_tlb = low.translation_type() == TranslationType::DeviceTlb;
        if kind != RequestKind::Untranslated && !device_tlb {
            return Err(deny(Reason::TYPE_BLOCKED));
        }
        let passes = low.translation_type() == TranslationType::PassThrough;
        Ok(Domain {
            head: Head::new()
                .with_id(high.domain())
                .with_has_second(!passes)
                .with_second_width(high.width())
                .with_quiet(low.fault_disable())
                .with_device_tlb(device_tlb),
            second: if passes { 0 } else { low.address() },
            first: 0,
        })
    }

    fn enter_scalable(
        &self,
        root: RootTableAddress,
        source: Source,
        kind: RequestKind,
    ) -> Result<Domain, Denied> {
        let (directory, head) = self.scalable_context(root, source, kind)?;
        self.enter_pasid(directory, head)
    }

    /// As far as the context entry: the PASID directory that it names, and what
    /// it says itself. Page requests are looked at no further.
    pub(crate) fn scalable_context(
        &self,
        root: RootTableAddress,
        source: Source,
        kind: RequestKind,
    ) -> Result<(u64, Head), Denied> {
        let deny = |reason| Denied::of(reason, false);
        let at = entry(
            root.address(),
            u64::from(source.requester.bus()),
            ROOT_ENTRY,
        );
        let [_, function] = source.requester.0.to_be_bytes();
        let (half, function) = (u64::from(function >> 7), u64::from(function & 0x7f));
        let half = self.word(at, half).ok_or(deny(Reason::SM_ROOT_ACCESS))?;
        let half = RootHalf::from_bits(half);
        if !half.present() {
            return Err(deny(Reason::SM_ROOT_ABSENT));
        }
        if half.reserved() != 0 || !self.limits.fits(half.address()) {
            return Err(deny(Reason::SM_ROOT_RESERVED));
        }
        let at = entry(half.address(), function, SCALABLE_CONTEXT_ENTRY);
        let words = self.words::<4>(at).ok_or(deny(Reason::SM_CONTEXT_ACCESS))?;
        let [low, high, rest @ ..] = words;
        let (low, high) = (ScalableLow::from_bits(low), ScalableHigh::from_bits(high));
        let deny = |reason| Denied::of(reason, low.fault_disable());
        if !low.present() {
            return Err(deny(Reason::SM_CONTEXT_ABSENT));
        }
        let beyond_capabilities = low.device_tlb() && !self.limits.device_tlb
            || low.pasid() && !self.limits.pasid
            || low.page_requests() && !self.limits.page_requests;
        if low.reserved() != 0
            || high.rid_privileged()
            || high.reserved() != 0
            || rest != [0; 2]
            || beyond_capabilities
            || !self.limits.fits(low.address())
        {
            return Err(deny(Reason::SM_CONTEXT_RESERVED));
        }
        if kind != RequestKind::Untranslated && !low.device_tlb() {
            return Err(deny(Reason::SM_NO_DEVICE_TLB));
        }
        let pasid = match source.pasid.map(Pasid::as_u32) {
            Some(_) if !low.pasid() => return Err(deny(Reason::SM_NO_PASID)),
            Some(pasid) if pasid >= low.pasids() => return Err(deny(Reason::SM_PASID_BEYOND)),
            Some(pasid) => pasid,
            None if high.rid_pasid() >= low.pasids() => return Err(deny(Reason::SM_RID_PASID)),
            None => high.rid_pasid(),
        };
        let head = Head::new()
            .with_scalable(true)
            .with_pasid(pasid)
            .with_quiet(low.fault_disable())
            .with_device_tlb(low.device_tlb())
            .with_page_requests(low.page_requests());
        Ok((low.address(), head))
    }

    /// Through the PASID directory at `directory`, for `head`'s PASID.
    fn enter_pasid(&self, directory: u64, head: Head) -> Result<Domain, Denied> {
        let deny = |reason| Denied::of(reason, head.quiet());
        let pasid = u64::from(head.pasid());
        let at = entry(directory, pasid >> 6, DIRECTORY_ENTRY);
        let found = self.word(at, 0).ok_or(deny(Reason::SM_DIRECTORY_ACCESS))?;
        let found = DirectoryEntry::from_bits(found);
        let head = head.with_quiet(head.quiet() || found.fault_disable());
        let deny = |reason| Denied::of(reason, head.quiet());
        if !found.present() {
            return Err(deny(Reason::SM_DIRECTORY_ABSENT));
        }
        if found.reserved() != 0 || !self.limits.fits(found.address()) {
            return Err(deny(Reason::SM_DIRECTORY_RESERVED));
        }
        let at = entry(found.address(), pasid & 0x3f, PASID_ENTRY);
        let words = self.words::<8>(at).ok_or(deny(Reason::SM_PASID_ACCESS))?;
        let [low, middle, high, rest @ ..] = words;
        let (low, middle) = (PasidLow::from_bits(low), PasidMiddle::from_bits(middle));
        let high = PasidHigh::from_bits(high);
        let head = head.with_quiet(head.quiet() || low.fault_disable());
        let deny = |reason| Denied::of(reason, head.quiet());
        if !low.present() {
            return Err(deny(Reason::SM_PASID_ABSENT));
        }
        let limits = &self.limits;
        let (first, second) = match low.stages() {
            Stages::First if limits.first => (true, false),
            Stages::Second if limits.second => (false, true),
            Stages::Nested if limits.nested => (true, true),
            Stages::PassThrough if limits.pass_through => (false, false),
            _ => return Err(deny(Reason::SM_PASID_INVALID)),
        };
        let second_reserved =
            !limits.fits(low.address()) || low.second_flags() && !limits.second_flags;
        let first_reserved = !limits.fits(high.address())
            || high.supervisor() && !limits.supervisor
            || high.execute() && !limits.execute
            || high.extended_accessed() && !limits.extended_accessed
            || high.reserved() != 0;
        if low.reserved_low()
            || low.reserved() != 0
            || middle.reserved() != 0
            || middle.page_snoop() && !limits.snoop_control
            || rest != [0; 5]
            || second && second_reserved
            || first && first_reserved
        {
            return Err(deny(Reason::SM_PASID_RESERVED));
        }
        let first_levels = match high.levels() {
            0 => true,
            1 => limits.first_five,
            _ => false,
        };
        if second && limits.levels(low.width()).is_none() || first && !first_levels {
            return Err(deny(Reason::SM_PASID_INVALID));
        }
        let mut domain = Domain {
            head: head
                .with_id(middle.domain())
                .with_has_first(first)
                .with_has_second(second),
            second: 0,
            first: 0,
        };
        if second {
            domain.second = low.address();
            domain.head = domain
                .head
                .with_second_width(low.width())
                .with_second_flags(low.second_flags());
        }
        if first {
            domain.first = high.address();
            domain.head = domain
                .head
                .with_first_five(high.levels() == 1)
                .with_supervisor(high.supervisor())
                .with_execute(high.execute())
                .with_write_protect(high.write_protect())
                .with_no_execute(high.no_execute())
                .with_extended_accessed(high.extended_accessed());
        }
        Ok(domain)
    }

    /// The qword with this index of the entry at `at`.
    fn word(&self, at: u64, index: u64) -> Option<u64> {
        let at = at.wrapping_add(index.wrapping_mul(8));
        self.ram.load(at, Width::Qword).ok()
    }

    fn words<const N: usize>(&self, at: u64) -> Option<[u64; N]> {
        let mut words = [0; N];
        let mut at = at;
        for word in &mut words {
            *word = self.word(at, 0)?;
            at = at.wrapping_add(8);
        }
        Some(words)
    }
}

/// The address of the entry with this index of the table at `table`, whose
/// entries have `bytes`. Tables begin at pages below bit 52 and their indices
/// are small, so that nothing wraps.
fn entry(table: u64, index: u64, bytes: u64) -> u64 {
    table.wrapping_add(index.wrapping_mul(bytes))
}
