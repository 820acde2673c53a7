//! The map from path to node, and how paths are looked up in it.
use crate::{
    DEVICES, FunctionFacts, HostPci, Presence, drivers, function, groups, mediated, overlay,
};
use iogate_machine::{FunctionEntry, Machine};
use std::collections::{BTreeMap, BTreeSet};

/// What stands at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    /// A directory.
    Directory,
    /// A symbolic link.
    Link {
        /// Its text; relative, as sysfs makes links.
        target: String,
    },
    /// A regular file.
    File {
        /// What reading gives.
        content: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
}

/// What the tree says that neither the machine nor its devices know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Major and minor number in the `dev` files of VFIO's own nodes. Programs
    /// compare it with the number of the node that they open.
    pub node_number: (u32, u32),
    /// CPUs of the machine, which are all near every device.
    pub cpus: u32,
}

impl Default for Settings {
    /// The number of `/dev/null`, which is what a node is a mount of; one CPU.
    fn default() -> Self {
        Self {
            node_number: (1, 3),
            cpus: 1,
        }
    }
}

/// Every path that a machine adds to sysfs, absolute, with the directories
/// above it from `/sys` on; and links in `/dev/vfio` to the nodes of virtual
/// functions that are there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    pub(crate) drivers: BTreeSet<String>,
}

impl Tree {
    /// Builds the tree. `facts` is asked once for every device function, in
    /// order, but not for mediated devices, which are none; bridges show what [`iogate_pci::topology::bridge_config`] says.
    pub fn new(
        machine: &Machine,
        settings: Settings,
        mut facts: impl FnMut(&FunctionEntry) -> FunctionFacts,
    ) -> Self {
        let mut tree = Self {
            nodes: BTreeMap::new(),
            drivers: BTreeSet::new(),
        };
        drivers::modules(&mut tree, machine);
        drivers::bus(&mut tree);
        mediated::bus(&mut tree, machine);
        let mut all = Vec::new();
        for (index, entry) in machine.functions().iter().enumerate() {
            let device = entry.device();
            if let Some(device) = device
                && let Some(uuid) = &device.mediated
            {
                mediated::add(&mut tree, device, uuid, &settings);
                all.push(FunctionFacts::of_bridge(entry));
                continue;
            }
            let facts = match device {
                Some(_) => facts(entry),
                None => FunctionFacts::of_bridge(entry),
            };
            if facts.presence != Presence::Absent {
                function::add(&mut tree, machine, index, entry, &facts, &settings);
            }
            all.push(facts);
        }
        groups::add(&mut tree, machine, &settings, &all);
        tree
    }

    /// Every path with its node; a directory stands before what is in it.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// What stands at exactly this path: absolute, without `.`, `..` or links
    /// on the way. See [`resolve`](Self::resolve) for others.
    pub fn node(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// The names in a directory with their nodes, in order; empty if there is
    /// no such directory.
    pub fn list<'a>(&'a self, directory: &str) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let prefix = format!("{directory}/");
        let length = prefix.len();
        self.nodes
            .range(prefix.clone()..)
            .take_while(move |(path, _)| path.starts_with(&prefix))
            .filter_map(move |(path, node)| Some((path.get(length..)?, node)))
            .filter(|(name, _)| !name.contains('/'))
    }

    /// The path that an absolute path leads to, links followed (the last
    /// component's only if `follow_last`); `None` if nothing of the tree stands
    /// there.
    pub fn resolve(&self, path: &str, follow_last: bool) -> Option<&str> {
        /// Linux include/linux/namei.h `MAXSYMLINKS`.
        const MAX_LINKS: usize = 40;
        let mut rest: Vec<String> = reversed(path.strip_prefix('/')?);
        let mut at = String::new();
        let mut links = 0usize;
        while let Some(name) = rest.pop() {
            if name == ".." {
                at.truncate(at.rfind('/').unwrap_or(0));
                continue;
            }
            let next = format!("{at}/{name}");
            match self.nodes.get(&next)? {
                Node::Link { target } if follow_last || !rest.is_empty() => {
                    links = links.saturating_add(1);
                    if links > MAX_LINKS {
                        return None;
                    }
                    match target.strip_prefix('/') {
                        Some(absolute) => {
                            at.clear();
                            rest.extend(reversed(absolute));
                        }
                        None => rest.extend(reversed(target)),
                    }
                }
                Node::File { .. } | Node::Link { .. } if !rest.is_empty() => return None,
                _ => at = next,
            }
        }
        self.nodes.get_key_value(&at).map(|(path, _)| path.as_str())
    }

    /// The directories where the tree meets the machine's own sysfs, parents
    /// first; every other directory of the tree takes the place of what is
    /// there.
    pub fn overlays(&self, host: HostPci) -> Vec<overlay::Overlay> {
        overlay::overlays(self, host)
    }

    pub(crate) fn directory(&mut self, path: &str) {
        if path.is_empty() || self.nodes.contains_key(path) {
            return;
        }
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::Directory);
    }

    fn parents(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
    }

    /// A read-only file.
    pub(crate) fn file(&mut self, path: String, content: impl Into<Vec<u8>>) {
        self.file_with_mode(path, content, 0o444);
    }

    pub(crate) fn file_with_mode(&mut self, path: String, content: impl Into<Vec<u8>>, mode: u32) {
        self.parents(&path);
        let content = content.into();
        self.nodes.insert(path, Node::File { content, mode });
    }

    /// A file that is only written to.
    pub(crate) fn control(&mut self, path: String) {
        self.file_with_mode(path, "", 0o200);
    }

    /// A relative link outside of sysfs, in a directory that is there.
    pub(crate) fn link_outside(&mut self, path: String, to: &str) {
        let target = relative(&path, to);
        self.nodes.insert(path, Node::Link { target });
    }

    /// A relative link from one path to another.
    pub(crate) fn link(&mut self, path: String, to: &str) {
        self.parents(&path);
        let target = relative(&path, to);
        self.nodes.insert(path, Node::Link { target });
    }
}

/// The components of a path, last first, so that the next can be popped.
fn reversed(path: &str) -> Vec<String> {
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    names.rev().map(str::to_owned).collect()
}

/// The text of a link at `from` that leads to `to`, both absolute.
fn relative(from: &str, to: &str) -> String {
    let directory: Vec<&str> = from.split('/').collect();
    let directory = directory.split_last().map_or(&[][..], |(_, above)| above);
    let target: Vec<&str> = to.split('/').collect();
    let common = directory.iter().zip(&target).take_while(|(a, b)| a == b);
    let common = common.count();
    let up = directory.iter().skip(common).map(|_| "..");
    let down = target.iter().skip(common).copied();
    up.chain(down).collect::<Vec<_>>().join("/")
}

/// The directory of a function, links not followed: one directory for every
/// bridge above it.
pub(crate) fn function_path(machine: &Machine, index: usize) -> String {
    let functions = machine.functions();
    let device = functions.get(index).and_then(|entry| entry.device());
    if let Some((device, uuid)) = device.and_then(|one| Some((one, one.mediated.as_ref()?))) {
        return mediated::path(device, uuid);
    }
    let parent = |of: &usize| functions.get(*of).and_then(|f| f.placed.parent);
    let mut path: Vec<String> = std::iter::successors(Some(index), parent)
        .filter_map(|at| functions.get(at).map(|f| f.source().to_string()))
        .collect();
    let segment = functions.get(index).map_or(0, |f| f.source().segment);
    path.push(format!("pci{segment:04x}:00"));
    path.push(DEVICES.to_owned());
    path.reverse();
    path.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_up_and_down_again() {
        assert_eq!(relative("/a/b/link", "/a/c/d"), "../c/d");
        assert_eq!(relative("/a/link", "/a/b"), "b");
        assert_eq!(relative("/a/b/link", "/a"), "..");
        assert_eq!(relative("/a/b/c/link", "/x"), "../../../x");
    }

    #[test]
    fn resolving_follows_links_on_the_way_and_ends_in_loops() {
        let mut tree = Tree {
            nodes: BTreeMap::new(),
            drivers: BTreeSet::new(),
        };
        tree.file("/sys/a/b/file".into(), "x");
        tree.link("/sys/link".into(), "/sys/a/b");
        tree.link("/sys/loop".into(), "/sys/loop");
        assert_eq!(tree.resolve("/sys/link/file", true), Some("/sys/a/b/file"));
        assert_eq!(tree.resolve("/sys//./link/../b", true), Some("/sys/a/b"));
        assert_eq!(tree.resolve("/sys/link", false), Some("/sys/link"));
        assert_eq!(tree.resolve("/sys/link", true), Some("/sys/a/b"));
        assert_eq!(tree.resolve("/sys/loop", true), None);
        assert_eq!(tree.resolve("/sys/a/b/file/x", true), None);
        assert_eq!(tree.resolve("sys", true), None);
        assert_eq!(tree.resolve("/etc", true), None);
    }
}
