//! The fuzz bodies: plain functions on bytes.

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
    let file = world.iommufd();
    let mut model = Model::new();
    let mut open: [Option<Opened>; model::DEVICES.len()] = Default::default();
    let mut input = Input(bytes);
    while !input.is_empty() {
        step(&world, file, &mut model, &mut open, &mut input);
        compare(&world, file, &model);
    }
    for device in open.into_iter().flatten() {
        world.close(device);
    }
    world.close(file);
    assert_eq!(world.pinned_frames(), 0);
}

fn step(
    world: &World,
    file: Opened,
    model: &mut Model,
    open: &mut [Option<Opened>],
    input: &mut Input<'_>,
) {
    let operation = input.below(16);
    match operation {
        0 => assert_eq!(world.ioas(file), model.ioas_alloc()),
        1..=3 => {
            let (ioas, flags) = (input.id(&model.spaces()), input.flags());
            let (va, length) = (HEAP + input.size(), input.size());
            let iova = input.size();
            let expected = model.map(ioas, flags, va, length, iova);
            assert_eq!(world.map(file, ioas, flags, (va, length), iova), expected);
        }
        4 | 5 => {
            let (from, to) = (input.id(&model.spaces()), input.id(&model.spaces()));
            let (flags, iova) = (input.flags(), input.size());
            let (source, length) = input.range(&model.spans(from));
            let expected = model.copy(flags, from, source, to, iova, length);
            let result = world.copy(file, flags, (from, source), (to, iova), length);
            assert_eq!(result, expected);
        }
        6 | 7 => {
            let ioas = input.id(&model.spaces());
            let (iova, length) = match input.byte() {
                0 => (0, u64::MAX),
                _ => input.range(&model.spans(ioas)),
            };
            let expected = model.unmap(ioas, iova, length);
            assert_eq!(world.unmap(file, ioas, iova, length), expected);
        }
        8 => {
            let id = input.id(&[]);
            assert_eq!(world.destroy(file, id), model.destroy(id));
        }
        9 => {
            let (device, pt) = (input.id(&model.devices()), input.id(&model.spaces()));
            assert_eq!(
                world.hwpt(file, device, pt, 0),
                model.hwpt_alloc(device, pt)
            );
        }
        10 => {
            let which = input.below(open.len());
            match open[which].take() {
                Some(device) => {
                    world.close(device);
                    model.close(which);
                }
                None => {
                    let (device, id) = world.bound(model::DEVICES[which], file);
                    assert_eq!(id, model.bind(which));
                    open[which] = Some(device);
                }
            }
        }
        11 | 12 => {
            let (which, pt) = (input.below(open.len()), input.id(&model.tables()));
            if let Some(device) = open[which] {
                assert_eq!(world.attach(device, pt), model.attach(which, pt));
            }
        }
        13 => {
            let which = input.below(open.len());
            if let Some(device) = open[which] {
                assert_eq!(world.detach(device), Ok(()));
                model.detach(which);
            }
        }
        14 => {
            let ioas = input.id(&model.spaces());
            if input.byte() & 1 == 0 {
                let on = u64::from(input.byte() & 1);
                let expected = model.huge_pages(ioas, on == 1);
                assert_eq!(world.option(file, (1, 0), ioas, on).map(drop), expected);
            } else {
                let ranges = (0..input.below(3)).map(|_| {
                    let first = input.size();
                    (first, first + input.size())
                });
                let ranges: Vec<_> = ranges
                    .map(|(first, end)| (first, end.wrapping_sub(1)))
                    .collect();
                assert_eq!(world.allow(file, ioas, &ranges), model.allow(ioas, &ranges));
            }
        }
        _ => {
            let page = input.byte() as u64 % HEAP_PAGES;
            let at = HEAP + page * PAGE;
            if model.is_present(page) {
                world.take(at);
                model.take(page);
            } else if page.is_multiple_of(2) {
                // A shared page comes back as what it was; a private one
                // never does.
                world.give(at, 2000 + page, true, true);
                model.give(page);
            }
        }
    }
}

fn compare(world: &World, file: Opened, model: &Model) {
    for (ioas, expected) in model.all_ranges() {
        assert_eq!(world.ranges(file, ioas), expected);
    }
    let pinned: Vec<u64> = world
        .program
        .process
        .pins
        .lock()
        .unwrap()
        .keys()
        .copied()
        .collect();
    assert_eq!(pinned, model.pinned_frames());
    for (which, index) in model::DEVICES.into_iter().enumerate() {
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
