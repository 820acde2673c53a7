//! The tree as the program sees it, once the program runs: a directory that
//! can be changed.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use iogate_sysfs::{Change, Node, Tree};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use crate::thread::{Inode, see};

/// The tree, where it is.
pub(crate) struct Presented {
    /// The directory in which the tree's paths are found.
    root: OwnedFd,
    shown: Tree,
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Presented {
    /// What stands in the namespace of `process`, which is `tree`.
    pub(crate) fn of_process(process: u32, tree: Tree) -> io::Result<Self> {
        Self::at(format!("/proc/{process}/root"), tree)
    }

    /// What stands in the directory `path`, which is `tree`.
    pub(crate) fn at(path: impl AsRef<Path>, tree: Tree) -> io::Result<Self> {
        let path = path.as_ref();
        Ok(Self {
            root: rustix::fs::open(path, DIRECTORY, Mode::empty())?,
            shown: tree,
        })
    }

    /// The file at an absolute path.
    pub(crate) fn inode(&self, path: &str) -> io::Result<Inode> {
        let (directory, name) = self.directory_of(path)?;
        Ok(see(directory, name)?.inode)
    }

    /// Shows `next` from now on. Where a step fails, the others are made all
    /// the same, and the first error is returned.
    pub(crate) fn show(&mut self, next: Tree) -> io::Result<()> {
        let mut shown = Ok(());
        for change in self.shown.changes(&next) {
            let made = self.make(change);
            shown = shown.and(made);
        }
        self.shown = next;
        shown
    }

    /// Has the file at `path` read as it should, whatever a program has done
    /// to it: a shell truncates a file before it writes.
    pub(crate) fn restore(&self, path: &str) -> io::Result<()> {
        match self.shown.node(path) {
            Some(Node::File { content, .. }) => self.rewrite(path, content),
            _ => Ok(()),
        }
    }

    fn make(&self, change: Change<'_>) -> io::Result<()> {
        match change {
            Change::Remove { path, was } => {
                let (directory, name) = self.directory_of(path)?;
                let flags = match was {
                    Node::Directory => AtFlags::REMOVEDIR,
                    _ => AtFlags::empty(),
                };
                match rustix::fs::unlinkat(directory, name, flags) {
                    Err(rustix::io::Errno::NOENT) => Ok(()),
                    removed => Ok(removed?),
                }
            }
            Change::Make { path, node } => {
                let (directory, name) = self.directory_of(path)?;
                match node {
                    Node::Directory => {
                        let mode = Mode::from_raw_mode(0o755);
                        match rustix::fs::mkdirat(directory, name, mode) {
                            Err(rustix::io::Errno::EXIST) => Ok(()),
                            made => Ok(made?),
                        }
                    }
                    Node::Link { target } => {
                        Ok(rustix::fs::symlinkat(target.as_str(), directory, name)?)
                    }
                    Node::File { content, mode } => {
                        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                        let flags = flags | OFlags::WRONLY;
                        let mode = Mode::from_raw_mode(*mode);
                        let file = rustix::fs::openat(directory, name, flags, Mode::RUSR)?;
                        // Not by the open, which the umask has a say in.
                        rustix::fs::fchmod(&file, mode)?;
                        write_all(&file, content)
                    }
                }
            }
            Change::Rewrite { path, content } => self.rewrite(path, content),
        }
    }

    fn rewrite(&self, path: &str, content: &[u8]) -> io::Result<()> {
        let (directory, name) = self.directory_of(path)?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
        write_all(&file, content)?;
        let length = u64::try_from(content.len()).unwrap_or(u64::MAX);
        Ok(rustix::fs::ftruncate(&file, length)?)
    }

    /// The directory that a path is in, and its name there. No link is
    /// followed on the way: the program may have made one.
    fn directory_of<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p str)> {
        let (above, name) = path.rsplit_once('/').ok_or(io::ErrorKind::InvalidInput)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let directory = rustix::fs::openat2(&self.root, above, DIRECTORY, Mode::empty(), resolve)?;
        Ok((directory, name))
    }
}

fn write_all(file: &OwnedFd, content: &[u8]) -> io::Result<()> {
    let mut rest = content;
    let mut at = 0;
    while !rest.is_empty() {
        let written = rustix::io::pwrite(file, rest, at)?;
        rest = rest.get(written..).unwrap_or_default();
        at = at.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
    }
    Ok(())
}
