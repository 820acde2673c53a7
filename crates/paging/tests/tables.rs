//! Tables built, walked, scanned and flagged.

mod support;

use std::ops::ControlFlow;

use iogate_dma::{Access, Memory, Privilege};
use iogate_paging::vtd::{FirstStage, Levels, SecondStage, SupervisorWrites};
use iogate_paging::{
    Behind, BehindError, BuildError, Builder, Format, Mapped, Permissions, Reason, Scanned, scan,
    walk,
};
use support::Flat;

const RW: Permissions = Permissions::new(true, true, true);
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn pages(from: u64, to: u64) -> impl FnMut() -> Option<u64> {
    let mut next = from;
    move || {
        next += 1;
        (next <= to).then(|| (next - 1) << 12)
    }
}

fn runs<F: Format>(format: &F, root: u64, memory: &Flat, span: (u64, u64)) -> Vec<Mapped> {
    let memory: &dyn Memory = memory;
    let mut runs = Vec::new();
    let end = scan(
        format,
        root,
        &memory,
        span,
        Permissions::ALL,
        usize::MAX,
        |run| {
            runs.push(run);
            ControlFlow::Continue(())
        },
    );
    assert_eq!(end, Scanned::Whole);
    runs
}

#[test]
fn the_largest_pages_that_fit_are_used_and_seen_as_one_run() {
    let memory = Flat::pages(16);
    let format = SecondStage::new(Levels::Four);
    let mut tables = Builder::new(format, &memory, pages(0, 16)).unwrap();
    let length = GIB + 2 * MIB + 8192;
    tables.map(GIB, 5 * GIB, length, RW, 63).unwrap();
    let direct: &dyn Memory = &memory;
    for (offset, level, mask) in [
        (0, 3, GIB - 1),
        (GIB, 2, 2 * MIB - 1),
        (GIB + 2 * MIB, 1, 4095),
    ] {
        let at = GIB + offset + 123;
        let found = walk(
            &format,
            tables.root(),
            &direct,
            at,
            Access::Read,
            Privilege::User,
        );
        let found = found.unwrap();
        assert_eq!(
            (found.output, found.level, found.mask),
            (at + 4 * GIB, level, mask)
        );
    }
    let whole = runs(&format, tables.root(), &memory, (0, u64::MAX));
    let expected = Mapped {
        first: GIB,
        last: GIB + length - 1,
        output: 5 * GIB,
        permissions: RW,
    };
    assert_eq!(whole, [expected]);
    let clipped = runs(&format, tables.root(), &memory, (GIB + 5, GIB + 9));
    assert_eq!(
        clipped,
        [Mapped {
            first: GIB + 5,
            last: GIB + 9,
            output: 5 * GIB + 5,
            ..expected
        }]
    );
}

#[test]
fn unmapping_takes_whole_pages_only() {
    let memory = Flat::pages(16);
    let format = SecondStage::new(Levels::Three);
    let mut tables = Builder::new(format, &memory, pages(0, 16)).unwrap();
    tables.map(0, 0, 4 * MIB, RW, 21).unwrap();
    assert_eq!(tables.unmap(4096, 4096), Err(BuildError::Alignment(4096)));
    assert_eq!(
        tables.map(2 * MIB, 0, 4096, RW, 12),
        Err(BuildError::Taken(2 * MIB))
    );
    tables.unmap(2 * MIB, 8 * MIB).unwrap();
    let left = runs(&format, tables.root(), &memory, (0, u64::MAX));
    assert_eq!(
        left,
        [Mapped {
            first: 0,
            last: 2 * MIB - 1,
            output: 0,
            permissions: RW
        }]
    );
}

#[test]
fn a_read_sets_accessed_flags_and_a_write_the_dirty_flag_of_the_leaf() {
    let memory = Flat::pages(16);
    let format = FirstStage::new(Levels::Four);
    let mut tables = Builder::new(format, &memory, pages(0, 16)).unwrap();
    tables.map(0x1000, 0x5000, 4096, RW, 12).unwrap();
    let direct: &dyn Memory = &memory;
    let slots = [4, 3, 2, 1].map(|level| tables.slot(0x1000, level).unwrap());
    let flags = |memory: &Flat| slots.map(|slot| memory.get(slot).unwrap() & 0x60);
    assert_eq!(flags(&memory), [0; 4]);
    walk(&format, 0, &direct, 0x1000, Access::Read, Privilege::User).unwrap();
    assert_eq!(flags(&memory), [0x20; 4]);
    walk(&format, 0, &direct, 0x1000, Access::Write, Privilege::User).unwrap();
    assert_eq!(flags(&memory), [0x20, 0x20, 0x20, 0x60]);
}

#[test]
fn a_refused_access_sets_no_flag() {
    let memory = Flat::pages(16);
    let format = FirstStage::new(Levels::Four);
    let mut tables = Builder::new(format, &memory, pages(0, 16)).unwrap();
    let read_only = Permissions::new(true, false, true);
    tables.map(0x1000, 0x5000, 4096, read_only, 12).unwrap();
    let direct: &dyn Memory = &memory;
    let stop = walk(&format, 0, &direct, 0x1000, Access::Write, Privilege::User).unwrap_err();
    assert_eq!((stop.level, stop.reason), (1, Reason::Permission));
    assert_eq!(memory.get(stop.address).unwrap() & 0x60, 0);
}

#[test]
fn a_supervisor_writes_to_read_only_pages_unless_write_protection_is_on() {
    let memory = Flat::pages(16);
    let mut format = FirstStage::new(Levels::Four);
    let mut tables = Builder::new(format, &memory, pages(0, 16)).unwrap();
    let read_only = Permissions::new(true, false, true).with_user(false);
    tables.map(0x1000, 0x5000, 4096, read_only, 12).unwrap();
    let direct: &dyn Memory = &memory;
    let write = |format: &FirstStage, privilege| {
        walk(format, 0, &direct, 0x1000, Access::Write, privilege).map_err(|stop| stop.reason)
    };
    assert_eq!(
        write(&format, Privilege::Supervisor).unwrap_err(),
        Reason::Permission
    );
    format.supervisor_writes = SupervisorWrites::Allowed;
    assert!(write(&format, Privilege::Supervisor).is_ok());
    assert_eq!(
        write(&format, Privilege::User).unwrap_err(),
        Reason::Permission
    );
}

#[test]
fn nested_tables_are_read_through_the_second_stage() {
    let memory = Flat::pages(64);
    let second = SecondStage::new(Levels::Three);
    let mut host = Builder::new(second, &memory, pages(0, 16)).unwrap();
    // Guest-physical page n is page n + 32.
    host.map(0, 32 << 12, 16 << 12, RW, 12).unwrap();
    let first = FirstStage::new(Levels::Four);
    let guest = Flat::pages(16);
    let mut tables = Builder::new(first, &guest, pages(0, 16)).unwrap();
    tables
        .map(0xffff_8000_0000_0000, 0x9000, 8192, RW, 12)
        .unwrap();
    for (index, entry) in guest.0.iter().enumerate() {
        memory.set(
            (32 << 12) + 8 * index as u64,
            entry.load(std::sync::atomic::Ordering::Relaxed),
        );
    }
    let direct: &dyn Memory = &memory;
    let behind = Behind {
        format: &second,
        root: host.root(),
        tables: &direct,
    };
    let at = 0xffff_8000_0000_1008;
    let found = walk(&first, 0, &behind, at, Access::Read, Privilege::User).unwrap();
    assert_eq!(found.output, 0xa008);
    let mut seen = Vec::new();
    scan(
        &first,
        0,
        &behind,
        (0, u64::MAX),
        Permissions::ALL,
        usize::MAX,
        |run| {
            seen.push((run.first, run.last, run.output));
            ControlFlow::Continue(())
        },
    );
    assert_eq!(
        seen,
        [(0xffff_8000_0000_0000, 0xffff_8000_0000_1fff, 0x9000)]
    );
    host.unmap(0x1000, 4096).unwrap();
    let stop = walk(&first, 0, &behind, at, Access::Read, Privilege::User).unwrap_err();
    let Reason::Table(BehindError::Stage { address, stop }) = stop.reason else {
        panic!("{stop}");
    };
    assert_eq!(
        (address >> 12, stop.level, stop.reason),
        (1, 1, Reason::Absent)
    );
}

#[test]
fn a_table_that_points_to_itself_ends_a_walk_and_a_scan() {
    let memory = Flat::pages(1);
    for index in 0..512 {
        memory.set(index * 8, 3);
    }
    let format = SecondStage::new(Levels::Five);
    let direct: &dyn Memory = &memory;
    let found = walk(
        &format,
        0,
        &direct,
        0x1234_5678,
        Access::Read,
        Privilege::User,
    )
    .unwrap();
    assert_eq!((found.output, found.level), (0x678, 1));
    let end = scan(
        &format,
        0,
        &direct,
        (0, u64::MAX),
        Permissions::ALL,
        1_000,
        |_| ControlFlow::Continue(()),
    );
    assert!(matches!(end, Scanned::Until(at) if at > 0));
}

#[test]
fn contiguous_leaves_that_grow_past_the_address_width_are_cut_there() {
    let memory = Flat::pages(4);
    let mut format = SecondStage::new(Levels::Three);
    format.output_bits = 36;
    memory.set(0, 0x1003);
    memory.set(0x1000, 0x2003);
    let top = 1_u64 << 36;
    for index in 0..64 {
        memory.set(0x2000 + index * 8, (top - (32 << 12) + (index << 12)) | 3);
    }
    let found = runs(&format, 0, &memory, (0, u64::MAX));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].first, found[0].last), (0, (32 << 12) - 1));
}

#[test]
fn who_is_told_can_stop_a_scan() {
    let memory = Flat::pages(8);
    let format = SecondStage::new(Levels::Three);
    let mut tables = Builder::new(format, &memory, pages(0, 8)).unwrap();
    for page in 0..4 {
        tables.map(page << 13, page << 12, 4096, RW, 12).unwrap();
    }
    let direct: &dyn Memory = &memory;
    let mut told = 0;
    let end = scan(
        &format,
        0,
        &direct,
        (0, u64::MAX),
        Permissions::ALL,
        usize::MAX,
        |_| {
            told += 1;
            if told == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    assert_eq!((end, told), (Scanned::Stopped, 2));
}
