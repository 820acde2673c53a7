//! Translations by page: the IOTLB. Sets of two, a cache line of the host,
//! indexed by domain and page, so that what a domain's page-selective invalidation names is found whoever
//! brought it in.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use iogate_dma::{Iova, RequesterId, Slot, Span};
use iogate_paging::Permissions;
use zerocopy::FromZeros;

use super::Clock;
use super::domains::{index, zeroed};
use crate::translate::{Head, INTERRUPTS, Page};

/// Sets; a power of two.
const SETS: usize = 1 << 15;
/// Translations in a set; a power of two.
const WAYS: usize = 2;
/// Marks of domains and of PASIDs; several share one. A power of two.
const MARKS: usize = 1 << 12;
/// Entries that an invalidation of pages looks at before it takes the domain
/// as a whole.
const PROBES: u64 = 512;
/// Sizes of page: 4 KiB, 2 MiB, 1 GiB, each 9 bits more than the one before.
const SIZES: u8 = 3;

/// Of so many translations that would take the place of one in use, one does. A
/// power of two.
const ONE_OF: u32 = 8;

thread_local! {
    static TURN: Cell<u32> = const { Cell::new(0) };
}

/// A domain has translations that an invalidation of second-stage pages cannot
/// find: their pages are of the first stage.
const OF_FIRST_STAGE: u8 = 1;
/// A domain has translations that are smaller than the page that made them.
const CUT: u8 = 2;

/// Words: page number; tag; output, permissions and the stamp's upper bits.
/// The half word is the stamp's lower ones.
#[derive(Debug, FromZeros)]
#[repr(C, align(64))]
struct Set([Slot<3>; WAYS]);

/// The translations that a unit remembers.
#[derive(Debug)]
pub(crate) struct Translations {
    sets: Box<[Set; SETS]>,
    clock: Clock,
    /// What is older than any of these three is void.
    all: AtomicU64,
    domains: Box<[AtomicU64; MARKS]>,
    pasids: Box<[AtomicU64; MARKS]>,
    /// What the translations of domains are, by the same index.
    properties: Box<[AtomicU8; MARKS]>,
    /// Bit 1: there are pages of 2 MiB, bit 2: of 1 GiB.
    large: AtomicU8,
}

impl Default for Translations {
    fn default() -> Self {
        Self {
            sets: zeroed(),
            clock: Clock::default(),
            all: AtomicU64::new(1),
            domains: zeroed(),
            pasids: zeroed(),
            properties: zeroed(),
            large: AtomicU8::new(0),
        }
    }
}

/// Whose pages: a domain's, or those of one of its PASIDs.
#[derive(Clone, Copy)]
struct Owner {
    domain: u16,
    /// Only of translations that begin with the first stage.
    pasid: Option<u32>,
}

impl Owner {
    #[inline]
    fn of(head: Head) -> Self {
        let pasid = head.has_first().then(|| head.pasid());
        Self {
            domain: head.id(),
            pasid,
        }
    }

    /// Spreads owners over what is indexed by page.
    #[inline]
    fn spread(self) -> u64 {
        let domain = u64::from(self.domain).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let pasid = self.pasid.map_or(0, u64::from);
        domain.wrapping_add(pasid.wrapping_mul(0xbf58_476d_1ce4_e5b9)) >> 24
    }
}

/// A translation to look for.
struct Wanted {
    owner: Owner,
    address: u64,
    /// Page number, by its own size.
    page: u64,
    /// DID, source, PASID, size.
    tag: u64,
    shift: u32,
}

impl Wanted {
    #[inline]
    fn new(head: Head, source: RequesterId, address: u64, size: u8) -> Self {
        let shift = shift(size);
        Self {
            owner: Owner::of(head),
            address,
            page: address.unbounded_shr(shift),
            tag: u64::from(head.id())
                | u64::from(source.0) << 16
                | u64::from(head.pasid()) << 32
                | u64::from(size) << 52,
            shift,
        }
    }

    /// The ways of its set. The first is the one that it takes if it can
    /// choose: the pages of a contiguous range choose different ones.
    #[inline]
    fn ways<'s>(&self, Set(slots): &'s Set) -> impl Iterator<Item = &'s Slot<3>> {
        let first = index(self.page >> SETS.ilog2(), WAYS);
        (0..WAYS).filter_map(move |way| slots.get((first ^ way) & WAYS.wrapping_sub(1)))
    }

    /// The page, if this slot has it, and its stamp.
    #[inline]
    fn found(&self, slot: &Slot<3>) -> Option<(u64, Page)> {
        let (half, [page, tag, data]) = slot.read()?;
        if page != self.page || tag != self.tag {
            return None;
        }
        let mask = 1_u64.unbounded_shl(self.shift).wrapping_sub(1);
        let frame = data & 0xff_ffff_ffff;
        let page = Page {
            output: frame << 12 | self.address & mask,
            mask,
            permissions: Permissions::from_bits((data >> 40 & 0x3f) as u8),
            settled: true,
            cut: false,
        };
        Some((stamp(half, data), page))
    }
}

#[inline]
const fn shift(size: u8) -> u32 {
    (size as u32).wrapping_mul(9).wrapping_add(12)
}

#[inline]
const fn stamp(half: u32, data: u64) -> u64 {
    half as u64 | data >> 48 << 32
}

impl Translations {
    /// The page that `address` lies in, if it is remembered where it is looked
    /// for first, with what it allows without another walk.
    #[inline]
    pub(crate) fn get_near(&self, head: Head, source: RequesterId, address: u64) -> Option<Page> {
        let wanted = Wanted::new(head, source, address, 0);
        let (stamp, page) = wanted.found(wanted.ways(self.set(&wanted)?).next()?)?;
        (stamp >= self.mark(wanted.owner)).then_some(page)
    }

    /// The page, wherever it is remembered.
    pub(crate) fn get(&self, head: Head, source: RequesterId, address: u64) -> Option<Page> {
        let sizes = self.large.load(Ordering::Relaxed) | 1;
        // The sets of large pages are few, so that they are near.
        (0..SIZES)
            .rev()
            .filter(|size| sizes >> size & 1 != 0)
            .find_map(|size| self.search(&Wanted::new(head, source, address, size)))
    }

    /// Looks at all ways.
    fn search(&self, wanted: &Wanted) -> Option<Page> {
        let mut ways = wanted.ways(self.set(wanted)?);
        let (stamp, page) = ways.find_map(|way| wanted.found(way))?;
        (stamp >= self.mark(wanted.owner)).then_some(page)
    }

    /// To be taken before tables are read.
    #[inline]
    pub(crate) fn stamp(&self) -> u64 {
        self.clock.now()
    }

    /// Remembers `page`, which `address` lies in and which was read after
    /// `stamp` was taken.
    pub(crate) fn put(
        &self,
        stamp: u64,
        head: Head,
        source: RequesterId,
        address: u64,
        page: &Page,
    ) {
        // What reaches into the interrupt range is looked at each time.
        let reaches = |from: u64| {
            let from = from & !page.mask;
            from <= *INTERRUPTS.end() && from | page.mask >= *INTERRUPTS.start()
        };
        if reaches(address) || reaches(page.output) {
            return;
        }
        let Some(size) = (0..SIZES).find(|&size| page.mask.count_ones() == shift(size)) else {
            return;
        };
        let wanted = Wanted::new(head, source, address, size);
        self.note(wanted.owner, size, page.cut);
        let Some(set) = self.set(&wanted) else {
            return;
        };
        let oldest = self.all.load(Ordering::Acquire);
        let mut free = None;
        let mut mine = None;
        for way in wanted.ways(set) {
            match way.read() {
                Some((_, [page, tag, _])) if page == wanted.page && tag == wanted.tag => {
                    mine = Some(way);
                    break;
                }
                Some((half, [.., data])) if self::stamp(half, data) >= oldest => {}
                _ => free = free.or(Some(way)),
            }
        }
        let Some(place) = mine.or(free).or_else(|| wanted.ways(set).next()) else {
            return;
        };
        // Where more is in use than there is room for, writing costs more than
        // it gives.
        let mut turn = 0;
        if mine.or(free).is_none() {
            turn = TURN.get().wrapping_add(1) & (ONE_OF - 1);
            TURN.set(turn);
        }
        if turn != 0 {
            return;
        }
        // A write without the dirty flag must walk again to set it.
        let permissions = if page.settled {
            page.permissions
        } else {
            page.permissions & Permissions::new(true, false, true)
        };
        let frame = (page.output & !page.mask) >> 12;
        let data = frame | u64::from(permissions.bits()) << 40 | stamp >> 32 << 48;
        let half = (stamp & 0xffff_ffff) as u32;
        place.write(half, [wanted.page, wanted.tag, data]);
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.clock.outdate(&self.all);
    }

    /// Forgets a domain.
    pub(crate) fn clear_domain(&self, domain: u16) {
        if let Some(mark) = self.domains.get(domain_index(domain)) {
            self.clock.outdate(mark);
        }
    }

    /// Forgets what a PASID's requests found through the first stage.
    pub(crate) fn clear_pasid(&self, domain: u16, pasid: u32) {
        if let Some(mark) = self.pasids.get(pasid_index(domain, pasid)) {
            self.clock.outdate(mark);
        }
    }

    /// Forgets the second-stage translations of a domain that overlap `span`,
    /// and all nested ones.
    pub(crate) fn clear_pages(&self, domain: u16, span: Span<Iova>) {
        let owner = Owner {
            domain,
            pasid: None,
        };
        if self.has(domain, OF_FIRST_STAGE) || !self.clear_span(owner, span) {
            self.clear_domain(domain);
        }
    }

    /// Forgets what a PASID's requests to `span` found through the first stage.
    pub(crate) fn clear_pasid_pages(&self, domain: u16, pasid: u32, span: Span<Iova>) {
        let owner = Owner {
            domain,
            pasid: Some(pasid),
        };
        if self.has(domain, CUT) || !self.clear_span(owner, span) {
            self.clear_pasid(domain, pasid);
        }
    }

    /// Looks at every place where a page that overlaps `span` can be; says no
    /// if they are too many.
    fn clear_span(&self, owner: Owner, span: Span<Iova>) -> bool {
        let sizes = self.large.load(Ordering::Acquire) | 1;
        let in_use = |size: &u8| sizes >> size & 1 != 0;
        let pages = |size: u8| {
            let shift = shift(size);
            span.first().0 >> shift..=span.last().0 >> shift
        };
        let wanted = (0..SIZES).filter(in_use).map(|size| {
            let pages = pages(size);
            pages.end().saturating_sub(*pages.start()).saturating_add(1)
        });
        if wanted.fold(0, u64::saturating_add) > PROBES {
            return false;
        }
        for size in (0..SIZES).filter(in_use) {
            for page in pages(size) {
                let Some(set) = self.set_of(owner, page) else {
                    continue;
                };
                for slot in &set.0 {
                    slot.clear_if(|&[found, tag, _]| {
                        let pasid = owner
                            .pasid
                            .is_none_or(|pasid| tag >> 32 & 0xf_ffff == u64::from(pasid));
                        found == page
                            && tag & 0xffff == u64::from(owner.domain)
                            && tag >> 52 == u64::from(size)
                            && pasid
                    });
                }
            }
        }
        true
    }

    /// What the owner's translations must not be older than.
    #[inline]
    fn mark(&self, owner: Owner) -> u64 {
        let read = |marks: &[AtomicU64; MARKS], index: usize| {
            let mark = marks.get(index).map(|mark| mark.load(Ordering::Acquire));
            mark.unwrap_or(u64::MAX)
        };
        let mark = self.all.load(Ordering::Acquire);
        let mark = mark.max(read(&self.domains, domain_index(owner.domain)));
        match owner.pasid {
            Some(pasid) => mark.max(read(&self.pasids, pasid_index(owner.domain, pasid))),
            None => mark,
        }
    }

    #[inline]
    fn set(&self, wanted: &Wanted) -> Option<&Set> {
        self.set_of(wanted.owner, wanted.page)
    }

    #[inline]
    fn set_of(&self, owner: Owner, page: u64) -> Option<&Set> {
        let hash = owner.spread().wrapping_add(page);
        self.sets.get(index(hash, SETS))
    }

    fn has(&self, domain: u16, property: u8) -> bool {
        let properties = self.properties.get(domain_index(domain));
        properties.is_none_or(|all| all.load(Ordering::Acquire) & property != 0)
    }

    /// Makes sure that invalidations look for what is about to be written.
    fn note(&self, owner: Owner, size: u8, cut: bool) {
        let bit = 1 << size;
        if size != 0 && self.large.load(Ordering::Relaxed) & bit == 0 {
            self.large.fetch_or(bit, Ordering::AcqRel);
        }
        let first = if owner.pasid.is_some() {
            OF_FIRST_STAGE
        } else {
            0
        };
        let wanted = first | if cut { CUT } else { 0 };
        if let Some(all) = self.properties.get(domain_index(owner.domain))
            && all.load(Ordering::Relaxed) & wanted != wanted
        {
            all.fetch_or(wanted, Ordering::AcqRel);
        }
    }
}

#[inline]
fn domain_index(domain: u16) -> usize {
    usize::from(domain) & MARKS.wrapping_sub(1)
}

#[inline]
fn pasid_index(domain: u16, pasid: u32) -> usize {
    let pasid = (pasid as usize).wrapping_mul(0x9e5);
    (usize::from(domain) ^ pasid) & MARKS.wrapping_sub(1)
}
