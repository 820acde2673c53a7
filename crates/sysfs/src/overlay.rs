//! Where the tree meets the machine's own sysfs.
use crate::tree::Tree;

/// Whether the machine's own PCI functions, groups and VFIO nodes are shown
/// beside ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostPci {
    /// Only ours are there.
    Hidden,
    /// Both are there.
    Shown,
}

/// What to do with a name that both the machine and the tree have in an
/// overlaid directory, and that is no overlaid directory itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clash {
    /// Ours stands in place of the machine's.
    OursStands,
    /// The session cannot start, and the error names the path.
    IsAnError,
}

/// A directory that the machine may have too and that shows both its entries
/// and ours. The machine's need not exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Overlay {
    /// Absolute path; the tree has a directory there.
    pub path: String,
    /// What to do with a name that both have.
    pub clash: Clash,
}

/// Directories that show both always: what is not about PCI in them stays.
const ALWAYS: [&str; 6] = [
    "/sys",
    "/sys/bus",
    "/sys/class",
    "/sys/devices",
    "/sys/kernel",
    "/sys/module",
];

/// Directories about PCI that show both if the machine's own is shown, and
/// what a name means that both have.
const ABOUT_PCI: [(&str, Clash); 7] = [
    ("/sys/bus/pci", Clash::OursStands),
    ("/sys/bus/pci/devices", Clash::IsAnError),
    ("/sys/bus/pci/drivers", Clash::OursStands),
    ("/sys/class/iommu", Clash::IsAnError),
    ("/sys/class/vfio", Clash::IsAnError),
    ("/sys/class/vfio-dev", Clash::IsAnError),
    ("/sys/kernel/iommu_groups", Clash::IsAnError),
];

pub(crate) fn overlays(tree: &Tree, host: HostPci) -> Vec<Overlay> {
    let overlay = |path: &str, clash| Overlay {
        path: path.to_owned(),
        clash,
    };
    let mut overlays: Vec<Overlay> = ALWAYS
        .iter()
        .map(|path| overlay(path, Clash::OursStands))
        .collect();
    if host == HostPci::Shown {
        overlays.extend(ABOUT_PCI.iter().map(|(path, clash)| overlay(path, *clash)));
        let drivers = tree.drivers.iter();
        overlays.extend(drivers.map(|name| {
            let path = format!("/sys/bus/pci/drivers/{name}");
            overlay(&path, Clash::OursStands)
        }));
    }
    overlays.sort_by(|a, b| a.path.cmp(&b.path));
    overlays
}
