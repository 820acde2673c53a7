//! Where things are: the checkout, cargo's target directory, and our corner of it.

use std::path::{Path, PathBuf};

/// The directories of this checkout.
pub(crate) struct Site {
    /// The workspace's root.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, whatever the configuration calls it.
    pub(crate) target: PathBuf,
    /// `target/xtask`: packages, logs, built clients.
    pub(crate) xtask: PathBuf,
}

impl Site {
    /// Finds the checkout by what cargo told this program, and the target directory by where cargo put it.
    pub(crate) fn find() -> std::io::Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = parent(Path::new(&manifest))?;
        let executable = std::env::current_exe()?.canonicalize()?;
        let target = parent(&parent(&executable)?)?;
        let xtask = target.join("xtask");
        std::fs::create_dir_all(xtask.join("logs"))?;
        Ok(Self {
            root,
            target,
            xtask,
        })
    }

    /// The log of a step; slashes of its name become dots.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        let file: String = name
            .chars()
            .map(|c| match c {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' => c,
                _ => '.',
            })
            .collect();
        self.xtask.join("logs").join(file + ".log")
    }
}

fn parent(path: &Path) -> std::io::Result<PathBuf> {
    path.parent()
        .map(Path::to_path_buf)
        .ok_or_else(|| std::io::Error::other(format!("{} has no parent", path.display())))
}
