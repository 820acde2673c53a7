//! The second way of showing `/sys` and `/dev`, where no mounts can be made:
//! calls that name a path are noticed. What leads to something that the session
//! shows is answered from a directory that holds it as plain files; all else is
//! left to the kernel.
//!
//! | part | files |
//! |---|---|
//! | what there is | `shown`, `stage` |
//! | where a path leads | `walk` |
//! | which calls, and their answers | `call`, `answer` |
//!
//! # Limits
//!
//! The program is in the machine's own file system: it sees only by noticed
//! calls that something else is there. Not noticed are calls that change a
//! file's name, owner or mode, inotify and io_uring; a program is executed from
//! there by the real path only. An open with O_PATH gives an ordinary
//! descriptor, and none of a link. File systems that are served by a process or
//! over a network are not looked into for links. Processes that change their
//! root directory see the machine's own.

mod answer;
mod call;
mod enter;
mod shown;
mod stage;
mod walk;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use iogate_host::{FileId, Host, Node};
use iogate_sysfs::{HostPci, Tree};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::client::Calling;
use crate::guardian::Failed;
use crate::session::Session;
pub(crate) use answer::Answer;
pub(crate) use call::NOTICED;
pub(crate) use enter::enter;
use shown::Shown;
pub(crate) use stage::Stage;
use walk::{Found, Last, Links, Start, walk};

/// Puts what a session shows on its stage.
pub(crate) fn fill(stage: &Stage, session: &Session) -> Result<(), Failed> {
    stage.fill(&shown_by(session))
}

fn shown_by(session: &Session) -> Shown {
    let (tree, nodes) = (&session.tree, &session.nodes);
    Shown::of(tree, session.host_pci, nodes, &session.exe)
}

struct Beside {
    host_pci: HostPci,
    nodes: Vec<(String, Node)>,
    exe: PathBuf,
}

/// What path calls are answered from.
pub(crate) struct Paths {
    shown: RwLock<Arc<Shown>>,
    /// What is shown beside the tree, and how.
    beside: Beside,
    /// The stage, and its path.
    root: OwnedFd,
    prefix: Vec<u8>,
    machine: Machine,
    /// Files that were opened by a node: they pass for character devices.
    by_node: Mutex<HashSet<FileId>>,
}

impl Paths {
    pub(crate) fn new(stage: &Stage, session: &Session) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            shown: RwLock::new(Arc::new(shown_by(session))),
            beside: Beside {
                host_pci: session.host_pci,
                nodes: session.nodes.clone(),
                exe: session.exe.clone(),
            },
            root: rustix::fs::open(stage.path(), flags, Mode::empty())?,
            prefix: path_bytes(stage.path()),
            machine: Machine::new(),
            by_node: Mutex::default(),
        })
    }

    /// Shows `tree` from now on; what is on the stage changes elsewhere.
    pub(crate) fn show(&self, tree: &Tree) {
        let Beside {
            host_pci,
            nodes,
            exe,
        } = &self.beside;
        let next = Arc::new(Shown::of(tree, *host_pci, nodes, exe));
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    fn as_shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where `path` leads from `directory` of `client`: AT_FDCWD, or a
    /// descriptor.
    fn find(&self, client: &Calling<'_>, directory: i32, path: &[u8], last: Last) -> Found {
        // A process with another root sees nothing of the session.
        if client.own_link("root").ok().as_deref() != Some(b"/") {
            return Found::Native;
        }
        let start = if path.first() == Some(&b'/') {
            Some(Start {
                directory: Vec::new(),
                native: true,
            })
        } else {
            self.start(client, directory)
        };
        match start {
            Some(start) => walk(&self.as_shown(), &self.machine, start, path, last),
            None => Found::Native,
        }
    }

    /// Where a walk from `directory` begins; `None` if it is none.
    fn start(&self, client: &Calling<'_>, directory: i32) -> Option<Start> {
        let link = match directory {
            libc::AT_FDCWD => client.own_link("cwd"),
            directory => client.own_link(&format!("fd/{directory}")),
        };
        let link = link.ok().filter(|link| link.first() == Some(&b'/'))?;
        Some(match self.off_stage(&link) {
            Some(path) => Start {
                directory: path.to_vec(),
                native: false,
            },
            None => Start {
                directory: link,
                native: true,
            },
        })
    }

    /// What a path on the stage stands for; `None` for another.
    fn off_stage<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        match path.strip_prefix(self.prefix.as_slice())? {
            [] => Some(b"/"),
            rest => rest.starts_with(b"/").then_some(rest),
        }
    }

    /// Remembers that `file` was opened by a node.
    pub(crate) fn opened(&self, file: FileId, host: &Host) {
        let mut by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        by_node.retain(|file| host.kind(*file).is_some());
        by_node.insert(file);
    }

    fn is_by_node(&self, file: FileId) -> bool {
        let by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        by_node.contains(&file)
    }
}

fn path_bytes(path: &Path) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec()
}

/// The machine's own file system.
struct Machine {
    /// Mount points of file systems on which a look may wait, or that are not
    /// the same for every process.
    closed: Vec<Vec<u8>>,
}

impl Machine {
    fn new() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            closed: closed(&mounts),
        }
    }
}

/// The mount points below which nothing is looked at. proc_pid_mountinfo(5).
fn closed(mounts: &str) -> Vec<Vec<u8>> {
    const SERVED: [&str; 9] = [
        "fuse", "nfs", "cifs", "smb", "9p", "afs", "ceph", "autofs", "virtiofs",
    ];
    let mut closed = vec![b"/proc".to_vec()];
    for line in mounts.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        let kind = line.split(" - ").nth(1).unwrap_or_default();
        // Names with spaces stand there escaped, and are looked into.
        if point != "/" && SERVED.iter().any(|served| kind.starts_with(served)) {
            closed.push(point.as_bytes().to_vec());
        }
    }
    closed
}

impl Links for Machine {
    fn read(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlink(path, Vec::new())?.into_bytes())
    }

    fn is_closed(&self, path: &[u8]) -> bool {
        self.closed.iter().any(|point| point == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_may_keep_waiting_is_not_looked_into() {
        let mounts = "21 1 8:1 / / rw - 9p root rw\n\
                      22 21 0:5 / /home rw shared:1 - nfs4 host:/home rw\n\
                      23 21 0:6 / /mnt/a rw - fuse.sshfs x rw\n\
                      24 21 0:7 / /tmp rw - tmpfs x rw\n";
        let expected: [&[u8]; 3] = [b"/proc", b"/home", b"/mnt/a"];
        assert_eq!(closed(mounts), expected);
    }
}
