//! Access to registers, commands, invalidation by registers. VT-d 4.1 sections
//! 11.2, 11.4, 6.5.1.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use iogate_dma::{GuestDomains, Invalidated, Observer, Scope};

use super::guest::{Guest, QIE, SRTP, TE};
use crate::spec::registers::offset;
use crate::{BuildError, Capabilities, Vtd};

/// Remembers what it was told.
#[derive(Default)]
pub(super) struct Ear(pub(super) Mutex<Vec<Invalidated>>);

impl Observer for Ear {
    fn invalidated(&self, batch: &[Invalidated]) {
        self.0.lock().unwrap().extend(batch);
    }
}

impl Ear {
    pub(super) fn of(guest: &Guest) -> Arc<Self> {
        let ear = Arc::new(Self::default());
        let weak: std::sync::Weak<Self> = Arc::downgrade(&ear);
        guest.unit.observe(weak);
        ear
    }

    pub(super) fn heard(&self) -> Vec<Invalidated> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn everything() -> Capabilities {
    Capabilities::default()
        .scalable()
        .nested()
        .device_tlb()
        .page_requests()
        .interrupt_remapping()
        .extended_interrupt_mode()
        .posted_interrupts()
}

#[test]
fn at_power_on_events_are_masked_and_all_else_is_zero() {
    let guest = Guest::new(everything());
    let constant = [
        (offset::VER, 0x10),
        (offset::CAP, guest.unit.capabilities().capability_register()),
        (
            offset::ECAP,
            guest.unit.capabilities().extended_capability_register(),
        ),
        (offset::FECTL, 1 << 31),
        (offset::IECTL, 1 << 31),
        (offset::PECTL, 1 << 31),
    ];
    for at in (0..0x1000).step_by(8) {
        let expected = constant.iter().find(|(known, _)| *known == at);
        let expected = expected.map_or(0, |(_, value)| *value);
        assert_eq!(guest.read64(at), expected, "at {at:#x}");
    }
}

#[test]
fn halves_are_read_and_written_by_themselves() {
    let guest = Guest::new(everything());
    guest.write32(offset::RTADDR + 4, 0x12);
    guest.write32(offset::RTADDR, 0x3456_7fff);
    assert_eq!(guest.read64(offset::RTADDR), 0x12_3456_7c00);
    assert_eq!(guest.read32(offset::RTADDR + 4), 0x12);
    // 8 bytes at a multiple of 4 are two dwords: data and address here.
    guest.write64(offset::FECTL + 4, 0xfee0_1000_0000_0055);
    assert_eq!(guest.read32(offset::FECTL + 4), 0x55);
    assert_eq!(guest.read32(offset::FECTL + 8), 0xfee0_1000);
}

#[test]
fn reserved_bits_stay_zero() {
    let guest = Guest::new(Capabilities::default());
    for at in (0..0x1000).step_by(8).filter(|at| *at != offset::GCMD) {
        guest.write64(at, u64::MAX);
    }
    let expected = [
        (offset::VER, 0x10),
        (offset::CAP, guest.unit.capabilities().capability_register()),
        (
            offset::ECAP,
            guest.unit.capabilities().extended_capability_register(),
        ),
        // No TTM without scalable mode.
        (offset::RTADDR, !0xfff),
        // A device-selective invalidation, done.
        (offset::CCMD, 3 << 61 | 3 << 59 | 0x3_ffff_ffff),
        (offset::FECTL, 0xffff_ffff_8000_0000),
        (0x40, !3),
        (offset::IQT, 0x7_fff0),
        // No DW without scalable mode.
        (offset::IQA, !0xff8),
        (offset::IECTL, 0xffff_ffff_8000_0000),
        (0xa8, !3),
        // A page-selective invalidation whose mask was beyond MAMV: not done.
        (offset::IOTLB, 3 << 60 | 0x3_ffff << 32),
    ];
    for at in (0..0x1000).step_by(8) {
        let expected = expected.iter().find(|(known, _)| *known == at);
        let expected = expected.map_or(0, |(_, value)| *value);
        assert_eq!(guest.read64(at), expected, "at {at:#x}");
    }
}

#[test]
fn registers_of_what_is_not_offered_are_zero() {
    let plain = Capabilities::default().without_queued_invalidation();
    let guest = Guest::new(plain);
    for at in [
        offset::IQH,
        offset::IQT,
        offset::IQA,
        0x98,
        offset::IECTL,
        0xa8,
        offset::IQERCD,
        offset::IRTA,
        offset::PQH,
        offset::PQT,
        offset::PQA,
        0xd8,
        offset::PECTL,
        0xe8,
    ] {
        guest.write64(at, u64::MAX);
        assert_eq!(guest.read64(at), 0, "at {at:#x}");
    }
    guest.write32(offset::GCMD, QIE | 7 << 23);
    assert_eq!(guest.read32(offset::GSTS), 0);
}

#[test]
fn accesses_of_other_sizes_are_answered_and_change_nothing() {
    let guest = Guest::new(everything());
    let before = guest.unit.save();
    for at in (0..0x1010).chain([u64::MAX - 3, u64::MAX]) {
        for length in [0, 1, 2, 3, 5, 7, 9, 64] {
            guest.unit.write(at, &vec![0xff; length]);
        }
        if at % 4 != 0 {
            guest.unit.write(at, &[0xff; 4]);
            guest.unit.write(at, &[0xff; 8]);
        }
    }
    assert_eq!(guest.unit.save(), before);
    let mut one = [0];
    guest.unit.read(u64::from(offset::CAP) + 1, &mut one);
    assert_eq!(
        one[0],
        guest
            .unit
            .capabilities()
            .capability_register()
            .to_le_bytes()[1]
    );
    let mut across = [0xaa; 24];
    guest.unit.read(0xff4, &mut across);
    assert_eq!(across, [0; 24]);
    guest.unit.read(u64::MAX - 1, &mut across);
    assert_eq!(across[..2], [0; 2]);
}

#[test]
fn commands_that_are_not_offered_are_ignored() {
    let guest = Guest::new(Capabilities::default());
    // SFL, EAFL, WBF; IRE, SIRTP, CFI.
    guest.write32(offset::GCMD, 7 << 27 | 7 << 23);
    assert_eq!(guest.read32(offset::GSTS), 0);
}

#[test]
fn interrupt_remapping_is_switched_by_its_commands() {
    let guest = Guest::new(everything());
    guest.write64(offset::IRTA, 0x5000 | 1 << 11 | 7);
    guest.write32(offset::GCMD, 1 << 24);
    assert_eq!(guest.read32(offset::GSTS), 1 << 24);
    assert_eq!(guest.unit.live.interrupt_table(), 0x5000 | 1 << 11 | 7);
    guest.write32(offset::GCMD, 1 << 25 | 1 << 23);
    assert_eq!(guest.read32(offset::GSTS), 1 << 25 | 1 << 24 | 1 << 23);
    guest.write32(offset::GCMD, 0);
    assert_eq!(guest.read32(offset::GSTS), 1 << 24, "IRTPS stays");
}

#[test]
fn the_root_table_address_is_in_force_from_the_command_on() {
    let guest = Guest::new(Capabilities::default());
    guest.write64(offset::RTADDR, 0x1000);
    assert_eq!(guest.unit.live.root(), 0);
    guest.write32(offset::GCMD, SRTP);
    guest.write64(offset::RTADDR, 0x2000);
    assert_eq!(guest.unit.live.root(), 0x1000);
}

#[test]
fn registers_invalidate_what_they_say_and_how_much() {
    let guest = Guest::new(Capabilities::default());
    let ear = Ear::of(&guest);
    guest.write64(offset::CCMD, 1 << 63 | 1 << 61);
    assert_eq!(guest.read64(offset::CCMD), 1 << 61 | 1 << 59);
    assert_eq!(ear.heard()[0].scope, Scope::Everything);
    // The upper half triggers: the lower was written before.
    guest.write64(offset::IVA, 0x1234_5000 | 4);
    guest.write32(offset::IOTLB, 0);
    guest.write32(offset::IOTLB + 4, 1 << 31 | 3 << 28 | 7);
    assert_eq!(guest.read64(offset::IOTLB), 3 << 60 | 3 << 57 | 7 << 32);
    let heard = ear.heard();
    assert_eq!(heard[0].scope, Scope::Domain(7));
    assert_eq!(heard[0].span.first().0, 0x1234_0000);
    assert_eq!(heard[0].span.last().0, 0x1234_ffff);
}

#[test]
fn an_invalidation_that_is_not_understood_is_done_with_granularity_0() {
    let guest = Guest::new(Capabilities::default());
    let ear = Ear::of(&guest);
    guest.write64(offset::CCMD, 1 << 63);
    assert_eq!(guest.read64(offset::CCMD), 0);
    guest.write64(offset::IOTLB, 1 << 63);
    assert_eq!(guest.read64(offset::IOTLB), 0);
    // AM beyond MAMV.
    guest.write64(offset::IVA, 19);
    guest.write64(offset::IOTLB, 1 << 63 | 3 << 60);
    assert_eq!(guest.read64(offset::IOTLB), 3 << 60);
    assert_eq!(ear.heard(), []);
}

#[test]
fn registers_do_not_invalidate_while_the_queue_is_on_or_in_scalable_mode() {
    let guest = Guest::new(Capabilities::default().scalable());
    let ear = Ear::of(&guest);
    guest.enable_queue(0);
    guest.write64(offset::CCMD, 1 << 63 | 1 << 61);
    assert_eq!(guest.read64(offset::CCMD), 1 << 61);
    guest.write64(offset::RTADDR, 0x1000 | 1 << 10);
    guest.write32(offset::GCMD, SRTP);
    guest.write64(offset::IOTLB, 1 << 63 | 1 << 60);
    assert_eq!(guest.read64(offset::IOTLB), 1 << 60);
    assert_eq!(ear.heard(), []);
}

#[test]
fn who_follows_domains_is_told_when_translation_is_switched() {
    let guest = Guest::new(Capabilities::default());
    let ear = Ear::of(&guest);
    guest.write32(offset::GCMD, TE);
    assert_eq!(ear.heard()[0].scope, Scope::Everything);
    guest.write32(offset::GCMD, TE);
    assert_eq!(ear.heard(), [], "nothing changed");
    guest.write32(offset::GCMD, 0);
    assert_eq!(ear.heard()[0].scope, Scope::Everything);
}

#[test]
fn pointers_invalidate_where_that_is_offered() {
    let guest = Guest::new(Capabilities::default());
    let ear = Ear::of(&guest);
    guest.write32(offset::GCMD, SRTP);
    assert_eq!(ear.heard(), []);
    let guest = Guest::new(Capabilities::default().pointers_invalidate());
    assert_eq!(guest.read64(offset::CAP) >> 63, 1);
    let ear = Ear::of(&guest);
    guest.write32(offset::GCMD, SRTP);
    assert_eq!(ear.heard()[0].scope, Scope::Everything);
}

#[test]
fn deferred_work_is_shown_when_it_is_done() {
    let woken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&woken);
    let unit = Vtd::builder(super::guest::Ram::new())
        .deferred(move || {
            count.fetch_add(1, Ordering::Relaxed);
        })
        .build()
        .unwrap();
    let status = || {
        let mut bytes = [0; 4];
        unit.read(offset::GSTS.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    };
    unit.write(offset::RTADDR.into(), &0x7000_u64.to_le_bytes());
    unit.write(offset::GCMD.into(), &SRTP.to_le_bytes());
    assert_eq!((status(), woken.load(Ordering::Relaxed)), (0, 1));
    // A second command before the first is done, and the register changes.
    unit.write(offset::RTADDR.into(), &0x8000_u64.to_le_bytes());
    unit.write(offset::GCMD.into(), &TE.to_le_bytes());
    while unit.work() {}
    assert_eq!(status(), SRTP | TE);
    assert_eq!(unit.live.root(), 0x7000);
}

#[test]
fn a_reset_is_power_on() {
    let guest = Guest::new(everything());
    let ear = Ear::of(&guest);
    let fresh = guest.unit.save();
    guest.enable_queue(1);
    guest.write64(offset::RTADDR, 0x1_0000 | 1 << 10);
    guest.write32(offset::GCMD, QIE | SRTP | TE);
    guest.submit(&[[0xf, 0]]);
    ear.heard();
    guest.unit.reset();
    assert_eq!(guest.unit.save(), fresh);
    assert_eq!(guest.unit.live.status(), 0);
    assert_eq!(ear.heard()[0].scope, Scope::Everything);
}

#[test]
fn contradicting_capabilities_build_no_unit() {
    let built = Vtd::builder(super::guest::Ram::new())
        .capabilities(Capabilities::default().nested())
        .build();
    assert!(matches!(built, Err(BuildError::Capabilities(_))));
}
