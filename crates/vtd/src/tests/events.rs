//! Several threads at the guest's side.

use std::sync::Barrier;
use std::thread;

use super::guest::{Guest, wait};
use crate::Capabilities;
use crate::spec::registers::offset;

#[test]
fn two_processors_that_write_at_once_lose_no_work() {
    let guest = Guest::new(Capabilities::default());
    guest.enable_queue(0);
    let barrier = Barrier::new(2);
    for round in 0..200_u32 {
        guest.put(super::guest::QUEUE, &wait(round * 2 + 1));
        guest.write32(offset::GCMD, 0);
        guest.write32(offset::IQT, 0);
        guest.write32(offset::GCMD, super::guest::QIE);
        thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                guest.write32(offset::IQT, 16);
            });
            scope.spawn(|| {
                barrier.wait();
                guest.write64(offset::CCMD, 1 << 63 | 1 << 61);
            });
        });
        assert_eq!(guest.read64(offset::IQH), 16);
        assert_eq!(guest.read64(offset::CCMD), 1 << 61);
    }
}

#[test]
fn who_saves_meanwhile_loses_no_work() {
    let guest = Guest::new(Capabilities::default());
    guest.enable_queue(0);
    let barrier = Barrier::new(2);
    for round in 0..200_u32 {
        guest.put(super::guest::QUEUE, &wait(round + 1));
        guest.write32(offset::GCMD, 0);
        guest.write32(offset::IQT, 0);
        guest.write32(offset::GCMD, super::guest::QIE);
        thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                guest.write32(offset::IQT, 16);
            });
            scope.spawn(|| {
                barrier.wait();
                guest.unit.save()
            });
        });
        assert_eq!(guest.read64(offset::IQH), 16);
    }
}
