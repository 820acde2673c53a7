//! Sets of packages: what a case needs, unpacked with all it depends on into one directory that may be copied
//! anywhere. A set is one line here.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Apt, Mirror, Release};
use crate::verdict::{About as _, Stop};

/// The GNU debugger.
pub(crate) const GDB: Set = Set::new("gdb", &["gdb"]);

/// The reference implementation's tools for ACPI tables.
pub(crate) const ACPICA: Set = Set::new("acpica", &["acpica-tools"]);

/// DPDK's test programs and the drivers that cases use.
pub(crate) const DPDK: Set = Set::new(
    "dpdk",
    &[
        "dpdk-dev",
        "librte-bus-pci25",
        "librte-bus-vdev25",
        "librte-dma-ioat25",
        "librte-mempool-ring25",
        "librte-net-vhost25",
        "librte-net-virtio25",
    ],
)
.without(&["libdpdk-dev", "python3"]);

/// Raised when what is kept of the same packages changes.
const LAYOUT: u32 = 1;
/// What no program needs to run.
const PRUNED: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
    "var",
];
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Packages that are provided together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set {
    name: &'static str,
    release: Release,
    packages: &'static [&'static str],
    without: &'static [&'static str],
}

impl Set {
    /// These packages of the stable release with all they depend on. The name is that of a directory.
    pub(crate) const fn new(name: &'static str, packages: &'static [&'static str]) -> Self {
        Self {
            name,
            release: Release::Stable,
            packages,
            without: &[],
        }
    }

    /// Leaves out these packages, on which the first package depends but what is run does not.
    const fn without(self, packages: &'static [&'static str]) -> Self {
        Self {
            without: packages,
            ..self
        }
    }

    /// The set's name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Unpacks the set, or finds it unpacked.
    pub(crate) fn provide(&self, xtask: &Path, log: &Path) -> Result<Tree, Stop> {
        let mirror = Mirror::of_this_machine(self.release)?;
        let tree = Tree {
            directory: xtask.join("sets").join(self.name),
        };
        let stamp = format!("layout {LAYOUT}\n{self:?}\n{}", mirror.source);
        if fs::read_to_string(tree.directory.join("stamp")).is_ok_and(|found| found == stamp) {
            return Ok(tree);
        }
        let apt = Apt::new(&xtask.join(format!("apt-{}", self.name)), mirror, log)?;
        // It need not exist.
        let _ = fs::remove_dir_all(&tree.directory);
        fs::create_dir_all(xtask.join("sets")).about(xtask.display())?;
        let (alone, whole) = match (self.without, self.packages) {
            ([], whole) => (None, whole),
            (_, [alone, whole @ ..]) => (Some(*alone), whole),
            (_, []) => (None, &[][..]),
        };
        let mut wanted: Vec<String> = whole.iter().map(|&name| name.to_owned()).collect();
        if let Some(alone) = alone {
            let mut depends = apt.depends(alone)?;
            depends.retain(|name| !self.without.contains(&name.as_str()));
            wanted.extend(depends);
            apt.unpack_only(&[alone.to_owned()])?;
        }
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let unpacked = apt.unpack_with_dependencies(&wanted)?;
        for directory in PRUNED {
            // Not every set has each of them.
            let _ = fs::remove_dir_all(unpacked.join(directory));
        }
        fs::write(unpacked.join("stamp"), stamp).about(unpacked.display())?;
        fs::rename(&unpacked, &tree.directory).about(tree.directory.display())?;
        Ok(tree)
    }
}

/// An unpacked set.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) directory: PathBuf,
}

impl Tree {
    /// The words that start a program of the set, its own loader first: the machine's libraries may be older.
    pub(crate) fn program(&self, path: &str) -> Vec<String> {
        let at = self.directory.display();
        let loader = LIBRARIES
            .iter()
            .map(|directory| self.directory.join(directory).join(LOADER))
            .find(|path| path.is_file())
            .unwrap_or_default();
        [
            loader.display().to_string(),
            "--library-path".to_owned(),
            LIBRARIES
                .map(|directory| format!("{at}/{directory}"))
                .join(":"),
            format!("{at}/{path}"),
        ]
        .into()
    }
}
