//! Kernel modules and what they depend on, read from each module's own `.modinfo` section.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::verdict::{About as _, Stop};

/// A module ready to load.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The modules `names` and all they depend on, in loading order, without those that are built into the kernel.
pub(crate) fn with_dependencies(
    modules: &Path,
    busybox: &Path,
    names: &[&str],
) -> Result<Vec<Module>, Stop> {
    let mut files = Vec::new();
    list(modules, &mut files).about(modules.display())?;
    let mut loaded = Vec::new();
    for name in names {
        add(&files, busybox, name, &mut loaded)?;
    }
    Ok(loaded)
}

fn add(
    files: &[PathBuf],
    busybox: &Path,
    name: &str,
    loaded: &mut Vec<Module>,
) -> Result<(), Stop> {
    if loaded.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(path) = files.iter().find(|path| module_name(path) == name) else {
        return Ok(());
    };
    let bytes = read(path, busybox)?;
    for dependency in dependencies(&bytes) {
        add(files, busybox, &dependency, loaded)?;
    }
    loaded.push(Module {
        name: name.to_owned(),
        bytes,
    });
    Ok(())
}

/// `nvme-core.ko.xz` is the module `nvme_core`.
fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split(".ko")
        .next()
        .unwrap_or_default()
        .replace('-', "_")
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else if entry.file_name().to_string_lossy().contains(".ko") {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn read(path: &Path, busybox: &Path) -> Result<Vec<u8>, Stop> {
    let mut command = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => {
            let mut command = Command::new(busybox);
            command.arg("xzcat");
            command
        }
        Some("gz") => {
            let mut command = Command::new(busybox);
            command.arg("zcat");
            command
        }
        Some("zst") => {
            let mut command = Command::new("zstd");
            command.arg("-dcq");
            command
        }
        _ => return fs::read(path).about(path.display()),
    };
    let output = command.arg(path).output().map_err(|error| {
        Stop::not_run(
            format!(
                "{} does not start: {error}",
                command.get_program().display()
            ),
            "install zstd",
        )
    })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Stop::failed(format!("{} does not unpack", path.display())))
    }
}

/// The `depends=` strings; those of the kernel's own modules stand once, at the start of a string.
fn dependencies(module: &[u8]) -> Vec<String> {
    module
        .split(|byte| *byte == 0)
        .filter_map(|string| string.strip_prefix(b"depends="))
        .flat_map(|names| names.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_null_ended_strings() {
        let module = b"\x7fELF..license=GPL\0depends=nvme-core,nvme-auth\0name=nvme\0";
        assert_eq!(dependencies(module), ["nvme_core", "nvme_auth"]);
        assert!(dependencies(b"name=x\0depends=\0").is_empty());
    }

    #[test]
    fn a_compressed_file_names_its_module() {
        assert_eq!(module_name(Path::new("/m/nvme-core.ko.xz")), "nvme_core");
    }
}
