//! What the program is to find: every path that is not the machine's own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use iogate_host::Node;
use iogate_sysfs::{Clash, HostPci, Tree};

use crate::namespace::{BIN, SESSION};

/// What stands at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// A directory.
    Directory {
        /// Whether it shows what the machine has there too.
        is_both: bool,
    },
    /// A symbolic link with this text.
    Link { target: String },
    /// A file.
    File { content: Vec<u8>, mode: u32 },
    /// A device node.
    Node(Node),
}

/// Every path, absolute and without links, a directory before what is in it.
#[derive(Clone, Default, Debug)]
pub(super) struct Shown {
    entries: BTreeMap<String, Entry>,
    /// Directories in which no name may be the machine's and ours.
    exclusive: BTreeSet<String>,
}

impl Shown {
    pub(super) fn new(entries: impl IntoIterator<Item = (String, Entry)>) -> Self {
        Self {
            entries: entries.into_iter().collect(),
            exclusive: BTreeSet::new(),
        }
    }

    /// A session's `/sys` and `/dev`.
    pub(super) fn of(tree: &Tree, host_pci: HostPci, nodes: &[(String, Node)], exe: &Path) -> Self {
        let overlays = tree.overlays(host_pci);
        let is_both = |path: &str| overlays.iter().any(|overlay| overlay.path == path);
        let mut shown = Self::new(tree.entries().map(|(path, node)| {
            let entry = match node {
                iogate_sysfs::Node::Directory => Entry::Directory {
                    is_both: is_both(path),
                },
                iogate_sysfs::Node::Link { target } => Entry::Link {
                    target: target.clone(),
                },
                iogate_sysfs::Node::File { content, mode } => Entry::File {
                    content: content.clone(),
                    mode: *mode,
                },
            };
            (path.to_owned(), entry)
        }));
        let errors = overlays.iter().filter(|o| o.clash == Clash::IsAnError);
        shown.exclusive = errors.map(|overlay| overlay.path.clone()).collect();
        shown.add("/dev", Entry::Directory { is_both: true });
        let directory = Entry::Directory { is_both: false };
        for path in ["/dev/vfio", "/dev/vfio/devices", "/dev/iogate", BIN] {
            shown.add(path, directory.clone());
        }
        for (path, node) in nodes {
            shown.add(path, Entry::Node(*node));
        }
        let file = Entry::File {
            content: Vec::new(),
            mode: 0o644,
        };
        shown.add(SESSION, file);
        let target = exe.to_string_lossy().into_owned();
        shown.add(&format!("{BIN}/iogate"), Entry::Link { target });
        shown
    }

    fn add(&mut self, path: &str, entry: Entry) {
        self.entries.insert(path.to_owned(), entry);
    }

    /// What stands at `path`.
    pub(super) fn entry(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.get(std::str::from_utf8(path).ok()?)
    }

    /// Whether `path` is a directory in which nothing is the machine's.
    pub(super) fn is_closed(&self, path: &[u8]) -> bool {
        matches!(self.entry(path), Some(Entry::Directory { is_both: false }))
    }

    /// Whether a name in the directory `path` may not be the machine's too.
    pub(super) fn is_exclusive(&self, path: &str) -> bool {
        self.exclusive.contains(path)
    }

    /// All entries, a directory before what is in it.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .map(|(path, entry)| (path.as_str(), entry))
    }
}
