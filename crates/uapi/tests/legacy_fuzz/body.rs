//! The fuzz bodies: plain functions on bytes.

use iogate_dma::FaultReason;
use iogate_host::{FileId, MemlockMode, Node};
use iogate_uapi::Errno;

use crate::legacy_world::*;
use crate::model::{GROUPS, LIMIT, Model};
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

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// An I/O virtual address near where something happens.
    fn iova(&mut self) -> u64 {
        const BASES: [u64; 8] = [
            0,
            0x10_0000,
            0x800_0000,
            0xfee0_0000,
            0xfef0_0000,
            1 << 39,
            1 << 48,
            0,
        ];
        let base = BASES[self.below(8)];
        let byte = self.byte();
        let pages = u64::from(byte & 31).wrapping_sub(8);
        let odd = u64::from(byte > 240);
        base.wrapping_add(pages.wrapping_mul(PAGE))
            .wrapping_add(odd)
    }

    /// Mostly a few pages.
    fn size(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            254 => 1,
            253 => 1 << 40,
            byte => u64::from(byte % 12) * PAGE,
        }
    }

    /// A range; if `old`, mostly one or more of `known`.
    fn range(&mut self, known: &[(u64, u64)], old: bool) -> (u64, u64) {
        if !old || known.is_empty() || self.byte() > 200 {
            return (self.iova(), self.size());
        }
        let (first, size) = known[self.below(known.len())];
        match self.byte() {
            0..160 => (first, size),
            160..200 => (first, size.saturating_add(self.size())),
            byte => (first + u64::from(byte % 4) * PAGE, self.size()),
        }
    }

    /// Mostly in the heap.
    fn address(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX - 4095,
            254 => 0,
            253 => HEAP + 1,
            byte => HEAP + u64::from(byte) % HEAP_PAGES * PAGE,
        }
    }
}

const BITMAP: u64 = ARGUMENT + 4 * PAGE;

/// A sequence of calls, each compared with the naive model: its result, what
/// every device reaches, and how many mappings may still be made.
pub fn sequence(bytes: &[u8]) {
    let mut input = Input(bytes);
    let world = World::with(LIMIT, MemlockMode::Off);
    let mut model = Model::new(HEAP, HEAP_PAGES);
    for page in 0..HEAP_PAGES {
        let bytes = [page as u8 ^ 0x5a; 4096];
        world.program.poke(HEAP + page * PAGE, &bytes);
    }
    let containers = [0; 2].map(|_| world.open(Node::Container).unwrap());
    let groups = GROUPS.map(|device| world.group(device));
    let mut devices: [Vec<FileId>; 2] = Default::default();
    while !input.is_empty() {
        let group = input.below(2);
        let at = input.below(2);
        let container = containers[at];
        match input.below(12) {
            0 => {
                let ours = world.set_container(groups[group], container).map(drop);
                assert_eq!(ours, model.set_container(group, at));
            }
            1 => {
                // Most sequences are to get somewhere.
                if input.byte() > 200 {
                    let ours = world.call(groups[group], 5, &mut []).map(drop);
                    assert_eq!(ours, model.unset_container(group));
                }
            }
            2 => {
                let kind = [3, 3, 3, 1, 9, 2][input.below(6)];
                let ours = world.raw(container, number(2), kind).map(drop);
                assert_eq!(ours, model.set_iommu(at, kind));
            }
            3 => {
                let ours = world.device_fd(groups[group], NAMES[GROUPS[group]]);
                assert_eq!(ours.map(drop), model.open_device(group));
                devices[group].extend(ours);
            }
            4 => {
                if let Some(device) = devices[group].pop() {
                    world.close(device);
                    model.open_devices[group] -= 1;
                }
            }
            5..8 => {
                let flags = [3, 3, 3, 1, 2, 4, 4, 0, 7, 8][input.below(10)];
                let (iova, size) = input.range(&model.known(at), flags & 4 != 0);
                let what = (input.address(), iova, size);
                let ours = world.map(container, flags, what);
                assert_eq!(ours, model.map(at, flags, what), "{flags} {what:x?}");
            }
            8 | 9 => {
                let flags = [0, 0, 0, 0, 4, 4, 2, 6, 8][input.below(9)];
                let (iova, size) = match flags {
                    2 | 6 if input.byte() < 200 => (0, 0),
                    _ => input.range(&model.known(at), true),
                };
                let ours = world.unmap(container, flags, iova, size);
                let said = model.unmap(at, flags, iova, size);
                assert_eq!(ours, said, "{flags} {iova:#x} {size:#x}");
            }
            10 => {
                let page = HEAP + u64::from(input.byte()) % HEAP_PAGES * PAGE;
                if model.present.contains(&page) {
                    world.program.take(page);
                    model.take(page);
                } else {
                    world.program.give(page, true);
                    model.give(page);
                }
            }
            _ => track(&world, &mut model, container, at, &mut input),
        }
        compare(&world, &model, containers);
    }
    for device in devices.into_iter().flatten() {
        world.close(device);
    }
    for file in groups.into_iter().chain(containers) {
        world.close(file);
    }
    assert_eq!(held(&world), 0);
}

fn held(world: &World) -> u64 {
    world.program.pins.load(std::sync::atomic::Ordering::SeqCst)
}

fn track(world: &World, model: &mut Model, container: FileId, at: usize, input: &mut Input<'_>) {
    let dirty = |flags: u32, iova: u64| {
        let argument = pack!(48_u32, flags, iova, 64 * PAGE, PAGE, 8_u64, BITMAP);
        world.ask(container, 17, argument).map(drop)
    };
    match input.below(4) {
        0 | 1 => assert_eq!(dirty(1, 0), model.track(at, true)),
        2 => assert_eq!(dirty(2, 0), model.track(at, false)),
        _ => {
            let iova = input.iova();
            world.program.poke(BITMAP, &[0; 8]);
            let ours = dirty(4, iova).map(|()| {
                let mut bitmap = [0; 8];
                world.program.peek(BITMAP, &mut bitmap);
                u64::from_ne_bytes(bitmap)
            });
            assert_eq!(ours, model.dirty(at, iova), "{iova:#x}");
        }
    }
}

fn compare(world: &World, model: &Model, containers: [FileId; 2]) {
    for (group, device) in GROUPS.into_iter().enumerate() {
        for iova in model.edges() {
            let mut byte = [0];
            let ours = world.dma(device, iova, &mut byte);
            match model.reaches(group, iova, false) {
                Err(reason) => assert_eq!(ours, Err(reason), "{iova:#x}"),
                Ok(address) => {
                    let page = address - address % PAGE;
                    if !model.present.contains(&page) {
                        // Shared memory that is gone from the program; this
                        // world keeps none of it.
                        assert_eq!(ours, Err(FaultReason::Revoked));
                        continue;
                    }
                    assert_eq!(ours, Ok(()), "{iova:#x}");
                    let mut there = [0];
                    world.program.peek(address, &mut there);
                    assert_eq!(byte, there);
                }
            }
        }
    }
    for (at, container) in containers.into_iter().enumerate() {
        let mut argument = pack!(256_u32);
        argument.resize(256, 0);
        let info = world.ask(container, 12, argument);
        let available = info.map(|info| word(&info, 24 + 32 + 8));
        assert_eq!(available.ok(), model.available(at));
    }
}

/// Calls with any number, any bytes as the argument, and accesses of any kind,
/// on files of every kind. Nothing panics, and nothing is left when all files
/// are closed.
pub fn call(bytes: &[u8]) {
    let mut input = Input(bytes);
    let world = World::with(LIMIT, MemlockMode::Enforce);
    world
        .program
        .memlock
        .store(16 * PAGE, std::sync::atomic::Ordering::SeqCst);
    let (container, group, device) = world.ready(FIRST);
    let unset = world.open(Node::Container).unwrap();
    let other = world.group(TWIN);
    let unbound = world.open(Node::Device(SECOND)).unwrap();
    let bound = world.open(Node::Device(NARROW)).unwrap();
    let iommufd = world.open(Node::Iommufd).unwrap();
    let fd = world.program.fd(iommufd);
    world
        .call(bound, 18, &mut pack!(16_u32, 0_u32, fd, 0_u32))
        .unwrap();
    let mut files = vec![
        container, device, group, unset, other, unbound, bound, iommufd,
    ];
    for file in files.clone() {
        world.program.fd(file);
    }
    for _ in 0..4 {
        world.program.eventfd_pair();
    }
    world.program.other_fd();
    while !input.is_empty() {
        let file = files[input.below(files.len())];
        let result = match input.byte() {
            0..200 => any_ioctl(&world, file, &mut input),
            kind => any_access(&world, file, kind, &mut input),
        };
        match result {
            Ok(Some(file)) if files.len() < 32 => files.push(file),
            Ok(Some(file)) => world.close(file),
            Ok(None) => {}
            Err(errno) => assert_ne!(errno.name(), "errno", "{errno}"),
        }
    }
    for file in files {
        world.close(file);
    }
    assert_eq!(held(&world), 0);
    assert_eq!(world.program.watch_count(), 0);
}

fn any_ioctl(world: &World, file: FileId, input: &mut Input<'_>) -> Result<Option<FileId>, Errno> {
    let command = match input.byte() {
        255 => input.word() as u32,
        byte => number(u32::from(byte % 24)),
    };
    let argument = match input.byte() {
        255 => input.word(),
        254 => u64::MAX,
        253 => ARGUMENT + 16 * PAGE - 8,
        252 => u64::from(input.byte()),
        _ => ARGUMENT,
    };
    let mut bytes = [0; 64];
    let length = input.below(64);
    for byte in bytes.iter_mut().take(length) {
        *byte = input.byte();
    }
    if input.byte() < 200 {
        bytes[..4].copy_from_slice(&64_u32.to_ne_bytes());
        // Small words: flags, indices, counts and descriptors as they are.
        for word in bytes[4..].chunks_exact_mut(4) {
            word[1..].fill(0);
        }
    }
    world.program.poke(ARGUMENT, &bytes);
    let result = iogate_uapi::ioctl(&world.host, file, command, argument, &*world.program);
    world.settle(result).map(|answer| answer.install)
}

fn any_access(
    world: &World,
    file: FileId,
    kind: u8,
    input: &mut Input<'_>,
) -> Result<Option<FileId>, Errno> {
    let index = u32::from(input.byte() % 11);
    let at = match input.byte() {
        255 => input.word(),
        byte => world.region(index, u64::from(byte) * 37),
    };
    let length = match input.byte() {
        255 => input.word(),
        byte => u64::from(byte) * u64::from(byte),
    };
    let (host, program) = (&*world.host, &*world.program);
    let pieces = [(ARGUMENT, length), (ARGUMENT + PAGE, 4)];
    match kind % 3 {
        0 => world.settle(iogate_uapi::read(host, file, at, &pieces, program))?,
        1 => world.settle(iogate_uapi::write(host, file, at, &pieces, program))?,
        _ => {
            let (protection, flags) = (input.byte().into(), input.byte().into());
            iogate_uapi::mmap(host, file, at, length, protection, flags)?;
            return Ok(None);
        }
    };
    Ok(None)
}
