//! Whatever a guest writes: no panic, no end of work that does not come, no
//! reserved bit that reads as one.

use proptest::prelude::*;

use super::guest::{Guest, QUEUE, STATUS};
use crate::Capabilities;
use crate::spec::registers::offset;

#[derive(Clone, Debug)]
enum Step {
    Write32(u16, u32),
    Write64(u16, u64),
    Odd(u64, Vec<u8>),
    Descriptor(u16, [u64; 4]),
    Record(u64),
    Restore,
    Reset,
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        Just(u64::MAX),
        (0_u32..64).prop_map(|bit| 1 << bit),
        Just(QUEUE),
        (0_u64..0x8000).prop_map(|low| QUEUE | low),
        (0_u64..0x1_0000).prop_map(|tail| tail << 4),
    ]
}

fn place() -> impl Strategy<Value = u16> {
    prop_oneof![
        prop::sample::select(vec![
            offset::GCMD,
            offset::RTADDR,
            offset::CCMD,
            offset::CCMD + 4,
            offset::FSTS,
            offset::FECTL,
            offset::IQT,
            offset::IQA,
            offset::ICS,
            offset::IECTL,
            offset::IOTLB,
            offset::IOTLB + 4,
            offset::IVA,
            offset::PQH,
            offset::PQA,
            offset::PRS,
            offset::FRCD + 12,
        ]),
        (0_u16..0x400).prop_map(|dword| dword * 4),
    ]
}

fn descriptor() -> impl Strategy<Value = [u64; 4]> {
    let low = (any::<u64>(), 0_u64..12, 0_u64..4, any::<bool>()).prop_map(
        |(noise, kind, granularity, plain)| {
            let noise = if plain {
                noise & 0xf_ffff_ffff_0000
            } else {
                noise
            };
            noise & !0x3f | granularity << 4 | kind
        },
    );
    (low, value(), prop_oneof![9 => Just(0), 1 => any::<u64>()])
        .prop_map(|(low, high, third)| [low, high, third, 0])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (place(), value()).prop_map(|(at, value)| Step::Write32(at, value as u32)),
        6 => (place(), value()).prop_map(|(at, value)| Step::Write64(at, value)),
        1 => (any::<u64>(), prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(at, bytes)| Step::Odd(at, bytes)),
        8 => (0_u16..0x200, descriptor()).prop_map(|(at, words)| Step::Descriptor(at, words)),
        2 => any::<u64>().prop_map(Step::Record),
        1 => Just(Step::Restore),
        1 => Just(Step::Reset),
    ]
}

fn capabilities() -> impl Strategy<Value = Capabilities> {
    prop::sample::select(vec![
        Capabilities::default(),
        Capabilities::default().without_queued_invalidation(),
        Capabilities::default()
            .fault_records(1)
            .pointers_invalidate(),
        Capabilities::default().scalable(),
        Capabilities::default()
            .scalable()
            .nested()
            .device_tlb()
            .page_requests()
            .interrupt_remapping()
            .extended_interrupt_mode()
            .posted_interrupts(),
    ])
}

/// What of the page may be set, by the offered capabilities.
fn allowed(capabilities: &Capabilities, at: u16) -> u64 {
    let when = |offered: bool, bits: u64| if offered { bits } else { 0 };
    let page = !0xfff_u64;
    let scalable = capabilities.is_scalable();
    let remapping = capabilities.has_interrupt_remapping();
    let queue = capabilities.has_queued_invalidation();
    let pages = capabilities.has_page_requests();
    let event = 0xffff_ffff_c000_0000;
    match at {
        0x000 => 0xff,
        0x008 | 0x010 => u64::MAX,
        0x018 => {
            (1 << 31 | 1 << 30 | when(queue, 1 << 26) | when(remapping, 7 << 23 & !(1 << 26))) << 32
        }
        0x020 => page | when(scalable, 3 << 10),
        0x028 => 0x7800_0003_ffff_ffff | 1 << 63,
        0x030 => 0xff73 << 32,
        0x038 => event,
        0x040 => !3,
        0x080 | 0x088 => when(queue, 0x7_fff0),
        0x090 => when(queue, page | 7 | when(scalable, 1 << 11)),
        0x098 => when(queue, 1 << 32),
        0x0a0 => when(queue, event),
        0x0a8 => when(queue, !3),
        0x0b0 => when(queue, 0xffff_ffff_0000_000f),
        0x0b8 => when(remapping, page | 0xf | 1 << 11),
        0x0c0 | 0x0c8 => when(pages, 0x7_ffe0),
        0x0d0 => when(pages, page | 7),
        0x0d8 => when(pages, 3 << 32),
        0x0e0 => when(pages, event),
        0x0e8 => when(pages, !3),
        0x0f8 => 0xb603_ffff_0000_0000 | 1 << 63 | 7 << 57,
        _ => {
            let records = 16 * capabilities.fault_record_count();
            match at.checked_sub(offset::FRCD) {
                Some(within) if within < records && at & 8 == 0 => page,
                Some(within) if within < records => 0xffff_ffff_f000_ffff,
                _ => 0,
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_guest_gets_the_unit_out_of_its_rules(
        capabilities in capabilities(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let guest = Guest::new(capabilities);
        guest.put(STATUS, &[0]);
        for step in steps {
            match step {
                Step::Write32(at, value) => guest.write32(at, value),
                Step::Write64(at, value) => guest.write64(at, value),
                Step::Odd(at, bytes) => guest.unit.write(at, &bytes),
                Step::Descriptor(at, words) => guest.put(QUEUE + 16 * u64::from(at), &words),
                Step::Record(address) => {
                    let span = iogate_dma::Span::with_length(iogate_dma::Iova(address), 1);
                    let source = iogate_dma::RequesterId(8).into();
                    let access = iogate_dma::Access::Write;
                    let request = iogate_dma::Request::new(source, span.unwrap(), access);
                    let reason = crate::spec::fault::Reason::NO_WRITE;
                    guest.unit.record(&crate::fault::Refused::request(&request, reason));
                }
                Step::Restore => guest.unit.restore(&guest.unit.save()).unwrap(),
                Step::Reset => guest.unit.reset(),
            }
            prop_assert!(!guest.unit.work(), "work is left");
            for at in (0..0x400).step_by(8) {
                let read = guest.read64(at);
                let beyond = read & !allowed(&capabilities, at);
                prop_assert_eq!(beyond, 0, "at {:#x}: {:#x}", at, read);
            }
        }
        for at in (0x400..0x1000).step_by(8) {
            prop_assert_eq!(guest.read64(at), 0, "at {:#x}", at);
        }
    }
}
