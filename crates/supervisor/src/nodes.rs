//! Our nodes: which open files and paths are one of them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use iogate_host::Node;

use crate::thread::{Inode, Seen, Thread, see};

/// Every node, by the mount that it is.
pub(crate) struct Nodes {
    by_mount: HashMap<u64, Node>,
    by_path: Vec<(String, Node)>,
    /// What every node is a mount of.
    null: Option<Inode>,
    /// Copies of the mounts, which the program has made: mount namespaces of
    /// its own. Nodes that are none, too.
    copies: Mutex<HashMap<u64, Option<Node>>>,
}

/// Copies remembered.
const MOST_COPIES: usize = 4096;

impl Nodes {
    /// The nodes with their paths, and the ids of their mounts in that order.
    pub(crate) fn new(nodes: Vec<(String, Node)>, mounts: &[u64]) -> Self {
        let ids = mounts.iter().copied();
        Self {
            by_mount: ids.zip(nodes.iter().map(|(_, node)| *node)).collect(),
            by_path: nodes,
            null: see(rustix::fs::CWD, "/dev/null")
                .ok()
                .map(|seen| seen.inode),
            copies: Mutex::default(),
        }
    }

    /// The node that `seen`, an open file or a path of `thread`, is.
    pub(crate) fn node(&self, seen: Seen, thread: &Thread) -> Option<Node> {
        if let Some(node) = self.by_mount.get(&seen.mount) {
            return Some(*node);
        }
        if Some(seen.inode) != self.null {
            return None;
        }
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if copies.len() >= MOST_COPIES {
            copies.clear();
        }
        *copies.entry(seen.mount).or_insert_with(|| {
            let mounts = thread.text("mountinfo").ok()?;
            self.copy(&mounts, seen.mount)
        })
    }

    /// The node that mount `id` of a `mountinfo` text is a copy of. Only its
    /// own mount of `/dev/null` has a node's path.
    fn copy(&self, mounts: &str, id: u64) -> Option<Node> {
        let id = id.to_string();
        let mut lines = mounts.lines().map(|line| line.split(' '));
        let mut fields = lines.find(|fields| fields.clone().next() == Some(&id))?;
        let root = fields.nth(3)?;
        let point = Path::new(fields.next()?);
        let paths = self.by_path.iter().filter(|_| root.ends_with("/null"));
        let mut found = paths.filter(|(path, _)| point.ends_with(path.trim_start_matches('/')));
        found.next().map(|(_, node)| *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_mount_is_known_by_where_it_stands() {
        let nodes = vec![
            ("/dev/vfio/vfio".to_owned(), Node::Container),
            ("/dev/vfio/7".to_owned(), Node::Group(7)),
        ];
        let nodes = Nodes::new(nodes, &[11, 12]);
        let text = "21 20 0:5 / /newroot/dev rw - tmpfs iogate rw\n\
                    22 21 0:6 /null /newroot/dev/vfio/7 rw shared:3 - devtmpfs dev rw\n\
                    23 21 0:6 /null /newroot/dev/null rw - devtmpfs dev rw\n\
                    24 21 0:6 /zero /newroot/dev/vfio/vfio rw - devtmpfs dev rw\n";
        assert_eq!(nodes.copy(text, 22), Some(Node::Group(7)));
        for other in [2, 20, 21, 23, 24] {
            assert_eq!(nodes.copy(text, other), None);
        }
    }
}
