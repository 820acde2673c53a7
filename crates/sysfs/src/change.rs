//! What becomes of one tree when functions come or go.
use crate::tree::{Node, Tree};

/// One step from a tree to another. In the order in which
/// [`Tree::changes`] gives them, each can be made as it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change<'t> {
    /// What stands at this path goes; a directory is empty by then.
    Remove {
        /// Absolute.
        path: &'t str,
        /// What it was.
        was: &'t Node,
    },
    /// This comes to stand at a path where nothing is.
    Make {
        /// Absolute; the directory above is there.
        path: &'t str,
        /// What it is.
        node: &'t Node,
    },
    /// A file stays and reads differently.
    Rewrite {
        /// Absolute.
        path: &'t str,
        /// What reading gives from now on.
        content: &'t [u8],
    },
}

impl Tree {
    /// The steps from this tree to `next`.
    pub fn changes<'t>(&'t self, next: &'t Self) -> Vec<Change<'t>> {
        let stays = |node: &Node, other: Option<&Node>| match (node, other) {
            (Node::File { .. }, Some(Node::File { .. })) => true,
            (node, other) => Some(node) == other,
        };
        let mut changes = Vec::new();
        let mut old: Vec<_> = self.entries().collect();
        old.reverse();
        for (path, was) in old {
            if !stays(was, next.node(path)) {
                changes.push(Change::Remove { path, was });
            }
        }
        for (path, node) in next.entries() {
            let before = self.node(path).filter(|before| stays(before, Some(node)));
            match (before, node) {
                (None, node) => changes.push(Change::Make { path, node }),
                (Some(Node::File { content: old, .. }), Node::File { content, .. })
                    if old != content =>
                {
                    changes.push(Change::Rewrite { path, content });
                }
                _ => {}
            }
        }
        changes
    }
}
