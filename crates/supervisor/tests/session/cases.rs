//! The cases: each is a sentence, a client that runs in a session, and what is
//! expected of the session.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;

use crate::client::*;
use crate::{events, numbers};

/// A client by its sentence.
pub const CLIENTS: &[(&str, fn())] = &[
    ("a container answers and its duplicates are it", container),
    ("a read of a container does not hang", container_read),
    (
        "a second open of a group is busy until the last close",
        group_open,
    ),
    (
        "a descriptor reaches another process by fork and by socket",
        passing,
    ),
    (
        "a device node is a character device that duplicates share",
        cdev,
    ),
    ("what is no VFIO file is answered by the kernel", foreign),
    ("dev and sys keep what the machine has", machine),
    ("a device reads and writes shared memory", shared_dma),
    ("a device reads and writes private memory", private_dma),
    ("shared memory survives munmap", survives),
    ("private memory is dead once unmapped", revoked),
    ("a closed device is closed before the next call", reopened),
    ("a mapping without pages is refused", bad_maps),
    ("an interrupt arrives at an eventfd", interrupt),
    (
        "descriptor exhaustion gives EMFILE and leaves nothing",
        exhaustion,
    ),
    ("threads and many processes make calls", crowd),
    (
        "a program that a session starts sees that it is in one",
        inside,
    ),
    ("a program with a filter of its own works", own_filter),
    ("KVM is told of a group", kvm),
    ("vector reads and writes reach registers", vectors),
    (
        "a descriptor survives exec, and memory is that of the new program",
        exec,
    ),
    (
        "a process that is not dumpable is answered too",
        not_dumpable,
    ),
    ("unmapping by other calls is noticed", other_unmapping),
    ("a symbolic link to a node leads to it", symlink),
    (
        "a mount namespace of the program's own has the nodes",
        own_mounts,
    ),
    (
        "a number names what the program put there last",
        numbers::changed,
    ),
    (
        "a fault queue is read, answered and polled as it stands",
        events::answered,
    ),
    ("who waits for a page request wakes", events::waited_for),
    ("a fault queue is busy until its last close", events::closed),
    ("numbers that the program uses stay its own", numbers::used),
    (
        "a low limit of descriptors gets low numbers",
        numbers::limited,
    ),
    (
        "children have the same numbers or their own",
        numbers::children,
    ),
    (
        "a thread with a table of its own has its own numbers",
        numbers::own_table,
    ),
    (
        "a number that another thread changes names one or the other",
        numbers::race,
    ),
    ("short lives do not mix up numbers", numbers::many_lives),
    (
        "a program that another executes finds what exec left open",
        numbers::executed,
    ),
    (
        "a read or a write without an offset is at the file's position",
        numbers::positions,
    ),
];

fn container() {
    let fd = open("/dev/vfio/vfio", libc::O_RDWR | libc::O_CLOEXEC);
    assert!(fd >= 0, "errno {}", errno());
    assert_eq!(ioctl(fd, API_VERSION, number(0)), 0);
    assert_eq!(ioctl(fd, CHECK_EXTENSION, number(3)), 1);
    // SAFETY: plain calls on descriptors.
    let (copy, flags) = unsafe { (libc::dup(fd), libc::fcntl(fd, libc::F_GETFD)) };
    assert_eq!(flags, libc::FD_CLOEXEC);
    close(fd);
    assert_eq!(ioctl(copy, API_VERSION, number(0)), 0);
    close(copy);
    assert_eq!(ioctl(copy, API_VERSION, number(0)), -1);
    assert_eq!(errno(), libc::EBADF);
}

fn container_read() {
    let fd = open("/dev/vfio/vfio", libc::O_RDWR);
    let mut bytes = [0_u8; 8];
    // SAFETY: eight bytes may be written.
    let read = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), 8) };
    assert!(read <= 0);
}

fn group_open() {
    let path = group_path();
    let group = open(&path, libc::O_RDWR);
    assert!(group >= 0);
    assert_eq!((open(&path, libc::O_RDWR), errno()), (-1, libc::EBUSY));
    // SAFETY: a plain call on a descriptor.
    let copy = unsafe { libc::dup(group) };
    close(group);
    assert_eq!((open(&path, libc::O_RDWR), errno()), (-1, libc::EBUSY));
    close(copy);
    for _ in 0..200 {
        let group = open(&path, libc::O_RDWR);
        assert!(group >= 0, "errno {}", errno());
        close(group);
    }
    // An unseen open is busy at its first call.
    let group = open(&path, libc::O_RDWR);
    let unseen = open(&path, libc::O_RDWR | libc::O_CREAT);
    assert!(unseen >= 0);
    let mut status = [8, 0];
    assert_eq!(ioctl_words(unseen, GROUP_STATUS, &mut status), -1);
    assert_eq!(errno(), libc::EBUSY);
    assert_eq!(ioctl_words(group, GROUP_STATUS, &mut status), 0);
}

fn passing() {
    let device = Device::open();
    let mut info = [20, 0, 0, 0, 0];
    let status = in_child(|| {
        assert_eq!(
            ioctl_words(device.fd, DEVICE_INFO, &mut [20, 0, 0, 0, 0]),
            0
        );
    });
    assert_eq!(status, 0);
    let (socket, _) = UnixStream::pair().unwrap();
    let passed = pass(device.fd, &socket);
    assert_eq!(ioctl_words(passed, DEVICE_INFO, &mut info), 0);
    close(device.fd);
    assert_eq!(ioctl_words(passed, DEVICE_INFO, &mut info), 0);
}

fn cdev() {
    let mut entries = std::fs::read_dir("/dev/vfio/devices").unwrap();
    let path = entries.next().unwrap().unwrap().path();
    let fd = open(path.to_str().unwrap(), libc::O_RDWR | libc::O_CLOEXEC);
    assert!((896..1024).contains(&fd), "{fd}");
    // SAFETY: a plain call on a descriptor.
    let (copy, kept) = unsafe { (libc::dup(fd), libc::fcntl(fd, libc::F_DUPFD, 40)) };
    let file = std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap();
    assert!(file.file_type().is_char_device());
    assert_eq!(file.rdev(), libc::makedev(1, 3));
    let iommufd = open("/dev/iommu", libc::O_RDWR);
    let mut bind = [16, 0, iommufd.cast_unsigned(), 0];
    assert_eq!(ioctl_words(fd, BIND, &mut bind), 0, "errno {}", errno());
    // SAFETY: a plain call on a descriptor.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, libc::FD_CLOEXEC);
    let mut info = [20, 0, 0, 0, 0];
    for same in [fd, copy, kept] {
        assert_eq!(
            ioctl_words(same, DEVICE_INFO, &mut info),
            0,
            "errno {}",
            errno()
        );
    }
    let other = open(path.to_str().unwrap(), libc::O_RDWR);
    assert_eq!(ioctl_words(other, DEVICE_INFO, &mut info), -1);
    for open in [fd, copy, kept] {
        assert_eq!(ioctl_words(other, BIND, &mut bind), -1);
        close(open);
    }
    let again = open(path.to_str().unwrap(), libc::O_RDWR);
    assert_eq!(ioctl_words(again, BIND, &mut bind), 0, "errno {}", errno());
}

fn foreign() {
    let zero = open("/dev/zero", libc::O_RDWR);
    assert_eq!(ioctl(zero, API_VERSION, number(0)), -1);
    assert_eq!(errno(), libc::ENOTTY);
    assert_eq!(ioctl(12345, API_VERSION, number(0)), -1);
    assert_eq!(errno(), libc::EBADF);
    assert_eq!(ioctl(-1, API_VERSION, number(0)), -1);
    assert_eq!(errno(), libc::EBADF);
    let memory = memory(4096, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    // SAFETY: the mapping made above.
    assert_eq!(unsafe { libc::munmap(memory.cast(), 4096) }, 0);
}

fn machine() {
    let null = std::fs::metadata("/dev/null").unwrap();
    assert_eq!(null.rdev(), libc::makedev(1, 3));
    assert!(std::fs::write("/dev/null", "x").is_ok());
    assert!(std::path::Path::new("/dev/fd/0").exists());
    assert!(std::fs::write("/dev/shm/iogate-test", "x").is_ok());
    std::fs::remove_file("/dev/shm/iogate-test").unwrap();
    assert!(std::path::Path::new("/sys/kernel/mm").exists());
    assert!(std::path::Path::new("/sys/devices/system/cpu/online").exists());
    // SAFETY: a plain call.
    let terminal = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY) };
    assert!(terminal >= 0, "errno {}", errno());
    let devices = std::fs::read_dir("/sys/bus/pci/devices").unwrap().flatten();
    let ours = devices.filter(|device| {
        let device = std::fs::canonicalize(device.path()).unwrap();
        assert!(device.starts_with("/sys/devices/iogate"), "{device:?}");
        device.join("iommu_group").exists()
    });
    assert!(ours.count() >= 1);
    assert!(std::path::Path::new(&group_path()).exists());
    let _ = device_name();
}

fn check_dma(device: &Device, memory: *mut u8) {
    const LENGTH: usize = 4096;
    // SAFETY: the mapping has two pages, which the device alone uses meanwhile.
    unsafe {
        for at in 0..LENGTH {
            memory.add(at).write_volatile(at.to_le_bytes()[0] ^ 0x5a);
        }
    }
    device.dma(0x10_0000, 4096, true);
    device.dma(0x10_1000, 4096, false);
    for at in 0..LENGTH {
        // SAFETY: as above.
        let (from, to) = unsafe {
            let to = memory.add(LENGTH + at).read_volatile();
            (memory.add(at).read_volatile(), to)
        };
        assert_eq!(from, to, "at {at}");
    }
}

fn shared_dma() {
    let device = Device::open();
    let fd = memfd(8192);
    let memory = memory(8192, libc::MAP_SHARED, fd);
    assert_eq!(device.map(memory.cast(), 0x10_0000, 8192), 0);
    check_dma(&device, memory);
    assert_eq!(device.unmap(0x10_0000, 8192), 0);
}

fn private_dma() {
    let device = Device::open();
    let memory = memory(8192, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    assert_eq!(device.map(memory.cast(), 0x10_0000, 8192), 0);
    check_dma(&device, memory);
}

fn survives() {
    let device = Device::open();
    let fd = memfd(8192);
    let first = memory(8192, libc::MAP_SHARED, fd);
    assert_eq!(device.map(first.cast(), 0x10_0000, 8192), 0);
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(first.cast(), 8192) };
    let second = memory(8192, libc::MAP_SHARED, fd);
    check_dma(&device, second);
}

/// Expects a fault, which the session tells of.
fn revoked() {
    let device = Device::open();
    let memory = memory(8192, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    assert_eq!(device.map(memory.cast(), 0x10_0000, 8192), 0);
    check_dma(&device, memory);
    eprintln!("NOW");
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(memory.cast(), 8192) };
    device.dma(0x10_1000, 4096, false);
}

fn other_unmapping() {
    let device = Device::open();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let expect = |expected: &str, act: &dyn Fn(*mut u8)| {
        let memory = memory(8192, flags, -1);
        assert_eq!(device.map(memory.cast(), 0x10_0000, 8192), 0);
        eprintln!("CASE {expected}");
        act(memory);
        device.dma(0x10_1000, 4096, false);
        assert_eq!(device.unmap(0x10_0000, 8192), 0);
    };
    // SAFETY (of all below): the mapping belongs to this test.
    expect("alive", &|_| {});
    expect("dead", &|memory| {
        // SAFETY: as above.
        unsafe { libc::madvise(memory.cast(), 8192, libc::MADV_DONTNEED) };
    });
    expect("dead", &|memory| {
        let flags = flags | libc::MAP_FIXED;
        // SAFETY: as above.
        unsafe { libc::mmap(memory.cast(), 8192, 3, flags, -1, 0) };
    });
    expect("dead", &|memory| {
        // SAFETY: as above.
        unsafe { libc::mremap(memory.cast(), 8192, 4096, 0) };
    });
    expect("alive", &|memory| {
        // SAFETY: as above.
        unsafe { libc::madvise(memory.cast(), 8192, libc::MADV_WILLNEED) };
    });
    expect("alive", &|memory| {
        // The kernel refuses this.
        // SAFETY: as above.
        unsafe { libc::munmap(memory.add(1).cast(), 4096) };
    });
}

fn reopened() {
    for _ in 0..50 {
        let device = Device::open();
        device.write(4, 0x1234, 4);
        assert_eq!(device.read(4), !0x1234);
        close(device.fd);
        assert_eq!(
            ioctl(device.group, UNSET_CONTAINER, number(0)),
            0,
            "errno {}",
            errno()
        );
        close(device.group);
        close(device.container);
    }
    for _ in 0..50 {
        let device = Device::open();
        assert_ne!(
            device.read(4),
            !0x1234,
            "a device is reset by its first open"
        );
        device.close();
    }
}

fn bad_maps() {
    let device = Device::open();
    let memory = memory(3 * 4096, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    let hole = memory.wrapping_add(4096);
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(hole.cast(), 4096) };
    assert_eq!(device.map(memory.cast(), 0x10_0000, 3 * 4096), -1);
    assert_eq!(errno(), libc::EFAULT);
    // SAFETY: the mapping made above.
    unsafe { libc::mprotect(memory.cast(), 4096, libc::PROT_READ) };
    assert_eq!(device.map(memory.cast(), 0x10_0000, 4096), -1);
    assert_eq!(errno(), libc::EFAULT);
    assert_eq!(ioctl(device.container, MAP_DMA, number(8)), -1);
    assert_eq!(errno(), libc::EFAULT);
}

fn interrupt() {
    let device = Device::open();
    // SAFETY: plain calls.
    let eventfd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    const EVENTFD_TRIGGER: u32 = 4 | 0x20;
    const MSI: u32 = 1;
    let mut irqs = [24, EVENTFD_TRIGGER, MSI, 0, 1, eventfd.cast_unsigned()];
    assert_eq!(
        ioctl_words(device.fd, SET_IRQS, &mut irqs),
        0,
        "errno {}",
        errno()
    );
    device.write(0x60, 1, 4);
    let mut count = 0_u64;
    // SAFETY: eight bytes are written.
    let read = unsafe { libc::read(eventfd, (&raw mut count).cast(), 8) };
    assert_eq!((read, count), (8, 1));
    let zero = open("/dev/zero", libc::O_RDWR);
    irqs[5] = zero.cast_unsigned();
    assert_eq!(ioctl_words(device.fd, SET_IRQS, &mut irqs), -1);
    assert_eq!(errno(), libc::EINVAL);
}

fn exhaustion() {
    let path = group_path();
    let limit = libc::rlimit {
        rlim_cur: 64,
        rlim_max: 64,
    };
    // SAFETY: the limit is a local structure.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(set, 0);
    let mut open_files = Vec::new();
    loop {
        let fd = open("/dev/vfio/vfio", libc::O_RDWR);
        if fd < 0 {
            assert_eq!(errno(), libc::EMFILE);
            break;
        }
        open_files.push(fd);
    }
    assert_eq!((open(&path, libc::O_RDWR), errno()), (-1, libc::EMFILE));
    close(open_files.pop().unwrap());
    let group = open(&path, libc::O_RDWR);
    assert!(
        group >= 0,
        "a group that could not be installed is closed: errno {}",
        errno()
    );
}

fn crowd() {
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                let fd = open("/dev/vfio/vfio", libc::O_RDWR);
                for _ in 0..500 {
                    assert_eq!(ioctl(fd, API_VERSION, number(0)), 0);
                }
                close(fd);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    for _ in 0..600 {
        let status = in_child(|| {
            let fd = open("/dev/vfio/vfio", libc::O_RDWR);
            assert_eq!(ioctl(fd, API_VERSION, number(0)), 0);
        });
        assert_eq!(status, 0);
    }
}

fn inside() {
    assert!(iogate_supervisor::inside_session());
    let link = std::fs::read_link("/dev/iogate/bin/iogate").unwrap();
    assert_eq!(link, std::env::current_exe().unwrap());
    let path = std::env::var("PATH").unwrap();
    assert!(path.split(':').any(|entry| entry == "/dev/iogate/bin"));
}

fn own_filter() {
    let program = [libc::sock_filter {
        code: 6,
        jt: 0,
        jf: 0,
        k: 0x7fff_0000,
    }];
    let filter = libc::sock_fprog {
        len: 1,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the filter has the one instruction that it says.
    let installed = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    };
    assert_eq!(installed, 0);
    container();
}

fn kvm() {
    let system = open("/dev/kvm", libc::O_RDWR);
    if system < 0 {
        eprintln!("NOT RUN: no /dev/kvm");
        return;
    }
    const CREATE_VM: libc::c_ulong = 0xae01;
    const CREATE_DEVICE: libc::c_ulong = 0xc00c_aee0;
    const SET_ATTR: libc::c_ulong = 0x4018_aee1;
    const VFIO: u32 = 4;
    let machine = ioctl(system, CREATE_VM, number(0));
    assert!(machine >= 0);
    let mut create = [VFIO, 0, 0];
    if ioctl_words(machine, CREATE_DEVICE, &mut create) != 0 {
        eprintln!("NOT RUN: this KVM has no VFIO device");
        return;
    }
    let pseudo = create[1].cast_signed();
    let device = Device::open();
    let group = device.group;
    let set = |what: u64, file: &i32| {
        let attribute = [1_u64 << 32, what, std::ptr::from_ref(file) as u64];
        let done = ioctl(pseudo, SET_ATTR, attribute.as_ptr().cast_mut().cast());
        if done == 0 { 0 } else { errno() }
    };
    assert_eq!(set(1, &group), 0);
    assert_eq!(set(1, &group), libc::EEXIST);
    assert_eq!(set(2, &group), 0);
    assert_eq!(set(2, &group), libc::ENOENT);
    assert_eq!(set(1, &99), libc::EBADF);
}

fn vectors() {
    let device = Device::open();
    device.write(4, 0xff, 4);
    let (mut first, mut second) = (0_u32, 0_u32);
    let pieces = [
        libc::iovec {
            iov_base: (&raw mut first).cast(),
            iov_len: 4,
        },
        libc::iovec {
            iov_base: (&raw mut second).cast(),
            iov_len: 4,
        },
    ];
    // SAFETY: both pieces are local integers.
    let read = unsafe { libc::preadv(device.fd, pieces.as_ptr(), 2, device.bar) };
    assert_eq!((read, first & 0xff, second), (8, 0xed, !0xff));
    // SAFETY: nothing is read from a null vector.
    let read = unsafe { libc::preadv(device.fd, std::ptr::null(), 2, device.bar) };
    assert_eq!((read, errno()), (-1, libc::EFAULT));
}

fn symlink() {
    let link = std::env::temp_dir().join(format!("iogate-link-{}", std::process::id()));
    std::os::unix::fs::symlink(group_path(), &link).unwrap();
    let group = open(link.to_str().unwrap(), libc::O_RDWR);
    let mut status = [8, 0];
    assert_eq!(ioctl_words(group, GROUP_STATUS, &mut status), 0);
    std::fs::remove_file(&link).unwrap();
}

fn own_mounts() {
    let user = rustix::process::getuid();
    let flags = if user.is_root() {
        0
    } else {
        libc::CLONE_NEWUSER
    };
    // SAFETY: plain flags; this process has one thread.
    let unshared = unsafe { libc::unshare(flags | libc::CLONE_NEWNS) };
    assert_eq!(unshared, 0, "errno {}", errno());
    container();
    group_open();
}

fn exec() {
    use std::os::unix::process::CommandExt;
    let arguments: Vec<String> = std::env::args().collect();
    if let Ok(fd) = std::env::var("IOGATE_TEST_FD") {
        let container = fd.parse().unwrap();
        assert_eq!(ioctl(container, API_VERSION, number(0)), 0);
        let memory = memory(4096, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        let map = [32 | 3 << 32, memory as u64, 0x20_0000_u64, 4096];
        assert_eq!(ioctl(container, MAP_DMA, map.as_ptr().cast_mut().cast()), 0);
        return;
    }
    let device = Device::open();
    let memory = memory(8192, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    assert_eq!(device.map(memory.cast(), 0x10_0000, 8192), 0);
    // SAFETY: plain calls on descriptors, which stay open in the new program.
    let (container, _group) = unsafe { (libc::dup(device.container), libc::dup(device.group)) };
    let failed = std::process::Command::new(&arguments[0])
        .args(&arguments[1..])
        .env("IOGATE_TEST_FD", container.to_string())
        .exec();
    panic!("{failed}");
}

fn not_dumpable() {
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) }, 0);
    for body in [
        container,
        group_open,
        cdev,
        private_dma,
        shared_dma,
        interrupt,
        bad_maps,
    ] {
        assert_eq!(in_child(body), 0);
    }
}
