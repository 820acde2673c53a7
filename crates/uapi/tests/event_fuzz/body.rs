//! The fuzz body: two fault queues, a device that asks for pages and moves
//! between their page tables, and a program that reads, answers, closes and
//! destroys. Each step comes to what a naive model says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iogate_dma::Iova;
use iogate_host::iommufd::{Features, Nodeless, PageFault, Readiness, Unit};
use iogate_host::{FileId, Iommu, Retired};
use iogate_uapi::{Client, Errno, Named, read_stream, write_stream};

use crate::iommufd_world::*;
use crate::pack;

const BUFFER: u64 = ARGUMENT + 8 * PAGE;
const NOWHERE: u64 = 0x6000_0000;
const MESSAGE: usize = 40;

#[derive(Default)]
struct Shown(AtomicBool);

impl Readiness for Shown {
    fn filled(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
    fn drained(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// A queue as it is, and as the model has it: groups by number, of so many
/// pages.
struct Queue {
    id: u32,
    file: Option<FileId>,
    exists: bool,
    table: Option<u32>,
    shown: Arc<Shown>,
    unread: VecDeque<(u32, usize)>,
    unanswered: BTreeMap<u32, u32>,
}

impl Queue {
    fn free_cookie(&self) -> u32 {
        let mut cookies = 1..;
        cookies
            .find(|cookie| !self.unanswered.contains_key(cookie))
            .unwrap()
    }

    /// What a read of so many bytes gives: cookies and groups of its messages.
    fn read(&mut self, length: usize) -> Result<Vec<(u32, u32)>, Errno> {
        if !length.is_multiple_of(MESSAGE) {
            return Err(Errno::ESPIPE);
        }
        let mut messages = Vec::new();
        while let Some(&(group, pages)) = self.unread.front() {
            if pages > length / MESSAGE - messages.len() {
                if messages.is_empty() {
                    return Err(Errno::EINVAL);
                }
                break;
            }
            let cookie = self.free_cookie();
            messages.extend(std::iter::repeat_n((cookie, group), pages));
            self.unread.pop_front();
            self.unanswered.insert(cookie, group);
        }
        Ok(messages)
    }

    /// What a write of these answers gives.
    fn write(&mut self, answers: &[(u32, u32)], length: usize) -> Result<i64, Errno> {
        if !length.is_multiple_of(8) {
            return Err(Errno::ESPIPE);
        }
        let mut done = 0;
        for (cookie, code) in answers {
            if *code > 1 || self.unanswered.remove(cookie).is_none() {
                return if done == 0 {
                    Err(Errno::EINVAL)
                } else {
                    Ok(done)
                };
            }
            done += 8;
        }
        Ok(done)
    }

    fn forget(&mut self) {
        self.unread.clear();
        self.unanswered.clear();
    }
}

fn finish(retired: Retired) {
    retired.grace.into_iter().for_each(iogate_dma::Grace::wait);
    drop(retired.pages);
}

struct Scene {
    world: World,
    iommufd: Opened,
    ioas: u32,
    device: Nodeless,
    queues: Vec<Queue>,
    /// The queue whose page table the device uses.
    at: Option<usize>,
    groups: u32,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let iommufd = world.iommufd();
        let ioas = world.ioas(iommufd);
        let iommu = Iommu {
            index: usize::MAX,
            aperture_last: Iova(u64::MAX >> 1),
            page_sizes: 0x1000,
            reserved: Vec::new(),
            coherent: true,
            tracks_dirty: false,
            pasid_bits: 0,
        };
        let unit = Unit {
            features: Features {
                asks_for_pages: true,
                ..Features::default()
            },
            ..Unit::plain(&Arc::new(iommu))
        };
        let made = world.host.nodeless_create(iommufd.file, unit, ioas);
        let (device, retired) = made.unwrap();
        finish(retired);
        let mut scene = Self {
            world,
            iommufd,
            ioas,
            device,
            queues: Vec::new(),
            at: None,
            groups: 0,
        };
        for _ in 0..2 {
            scene.queue();
        }
        scene
    }

    fn queue(&mut self) {
        let mut bytes = pack!(16_u32, 0_u32, 0_u32, 0_u32);
        self.world.call(self.iommufd, 0x8e, &mut bytes).unwrap();
        let fd = word(&bytes, 12).cast_signed();
        let Ok(Named::Ours(file)) = self.world.program.named(fd) else {
            panic!("no descriptor of a queue");
        };
        let (id, shown) = (word(&bytes, 8), Arc::new(Shown::default()));
        let mut bytes = pack!(
            48_u32,
            4_u32,
            self.device.device,
            self.ioas,
            0_u32,
            0_u32,
            0_u32,
            0_u32,
            0_u64,
            id,
            0_u32
        );
        self.world.call(self.iommufd, 0x89, &mut bytes).unwrap();
        let watch = Arc::clone(&shown) as Arc<dyn Readiness>;
        self.world.host.fault_watch(file, watch).unwrap();
        self.queues.push(Queue {
            id,
            file: Some(file),
            exists: true,
            table: Some(word(&bytes, 16)),
            shown,
            unread: VecDeque::new(),
            unanswered: BTreeMap::new(),
        });
    }

    fn ask(&mut self, pages: usize) {
        let fault = |address| PageFault {
            pasid: None,
            group: self.groups,
            permissions: 1,
            address,
        };
        let faults = (0..pages as u64).map(|page| fault(page * PAGE)).collect();
        let (host, file) = (&self.world.host, self.iommufd.file);
        let asked = host.device_asks(file, self.device.device, faults);
        assert_eq!(asked, Ok(self.at.is_some()));
        if let Some(at) = self.at {
            self.queues[at].unread.push_back((self.groups, pages));
        }
        self.groups += 1;
    }

    fn read(&mut self, number: usize, length: usize) {
        let Some(file) = self.queues[number].file else {
            return;
        };
        let pieces = [(BUFFER, length as u64)];
        let read = read_stream(&self.world.host, file, &pieces, &self.world.program);
        let read = read.map(|answer| {
            let mut bytes = vec![0; answer.value as usize];
            self.world.program.read(BUFFER, &mut bytes).unwrap();
            let messages = bytes.chunks(MESSAGE);
            let told = messages.map(|one| (word(one, 36), word(one, 12)));
            told.collect::<Vec<_>>()
        });
        assert_eq!(read, self.queues[number].read(length));
    }

    /// A read to where the program has no memory changes nothing.
    fn read_nowhere(&self, number: usize) {
        let queue = &self.queues[number];
        let Some(file) = queue.file else {
            return;
        };
        let pieces = [(NOWHERE, 400)];
        let read = read_stream(&self.world.host, file, &pieces, &self.world.program);
        let expected = match queue.unread.is_empty() {
            true => Ok(0),
            false => Err(Errno::EFAULT),
        };
        assert_eq!(read.map(|answer| answer.value), expected);
    }

    fn write(&mut self, number: usize, answers: &[(u32, u32)], more: usize) {
        let Some(file) = self.queues[number].file else {
            return;
        };
        let mut bytes: Vec<u8> = answers
            .iter()
            .flat_map(|(cookie, code)| pack!(cookie, code))
            .collect();
        bytes.resize(bytes.len() + more, 0);
        self.world.program.write(BUFFER, &bytes).unwrap();
        let pieces = [(BUFFER, bytes.len() as u64)];
        let written = write_stream(&self.world.host, file, &pieces, &self.world.program);
        let written = written.map(|answer| answer.value);
        assert_eq!(written, self.queues[number].write(answers, bytes.len()));
    }

    fn move_to(&mut self, to: Option<usize>) {
        let pt = match to {
            Some(number) => self.queues[number].table,
            None => Some(self.ioas),
        };
        let Some(pt) = pt else {
            return;
        };
        let moved = self
            .world
            .host
            .nodeless_replace(self.iommufd.file, self.device.object, pt);
        finish(moved.unwrap().retired);
        if self.at != to {
            if let Some(left) = self.at {
                self.queues[left].forget();
            }
            self.at = to;
        }
    }

    fn close(&mut self, number: usize) {
        if let Some(file) = self.queues[number].file.take() {
            finish(self.world.host.close(file));
        }
    }

    fn destroy(&mut self, number: usize) {
        let is_at = self.at == Some(number);
        let queue = &mut self.queues[number];
        if let Some(table) = queue.table {
            let expected = if is_at { Err(Errno::EBUSY) } else { Ok(()) };
            assert_eq!(self.world.destroy(self.iommufd, table), expected);
            if !is_at {
                queue.table = None;
            }
        }
        let expected = match (queue.exists, queue.table, queue.file) {
            (false, ..) => return,
            (true, None, None) => Ok(()),
            _ => Err(Errno::EBUSY),
        };
        assert_eq!(self.world.destroy(self.iommufd, queue.id), expected);
        queue.exists = expected.is_err();
    }
}

/// Any bytes as steps.
pub fn events(bytes: &[u8]) {
    let mut scene = Scene::new();
    let mut bytes = bytes.iter().copied();
    while let Some(step) = bytes.next() {
        let mut byte = || usize::from(bytes.next().unwrap_or(0));
        let number = usize::from(step >> 7);
        match step % 8 {
            0 | 1 => scene.ask(1 + byte() % 4),
            2 => {
                let length = byte();
                scene.read(number, length % 8 * MESSAGE);
            }
            3 => scene.read(number, byte()),
            4 => {
                let answers: Vec<(u32, u32)> = (0..byte() % 4)
                    .map(|_| (byte() as u32 % 5, byte() as u32 % 5 / 2))
                    .collect();
                scene.write(number, &answers, [0, 0, 0, 3][byte() % 4]);
            }
            5 => scene.move_to([None, Some(0), Some(1)][byte() % 3]),
            6 => scene.read_nowhere(number),
            _ => match byte() % 8 {
                0 => scene.close(number),
                1 => scene.destroy(number),
                _ => scene.move_to(Some(number)),
            },
        }
        for queue in &scene.queues {
            let readable = queue.shown.0.load(Ordering::SeqCst);
            if queue.file.is_some() {
                assert_eq!(readable, !queue.unread.is_empty());
            }
        }
    }
}
