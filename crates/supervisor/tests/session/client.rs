//! What runs inside of a session: unmodified uses of the uAPI, by the C
//! library's functions.

use std::ffi::CString;
use std::io;
use std::os::unix::net::UnixStream;

use libc::{c_int, c_ulong, c_void};

pub const API_VERSION: c_ulong = 0x3b64;
pub const CHECK_EXTENSION: c_ulong = 0x3b65;
pub const SET_IOMMU: c_ulong = 0x3b66;
pub const GROUP_STATUS: c_ulong = 0x3b67;
pub const SET_CONTAINER: c_ulong = 0x3b68;
pub const UNSET_CONTAINER: c_ulong = 0x3b69;
pub const DEVICE_FD: c_ulong = 0x3b6a;
pub const DEVICE_INFO: c_ulong = 0x3b6b;
pub const REGION_INFO: c_ulong = 0x3b6c;
pub const SET_IRQS: c_ulong = 0x3b6e;
pub const MAP_DMA: c_ulong = 0x3b71;
pub const UNMAP_DMA: c_ulong = 0x3b72;
pub const BIND: c_ulong = 0x3b76;

pub fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap()
}

pub fn open(path: &str, flags: c_int) -> c_int {
    let path = CString::new(path).unwrap();
    // SAFETY: the path is a C string.
    unsafe { libc::open(path.as_ptr(), flags) }
}

pub fn close(fd: c_int) {
    // SAFETY: the caller owns the descriptor.
    assert_eq!(unsafe { libc::close(fd) }, 0);
}

pub fn ioctl(fd: c_int, command: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the callers pass what the command wants.
    unsafe { libc::ioctl(fd, command, argument) }
}

pub fn ioctl_words(fd: c_int, command: c_ulong, words: &mut [u32]) -> c_int {
    ioctl(fd, command, words.as_mut_ptr().cast())
}

pub fn number(value: c_ulong) -> *mut c_void {
    std::ptr::without_provenance_mut(value as usize)
}

/// A device opened the legacy way.
pub struct Device {
    pub container: c_int,
    pub group: c_int,
    pub fd: c_int,
    /// Offset of BAR 0.
    pub bar: i64,
}

impl Device {
    pub fn open() -> Self {
        let container = open("/dev/vfio/vfio", libc::O_RDWR | libc::O_CLOEXEC);
        assert!(container >= 0);
        let group = open(&group_path(), libc::O_RDWR);
        assert!(group >= 0, "errno {}", errno());
        let mut argument = container;
        assert_eq!(ioctl(group, SET_CONTAINER, (&raw mut argument).cast()), 0);
        assert_eq!(ioctl(container, SET_IOMMU, number(3)), 0);
        let name = CString::new(device_name()).unwrap();
        let fd = ioctl(group, DEVICE_FD, name.as_ptr().cast_mut().cast());
        assert!(fd >= 0, "errno {}", errno());
        let mut info = [32_u32, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(ioctl_words(fd, REGION_INFO, &mut info), 0);
        let bar = i64::from(info[6]) | i64::from(info[7]) << 32;
        let device = Self {
            container,
            group,
            fd,
            bar,
        };
        // Memory space and bus mastering on.
        let mut config = [32_u32, 0, 7, 0, 0, 0, 0, 0];
        assert_eq!(ioctl_words(fd, REGION_INFO, &mut config), 0);
        let offset = i64::from(config[6]) | i64::from(config[7]) << 32;
        let command = 6_u16;
        // SAFETY: two bytes are read.
        let wrote = unsafe { libc::pwrite(fd, (&raw const command).cast(), 2, offset + 4) };
        assert_eq!(wrote, 2);
        device
    }

    pub fn map(&self, address: *mut c_void, iova: u64, size: u64) -> c_int {
        let map = [32 | 3 << 32, address as u64, iova, size];
        ioctl(self.container, MAP_DMA, map.as_ptr().cast_mut().cast())
    }

    pub fn unmap(&self, iova: u64, size: u64) -> c_int {
        let unmap = [24, iova, size];
        ioctl(self.container, UNMAP_DMA, unmap.as_ptr().cast_mut().cast())
    }

    pub fn read(&self, register: i64) -> u32 {
        let mut value = 0_u32;
        let at = self.bar + register;
        // SAFETY: four bytes are written.
        let read = unsafe { libc::pread(self.fd, (&raw mut value).cast(), 4, at) };
        assert_eq!(read, 4, "errno {}", errno());
        value
    }

    pub fn write(&self, register: i64, value: u64, size: usize) {
        let at = self.bar + register;
        // SAFETY: at most eight bytes are read.
        let wrote = unsafe { libc::pwrite(self.fd, (&raw const value).cast(), size, at) };
        assert_eq!(usize::try_from(wrote), Ok(size), "errno {}", errno());
    }

    /// Has edu move bytes: to its buffer if `to_device`, or from it.
    pub fn dma(&self, iova: u64, length: u64, to_device: bool) {
        const BUFFER: u64 = 0x40000;
        let (from, to) = if to_device {
            (iova, BUFFER)
        } else {
            (BUFFER, iova)
        };
        self.write(0x80, from, 8);
        self.write(0x88, to, 8);
        self.write(0x90, length, 8);
        self.write(0x98, if to_device { 1 } else { 3 }, 8);
        while self.read(0x98) & 1 != 0 {
            std::thread::yield_now();
        }
    }

    pub fn close(self) {
        for fd in [self.fd, self.group, self.container] {
            close(fd);
        }
    }
}

pub fn group_path() -> String {
    let entries = std::fs::read_dir("/dev/vfio").unwrap();
    let mut groups: Vec<u32> = entries
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    groups.sort_unstable();
    format!("/dev/vfio/{}", groups[0])
}

/// The edu device of the first group.
pub fn device_name() -> String {
    let group = group_path().replace("/dev/vfio/", "/sys/kernel/iommu_groups/");
    let entries = std::fs::read_dir(format!("{group}/devices")).unwrap();
    let mut names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .find(|name| {
            let path = format!("/sys/bus/pci/devices/{name}/vendor");
            std::fs::read_to_string(path).unwrap().trim() == "0x1234"
        })
        .unwrap()
}

pub fn memory(length: usize, flags: c_int, fd: c_int) -> *mut u8 {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping somewhere.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, 0) };
    assert_ne!(address, libc::MAP_FAILED);
    address.cast()
}

pub fn memfd(length: i64) -> c_int {
    // SAFETY: the name is a C string; the descriptor is new.
    unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), 0);
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, length), 0);
        fd
    }
}

pub fn in_child(body: impl FnOnce()) -> i32 {
    // SAFETY: clients have one thread.
    match unsafe { libc::fork() } {
        0 => {
            body();
            std::process::exit(0)
        }
        child => {
            let mut status = 0;
            // SAFETY: the status is a local integer.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            status
        }
    }
}

pub fn pass(fd: c_int, over: &UnixStream) -> c_int {
    use rustix::net::*;
    use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
    let (here, there) = UnixStream::pair().unwrap();
    let _ = over;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut buffer = SendAncillaryBuffer::new(&mut space);
    // SAFETY: the caller's descriptor is open.
    let files = [unsafe { BorrowedFd::borrow_raw(fd) }];
    buffer.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(
        &here,
        &[io::IoSlice::new(b"x")],
        &mut buffer,
        SendFlags::empty(),
    )
    .unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut buffer = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        &there,
        &mut [io::IoSliceMut::new(&mut byte)],
        &mut buffer,
        RecvFlags::empty(),
    )
    .unwrap();
    let file = buffer.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let file = file.unwrap();
    assert_ne!(file.as_raw_fd(), fd);
    file.into_raw_fd()
}
