//! A guest's driver of a VT-d unit, and listeners that follow what it maps.

mod support;
#[path = "support/guest.rs"]
mod vtd;

use std::sync::Arc;

use iogate_dma::{
    Change, Iova, Listener, Mapping, Partial, Pasid, RequesterId, Rights, Source, Span,
};
use iogate_shadow::{Limits, Section, Shadow};
use iogate_vtd::Capabilities;
use support::Device;
use vtd::{Guest, everything, of_context, of_domain, of_pages, of_pasids, page};

const RW: u64 = 3;

fn guest() -> Guest {
    Guest::new(Capabilities::default())
}

/// 0:`device`.0.
fn function(device: u16) -> RequesterId {
    RequesterId(device << 3)
}

fn map(iova: u64, bytes: u64, output: u64) -> Change {
    Change::Map(Mapping {
        span: Span::with_length(Iova(iova), bytes).unwrap(),
        output,
        rights: Rights::READ_WRITE,
    })
}

fn unmap(iova: u64, bytes: u64) -> Change {
    Change::Unmap(Span::with_length(Iova(iova), bytes).unwrap())
}

/// A listener that looks whether the guest was told too early.
struct Early {
    guest: Arc<Guest>,
}

impl Listener for Early {
    fn apply(&self, changes: &[Change]) -> Result<(), Partial> {
        let maps = changes.iter().any(|one| matches!(one, Change::Map(_)));
        assert!(!maps || self.guest.done() < self.guest.asked());
        Ok(())
    }
}

#[test]
fn mappings_arrive_before_the_guest_is_told_that_it_is_done() {
    let guest = Arc::new(guest());
    let tables = guest.domain(5);
    guest.enter(3, Some(tables));
    let early = Arc::new(Early {
        guest: guest.clone(),
    });
    let shadow = Shadow::of(guest.unit.clone());
    let device = Device::new();
    let device_following = shadow.follow(function(3), Section::ALL, device.clone());
    let early_following = shadow.follow(function(3), Section::ALL, early);
    for number in 0..100 {
        guest.map(tables, 0x7000_0000 + (number << 12), (number << 13) | RW);
        guest.submit(&[of_pages(tables, 0x7000_0000 + (number << 12), 0)]);
        assert_eq!(guest.done(), guest.asked());
        let output = device.page(0x7000_0000 + (number << 12));
        assert_eq!(output, Some((number << 13, 3)));
    }
    assert!(device_following.is_ok() && early_following.is_ok());
}

#[test]
fn a_whole_domain_is_one_change_if_it_is_contiguous() {
    let guest = guest();
    let tables = guest.domain(5);
    for number in 0..2048 {
        guest.map(tables, 0x4000_0000 + (number << 12), (number << 12) | RW);
    }
    guest.enter(3, Some(tables));
    let device = Device::new();
    let shadow = Shadow::of(guest.unit.clone());
    let following = shadow.follow(function(3), Section::ALL, device.clone());
    assert_eq!(device.take(), [[map(0x4000_0000, 2048 << 12, 0)]]);
    guest.submit(&[everything()]);
    guest.submit(&[of_domain(tables), of_context(3)]);
    assert_eq!(device.take().len(), 0);
    drop(following);
    assert_eq!(device.take(), [[unmap(0x4000_0000, 2048 << 12)]]);
}

#[test]
fn a_context_entry_moves_a_device_by_difference() {
    let guest = guest();
    let (one, two) = (guest.domain(5), guest.domain(6));
    for tables in [one, two] {
        guest.map(tables, 0x1000, 0x9000 | RW);
    }
    guest.map(one, 0x5000, 0xa000 | RW);
    guest.map(two, 0x8000, 0xb000 | RW);
    guest.enter(3, Some(one));
    let device = Device::new();
    let shadow = Shadow::of(guest.unit.clone());
    let _following = shadow
        .follow(function(3), Section::ALL, device.clone())
        .unwrap();
    device.take();
    guest.enter(3, Some(two));
    guest.submit(&[of_context(3), of_domain(one)]);
    let moved = vec![unmap(0x5000, 0x1000), map(0x8000, 0x1000, 0xb000)];
    assert_eq!(device.take(), [moved]);
    guest.enter(3, None);
    guest.submit(&[of_context(3)]);
    assert_eq!(*device.mapped.lock().unwrap(), []);
}

#[test]
fn without_translation_everything_is_mapped_to_itself() {
    let guest = guest();
    let tables = guest.domain(5);
    guest.map(tables, 0x1000, 0x9000 | RW);
    guest.enter(3, Some(tables));
    let device = Device::new();
    let shadow = Shadow::of(guest.unit.clone());
    let section = Span::new(Iova(0), Iova(0xffff)).unwrap();
    let _following = shadow.follow(function(3), section, device.clone()).unwrap();
    assert_eq!(device.take(), [[map(0x1000, 0x1000, 0x9000)]]);
    guest.end();
    assert_eq!(
        device.take(),
        [[unmap(0x1000, 0x1000), map(0, 0x1_0000, 0)]]
    );
}

#[test]
fn what_a_listener_refuses_is_in_a_fault_record() {
    let guest = guest();
    let tables = guest.domain(5);
    guest.enter(3, Some(tables));
    let device = Device::new();
    let shadow = Shadow::of(guest.unit.clone());
    let _following = shadow
        .follow(function(3), Section::ALL, device.clone())
        .unwrap();
    device.refuse(|_| Some(28));
    guest.map(tables, 0x5000, 0xa000 | RW);
    guest.submit(&[of_pages(tables, 0x5000, 0)]);
    // FSTS.PPF, and the first record: its address, and its source.
    assert_eq!(guest.read32(0x34) & 2, 2);
    let records = (guest.read64(0x8) >> 24 & 0x3ff) << 4;
    assert_eq!(guest.read64(records), 0x5000);
    assert_eq!(guest.read64(records + 8) & 0xffff, u64::from(function(3).0));
    assert_eq!(guest.read64(records + 8) >> 63, 1);
}

#[test]
fn each_process_address_space_is_followed_by_itself() {
    let guest = Guest::new(Capabilities::default().scalable());
    let (plain, process) = (guest.domain(5), guest.domain(6));
    guest.map(plain, 0x1000, 0x9000 | RW);
    guest.map(process, 0x1000, 0xa000 | RW);
    let source = Source::from(function(3));
    let with = Source {
        pasid: Pasid::new(7),
        ..source
    };
    let (one, two) = (Device::new(), Device::new());
    let shadow = Shadow::of(guest.unit.clone());
    let _one = shadow.follow(source, Section::ALL, one.clone()).unwrap();
    let _two = shadow.follow(with, Section::ALL, two.clone()).unwrap();
    guest.enter_pasid(3, 0, Some(plain));
    guest.enter_pasid(3, 7, Some(process));
    guest.submit(&[of_context(3), of_pasids()]);
    assert_eq!(one.take(), [[map(0x1000, 0x1000, 0x9000)]]);
    assert_eq!(two.take(), [[map(0x1000, 0x1000, 0xa000)]]);
    guest.enter_pasid(3, 7, Some(plain));
    guest.submit(&[of_pasids()]);
    assert_eq!(one.take().len(), 0);
    assert_eq!(
        two.take(),
        [[unmap(0x1000, 0x1000), map(0x1000, 0x1000, 0x9000)]]
    );
}

/// VT-d 4.1 section 6.5.2.3: of nested translations all of the domain go, for
/// the addresses of the descriptor are those between the stages.
#[test]
fn a_second_stage_page_below_a_first_stage_is_followed() {
    let guest = Guest::new(Capabilities::default().scalable().nested());
    let (second, first) = (guest.domain(5), guest.domain(0));
    for page in 0..2048 {
        guest.map(second, page << 12, (page << 12) | RW);
    }
    let between = 0x5000_0000;
    guest.map(second, between, 0x9000 | RW);
    let mut table = first.root;
    for next in [0x70_1000, 0x70_2000, 0x70_3000] {
        guest.put(table, next | 7);
        table = next;
    }
    guest.put(table + 8, between | 7);
    guest.enter_pasid(3, 0, Some(second));
    guest.nest(3, 0, first.root);
    let device = Device::new();
    let shadow = Shadow::of(guest.unit.clone());
    let _following = shadow
        .follow(function(3), Section::ALL, device.clone())
        .unwrap();
    assert_eq!(device.take(), [[map(0x1000, 0x1000, 0x9000)]]);
    guest.map(second, between, 0xa000 | RW);
    guest.submit(&[of_pages(second, between, 0)]);
    let changes = vec![unmap(0x1000, 0x1000), map(0x1000, 0x1000, 0xa000)];
    assert_eq!(device.take(), [changes]);
}

#[test]
fn a_guest_whose_tables_contain_themselves_is_told_and_goes_on() {
    let guest = guest();
    let tables = guest.domain(5);
    for entry in 0..512 {
        guest.put(tables.root + entry * 8, tables.root | RW);
    }
    guest.enter(3, Some(tables));
    let device = Device::new();
    let limits = Limits {
        runs: 100,
        tables: 100,
    };
    let shadow = Shadow::with_limits(guest.unit.clone(), limits);
    let following = shadow
        .follow(function(3), Section::ALL, device.clone())
        .unwrap();
    assert!(following.failure().is_some());
    assert_eq!(guest.read32(0x34) & 2, 2);
    for entry in 0..512 {
        guest.put(tables.root + entry * 8, 0);
    }
    guest.map(tables, 0x5000, 0xa000 | RW);
    guest.submit(&[everything()]);
    assert_eq!(following.failure(), None);
    assert_eq!(device.mapped.lock().unwrap().len(), 1);
    assert!(device.mapped.lock().unwrap()[0].span == page(0x5000));
}
