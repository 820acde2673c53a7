//! Devices behind a unit: interrupts that they write, and translations that
//! they keep. VT-d 4.1 sections 3.15 and 4.

use std::sync::{Arc, Mutex, Weak};

use iogate_dma::{
    Atc, DeviceTlb, DmaError, Interrupts, Iova, Line, Message, Port, Source, Span, TlbScope, Width,
};
use iogate_paging::Permissions;
use iogate_paging::vtd::{Levels, SecondStage};

use super::world::*;
use crate::ats::DeviceInvalidation;
use crate::invalidate::Invalidation;

#[derive(Default)]
struct Heard(Mutex<Vec<(Source, Message)>>);

impl Interrupts for Heard {
    fn message(&self, source: Source, message: Message) {
        self.0.lock().unwrap().push((source, message));
    }

    fn line(&self, _: Source, _: Line) {}
}

#[test]
fn an_aligned_write_of_four_bytes_to_the_interrupt_range_is_a_message() {
    let world = World::legacy();
    world.context(1 | 2 << 2, 2);
    let heard = Arc::new(Heard::default());
    let mut port = world
        .unit
        .port(DEVICE.into())
        .with_interrupts(heard.clone() as _);
    port.write(Iova(0xfee0_1004), &0x31_u32.to_le_bytes())
        .unwrap();
    let yes = || true;
    port.store_while(Iova(0xfee0_1008), Width::Dword, 0x32, yes)
        .unwrap();
    // Two bytes, eight, unaligned, and a read are none.
    assert!(port.write(Iova(0xfee0_1000), &[1, 2]).is_err());
    assert!(port.write(Iova(0xfee0_1000), &[0; 8]).is_err());
    assert!(port.write(Iova(0xfee0_1002), &[0; 4]).is_err());
    assert!(port.read(Iova(0xfee0_1000), &mut [0; 4]).is_err());
    let message = |address, data| (DEVICE.into(), Message { address, data });
    assert_eq!(
        *heard.0.lock().unwrap(),
        [message(0xfee0_1004, 0x31), message(0xfee0_1008, 0x32)]
    );
}

/// A device with ATS in domain 7; 0x1000 leads to 0x8000, 0x2000 is read-only.
fn with_atc() -> (World, Arc<Atc>, Port) {
    let mut world = World::legacy();
    let read = Permissions::new(true, false, true);
    let maps = [
        (0x1000, 0x8000, 0x1000, Permissions::ALL, 12),
        (0x2000, 0x9000, 0x1000, read, 12),
    ];
    let root = world.tables(SecondStage::new(Levels::Four), &maps);
    world.context(root | 1 | 1 << 2, 0x0702);
    let atc = Arc::new(Atc::new());
    atc.set_enabled(true);
    let device: Weak<Atc> = Arc::downgrade(&atc);
    world.unit.set_device_tlb(DEVICE, device as _);
    let port = world.unit.port(DEVICE.into()).with_atc(atc.clone());
    (world, atc, port)
}

#[test]
fn a_device_keeps_a_translation_until_its_own_cache_is_invalidated() {
    let (world, _atc, mut port) = with_atc();
    world.ram.set(0x8ff8, &[0x1122]);
    world.ram.set(0x9000, &[0x3344]);
    // Over two pages.
    assert_eq!(
        port.read_array(Iova(0x1ffc)).unwrap(),
        [0, 0, 0, 0, 0x44, 0x33, 0, 0]
    );
    world.context(0, 0);
    world
        .unit
        .invalidate(&[Invalidation::ContextGlobal, Invalidation::IotlbGlobal]);
    // The translation stands, but its use is refused: no context entry.
    assert!(matches!(
        port.read_array::<8>(Iova(0x1000)),
        Err(DmaError::Refused(_))
    ));

    let (world, _atc, mut port) = with_atc();
    assert!(port.write(Iova(0x1000), &[7; 8]).is_ok());
    let (mut table, page) = (world.ram.get(CONTEXT + 0x100) & !0xfff, 1);
    for _ in 0..3 {
        table = world.ram.get(table) & 0xf_ffff_f000;
    }
    world.ram.set(table + page * 8, &[0xa003]);
    world.unit.invalidate(&[Invalidation::IotlbGlobal]);
    assert!(port.write(Iova(0x1000), &[9; 8]).is_ok());
    assert_eq!(world.ram.get(0x8000), 0x0909_0909_0909_0909);
    let invalidation = |first: u64| DeviceInvalidation {
        source: DEVICE,
        scope: TlbScope::WithoutPasid,
        span: Span::with_length(Iova(first), 0x1000).unwrap(),
    };
    world
        .unit
        .invalidate_device_tlb(&invalidation(0x20_0000))
        .unwrap();
    assert!(port.write(Iova(0x1000), &[10; 8]).is_ok());
    assert_eq!(world.ram.get(0xa000), 0);
    world
        .unit
        .invalidate_device_tlb(&invalidation(0x1000))
        .unwrap();
    assert!(port.write(Iova(0x1000), &[11; 8]).is_ok());
    assert_eq!(world.ram.get(0xa000), 0x0b0b_0b0b_0b0b_0b0b);
}

#[test]
fn what_a_translation_gives_no_right_to_is_refused_as_an_untranslated_request() {
    let (_world, atc, mut port) = with_atc();
    assert!(port.read(Iova(0x2000), &mut [0; 8]).is_ok());
    for (iova, write) in [(0x2000, true), (0x3000, true), (0x3000, false)] {
        let done = if write {
            port.write(Iova(iova), &[0; 8])
        } else {
            port.read(Iova(iova), &mut [0; 8])
        };
        let Err(DmaError::Refused(fault)) = done else {
            panic!("{done:?}");
        };
        assert_eq!(fault.span, Span::with_length(Iova(iova), 8).unwrap());
    }
    // Disabled, the context's type does not matter.
    atc.set_enabled(false);
    assert!(port.read(Iova(0x1000), &mut [0; 8]).is_ok());
    assert!(atc.invalidate(TlbScope::EveryPasid, Span::whole()).is_ok());
}
