//! Descriptors at reserved numbers: whatever a program does with its numbers, a
//! call reaches the file that the number names at that moment.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::client::*;

const RESERVED: std::ops::Range<i32> = 896..1024;

/// What a number names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Names {
    Container,
    Group,
    /// A file that is not VFIO's.
    Other,
    Nothing,
}

fn names(fd: i32) -> Names {
    if ioctl(fd, API_VERSION, number(0)) == 0 {
        return Names::Container;
    }
    let first = errno();
    if ioctl_words(fd, GROUP_STATUS, &mut [8, 0]) == 0 {
        return Names::Group;
    }
    match (first, errno()) {
        (libc::EBADF, libc::EBADF) => Names::Nothing,
        (libc::ENOTTY, libc::ENOTTY) => Names::Other,
        other => panic!("{fd}: {other:?}"),
    }
}

fn open_both() -> (i32, i32) {
    let container = open("/dev/vfio/vfio", libc::O_RDWR | libc::O_CLOEXEC);
    let group = open(&group_path(), libc::O_RDWR);
    assert!(RESERVED.contains(&container), "{container}");
    assert!(
        RESERVED.contains(&group) && group != container,
        "{container} {group}"
    );
    for _ in 0..2 {
        assert_eq!(names(container), Names::Container);
        assert_eq!(names(group), Names::Group);
    }
    (container, group)
}

/// close, dup2, dup3 and close_range of what is known.
pub fn changed() {
    let (container, group) = open_both();
    // SAFETY: plain calls on descriptors.
    unsafe {
        assert_eq!(libc::dup2(group, container), container);
        assert_eq!(names(container), Names::Group);
        let null = open("/dev/null", libc::O_RDONLY);
        assert_eq!(libc::dup3(null, container, libc::O_CLOEXEC), container);
        assert_eq!(names(container), Names::Other);
        assert_eq!(names(container), Names::Other);
        close(container);
        assert_eq!(names(container), Names::Nothing);
        assert_eq!(names(group), Names::Group);
        let number = group.cast_unsigned();
        assert_eq!(libc::syscall(libc::SYS_close_range, number, number, 0), 0);
        assert_eq!(names(group), Names::Nothing);
        close(null);
    }
    // They are handed out again, and known again.
    let (container, group) = open_both();
    close(group);
    close(container);
}

/// A number that the program uses is not taken from it.
pub fn used() {
    let mine = open("/dev/null", libc::O_RDONLY);
    for number in RESERVED.start + 2..RESERVED.end {
        // SAFETY: a plain call on descriptors.
        assert_eq!(unsafe { libc::dup2(mine, number) }, number);
    }
    let opened = [(); 3].map(|()| open("/dev/vfio/vfio", libc::O_RDWR));
    assert_eq!(opened[..2], [RESERVED.start + 1, RESERVED.start]);
    assert!(opened[2] >= 0 && !RESERVED.contains(&opened[2]));
    for fd in opened {
        assert_eq!(names(fd), Names::Container);
    }
    for number in RESERVED.start + 2..RESERVED.end {
        assert_eq!(names(number), Names::Other);
    }
}

/// A program whose limit is lower than our numbers.
pub fn limited() {
    let limit = libc::rlimit {
        rlim_cur: 200,
        rlim_max: 200,
    };
    // SAFETY: the structure is read.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let device = Device::open();
    for fd in [device.container, device.group, device.fd] {
        assert!((3..200).contains(&fd), "{fd}");
    }
    device.close();
}

/// A child's table is its own, unless it shares it.
pub fn children() {
    let (container, group) = open_both();
    let status = in_child(|| {
        assert_eq!(names(container), Names::Container);
        // SAFETY: plain calls on descriptors.
        unsafe {
            assert_eq!(libc::dup2(group, container), container);
            assert_eq!(names(container), Names::Group);
            assert_eq!(libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0), 0);
        }
        assert_eq!(names(container), Names::Nothing);
    });
    assert_eq!(status, 0);
    assert_eq!(names(container), Names::Container);
    assert_eq!(names(group), Names::Group);

    let (mut go, mut done) = UnixStream::pair().unwrap();
    use std::io::{Read, Write};
    // SAFETY: as fork, but with one table of descriptors.
    let child = unsafe {
        let flags = libc::CLONE_FILES | libc::SIGCHLD;
        libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0)
    };
    if child == 0 {
        assert_eq!(names(container), Names::Container);
        // SAFETY: a plain call on descriptors.
        unsafe { libc::dup2(group, container) };
        done.write_all(b"x").unwrap();
        done.read_exact(&mut [0]).unwrap();
        assert_eq!(names(group), Names::Other);
        // SAFETY: ends the process, nothing else.
        unsafe { libc::_exit(0) };
    }
    go.read_exact(&mut [0]).unwrap();
    assert_eq!(names(container), Names::Group);
    assert_eq!(names(container), Names::Group);
    let null = open("/dev/null", libc::O_RDONLY);
    // SAFETY: a plain call on descriptors.
    assert_eq!(unsafe { libc::dup2(null, group) }, group);
    go.write_all(b"x").unwrap();
    let mut status = -1;
    let child = i32::try_from(child).unwrap();
    // SAFETY: the status is a local integer.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
    assert_eq!(names(group), Names::Other);
    assert_eq!(names(container), Names::Group);
}

/// A thread with a table of its own.
pub fn own_table() {
    let (container, group) = open_both();
    std::thread::spawn(move || {
        assert_eq!(names(container), Names::Container);
        // SAFETY: plain calls on descriptors of a table that is this thread's.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_FILES), 0);
            assert_eq!(libc::dup2(group, container), container);
        }
        assert_eq!(names(container), Names::Group);
        assert_eq!(names(container), Names::Group);
    })
    .join()
    .unwrap();
    assert_eq!(names(container), Names::Container);
    std::thread::spawn(move || {
        let unshare = 2;
        // SAFETY: a plain call, which gives this thread a table of its own.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, unshare) };
        assert_eq!(names(container), Names::Nothing);
    })
    .join()
    .unwrap();
    assert_eq!(names(container), Names::Container);
    assert_eq!(names(group), Names::Group);
}

/// One thread changes what a number names while another calls.
pub fn race() {
    let (container, group) = open_both();
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let done = ioctl(container, API_VERSION, number(0));
                let refused = [libc::EBADF, libc::ENOTTY];
                assert!(done == 0 || refused.contains(&errno()));
            }
        });
        for round in 0..3000 {
            // SAFETY: plain calls on descriptors.
            unsafe {
                assert_eq!(libc::dup2(group, container), container);
                assert_eq!(names(container), Names::Group);
                close(container);
            }
            assert_eq!(names(container), Names::Nothing);
            let again = open("/dev/vfio/vfio", libc::O_RDWR);
            assert_eq!(again, container, "{round}");
            assert_eq!(names(container), Names::Container);
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// Many short lives: numbers of threads come again.
pub fn many_lives() {
    let (container, group) = open_both();
    for _ in 0..300 {
        let status = in_child(|| {
            assert_eq!(names(container), Names::Container);
            // SAFETY: a plain call on descriptors.
            assert_eq!(unsafe { libc::dup2(group, container) }, container);
            assert_eq!(names(container), Names::Group);
        });
        assert_eq!(status, 0);
    }
    assert_eq!(names(container), Names::Container);
}

/// A program that another executes finds what exec left open, from any thread.
pub fn executed() {
    use std::os::unix::process::CommandExt;
    if let Ok(numbers) = std::env::var("IOGATE_TEST_NUMBERS") {
        let (container, group) = numbers.split_once(' ').unwrap();
        let number = |text: &str| text.parse().unwrap();
        assert_eq!(names(number(container)), Names::Nothing);
        assert_eq!(names(number(group)), Names::Group);
        assert_eq!(names(number(group)), Names::Group);
        let again = open("/dev/vfio/vfio", libc::O_RDWR);
        assert_eq!(again, number(container));
        assert_eq!(names(again), Names::Container);
        return;
    }
    let (container, group) = open_both();
    // One that fails changes nothing.
    let failed = std::process::Command::new("/nowhere").exec();
    assert_eq!(failed.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(names(container), Names::Container);
    let mut myself = std::process::Command::new("/proc/self/exe");
    let name = "a program that another executes finds what exec left open";
    myself.args(["client", name]);
    myself.env("IOGATE_TEST_NUMBERS", format!("{container} {group}"));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            loop {
                names(container);
            }
        });
        threads.spawn(|| {
            assert_eq!(names(container), Names::Container);
            panic!("{}", myself.exec());
        });
    });
}

/// Reads and writes of a device file at its position.
pub fn positions() {
    let device = Device::open();
    let (fd, mut word) = (device.fd, [0_u8; 4]);
    let mut config = [32_u32, 0, 7, 0, 0, 0, 0, 0];
    assert_eq!(ioctl_words(fd, REGION_INFO, &mut config), 0);
    let config = i64::from(config[6]) | i64::from(config[7]) << 32;
    let read = |bytes: &mut [u8]| {
        // SAFETY: the bytes may be written.
        unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) }
    };
    let mut ids = [0_u8; 4];
    // SAFETY: four bytes may be written.
    let done = unsafe { libc::pread(fd, ids.as_mut_ptr().cast(), 4, config) };
    assert_eq!(done, 4);
    // SAFETY: a plain call on a descriptor.
    let seek = |to| unsafe { libc::lseek(fd, to, libc::SEEK_SET) };
    for start in [config, 7 << 40] {
        assert_eq!(seek(start), start);
        assert_eq!((read(&mut word[..2]), read(&mut word[2..])), (2, 2));
        assert_eq!(word, ids);
        // SAFETY: plain calls; the bytes outlive them.
        unsafe {
            assert_eq!(libc::lseek(fd, 0, libc::SEEK_CUR), start + 4);
            let command = 6_u16;
            let piece = libc::iovec {
                iov_base: (&raw const command).cast_mut().cast(),
                iov_len: 2,
            };
            assert_eq!(libc::writev(fd, &piece, 1), 2);
        }
    }
    // Where the kernel has BAR 0 is the beginning of the file.
    seek(0);
    assert_eq!(read(&mut word), 4);
    assert_eq!(u32::from_le_bytes(word), device.read(0));
    // An offset in no region moves nothing.
    seek(9 << 40);
    assert_eq!((read(&mut word), errno()), (-1, libc::EINVAL));
    for fd in [device.container, device.group] {
        // SAFETY: the bytes outlive the calls.
        unsafe {
            assert_eq!(libc::read(fd, word.as_mut_ptr().cast(), 4), -1);
            assert_eq!(errno(), libc::EINVAL);
            assert_eq!(libc::write(fd, word.as_ptr().cast(), 4), -1);
            assert_eq!(errno(), libc::EINVAL);
        }
    }
    // What the program has there is its own.
    let null = open("/dev/zero", libc::O_RDWR);
    // SAFETY: plain calls; the bytes outlive them.
    unsafe {
        assert_eq!(libc::dup2(null, 950), 950);
        assert_eq!(libc::read(950, word.as_mut_ptr().cast(), 4), 4);
        assert_eq!(libc::write(950, word.as_ptr().cast(), 4), 4);
    }
    device.close();
}
