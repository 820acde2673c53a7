//! Bad inputs that a unit survives, a test each. The list is the one at the end of the notes on performance and reliability:
//! lines 1 to 9, 13 and 14.

mod guest;
mod naive;

use guest::{Became, Guest};
use iogate_vtd::Capabilities;
use naive::generate::{DATA, HOLE, MEMORY_END, TABLES, memory};
use naive::{Access, Question};

const QUEUE: u64 = 0x1fff_0000;
const IQE: u32 = 1 << 4;
/// What a piece of queue work may access: a quantum of descriptors, and their status words.
const BOUND: u64 = 2048;

fn unit() -> Guest {
    Guest::new(Capabilities::default(), memory(), QUEUE)
}

fn set(guest: &Guest, at: u64, word: u64) {
    guest.memory.with(|plain| plain.set(at, word));
}

fn question(address: u64, access: Access) -> Question {
    Question {
        source: 0x20,
        pasid: None,
        address,
        access,
        privileged: false,
    }
}

/// Legacy tables in which function 00:04.0 has `pages` of 4 KiB from 0 on.
fn tables(guest: &mut Guest, pages: u64) {
    let [root, context, top] = [1, 2, 3].map(|n| TABLES + 0x1000 * n);
    set(guest, root, context | 1);
    set(guest, context + 0x200, top | 1);
    set(guest, context + 0x208, 0x102);
    for n in 3..6 {
        set(guest, TABLES + 0x1000 * n, (TABLES + 0x1000 * (n + 1)) | 3);
    }
    for n in 0..pages {
        set(guest, TABLES + 0x6000 + 8 * n, (DATA + 0x1000 * n) | 3);
    }
    guest.begin(root);
}

fn is_mapped(guest: &mut Guest, address: u64) -> bool {
    let became = guest.request(&question(address, Access::Read), 4);
    guest.take_record();
    matches!(became, Became::Memory { .. })
}

/// The queue at `address`, its tail at `tail`.
fn queue(guest: &Guest, address: u64, tail: u64) {
    guest.write_short(0x18, 0);
    guest.write(0x90, address);
    guest.write_short(0x18, 1 << 26);
    guest.write(0x88, tail);
}

#[test]
fn line_1_a_queue_without_base_or_with_a_tail_astray_is_an_error_and_not_a_loop() {
    // Never set: page 0, where no memory is.
    let guest = unit();
    guest.write_short(0x18, 1 << 26);
    guest.write(0x88, 0x10);
    assert_eq!(guest.read_short(0x34) & IQE, IQE);
    assert_eq!(guest.read(0x80), 0, "IQH");
    // Past the end of one page, in bits that only larger queues have.
    let guest = unit();
    queue(&guest, QUEUE, 0x1_0000);
    assert_eq!(guest.read_short(0x34) & IQE, IQE);
    // Not at a descriptor of 256 bits.
    let guest = Guest::new(Capabilities::default().scalable(), memory(), QUEUE);
    set(&guest, QUEUE, 0x11);
    queue(&guest, QUEUE | 1 << 11, 0x30);
    assert_eq!(guest.read_short(0x34) & IQE, IQE);
}

#[test]
fn line_1_a_queue_wraps_at_its_end_and_a_doorbell_is_bounded_work() {
    let guest = Guest::deferred(Capabilities::default(), memory(), QUEUE);
    for n in 0..0x8000 {
        set(&guest, DATA + 16 * n, 0x12);
    }
    // The largest queue, full.
    queue(&guest, DATA | 7, 0);
    guest.write(0x88, 0x7_fff0);
    let mut pieces = 0;
    loop {
        guest.memory.take_accesses();
        let more = guest.unit.work();
        let accesses = guest.memory.take_accesses();
        assert!(accesses <= BOUND, "{accesses} accesses in one piece");
        pieces += 1;
        if !more {
            break;
        }
    }
    assert!(pieces > 100, "{pieces} pieces for 32,767 descriptors");
    assert_eq!(guest.read(0x80), 0x7_fff0, "IQH");
    // The last one, and over the end.
    guest.write(0x88, 0x10);
    while guest.unit.work() {}
    assert_eq!(guest.read(0x80), 0x10);
    assert_eq!(guest.read_short(0x34), 0);
}

#[test]
fn line_2_records_that_are_full_overflow_and_a_fault_of_the_queue_is_told_beside_them() {
    let mut guest = Guest::new(Capabilities::default().fault_records(2), memory(), QUEUE);
    tables(&mut guest, 1);
    for n in 1..=3 {
        guest.request(&question(0x1000 * n, Access::Read), 4);
    }
    assert_eq!(guest.read_short(0x34) & 3, 3, "PFO and PPF");
    guest.write(0x90, HOLE);
    guest.write_short(0x18, 1 << 31);
    guest.write_short(0x18, 1 << 31 | 1 << 26);
    guest.write(0x88, 0x10);
    assert_eq!(guest.read_short(0x34) & (IQE | 3), IQE | 3);
    // All of it serviced, and the queue off, the unit goes on.
    guest.write_short(0x18, 1 << 31);
    guest.write_short(0x34, IQE | 1);
    assert!(guest.take_record().is_some() && guest.take_record().is_some());
    assert!(is_mapped(&mut guest, 0));
}

#[test]
fn line_3_reserved_descriptors_are_errors_and_so_is_no_status_address() {
    for word in [0x0_u64, 0xf, 0xb, 0x01, 0x02, 0xffff_ffff_ffff_ff11] {
        let guest = unit();
        set(&guest, QUEUE, word);
        queue(&guest, QUEUE, 0x10);
        assert_eq!(guest.read_short(0x34) & IQE, IQE, "descriptor {word:#x}");
        assert_eq!(guest.read(0x80), 0, "IQH stays at it");
    }
    // A status word where no memory is: lost, and nothing else.
    let guest = unit();
    set(&guest, QUEUE, 0x25);
    set(&guest, QUEUE + 8, HOLE);
    set(&guest, QUEUE + 16, 1 << 32 | 0x25);
    set(&guest, QUEUE + 24, QUEUE + 0x1000);
    queue(&guest, QUEUE, 0x20);
    guest.write_short(0x34, IQE);
    assert!(guest.read(0x80) <= 0x20);
}

#[test]
fn line_3_every_type_and_width_of_a_context_entry_is_answered() {
    for kind in 0..4 {
        for width in 0..8 {
            let mut guest = unit();
            tables(&mut guest, 1);
            set(&guest, TABLES + 0x2200, (TABLES + 0x3000) | (kind << 2) | 1);
            set(&guest, TABLES + 0x2208, 0x100 | width);
            guest.forget();
            let became = guest.request(&question(0, Access::Read), 4);
            let allowed = (kind == 0 || kind == 2) && (width == 1 || width == 2);
            let memory = matches!(became, Became::Memory { .. });
            assert!(!memory || allowed, "TT {kind}, AW {width}: {became:?}");
        }
    }
}

#[test]
fn line_4_structures_in_holes_and_in_the_units_own_registers_are_faults() {
    for address in [HOLE, 0xfed9_0000, 0xfee0_0000, MEMORY_END, 0x7_ffff_f000] {
        for level in 1..=6 {
            let mut guest = unit();
            tables(&mut guest, 1);
            let at = match level {
                1 => TABLES + 0x1000,
                2 => TABLES + 0x2200,
                n => TABLES + 0x1000 * n,
            };
            // Level 6 is the page itself: the hole is the device's to find.
            set(&guest, at, address | 3 & if level < 3 { 1 } else { 3 });
            guest.forget();
            let became = guest.request(&question(0, Access::Read), 4);
            assert!(
                level == 6 || matches!(became, Became::Refused(_)),
                "{address:#x} at level {level}: {became:?}"
            );
        }
    }
}

#[test]
fn line_4_tables_that_point_to_themselves_are_walked_once_a_level() {
    let mut guest = unit();
    tables(&mut guest, 1);
    let top = TABLES + 0x3000;
    for n in 0..512 {
        set(&guest, top + 8 * n, top | 3);
    }
    guest.forget();
    guest.memory.take_accesses();
    let became = guest.request(&question(0x12_3456_7000, Access::Read), 4);
    assert!(matches!(became, Became::Memory { address, .. } if address == top));
    assert!(
        guest.memory.take_accesses() <= 12,
        "root, context, four levels"
    );
}

#[test]
fn line_4_a_large_page_at_a_wrong_level_or_misaligned_is_reserved() {
    for (level, low) in [(3_u64, 0x83_u64), (4, 0x1083), (5, 0x1083)] {
        let mut guest = unit();
        tables(&mut guest, 1);
        set(&guest, TABLES + 0x1000 * level, DATA | low);
        guest.forget();
        let became = guest.request(&question(0, Access::Read), 4);
        let record = guest.take_record().map(|record| record.reason);
        assert_eq!(record, Some(0x0c), "level {level}: {became:?}");
    }
}

#[test]
fn line_5_addresses_above_the_domains_width_are_refused_up_to_the_last() {
    let mut guest = unit();
    tables(&mut guest, 1);
    for address in [1 << 48, 1 << 63, u64::MAX - 0xfff] {
        guest.request(&question(address, Access::Write), 0x1000);
        let record = guest.take_record().map(|record| record.reason);
        assert_eq!(record, Some(0x04), "{address:#x}");
    }
    // A domain of 39 bits in a unit of 48.
    set(&guest, TABLES + 0x2208, 0x101);
    guest.forget();
    guest.request(&question(1 << 40, Access::Read), 4);
    assert_eq!(guest.take_record().map(|record| record.reason), Some(0x04));
    // An address mask beyond MAMV.
    let guest = unit();
    set(&guest, QUEUE, 0x32);
    set(&guest, QUEUE + 8, 63);
    queue(&guest, QUEUE, 0x10);
    assert_eq!(guest.read_short(0x34) & IQE, IQE);
}

#[test]
fn line_6_an_invalidation_inside_a_large_page_drops_all_of_it() {
    let mut guest = unit();
    tables(&mut guest, 1);
    set(&guest, TABLES + 0x5000, DATA | 0x83);
    guest.forget();
    assert!(is_mapped(&mut guest, 0x1000) && is_mapped(&mut guest, 0x1f_f000));
    set(&guest, TABLES + 0x5000, 0);
    // One page in the middle, of domain 1; and of one that nobody has.
    guest.invalidate(&[[0x32 | 9 << 16, 0x8000], [0x32 | 1 << 16, 0x8000]]);
    assert!(!is_mapped(&mut guest, 0x1000) && !is_mapped(&mut guest, 0x1f_f000));
}

#[test]
fn line_7_an_entry_that_changes_under_the_walk_is_the_old_one_or_the_new_one() {
    for accesses in 0..10 {
        let mut guest = unit();
        tables(&mut guest, 1);
        guest
            .memory
            .change_later(accesses, TABLES + 0x6000, (DATA + 0x5000) | 3);
        let became = guest.request(&question(0, Access::Read), 4);
        let Became::Memory { address, .. } = became else {
            panic!("{became:?}");
        };
        assert!(address == DATA || address == DATA + 0x5000);
        // The same tables again: nothing new.
        guest.memory.change_now();
        guest.forget();
        assert!(is_mapped(&mut guest, 0));
    }
}

#[test]
fn line_8_a_doorbell_page_mapped_over_does_not_reach_the_interrupt_controller() {
    let mut guest = unit();
    tables(&mut guest, 1);
    set(&guest, TABLES + 0x6000, 0xfee0_0000 | 3);
    guest.forget();
    let became = guest.request(&question(0, Access::Write), 4);
    assert!(matches!(became, Became::Refused(_)), "{became:?}");
    assert_eq!(guest.take_record().map(|record| record.reason), Some(0x0e));
    // The doorbell itself is an interrupt, whatever tables say.
    let became = guest.request(&question(0xfee0_0000, Access::Write), 4);
    assert_eq!(became, Became::Message);
}

#[test]
fn line_9_dma_to_the_units_own_registers_ends_where_no_memory_is() {
    let mut guest = unit();
    tables(&mut guest, 1);
    set(&guest, TABLES + 0x6000, 0xfed9_0000 | 3);
    guest.forget();
    // The unit gives the address; memory has nothing there, so that registers are not reached.
    let became = guest.request(&question(0, Access::Write), 4);
    assert!(matches!(
        became,
        Became::Memory {
            address: 0xfed9_0000,
            ..
        }
    ));
    let memory: &dyn iogate_dma::Memory = &*guest.memory;
    assert!(memory.write(0xfed9_0018, &[0xff; 4]).is_err());
    assert_eq!(guest.read_short(0x1c) >> 31, 1, "translation is on");
}

#[test]
fn line_13_accesses_across_the_end_of_the_registers_and_of_odd_widths_do_no_harm() {
    let guest = unit();
    let before = [0x08, 0x10, 0x1c].map(|at| guest.read(at));
    for at in [0, 1, 0xffc, 0xfff, 0x1000, u64::MAX - 3, u64::MAX] {
        for length in 0..=16 {
            guest.unit.write(at, &vec![0; length]);
            let mut into = vec![0xaa; length];
            guest.unit.read(at, &mut into);
            let all = into.iter().all(|&byte| byte == 0);
            assert!(all || at < 0x1000, "{length} bytes at {at:#x}: {into:x?}");
        }
    }
    assert_eq!(before, [0x08, 0x10, 0x1c].map(|at| guest.read(at)));
}

#[test]
fn line_14_a_hostile_state_is_refused_or_taken_whole() {
    let mut guest = unit();
    tables(&mut guest, 1);
    let state = guest.unit.save();
    for length in 0..state.len() {
        assert!(
            guest.unit.restore(&state[..length]).is_err(),
            "{length} bytes"
        );
    }
    for at in 0..state.len() {
        let mut bytes = state.clone();
        bytes[at] ^= 0xff;
        if guest.unit.restore(&bytes).is_ok() {
            let taken = guest.unit.save();
            assert!(guest.unit.restore(&taken).is_ok(), "byte {at}");
        }
    }
    guest.unit.restore(&state).unwrap();
    assert!(is_mapped(&mut guest, 0));
}

#[test]
fn line_14_translation_goes_off_and_on_with_live_mappings_and_a_reset_forgets_them() {
    let mut guest = unit();
    tables(&mut guest, 1);
    assert!(is_mapped(&mut guest, 0) && !is_mapped(&mut guest, 0x1000));
    guest.write_short(0x18, 1 << 26);
    let through = guest.request(&question(0x1000, Access::Read), 4);
    assert!(matches!(
        through,
        Became::Memory {
            address: 0x1000,
            ..
        }
    ));
    guest.write_short(0x18, 1 << 31 | 1 << 26);
    assert!(is_mapped(&mut guest, 0) && !is_mapped(&mut guest, 0x1000));
    set(&guest, TABLES + 0x6000, 0);
    guest.unit.reset();
    guest.begin(TABLES + 0x1000);
    assert!(!is_mapped(&mut guest, 0));
}
