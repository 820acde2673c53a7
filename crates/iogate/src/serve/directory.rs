//! Where the sockets and the ACPI table are: the user's directory, or a private
//! one. What was made there is removed.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::session::Refusal;

/// The ACPI table's file.
const TABLE: &str = "dmar.bin";

/// A directory with sockets. Sockets are removed by who made them.
pub(crate) struct Directory {
    path: PathBuf,
    is_own: bool,
}

impl Directory {
    /// The directory at `path`, which is made if it is not there; without a
    /// path, a new one that only the user can look into.
    pub(crate) fn new(path: Option<&Path>) -> Result<Self, Refusal> {
        let mut make = std::fs::DirBuilder::new();
        make.mode(0o700);
        if let Some(path) = path {
            let made = make.recursive(true).create(path);
            made.map_err(|error| Refusal(format!("{}: {error}", path.display())))?;
            let path = std::path::absolute(path);
            let path = path.map_err(|error| Refusal(format!("--dir: {error}")))?;
            return Ok(Self {
                path,
                is_own: false,
            });
        }
        let parent = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let parents = parent.into_iter().chain([std::env::temp_dir()]);
        let mut last = None;
        for parent in parents {
            for number in 0..1000_u32 {
                let name = format!("iogate-{}-{number}", std::process::id());
                let path = parent.join(name);
                match make.create(&path) {
                    Ok(()) => return Ok(Self { path, is_own: true }),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => {
                        last = Some(format!("{}: {error}", path.display()));
                        break;
                    }
                }
            }
        }
        let why = last.unwrap_or_default();
        Err(Refusal(format!(
            "cannot make a directory for sockets: {why}"
        )))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The ACPI table's path.
    pub(crate) fn table(&self) -> PathBuf {
        self.path.join(TABLE)
    }

    /// Writes the ACPI table, whole or not at all.
    pub(crate) fn write_table(&self, table: &[u8]) -> Result<(), Refusal> {
        let path = self.table();
        let beside = self.path.join(format!("{TABLE}.new"));
        let written = std::fs::write(&beside, table).and_then(|()| std::fs::rename(&beside, &path));
        written.map_err(|error| Refusal(format!("{}: {error}", path.display())))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.table());
        if self.is_own {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
