//! Saved and restored state, and bytes that only look like it.

use std::sync::Arc;

use iogate_dma::Memory;
use proptest::prelude::*;

use super::guest::{Guest, QIE, QUEUE, Ram, SRTP, STATUS, TE, wait};
use crate::spec::registers::offset;
use crate::{Capabilities, Vtd};

fn all() -> Capabilities {
    Capabilities::default()
        .scalable()
        .device_tlb()
        .page_requests()
        .interrupt_remapping()
        .extended_interrupt_mode()
}

fn busy() -> Guest {
    let guest = Guest::new(all());
    guest.enable_queue(1);
    guest.write64(offset::RTADDR, 0x1_0000 | 1 << 10);
    guest.write32(offset::GCMD, QIE | SRTP);
    guest.write32(offset::GCMD, QIE | TE);
    guest.write64(offset::IRTA, 0x5000 | 3);
    guest.write64(offset::FECTL + 8, 0xfee0_1000);
    guest.submit(&[wait(1), [0, 0]]);
    guest
}

#[test]
fn a_state_is_the_same_after_it_was_restored() {
    let guest = busy();
    let state = guest.unit.save();
    let other = Guest::new(all());
    other.unit.restore(&state).unwrap();
    assert_eq!(other.unit.save(), state);
    for at in (0..0x1000).step_by(8) {
        assert_eq!(other.read64(at), guest.read64(at), "at {at:#x}");
    }
    assert_eq!(other.unit.live.root(), guest.unit.live.root());
    assert_eq!(other.unit.live.status(), guest.unit.live.status());
}

#[test]
fn a_queue_that_is_half_done_goes_on() {
    let ram = Ram::new();
    let build = |deferred: bool| {
        let builder = Vtd::builder(Arc::clone(&ram) as _);
        let builder = if deferred {
            builder.deferred(|| {})
        } else {
            builder
        };
        builder.build().unwrap()
    };
    let from = build(true);
    from.write(offset::IQA.into(), &QUEUE.to_le_bytes());
    from.write(offset::GCMD.into(), &QIE.to_le_bytes());
    while from.work() {}
    for (at, word) in wait(1).into_iter().chain(wait(2)).enumerate() {
        let at = QUEUE + 8 * at as u64;
        ram.write(at, &word.to_le_bytes()).unwrap();
    }
    from.write(offset::IQT.into(), &32_u32.to_le_bytes());
    assert!(from.work());
    let to = build(false);
    to.restore(&from.save()).unwrap();
    assert_eq!(ram.load(STATUS, iogate_dma::Width::Dword), Ok(2));
}

#[test]
fn a_command_that_is_not_done_is_done_after() {
    let from = Vtd::builder(Ram::new()).deferred(|| {}).build().unwrap();
    from.write(offset::RTADDR.into(), &0x7000_u64.to_le_bytes());
    from.write(offset::GCMD.into(), &SRTP.to_le_bytes());
    let guest = Guest::new(Capabilities::default());
    guest.unit.restore(&from.save()).unwrap();
    assert_eq!(guest.read32(offset::GSTS), SRTP);
    assert_eq!(guest.unit.live.root(), 0x7000);
}

#[test]
fn what_is_not_a_state_is_refused_with_its_place() {
    let guest = busy();
    let state = guest.unit.save();
    let at = |bytes: &[u8]| guest.unit.restore(bytes).unwrap_err().at;
    assert_eq!(at(&[]), 0);
    assert_eq!(at(b"something else, and longer than that"), 0);
    assert_eq!(at(&state[..state.len() - 1]), state.len() - 1);
    let mut longer = state.clone();
    longer.push(0);
    assert_eq!(at(&longer), state.len());
    let mut other = state.clone();
    other[4] = 2;
    assert_eq!(at(&other), 4, "version");
    let mut other = state.clone();
    other[24] = 1;
    assert_eq!(at(&other), 24, "reserved bits of the root table address");
    let error = guest.unit.restore(&other).unwrap_err();
    assert_eq!(
        error.to_string(),
        "byte 24 of the state: root table in force"
    );
    let plain = Guest::new(Capabilities::default());
    let error = plain.unit.restore(&state).unwrap_err();
    assert_eq!(error.what, "of a unit with other capabilities");
}

proptest! {
    #[test]
    fn a_state_with_changed_bytes_is_refused_or_is_a_state(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let guest = busy();
        let before = guest.unit.save();
        let mut state = before.clone();
        for (at, value) in changes {
            let at = at.index(state.len());
            state[at] = value;
        }
        if cuts {
            state.truncate(cut.index(state.len()));
        }
        match guest.unit.restore(&state) {
            Err(error) => {
                prop_assert!(error.at <= state.len());
                prop_assert_eq!(guest.unit.save(), before);
            }
            Ok(()) => {
                let now = guest.unit.save();
                Guest::new(all()).unit.restore(&now).unwrap();
            }
        }
    }
}
