//! Many small maps of adjacent pages against one of them all: what they take,
//! and how many mappings of its own iogate makes for them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::process::{Command, Stdio};
use std::time::Instant;

use iogate_passthrough::container::TYPE1V2;
use iogate_passthrough::{Container, Group};

const PAGE: usize = 4096;
const PAGES: usize = 32_768;
const LENGTH: usize = PAGE * PAGES;
const MAP_DMA: libc::c_ulong = 0x3b71;
const UNMAP_DMA: libc::c_ulong = 0x3b72;

/// Kinds of memory, and the flags of their memory file if they have one.
const KINDS: [(&str, Option<libc::c_uint>); 3] = [
    ("a memory file", Some(0)),
    ("huge pages", Some(libc::MFD_HUGETLB)),
    ("anonymous memory", None),
];

/// Runs a session and prints what its client says, with the mappings that
/// iogate had meanwhile.
pub(crate) fn measure() {
    let myself = std::env::current_exe().expect("a bench has a path");
    let mut child = Command::new(crate::IOGATE)
        .args(["run", "--"])
        .arg(&myself)
        .env(crate::client::ASKED, "maps")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("iogate starts");
    let maps = format!("/proc/{}/maps", child.id());
    let mut go = child.stdin.take().expect("a pipe");
    let out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut before = 0;
    for line in out.lines() {
        let line = line.expect("a line");
        let mappings = std::fs::read_to_string(&maps).map_or(0, |maps| maps.lines().count());
        match line.as_str() {
            "before" => before = mappings,
            said => println!("{said}, {} mappings of iogate's", mappings - before),
        }
        go.write_all(b"\n").expect("the client reads");
    }
    assert!(child.wait().is_ok_and(|status| status.success()));
}

/// The program in the session: tells and waits for a line.
pub(crate) fn client() {
    let container = Container::open().expect("a container");
    let group = Group::open(crate::client::first_device().0).expect("a group");
    group.set_container(&container).expect("SET_CONTAINER");
    container.set_iommu(TYPE1V2).expect("SET_IOMMU");
    for (name, kind) in KINDS {
        let Some(address) = memory(kind) else {
            tell(&format!(
                "{PAGES} maps of {name}: this machine has none free"
            ));
            continue;
        };
        let map = |page: usize, length: usize| {
            let at = (page * PAGE) as u64;
            let argument = [32 | 3 << 32, address as u64 + at, at, length as u64];
            // SAFETY: the structure of the command is read.
            let done = unsafe { libc::ioctl(container.as_fd().as_raw_fd(), MAP_DMA, &argument) };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        };
        tell("before");
        let begun = Instant::now();
        (0..PAGES).for_each(|page| map(page, PAGE));
        let each = begun.elapsed().as_secs_f64() * 1e6 / PAGES as f64;
        tell(&format!("{PAGES} maps of {name}: {each:.1} us each"));
        unmap(&container);
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            tell("before");
            let begun = Instant::now();
            map(0, LENGTH);
            best = best.min(begun.elapsed().as_secs_f64() * 1e6);
            unmap(&container);
        }
        map(0, LENGTH);
        tell(&format!("one map of as much of {name}: {best:.1} us"));
        unmap(&container);
        // SAFETY: the mapping made for this kind.
        unsafe { libc::munmap(address.cast(), LENGTH) };
    }
}

fn tell(line: &str) {
    println!("{line}");
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn unmap(container: &Container) {
    let mut argument = [24, 0, LENGTH as u64];
    // SAFETY: the structure of the command is read and written.
    let done = unsafe { libc::ioctl(container.as_fd().as_raw_fd(), UNMAP_DMA, &mut argument) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Memory of a kind; none if the machine cannot give it.
fn memory(kind: Option<libc::c_uint>) -> Option<*mut u8> {
    let mut flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
    let file = kind.map(|flags| {
        // SAFETY: the name is a C string; the descriptor is new.
        unsafe { File::from_raw_fd(libc::memfd_create(c"bench".as_ptr(), flags)) }
    });
    if let Some(file) = &file {
        file.set_len(LENGTH as u64).ok()?;
        flags = libc::MAP_SHARED;
    }
    let fd = file.as_ref().map_or(-1, File::as_raw_fd);
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping somewhere.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, rights, flags, fd, 0) };
    (at != libc::MAP_FAILED).then_some(at.cast())
}
