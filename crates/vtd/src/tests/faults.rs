//! Fault recording. VT-d 4.1 sections 7.2, 7.3, 11.4.7.

use iogate_dma::{
    Access, Fault, FaultReason, GuestDomains, Iova, Kind, Message, Pasid, Privilege, Request,
    RequesterId, Source, Span,
};

use super::guest::{Guest, TE};
use crate::Capabilities;
use crate::fault::{Refused, What};
use crate::spec::fault::Reason;
use crate::spec::registers::offset;

const MESSAGE: Message = Message {
    address: 0xfee0_0000,
    data: 0x31,
};

fn guest(records: u16) -> Guest {
    let guest = Guest::new(Capabilities::default().fault_records(records));
    guest.program(offset::FECTL, MESSAGE);
    guest
}

fn refused(address: u64) -> Refused {
    let span = Span::with_length(Iova(address), 1).unwrap();
    let request = Request::new(RequesterId(0x28).into(), span, Access::Read);
    Refused::request(&request, Reason::NO_READ)
}

fn clear(guest: &Guest, index: u16) {
    guest.write32(offset::FRCD + 16 * index + 12, 1 << 31);
}

#[test]
fn faults_go_around_the_registers() {
    let guest = guest(3);
    for round in 0..7_u16 {
        guest.unit.record(&refused(u64::from(round) << 12));
        let index = round % 3;
        assert_eq!(guest.fault(index).0, u64::from(round) << 12);
        assert_eq!(
            guest.read32(offset::FSTS),
            2 | u32::from(index) << 8,
            "PPF and FRI"
        );
        clear(&guest, index);
        assert_eq!(guest.read32(offset::FSTS), 0);
    }
    assert_eq!(guest.messages(), [MESSAGE; 7]);
}

#[test]
fn the_first_record_is_named_while_any_is_pending() {
    let guest = guest(4);
    guest.unit.record(&refused(0x1000));
    clear(&guest, 0);
    for address in [0x2000, 0x3000] {
        guest.unit.record(&refused(address));
    }
    assert_eq!(guest.read32(offset::FSTS), 2 | 1 << 8);
    assert_eq!(guest.messages(), [MESSAGE; 2], "one for each first of them");
    clear(&guest, 1);
    assert_eq!(guest.read32(offset::FSTS) & 2, 2, "the other still pends");
}

#[test]
fn a_fault_that_finds_its_register_in_use_is_lost_and_overflow_told() {
    let guest = guest(2);
    for address in [0x1000, 0x2000, 0x3000] {
        guest.unit.record(&refused(address));
    }
    assert_eq!(guest.read32(offset::FSTS), 3, "PFO, PPF, FRI 0");
    assert_eq!((guest.fault(0).0, guest.fault(1).0), (0x1000, 0x2000));
    // Nothing is recorded until the guest clears PFO.
    clear(&guest, 0);
    clear(&guest, 1);
    assert_eq!(guest.read32(offset::FSTS), 1);
    guest.unit.record(&refused(0x4000));
    assert_eq!(guest.fault(0).1 >> 63, 0);
    guest.write32(offset::FSTS, 1);
    guest.unit.record(&refused(0x5000));
    assert_eq!(guest.fault(0).0, 0x5000);
    assert_eq!(guest.messages(), [MESSAGE; 2]);
}

#[test]
fn what_repeats_the_newest_record_is_not_recorded_again() {
    let guest = guest(4);
    guest.unit.record(&refused(0x1000));
    guest.unit.record(&refused(0x1ff8));
    assert_eq!(guest.fault(1), (0, 0), "the same page");
    guest.unit.record(&refused(0x2000));
    assert_eq!(guest.fault(1).0, 0x2000);
    guest.unit.record(&refused(0x1000));
    assert_eq!(guest.fault(2).0, 0x1000, "not the newest any more");
    // After the guest has seen it, it is news again.
    for index in 0..3 {
        clear(&guest, index);
    }
    guest.unit.record(&refused(0x1000));
    assert_eq!(guest.fault(3).0, 0x1000);
}

#[test]
fn a_single_register_collapses_and_overflows_too() {
    let guest = guest(1);
    guest.unit.record(&refused(0x1000));
    guest.unit.record(&refused(0x1000));
    assert_eq!(guest.read32(offset::FSTS), 2);
    guest.unit.record(&refused(0x2000));
    assert_eq!(guest.read32(offset::FSTS), 3);
}

#[test]
fn recording_begins_anew_when_nothing_is_remapped_any_more() {
    let guest = guest(4);
    guest.write32(offset::GCMD, TE);
    guest.unit.record(&refused(0x1000));
    clear(&guest, 0);
    guest.write32(offset::GCMD, 0);
    guest.unit.record(&refused(0x2000));
    assert_eq!(guest.fault(0).0, 0x2000);
}

#[test]
fn a_record_says_who_did_what_how() {
    let source = Source {
        pasid: Pasid::new(0xabcde),
        ..RequesterId(0x1234).into()
    };
    let base = Refused {
        source,
        address: 0xffff_8000_1234_5678,
        access: Access::Write,
        privilege: Privilege::User,
        what: What::Access(Kind::Untranslated),
        reason: Reason::SM_NO_WRITE,
    };
    let (t1, t2, exe, privileged) = (1_u64 << 62, 1 << 28, 1 << 30, 1 << 29);
    for (refused, bits) in [
        (base, 0),
        (
            Refused {
                access: Access::Read,
                ..base
            },
            t1,
        ),
        (
            Refused {
                access: Access::Atomic,
                ..base
            },
            t1 | t2,
        ),
        (
            Refused {
                access: Access::Execute,
                privilege: Privilege::Supervisor,
                ..base
            },
            t1 | exe | privileged,
        ),
        (
            Refused {
                what: What::Access(Kind::TranslationRequest),
                ..base
            },
            1 << 60,
        ),
        (
            Refused {
                what: What::Access(Kind::Translated),
                ..base
            },
            2 << 60,
        ),
        (
            Refused {
                what: What::PageRequest,
                ..base
            },
            t2,
        ),
    ] {
        let guest = guest(8);
        guest.unit.record(&refused);
        let (low, high) = guest.fault(0);
        assert_eq!(low, 0xffff_8000_1234_5000);
        let pasid = 0xabcde << 40 | 1 << 31;
        assert_eq!(high, 1 << 63 | pasid | 0x85 << 32 | 0x1234 | bits);
    }
}

#[test]
fn a_record_of_an_interrupt_holds_its_index() {
    let guest = guest(8);
    let refused = Refused::interrupt(RequesterId(0x28), 0x1234, Reason::REMAP_ABSENT);
    guest.unit.record(&refused);
    assert_eq!(guest.fault(0), (0x1234 << 48, 1 << 63 | 0x22 << 32 | 0x28));
}

#[test]
fn the_event_waits_for_all_causes_to_be_serviced() {
    let guest = guest(2);
    guest.unit.record(&refused(0x1000));
    assert_eq!(guest.messages(), [MESSAGE]);
    guest.unit.record(&refused(0x2000));
    clear(&guest, 0);
    guest.unit.record(&refused(0x3000));
    assert_eq!(guest.messages(), [], "one pends all the time");
    clear(&guest, 0);
    clear(&guest, 1);
    guest.unit.record(&refused(0x4000));
    assert_eq!(guest.messages(), [MESSAGE]);
}

#[test]
fn a_masked_event_whose_faults_are_cleared_is_not_sent() {
    let guest = guest(2);
    guest.write32(offset::FECTL, 1 << 31);
    guest.unit.record(&refused(0x1000));
    assert_eq!(guest.read32(offset::FECTL), 3 << 30);
    clear(&guest, 0);
    assert_eq!(guest.read32(offset::FECTL), 1 << 31);
    guest.unit.record(&refused(0x2000));
    guest.write32(offset::FECTL, 0);
    assert_eq!(guest.messages(), [MESSAGE]);
}

#[test]
fn all_records_stand_in_the_page() {
    let guest = guest(crate::MAX_FAULT_RECORDS);
    for index in 0..crate::MAX_FAULT_RECORDS {
        guest.unit.record(&refused(u64::from(index) << 12));
    }
    for index in 0..crate::MAX_FAULT_RECORDS {
        assert_eq!(guest.fault(index).0, u64::from(index) << 12);
    }
    guest.unit.record(&refused(0xfff_f000));
    assert_eq!(guest.read32(offset::FSTS) & 1, 1);
}

#[test]
fn what_a_host_refuses_is_told_while_requests_are_translated() {
    let guest = guest(2);
    let fault = Fault {
        source_id: RequesterId(0x28).into(),
        span: Span::with_length(Iova(0x7_1234), 8).unwrap(),
        access: Access::Write,
        reason: FaultReason::NotMapped,
        walk: None,
        recoverable: false,
    };
    guest.unit.report(&fault);
    assert_eq!(
        guest.read32(offset::FSTS),
        0,
        "the guest translates nothing"
    );
    guest.write32(offset::GCMD, TE);
    guest.unit.report(&fault);
    let (low, high) = guest.fault(0);
    assert_eq!(low, 0x7_1000);
    assert_eq!(high, 1 << 63 | 5 << 32 | 0x28);
}
