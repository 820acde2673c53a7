//! Each rule of remapping and posting, one test a rule.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use iogate_dma::{Gpa, Memory};

use super::*;
use crate::spec::fault::Reason;
use crate::spec::posted::Notification;

/// A megabyte of guest memory that can be accessed by whole words.
struct Ram {
    words: Vec<AtomicU64>,
    loads: AtomicU64,
    /// What is done after a number of loads: a guest that changes its tables.
    meanwhile: Mutex<Option<(u64, Change)>>,
}

type Change = Box<dyn Fn(&Ram) + Send>;

const BYTES: u64 = 1 << 20;

impl Ram {
    fn word(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        assert_eq!(address % 8, 0);
        let index = usize::try_from(address / 8).unwrap();
        self.words.get(index).ok_or(MemoryError::Absent { address })
    }

    fn set(&self, address: u64, value: u64) {
        self.word(address).unwrap().store(value, Ordering::SeqCst);
    }

    fn get(&self, address: u64) -> u64 {
        self.word(address).unwrap().load(Ordering::SeqCst)
    }

    fn after_loads(&self, loads: u64, change: impl Fn(&Self) + Send + 'static) {
        let at = self.loads.load(Ordering::SeqCst) + loads;
        *self.meanwhile.lock().unwrap() = Some((at, Box::new(change)));
    }
}

impl Memory for Ram {
    fn read(&self, address: u64, _: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError::Absent { address })
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let value = u32::from_le_bytes(from.try_into().unwrap());
        self.set(address, value.into());
        Ok(())
    }
    fn load(&self, address: u64, _: Width) -> Result<u64, MemoryError> {
        let value = self.word(address)?.load(Ordering::SeqCst);
        let count = self.loads.fetch_add(1, Ordering::SeqCst) + 1;
        let due = {
            let mut meanwhile = self.meanwhile.lock().unwrap();
            meanwhile.take_if(|(at, _)| *at == count)
        };
        if let Some((_, change)) = due {
            change(self);
        }
        Ok(value)
    }
    fn store(&self, address: u64, _: Width, value: u64) -> Result<(), MemoryError> {
        self.set(address, value);
        Ok(())
    }
    fn compare_exchange(
        &self,
        address: u64,
        _: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let word = self.word(address)?;
        let order = Ordering::SeqCst;
        Ok(word
            .compare_exchange(current, new, order, order)
            .unwrap_or_else(|found| found))
    }
}

const TABLE: u64 = 0x4000;
const DESCRIPTOR: u64 = 0x8_0000;
const SOURCE: RequesterId = RequesterId(0x1234);
const CFI: Global = Global::new()
    .with_interrupt_remapping(true)
    .with_compatibility_interrupts(true);
const PRESENT: u64 = 1;
const SILENT: u64 = 2;
const EIME: u64 = 1 << 11;

struct Bed {
    ram: Arc<Ram>,
    unit: Arc<Vtd>,
    delivered: Arc<Mutex<Vec<Message>>>,
}

/// A unit that remaps, by a table of 256 entries at [`TABLE`].
fn bed() -> Bed {
    bed_with(
        Capabilities::default()
            .interrupt_remapping()
            .extended_interrupt_mode()
            .posted_interrupts(),
        None,
    )
}

fn bed_with(capabilities: Capabilities, scope: Option<RequesterId>) -> Bed {
    let ram = Arc::new(Ram {
        words: (0..BYTES / 8).map(|_| AtomicU64::new(0)).collect(),
        loads: AtomicU64::new(0),
        meanwhile: Mutex::default(),
    });
    let delivered = Arc::<Mutex<Vec<Message>>>::default();
    let taken = Arc::clone(&delivered);
    let mut builder = Vtd::builder(Arc::clone(&ram) as _)
        .capabilities(capabilities)
        .deliver(move |message| taken.lock().unwrap().push(message));
    if let Some(source) = scope {
        builder = builder.scope([source]);
    }
    let unit = builder.build().unwrap();
    let bed = Bed {
        ram,
        unit,
        delivered,
    };
    bed.live(Global::new().with_interrupt_remapping(true), 7);
    bed
}

impl Bed {
    /// What the registers say: status, and flags and size of the table.
    fn live(&self, status: Global, table: u64) {
        self.unit.live.set_status(status.into_bits());
        self.unit.live.set_interrupt_table(TABLE | table);
        self.unit.interrupt_remapping_changed();
    }

    fn entry(&self, index: u64, low: u64, high: u64) {
        self.ram.set(TABLE + index * 16, low);
        self.ram.set(TABLE + index * 16 + 8, high);
    }

    fn remap(&self, message: Message) -> Result<Remapped, Blocked> {
        self.unit.remap(SOURCE, message)
    }

    fn cause(&self, message: Message) -> Cause {
        self.remap(message).unwrap_err().cause
    }

    fn invalidate(&self, index: u16, mask: u8) {
        let selected = InterruptEntries::Selected { index, mask };
        self.unit.invalidate_interrupt_entries(&[selected]);
    }

    fn delivered(&self) -> Vec<Message> {
        std::mem::take(&mut *self.delivered.lock().unwrap())
    }
}

fn message(address: u64, data: u32) -> Message {
    Message { address, data }
}

/// The remappable message that asks for an index, without a subhandle.
fn asking(index: u64) -> Message {
    message(
        0xfee0_0010 | (index & 0x7fff) << 5 | (index >> 15 & 1) << 2,
        0,
    )
}

fn remapped(address: u64, data: u32) -> Result<Remapped, Blocked> {
    Ok(Remapped::Message(message(address, data)))
}

/// An entry to an xAPIC id.
fn low(vector: u64, destination: u64) -> u64 {
    PRESENT | vector << 16 | destination << 40
}

#[test]
fn without_remapping_every_message_passes_as_it_is() {
    let bed = bed();
    bed.live(Global::new(), 7);
    for each in [
        message(0xfee1_2000, 0x31),
        asking(3),
        message(0xfee0_0018, u32::MAX),
    ] {
        assert_eq!(bed.remap(each), Ok(Remapped::Message(each)));
    }
}

/// Section 5.1.4, and 11.4.4.1 for CFI.
#[test]
fn a_message_of_compatibility_format_passes_where_cfi_is_set_and_eime_is_not() {
    let bed = bed();
    let compatible = message(0xfee1_2000, 0x31);
    let outcome = |status, table| {
        bed.live(status, table);
        bed.remap(compatible)
    };
    let blocked = Err(Blocked::of(Cause::Compatibility));
    assert_eq!(outcome(CFI, 7), Ok(Remapped::Message(compatible)));
    assert_eq!(outcome(CFI, EIME | 7), blocked);
    let plain = Global::new().with_interrupt_remapping(true);
    assert_eq!(outcome(plain, 7), blocked);
    assert_eq!(outcome(plain, EIME | 7), blocked);
}

/// Section 9.9.
#[test]
fn an_entry_says_destination_vector_and_mode() {
    let bed = bed();
    bed.entry(5, low(0x31, 0x5a), 0);
    assert_eq!(bed.remap(asking(5)), remapped(0xfee5_a000, 0x4031));
    let logical_lowest_level = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5;
    bed.entry(6, low(0x41, 0xff) | logical_lowest_level | 0xf00, 0);
    assert_eq!(bed.remap(asking(6)), remapped(0xfeef_f00c, 0xc141));
}

/// Section 9.9, field DST.
#[test]
fn with_extended_interrupt_mode_the_destination_has_32_bits() {
    let bed = bed();
    bed.live(Global::new().with_interrupt_remapping(true), EIME | 7);
    for destination in [0x0012_3456_u64, 0xffff_ffff, 0x0fff_ffff, 0x1000_0000] {
        bed.entry(1, PRESENT | 0x31 << 16 | destination << 32, 0);
        bed.invalidate(1, 0);
        let address = 0xfee0_0000 | (destination & 0xff) << 12 | (destination >> 8) << 40;
        for _ in 0..2 {
            assert_eq!(bed.remap(asking(1)), remapped(address, 0x4031));
        }
    }
}

/// Section 5.1.3.
#[test]
fn a_subhandle_chooses_an_entry_behind_the_handle_s() {
    let bed = bed();
    bed.entry(9, low(0x39, 1), 0);
    assert_eq!(
        bed.remap(message(0xfee0_0018 | 7 << 5, 2)),
        remapped(0xfee0_1000, 0x4039)
    );
}

/// Section 7.1.3, reason 20h.
#[test]
fn reserved_bits_of_a_message_block_it_before_its_entry_is_seen() {
    let bed = bed();
    let blocked = bed.remap(message(0xfee0_0018, 0x1_ffff)).unwrap_err();
    assert_eq!(blocked.cause, Cause::RequestReserved);
    assert_eq!(blocked.cause.reason(), Some(Reason(0x20)));
}

/// Section 11.4.10: 2^(S+1) entries. Section 7.1.3, reason 21h.
#[test]
fn an_index_at_or_beyond_the_size_of_the_table_is_blocked() {
    let bed = bed();
    for size in 0..16 {
        bed.live(Global::new().with_interrupt_remapping(true), size);
        let entries = 2_u64 << size;
        assert_eq!(
            bed.cause(asking(entries - 1)),
            if TABLE + entries * 16 <= BYTES {
                Cause::NotPresent
            } else {
                Cause::Table
            }
        );
        if entries < 0x1_0000 {
            let blocked = bed.remap(asking(entries)).unwrap_err();
            assert_eq!(
                blocked,
                Blocked::at(u32::try_from(entries).unwrap(), Cause::Index)
            );
            assert_eq!(blocked.cause.reason(), Some(Reason(0x21)));
        }
    }
}

/// Section 5.1.3: the sum is not cut to 16 bits.
#[test]
fn a_subhandle_that_overflows_the_index_is_beyond_every_table() {
    let bed = bed();
    bed.live(Global::new().with_interrupt_remapping(true), 15);
    bed.entry(0, low(0x31, 0), 0);
    let overflowing = message(0xfee0_0018 | 0x7fff << 5 | 4, 1);
    assert_eq!(bed.cause(overflowing), Cause::Index);
}

/// Section 7.1.3, reasons 22h to 24h.
#[test]
fn an_entry_that_is_absent_unreadable_or_malformed_blocks() {
    let bed = bed();
    assert_eq!(bed.cause(asking(1)), Cause::NotPresent);
    assert_eq!(Cause::NotPresent.reason(), Some(Reason(0x22)));
    bed.unit.live.set_interrupt_table(BYTES | 7);
    assert_eq!(bed.cause(asking(1)), Cause::Table);
    assert_eq!(Cause::Table.reason(), Some(Reason(0x23)));
    bed.live(Global::new().with_interrupt_remapping(true), 7);
    let reserved = (12..15).chain(24..40).chain(48..64);
    for bit in reserved.chain(84..128) {
        let entry = u128::from(low(0x31, 0)) | 1 << bit;
        let halves = [entry as u64, (entry >> 64) as u64];
        bed.entry(1, halves[0], halves[1]);
        assert_eq!(bed.cause(asking(1)), Cause::EntryReserved, "bit {bit}");
    }
    assert_eq!(Cause::EntryReserved.reason(), Some(Reason(0x24)));
}

#[test]
fn reserved_bits_of_an_absent_entry_do_not_count() {
    let bed = bed();
    bed.entry(1, !PRESENT, u64::MAX);
    assert_eq!(bed.cause(asking(1)), Cause::NotPresent);
}

/// Section 7.1.3, reason 26h.
#[test]
fn an_entry_for_another_source_blocks_cached_or_not() {
    let bed = bed();
    bed.entry(1, low(0x31, 0), 1 << 18 | u64::from(SOURCE.0));
    let other = RequesterId(SOURCE.0 + 1);
    let blocked = |silent| Err(Blocked::by(1, Cause::Source, silent));
    assert_eq!(bed.unit.remap(other, asking(1)), blocked(false));
    assert!(bed.remap(asking(1)).is_ok());
    assert_eq!(bed.unit.remap(other, asking(1)), blocked(false));
    bed.entry(1, low(0x31, 0) | SILENT, 1 << 18 | u64::from(SOURCE.0));
    bed.invalidate(1, 0);
    assert!(bed.remap(asking(1)).is_ok());
    assert_eq!(bed.unit.remap(other, asking(1)), blocked(true));
    assert_eq!(Cause::Source.reason(), Some(Reason(0x26)));
}

/// Section 7.1.3: 22h, 24h and 26h are qualified, the others are not.
#[test]
fn fault_processing_disable_silences_what_the_entry_says_also_when_it_is_absent() {
    let bed = bed();
    bed.entry(1, SILENT, 0);
    assert_eq!(
        bed.remap(asking(1)),
        Err(Blocked::by(1, Cause::NotPresent, true))
    );
    bed.entry(1, low(0x31, 0) | SILENT | 1 << 12, 0);
    assert_eq!(
        bed.remap(asking(1)),
        Err(Blocked::by(1, Cause::EntryReserved, true))
    );
}

#[test]
fn a_source_that_is_not_behind_the_unit_is_refused() {
    let bed = bed_with(Capabilities::default(), Some(SOURCE));
    bed.live(CFI, 7);
    let any = message(0xfee0_0000, 0);
    assert!(bed.remap(any).is_ok());
    let stranger = bed.unit.remap(RequesterId(SOURCE.0 ^ 1), any);
    assert_eq!(stranger.unwrap_err().cause, Cause::NotBehind);
}

/// Section 6.5.2.7: an entry may be cached until it is invalidated.
#[test]
fn a_cached_entry_lasts_until_it_is_invalidated() {
    let bed = bed();
    let state = |index| match bed.remap(asking(index)) {
        Ok(Remapped::Message(message)) => message.data & 0xff,
        other => panic!("{other:?}"),
    };
    for index in 0..32 {
        bed.entry(index, low(0x31, 0), 0);
        state(index);
        bed.entry(index, low(0x32, 0), 0);
        assert_eq!(state(index), 0x31);
    }
    bed.invalidate(0x0b, 2);
    let fresh: Vec<u64> = (0..32).filter(|index| state(*index) == 0x32).collect();
    assert_eq!(fresh, [8, 9, 10, 11]);
    bed.unit
        .invalidate_interrupt_entries(&[InterruptEntries::All]);
    assert!((0..32).all(|index| state(index) == 0x32));
}

#[test]
fn masks_choose_aligned_powers_of_two() {
    let range = |index, mask| InterruptEntries::Selected { index, mask }.range();
    assert_eq!(range(5, 0), (5, 5));
    assert_eq!(range(5, 1), (4, 5));
    assert_eq!(range(0xffff, 15), (0x8000, 0xffff));
    for mask in [16, 17, 31, 32, 255] {
        assert_eq!(range(0xffff, mask), (0, 0xffff));
    }
}

/// Section 5.1.4 with 6.5.2.7: what is absent is not cached.
#[test]
fn an_entry_that_blocks_is_not_cached() {
    let bed = bed();
    assert!(bed.remap(asking(1)).is_err());
    bed.entry(1, low(0x31, 0), 0);
    assert!(bed.remap(asking(1)).is_ok());
}

#[test]
fn an_entry_that_is_invalidated_while_it_is_read_is_not_cached() {
    let bed = bed();
    bed.entry(1, low(0x31, 0), 0);
    let unit = Arc::clone(&bed.unit);
    bed.ram.after_loads(3, move |ram| {
        ram.set(TABLE + 16, low(0x32, 0));
        unit.invalidate_interrupt_entries(&[InterruptEntries::All]);
    });
    assert_eq!(bed.remap(asking(1)), remapped(0xfee0_0000, 0x4031));
    assert_eq!(bed.remap(asking(1)), remapped(0xfee0_0000, 0x4032));
}

/// Software changes both halves at once.
#[test]
fn halves_of_two_states_of_an_entry_are_not_mixed() {
    let bed = bed();
    bed.entry(1, low(0x31, 0), 1 << 18 | u64::from(SOURCE.0));
    bed.ram.after_loads(1, |ram| {
        ram.set(TABLE + 16, low(0x32, 0));
        ram.set(TABLE + 24, 1 << 18 | 0xffff);
    });
    assert_eq!(bed.cause(asking(1)), Cause::Source);
}

fn posted(vector: u64) -> (u64, u64) {
    (PRESENT | 1 << 15 | vector << 16 | DESCRIPTOR << 32, 0)
}

/// Section 9.9: without CAP.PI the mode is reserved.
#[test]
fn the_posted_format_is_reserved_where_it_is_not_offered() {
    let bed = bed_with(Capabilities::default().interrupt_remapping(), None);
    let (low, high) = posted(0x31);
    bed.entry(1, low, high);
    assert_eq!(bed.cause(asking(1)), Cause::EntryReserved);
}

/// Section 9.10.
#[test]
fn an_entry_of_the_posted_format_says_descriptor_vector_and_urgency() {
    let bed = bed();
    bed.entry(
        1,
        PRESENT | 1 << 14 | 1 << 15 | 0x31 << 16 | 0xffff_ffc0 << 32,
        0x1234_5678 << 32,
    );
    let Ok(Remapped::Posted(posting)) = bed.remap(asking(1)) else {
        panic!("not posted");
    };
    assert_eq!(posting.descriptor, Gpa(0x1234_5678_ffff_ffc0));
    assert_eq!((posting.vector, posting.urgent), (0x31, true));
    for bit in (2..8).chain([12, 13]).chain(24..38).chain(84..96) {
        let entry = u128::from(posted(0x31).0) | 1 << bit;
        bed.entry(1, entry as u64, (entry >> 64) as u64);
        assert_eq!(bed.cause(asking(1)), Cause::EntryReserved, "bit {bit}");
    }
}

const NOTIFY: Notification = Notification::new()
    .with_vector(0xf2)
    .with_destination(0x5a00);

/// Section 5.2.3.
#[test]
fn a_posted_interrupt_sets_its_request_and_notifies_once() {
    let bed = bed();
    let (low, high) = posted(0x71);
    bed.entry(1, low, high);
    bed.ram.set(DESCRIPTOR + 32, NOTIFY.into_bits());
    for _ in 0..2 {
        bed.unit.send_msi(SOURCE, asking(1));
    }
    assert_eq!(bed.ram.get(DESCRIPTOR + 8), 1 << 0x31);
    assert_eq!(
        bed.ram.get(DESCRIPTOR + 32),
        NOTIFY.with_outstanding(true).into_bits()
    );
    assert_eq!(bed.delivered(), [message(0xfee5_a000, 0x40f2)]);
}

/// Section 5.2.3, SN and URG.
#[test]
fn a_suppressed_notification_is_sent_for_urgent_interrupts_only() {
    let bed = bed();
    let (low, high) = posted(0x71);
    let suppressed = NOTIFY.with_suppressed(true);
    bed.entry(1, low, high);
    bed.entry(2, low | 1 << 14, high);
    bed.ram.set(DESCRIPTOR + 32, suppressed.into_bits());
    bed.unit.send_msi(SOURCE, asking(1));
    assert_eq!(bed.delivered(), []);
    assert_eq!(bed.ram.get(DESCRIPTOR + 32), suppressed.into_bits());
    assert_eq!(bed.ram.get(DESCRIPTOR + 8), 1 << 0x31);
    bed.unit.send_msi(SOURCE, asking(2));
    assert_eq!(bed.delivered(), [message(0xfee5_a000, 0x40f2)]);
}

/// Section 9.11, field NDST.
#[test]
fn a_notification_goes_to_an_x2apic_id_in_extended_interrupt_mode() {
    let bed = bed();
    bed.live(Global::new().with_interrupt_remapping(true), EIME | 7);
    let (low, high) = posted(0);
    bed.entry(1, low, high);
    bed.ram.set(DESCRIPTOR + 32, NOTIFY.into_bits());
    bed.unit.send_msi(SOURCE, asking(1));
    assert_eq!(bed.delivered(), [message(0x5a00_fee0_0000, 0x40f2)]);
}

/// Section 7.1.3, reasons 27h and 28h.
#[test]
fn a_descriptor_that_is_absent_or_malformed_takes_no_interrupt() {
    let bed = bed();
    let post = || {
        let Ok(Remapped::Posted(posting)) = bed.remap(asking(1)) else {
            panic!("not posted");
        };
        bed.unit.post(posting)
    };
    bed.entry(1, PRESENT | SILENT | 1 << 15, 1 << 32);
    assert_eq!(post(), Err(Blocked::by(1, Cause::Descriptor, true)));
    assert_eq!(Cause::Descriptor.reason(), Some(Reason(0x27)));
    let (low, high) = posted(3);
    bed.entry(1, low, high);
    for bit in (258..272).chain(280..288).chain(320..512) {
        let at = DESCRIPTOR + bit / 64 * 8;
        bed.ram.set(at, 1 << (bit % 64));
        assert_eq!(
            post(),
            Err(Blocked::by(1, Cause::DescriptorReserved, false)),
            "bit {bit}"
        );
        bed.ram.set(at, 0);
    }
    assert_eq!(Cause::DescriptorReserved.reason(), Some(Reason(0x28)));
    assert_eq!(bed.ram.get(DESCRIPTOR), 0);
}

#[test]
fn a_request_that_its_owner_takes_meanwhile_is_set_without_harm_to_others() {
    let bed = bed();
    let (low, high) = posted(3);
    bed.entry(1, low, high);
    bed.ram.set(DESCRIPTOR, 1 << 9);
    bed.ram.set(DESCRIPTOR + 32, NOTIFY.into_bits());
    // After the entry, the words that are checked and the requests are read.
    bed.ram.after_loads(8, |ram| ram.set(DESCRIPTOR, 1 << 17));
    bed.unit.send_msi(SOURCE, asking(1));
    assert_eq!(bed.ram.get(DESCRIPTOR), 1 << 17 | 1 << 3);
}

#[test]
fn messages_are_delivered_as_they_are_remapped_and_blocked_ones_are_not() {
    let bed = bed();
    bed.entry(1, low(0x31, 2), 0);
    bed.unit.send_msi(SOURCE, asking(1));
    bed.unit.send_msi(SOURCE, asking(2));
    bed.unit.message(SOURCE.into(), asking(1));
    let one = message(0xfee0_2000, 0x4031);
    assert_eq!(bed.delivered(), [one, one]);
}

/// Section 5: an interrupt request is known by its address alone.
#[test]
fn a_message_elsewhere_is_a_write_to_memory() {
    let bed = bed();
    let elsewhere = message(0x1000, 0x1234_5678);
    assert_eq!(bed.cause(elsewhere), Cause::NoInterrupt);
    assert_eq!(Cause::NoInterrupt.reason(), None);
    bed.unit.send_msi(SOURCE, elsewhere);
    assert_eq!(bed.ram.get(0x1000), 0x1234_5678);
    assert_eq!(bed.delivered(), []);
}

#[derive(Default)]
struct Heard(Mutex<Vec<Option<Message>>>);

impl Route for Heard {
    fn routed(&self, to: Option<Message>) {
        self.0.lock().unwrap().push(to);
    }
}

impl Heard {
    fn take(&self) -> Vec<Option<Message>> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[test]
fn a_route_is_told_at_once_and_when_its_own_entry_changes() {
    let bed = bed();
    bed.entry(1, low(0x31, 0), 0);
    let (heard, other) = (Arc::<Heard>::default(), Arc::<Heard>::default());
    let kept = bed.unit.route(SOURCE, asking(1), heard.clone());
    let _other = bed.unit.route(SOURCE, asking(2), other.clone());
    assert_eq!(heard.take(), [Some(message(0xfee0_0000, 0x4031))]);
    assert_eq!(other.take(), [None]);
    bed.entry(1, low(0x32, 0), 0);
    bed.entry(2, low(0x33, 0), 0);
    bed.invalidate(1, 0);
    assert_eq!(heard.take(), [Some(message(0xfee0_0000, 0x4032))]);
    assert_eq!(other.take(), []);
    // Nothing changed for the one.
    bed.unit
        .invalidate_interrupt_entries(&[InterruptEntries::All]);
    assert_eq!(heard.take(), []);
    assert_eq!(other.take(), [Some(message(0xfee0_0000, 0x4033))]);
    drop(kept);
    bed.entry(1, 0, 0);
    bed.invalidate(1, 0);
    assert_eq!(heard.take(), []);
}

#[test]
fn a_route_of_compatibility_format_is_told_when_such_are_blocked() {
    let bed = bed();
    let compatible = message(0xfee0_1000, 0x31);
    bed.live(CFI, 7);
    let heard = Arc::<Heard>::default();
    let _kept = bed.unit.route(SOURCE, compatible, heard.clone());
    bed.live(Global::new().with_interrupt_remapping(true), 7);
    bed.live(Global::new(), 7);
    assert_eq!(heard.take(), [Some(compatible), None, Some(compatible)]);
}

#[test]
fn a_route_of_a_posted_interrupt_goes_through_the_unit() {
    let bed = bed();
    let (low, high) = posted(0x31);
    bed.entry(1, low, high);
    let heard = Arc::<Heard>::default();
    let _kept = bed.unit.route(SOURCE, asking(1), heard.clone());
    assert_eq!(heard.take(), [None]);
}

#[test]
fn nothing_is_delivered_by_an_entry_whose_invalidation_is_done() {
    let bed = bed();
    let rounds = 60_u64;
    bed.entry(1, low(0x31, 0), 0);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while done.load(Ordering::SeqCst) < rounds {
                    bed.unit.send_msi(SOURCE, asking(1));
                }
            });
        }
        for round in 1..=rounds {
            bed.entry(1, low(0x31, round & 0xff), 0);
            bed.invalidate(1, 0);
            bed.delivered.lock().unwrap().clear();
            // What comes from now on can be of this round only.
            std::thread::yield_now();
            let now = 0xfee0_0000 | (round & 0xff) << 12;
            assert!(bed.delivered().iter().all(|message| message.address == now));
            done.store(round, Ordering::SeqCst);
        }
    });
}
