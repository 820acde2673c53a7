//! The program under `iogate run`: makes calls and prints what they took.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use iogate_dma::{Iova, Rights};
use iogate_passthrough::container::TYPE1V2;
use iogate_passthrough::device::CONFIG_REGION;
use iogate_passthrough::{Buffer, Container, Group};

use crate::bare::nanoseconds;

/// The environment variable that says what to measure.
pub(crate) const ASKED: &str = "IOGATE_BENCH_CLIENT";

const CALLS: u32 = 20_000;

pub(crate) fn main(what: &str) {
    match what {
        "calls" => calls(),
        "mapped" => mapped(),
        "one-thread" => println!("rate\t{}", rate()),
        "two-threads" => {
            let threads = [(); 2].map(|()| std::thread::spawn(rate));
            for thread in threads {
                println!("rate\t{}", thread.join().expect("the thread ends"));
            }
        }
        "maps" => crate::maps::client(),
        other => panic!("unknown measurement {other}"),
    }
}

/// Loads of a register of edu's, which a mapping shows: with a handler of
/// SIGBUS, as Rust's library installs one, and without.
fn mapped() {
    const LENGTH: usize = 4096;
    const COMMAND: u64 = 4;
    const MEMORY: u8 = 2;
    let container = Container::open().expect("a container");
    let (number, name) = first_device();
    let group = Group::open(number).expect("a group");
    group.set_container(&container).expect("SET_CONTAINER");
    container.set_iommu(TYPE1V2).expect("SET_IOMMU");
    let device = group.device(&name).expect("a device");
    let config = device.region(CONFIG_REGION).expect("config space");
    device
        .write(&config, COMMAND, &[MEMORY, 0])
        .expect("a write");
    let bar = device.region(0).expect("BAR 0");
    let offset = i64::try_from(bar.offset).expect("an offset");
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: a new mapping somewhere.
    let at = unsafe {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(
            std::ptr::null_mut(),
            LENGTH,
            rights,
            libc::MAP_SHARED,
            fd,
            offset,
        )
    };
    assert!(
        at != libc::MAP_FAILED,
        "{}",
        std::io::Error::last_os_error()
    );
    let load = || {
        // SAFETY: the mapping above, which stays.
        let identity = unsafe { at.cast::<u32>().read_volatile() };
        assert_eq!(identity & 0xff, 0xed);
    };
    let one = nanoseconds(CALLS / 4, load);
    println!("register read by a mapping, SIGBUS handled\t{one}");
    // SAFETY: the default action runs nothing of ours.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    let one = nanoseconds(CALLS / 4, load);
    println!("register read by a mapping\t{one}");
}

fn calls() {
    let container = Container::open().expect("a container");
    let one = nanoseconds(CALLS, || assert_eq!(container.api_version().ok(), Some(0)));
    println!("one call\t{one}");
    let copy = container.as_fd().try_clone_to_owned().expect("a duplicate");
    let get_api_version = 0x3b64;
    let one = nanoseconds(CALLS, || {
        // SAFETY: the call takes no memory.
        let version = unsafe { libc::ioctl(copy.as_raw_fd(), get_api_version, 0) };
        assert_eq!(version, 0);
    });
    println!("one call by a duplicate\t{one}");

    let (number, name) = first_device();
    let group = Group::open(number).expect("a group");
    group.set_container(&container).expect("SET_CONTAINER");
    container.set_iommu(TYPE1V2).expect("SET_IOMMU");
    let buffer = Buffer::new(4096).expect("memory");
    let iova = Iova(0x10_0000);
    let pair = nanoseconds(CALLS / 2, || {
        container
            .map(iova, &buffer, Rights::READ_WRITE)
            .expect("MAP_DMA");
        assert_eq!(container.unmap(iova, 4096).ok(), Some(4096));
    });
    println!("MAP+UNMAP pair\t{pair}");

    let device = group.device(&name).expect("a device");
    let config = device.region(CONFIG_REGION).expect("config space");
    let mut word = [0; 4];
    let read = nanoseconds(CALLS, || {
        device.read(&config, 0, &mut word).expect("a read");
    });
    println!("register read\t{read}");
}

/// Calls a second of one thread, on a container of its own.
fn rate() -> f64 {
    let container = Container::open().expect("a container");
    let begun = Instant::now();
    for _ in 0..CALLS {
        assert_eq!(container.api_version().ok(), Some(0));
    }
    f64::from(CALLS) / begun.elapsed().as_secs_f64()
}

pub(crate) fn first_device() -> (u32, String) {
    let mut names: Vec<String> = std::fs::read_dir("/sys/bus/pci/devices")
        .expect("sysfs")
        .flatten()
        .filter(|entry| entry.path().join("vfio-dev").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let name = names.swap_remove(0);
    let link =
        std::fs::read_link(format!("/sys/bus/pci/devices/{name}/iommu_group")).expect("a group");
    let number = link
        .file_name()
        .and_then(|n| n.to_str())
        .expect("a number")
        .parse()
        .expect("a number");
    (number, name)
}
