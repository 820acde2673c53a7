//! VFIO_DEVICE_SET_IRQS: rule 10 of the notes on the kernel's uAPI. Each test's
//! first line names the kernel's function, in
//! drivers/vfio/pci/vfio_pci_intrs.c where no file is named.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod legacy_world;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use iogate_dma::Line;
use iogate_host::FileId;
use iogate_pci::{Endpoint, Function};
use iogate_uapi::Errno;

use legacy_world::program::Counter;
use legacy_world::{FIRST, PLAIN, World, number};

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;
const ERROR: u32 = 3;
const REQUEST: u32 = 4;

const BAD: Result<(), Errno> = Err(Errno::EINVAL);

fn world() -> (World, FileId) {
    let world = World::new();
    let (_, _, device) = world.ready(FIRST);
    // Messages are a bus master's.
    world.set_config(device, 4, &[6, 0]);
    (world, device)
}

fn endpoint(world: &World) -> &Endpoint {
    world.probes[FIRST].endpoint()
}

fn count(counter: &Arc<Counter>) -> u64 {
    counter.0.swap(0, Ordering::SeqCst)
}

fn fds(fds: &[i32]) -> Vec<u8> {
    fds.iter().flat_map(|fd| fd.to_ne_bytes()).collect()
}

/// drivers/vfio/vfio_main.c, vfio_set_irqs_validate_and_prepare.
#[test]
fn the_range_the_flags_and_the_room_are_checked_first() {
    let (world, device) = world();
    let set = |flags, range, data: &[u8]| world.set_irqs(device, flags, range, data);
    assert_eq!(set(NONE | TRIGGER, (5, 0, 0), &[]), BAD, "no such index");
    for bit in 6..32 {
        assert_eq!(set(NONE | TRIGGER | 1 << bit, (MSIX, 0, 1), &[]), BAD);
    }
    for data in [0, NONE | BOOL, NONE | EVENTFD, BOOL | EVENTFD, 7] {
        assert_eq!(set(data | TRIGGER, (MSIX, 0, 1), &[0; 8]), BAD, "{data}");
    }
    assert_eq!(set(NONE | TRIGGER, (MSIX, 8, 0), &[]), BAD);
    assert_eq!(set(NONE | TRIGGER, (MSIX, 7, 2), &[]), BAD);
    assert_eq!(set(NONE | TRIGGER, (MSIX, 0, u32::MAX), &[]), BAD);
    assert_eq!(set(NONE | TRIGGER, (MSIX, u32::MAX, 1), &[]), BAD);
    assert_eq!(set(EVENTFD | TRIGGER, (MSIX, 0, 2), &[0; 7]), BAD);
    assert_eq!(set(BOOL | TRIGGER, (MSIX, 0, 2), &[0; 1]), BAD);
    for argsz in [0_u32, 1, 19] {
        let mut short = pack!(argsz, (NONE | TRIGGER), MSIX, 0_u32, 0_u32);
        assert_eq!(world.call(device, 10, &mut short), Err(Errno::EINVAL));
    }
    assert_eq!(world.raw(device, number(10), 0), Err(Errno::EFAULT));
}

/// vfio_pci_set_irqs_ioctl.
#[test]
fn an_action_that_an_interrupt_does_not_know_is_no_call() {
    let (world, device) = world();
    let set = |flags, index| world.set_irqs(device, flags, (index, 0, 1), &[]);
    let unknown = Err(Errno::ENOTTY);
    for index in [MSI, MSIX, ERROR, REQUEST] {
        assert_eq!(set(NONE | MASK, index), unknown);
        assert_eq!(set(NONE | UNMASK, index), unknown);
    }
    for index in 0..5 {
        assert_eq!(set(NONE, index), unknown);
        assert_eq!(set(NONE | MASK | TRIGGER, index), unknown);
    }
}

/// vfio_pci_set_msi_trigger. Rule 10.
#[test]
fn one_kind_of_interrupt_is_set_up_at_a_time() {
    let (world, device) = world();
    let (fd, _) = world.program.eventfd_pair();
    let kinds = [INTX, MSI, MSIX];
    for kind in kinds {
        let set = |index| world.set_irqs(device, EVENTFD | TRIGGER, (index, 0, 1), &fds(&[fd]));
        assert_eq!(set(kind), Ok(()));
        for other in kinds.into_iter().filter(|other| *other != kind) {
            assert_eq!(set(other), BAD);
            let disable = world.set_irqs(device, NONE | TRIGGER, (other, 0, 0), &[]);
            assert_eq!(disable, BAD);
        }
        let disable = || world.set_irqs(device, NONE | TRIGGER, (kind, 0, 0), &[]);
        assert_eq!(disable(), Ok(()));
        assert_eq!(disable(), BAD, "nothing is set up");
    }
}

/// vfio_msi_set_vector_signal.
#[test]
fn msix_vectors_reach_their_eventfds_and_can_be_added_and_removed() {
    let (world, device) = world();
    let (a, at_a) = world.program.eventfd_pair();
    let (b, at_b) = world.program.eventfd_pair();
    let set = |start, list: &[i32]| {
        let range = (MSIX, start, u32::try_from(list.len()).unwrap());
        world.set_irqs(device, EVENTFD | TRIGGER, range, &fds(list))
    };
    assert_eq!(set(0, &[a, -1]), Ok(()));
    let raise = |vector| endpoint(&world).raise(vector);
    raise(0);
    raise(1);
    raise(5);
    assert_eq!((count(&at_a), count(&at_b)), (1, 0));
    // A vector beyond those that were there at first.
    assert_eq!(set(5, &[b]), Ok(()));
    assert_eq!(count(&at_b), 1, "it was pending");
    raise(5);
    assert_eq!((count(&at_a), count(&at_b)), (0, 1));
    assert_eq!(set(0, &[-1]), Ok(()));
    raise(0);
    assert_eq!(count(&at_a), 0);
    assert_eq!(set(0, &[b]), Ok(()));
    raise(0);
    assert_eq!(count(&at_b), 2, "what was pending, and this one");
}

/// vfio_msi_set_block.
#[test]
fn a_block_of_vectors_with_a_bad_descriptor_is_left_unset() {
    let (world, device) = world();
    let (a, at_a) = world.program.eventfd_pair();
    let other = world.program.other_fd();
    let set = |range, list: &[i32]| world.set_irqs(device, EVENTFD | TRIGGER, range, &fds(list));
    assert_eq!(set((MSIX, 0, 2), &[a, 999]), Err(Errno::EBADF));
    assert_eq!(set((MSI, 0, 2), &[a, other]), BAD);
    // Neither is set up, so any may be.
    assert_eq!(set((MSIX, 0, 3), &[a, a, a]), Ok(()));
    assert_eq!(set((MSIX, 0, 2), &[a, 999]), Err(Errno::EBADF));
    for vector in 0..3 {
        endpoint(&world).raise(vector);
    }
    assert_eq!(count(&at_a), 1, "only the third is left");
}

/// vfio_msi_enable and vfio_msi_alloc_irq.
#[test]
fn msi_has_as_many_vectors_as_were_asked_for_at_first() {
    let (world, device) = world();
    let (fd, counter) = world.program.eventfd_pair();
    let set = |start, list: &[i32]| {
        let range = (MSI, start, u32::try_from(list.len()).unwrap());
        world.set_irqs(device, EVENTFD | TRIGGER, range, &fds(list))
    };
    assert_eq!(set(0, &[]), Err(Errno::ERANGE));
    assert_eq!(set(0, &[fd, fd]), Ok(()));
    endpoint(&world).raise(1);
    assert_eq!(count(&counter), 1);
    assert_eq!(set(2, &[fd]), BAD);
    assert_eq!(set(0, &[]), Ok(()));
    let disable = world.set_irqs(device, NONE | TRIGGER, (MSI, 0, 0), &[]);
    assert_eq!(disable, Ok(()));
    assert_eq!(set(2, &[fd]), Ok(()), "as many as the last needs");
    assert_eq!(set(0, &[fd]), Ok(()));
    assert_eq!(set(3, &[fd]), BAD);
}

/// vfio_pci_set_msi_trigger: loopback. Rule 10.
#[test]
fn vectors_are_signalled_by_hand() {
    let (world, device) = world();
    let (a, at_a) = world.program.eventfd_pair();
    let (b, at_b) = world.program.eventfd_pair();
    let trigger = |flags, range, data: &[u8]| world.set_irqs(device, flags | TRIGGER, range, data);
    assert_eq!(trigger(NONE, (MSIX, 0, 1), &[]), BAD, "not set up");
    trigger(EVENTFD, (MSIX, 0, 3), &fds(&[a, -1, b])).unwrap();
    assert_eq!(trigger(NONE, (MSIX, 0, 3), &[]), Ok(()));
    assert_eq!((count(&at_a), count(&at_b)), (1, 1));
    assert_eq!(trigger(BOOL, (MSIX, 0, 3), &[0, 1, 1]), Ok(()));
    assert_eq!((count(&at_a), count(&at_b)), (0, 1));
}

/// vfio_pci_set_intx_trigger and vfio_intx_handler.
#[test]
fn intx_is_signalled_once_and_again_when_it_is_unmasked() {
    let (world, device) = world();
    let (fd, counter) = world.program.eventfd_pair();
    let set = |flags, data: &[u8]| world.set_irqs(device, flags, (INTX, 0, 1), data);
    let line = |line| endpoint(&world).set_line(line);
    for flags in [NONE | MASK, NONE | UNMASK, NONE | TRIGGER, BOOL | TRIGGER] {
        assert_eq!(set(flags, &[1]), BAD, "not set up");
    }
    set(EVENTFD | TRIGGER, &fds(&[fd])).unwrap();
    line(Line::Asserted);
    assert_eq!(count(&counter), 1);
    line(Line::Deasserted);
    line(Line::Asserted);
    assert_eq!(count(&counter), 0, "masked by itself");
    set(NONE | UNMASK, &[]).unwrap();
    assert_eq!(count(&counter), 1, "still asserted");
    line(Line::Deasserted);
    set(BOOL | UNMASK, &[0]).unwrap();
    line(Line::Asserted);
    assert_eq!(count(&counter), 0, "a false boolean unmasks nothing");
    set(BOOL | UNMASK, &[1]).unwrap();
    assert_eq!(count(&counter), 1);
    line(Line::Deasserted);
    set(NONE | UNMASK, &[]).unwrap();
    set(NONE | MASK, &[]).unwrap();
    line(Line::Asserted);
    assert_eq!(count(&counter), 0, "masked by hand");
    assert_eq!(set(EVENTFD | MASK, &fds(&[fd])), Err(Errno::ENOTTY));
    set(NONE | TRIGGER, &[]).unwrap();
    assert_eq!(count(&counter), 1, "loopback");
    set(BOOL | TRIGGER, &[0]).unwrap();
    assert_eq!(count(&counter), 0);
    let (other, at_other) = world.program.eventfd_pair();
    set(EVENTFD | TRIGGER, &fds(&[other])).unwrap();
    set(NONE | UNMASK, &[]).unwrap();
    assert_eq!((count(&counter), count(&at_other)), (0, 1));
}

/// vfio_pci_set_intx_unmask.
#[test]
fn an_eventfd_unmasks_intx_and_there_is_only_one() {
    let (world, device) = world();
    let (fd, counter) = world.program.eventfd_pair();
    let (unmask, _) = world.program.eventfd_pair();
    let set = |flags, fd: i32| world.set_irqs(device, flags, (INTX, 0, 1), &fds(&[fd]));
    set(EVENTFD | TRIGGER, fd).unwrap();
    assert_eq!(set(EVENTFD | UNMASK, 999), Err(Errno::EBADF));
    assert_eq!(set(EVENTFD | UNMASK, unmask), Ok(()));
    assert_eq!(set(EVENTFD | UNMASK, unmask), Err(Errno::EBUSY));
    endpoint(&world).set_line(Line::Asserted);
    assert_eq!(count(&counter), 1);
    world.program.ring(unmask);
    assert_eq!(count(&counter), 1, "unmasked, still asserted");
    assert_eq!(set(EVENTFD | UNMASK, -1), Ok(()));
    world.program.ring(unmask);
    assert_eq!(count(&counter), 0);
    assert_eq!(set(EVENTFD | UNMASK, unmask), Ok(()));
    let disable = world.set_irqs(device, NONE | TRIGGER, (INTX, 0, 0), &[]);
    assert_eq!(disable, Ok(()));
    assert_eq!(world.program.watch_count(), 0);
}

/// drivers/vfio/pci/vfio_pci_config.c, vfio_basic_config_write.
#[test]
fn the_interrupt_disable_bit_silences_intx_and_clearing_it_unmasks() {
    let (world, device) = world();
    let (fd, counter) = world.program.eventfd_pair();
    let set = |range, data: &[u8]| world.set_irqs(device, EVENTFD | TRIGGER, range, data);
    world.set_config(device, 4, &[6, 4]);
    set((INTX, 0, 1), &fds(&[fd])).unwrap();
    endpoint(&world).set_line(Line::Asserted);
    assert_eq!(count(&counter), 0);
    world.set_config(device, 4, &[6, 0]);
    assert_eq!(count(&counter), 1);
    world.set_config(device, 4, &[6, 4]);
    world.set_config(device, 4, &[6, 0]);
    assert_eq!(count(&counter), 1, "unmasked by the bit");
}

/// vfio_pci_set_ctx_trigger_single.
#[test]
fn errors_and_requests_have_an_eventfd_each() {
    let (world, device) = world();
    let (fd, counter) = world.program.eventfd_pair();
    for index in [ERROR, REQUEST] {
        let set = |flags, count, data: &[u8]| {
            world.set_irqs(device, flags | TRIGGER, (index, 0, count), data)
        };
        assert_eq!(set(NONE, 0, &[]), BAD, "nothing set");
        assert_eq!(set(NONE, 1, &[]), BAD);
        assert_eq!(set(BOOL, 1, &[1]), Ok(()));
        assert_eq!(set(BOOL, 0, &[]), BAD);
        assert_eq!(set(EVENTFD, 0, &[]), BAD);
        assert_eq!(set(EVENTFD, 1, &fds(&[999])), Err(Errno::EBADF));
        assert_eq!(set(EVENTFD, 1, &fds(&[fd])), Ok(()));
        assert_eq!(set(NONE, 1, &[]), Ok(()));
        assert_eq!(set(BOOL, 1, &[1]), Ok(()));
        assert_eq!(set(BOOL, 1, &[0]), Ok(()));
        assert_eq!(count(&counter), 2);
        assert_eq!(set(EVENTFD, 1, &fds(&[-1])), Ok(()));
        assert_eq!(set(NONE, 1, &[]), BAD);
        assert_eq!(set(EVENTFD, 1, &fds(&[fd])), Ok(()));
        assert_eq!(set(NONE, 0, &[]), Ok(()), "disabled");
        assert_eq!(set(NONE, 0, &[]), BAD);
    }
    let (_, _, plain) = world.ready(PLAIN);
    let error = world.set_irqs(plain, NONE | TRIGGER, (ERROR, 0, 1), &[]);
    assert_eq!(error, BAD, "not PCI Express");
}

/// drivers/vfio/pci/vfio_pci_config.c: the MSI-X capability takes no writes and
/// shows what SET_IRQS did.
#[test]
fn msix_enable_in_configuration_space_is_what_set_irqs_made_it() {
    let (world, device) = world();
    let control = u64::from(endpoint(&world).capability(0x11).unwrap());
    let enabled = || world.config(device, control) >> 31 == 1;
    world.set_config(device, control + 2, &[0xff, 0xff]);
    assert!(!enabled());
    let (fd, counter) = world.program.eventfd_pair();
    world
        .set_irqs(device, EVENTFD | TRIGGER, (MSIX, 0, 1), &fds(&[fd]))
        .unwrap();
    assert!(enabled());
    world.set_config(device, control, &[0; 4]);
    assert!(enabled());
    endpoint(&world).raise(0);
    assert_eq!(count(&counter), 1);
}

/// drivers/vfio/pci/vfio_pci_config.c, vfio_msi_config_write.
#[test]
fn the_msi_capability_is_the_clients_own_and_enables_only_what_set_irqs_set_up() {
    let (world, device) = world();
    let at = u64::from(endpoint(&world).capability(5).unwrap());
    let control = || world.config(device, at) >> 16;
    let before = control();
    assert_eq!(before & 0xe, 2 << 1, "4 vectors offered");
    let all = pack!(0xffff_u16, 0x1111_1111_u32, 0x2222_2222_u32, 0x3333_u16);
    world.set_config(device, at + 2, &all);
    assert_eq!(control() & 1, 0, "not set up");
    assert_eq!(control() & 0x70, 2 << 4, "no more than offered");
    assert_eq!(world.config(device, at + 4), 0x1111_1111);
    assert_eq!(world.config(device, at + 8), 0x2222_2222);
    let (fd, counter) = world.program.eventfd_pair();
    let list = fds(&[fd, fd]);
    world
        .set_irqs(device, EVENTFD | TRIGGER, (MSI, 0, 2), &list)
        .unwrap();
    assert_eq!(world.config(device, at + 4), 0x1111_1111, "still its own");
    endpoint(&world).raise(0);
    assert_eq!(
        count(&counter),
        1,
        "reaches the host's address all the same"
    );
    world.set_config(device, at + 2, &[0x10]);
    endpoint(&world).raise(0);
    assert_eq!(count(&counter), 0, "disabled by the client");
    world.set_config(device, at + 2, &[0x11]);
    endpoint(&world).raise(1);
    assert_eq!(count(&counter), 1);
}

/// drivers/pci/pci.c, pci_restore_state: messages survive a reset.
#[test]
fn interrupts_stay_set_up_across_a_reset_and_go_with_the_last_close() {
    for (index, list) in [(MSI, 2), (MSIX, 8)] {
        let (world, device) = world();
        let (fd, counter) = world.program.eventfd_pair();
        let list = vec![fd; list];
        let count_of = u32::try_from(list.len()).unwrap();
        world
            .set_irqs(device, EVENTFD | TRIGGER, (index, 0, count_of), &fds(&list))
            .unwrap();
        world.raw(device, number(11), 0).unwrap();
        endpoint(&world).raise(1);
        assert_eq!(count(&counter), 1, "{index}");
        world.close(device);
        assert!(!endpoint(&world).messages_enabled());
        endpoint(&world).raise(1);
        assert_eq!(count(&counter), 0);
    }
}
