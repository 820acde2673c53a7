//! The session's `/sys` and `/dev` as plain files in a directory of their own:
//! what descriptors of the program name, so that listing and paths relative to
//! them work as everywhere. The machine's own entries are stood in for by empty
//! ones of their kind.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::shown::{Entry, Shown};
use crate::guardian::Failed;
use crate::namespace::clash;

/// How the names begin.
const NAME: &str = "iogate-";

/// A directory that is removed when this is dropped. If that does not happen,
/// because all who know of it were killed at once, the next session of the same
/// user removes it: its lock is nobody's then.
#[derive(Debug)]
pub(crate) struct Stage {
    root: PathBuf,
    /// The directory, locked; shared by the processes that know of it.
    _lock: File,
}

impl Stage {
    /// A place for one: in memory if possible, since hundreds of files come and
    /// go with a session; else in TMPDIR, or wherever something can be made.
    ///
    /// # Errors
    /// What the last place gave, if nothing can be made anywhere.
    pub(crate) fn place() -> Result<Self, Failed> {
        let mut places = vec![PathBuf::from("/dev/shm"), std::env::temp_dir()];
        places.extend(["/tmp", "/var/tmp"].map(PathBuf::from));
        let mut last = None;
        for place in places {
            let made = fs::canonicalize(&place).and_then(|place| {
                sweep(&place);
                Self::make(&place)
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

    /// One in `place`.
    fn make(place: &Path) -> io::Result<Self> {
        loop {
            let mut random = [0; 8];
            // Only a name: its directory must not exist yet.
            let _ = rustix::io::read(File::open("/dev/urandom")?, &mut random);
            let random = u64::from_ne_bytes(random);
            let root = place.join(format!("{NAME}{}-{random:016x}", std::process::id()));
            DirBuilder::new().mode(0o755).create(&root)?;
            let lock = File::open(&root)?;
            lock.lock_shared()?;
            // Another's sweep may have come before the lock.
            if fs::symlink_metadata(&root).is_ok() {
                return Ok(Self { root, _lock: lock });
            }
        }
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

/// Removes the directories in `place` that sessions of this user left behind.
fn sweep(place: &Path) {
    let user = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().and_then(|name| name.strip_prefix(NAME));
        let is_ours = is_ours
            .and_then(|rest| rest.split_once('-'))
            .is_some_and(|(id, random)| id.parse::<u32>().is_ok() && random.len() == 16);
        let is_theirs = || {
            let metadata = entry.metadata();
            !metadata.is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == user)
        };
        if !is_ours || is_theirs() {
            continue;
        }
        if File::open(entry.path()).is_ok_and(|directory| directory.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_session_left_is_removed_by_the_next_and_what_lives_stays() {
        let place = std::env::temp_dir().join(format!("iogate-stages-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let lives = Stage::make(&place).unwrap();
        let left = place.join("iogate-1-0123456789abcdef");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("vendor"), "0x1234").unwrap();
        let other = place.join("iogate-notes");
        fs::create_dir(&other).unwrap();
        sweep(&place);
        assert!(!left.exists() && other.exists() && lives.path().exists());
        drop(lives);
        fs::remove_dir(other).unwrap();
        fs::remove_dir(place).unwrap();
    }
}
