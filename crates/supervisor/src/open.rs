//! Opens that are noticed: does the path lead to one of our nodes? Asked in
//! the client's own root and working directory, without ever waiting.

use std::io;
use std::os::fd::OwnedFd;

use iogate_host::Node;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::listener::Call;
use crate::thread::Thread;

/// An open that the kernel may be asked to do, in our own words.
pub(crate) struct Open {
    /// AT_FDCWD, or a directory of the caller's.
    pub(crate) directory: i32,
    /// Where its path stands.
    pub(crate) path: u64,
    /// O_ flags.
    pub(crate) flags: u64,
}

impl Open {
    /// The open that `call` is. `read` reads an 8-byte word of the client's.
    pub(crate) fn of(call: &Call, read: impl Fn(u64) -> Option<u64>) -> Option<Self> {
        let open = |directory, path, flags| {
            Some(Self {
                directory,
                path,
                flags,
            })
        };
        match call.number() {
            libc::SYS_open => open(libc::AT_FDCWD, call.argument(0), call.uint(1).into()),
            libc::SYS_openat => open(call.int(0), call.argument(1), call.uint(2).into()),
            libc::SYS_openat2 => {
                // struct open_how: flags, mode, resolve. One that restricts
                // its way is left to the kernel.
                let how = call.argument(2);
                let resolve = read(how.checked_add(16)?)?;
                let open = open(call.int(0), call.argument(1), read(how)?)?;
                let looked_at = libc::O_ACCMODE | libc::O_CREAT | libc::O_PATH;
                let flags = open.flags & u64::from(looked_at.cast_unsigned());
                let wanted = u64::from(libc::O_RDWR.cast_unsigned());
                (flags == wanted && resolve == 0).then_some(open)
            }
            _ => None,
        }
    }

    /// What `path` leads to, if its last name can be that of a node: only named
    /// (O_PATH), not opened.
    pub(crate) fn leads_to(&self, thread: &Thread, path: &[u8]) -> Option<OwnedFd> {
        let last = path.rsplit(|byte| *byte == b'/').next()?;
        if !can_be_node(last) {
            return None;
        }
        let full = match (path.first(), self.directory) {
            (Some(b'/'), _) => path.to_vec(),
            (_, libc::AT_FDCWD) => join(thread.own_link("cwd").ok()?, path),
            (_, directory) => join(thread.link(directory).ok()?, path),
        };
        let root = thread.root().ok()?;
        let nofollow = u64::from(libc::O_NOFOLLOW.cast_unsigned()) & self.flags != 0;
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, nofollow);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::CACHED;
        // Only what the kernel has at hand: a file server may be a process of
        // this very session. A mount made meanwhile anywhere is no answer.
        let found = (0..16).find_map(|_| {
            match rustix::fs::openat2(&root, full.as_slice(), flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => None,
                answer => Some(answer),
            }
        });
        found?.ok()
    }

    /// Opens `place`, which [`leads_to`](Self::leads_to) found, as the kernel
    /// would do it for the client.
    pub(crate) fn open(&self, place: &OwnedFd) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(place));
        let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
        let nonblock = u64::from(libc::O_NONBLOCK.cast_unsigned()) & self.flags != 0;
        flags.set(OFlags::NONBLOCK, nonblock);
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }
}

fn join(mut directory: Vec<u8>, path: &[u8]) -> Vec<u8> {
    directory.push(b'/');
    directory.extend_from_slice(path);
    directory
}

/// Whether a name can be that of a node: vfio, iommu, vfioN, N or noiommu-N.
fn can_be_node(name: &[u8]) -> bool {
    let number = name.strip_prefix(b"vfio").unwrap_or(name);
    let number = number.strip_prefix(b"noiommu-").unwrap_or(number);
    name == b"iommu" || name == b"vfio" || {
        (1..=10).contains(&number.len()) && number.iter().all(u8::is_ascii_digit)
    }
}

/// Whether a node is opened at once. A device's own node stays the character
/// device that programs expect it to be, until its first call.
pub(crate) fn is_opened_at_once(node: Node) -> bool {
    !matches!(node, Node::Device(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thread::see;

    #[test]
    fn most_names_are_no_nodes() {
        for name in ["vfio", "iommu", "0", "42", "vfio0", "vfio17", "noiommu-3"] {
            assert!(can_be_node(name.as_bytes()), "{name}");
        }
        for name in ["", "null", "vfiox", "1a", "12345678901", "iommu0"] {
            assert!(!can_be_node(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_path_is_resolved_from_the_callers_directory() {
        let id = rustix::thread::gettid().as_raw_pid().cast_unsigned();
        let thread = crate::thread::Threads::default().get(id, || true).unwrap();
        let directory = std::env::temp_dir().join(format!("iogate-open-{id}"));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("42"), "").unwrap();
        let expected = see(rustix::fs::CWD, directory.join("42")).unwrap();
        let handle = std::fs::File::open(&directory).unwrap();
        let open = |directory| Open {
            directory,
            path: 0,
            flags: 2,
        };
        let number = std::os::fd::AsRawFd::as_raw_fd(&handle);
        let absolute = directory.join("42");
        let absolute = absolute.to_str().unwrap().as_bytes();
        let leads_to = |directory, path| {
            let found = open(directory).leads_to(&thread, path)?;
            assert_eq!(
                see(open(directory).open(&found).unwrap(), "").unwrap(),
                expected
            );
            see(found, "").ok()
        };
        assert_eq!(leads_to(number, b"42"), Some(expected));
        assert_eq!(leads_to(number, b"./42"), Some(expected));
        assert_eq!(leads_to(libc::AT_FDCWD, absolute), Some(expected));
        assert_eq!(leads_to(number, b"43"), None);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
