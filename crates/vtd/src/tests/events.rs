//! Several threads at the guest's side.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use iogate_dma::{Iova, Memory, RequesterId, Width};

use super::guest::{Guest, QIE, QUEUE, Ram, SRTP, STATUS, TE, wait};
use crate::spec::registers::offset;
use crate::{Capabilities, Vtd};

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

/// Lets the others end, however one ends.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_worker_a_guest_and_devices_wait_for_each_other_only_as_long_as_they_must() {
    let ram = Ram::new();
    let (wake, woken) = mpsc::channel::<()>();
    let wake = Mutex::new(wake);
    let unit = Vtd::builder(Arc::clone(&ram) as _)
        .deferred(move || wake.lock().unwrap().send(()).unwrap())
        .build()
        .unwrap();
    let read = |at: u16| {
        let mut bytes = [0; 8];
        unit.read(at.into(), &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let write32 = |at: u16, value: u32| unit.write(at.into(), &value.to_le_bytes());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (unit, done) = (&unit, &done);
        scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                if woken.recv_timeout(Duration::from_millis(20)).is_ok() {
                    while unit.work() {}
                }
            }
        });
        for function in 0..2 {
            let mut port = unit.port(RequesterId(0x28 + function).into());
            scope.spawn(move || {
                let mut round = 0_u64;
                while !done.load(Ordering::SeqCst) {
                    // Once translation is on each is a fault, recorded under a
                    // guard: the root table is empty.
                    let _ = port.read(Iova(round << 12), &mut [0; 4]);
                    round += 1;
                }
            });
        }
        scope.spawn(|| {
            let _ended = Ended(done);
            unit.write(offset::IQA.into(), &QUEUE.to_le_bytes());
            write32(offset::GCMD, QIE | SRTP | TE);
            while read(offset::GSTS) as u32 & TE == 0 {
                thread::yield_now();
            }
            for round in 0..100_u32 {
                let tail = read(offset::IQT);
                for (at, [low, high]) in [(0, [1 << 4 | 2, 0]), (16, wait(round + 1))] {
                    let at = QUEUE + (tail + at) % 4096;
                    ram.write(at, &u64::to_le_bytes(low)).unwrap();
                    ram.write(at + 8, &u64::to_le_bytes(high)).unwrap();
                }
                write32(offset::IQT, ((tail + 32) % 4096) as u32);
                while ram.load(STATUS, Width::Dword).unwrap() != u64::from(round + 1) {
                    thread::yield_now();
                }
                for record in 0..8 {
                    write32(offset::FRCD + 16 * record + 12, 1 << 31);
                }
                write32(offset::FSTS, 1);
                if round % 50 == 0 {
                    unit.restore(&unit.save()).unwrap();
                }
            }
        });
    });
    assert_eq!(read(offset::FSTS) as u32 & 0x70, 0, "no queue error");
}
