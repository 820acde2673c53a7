//! Where a path leads: to what the session shows, or to the machine's own.
//!
//! A walk goes component by component, as the kernel's does, but over both:
//! what the session shows first, the machine's file system where that has
//! nothing to say. path_resolution(7).

use rustix::io::Errno;

use super::shown::{Entry, Shown};

/// Links followed in one walk. Linux include/linux/namei.h `MAXSYMLINKS`.
const MOST_LINKS: usize = 40;

/// The machine's own links.
pub(super) trait Links {
    /// The text of the link at an absolute path; EINVAL if there is something
    /// else.
    fn read(&self, path: &[u8]) -> Result<Vec<u8>, Errno>;
    /// Whether a walk must not look below this directory: the kernel finds
    /// what is there by itself.
    fn is_closed(&self, path: &[u8]) -> bool;
}

/// Where a walk begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Start {
    /// An absolute path without links.
    pub(super) directory: Vec<u8>,
    /// Whether the kernel would begin there too.
    pub(super) native: bool,
}

/// Where a path leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// The kernel gets to the same, or to the same error.
    Native,
    /// To the machine's own, at this absolute path, but the kernel would not
    /// get there.
    Machine(Vec<u8>),
    /// To something that the session shows.
    Shown {
        /// Its path.
        path: String,
        /// Whether the kernel gets to what the machine has at the same path,
        /// if it has anything there.
        straight: bool,
    },
    /// The kernel's answer is this error.
    Error(Errno),
}

/// Whether a link at the very end is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Last {
    Followed,
    Itself,
}

/// Walks along `path`.
pub(super) fn walk(
    shown: &Shown,
    links: &impl Links,
    start: Start,
    path: &[u8],
    last: Last,
) -> Found {
    let must_be_directory = matches!(path.rsplit(|byte| *byte == b'/').next(), Some(b"" | b"."));
    let follows_last = last == Last::Followed || must_be_directory;
    let (mut at, mut native) = match path.first() {
        Some(b'/') => (Vec::new(), true),
        _ => (start.directory, start.native),
    };
    let mut straight = native;
    if at == b"/" {
        at.clear();
    }
    let mut rest = reversed(path);
    let mut count = 0_usize;
    while let Some(name) = rest.pop() {
        if name == b".." {
            let parent = at.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            at.truncate(parent);
            continue;
        }
        let mut next = at.clone();
        next.push(b'/');
        next.extend_from_slice(&name);
        let is_last = rest.is_empty();
        let target = match shown.entry(&next) {
            Some(Entry::Directory { is_both }) => {
                native &= *is_both;
                at = next;
                continue;
            }
            Some(Entry::Link { target }) => {
                (native, straight) = (false, false);
                (!is_last || follows_last).then(|| target.clone().into_bytes())
            }
            Some(_) if is_last && !must_be_directory => None,
            Some(_) => return Found::Error(Errno::NOTDIR),
            None if shown.is_closed(&at) => return Found::Error(Errno::NOENT),
            None if links.is_closed(&next) => return Found::Native,
            None if is_last && !follows_last => None,
            None => match links.read(&next) {
                Ok(target) => Some(target),
                Err(Errno::INVAL) => {
                    at = next;
                    continue;
                }
                Err(_) if native => return Found::Native,
                Err(error) if !is_last => return Found::Error(error),
                Err(_) => None,
            },
        };
        let Some(target) = target else {
            at = next;
            continue;
        };
        count = count.saturating_add(1);
        if count > MOST_LINKS {
            return Found::Error(Errno::LOOP);
        }
        if target.first() == Some(&b'/') {
            at.clear();
        }
        rest.extend(reversed(&target));
    }
    match std::str::from_utf8(&at) {
        Ok(path) if shown.entry(&at).is_some() => Found::Shown {
            path: path.to_owned(),
            straight,
        },
        _ if native => Found::Native,
        _ if at.is_empty() => Found::Machine(b"/".to_vec()),
        _ => Found::Machine(at),
    }
}

/// The components of a path, last first, so that the next can be popped.
fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/');
    let names = names.filter(|name| !matches!(*name, b"" | b"."));
    let mut names: Vec<_> = names.map(<[u8]>::to_vec).collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use iogate_host::Node;

    /// A machine with a few links of its own.
    struct Machine;

    impl Links for Machine {
        fn read(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
            match std::str::from_utf8(path).unwrap() {
                "/sys/class/net/eth0" => Ok(b"../../devices/pci0/net".to_vec()),
                "/sys/devices/pci0/subsystem" => Ok(b"../../bus/pci".to_vec()),
                "/home/groups" => Ok(b"/dev/vfio".to_vec()),
                "/home/loop" => Ok(b"loop".to_vec()),
                "/usr"
                | "/usr/lib"
                | "/home"
                | "/sys/class"
                | "/sys/class/net"
                | "/sys/devices/pci0"
                | "/sys/devices/pci0/net"
                | "/bin" => Err(Errno::INVAL),
                _ => Err(Errno::NOENT),
            }
        }

        fn is_closed(&self, path: &[u8]) -> bool {
            path == b"/proc"
        }
    }

    fn shown() -> Shown {
        let link = |target: &str| Entry::Link {
            target: target.to_owned(),
        };
        let both = Entry::Directory { is_both: true };
        let own = Entry::Directory { is_both: false };
        let file = Entry::File {
            content: Vec::new(),
            mode: 0o444,
        };
        let entries = [
            ("/sys", both.clone()),
            ("/sys/bus", both.clone()),
            ("/sys/class", both.clone()),
            ("/sys/devices", both.clone()),
            ("/sys/bus/pci", own.clone()),
            ("/sys/bus/pci/d", link("../../devices/iogate/d")),
            ("/sys/devices/iogate", own.clone()),
            ("/sys/devices/iogate/d", own.clone()),
            ("/sys/devices/iogate/d/config", file),
            ("/sys/devices/iogate/d/subsystem", link("../../../bus/pci")),
            ("/dev", both),
            ("/dev/vfio", own),
            ("/dev/vfio/7", Entry::Node(Node::Group(7))),
        ];
        let entries = entries.into_iter();
        Shown::new(entries.map(|(path, entry)| (path.to_owned(), entry)))
    }

    fn from(directory: &str, native: bool, path: &str, last: Last) -> Found {
        let start = Start {
            directory: directory.into(),
            native,
        };
        walk(&shown(), &Machine, start, path.as_bytes(), last)
    }

    fn at(path: &str) -> Found {
        from("/usr", true, path, Last::Followed)
    }

    fn linked(path: &str) -> Found {
        Found::Shown {
            path: path.to_owned(),
            straight: false,
        }
    }

    fn ours(path: &str) -> Found {
        Found::Shown {
            path: path.to_owned(),
            straight: true,
        }
    }

    fn machine(path: &str) -> Found {
        Found::Machine(path.into())
    }

    #[test]
    fn what_the_session_shows_is_found_through_its_links() {
        let config = linked("/sys/devices/iogate/d/config");
        assert_eq!(at("/sys/bus/pci/d/config"), config);
        assert_eq!(at("//sys/./bus/pci/d/../d/config"), config);
        assert_eq!(at("/sys/bus/pci/d/subsystem/d/config"), config);
        assert_eq!(at("/sys/bus/pci/d"), linked("/sys/devices/iogate/d"));
        assert_eq!(at("/sys/bus/pci/d/"), linked("/sys/devices/iogate/d"));
        let itself = from("/", true, "/sys/bus/pci/d", Last::Itself);
        assert_eq!(itself, linked("/sys/bus/pci/d"));
        let followed = from("/", true, "/sys/bus/pci/d/", Last::Itself);
        assert_eq!(followed, linked("/sys/devices/iogate/d"));
        assert_eq!(at("/dev/vfio/7"), ours("/dev/vfio/7"));
        assert_eq!(at("/sys"), ours("/sys"));
    }

    #[test]
    fn the_machines_own_is_left_to_the_kernel() {
        for path in [
            "/usr/lib/x",
            "/sys/class/net/eth0/y",
            "/sys/class/net",
            "/proc/self/fd/3",
            "lib",
            "/",
            "..",
            "/home/loop/z",
            "/nowhere/at/all",
        ] {
            assert!(
                matches!(at(path), Found::Native | Found::Error(Errno::LOOP)),
                "{path}"
            );
        }
    }

    #[test]
    fn the_machines_links_into_what_is_shown_are_followed() {
        assert_eq!(at("/home/groups/7"), ours("/dev/vfio/7"));
        let bus = from("/sys/class/net", true, "eth0/../subsystem", Last::Followed);
        assert_eq!(bus, ours("/sys/bus/pci"));
    }

    #[test]
    fn what_is_hidden_is_not_there() {
        assert_eq!(at("/sys/bus/pci/0000:00:00.0"), Found::Error(Errno::NOENT));
        assert_eq!(at("/dev/vfio/7/x"), Found::Error(Errno::NOTDIR));
        assert_eq!(at("/dev/vfio/7/"), Found::Error(Errno::NOTDIR));
    }

    #[test]
    fn from_a_directory_of_ours_the_machines_own_is_named_in_full() {
        let net = |path| from("/sys/class", false, path, Last::Followed);
        assert_eq!(net("net"), machine("/sys/class/net"));
        assert_eq!(net("net/eth0"), machine("/sys/devices/pci0/net"));
        assert_eq!(net("net/nothing"), machine("/sys/class/net/nothing"));
        assert_eq!(net("nothing/x"), Found::Error(Errno::NOENT));
        assert_eq!(net("../../usr/lib"), machine("/usr/lib"));
        assert_eq!(net("../.."), machine("/"));
        assert_eq!(net("/usr/lib"), Found::Native);
        let link = from("/sys/class", false, "net/eth0", Last::Itself);
        assert_eq!(link, machine("/sys/class/net/eth0"));
        assert_eq!(
            at("/sys/bus/pci/../../class/net"),
            machine("/sys/class/net")
        );
    }
}
