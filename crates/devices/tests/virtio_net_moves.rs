//! The state of virtio-net on its way from one device to another: what
//! arrives behaves as what left, and nothing else is taken.
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::Machine;
use common::virtio::*;
use iogate_devices::{Properties, Value};
use iogate_pci::{After, StateError, migration};

fn machine(properties: &[(&str, Value)]) -> Machine {
    let named = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
    let properties: Properties = properties.iter().map(named).collect();
    Machine::new("virtio-net", &properties, RAM)
}

/// Moves a driver and its device to a new machine, which goes on.
fn moved(nic: &Nic) -> Nic {
    nic.machine.rest();
    let new = machine(&[]);
    new.rest();
    new.load(&nic.machine.save()).unwrap();
    let mut nic = nic.on(new);
    nic.machine.enable_msix();
    nic.machine.resume();
    nic
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// What a driver does next, the same for two of them.
fn act(nic: &mut Nic, kind: u64, detail: u64) {
    let at = (detail % 8) as u16;
    match kind {
        0..4 => nic.offer_buffer(0, at, DATA + 0x8000 + u64::from(at) * 0x1000, 2048),
        4..7 => {
            let frame: Vec<u8> = (0..20 + detail % 900)
                .map(|byte| (byte ^ detail) as u8)
                .collect();
            nic.offer_frame(1, at, DATA + 0x2_0000 + u64::from(at) * 0x1000, &frame);
        }
        7 | 8 => nic.kick(1),
        9 => {
            // A command: all packets, please.
            nic.machine.poke(DATA + 0x100, &[0, 0, 1]);
            nic.put(2, 0, DATA + 0x100, 3, NEXT, 1);
            nic.put(2, 1, DATA + 0x110, 1, WRITE, 0);
            nic.offer(2, 0);
            nic.kick(2);
        }
        10 => nic.write(0x16, &at.to_le_bytes()),
        _ => {
            let config = nic.machine.device.endpoint();
            let _ = config.write_config(0x3c, &[detail as u8]);
        }
    }
}

/// The driver's memory, common and device configuration, configuration space,
/// and what came back by each queue.
type Seen = (Vec<u8>, [u8; 0x38], [u8; 12], Vec<u8>, Vec<Vec<(u32, u32)>>);

/// All that a driver can see.
fn seen(nic: &mut Nic) -> Seen {
    let mut config = vec![0; 256];
    nic.machine.device.read_config(0, &mut config);
    let given = (0..3).map(|queue| nic.given(queue)).collect();
    (
        nic.machine.peek(0, RAM),
        nic.machine.read(BAR, 0),
        nic.machine.read(BAR, DEVICE),
        config,
        given,
    )
}

#[test]
fn a_device_that_took_the_state_behaves_as_the_one_that_gave_it() {
    let end = Instant::now() + Duration::from_secs(2);
    let mut seed = 0;
    while seed < 8 || Instant::now() < end {
        seed += 1;
        let mut random = Random(seed);
        let choice = random.below(16);
        let features = [MRG_RXBUF, EVENT_IDX, INDIRECT, CTRL_VQ]
            .into_iter()
            .enumerate()
            .filter(|(bit, _)| choice >> bit & 1 != 0)
            .fold(0, |all, (_, feature)| all | feature);
        let mut stays = Nic::new(features);
        stays.machine.enable_msix();
        let mut moves = Nic::new(features);
        moves.machine.enable_msix();
        for step in 0..random.below(60) {
            let (kind, detail) = (random.below(12), random.below(1 << 20));
            act(&mut stays, kind, detail);
            act(&mut moves, kind, detail);
            if random.below(8) == 0 {
                moves = moved(&moves);
                // Both look at all queues.
                for queue in 0..3 {
                    stays.kick(queue);
                }
            }
            assert!(
                seen(&mut stays) == seen(&mut moves),
                "seed {seed} step {step}"
            );
        }
    }
}

#[test]
fn at_rest_it_makes_no_request_and_gives_no_interrupt_until_it_goes_on() {
    let mut nic = Nic::new(0);
    nic.machine.enable_msix();
    nic.machine.rest();
    nic.offer_buffer(0, 0, DATA + 0x8000, 2048);
    nic.offer_frame(1, 0, DATA, &[1; 60]);
    assert_eq!(nic.ring(1), After::Work);
    assert_eq!(
        nic.machine.device.work(&mut nic.machine.port),
        After::Nothing
    );
    assert!(nic.given(0).is_empty());
    nic.machine.device.endpoint().raise(2);
    assert!(nic.machine.messages().is_empty());
    nic.machine.resume();
    assert_eq!(nic.given(0), [(0, 72)]);
    assert_eq!(nic.machine.messages(), [2, 0, 1]);
}

#[test]
fn what_was_pending_at_a_masked_vector_arrives_and_the_driver_is_woken() {
    let nic = Nic::new(0);
    nic.machine.enable_msix();
    let msix = nic.machine.device.endpoint().msix().unwrap();
    msix.mask(1);
    nic.machine.device.endpoint().raise(1);
    nic.machine.rest();
    let mut new = machine(&[]);
    new.rest();
    new.load(&nic.machine.save()).unwrap();
    let pending = |vector| new.device.endpoint().msix().unwrap().is_pending(vector);
    assert_eq!([0, 1, 2, 3].map(pending), [false, true, false, false]);
    new.enable_msix();
    assert!(new.messages().is_empty());
    new.resume();
    let mut messages = new.messages();
    messages.sort_unstable();
    // Each queue once more; the configuration has no vector.
    assert_eq!(messages, [0, 1, 1, 2]);
}

#[test]
fn a_state_of_another_shape_or_version_is_refused_as_soon_as_it_shows() {
    let nic = Nic::new(0);
    nic.machine.rest();
    let stream = nic.machine.save();
    let two = machine(&[("queues", Value::Integer(2))]);
    two.rest();
    assert_eq!(two.load(&stream), Err(StateError::Other));
    let shape = migration::shape(&*nic.machine.device).unwrap();
    assert!(stream.starts_with(&shape));
    for length in 0..=shape.len() {
        assert_eq!(
            migration::check(&*nic.machine.device, &stream[..length]),
            Ok(())
        );
    }
    for at in 0..shape.len() {
        let mut other = stream[..=at].to_vec();
        other[at] ^= 1;
        assert_eq!(
            migration::check(&*nic.machine.device, &other),
            Err(StateError::Other)
        );
    }
    assert_eq!(
        migration::check(&*nic.machine.device, &vec![0; migration::MOST + 1]),
        Err(StateError::Other)
    );
}

#[test]
fn every_state_that_was_damaged_is_refused_and_changes_nothing() {
    let mut nic = Nic::new(EVENT_IDX);
    nic.offer_frame(1, 0, DATA, &[1; 60]);
    nic.kick(1);
    nic.machine.rest();
    let stream = nic.machine.save();
    let new = machine(&[]);
    new.rest();
    let before = new.save();
    for at in 0..stream.len() {
        for bit in [0x01, 0x80] {
            let mut damaged = stream.clone();
            damaged[at] ^= bit;
            assert!(new.load(&damaged).is_err(), "byte {at}");
        }
        assert!(new.load(&stream[..at]).is_err(), "{at} bytes");
    }
    let mut longer = stream.clone();
    longer.push(0);
    assert!(new.load(&longer).is_err());
    assert_eq!(new.save(), before);
    assert_eq!(new.load(&stream), Ok(()));
    assert_eq!(new.save(), stream);
}

#[test]
fn a_device_that_is_to_stay_stays() {
    let machine = machine(&[("migration", Value::Bool(false))]);
    assert!(machine.device.migrate().is_none());
    assert!(migration::save(&*machine.device).is_none());
    assert_eq!(
        migration::load(&*machine.device, &[]),
        Err(StateError::Other)
    );
}

/// The body: changes of a valid stream, its checksum made right again. What is
/// refused changes nothing; what is taken is taken whole, and a device with it
/// can be driven. `fuzz/` runs it as well.
pub(crate) fn state(changes: &[u8]) {
    let mut nic = Nic::new(EVENT_IDX);
    nic.machine.rest();
    let shape = migration::shape(&*nic.machine.device).unwrap().len();
    let mut stream = nic.machine.save();
    // The last four are the checksum.
    stream.truncate(stream.len() - 4);
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
        let room = stream.len() - shape;
        stream[shape + at % room] = change[2];
    }
    stream.extend(migration::checksum(&stream).to_le_bytes());
    let before = nic.machine.save();
    if nic.machine.load(&stream).is_err() {
        assert_eq!(nic.machine.save(), before);
        return;
    }
    assert_eq!(nic.machine.save(), stream);
    nic.machine.resume();
    for queue in 0..3 {
        nic.kick(queue);
    }
    nic.machine.reports();
    nic.start(0, 3);
    nic.offer_buffer(0, 0, DATA + 0x8000, 2048);
    nic.offer_frame(1, 0, DATA, &[1; 60]);
    nic.kick(1);
    assert_eq!(nic.given(0), [(0, 72)]);
}

#[test]
fn hostile_states_do_no_harm() {
    state(&[]);
    let end = Instant::now() + Duration::from_secs(2);
    let mut random = Random(99);
    while Instant::now() < end {
        let changes: Vec<u8> = (0..3 * random.below(5))
            .map(|_| random.below(256) as u8)
            .collect();
        state(&changes);
    }
}
