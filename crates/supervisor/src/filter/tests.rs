//! What the filter lets pass and what it notices, by running it on calls.

use super::*;

/// Runs the filter as the kernel's interpreter would.
fn verdict(filter: &Filter, arch: u32, number: c_long, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(u32::try_from(number).unwrap().to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    data.extend(arguments.iter().flat_map(|a| a.to_le_bytes()));
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let i = filter.0[at];
        at += 1;
        let take = |yes| usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            LOAD => {
                let k = i.k as usize;
                accumulator = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
            }
            AND => accumulator &= i.k,
            JUMP_EQUAL => at += take(accumulator == i.k),
            JUMP_GREATER_EQUAL => at += take(accumulator >= i.k),
            RETURN => return i.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn noticed(unmapping: Unmapping, number: c_long, arguments: [u64; 6]) -> bool {
    let filter = Filter::new(Extent {
        unmapping,
        ..Extent::LEAST
    });
    verdict(&filter, AUDIT_ARCH_X86_64, number, arguments) == NOTIFY
}

#[test]
fn only_ioctls_of_vfio_and_of_the_kvm_device_are_noticed() {
    let at = |command| noticed(Unmapping::Unseen, libc::SYS_ioctl, [9, command, 1, 0, 0, 0]);
    assert!(at(0x3b64) && at(0x3b85) && at(u64::from(KVM_SET_DEVICE_ATTR)));
    assert!(
        at(0xdead_0000_0000_3b64),
        "the kernel ignores the upper half"
    );
    assert!(!at(0x5401) && !at(0xae80) && !at(0));
}

#[test]
fn reads_and_maps_are_noticed_in_regions_only() {
    let region = REGION_BIT | 7 << 40 | 4;
    for number in [libc::SYS_pread64, libc::SYS_pwritev2] {
        assert!(noticed(Unmapping::Unseen, number, [3, 0, 4, region, 0, 0]));
        for (offset, is_noticed) in [
            (7 << 40, true),
            ((9 << 40) - 1, true),
            (9 << 40, false),
            ((1 << 40) - 1, false),
        ] {
            let arguments = [3, 0, 4, offset, 0, 0];
            assert_eq!(noticed(Unmapping::Unseen, number, arguments), is_noticed);
        }
        assert!(!noticed(
            Unmapping::Unseen,
            number,
            [3, 0, 4, u64::MAX, 0, 0]
        ));
    }
    let map = |flags, offset| {
        let arguments = [0, 4096, 3, flags, 3, offset];
        noticed(Unmapping::Unseen, libc::SYS_mmap, arguments)
    };
    assert!(map(1, region) && !map(1, 0) && !map(0x10, 0));
}

#[test]
fn reads_without_an_offset_are_noticed_at_reserved_numbers() {
    for number in PLAIN {
        for (fd, is_noticed) in [(3, false), (895, false), (896, true), (1023, true)] {
            let arguments = [fd, 0, 4, 0, 0, 0];
            assert_eq!(noticed(Unmapping::Unseen, number, arguments), is_noticed);
        }
    }
}

#[test]
fn opens_are_noticed_when_they_read_and_write_what_exists() {
    let open = |flags: i32| {
        let flags = u64::from(bits(flags));
        noticed(Unmapping::Unseen, libc::SYS_openat, [0, 0, flags, 0, 0, 0])
            && noticed(Unmapping::Unseen, libc::SYS_open, [0, flags, 0, 0, 0, 0])
    };
    assert!(open(libc::O_RDWR) && open(libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK));
    assert!(!open(libc::O_RDONLY) && !open(libc::O_WRONLY));
    assert!(!open(libc::O_RDWR | libc::O_CREAT) && !open(libc::O_RDWR | libc::O_PATH));
}

#[test]
fn unmapping_is_noticed_when_asked_for() {
    let cases = [
        (libc::SYS_munmap, [0; 6]),
        (libc::SYS_mmap, [0, 1, 2, 0x32, 0, 0]),
        (libc::SYS_madvise, [0, 1, 4, 0, 0, 0]),
    ];
    for (number, arguments) in cases {
        assert!(noticed(Unmapping::Noticed, number, arguments));
        assert!(!noticed(Unmapping::Unseen, number, arguments));
    }
    assert!(!noticed(
        Unmapping::Noticed,
        libc::SYS_madvise,
        [0, 1, 14, 0, 0, 0]
    ));
    assert!(!noticed(
        Unmapping::Noticed,
        libc::SYS_mmap,
        [0, 1, 2, 0x22, 0, 0]
    ));
}

#[test]
fn short_writes_are_noticed_when_asked_for() {
    let filter = Filter::new(Extent {
        short_writes: ShortWrites::Noticed,
        ..Extent::LEAST
    });
    for (length, is_noticed) in [
        (0, false),
        (1, true),
        (7, true),
        (8, false),
        (4096, false),
        (1 << 32 | 1, false),
    ] {
        for number in [libc::SYS_write, libc::SYS_pwrite64] {
            let arguments = [1, 0, length, 0, 0, 0];
            let verdict = verdict(&filter, AUDIT_ARCH_X86_64, number, arguments);
            assert_eq!(verdict == NOTIFY, is_noticed, "{number} {length}");
            assert!(!noticed(Unmapping::Unseen, number, arguments));
        }
    }
}

#[test]
fn paths_and_eventfds_are_noticed_when_asked_for() {
    let both = Filter::new(Extent {
        paths: true,
        eventfds: true,
        ..Extent::LEAST
    });
    let eventfds = [libc::SYS_eventfd, libc::SYS_eventfd2];
    for number in crate::paths::NOTICED.into_iter().chain(eventfds) {
        assert_eq!(verdict(&both, AUDIT_ARCH_X86_64, number, [0; 6]), NOTIFY);
        let alone = noticed(Unmapping::Noticed, number, [0; 6]);
        assert_eq!(alone, number == libc::SYS_openat2, "{number}");
    }
}

#[test]
fn other_tables_of_system_calls_pass() {
    let filter = Filter::new(Extent {
        unmapping: Unmapping::Noticed,
        short_writes: ShortWrites::Noticed,
        ..Extent::LEAST
    });
    let arguments = [3, 0x3b64, 0, 0, 0, 0];
    assert_eq!(verdict(&filter, AUDIT_ARCH_I386, 54, arguments), ALLOW);
    let x32 = libc::SYS_ioctl + c_long::from(X32);
    assert_eq!(verdict(&filter, AUDIT_ARCH_X86_64, x32, arguments), ALLOW);
}

#[test]
fn changes_of_reserved_numbers_are_noticed_in_every_table() {
    let filter = Filter::new(Extent::LEAST);
    let x32 = i32::try_from(X32).unwrap();
    let tables = [
        (AUDIT_ARCH_X86_64, NATIVE),
        (AUDIT_ARCH_X86_64, X32_CALLS),
        (AUDIT_ARCH_I386, I386),
    ];
    for (arch, table) in tables {
        let at = |call: usize, arguments: [u64; 3]| {
            let [a, b, c] = arguments;
            verdict(&filter, arch, table[call], [a, b, c, 0, 0, 0]) == NOTIFY
        };
        assert!(at(0, [896, 0, 0]) && at(0, [1023 | 1 << 32, 0, 0]));
        assert!(!at(0, [895, 0, 0]) && !at(0, [1024, 0, 0]) && !at(0, [3, 0, 0]));
        assert!(at(1, [3, 1000, 0]) && !at(1, [1000, 3, 0]));
        assert!(at(2, [3, 1000, 0]) && !at(2, [1000, 3, 0]));
        assert!(at(3, [3, u64::MAX, 0]) && !at(3, [3, 895, 0]));
        for fcntl in [4, 5] {
            let (dup, dup_cloexec) = (0, 1030);
            assert!(at(fcntl, [3, dup, 256]) && at(fcntl, [3, dup_cloexec, 1023]));
            assert!(!at(fcntl, [3, dup, 10]) && !at(fcntl, [3, dup_cloexec, 1024]));
            assert!(!at(fcntl, [1000, 1, 900]) && !at(fcntl, [1000, 3, 0]));
        }
        assert!((6..9).all(|call| at(call, [0; 3])));
        for (theirs, ours) in table.into_iter().zip(NATIVE) {
            assert_eq!(native(arch, i32::try_from(theirs).unwrap()), ours);
        }
    }
    assert_eq!(native(AUDIT_ARCH_X86_64, 16), 16);
    assert_eq!(native(AUDIT_ARCH_X86_64, x32 | 16), -1);
}

#[test]
fn what_changes_sigbus_is_noticed_only_where_registers_are_mapped() {
    let plain = || {
        Filter::new(Extent {
            unmapping: Unmapping::Noticed,
            ..Extent::LEAST
        })
    };
    let mapped = plain().with_mapped_registers();
    let arch = AUDIT_ARCH_X86_64;
    let bus = u64::from(libc::SIGBUS.unsigned_abs());
    for (number, first, is_noticed) in [
        (libc::SYS_rt_sigaction, bus, true),
        (libc::SYS_rt_sigaction, bus + 1, false),
        (libc::SYS_rt_sigprocmask, 0, true),
        (libc::SYS_ptrace, 0, true),
        (libc::SYS_getpid, 0, false),
        (libc::SYS_munmap, 0, true),
    ] {
        let arguments = [first, 0, 0, 0, 0, 0];
        let noticed = |filter| verdict(filter, arch, number, arguments) == NOTIFY;
        assert_eq!(noticed(&mapped), is_noticed, "{number}");
        let always = number == libc::SYS_munmap;
        assert_eq!(noticed(&plain()), always, "{number}");
    }
}
