//! A client that notes what fails and tries it again.

use std::ffi::CString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::client::*;

const IOAS_ALLOC: libc::c_ulong = 0x3b81;
const DESTROY: libc::c_ulong = 0x3b80;
const ATTACH: libc::c_ulong = 0x3b77;

/// How often a call is made: only one can fail.
const TRIES: usize = 3;

/// Makes a call until it succeeds.
fn again(what: &str, mut call: impl FnMut() -> i64) -> i64 {
    for _ in 0..TRIES {
        let result = call();
        if result >= 0 {
            return result;
        }
        eprintln!("{what}: errno {}", errno());
        if errno() == libc::ENOSYS {
            // Nobody answers any more: the session ends.
            std::thread::sleep(Duration::from_secs(20));
        }
    }
    defect(&format!("{what} fails for good"))
}

fn defect(what: &str) -> ! {
    eprintln!("DEFECT: {what}");
    std::process::exit(1)
}

fn check(what: &str, right: bool) {
    if !right {
        defect(what);
    }
}

fn again_ioctl(what: &str, fd: i32, command: libc::c_ulong, words: &[u32]) -> (i32, Vec<u32>) {
    again_ioctl_counted(what, fd, command, words, &mut 0)
}

fn again_ioctl_counted(
    what: &str,
    fd: i32,
    command: libc::c_ulong,
    words: &[u32],
    tries: &mut usize,
) -> (i32, Vec<u32>) {
    let mut given = Vec::new();
    let done = again(what, || {
        *tries += 1;
        given = words.to_vec();
        ioctl_words(fd, command, &mut given).into()
    });
    (i32::try_from(done).unwrap(), given)
}

fn again_open(path: &str) -> i32 {
    let fd = again(path, || open(path, libc::O_RDWR | libc::O_CLOEXEC).into());
    i32::try_from(fd).unwrap()
}

struct Registers {
    fd: i32,
    bar: i64,
}

impl Registers {
    fn write(&self, register: i64, value: u64, size: usize) {
        let moved = again("register write", || {
            let bytes = (&raw const value).cast();
            // SAFETY: at most eight bytes are read.
            unsafe { libc::pwrite(self.fd, bytes, size, self.bar + register) as i64 }
        });
        check("a write moves all", usize::try_from(moved) == Ok(size));
    }

    fn read(&self, register: i64) -> u32 {
        let mut value = 0_u32;
        let moved = again("register read", || {
            let bytes = (&raw mut value).cast();
            // SAFETY: four bytes are written.
            unsafe { libc::pread(self.fd, bytes, 4, self.bar + register) as i64 }
        });
        check("a read moves all", moved == 4);
        value
    }

    fn dma(&self, iova: u64, to_device: bool) {
        const BUFFER: u64 = 0x40000;
        let (from, to, command) = match to_device {
            true => (iova, BUFFER, 1),
            false => (BUFFER, iova, 3),
        };
        self.write(0x80, from, 8);
        self.write(0x88, to, 8);
        self.write(0x90, 64, 8);
        self.write(0x98, command, 8);
        let start = Instant::now();
        while self.read(0x98) & 1 != 0 {
            check("a DMA ends", start.elapsed() < Duration::from_secs(5));
        }
    }
}

/// Has the device copy 64 bytes; a transfer may be refused once.
fn copies(registers: &Registers, at: *mut u8, iova: u64, seed: u8) {
    for _ in 0..TRIES {
        // SAFETY: 128 bytes of memory that a device writes only meanwhile.
        let same = unsafe {
            for byte in 0..64 {
                at.add(byte).write_volatile(seed.wrapping_add(byte as u8));
                at.add(64 + byte).write_volatile(0);
            }
            registers.dma(iova, true);
            registers.dma(iova + 64, false);
            (0..64).all(|byte| at.add(byte).read_volatile() == at.add(64 + byte).read_volatile())
        };
        if same {
            return;
        }
        eprintln!("DMA: errno, a transfer was lost");
    }
    defect("DMA fails for good");
}

fn interrupts(registers: &Registers) {
    // SAFETY: plain calls.
    let eventfd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    const EVENTFD_TRIGGER: u32 = 4 | 0x20;
    let words = [24, EVENTFD_TRIGGER, 1, 0, 1, eventfd.cast_unsigned()];
    again_ioctl("SET_IRQS", registers.fd, SET_IRQS, &words);
    registers.write(0x60, 1, 4);
    let mut poll = libc::pollfd {
        fd: eventfd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure.
    let arrived = unsafe { libc::poll(&raw mut poll, 1, 5000) };
    check("an interrupt arrives", arrived == 1);
    again_ioctl("no IRQS", registers.fd, SET_IRQS, &[20, 1 | 0x20, 1, 0, 0]);
    close(eventfd);
}

fn legacy() {
    let container = again_open("/dev/vfio/vfio");
    let version = again("API_VERSION", || {
        ioctl(container, API_VERSION, number(0)).into()
    });
    check("the version is 0", version == 0);
    let group = again_open(&group_path());
    again_ioctl("GROUP_STATUS", group, GROUP_STATUS, &[8, 0]);
    let argument = [container.cast_unsigned()];
    again_ioctl("SET_CONTAINER", group, SET_CONTAINER, &argument);
    again("SET_IOMMU", || {
        ioctl(container, SET_IOMMU, number(3)).into()
    });
    let name = CString::new(device_name()).unwrap();
    let fd = again("DEVICE_FD", || {
        ioctl(group, DEVICE_FD, name.as_ptr().cast_mut().cast()).into()
    });
    let fd = i32::try_from(fd).unwrap();
    again_ioctl("DEVICE_INFO", fd, DEVICE_INFO, &[20, 0, 0, 0, 0]);
    let region = |index| {
        let words = [32, 0, index, 0, 0, 0, 0, 0];
        let (_, info) = again_ioctl("REGION_INFO", fd, REGION_INFO, &words);
        i64::from(info[6]) | i64::from(info[7]) << 32
    };
    let registers = Registers { fd, bar: region(0) };
    let config = Registers { fd, bar: region(7) };
    config.write(4, 6, 2);

    let shared = memory(65536, libc::MAP_SHARED, memfd(65536));
    let private = memory(65536, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    let halves = |value: u64| [value as u32, (value >> 32) as u32];
    for (at, iova) in [(shared, 0x10_0000), (private, 0x20_0000)] {
        let [low, high] = halves(at as u64);
        let map = [32, 3, low, high, iova, 0, 65536, 0];
        again_ioctl("MAP_DMA", container, MAP_DMA, &map);
        copies(&registers, at, iova.into(), 7);
    }
    interrupts(&registers);
    let status = in_child(|| {
        again("API_VERSION of a child", || {
            ioctl(container, API_VERSION, number(0)).into()
        });
    });
    check("a child ends well", status == 0);
    // SAFETY: memory that nothing uses any more.
    again("munmap", || unsafe {
        libc::munmap(private.cast(), 65536).into()
    });
    for iova in [0x10_0000, 0x20_0000] {
        let unmap = [24, 0, iova, 0, 65536, 0];
        let mut tries = 0;
        let (_, words) = again_ioctl_counted("UNMAP_DMA", container, UNMAP_DMA, &unmap, &mut tries);
        // As in the kernel: what cannot be told is done. Linux
        // drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_unmap_dma.
        let told_before = tries > 1 && words[4] == 0;
        check("all is unmapped", words[4] == 65536 || told_before);
    }
    for fd in [fd, group, container] {
        close(fd);
    }
}

fn iommufd() {
    let iommufd = again_open("/dev/iommu");
    let mut entries = std::fs::read_dir("/dev/vfio/devices").unwrap();
    let path = entries.next().unwrap().unwrap().path();
    let device = again_open(path.to_str().unwrap());
    let bind = [16, 0, iommufd.cast_unsigned(), 0];
    again_ioctl("BIND", device, BIND, &bind);
    let (_, ioas) = again_ioctl("IOAS_ALLOC", iommufd, IOAS_ALLOC, &[12, 0, 0]);
    again_ioctl("ATTACH", device, ATTACH, &[12, 0, ioas[2]]);
    close(device);
    again_ioctl("DESTROY", iommufd, DESTROY, &[8, ioas[2]]);
    close(iommufd);
}

/// A session's client.
pub fn client() -> ExitCode {
    legacy();
    iommufd();
    legacy();
    ExitCode::SUCCESS
}
