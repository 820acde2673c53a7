//! Where cases run, and as whom: a directory that the person can enter, with copies of the programs.
//! It is removed at the end, also after a failure or Ctrl-C.

use std::cell::Cell;
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environment::Environment;
use crate::process::User;
use crate::verdict::{About as _, Stop};

/// An id that no distribution gives to anyone.
const UNPRIVILEGED: libc::uid_t = 61_234;

/// As whom a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Person {
    Root,
    /// A user without any capability.
    Ordinary,
}

impl Person {
    /// Both, in the order in which cases are listed.
    pub(crate) const ALL: [Self; 2] = [Self::Root, Self::Ordinary];
}

impl fmt::Display for Person {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Root => "root",
            Self::Ordinary => "ordinary",
        })
    }
}

/// A person's directory.
pub(crate) struct Place {
    directory: PathBuf,
    person: Person,
    /// What surrounds what is run here from now on.
    pub(crate) environment: Cell<Option<Environment>>,
    /// The user to become; none when the person is who runs us.
    pub(crate) user: Option<User>,
}

impl Place {
    /// Makes the directory.
    pub(crate) fn new(person: Person) -> Result<Self, Stop> {
        // SAFETY: takes and points to nothing.
        let root = unsafe { libc::geteuid() } == 0;
        let user = match (person, root) {
            (Person::Root, false) => {
                return Err(Stop::not_run(
                    "the root cases need root",
                    "run cargo xtask test as root",
                ));
            }
            (Person::Ordinary, true) => Some(unprivileged_user()?),
            _ => None,
        };
        let parent = [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into()]
            .into_iter()
            .find(|directory| suitable(directory))
            .ok_or_else(|| {
                Stop::not_run(
                    "no temporary directory that every user can enter and run programs from",
                    "set TMPDIR to one",
                )
            })?;
        let directory = parent.join(format!("iogate-test-{}-{person}", std::process::id()));
        let place = Self {
            directory,
            person,
            environment: Cell::default(),
            user,
        };
        let make = |path: &Path, mode| {
            fs::DirBuilder::new()
                .mode(mode)
                .create(path)
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
                .about(path.display())
        };
        make(&place.directory, 0o755)?;
        make(&place.directory.join("bin"), 0o755)?;
        make(&place.scratch(), 0o700)?;
        if let Some(user) = place.user {
            std::os::unix::fs::chown(place.scratch(), Some(user.id), Some(user.id))
                .about(place.scratch().display())?;
        }
        Ok(place)
    }

    /// A directory that the person may write to.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.directory.join("scratch")
    }

    /// The directory itself: words that only this run's processes have on their command line.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A program here, copied once.
    pub(crate) fn program(&self, from: &Path) -> Result<PathBuf, Stop> {
        let to = self
            .directory
            .join("bin")
            .join(from.file_name().unwrap_or_default());
        if !to.exists() {
            fs::copy(from, &to).about(from.display())?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).about(to.display())?;
        }
        Ok(to)
    }

    /// A directory of files here, copied once.
    pub(crate) fn tree(&self, from: &Path) -> Result<PathBuf, Stop> {
        let to = self.directory.join(from.file_name().unwrap_or_default());
        if !to.exists() {
            copy_tree(from, &to).about(from.display())?;
        }
        Ok(to)
    }

    /// A command whose files go to the scratch directory.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.scratch())
            .env("TMPDIR", self.scratch())
            .env("HOME", self.scratch())
            .env("XDG_RUNTIME_DIR", self.scratch())
            // `cargo run` adds directories of its own, which the programs must not find libraries in.
            .env_remove("LD_LIBRARY_PATH");
        if let Some(environment) = self.environment.get() {
            environment.surround(&mut command, self.person);
        }
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("xtask: {} stays: {error}", self.directory.display());
        }
    }
}

fn unprivileged_user() -> Result<User, Stop> {
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let text = fs::read_to_string(map).about(map)?;
        let mapped = text.lines().any(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            match (numbers.next(), numbers.nth(1)) {
                (Some(Ok(first)), Some(Ok(count))) => {
                    (first..first.saturating_add(count)).contains(&u64::from(UNPRIVILEGED))
                }
                _ => false,
            }
        });
        if !mapped {
            return Err(Stop::not_run(
                format!("user {UNPRIVILEGED} does not exist in this user namespace"),
                "run as an ordinary user, or in a container with a full range of user ids",
            ));
        }
    }
    Ok(User { id: UNPRIVILEGED })
}

/// Whether every user can get there and programs may be run from there.
fn suitable(directory: &Path) -> bool {
    let Ok(directory) = directory.canonicalize() else {
        return false;
    };
    let open = directory
        .ancestors()
        .all(|path| fs::metadata(path).is_ok_and(|data| data.mode() & 0o001 != 0));
    let Ok(name) = CString::new(directory.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: an all-zero statvfs is a valid value, and both pointers live through the call.
    let executable = unsafe {
        let mut data: libc::statvfs = std::mem::zeroed();
        libc::statvfs(name.as_ptr(), &raw mut data) == 0 && data.f_flag & libc::ST_NOEXEC == 0
    };
    open && executable
}

/// Copies a directory to a place where nothing is yet.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
        } else if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            let mode = if entry.metadata()?.mode() & 0o100 == 0 {
                0o644
            } else {
                0o755
            };
            fs::copy(entry.path(), &target)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}
