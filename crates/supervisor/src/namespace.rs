//! The program's own view of `/dev` and `/sys`: a private mount namespace in
//! which both are a thin directory that shows the machine's own entries by
//! bind mounts, and ours beside them.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use iogate_sysfs::{Clash, HostPci, Tree};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change,
    move_mount, open_tree,
};

use crate::guardian::Failed;
use crate::thread::see;

/// The directory that is added to the program's PATH.
pub(crate) const BIN: &str = "/dev/iogate/bin";
/// Stands in a session only.
pub(crate) const SESSION: &str = "/dev/iogate/session";

/// Whether this process runs under `iogate run`.
pub fn inside_session() -> bool {
    Path::new(SESSION).exists()
}

/// Names in `/dev` that are ours, whatever the machine has there.
const OURS: [&str; 3] = ["vfio", "iommu", "iogate"];

/// What the view consists of.
pub(crate) struct View<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) host_pci: HostPci,
    /// Paths below `/dev`, each to become a mount of its own.
    pub(crate) nodes: Vec<&'a str>,
    /// The iogate program.
    pub(crate) exe: &'a Path,
    /// User and group whose it is, if not those of this process.
    pub(crate) owner: Option<(u32, u32)>,
}

/// Moves this process into a mount namespace of its own, by a user namespace
/// of its own where nothing else gives the right.
pub(crate) fn separate() -> Result<(), Failed> {
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    let unshare = |flags| {
        // SAFETY: unshare takes plain flags; this process has one thread and
        // shares no descriptors with another.
        match unsafe { libc::unshare(flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    if !user.is_root() || unshare(libc::CLONE_NEWNS).is_err() {
        unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
            .map_err(Failed::at("create a user and a mount namespace"))?;
        // Without this an ordinary user may not map its group.
        let _ = std::fs::write("/proc/self/setgroups", "deny");
        let map = |file: &str, id: u32| {
            std::fs::write(file, format!("{id} {id} 1"))
                .map_err(Failed::at(format!("write {file}")))
        };
        map("/proc/self/uid_map", user.as_raw())?;
        map("/proc/self/gid_map", group.as_raw())?;
    }
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).map_err(failed("make mounts private, from", "/"))
}

fn failed(what: &str, path: &str) -> impl FnOnce(rustix::io::Errno) -> Failed + use<> {
    let step = format!("{what} {path}");
    |errno| Failed {
        step,
        error: errno.into(),
    }
}

impl View<'_> {
    /// Builds the view. Returns the mount ids of the nodes, in their order.
    pub(crate) fn build(&self) -> Result<Vec<u64>, Failed> {
        // Modes are meant as they are given.
        let mask = rustix::process::umask(Mode::from_raw_mode(0o022));
        let built = self.sys().and_then(|()| self.dev());
        rustix::process::umask(mask);
        let nodes = built?;
        // A working directory below /dev or /sys is not that of the view.
        if let Ok(here) = std::env::current_dir() {
            let _ = std::env::set_current_dir(here);
        }
        Ok(nodes)
    }

    fn sys(&self) -> Result<(), Failed> {
        let (below, cover) = cover("/sys", self.owner)?;
        let overlays = self.tree.overlays(self.host_pci);
        let merge = Merge {
            tree: self.tree,
            both: overlays
                .iter()
                .map(|overlay| overlay.path.as_str())
                .collect(),
            exclusive: overlays
                .iter()
                .filter(|overlay| overlay.clash == Clash::IsAnError)
                .map(|overlay| overlay.path.as_str())
                .collect(),
        };
        merge.directory("/sys", Some(&below), &cover)
    }

    fn dev(&self) -> Result<Vec<u64>, Failed> {
        let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("open", "/dev/null"))?;
        // Now: what is mounted over it would be copied too.
        let whole = clone(CWD, "/dev").map_err(failed("clone", "/dev"))?;
        let (below, cover) = cover("/dev", self.owner)?;
        for (name, kind) in entries(&below).map_err(failed("list", "/dev"))? {
            if name == "ptmx" && kind == FileType::CharacterDevice {
                ptmx(&whole, &cover).map_err(failed("show", "/dev/ptmx"))?;
            } else if !OURS.contains(&name.as_str()) {
                bind(&below, (&name, kind), &cover).map_err(failed("bind", &name))?;
            }
        }
        let make = |path: &str| std::fs::create_dir_all(path).map_err(Failed::at(path));
        make(BIN)?;
        std::fs::write(SESSION, "").map_err(Failed::at(SESSION))?;
        let link = format!("{BIN}/iogate");
        std::os::unix::fs::symlink(self.exe, &link).map_err(Failed::at(link))?;
        make("/dev/vfio/devices")?;
        for path in &self.nodes {
            if let Some(above) = Path::new(path).parent() {
                std::fs::create_dir_all(above).map_err(Failed::at(*path))?;
            }
            std::fs::write(path, "").map_err(Failed::at(*path))?;
            attach(&null, "", CWD, path).map_err(failed("mount", path))?;
        }
        // A mount keeps its id: these are those that the program will see.
        let id = |path: &&str| Ok(see(CWD, *path).map_err(Failed::at(*path))?.mount);
        self.nodes.iter().map(id).collect()
    }
}

/// Shows `/dev/ptmx`. It makes a terminal of the devpts that lies next to it in
/// the same mount (fs/devpts/inode.c, path_pts), so that a mount of its own
/// would not do. Where the devpts has none that all may use, the machine's is
/// used in a copy of its whole directory.
fn ptmx(whole: &OwnedFd, cover: &OwnedFd) -> rustix::io::Result<()> {
    const FOR_ALL: u32 = 0o006;
    let own = rustix::fs::statat(whole, "pts/ptmx", AtFlags::empty());
    if own.is_ok_and(|stat| stat.st_mode & FOR_ALL == FOR_ALL) {
        return rustix::fs::symlinkat("pts/ptmx", cover, "ptmx");
    }
    for directory in ["iogate", "iogate/dev"] {
        match rustix::fs::mkdirat(cover, directory, Mode::from_raw_mode(0o755)) {
            Err(rustix::io::Errno::EXIST) => {}
            made => made?,
        }
    }
    place(whole, cover, "iogate/dev")?;
    rustix::fs::symlinkat("iogate/dev/ptmx", cover, "ptmx")
}

/// Attempts what [`View::build`] does.
pub(crate) fn try_mounts() -> Result<(), Failed> {
    let (below, cover) = cover("/dev", None)?;
    bind(&below, ("null", FileType::CharacterDevice), &cover).map_err(failed("bind", "/dev/null"))
}

/// Mounts an empty directory over `path`. Returns what is below and what is
/// above.
fn cover(path: &str, owner: Option<(u32, u32)>) -> Result<(OwnedFd, OwnedFd), Failed> {
    let open = || rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(failed("open", path));
    let below = open()?;
    let mut options = "mode=0755".to_owned();
    if let Some((user, group)) = owner {
        options.push_str(&format!(",uid={user},gid={group}"));
    }
    let options = CString::new(options).unwrap_or_default();
    mount(
        "iogate",
        path,
        "tmpfs",
        MountFlags::NOSUID,
        options.as_c_str(),
    )
    .map_err(failed("mount a tmpfs over", path))?;
    Ok((below, open()?))
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// The entries of a directory: names, and what they are.
fn entries(directory: &OwnedFd) -> rustix::io::Result<Vec<(String, FileType)>> {
    let mut entries = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        // Names that are no UTF-8 are none of /dev or /sys.
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            entries.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(entries)
}

/// Shows entry `name` of `below` in `cover` too. One that has gone meanwhile is
/// left out.
fn bind(
    below: &OwnedFd,
    (name, kind): (&str, FileType),
    cover: &OwnedFd,
) -> rustix::io::Result<()> {
    if kind == FileType::Symlink {
        let target = rustix::fs::readlinkat(below, name, Vec::new())?;
        return rustix::fs::symlinkat(target, cover, name);
    }
    let tree = match clone(below, name) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        tree => tree?,
    };
    if kind == FileType::Directory {
        rustix::fs::mkdirat(cover, name, Mode::from_raw_mode(0o755))?;
    } else {
        let mode = Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(cover, name, FileType::RegularFile, mode, 0)?;
    }
    place(tree, cover, name)
}

/// What stands at `name` of `from` as a mount that is nowhere yet.
fn clone(from: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::AT_NO_AUTOMOUNT
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(from, name, flags)
}

/// Mounts what stands at `name` of `from` at `target` of `to` too.
fn attach(from: impl AsFd, name: &str, to: impl AsFd, target: &str) -> rustix::io::Result<()> {
    place(clone(from, name)?, to, target)
}

/// Mounts what [`clone`] has made.
fn place(tree: impl AsFd, to: impl AsFd, target: &str) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, "", to, target, flags)
}

/// What stands at `name`, in words; `None` if nothing does.
fn describe(directory: &OwnedFd, name: &str) -> Option<String> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let link = rustix::fs::readlinkat(directory, name, Vec::new());
    Some(link.map_or_else(
        |_| "a directory".to_owned(),
        |target| target.to_string_lossy().into_owned(),
    ))
}

/// The session and the machine have something of their own at `path`.
pub(crate) fn clash(path: &str, ours: &str, theirs: &str) -> Failed {
    Failed {
        step: format!(
            "show both the session's {path} ({ours}) and the machine's own there ({theirs}); \
             give the session's functions another segment in a machine file \
             (at = \"0001:01:00.0\") or another group"
        ),
        error: io::Error::from_raw_os_error(libc::EEXIST),
    }
}

/// The tree laid over what the machine has.
struct Merge<'a> {
    tree: &'a Tree,
    /// Directories that show both.
    both: BTreeSet<&'a str>,
    /// Those of them in which no name may be the machine's and ours.
    exclusive: BTreeSet<&'a str>,
}

impl Merge<'_> {
    /// Fills `cover`, the directory at `path`, with what the machine has
    /// `below`, and with what the tree has.
    fn directory(
        &self,
        path: &str,
        below: Option<&OwnedFd>,
        cover: &OwnedFd,
    ) -> Result<(), Failed> {
        let mut taken = BTreeSet::new();
        for (name, node) in self.tree.list(path) {
            taken.insert(name);
            let child = format!("{path}/{name}");
            let shows_both = self.both.contains(child.as_str());
            if !shows_both
                && self.exclusive.contains(path)
                && let Some(theirs) = below.and_then(|below| describe(below, name))
            {
                let ours = match node {
                    iogate_sysfs::Node::Link { target } => target,
                    _ => &child,
                };
                return Err(clash(&child, ours, &theirs));
            }
            let made = self
                .make(cover, name, node)
                .map_err(failed("make", &child))?;
            if let Some(made) = made {
                let theirs = below.filter(|_| shows_both).and_then(|below| {
                    rustix::fs::openat(below, name, DIRECTORY, Mode::empty()).ok()
                });
                self.directory(&child, theirs.as_ref(), &made)?;
            }
        }
        let Some(below) = below else {
            return Ok(());
        };
        for (name, kind) in entries(below).map_err(failed("list", path))? {
            if !taken.contains(name.as_str()) {
                let step = failed("bind", &format!("{path}/{name}"));
                bind(below, (&name, kind), cover).map_err(step)?;
            }
        }
        Ok(())
    }

    /// Makes an entry of ours; returns it if it is a directory.
    fn make(
        &self,
        cover: &OwnedFd,
        name: &str,
        node: &iogate_sysfs::Node,
    ) -> rustix::io::Result<Option<OwnedFd>> {
        match node {
            iogate_sysfs::Node::Directory => {
                rustix::fs::mkdirat(cover, name, Mode::from_raw_mode(0o755))?;
                rustix::fs::openat(cover, name, DIRECTORY, Mode::empty()).map(Some)
            }
            iogate_sysfs::Node::Link { target } => {
                rustix::fs::symlinkat(target.as_str(), cover, name)?;
                Ok(None)
            }
            iogate_sysfs::Node::File { content, mode } => {
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(*mode);
                let file = rustix::fs::openat(cover, name, flags, mode)?;
                let mut rest = content.as_slice();
                while !rest.is_empty() {
                    let written = rustix::io::write(&file, rest)?;
                    rest = rest.get(written..).unwrap_or_default();
                }
                Ok(None)
            }
        }
    }
}
