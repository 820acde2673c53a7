//! What a run consists of, and what can keep it from starting.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use iogate_dma::FaultSink;
use iogate_host::{Host, Node};
use iogate_memory::ClientMemory;
use iogate_sysfs::{HostPci, Tree};
use iogate_uapi::Attribute;

pub use crate::filter::Unmapping;
use crate::{Straggler, User};

/// A program, and the machine that it is to find.
pub struct Session {
    /// The object model: its devices get a worker each.
    pub host: Arc<Host>,
    /// The memory that the host's configuration names.
    pub memory: Arc<ClientMemory>,
    /// Who is told of refused accesses.
    pub faults: Arc<dyn FaultSink>,
    /// What is added to `/sys`.
    pub tree: Tree,
    /// Whether the machine's own PCI functions are shown too.
    pub host_pci: HostPci,
    /// The device nodes: paths below `/dev`, and what they open.
    pub nodes: Vec<(String, Node)>,
    /// Files in `/sys` whose writes do something.
    pub attributes: Option<Attributes>,
    /// Whose the program and what it finds are, if not of who runs us.
    pub user: Option<User>,
    /// The program: a path, or a name to be found in PATH.
    pub program: OsString,
    /// Its arguments, without its own name.
    pub arguments: Vec<OsString>,
    /// The iogate program, to be found in the program's PATH.
    pub exe: PathBuf,
    /// Whether the program's munmap and the like are noticed.
    pub unmapping: Unmapping,
}

/// Files in `/sys` whose writes do something.
pub struct Attributes {
    /// Their paths in the tree, and what is written there.
    pub files: Vec<(String, Attribute)>,
    /// What is to be shown from now on, asked after each write.
    pub tree: Box<dyn Fn() -> Tree + Send + Sync>,
}

/// How the program itself ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// It exited with this code, 0-255.
    Exited(u8),
    /// This signal killed it.
    Signalled(i32),
}

impl Status {
    /// From the status that wait(2) gives.
    pub(crate) fn from_wait(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            return Self::Signalled(libc::WTERMSIG(status));
        }
        let [code, ..] = libc::WEXITSTATUS(status).to_le_bytes();
        Self::Exited(code)
    }
}

/// A run that is over: no process of it is left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The program's process id.
    pub process: u32,
    /// How the program ended.
    pub status: Status,
    /// The processes that were waited for after the program had ended.
    pub stragglers: Vec<Straggler>,
}

/// Why a program did not run, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program or an argument holds a NUL byte.
    #[error("the program's name and arguments cannot hold a NUL byte")]
    Nul,
    /// There is no such program.
    #[error("{program}: {source}")]
    NotFound {
        /// Its name.
        program: String,
        /// What exec said.
        source: io::Error,
    },
    /// The program cannot be executed.
    #[error("{program}: {source}")]
    NotExecutable {
        /// Its name.
        program: String,
        /// What exec said.
        source: io::Error,
    },
    /// The machine does not let us do something that a session needs.
    #[error("cannot {step}: {source}; `iogate doctor` says more")]
    Step {
        /// What was tried.
        step: String,
        /// What came of it.
        source: io::Error,
    },
    /// The session broke; its processes were ended.
    #[error("the session broke and its processes were ended: {0}")]
    Broken(&'static str),
}

impl StartError {
    /// The exit code that a shell would give: 127, 126, or 125.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            _ => 125,
        }
    }

    pub(crate) fn step(step: &str) -> impl FnOnce(io::Error) -> Self {
        let step = step.to_owned();
        move |source| Self::Step { step, source }
    }
}
