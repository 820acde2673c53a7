//! What is remembered, and what is forgotten when the guest says so: VT-d 4.1
//! sections 6.2 and 6.5.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iogate_dma::{Access, Iova, Outcome, Pasid, RequesterId, Span, Translate};
use iogate_paging::Permissions;
use iogate_paging::vtd::{FirstStage, Levels, SecondStage};

use super::world::*;
use crate::invalidate::Invalidation;

const OTHER: RequesterId = RequesterId(0x18);

fn pages(domain: u16, first: u64, last: u64) -> Invalidation {
    Invalidation::IotlbPages {
        domain,
        span: Span::new(Iova(first), Iova(last)).unwrap(),
        leaf_only: false,
    }
}

fn pasid_pages(domain: u16, pasid: u32, address: u64) -> Invalidation {
    Invalidation::PasidIotlbPages {
        domain,
        pasid: Pasid::new(pasid).unwrap(),
        span: Span::new(Iova(address), Iova(address | 0xfff)).unwrap(),
        leaf_only: false,
    }
}

/// Where the leaf entry for `address` stands, at `level`.
fn leaf(world: &World, root: u64, address: u64, level: u32) -> u64 {
    let mut table = root;
    for level in (level + 1..=4).rev() {
        let index = address >> (level * 9 + 3) & 511;
        table = world.ram.get(table + index * 8) & 0xf_ffff_ffff_f000;
    }
    table + (address >> (level * 9 + 3) & 511) * 8
}

/// A legacy world in which [`DEVICE`] is in domain 7 and [`OTHER`] in 8, with
/// the same tables: pages of 4 KiB at 0x1000 and 0x2000, of 2 MiB at 0x20_0000,
/// of 1 GiB at 0x4000_0000.
fn two_domains() -> (World, u64) {
    let mut world = World::legacy();
    let all = Permissions::ALL;
    let root = world.tables(
        SecondStage::new(Levels::Four),
        &[
            (0x1000, 0x8000, 0x2000, all, 12),
            (0x20_0000, 0x4000_0000, 0x20_0000, all, 21),
            (0x4000_0000, 0x8000_0000, 0x4000_0000, all, 30),
        ],
    );
    world.context(root | 1, 0x0702);
    world.ram.set(CONTEXT + 0x18 * 16, &[root | 1, 0x0802]);
    (world, root)
}

fn other(world: &World, iova: u64) -> bool {
    world.ask(&request(OTHER, iova, 8, Access::Read)).is_ok()
}

fn this(world: &World, iova: u64) -> bool {
    world.access(iova, Access::Read).is_ok()
}

#[test]
fn a_translation_stays_until_its_domain_is_invalidated() {
    let (world, root) = two_domains();
    assert!(this(&world, 0x1000) && other(&world, 0x1000));
    world.ram.set(leaf(&world, root, 0x1000, 1), &[0]);
    assert!(this(&world, 0x1000) && other(&world, 0x1000));
    // Other kinds, domains and pages leave it alone.
    world.unit.invalidate(&[
        Invalidation::ContextGlobal,
        Invalidation::PasidGlobal,
        Invalidation::IotlbDomain { domain: 9 },
        pages(7, 0x2000, 0x2fff),
        pages(7, 0, 0xfff),
    ]);
    assert!(this(&world, 0x1000) && other(&world, 0x1000));
    world
        .unit
        .invalidate(&[Invalidation::IotlbDomain { domain: 7 }]);
    assert!(!this(&world, 0x1000) && other(&world, 0x1000));
    world.unit.invalidate(&[pages(8, 0x1000, 0x1fff)]);
    assert!(!other(&world, 0x1000));
}

#[test]
fn a_domain_stays_until_context_entries_are_invalidated() {
    let (world, _) = two_domains();
    assert!(this(&world, 0x1000));
    world.ram.set(CONTEXT + 0x10 * 16, &[0]);
    world.unit.invalidate(&[Invalidation::IotlbGlobal]);
    assert!(this(&world, 0x1000));
    let device = Invalidation::ContextDevice {
        domain: 7,
        source: DEVICE,
        mask: 0,
    };
    world.unit.invalidate(&[device]);
    assert!(!this(&world, 0x1000));
}

#[test]
fn what_is_not_there_is_never_remembered() {
    let (world, root) = two_domains();
    assert!(!this(&world, 0x3000));
    let source = world.ram.get(leaf(&world, root, 0x1000, 1));
    world.ram.set(leaf(&world, root, 0x3000, 1), &[source]);
    assert!(this(&world, 0x3000));
}

#[test]
fn one_page_invalidated_inside_of_a_large_one_takes_all_of_it() {
    for (base, level, far) in [(0x20_0000, 2, 0x3f_f000), (0x4000_0000, 3, 0x7fff_f000)] {
        let (world, root) = two_domains();
        assert!(this(&world, base) && this(&world, far) && other(&world, far));
        world.ram.set(leaf(&world, root, base, level), &[0]);
        assert!(this(&world, base + 0x1000), "one entry serves all of it");
        world
            .unit
            .invalidate(&[pages(7, base + 0x1000, base + 0x1fff)]);
        assert!(!this(&world, base) && !this(&world, far));
        assert!(other(&world, far));
        // More pages than are worth looking for.
        world.unit.invalidate(&[pages(8, 0, u64::MAX)]);
        assert!(!other(&world, far));
    }
}

#[test]
fn a_write_walks_again_where_only_a_read_has_been() {
    let mut world = World::scalable();
    let all = Permissions::ALL;
    let root = world.tables(
        FirstStage::new(Levels::Four),
        &[(0x1000, 0x8000, 0x1000, all, 12)],
    );
    world.pasid(0, &[1 << 6 | 1, 3, root]);
    let at = leaf(&world, root, 0x1000, 1);
    world.access(0x1000, Access::Read).unwrap();
    assert_eq!(world.ram.get(at) & 1 << 6, 0);
    world.access(0x1000, Access::Write).unwrap();
    assert_ne!(world.ram.get(at) & 1 << 6, 0);
    // Permission may grow without an invalidation.
    let entry = world.ram.get(at);
    world.ram.set(at, &[entry & !2]);
    world.forget();
    world.access(0x1000, Access::Read).unwrap();
    world.access(0x1000, Access::Write).unwrap_err();
    world.ram.set(at, &[entry]);
    world.access(0x1000, Access::Write).unwrap();
}

/// Two PASIDs of one domain with the same first-stage tables, nested or not.
fn two_pasids(nested: bool) -> (World, u64) {
    let mut world = World::scalable();
    let all = Permissions::ALL;
    let maps = [
        (0x1000, 0x8000, 0x2000, all, 12),
        (0x20_0000, 0x20_0000, 0x20_0000, all, 21),
    ];
    let root = world.tables(FirstStage::new(Levels::Four), &maps);
    let second = [(0, 0, 0x40_0000, all, 12)];
    let second = world.tables(SecondStage::new(Levels::Four), &second);
    let low = if nested {
        second | 3 << 6 | 2 << 2 | 1
    } else {
        1 << 6 | 1
    };
    world.pasid(1, &[low, 5, root]);
    world.pasid(2, &[low, 5, root]);
    (world, root)
}

fn reads(world: &World, number: u32, iova: u64) -> bool {
    world
        .ask(&request(pasid(number), iova, 8, Access::Read))
        .is_ok()
}

#[test]
fn a_pasid_is_invalidated_by_itself() {
    for nested in [false, true] {
        let (world, root) = two_pasids(nested);
        assert!(reads(&world, 1, 0x1000) && reads(&world, 2, 0x1000));
        world.ram.set(leaf(&world, root, 0x1000, 1), &[0]);
        world
            .unit
            .invalidate(&[pasid_pages(5, 1, 0x2000), pasid_pages(6, 1, 0x1000)]);
        assert!(reads(&world, 1, 0x1000) && reads(&world, 2, 0x1000));
        world.unit.invalidate(&[pasid_pages(5, 1, 0x1000)]);
        assert!(!reads(&world, 1, 0x1000) && reads(&world, 2, 0x1000));
        let pasid = Pasid::new(2).unwrap();
        world
            .unit
            .invalidate(&[Invalidation::PasidIotlb { domain: 5, pasid }]);
        assert!(!reads(&world, 2, 0x1000));
    }
}

#[test]
fn a_large_page_cut_by_the_second_stage_is_forgotten_whole() {
    let (world, root) = two_pasids(true);
    let (here, there) = (0x20_0000, 0x20_5000);
    assert!(reads(&world, 1, here) && reads(&world, 1, there));
    world.ram.set(leaf(&world, root, here, 2), &[0]);
    assert!(reads(&world, 1, here) && reads(&world, 1, there));
    world.unit.invalidate(&[pasid_pages(5, 1, here)]);
    assert!(!reads(&world, 1, here) && !reads(&world, 1, there));
}

#[test]
fn second_stage_pages_invalidated_take_nested_translations_along() {
    let (world, root) = two_pasids(true);
    assert!(reads(&world, 1, 0x1000));
    world.ram.set(leaf(&world, root, 0x1000, 1), &[0]);
    world.unit.invalidate(&[pages(5, 0x8000, 0x8fff)]);
    assert!(!reads(&world, 1, 0x1000));
}

#[test]
fn more_translations_than_there_is_room_for_are_all_right() {
    let mut world = World::legacy();
    let count = 400_u64;
    // Every page falls into one set.
    let maps: Vec<_> = (0..count)
        .map(|page| (page << 26, page << 12, 0x1000, Permissions::ALL, 12))
        .collect();
    let root = world.tables(SecondStage::new(Levels::Four), &maps);
    world.context(root | 1, 0x0702);
    for _ in 0..3 {
        for page in 0..count {
            assert_eq!(world.access(page << 26, Access::Read).unwrap(), page << 12);
        }
    }
}

/// A guest thread changes a mapping, invalidates, and only then calls the old
/// page its own; workers translate all the time and must never be led there.
#[test]
fn nothing_stale_is_used_after_an_invalidation_has_ended() {
    let (world, root) = two_domains();
    let slot = leaf(&world, root, 0x1000, 1);
    let world = Arc::new(world);
    let (forbidden, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let uses = [DEVICE, OTHER].map(|_| Arc::new(AtomicU64::new(0)));
    let workers = [(DEVICE, &uses[0]), (OTHER, &uses[1])].map(|(source, uses)| {
        let (world, forbidden, stop) = (world.clone(), forbidden.clone(), stop.clone());
        let uses = uses.clone();
        std::thread::spawn(move || {
            let mut participant = world.unit.gate().join();
            while !stop.load(Ordering::Relaxed) {
                let guard = participant.enter();
                let request = request(source, 0x1000, 8, Access::Read);
                if let Ok(Outcome::Memory(run)) = world.unit.translate(&guard, &request) {
                    // While the guard is held the page must not be taken,
                    // however long that is.
                    if uses.load(Ordering::Relaxed) % 8 == 0 {
                        std::thread::yield_now();
                    }
                    for _ in 0..50 {
                        assert_ne!(run.address(), forbidden.load(Ordering::SeqCst));
                    }
                    uses.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    let few = || uses.iter().any(|uses| uses.load(Ordering::Relaxed) < 500);
    for round in (1_u64..).take_while(|round| *round < 200 || few()) {
        assert!(workers.iter().all(|worker| !worker.is_finished()));
        let (old, new) = (0x8000 + (round - 1) * 0x1000, 0x8000 + round * 0x1000);
        let entry = if round % 7 == 0 { 0 } else { new | 3 };
        forbidden.store(0, Ordering::SeqCst);
        world.ram.set(slot, &[entry]);
        let batch = match round % 3 {
            0 => vec![pages(7, 0x1000, 0x1fff), pages(8, 0x1000, 0x1fff)],
            1 => vec![Invalidation::IotlbGlobal],
            _ => vec![
                Invalidation::ContextGlobal,
                Invalidation::IotlbDomain { domain: 7 },
                Invalidation::IotlbDomain { domain: 8 },
            ],
        };
        world.unit.invalidate(&batch);
        forbidden.store(old, Ordering::SeqCst);
        for _ in 0..500 {
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().unwrap();
    }
}
