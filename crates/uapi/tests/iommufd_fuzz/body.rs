//! The fuzz bodies: plain functions on bytes.

use std::collections::{BTreeMap, BTreeSet};

use iogate_dma::Memory;
use iogate_uapi::{Client, Errno};

use crate::iommufd_world::*;
use crate::model::{self, Model};
use crate::pack;

/// The bytes as a source of small numbers; zeroes when they are used up.
struct Input<'b>(&'b [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    fn flags(&mut self) -> u32 {
        u32::from(self.byte()) & (RW | FIXED)
    }

    /// A small number of KiB, every other time of pages.
    fn size(&mut self) -> u64 {
        match self.byte() {
            byte @ 128.. => u64::from(byte & 15) * PAGE,
            byte => u64::from(byte & 63) * model::UNIT,
        }
    }

    /// An object's number, most often one of `known`.
    fn id(&mut self, known: &[u32]) -> u32 {
        let byte = self.byte();
        match known.len() {
            0 => u32::from(byte % 12),
            _ if byte >= 230 => u32::from(byte % 12),
            count => known[usize::from(byte) % count],
        }
    }

    /// A range, most often one that has to do with one of `known`.
    fn range(&mut self, known: &[(u64, u64)]) -> (u64, u64) {
        let kind = self.byte();
        if kind >= 192 || known.is_empty() {
            return (self.size(), self.size());
        }
        let (first, length) = known[self.below(known.len())];
        match kind % 4 {
            0 | 1 => (first, length),
            2 => (first + self.size() % length, self.size()),
            _ => (first, length + self.size()),
        }
    }
}

/// A sequence of calls, each compared with the naive model: its result, the
/// ranges of every IOAS, every pinned frame, and what every device reaches.
pub fn sequence(bytes: &[u8]) {
    let world = filled();
    let mut parts = [Part::new(&world, &[0, 1, 2, 3, 4])];
    let mut input = Input(bytes);
    while !input.is_empty() {
        turn(&world, &mut parts, 0, &mut input);
    }
    close(&world, parts);
}

/// The same on several iommufds by turns, which have devices of their own and
/// the program's memory in common.
pub fn several(bytes: &[u8]) {
    let world = filled();
    let mut parts = [
        Part::new(&world, &[0, 1]),
        Part::new(&world, &[2, 3]),
        Part::new(&world, &[4]),
    ];
    let mut input = Input(bytes);
    while !input.is_empty() {
        let whose = input.below(parts.len());
        turn(&world, &mut parts, whose, &mut input);
    }
    close(&world, parts);
}

/// The same by threads at once, each on an iommufd of its own: what the others
/// do is not felt.
pub fn threads(bytes: &[u8]) {
    let world = filled();
    let parts = [
        Part::new(&world, &[0, 1]),
        Part::new(&world, &[2, 3]),
        Part::new(&world, &[4]),
    ];
    let each = bytes.len() / parts.len();
    let run = |slot: usize, mut part: Part| {
        set_argument(ARGUMENT + slot as u64 * 4 * PAGE);
        let mut input = Input(&bytes[slot * each..][..each]);
        while !input.is_empty() {
            // Pages that the program takes away are everybody's.
            let _page = part.step(&world, &mut input);
            part.compare(&world);
        }
        part
    };
    let parts: Vec<Part> = std::thread::scope(|scope| {
        let started = parts.into_iter().enumerate();
        let started: Vec<_> = started
            .map(|(slot, part)| scope.spawn(move || run(slot, part)))
            .collect();
        started
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    compare_pins(&world, &parts);
    close(&world, parts);
}

/// A world whose program has something in its memory.
fn filled() -> World {
    let world = World::new();
    for unit in 0..HEAP_PAGES * 4 {
        let at = HEAP + unit * model::UNIT;
        let value = [model::content(at); model::UNIT as usize];
        let frame = 2000 + unit / 4;
        let within = (unit % 4) * model::UNIT;
        world
            .program
            .ram
            .write(frame * PAGE + within, &value)
            .unwrap();
    }
    world
}

/// One call on one of the parts, and a look at all of them.
fn turn(world: &World, parts: &mut [Part], whose: usize, input: &mut Input<'_>) {
    if let Some(page) = parts[whose].step(world, input) {
        take_or_give(world, parts, page);
    }
    for part in &*parts {
        part.compare(world);
    }
    compare_pins(world, parts);
}

/// The program unmaps a page of its memory, or gets it back.
fn take_or_give(world: &World, parts: &mut [Part], page: u64) {
    let at = HEAP + page * PAGE;
    if parts.iter().all(|part| part.model.is_present(page)) {
        world.take(at);
        parts.iter_mut().for_each(|part| part.model.take(page));
    } else if page.is_multiple_of(2) {
        // A shared page comes back as what it was; a private one never does.
        world.give(at, 2000 + page, true, true);
        parts.iter_mut().for_each(|part| part.model.give(page));
    }
}

fn close(world: &World, parts: impl IntoIterator<Item = Part>) {
    for part in parts {
        for (_, device) in part.open {
            world.close(device);
        }
        world.close(part.file);
    }
    assert_eq!(world.pinned_frames(), 0);
}

/// An iommufd, the devices that it may have, and what the model says of it.
struct Part {
    file: Opened,
    devices: &'static [usize],
    model: Model,
    open: BTreeMap<usize, Opened>,
}

impl Part {
    fn new(world: &World, devices: &'static [usize]) -> Self {
        Self {
            file: world.iommufd(),
            devices,
            model: Model::new(),
            open: BTreeMap::new(),
        }
    }

    fn device(&self, input: &mut Input<'_>) -> usize {
        self.devices[input.below(self.devices.len())]
    }

    /// One call. Returns a page of the program's memory instead, that is to be taken
    /// away or given back.
    fn step(&mut self, world: &World, input: &mut Input<'_>) -> Option<u64> {
        let file = self.file;
        let operation = input.below(18);
        match operation {
            0 => assert_eq!(world.ioas(file), self.model.ioas_alloc()),
            1..=3 => {
                let (ioas, flags) = (input.id(&self.model.spaces()), input.flags());
                let (va, length) = (HEAP + input.size(), input.size());
                let iova = input.size();
                let expected = self.model.map(ioas, flags, va, length, iova);
                assert_eq!(world.map(file, ioas, flags, (va, length), iova), expected);
            }
            4 | 5 => {
                let (from, to) = (
                    input.id(&self.model.spaces()),
                    input.id(&self.model.spaces()),
                );
                let (flags, iova) = (input.flags(), input.size());
                let (source, length) = input.range(&self.model.spans(from));
                let expected = self.model.copy(flags, from, source, to, iova, length);
                let result = world.copy(file, flags, (from, source), (to, iova), length);
                assert_eq!(result, expected);
            }
            6 | 7 => {
                let ioas = input.id(&self.model.spaces());
                let (iova, length) = match input.byte() {
                    0 => (0, u64::MAX),
                    _ => input.range(&self.model.spans(ioas)),
                };
                let expected = self.model.unmap(ioas, iova, length);
                assert_eq!(world.unmap(file, ioas, iova, length), expected);
            }
            8 => {
                let id = input.id(&[]);
                assert_eq!(world.destroy(file, id), self.model.destroy(id));
            }
            9 => {
                let (device, pt) = (
                    input.id(&self.model.devices()),
                    input.id(&self.model.spaces()),
                );
                assert_eq!(
                    world.hwpt(file, device, pt, 0),
                    self.model.hwpt_alloc(device, pt)
                );
            }
            10 => {
                let which = self.device(input);
                match self.open.remove(&which) {
                    Some(device) => {
                        world.close(device);
                        self.model.close(which);
                    }
                    None => {
                        let (device, id) = world.bound(model::DEVICES[which], file);
                        assert_eq!(id, self.model.bind(which));
                        self.open.insert(which, device);
                    }
                }
            }
            11 | 12 => {
                let (which, pt) = (self.device(input), input.id(&self.model.tables()));
                if let Some(device) = self.open.get(&which).copied() {
                    assert_eq!(world.attach(device, pt), self.model.attach(which, pt));
                }
            }
            13 => {
                let which = self.device(input);
                if let Some(device) = self.open.get(&which).copied() {
                    assert_eq!(world.detach(device), Ok(()));
                    self.model.detach(which);
                }
            }
            14 => {
                let ioas = input.id(&self.model.spaces());
                if input.byte() & 1 == 0 {
                    let on = u64::from(input.byte() & 1);
                    let expected = self.model.huge_pages(ioas, on == 1);
                    assert_eq!(world.option(file, (1, 0), ioas, on).map(drop), expected);
                } else {
                    let ranges = (0..input.below(3)).map(|_| {
                        let first = input.size();
                        (first, first + input.size())
                    });
                    let ranges: Vec<_> = ranges
                        .map(|(first, end)| (first, end.wrapping_sub(1)))
                        .collect();
                    assert_eq!(
                        world.allow(file, ioas, &ranges),
                        self.model.allow(ioas, &ranges)
                    );
                }
            }
            15 => return Some(u64::from(input.byte()) % HEAP_PAGES),
            16 => {
                let ioas = input.id(&self.model.spaces());
                let (op, expected) = match input.byte() % 3 {
                    0 => (0_u16, self.model.vfio_ioas()),
                    1 => (1, self.model.set_vfio_ioas(ioas).map(|()| ioas)),
                    _ => {
                        self.model.clear_vfio_ioas();
                        (2, Ok(ioas))
                    }
                };
                let mut bytes = pack!(12_u32, ioas, op, 0_u16);
                let result = world.call(file, 0x88, &mut bytes);
                assert_eq!(result.map(|_| word(&bytes, 4)), expected);
            }
            _ => {
                // VFIO's READ 1 and WRITE 2.
                let write = u32::from(input.byte() & 1);
                let (va, length, iova) = (HEAP + input.size(), input.size(), input.size());
                let expected = self.model.vfio_ioas().and_then(|ioas| {
                    let flags = FIXED | R | (write * W);
                    self.model.map(ioas, flags, va, length, iova).map(|_| 0)
                });
                let mut bytes = pack!(32_u32, 1 | (write << 1), va, iova, length);
                assert_eq!(world.call(file, 0x71, &mut bytes), expected);
            }
        }
        None
    }

    fn compare(&self, world: &World) {
        let model = &self.model;
        for (ioas, expected) in model.all_ranges() {
            assert_eq!(world.ranges(self.file, ioas), expected);
        }
        for which in self.devices.iter().copied() {
            let index = model::DEVICES[which];
            // One that is attached to nothing reaches nothing anywhere.
            let pages = if model.is_attached(which) { 20 } else { 1 };
            for iova in (0..pages * PAGE).step_by(model::UNIT as usize) {
                let at = iova + model::UNIT / 2;
                let (reads, writes) = (model.dma(which, at, R), model.dma(which, at, W));
                assert_eq!(world.dma_read(index, at), reads, "{which} {at:#x}");
                let written = world.dma_write(index, at, writes.unwrap_or(0));
                assert_eq!(written, writes.is_some(), "{which} {at:#x}");
            }
        }
    }
}

fn compare_pins(world: &World, parts: &[Part]) {
    let pins = world.program.process.pins.lock().unwrap();
    let pinned: BTreeSet<u64> = pins.keys().copied().collect();
    let expected = parts.iter().flat_map(|part| part.model.pinned_frames());
    assert_eq!(pinned, expected.collect());
}

/// Single calls with any bytes as their argument: whatever they come to, no
/// panic, and nothing is left when everything is closed.
pub fn call(bytes: &[u8]) {
    let world = World::new();
    let file = world.iommufd();
    let (device, _) = world.bound(ALONE, file);
    let ioas = world.ioas(file);
    world
        .map(file, ioas, FIXED | RW, (HEAP, 4 * PAGE), PAGE)
        .unwrap();
    world.attach(device, ioas).unwrap();
    let mut input = Input(bytes);
    while !input.is_empty() {
        let number = 0x80 + u32::from(input.byte() % 0x16);
        let size = u32::from(input.byte() % 64);
        let mut argument = pack!(size);
        while argument.len() < size as usize {
            // Mostly numbers that mean something, of either width.
            let value: u64 = match input.byte() {
                kind @ 0..=99 => u64::from(kind % 8),
                100..=139 => HEAP + input.size(),
                140..=179 => input.size(),
                180..=189 => u64::MAX - input.size(),
                190..=199 => ARGUMENT,
                _ => u64::from_ne_bytes([input.byte(); 8]),
            };
            match input.byte() & 1 {
                0 => argument.extend((value as u32).to_ne_bytes()),
                _ => argument.extend(value.to_ne_bytes()),
            }
        }
        let target = if input.byte() < 200 { file } else { device };
        let number = if target.fd == device.fd {
            118 + number % 3
        } else {
            number
        };
        world.program.write(ARGUMENT, &argument).unwrap();
        let result = world.raw(target, number, ARGUMENT);
        assert!(matches!(result, Ok(0) | Err(Errno(1..=133))), "{result:?}");
    }
    world.close(file);
    world.close(device);
    assert_eq!(world.pinned_frames(), 0);
}
