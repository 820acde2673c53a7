//! A split virtqueue from the device's side: whole rings in few requests.
//! Virtio 1.2 section 2.7.
//!
//! Entries of the available ring and blocks of the descriptor table are read
//! in bulk; used entries are written in bulk, with one used index for all.
//! Nothing that was read is read again: what was checked stays true.

use iogate_dma::{Iova, Width};
use iogate_pci::{Bus, BusError};

use super::spec::ring::{DESCRIPTOR, Descriptor, available, used};
use super::watch::Watch;

/// Entries of a queue at most.
pub(super) const MAX_SIZE: u16 = 1024;
/// Chains of one batch at most.
pub(super) const BATCH: usize = 256;
/// Descriptors of a block of the table: 1 KiB.
const BLOCK: usize = 64;

/// Where a queue stands. Size 0 is no queue.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    /// The available ring.
    pub(super) driver: u64,
    /// The used ring.
    pub(super) device: u64,
}

impl Place {
    /// Whether a queue can stand there: a power of two of entries, aligned,
    /// within the address space. Virtio 1.2 section 2.7.
    pub(super) fn is_possible(&self) -> bool {
        let size = u64::from(self.size);
        let ends = |address: u64, bytes: u64| address.checked_add(bytes).is_some();
        let table = size.saturating_mul(16);
        self.size.is_power_of_two()
            && self.size <= MAX_SIZE
            && self.descriptors.is_multiple_of(16)
            && self.driver.is_multiple_of(2)
            && self.device.is_multiple_of(4)
            && ends(self.descriptors, table)
            && ends(
                self.driver,
                size.saturating_mul(available::ENTRY).saturating_add(6),
            )
            && ends(
                self.device,
                size.saturating_mul(used::ENTRY).saturating_add(6),
            )
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index & self.size.saturating_sub(1))
    }

    /// `used_event`, written by the driver.
    fn used_event(&self) -> Iova {
        let entries = u64::from(self.size).wrapping_mul(available::ENTRY);
        at(self.driver, available::RING.wrapping_add(entries))
    }

    /// `avail_event`, written by the device.
    fn avail_event(&self) -> Iova {
        let entries = u64::from(self.size).wrapping_mul(used::ENTRY);
        at(self.device, used::RING.wrapping_add(entries))
    }
}

fn at(base: u64, offset: u64) -> Iova {
    Iova(base.wrapping_add(offset))
}

/// Why a queue goes no further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// Its structures are refused or make no sense: the device needs a reset.
    Broken,
    /// The function was reset.
    Reset,
}

impl From<BusError> for Stop {
    fn from(error: BusError) -> Self {
        match error {
            BusError::Refused(_) => Self::Broken,
            BusError::Reset => Self::Reset,
        }
    }
}

/// A piece of memory that a chain names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    pub(super) address: u64,
    pub(super) length: u32,
    /// The device writes it, and does not read it.
    pub(super) writable: bool,
}

/// Where a ring is between two quanta.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Position {
    pub(super) next: u16,
    pub(super) used: u16,
    pub(super) silent: bool,
}

/// The worker's side of one queue.
pub(super) struct Ring {
    place: Place,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    event_idx: bool,
    /// The index of the next chain to take.
    next: u16,
    /// Heads that were read and not yet taken: `taken..held` of these.
    heads: [u16; BATCH],
    taken: usize,
    held: usize,
    /// Used entries that are not yet written, 8 bytes each.
    done: Vec<u8>,
    /// The used index that the driver sees.
    used: u16,
    /// `VIRTQ_USED_F_NO_NOTIFY` is set.
    silent: bool,
    /// Blocks of the descriptor table, of which `loaded` says which are there.
    table: Vec<u8>,
    loaded: u32,
    watch: Watch,
}

impl Ring {
    pub(super) fn new() -> Self {
        Self {
            place: Place::default(),
            event_idx: false,
            next: 0,
            heads: [0; BATCH],
            taken: 0,
            held: 0,
            done: Vec::new(),
            used: 0,
            silent: false,
            table: Vec::new(),
            loaded: 0,
            watch: Watch::default(),
        }
    }

    /// Forgets the driver's last initialization.
    pub(super) fn clear(&mut self) {
        let (done, table) = (
            std::mem::take(&mut self.done),
            std::mem::take(&mut self.table),
        );
        *self = Self {
            done,
            table,
            ..Self::new()
        };
        self.done.clear();
    }

    /// Where it stands in this quantum.
    pub(super) fn set(&mut self, place: Place, event_idx: bool) {
        self.place = place;
        self.event_idx = event_idx;
        self.taken = 0;
        self.held = 0;
        self.done.clear();
    }

    /// What the worker knows of the queue from one quantum to the next: the
    /// next chain to take, the used index, and whether notifications are off.
    pub(super) fn position(&self) -> Position {
        Position {
            next: self.next,
            used: self.used,
            silent: self.silent,
        }
    }

    /// Goes on where another ring was.
    pub(super) fn set_position(&mut self, position: Position) {
        self.clear();
        self.next = position.next;
        self.used = position.used;
        self.silent = position.silent;
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.place.size != 0
    }

    /// Reads which chains are available, at most [`BATCH`]; says whether
    /// there are any.
    pub(super) fn refresh(&mut self, bus: &mut Bus<'_>) -> Result<bool, Stop> {
        self.taken = 0;
        self.held = 0;
        let waiting = self.waiting(bus)?;
        // What the driver changed since is announced by the index just read.
        self.loaded = 0;
        self.held = usize::from(waiting).min(BATCH);
        let mut bytes = [0; BATCH * 2];
        let ring = at(self.place.driver, available::RING);
        let bytes = bytes
            .get_mut(..self.held.saturating_mul(2))
            .unwrap_or_default();
        let first = self.place.slot(self.next);
        let before_end = u64::from(self.place.size).saturating_sub(first);
        let before_end = usize::try_from(before_end.saturating_mul(available::ENTRY));
        let split = before_end.unwrap_or(0).min(bytes.len());
        let (low, high) = bytes.split_at_mut_checked(split).unwrap_or_default();
        if !low.is_empty() {
            bus.read(at(ring.0, first.wrapping_mul(available::ENTRY)), low)?;
        }
        if !high.is_empty() {
            bus.read(ring, high)?;
        }
        let (words, _) = bytes.as_chunks::<2>();
        for (head, word) in self.heads.iter_mut().zip(words) {
            *head = u16::from_le_bytes(*word);
        }
        Ok(self.held != 0)
    }

    /// Chains available and not yet taken.
    fn waiting(&self, bus: &mut Bus<'_>) -> Result<u16, Stop> {
        let index = bus.load(at(self.place.driver, available::INDEX), Width::Word)?;
        let index = u16::try_from(index).map_err(|_| Stop::Broken)?;
        let waiting = index.wrapping_sub(self.next);
        match waiting <= self.place.size {
            true => Ok(waiting),
            false => Err(Stop::Broken),
        }
    }

    /// Takes the next chain of those that [`refresh`](Self::refresh) found.
    pub(super) fn take(&mut self) -> Option<u16> {
        let head = self.heads.get(..self.held)?.get(self.taken)?;
        self.taken = self.taken.saturating_add(1);
        self.next = self.next.wrapping_add(1);
        Some(*head)
    }

    /// Puts back the chain that was taken last.
    pub(super) fn put_back(&mut self) {
        self.taken = self.taken.saturating_sub(1);
        self.next = self.next.wrapping_sub(1);
    }

    fn descriptor(&mut self, bus: &mut Bus<'_>, index: u16) -> Result<Descriptor, Stop> {
        if index >= self.place.size {
            return Err(Stop::Broken);
        }
        let index = usize::from(index);
        let block = index / BLOCK;
        let bit = 1_u32.wrapping_shl(u32::try_from(block).unwrap_or(0));
        if self.loaded & bit == 0 {
            let whole = usize::from(self.place.size).saturating_mul(DESCRIPTOR);
            self.table.resize(whole, 0);
            let first = block.saturating_mul(BLOCK * DESCRIPTOR);
            let last = first.saturating_add(BLOCK * DESCRIPTOR).min(whole);
            let offset = u64::try_from(first).map_err(|_| Stop::Broken)?;
            let into = self.table.get_mut(first..last).ok_or(Stop::Broken)?;
            bus.read(at(self.place.descriptors, offset), into)?;
            self.loaded |= bit;
        }
        parse(&self.table, index)
    }

    /// Adds the segments of the chain at `head` to `segments`; their bytes.
    /// `indirect` is a buffer for an indirect table.
    pub(super) fn chain(
        &mut self,
        bus: &mut Bus<'_>,
        head: u16,
        indirect: Option<&mut Vec<u8>>,
        segments: &mut Vec<Segment>,
    ) -> Result<u64, Stop> {
        let mut total = 0;
        let mut descriptor = self.descriptor(bus, head)?;
        // A chain is no longer than the queue: beyond that it is a loop.
        for _ in 0..self.place.size {
            if descriptor.flags.indirect() {
                let table = indirect.ok_or(Stop::Broken)?;
                return self.indirect(bus, &descriptor, table, segments, total);
            }
            add(segments, &descriptor, &mut total)?;
            if !descriptor.flags.next() {
                return Ok(total);
            }
            descriptor = self.descriptor(bus, descriptor.next)?;
        }
        Err(Stop::Broken)
    }

    /// As [`chain`](Self::chain), in an indirect table. Virtio 1.2 section
    /// 2.7.5.3.
    fn indirect(
        &self,
        bus: &mut Bus<'_>,
        descriptor: &Descriptor,
        table: &mut Vec<u8>,
        segments: &mut Vec<Segment>,
        mut total: u64,
    ) -> Result<u64, Stop> {
        let length = usize::try_from(descriptor.length).map_err(|_| Stop::Broken)?;
        let entries = length / DESCRIPTOR;
        let fits = length.is_multiple_of(DESCRIPTOR) && entries <= usize::from(self.place.size);
        if !fits || entries == 0 || descriptor.flags.next() {
            return Err(Stop::Broken);
        }
        table.resize(length, 0);
        bus.read(Iova(descriptor.address), table)?;
        let mut index = 0;
        for _ in 0..entries {
            let descriptor = parse(table, index)?;
            if descriptor.flags.indirect() {
                return Err(Stop::Broken);
            }
            add(segments, &descriptor, &mut total)?;
            if !descriptor.flags.next() {
                return Ok(total);
            }
            index = usize::from(descriptor.next);
        }
        Err(Stop::Broken)
    }

    /// Gives the chain at `head` back, with `length` bytes written to it; seen
    /// by the driver after a [`flush`](Self::flush).
    pub(super) fn give(&mut self, head: u16, length: u32) {
        self.done.extend(u32::from(head).to_le_bytes());
        self.done.extend(length.to_le_bytes());
    }

    /// Writes what was given back; says whether the driver wants an interrupt.
    pub(super) fn flush(&mut self, bus: &mut Bus<'_>) -> Result<bool, Stop> {
        let entries = self.done.len() / 8;
        let Some(entries) = u16::try_from(entries).ok().filter(|entries| *entries != 0) else {
            return Ok(false);
        };
        if entries > self.place.size {
            return Err(Stop::Broken);
        }
        let ring = at(self.place.device, used::RING);
        let first = self.place.slot(self.used);
        let before_end = u64::from(self.place.size).saturating_sub(first);
        let before_end = usize::try_from(before_end.saturating_mul(used::ENTRY));
        let split = before_end.unwrap_or(0).min(self.done.len());
        let (low, high) = self.done.split_at_checked(split).unwrap_or_default();
        bus.write(at(ring.0, first.wrapping_mul(used::ENTRY)), low)?;
        if !high.is_empty() {
            bus.write(ring, high)?;
        }
        let old = self.used;
        self.used = old.wrapping_add(entries);
        self.done.clear();
        // The index after the entries: the driver looks at nothing else before.
        let index = at(self.place.device, used::INDEX);
        bus.store(index, Width::Word, self.used.into())?;
        // Every request is fenced from the one before, so that an index that
        // the driver has not yet seen and a wish for an interrupt that is not
        // seen here cannot be both.
        match self.event_idx {
            true => {
                let event = bus.load(self.place.used_event(), Width::Word)?;
                let event = u16::try_from(event).map_err(|_| Stop::Broken)?;
                let since = self.used.wrapping_sub(event).wrapping_sub(1);
                Ok(since < self.used.wrapping_sub(old))
            }
            false => {
                let flags = at(self.place.driver, available::FLAGS);
                let flags = bus.load(flags, Width::Word)?;
                Ok(flags & available::NO_INTERRUPT == 0)
            }
        }
    }

    /// Asks the driver for no notifications. Virtio 1.2 section 2.7.10.
    pub(super) fn silence(&mut self, bus: &mut Bus<'_>) -> Result<(), Stop> {
        // With events, not to move the event on is enough.
        if !self.event_idx && !self.silent {
            self.set_flags(bus, used::NO_NOTIFY)?;
            self.silent = true;
        }
        Ok(())
    }

    /// Asks for a notification of the next chain; says whether there is one
    /// already.
    pub(super) fn listen(&mut self, bus: &mut Bus<'_>) -> Result<bool, Stop> {
        if self.event_idx {
            bus.store(self.place.avail_event(), Width::Word, self.next.into())?;
        } else if self.silent {
            self.set_flags(bus, 0)?;
            self.silent = false;
        }
        Ok(self.waiting(bus)? != 0)
    }

    /// As [`listen`](Self::listen), but looks for the next chain before it
    /// asks for notifications.
    pub(super) fn watch(&mut self, bus: &mut Bus<'_>) -> Result<bool, Stop> {
        let looks = self.watch.looks();
        for _ in 0..looks {
            if self.waiting(bus)? != 0 {
                self.watch.found();
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        if looks != 0 {
            self.watch.missed();
        }
        self.listen(bus)
    }

    fn set_flags(&self, bus: &mut Bus<'_>, flags: u64) -> Result<(), Stop> {
        let place = at(self.place.device, used::FLAGS);
        Ok(bus.store(place, Width::Word, flags)?)
    }
}

fn parse(table: &[u8], index: usize) -> Result<Descriptor, Stop> {
    let (descriptors, _) = table.as_chunks::<DESCRIPTOR>();
    let bytes = descriptors.get(index).ok_or(Stop::Broken)?;
    Ok(Descriptor::parse(*bytes))
}

fn add(segments: &mut Vec<Segment>, descriptor: &Descriptor, total: &mut u64) -> Result<(), Stop> {
    let end = descriptor.address.checked_add(descriptor.length.into());
    if end.is_none() {
        return Err(Stop::Broken);
    }
    *total = total.saturating_add(descriptor.length.into());
    if descriptor.length != 0 {
        segments.push(Segment {
            address: descriptor.address,
            length: descriptor.length,
            writable: descriptor.flags.write(),
        });
    }
    Ok(())
}
