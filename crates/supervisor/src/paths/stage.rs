//! The session's `/sys` and `/dev` as plain files in a directory of their own:
//! what descriptors of the program name, so that listing and paths relative to
//! them work as everywhere. The machine's own entries are stood in for by empty
//! ones of their kind.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::shown::{Entry, Shown};
use crate::guardian::Failed;
use crate::namespace::clash;

/// A directory that is to be, or is there already. It is removed when this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Stage {
    root: PathBuf,
}

impl Stage {
    /// A place for one: in memory if possible, since hundreds of files come and
    /// go with a session; else in TMPDIR, or wherever something can be made.
    ///
    /// # Errors
    /// What the last place gave, if nothing can be made anywhere.
    pub(crate) fn place() -> Result<Self, Failed> {
        let mut random = [0; 8];
        // Only a name: its directory must not exist yet.
        let _ = rustix::io::read(open_random()?, &mut random);
        let name = format!(
            "iogate-{}-{:016x}",
            std::process::id(),
            u64::from_ne_bytes(random)
        );
        let mut places = vec![PathBuf::from("/dev/shm"), std::env::temp_dir()];
        places.extend(["/tmp", "/var/tmp"].map(PathBuf::from));
        let mut last = None;
        for place in places {
            let made = fs::canonicalize(&place).and_then(|place| {
                let root = place.join(&name);
                DirBuilder::new().mode(0o755).create(&root)?;
                Ok(Self { root })
            });
            match made {
                Ok(stage) => return Ok(stage),
                Err(error) => {
                    let step = format!("make a directory in {}", place.display());
                    last = Some(Failed { step, error });
                }
            }
        }
        Err(last.unwrap_or_else(|| Failed::at("find a directory")(io::ErrorKind::NotFound.into())))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    /// Removes it.
    pub(crate) fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.root)
            && error.kind() != io::ErrorKind::NotFound
        {
            crate::say::say(&format!("{} stays: {error}", self.root.display()));
        }
    }

    /// Puts everything there.
    pub(super) fn fill(&self, shown: &Shown) -> Result<(), Failed> {
        for (path, entry) in shown.entries() {
            self.add(path, entry)
                .map_err(Failed::at(format!("make {path}")))?;
        }
        for (path, entry) in shown.entries() {
            if *entry == (Entry::Directory { is_both: true }) {
                self.stand_in(path, shown)?;
            }
        }
        Ok(())
    }

    /// Makes one entry.
    pub(super) fn add(&self, path: &str, entry: &Entry) -> io::Result<()> {
        let at = self.at(path);
        match entry {
            Entry::Directory { .. } => fs::create_dir(at),
            Entry::Link { target } => symlink(target, at),
            Entry::File { content, mode } => {
                fs::write(&at, content)?;
                fs::set_permissions(&at, fs::Permissions::from_mode(*mode))
            }
            // What a call that is not noticed finds is a device that does
            // nothing.
            Entry::Node(_) => symlink("/dev/null", at),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Makes an entry for each of the machine's in the directory `path`.
    fn stand_in(&self, path: &str, shown: &Shown) -> Result<(), Failed> {
        let Ok(entries) = fs::read_dir(path) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let theirs = format!("{path}/{}", name.display());
            match shown.entry(theirs.as_bytes()) {
                Some(Entry::Directory { is_both: true }) => continue,
                Some(ours) if shown.is_exclusive(path) => {
                    let ours = match ours {
                        Entry::Link { target } => target,
                        _ => &theirs,
                    };
                    let link = fs::read_link(entry.path());
                    let what = link.map_or("a directory".into(), |l| l.display().to_string());
                    return Err(clash(&theirs, ours, &what));
                }
                Some(_) => continue,
                None => {}
            }
            let at = self.at(path).join(&name);
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let made = if kind.is_dir() {
                fs::create_dir(&at)
            } else if kind.is_symlink() {
                fs::read_link(entry.path()).and_then(|target| symlink(target, &at))
            } else if kind.is_char_device() || kind.is_block_device() {
                // The kernel opens it by itself, with the program's terminal.
                symlink(entry.path(), &at)
            } else {
                fs::write(&at, "")
            };
            made.map_err(Failed::at(format!("make {}", at.display())))?;
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.remove();
    }
}

fn open_random() -> Result<fs::File, Failed> {
    fs::File::open("/dev/urandom").map_err(Failed::at("open /dev/urandom"))
}
