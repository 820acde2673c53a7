//! One mapping of another process, asked of the kernel by the `PROCMAP_QUERY`
//! ioctl (Linux 6.11), or read from the text of `/proc/PID/maps`.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use iogate_dma::{MemoryError, Rights};
use rustix::io::Errno;

/// A mapping: pages from `start` to `end` of a process's addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vma {
    /// The first byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
    /// What the process itself may do with it.
    pub rights: Rights,
    /// Whether others that map the same file see what is written.
    pub shared: bool,
    /// Major and minor number of the file's device; 0, 0 without a file.
    pub device: (u32, u32),
    /// The file's inode; 0 without a file.
    pub inode: u64,
    /// Where in the file `start` is; 0 without a file.
    pub offset: u64,
}

impl Vma {
    /// Whether it maps a file. Memory that is shared without a file's name
    /// (`MAP_SHARED | MAP_ANONYMOUS`, System V) is a file here. The file can
    /// be a device: only fstat(2) tells.
    pub fn is_file(&self) -> bool {
        self.inode != 0
    }

    /// Where in the file the byte at `va` is; `None` outside of the mapping.
    pub fn file_offset(&self, va: u64) -> Option<u64> {
        if va >= self.end {
            return None;
        }
        self.offset.checked_add(va.checked_sub(self.start)?)
    }
}

/// `struct procmap_query` of include/uapi/linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const QUERY_SIZE: u32 = 104;
const _: () = assert!(size_of::<Query>() == QUERY_SIZE as usize);

/// `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: u32 = 3 << 30 | QUERY_SIZE << 16 | 0x66 << 8 | 17;

// Bits of `vma_flags`.
const READABLE: u64 = 1;
const WRITABLE: u64 = 2;
const SHARED: u64 = 8;

/// The mapping that covers `va`, from an open `/proc/PID/maps`.
pub(crate) fn find(maps: impl AsFd, va: u64) -> Result<Vma, MemoryError> {
    match by_ioctl(&maps, va) {
        Err(Errno::NOTTY) => by_text(&maps, va),
        answer => answer,
    }
    .map_err(|error| match error {
        Errno::SRCH => MemoryError::Gone { address: va },
        _ => MemoryError::Absent { address: va },
    })
}

/// Whether the address space of an open `/proc/PID/maps` is in use.
pub(crate) fn is_in_use(maps: impl AsFd) -> bool {
    match by_ioctl(&maps, 0) {
        // Text is made only while it is; every such space has a mapping.
        Err(Errno::NOTTY) => rustix::io::pread(&maps, &mut [0; 1], 0) == Ok(1),
        Err(Errno::SRCH) => false,
        _ => true,
    }
}

fn by_ioctl(maps: impl AsFd, va: u64) -> Result<Vma, Errno> {
    let mut query = Query {
        size: QUERY_SIZE.into(),
        query_addr: va,
        ..Query::default()
    };
    let fd = maps.as_fd().as_raw_fd();
    // SAFETY: `query` is the structure that the call reads and fills; it names
    // no other buffers.
    if unsafe { libc::ioctl(fd, PROCMAP_QUERY.into(), &raw mut query) } < 0 {
        let error = io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    let has = |flag| query.vma_flags & flag != 0;
    Ok(Vma {
        start: query.vma_start,
        end: query.vma_end,
        rights: Rights::new(has(READABLE), has(WRITABLE)),
        shared: has(SHARED),
        device: (query.dev_major, query.dev_minor),
        inode: query.inode,
        offset: query.vma_offset,
    })
}

/// Reads the text until the line that covers `va`.
fn by_text(maps: impl AsFd, va: u64) -> Result<Vma, Errno> {
    let mut text = Vec::new();
    let mut position = 0_u64;
    loop {
        // The kernel gives whole lines as long as they fit, and the longest
        // (a path with all its bytes escaped) is a few pages.
        let mut piece = [0; 1 << 15];
        let count = rustix::io::pread(&maps, &mut piece, position)?;
        if count == 0 {
            // Every living process has at least one mapping.
            return Err(if position == 0 {
                Errno::SRCH
            } else {
                Errno::NOENT
            });
        }
        position = position.saturating_add(count as u64);
        text.extend(piece.iter().take(count));
        let lines = text.iter().rposition(|byte| *byte == b'\n');
        let lines = lines.map_or(0, |last| last.saturating_add(1));
        for line in text.drain(..lines).as_slice().split(|byte| *byte == b'\n') {
            match parse_line(line) {
                Some(vma) if va < vma.start => return Err(Errno::NOENT),
                Some(vma) if va < vma.end => return Ok(vma),
                _ => {}
            }
        }
    }
}

/// One line of `/proc/PID/maps` (proc_pid_maps(5)); `None` if it is not one.
fn parse_line(line: &[u8]) -> Option<Vma> {
    let mut words = line
        .split(|byte| *byte == b' ')
        .map(|word| std::str::from_utf8(word).ok());
    let mut word = || words.next().flatten();
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = word()?.split_once('-')?;
    let flags = word()?.as_bytes();
    let offset = hex(word()?)?;
    let (major, minor) = word()?.split_once(':')?;
    let inode = word()?.parse().ok()?;
    let [read, write, _, sharing, ..] = *flags else {
        return None;
    };
    Some(Vma {
        start: hex(start)?,
        end: hex(end)?,
        rights: Rights::new(read == b'r', write == b'w'),
        shared: sharing == b's',
        device: (
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        ),
        inode,
        offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn a_line_is_read_field_by_field() {
        let line = b"7f00-9000 rw-s 00001000 fd:1f 1234                  /memfd:a b (deleted)";
        let vma = Vma {
            start: 0x7f00,
            end: 0x9000,
            rights: Rights::READ_WRITE,
            shared: true,
            device: (0xfd, 0x1f),
            inode: 1234,
            offset: 0x1000,
        };
        assert_eq!(parse_line(line), Some(vma));
        assert_eq!(vma.file_offset(0x7f10), Some(0x1010));
        assert_eq!(vma.file_offset(0x7eff), None);
        assert_eq!(vma.file_offset(0x9000), None);
    }

    #[test]
    fn a_line_that_is_none_gives_none() {
        for line in [
            &b""[..],
            b"x",
            b"1-2",
            b"1-2 rwxp",
            b"1-2 rw 0 0:0 0",
            b"1-2 rwxp 0 0:0 \xff",
            b"1-fffffffffffffffff rwxp 0 0:0 0",
        ] {
            assert_eq!(parse_line(line), None, "{line:?}");
        }
    }

    #[test]
    fn the_ioctl_and_the_text_agree_on_every_mapping() {
        // Another process, whose mappings stay as they are once it waits for
        // what it repeats.
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(b"!").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let maps = File::open(format!("/proc/{}/maps", child.id())).unwrap();
        let text = std::io::read_to_string(&maps).unwrap();
        let mut seen = 0;
        for line in text.lines().filter(|line| !line.ends_with("[vsyscall]")) {
            let vma = parse_line(line.as_bytes()).unwrap();
            for va in [vma.start, vma.end - 1, vma.end, vma.start - 1] {
                assert_eq!(
                    by_ioctl(&maps, va),
                    by_text(&maps, va),
                    "{va:#x} near {line}"
                );
            }
            assert_eq!(by_text(&maps, vma.start), Ok(vma));
            seen += 1;
        }
        assert!(seen > 5);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(by_text(&maps, 0), Err(Errno::SRCH));
        assert_eq!(by_ioctl(&maps, 0), Err(Errno::SRCH));
    }
}
