//! Page requests of devices: into the guest's queue, and its answers back to
//! who asked. VT-d 4.1 sections 7.4 to 7.6.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use iogate_dma::{
    Access, Iova, Kind, Pasid, Privilege, Request, RequesterId, Rights, Source, Span,
};

use crate::Vtd;
use crate::events::Event;
use crate::fault::{Refused, What};
use crate::registers::Registers;
use crate::spec::fault::Reason;
pub use crate::spec::page_request::ResponseCode;
use crate::spec::page_request::{PAGE_REQUEST, PAGE_REQUEST_TYPE, PageRequestHigh, PageRequestLow};
use crate::spec::registers::{PageQueueAddress, PageRequestStatus, RootTableAddress, TableMode};

/// Groups that may wait for an answer at once; more are answered with failure.
pub(crate) const MAX_GROUPS: usize = 1 << 16;

/// The highest Page Request Group Index.
pub(crate) const MAX_GROUP: u16 = 0x1ff;

/// A device's question: is this page there? PCI Express Base 6.0 section
/// 10.4.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// Who asks, with the PASID it asks for.
    pub source: Source,
    /// The page asked for is the one that this address lies in.
    pub address: Iova,
    /// What it is wanted for; nothing makes it a stop marker.
    pub rights: Rights,
    /// Whether it is wanted to execute, too.
    pub execute: bool,
    /// On whose behalf.
    pub privilege: Privilege,
    /// Page Request Group Index, 9 bits.
    pub group: u16,
    /// Whether it is the last request of its group: one answer comes after it.
    pub last: bool,
}

/// A guest's answer to a group of page requests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageResponse {
    /// Who asked.
    pub source: Source,
    /// The group.
    pub group: u16,
    /// What the guest says.
    pub code: ResponseCode,
}

/// What became of a page request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageRequested {
    /// The guest has it in its queue. If it was the last of its group, the
    /// answer comes to the [`PageRequester`] of the function.
    Queued,
    /// The unit itself answers its group.
    Answered(ResponseCode),
    /// It is gone. The group is answered when its last request comes.
    Dropped,
}

/// Who asks for pages, and learns what became of it.
pub trait PageRequester: Send + Sync {
    /// A group was answered. No lock of the unit is held; it must not block
    /// and must not call the unit.
    fn answered(&self, response: PageResponse);
}

/// The page request queue's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageQueue {
    /// PQA_REG.
    pub(crate) address: u64,
    /// PQH_REG.
    pub(crate) head: u32,
    /// PQT_REG.
    pub(crate) tail: u32,
    /// PRS_REG.PPR.
    pub(crate) pending: bool,
    /// PRS_REG.PRO.
    pub(crate) overflow: bool,
    pub(crate) event: Event,
}

impl PageQueue {
    pub(crate) const RESET: Self = Self {
        address: 0,
        head: 0,
        tail: 0,
        pending: false,
        overflow: false,
        event: Event::RESET,
    };

    /// PRS_REG.
    pub(crate) fn status(&self) -> PageRequestStatus {
        PageRequestStatus::new()
            .with_pending(self.pending)
            .with_overflow(self.overflow)
    }

    /// Where the next descriptor goes, in bytes of the queue and as an address;
    /// `None` if the queue is full.
    fn place(&self) -> Option<(u32, Option<u64>)> {
        let address = PageQueueAddress::from_bits(self.address);
        let within = (4096_u32 << (address.size() & 7)).wrapping_sub(1);
        let (tail, head) = (self.tail & within, self.head & within);
        let next = tail.wrapping_add(PAGE_REQUEST) & within;
        (next != head).then(|| (next, (address.page() << 12).checked_add(tail.into())))
    }
}

/// A group that the guest has not answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Group {
    pub(crate) source: Source,
    pub(crate) group: u16,
}

/// The devices' side of page requests.
#[derive(Default)]
pub(crate) struct Pages {
    pub(crate) waiting: BTreeSet<Group>,
    requesters: BTreeMap<RequesterId, Weak<dyn PageRequester>>,
}

impl Pages {
    fn requester(&self, source: Source) -> Option<Arc<dyn PageRequester>> {
        self.requesters
            .get(&source.requester)
            .and_then(Weak::upgrade)
    }
}

impl Registers {
    /// The queue is given a request, or has no room for it.
    fn page_event(&mut self, act: impl FnOnce(&mut PageQueue)) {
        let was_clear = !self.pages.pending && !self.pages.overflow;
        act(&mut self.pages);
        if was_clear {
            self.outbox.extend(self.pages.event.raise());
        }
    }

    /// The guest writes PRS_REG.
    pub(crate) fn write_page_status(&mut self, value: u32) {
        let cleared = PageRequestStatus::from_bits(value);
        let pages = &mut self.pages;
        pages.pending &= !cleared.pending();
        pages.overflow &= !cleared.overflow();
        if !pages.pending && !pages.overflow {
            pages.event.serviced();
        }
    }
}

impl Vtd {
    /// Has `requester` told of the answers to page requests of `function`, until
    /// it is dropped or another one takes its place.
    pub fn set_page_requester(&self, function: RequesterId, requester: Weak<dyn PageRequester>) {
        let mut pages = self.lock_pages();
        let left = &mut pages.requesters;
        left.retain(|_, requester| requester.strong_count() > 0);
        left.insert(function, requester);
    }

    pub(crate) fn lock_pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device asks for a page. It may wait for other threads that ask; not
    /// called under a guard.
    ///
    /// A request that the unit refuses is recorded as a fault, as the context
    /// entry says, and its group answered. While the queue is full requests are
    /// dropped and their groups answered with success, so that the device asks
    /// again. VT-d 4.1 sections 7.4.1 and 7.4.2.
    pub fn page_request(&self, request: &PageRequest) -> PageRequested {
        let result = self.put_page_request(request);
        tracing::event!(
            name: "vtd_page_request",
            target: "iogate",
            tracing::Level::INFO,
            source = %request.source,
            address = %request.address,
            rights = %request.rights,
            group = request.group,
            last = request.last,
            result = match result {
                PageRequested::Queued => "queued",
                PageRequested::Answered(ResponseCode::Success) => "answered: success",
                PageRequested::Answered(ResponseCode::Invalid) => "answered: invalid request",
                PageRequested::Answered(ResponseCode::Failure) => "answered: failure",
                PageRequested::Dropped => "dropped",
            },
        );
        result
    }

    fn put_page_request(&self, request: &PageRequest) -> PageRequested {
        let answered = |code| {
            if request.last {
                PageRequested::Answered(code)
            } else {
                PageRequested::Dropped
            }
        };
        if let Err(code) = self.admit(request) {
            return answered(code);
        }
        // Held until the descriptor is in the queue: requests stand there in
        // the order of their places.
        let mut pages = self.lock_pages();
        let group = Group {
            source: request.source,
            group: request.group,
        };
        if request.last && pages.waiting.len() >= MAX_GROUPS && !pages.waiting.contains(&group) {
            return answered(ResponseCode::Failure);
        }
        let place = self.with_registers(|registers| {
            if registers.pages.overflow {
                return None;
            }
            let place = registers.pages.place();
            if place.is_none() {
                registers.page_event(|pages| pages.overflow = true);
            }
            place
        });
        let Some((next, address)) = place else {
            return answered(ResponseCode::Success);
        };
        let written = address.is_some_and(|address| {
            let bytes = descriptor(request).map(u64::to_le_bytes);
            self.ram.write(address, bytes.as_flattened()).is_ok()
        });
        if !written {
            return answered(ResponseCode::Failure);
        }
        // A stop marker wants no answer.
        if request.last && request.rights != Rights::NONE {
            pages.waiting.insert(group);
        }
        self.with_registers(|registers| {
            registers.pages.tail = next;
            // Section 7.5: the last of a group makes it pending.
            if request.last {
                registers.page_event(|pages| pages.pending = true);
            }
        });
        PageRequested::Queued
    }

    /// Whether the structures let the function ask, or how it is answered.
    fn admit(&self, request: &PageRequest) -> Result<(), ResponseCode> {
        let source = request.source;
        let offered = self.capabilities.has_page_requests() && self.live.translates();
        if !offered || !self.is_behind(source.requester) || request.group > MAX_GROUP {
            return Err(ResponseCode::Failure);
        }
        let root = RootTableAddress::from_bits(self.live.root());
        let (reason, quiet) = match root.mode() {
            TableMode::Legacy => (Reason::PAGE_REQUEST_IN_LEGACY, false),
            TableMode::Scalable => match self.scalable_context(root, source, Kind::Untranslated) {
                Ok((_, head)) if head.page_requests() => return Ok(()),
                Ok((_, head)) => (Reason::SM_NO_PAGE_REQUESTS, head.quiet()),
                Err(denied) => (denied.reason, denied.quiet),
            },
            TableMode::Reserved | TableMode::Abort => (Reason::ROOT_TABLE_INVALID, false),
        };
        if !(quiet && reason.is_qualified()) {
            let access = match (request.rights.can_write(), request.execute) {
                (true, _) => Access::Write,
                (false, true) => Access::Execute,
                (false, false) => Access::Read,
            };
            self.record(&Refused {
                what: What::PageRequest,
                privilege: request.privilege,
                ..Refused::request(
                    &Request::new(source, page_of(request.address), access),
                    reason,
                )
            });
        }
        Err(match reason {
            // The function asks for what this PASID does not have; it may go
            // on with others.
            Reason::SM_NO_PASID | Reason::SM_PASID_BEYOND => ResponseCode::Invalid,
            _ => ResponseCode::Failure,
        })
    }

    /// The guest answered a group. VT-d 4.1 section 7.6.1.
    pub(crate) fn page_response(&self, response: &PageResponse) -> bool {
        let mut pages = self.lock_pages();
        let known = pages.waiting.remove(&Group {
            source: response.source,
            group: response.group,
        });
        let requester = pages.requester(response.source);
        drop(pages);
        if known && let Some(requester) = requester {
            requester.answered(*response);
        }
        known
    }

    /// Every page request that was made before is in the queue, or answered.
    pub(crate) fn drain_page_requests(&self) {
        drop(self.lock_pages());
    }

    /// Nobody will answer any more: who waits is told so.
    pub(crate) fn release_page_requests(&self) {
        self.replace_waiting(BTreeSet::new());
    }

    /// From now on `waiting` are the groups that wait. Who waited and is not
    /// among them is told that it failed.
    pub(crate) fn replace_waiting(&self, waiting: BTreeSet<Group>) {
        let mut pages = self.lock_pages();
        let before = std::mem::replace(&mut pages.waiting, waiting);
        let gone: Vec<_> = before
            .difference(&pages.waiting)
            .filter_map(|group| Some((*group, pages.requester(group.source)?)))
            .collect();
        drop(pages);
        for (Group { source, group }, requester) in gone {
            requester.answered(PageResponse {
                source,
                group,
                code: ResponseCode::Failure,
            });
        }
    }
}

/// The page that `address` lies in.
fn page_of(address: Iova) -> Span {
    Span::new(Iova(address.0 & !0xfff), Iova(address.0 | 0xfff)).unwrap_or_else(Span::whole)
}

fn descriptor(request: &PageRequest) -> [u64; 4] {
    let pasid = request.source.pasid.map(Pasid::as_u32);
    let low = PageRequestLow::new()
        .with_kind(PAGE_REQUEST_TYPE)
        .with_pasid_present(pasid.is_some())
        .with_source(request.source.requester.0)
        .with_pasid(pasid.unwrap_or(0))
        .with_execute(request.execute && pasid.is_some())
        .with_privileged(request.privilege == Privilege::Supervisor && pasid.is_some());
    let high = PageRequestHigh::new()
        .with_read(request.rights.can_read())
        .with_write(request.rights.can_write())
        .with_last(request.last)
        .with_group(request.group & MAX_GROUP)
        .with_page(request.address.0 >> 12);
    [low.into_bits(), high.into_bits(), 0, 0]
}
