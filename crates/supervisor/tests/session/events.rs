//! Event files as a program has them: reads, answers, polls, offsets and the
//! last close of a fault queue.

use iogate_host::iommufd::{Extension, Failure, Features, Outcome, Outside, PageFault, Unit};
use iogate_host::{FileId, Host, Iommu};

use crate::client::*;

const DESTROY: libc::c_ulong = 0x3b80;
const IOAS_ALLOC: libc::c_ulong = 0x3b81;
const HWPT_ALLOC: libc::c_ulong = 0x3b89;
const FAULT_QUEUE_ALLOC: libc::c_ulong = 0x3b8e;
const TEST: libc::c_ulong = 0x3ba0;
/// Operations of [`Asks`].
const MAKE: u32 = 1;
const MOVE: u32 = 2;
const ASK: u32 = 3;

/// Has devices without a node ask for pages: makes one, moves it, asks.
pub struct Asks;

impl Extension for Asks {
    fn call(
        &self,
        host: &Host,
        file: FileId,
        argument: &mut [u8; 72],
        _: &dyn Outside,
    ) -> Result<Outcome, Failure> {
        let word = |at: usize| u32::from_ne_bytes(argument[at..at + 4].try_into().unwrap());
        let (op, id, other) = (word(4), word(8), word(16));
        match op {
            MAKE => {
                let iommu = Iommu {
                    index: usize::MAX,
                    aperture_last: iogate_dma::Iova(u64::MAX >> 1),
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
                    ..Unit::plain(&std::sync::Arc::new(iommu))
                };
                let (made, retired) = host.nodeless_create(file, unit, id)?;
                argument[16..20].copy_from_slice(&made.object.to_ne_bytes());
                argument[20..24].copy_from_slice(&made.device.to_ne_bytes());
                Ok(retired.into())
            }
            MOVE => Ok(host.nodeless_replace(file, id, other)?.retired.into()),
            _ => {
                let fault = PageFault {
                    pasid: None,
                    group: other,
                    permissions: 1,
                    address: 0x5000,
                };
                host.device_asks(file, id, vec![fault])?;
                Ok(Outcome::default())
            }
        }
    }
}

struct Scene {
    iommufd: i32,
    ioas: u32,
    object: u32,
    device: u32,
    queue: u32,
    hwpt: u32,
    events: i32,
}

impl Scene {
    fn new() -> Self {
        let iommufd = open("/dev/iommu", libc::O_RDWR);
        let mut ioas = [12, 0, 0];
        assert_eq!(ioctl_words(iommufd, IOAS_ALLOC, &mut ioas), 0);
        let mut queue = [16, 0, 0, 0];
        assert_eq!(ioctl_words(iommufd, FAULT_QUEUE_ALLOC, &mut queue), 0);
        let made = test(iommufd, MAKE, ioas[2], 0);
        let mut table = [48, 4, made[5], ioas[2], 0, 0, 0, 0, 0, 0, queue[2], 0];
        assert_eq!(ioctl_words(iommufd, HWPT_ALLOC, &mut table), 0);
        test(iommufd, MOVE, made[4], table[4]);
        Self {
            iommufd,
            ioas: ioas[2],
            object: made[4],
            device: made[5],
            queue: queue[2],
            hwpt: table[4],
            events: queue[3].cast_signed(),
        }
    }

    fn ask(&self, group: u32) {
        test(self.iommufd, ASK, self.device, group);
    }

    fn destroy(&self, id: u32) -> i32 {
        match ioctl_words(self.iommufd, DESTROY, &mut [8, id]) {
            0 => 0,
            _ => errno(),
        }
    }
}

fn test(iommufd: i32, op: u32, id: u32, other: u32) -> [u32; 18] {
    let mut words = [0; 18];
    words[..5].copy_from_slice(&[72, op, id, 0, other]);
    assert_eq!(ioctl_words(iommufd, TEST, &mut words), 0);
    words
}

/// What poll says at once.
fn polled(fd: i32) -> i16 {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN | libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure that lives through the call.
    assert!(unsafe { libc::poll(&raw mut poll, 1, 0) } >= 0);
    poll.revents
}

/// read(2): the words, or the errno.
fn read(fd: i32, length: usize) -> Result<Vec<u32>, i32> {
    let mut words = [0_u32; 64];
    // SAFETY: the buffer is longer than any of the reads.
    let bytes = unsafe { libc::read(fd, words.as_mut_ptr().cast(), length) };
    match usize::try_from(bytes) {
        Ok(bytes) => Ok(words[..bytes / 4].to_vec()),
        Err(_) => Err(errno()),
    }
}

/// write(2) of one answer: its bytes, or the errno.
fn answer(fd: i32, cookie: u32, code: u32) -> Result<isize, i32> {
    let words = [cookie, code];
    // SAFETY: eight bytes are read.
    match unsafe { libc::write(fd, words.as_ptr().cast(), 8) } {
        -1 => Err(errno()),
        bytes => Ok(bytes),
    }
}

/// Reads, answers and polls come to what the queue says at that moment.
pub fn answered() {
    let scene = Scene::new();
    let (fd, device) = (scene.events, scene.device);
    let both = libc::POLLIN | libc::POLLOUT;
    assert_eq!(polled(fd), libc::POLLOUT);
    assert_eq!(read(fd, 40), Ok(vec![]), "it does not wait");
    assert_eq!(read(fd, 39), Err(libc::ESPIPE));
    for group in 1..=2 {
        scene.ask(group);
        assert_eq!(polled(fd), both);
    }
    let message = |group, cookie| vec![2, device, 0, group, 1, 0, 0x5000, 0, 0, cookie];
    assert_eq!(read(fd, 0), Err(libc::EINVAL));
    assert_eq!(read(fd, 40), Ok(message(1, 1)));
    assert_eq!(polled(fd), both);
    assert_eq!(read(fd, 120), Ok(message(2, 2)));
    assert_eq!(polled(fd), libc::POLLOUT);
    assert_eq!(answer(fd, 7, 0), Err(libc::EINVAL));
    assert_eq!(answer(fd, 2, 3), Err(libc::EINVAL));
    assert_eq!(answer(fd, 2, 0), Ok(8));
    assert_eq!(answer(fd, 2, 0), Err(libc::EINVAL));
    // SAFETY: plain calls with a buffer of 40 bytes.
    unsafe {
        let mut bytes = [0_u8; 40];
        assert_eq!(libc::pread(fd, bytes.as_mut_ptr().cast(), 40, 0), -1);
        assert_eq!(errno(), libc::ESPIPE);
        assert_eq!(libc::lseek(fd, 0, libc::SEEK_SET), -1);
        assert_eq!(errno(), libc::ESPIPE);
    }
    scene.ask(3);
    assert_eq!(polled(fd), both);
    test(scene.iommufd, MOVE, scene.object, scene.ioas);
    assert_eq!(polled(fd), libc::POLLOUT, "the device is elsewhere");
    assert_eq!(answer(fd, 1, 0), Err(libc::EINVAL));
    close(fd);
    close(scene.iommufd);
}

/// A thread that waits in poll wakes when a device asks.
pub fn waited_for() {
    let scene = Scene::new();
    let fd = scene.events;
    let waiter = std::thread::spawn(move || {
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure that lives through the call.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, -1) }, 1);
        read(fd, 40).unwrap().len()
    });
    scene.ask(1);
    assert_eq!(waiter.join().unwrap(), 10);
    close(fd);
    close(scene.iommufd);
}

/// The queue is busy until the last duplicate is closed, and not a call longer.
pub fn closed() {
    let scene = Scene::new();
    // SAFETY: plain calls on descriptors.
    let copy = unsafe { libc::dup(scene.events) };
    close(scene.events);
    scene.ask(1);
    assert_eq!(polled(copy), libc::POLLIN | libc::POLLOUT);
    test(scene.iommufd, MOVE, scene.object, scene.ioas);
    assert_eq!(scene.destroy(scene.hwpt), 0);
    assert_eq!(scene.destroy(scene.queue), libc::EBUSY);
    close(copy);
    assert_eq!(scene.destroy(scene.queue), 0);
    assert_eq!(scene.destroy(scene.queue), libc::ENOENT);
    // The file of a queue keeps its iommufd.
    let other = Scene::new();
    close(other.iommufd);
    assert_eq!(read(other.events, 40), Ok(vec![]));
    close(other.events);
    close(scene.iommufd);
}
