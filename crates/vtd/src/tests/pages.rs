//! Page requests. VT-d 4.1 sections 7.4 to 7.6.

use std::sync::{Arc, Mutex, Weak};

use iogate_dma::{Iova, Memory, Message, Pasid, Privilege, RequesterId, Rights, Source};

use super::guest::{Guest, HOLE, QIE, SRTP, TE, wait};
use crate::spec::registers::offset;
use crate::{Capabilities, PageRequest, PageRequested, PageRequester, PageResponse, ResponseCode};

const ROOT: u64 = 0x1_0000;
const CONTEXT: u64 = 0x1_1000;
const PAGES: u64 = 0x2_0000;
const DEVICE: RequesterId = RequesterId(0x28);

#[derive(Default)]
struct Asker(Mutex<Vec<PageResponse>>);

impl PageRequester for Asker {
    fn answered(&self, response: PageResponse) {
        self.0.lock().unwrap().push(response);
    }
}

impl Asker {
    fn of(guest: &Guest) -> Arc<Self> {
        let asker = Arc::new(Self::default());
        let weak: Weak<Self> = Arc::downgrade(&asker);
        guest.unit.set_page_requester(DEVICE, weak);
        asker
    }

    fn heard(&self) -> Vec<PageResponse> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A guest in scalable mode whose device may ask, with `flags` beside P in its
/// context entry.
fn guest_with(flags: u64) -> Guest {
    let capabilities = Capabilities::default()
        .scalable()
        .device_tlb()
        .page_requests();
    let guest = Guest::new(capabilities);
    guest.put(ROOT, &[CONTEXT | 1, CONTEXT | 1]);
    guest.put(CONTEXT + 32 * u64::from(DEVICE.0), &[flags | 1, 0, 0, 0]);
    guest.enable_queue(0);
    guest.write64(offset::RTADDR, ROOT | 1 << 10);
    guest.write32(offset::GCMD, QIE | SRTP);
    guest.write32(offset::GCMD, QIE | TE);
    guest.write64(offset::PQA, PAGES);
    guest
}

/// DTE, PASIDE, PRE.
const ASKS: u64 = 7 << 2;

fn request(group: u16, last: bool) -> PageRequest {
    PageRequest {
        source: Source {
            pasid: Pasid::new(5),
            ..DEVICE.into()
        },
        address: Iova(0x7_1234_5678),
        rights: Rights::READ_WRITE,
        execute: false,
        privilege: Privilege::User,
        group,
        last,
    }
}

fn descriptor(guest: &Guest, index: u64) -> [u64; 4] {
    let mut bytes = [0; 32];
    guest.ram.read(PAGES + index * 32, &mut bytes).unwrap();
    let words = bytes.as_chunks().0;
    [0, 1, 2, 3].map(|at| u64::from_le_bytes(words[at]))
}

#[test]
fn a_request_stands_in_the_queue_and_the_event_comes() {
    let guest = guest_with(ASKS);
    let message = Message {
        address: 0xfee0_2000,
        data: 9,
    };
    guest.program(offset::PECTL, message);
    assert_eq!(
        guest.unit.page_request(&request(3, true)),
        PageRequested::Queued
    );
    let expected = [
        1 | 1 << 8 | 0x28 << 16 | 5 << 32,
        0x7_1234_5000 | 3 << 3 | 1 << 2 | 3,
        0,
        0,
    ];
    assert_eq!(descriptor(&guest, 0), expected);
    assert_eq!(guest.read64(offset::PQT), 32);
    assert_eq!(guest.read32(offset::PRS), 1);
    assert_eq!(guest.messages(), [message]);
    guest.unit.page_request(&request(4, true));
    assert_eq!(guest.messages(), [], "PPR is still set");
    guest.write32(offset::PRS, 1);
    guest.unit.page_request(&request(5, false));
    assert_eq!(guest.messages(), [], "not the last of its group");
    assert_eq!(guest.read32(offset::PRS), 0);
    guest.unit.page_request(&request(5, true));
    assert_eq!(guest.messages(), [message]);
}

#[test]
fn a_request_without_pasid_has_neither_privilege_nor_execution() {
    let guest = guest_with(ASKS);
    let request = PageRequest {
        source: DEVICE.into(),
        execute: true,
        privilege: Privilege::Supervisor,
        rights: Rights::READ,
        ..request(0x1ff, false)
    };
    assert_eq!(guest.unit.page_request(&request), PageRequested::Queued);
    let expected = [1 | 0x28 << 16, 0x7_1234_5000 | 0x1ff << 3 | 1, 0, 0];
    assert_eq!(descriptor(&guest, 0), expected);
}

#[test]
fn the_guests_answer_reaches_who_asked_once() {
    let guest = guest_with(ASKS);
    let asker = Asker::of(&guest);
    guest.unit.page_request(&request(3, false));
    guest.unit.page_request(&request(3, true));
    let answer = |code: u64, pasid: u64, group: u64| {
        let low = 9 | 1 << 4 | code << 12 | 0x28 << 16 | pasid << 32;
        guest.submit(&[[low, group << 3 | 1 << 2], wait(1)]);
    };
    answer(0, 5, 4);
    answer(0, 6, 3);
    assert_eq!(asker.heard(), [], "other groups, other PASIDs");
    answer(1, 5, 3);
    let expected = PageResponse {
        source: request(3, true).source,
        group: 3,
        code: ResponseCode::Invalid,
    };
    assert_eq!(asker.heard(), [expected]);
    answer(0, 5, 3);
    assert_eq!(asker.heard(), [], "answered already");
    assert_eq!(guest.read32(offset::FSTS), 0);
}

#[test]
fn a_full_queue_overflows_until_the_guest_says_so() {
    let guest = guest_with(ASKS);
    let success = PageRequested::Answered(ResponseCode::Success);
    for group in 0..127 {
        let queued = guest.unit.page_request(&request(group, true));
        assert_eq!(queued, PageRequested::Queued, "{group}");
    }
    assert_eq!(guest.read64(offset::PQT), 127 * 32);
    let full = [
        guest.unit.page_request(&request(200, false)),
        guest.unit.page_request(&request(200, true)),
    ];
    assert_eq!(full, [PageRequested::Dropped, success]);
    assert_eq!(guest.read32(offset::PRS), 3);
    // Room alone does not help.
    guest.write64(offset::PQH, 127 * 32);
    assert_eq!(guest.unit.page_request(&request(201, true)), success);
    guest.write32(offset::PRS, 3);
    let queued = guest.unit.page_request(&request(202, true));
    assert_eq!(queued, PageRequested::Queued);
    assert_eq!(guest.read64(offset::PQT), 0, "around the end");
}

#[test]
fn who_may_not_ask_is_answered_and_recorded() {
    let asks = |flags| {
        let guest = guest_with(flags);
        let answer = guest.unit.page_request(&request(1, true));
        let high = guest.fault(0).1;
        // T2 alone: a page request.
        assert_eq!(high >> 28 & 1, high >> 63);
        assert_eq!(high >> 62 & 1, 0);
        (answer, high >> 32 & 0xff)
    };
    let failure = PageRequested::Answered(ResponseCode::Failure);
    let invalid = PageRequested::Answered(ResponseCode::Invalid);
    assert_eq!(asks(3 << 2), (failure, 0x47), "PRE clear");
    assert_eq!(asks(5 << 2), (invalid, 0x45), "PASIDE clear");
    assert_eq!(asks(2 | 3 << 2), (failure, 0), "FPD");
    assert_eq!(asks(1 << 8 | ASKS), (failure, 0x42), "reserved bit");
}

#[test]
fn nobody_asks_a_guest_that_does_not_listen() {
    let failure = PageRequested::Answered(ResponseCode::Failure);
    let guest = guest_with(ASKS);
    guest.write32(offset::GCMD, QIE);
    assert_eq!(guest.unit.page_request(&request(1, true)), failure);
    assert_eq!(
        guest.unit.page_request(&request(1, false)),
        PageRequested::Dropped
    );
    guest.write64(offset::RTADDR, ROOT);
    guest.write32(offset::GCMD, QIE | SRTP | TE);
    assert_eq!(guest.unit.page_request(&request(1, true)), failure);
    assert_eq!(guest.fault(0).1 >> 32 & 0xff, 0x32, "legacy mode");
    let plain = Guest::new(Capabilities::default());
    assert_eq!(plain.unit.page_request(&request(1, true)), failure);
}

#[test]
fn a_queue_where_no_memory_is_answers_with_failure() {
    let guest = guest_with(ASKS);
    for address in [HOLE.start, !0xfff] {
        guest.write64(offset::PQA, address);
        let answer = guest.unit.page_request(&request(1, true));
        assert_eq!(answer, PageRequested::Answered(ResponseCode::Failure));
        assert_eq!(guest.read64(offset::PQT), 0);
    }
}

#[test]
fn who_waits_is_released_when_nobody_will_answer() {
    let off = |guest: &Guest| guest.write32(offset::GCMD, QIE);
    let reset = |guest: &Guest| guest.unit.reset();
    for act in [off, reset] {
        let guest = guest_with(ASKS);
        let asker = Asker::of(&guest);
        guest.unit.page_request(&request(3, true));
        act(&guest);
        let expected = PageResponse {
            source: request(3, true).source,
            group: 3,
            code: ResponseCode::Failure,
        };
        assert_eq!(asker.heard(), [expected]);
    }
}

#[test]
fn requests_that_wait_are_part_of_the_state() {
    let guest = guest_with(ASKS);
    let asker = Asker::of(&guest);
    guest.unit.page_request(&request(3, true));
    let state = guest.unit.save();
    guest.unit.page_request(&request(4, true));
    guest.unit.restore(&state).unwrap();
    let groups: Vec<_> = asker.heard().iter().map(|answer| answer.group).collect();
    assert_eq!(groups, [4], "it is not in the state");
    guest.submit(&[[9 | 1 << 4 | 0x28 << 16 | 5 << 32, 3 << 3], wait(1)]);
    let groups: Vec<_> = asker.heard().iter().map(|answer| answer.group).collect();
    assert_eq!(groups, [3]);
}
