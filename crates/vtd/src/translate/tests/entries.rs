//! Root, context and PASID entries: VT-d 4.1 sections 9.1 to 9.6 and 7.1.3.

use iogate_dma::{Access, FaultReason, Kind, Rights};
use iogate_paging::Permissions;
use iogate_paging::vtd::{Levels, SecondStage};

use super::world::*;
use crate::spec::fault::Reason;

fn second(world: &mut World, levels: Levels) -> u64 {
    let map = (0x1000, 0x8000, 0x1000, Permissions::ALL, 12);
    world.tables(SecondStage::new(levels), &[map])
}

#[test]
fn without_translation_addresses_stay() {
    let world = World::legacy();
    world.unit.live.set_status(0);
    let (output, length, rights) = world
        .ask(&request(DEVICE, 0x1234, 0x10_0000, Access::Read))
        .unwrap();
    assert_eq!(
        (output, length, rights),
        (0x1234, 0x10_0000, Rights::READ_WRITE)
    );
    let ats = of_kind(
        request(DEVICE, 0, 8, Access::Read),
        Kind::TranslationRequest,
    );
    assert_eq!(world.ask(&ats).unwrap_err().reason, FaultReason::Blocked);
}

#[test]
fn a_legacy_context_entry_leads_to_its_second_stage() {
    let mut world = World::legacy();
    let root = second(&mut world, Levels::Four);
    world.context(root | 1, 0x0702);
    assert_eq!(world.access(0x1ff8, Access::Write).unwrap(), 0x8ff8);
    let (_, length, rights) = world
        .ask(&request(DEVICE, 0x1ff0, 64, Access::Read))
        .unwrap();
    assert_eq!((length, rights), (16, Rights::READ_WRITE));
    assert_eq!(world.read_reason(0x2000), Reason::NO_READ);
}

#[test]
fn each_fault_of_legacy_root_and_context_entries_has_its_reason() {
    let mut world = World::legacy();
    let root = second(&mut world, Levels::Four);
    assert_eq!(world.read_reason(0x1000), Reason::CONTEXT_ABSENT);
    for (low, high, reason) in [
        (root | 1 | 1 << 4, 2, Reason::CONTEXT_RESERVED),
        (root | 1, 2 | 1 << 7, Reason::CONTEXT_RESERVED),
        (root | 1, 2 | 1 << 24, Reason::CONTEXT_RESERVED),
        (root | 1 | 1 << 50, 2, Reason::CONTEXT_RESERVED),
        (root | 1 | 3 << 2, 2, Reason::CONTEXT_INVALID),
        (root | 1, 0, Reason::CONTEXT_INVALID),
        (root | 1, 3, Reason::CONTEXT_INVALID),
        (root | 1, 7, Reason::CONTEXT_INVALID),
        (SIZE | 1, 2, Reason::CONTEXT_INVALID),
    ] {
        world.context(low, high);
        assert_eq!(world.read_reason(0x1000), reason, "{low:#x} {high:#x}");
    }
    // AVAIL is for software.
    world.context(root | 1, 2 | 0xf << 3);
    assert_eq!(world.access(0x1000, Access::Read).unwrap(), 0x8000);
    for (words, reason) in [
        ([SIZE | 1, 0], Reason::CONTEXT_ACCESS),
        ([CONTEXT | 3, 0], Reason::ROOT_RESERVED),
        ([CONTEXT | 1, 1], Reason::ROOT_RESERVED),
        ([CONTEXT | 1 | 1 << 48, 0], Reason::ROOT_RESERVED),
        ([CONTEXT, 0], Reason::ROOT_ABSENT),
    ] {
        world.ram.set(ROOT, &words);
        assert_eq!(world.read_reason(0x1000), reason, "{words:x?}");
    }
    world.unit.live.set_root(SIZE);
    assert_eq!(world.read_reason(0x1000), Reason::ROOT_ACCESS);
    world.unit.live.set_root(ROOT | 1 << 10);
    assert_eq!(world.read_reason(0x1000), Reason::ROOT_TABLE_INVALID);
    world.unit.live.set_root(ROOT);
    let with_pasid = request(pasid(1), 0x1000, 8, Access::Read);
    assert_eq!(world.reason(&with_pasid), Reason::PASID_IN_LEGACY);
    assert_eq!(
        world.ask(&with_pasid).unwrap_err().reason,
        FaultReason::NoPasid
    );
}

#[test]
fn an_address_beyond_the_width_of_a_context_is_no_alias_of_one_within() {
    let mut world = World::legacy();
    let root = second(&mut world, Levels::Three);
    world.context(root | 1, 1);
    assert_eq!(world.access(0x1000, Access::Read).unwrap(), 0x8000);
    for beyond in [1 << 39, 1 << 40, 1 << 48, 1 << 57] {
        assert_eq!(world.read_reason(0x1000 + beyond), Reason::ADDRESS_WIDTH);
    }
}

#[test]
fn device_tlbs_are_served_by_translation_type_1_only() {
    let mut world = World::legacy();
    let root = second(&mut world, Levels::Four);
    let ats = of_kind(
        request(DEVICE, 0x1000, 8, Access::Read),
        Kind::TranslationRequest,
    );
    let translated = of_kind(request(DEVICE, 0x9000, 8, Access::Read), Kind::Translated);
    for blocked in [root | 1, root | 1 | 2 << 2] {
        world.context(blocked, 2);
        assert_eq!(world.reason(&ats), Reason::TYPE_BLOCKED);
        assert_eq!(world.reason(&translated), Reason::TYPE_BLOCKED);
    }
    world.context(root | 1 | 1 << 2, 2);
    assert_eq!(world.ask(&ats).unwrap(), (0x8000, 8, Rights::READ_WRITE));
    assert_eq!(world.ask(&translated).unwrap().0, 0x9000);
    let nothing = of_kind(
        request(DEVICE, 0x2000, 8, Access::Write),
        Kind::TranslationRequest,
    );
    assert_eq!(world.ask(&nothing).unwrap().2, Rights::NONE);
}

#[test]
fn pass_through_leaves_addresses_as_they_are_and_stops_at_the_interrupt_range() {
    let world = World::legacy();
    world.context(1 | 2 << 2, 2);
    assert_eq!(world.access(0x1234, Access::Write).unwrap(), 0x1234);
    assert_eq!(world.read_reason(1 << 48), Reason::ADDRESS_WIDTH);
    let long = request(DEVICE, 0xfedf_ff00, 0x1000, Access::Read);
    assert_eq!(world.ask(&long).unwrap().1, 0x100);
    let read = request(DEVICE, 0xfee0_0000, 4, Access::Read);
    assert_eq!(world.ask(&read).unwrap_err().reason, FaultReason::Reserved);
}

#[test]
fn each_fault_of_scalable_entries_has_its_reason() {
    let mut world = World::scalable();
    let root = second(&mut world, Levels::Four);
    let entry = [root | 2 << 6 | 2 << 2 | 1, 7, 0, 0, 0, 0, 0, 0];
    assert_eq!(world.read_reason(0x1000), Reason::SM_PASID_ABSENT);
    for (index, bits, reason) in [
        (0, 1 << 5, Reason::SM_PASID_RESERVED),
        (0, 1 << 10, Reason::SM_PASID_RESERVED),
        (0, 1 << 48, Reason::SM_PASID_RESERVED),
        (1, 1 << 16, Reason::SM_PASID_RESERVED),
        (3, 1, Reason::SM_PASID_RESERVED),
        (7, 1 << 63, Reason::SM_PASID_RESERVED),
        (0, 4 << 6, Reason::SM_PASID_INVALID),
        (0, 1 << 2, Reason::SM_PASID_INVALID),
    ] {
        let mut words = entry;
        words[index] |= bits;
        world.pasid(0, &words);
        assert_eq!(world.read_reason(0x1000), reason, "{index} {bits:#x}");
    }
    world.pasid(0, &entry);
    assert_eq!(world.access(0x1000, Access::Read).unwrap(), 0x8000);
    assert_eq!(world.read_reason(0x3000), Reason::SM_SECOND_ABSENT);
    assert_eq!(world.read_reason(1 << 48), Reason::SM_ADDRESS_WIDTH);
    let beyond = request(pasid(1 << 13), 0, 8, Access::Read);
    assert_eq!(world.reason(&beyond), Reason::SM_PASID_BEYOND);
    let within = request(pasid((1 << 13) - 1), 0, 8, Access::Read);
    assert_eq!(world.reason(&within), Reason::SM_DIRECTORY_ABSENT);
    for (word, reason) in [
        (SIZE | 1, Reason::SM_PASID_ACCESS),
        (PASIDS | 5, Reason::SM_DIRECTORY_RESERVED),
        (PASIDS, Reason::SM_DIRECTORY_ABSENT),
    ] {
        world.ram.set(DIRECTORY, &[word]);
        assert_eq!(world.read_reason(0x1000), reason);
    }
    let ats = of_kind(
        request(DEVICE, 0, 8, Access::Read),
        Kind::TranslationRequest,
    );
    let with_pasid = request(pasid(1), 0, 8, Access::Read);
    for (low, high, reason, asks) in [
        (DIRECTORY | 1, 0, Reason::SM_NO_DEVICE_TLB, &ats),
        (DIRECTORY | 1, 0, Reason::SM_NO_PASID, &with_pasid),
        (
            DIRECTORY | 1,
            1 << 13,
            Reason::SM_RID_PASID,
            &request(DEVICE, 0, 8, Access::Read),
        ),
        (DIRECTORY | 1 | 1 << 5, 0, Reason::SM_CONTEXT_RESERVED, &ats),
        (DIRECTORY | 1, 1 << 20, Reason::SM_CONTEXT_RESERVED, &ats),
        (DIRECTORY, 0, Reason::SM_CONTEXT_ABSENT, &ats),
        (SIZE | 1 | 4, 0, Reason::SM_DIRECTORY_ACCESS, &ats),
    ] {
        world.ram.set(CONTEXT + 0x10 * 32, &[low, high]);
        assert_eq!(world.reason(asks), reason);
    }
    // Devices 16-31 have the upper half.
    let upper = request(iogate_dma::RequesterId(0x80), 0, 8, Access::Read);
    assert_eq!(world.reason(&upper), Reason::SM_CONTEXT_ABSENT);
    world.ram.set(ROOT, &[CONTEXT | 1, 0]);
    assert_eq!(world.reason(&upper), Reason::SM_ROOT_ABSENT);
    world.ram.set(ROOT, &[CONTEXT | 3, 0]);
    assert_eq!(world.read_reason(0), Reason::SM_ROOT_RESERVED);
}

#[test]
fn fault_processing_disable_counts_in_every_structure_even_without_present() {
    let world = World::legacy();
    let quiet = |world: &World, source| match world.unit.enter(source, Kind::Untranslated) {
        Ok(domain) => domain.head.quiet(),
        Err(denied) => denied.quiet,
    };
    assert!(!quiet(&world, DEVICE.into()));
    world.context(2, 0);
    assert!(quiet(&world, DEVICE.into()));
    let world = World::scalable();
    assert!(!quiet(&world, pasid(1)));
    world.pasid(1, &[2]);
    assert!(quiet(&world, pasid(1)));
    assert!(!quiet(&world, pasid(2)));
    world.ram.set(DIRECTORY, &[PASIDS | 3]);
    assert!(quiet(&world, pasid(2)));
    assert!(!quiet(&world, pasid(64)));
    world.ram.set(CONTEXT + 0x10 * 32, &[DIRECTORY | 0x1f]);
    assert!(quiet(&world, pasid(64)));
}

#[test]
fn a_function_outside_of_the_scope_is_refused() {
    let ram = Flat::new(SIZE);
    let unit = crate::Vtd::builder(ram).scope([DEVICE]).build().unwrap();
    assert!(unit.is_behind(DEVICE));
    assert!(!unit.is_behind(iogate_dma::RequesterId(0x18)));
    assert_eq!(unit.domain_now(iogate_dma::RequesterId(0x18).into()), None);
}
