//! The PCI bus, the drivers on it and the modules that VFIO consists of.
use crate::tree::Tree;
use iogate_machine::{Driver, FunctionEntry, Machine, Translation};

const DRIVERS: &str = "/sys/bus/pci/drivers";

/// Every module of VFIO with its parameters as Linux has them by default.
const MODULES: [(&str, &[(&str, &str)]); 5] = [
    ("vfio", &[("enable_unsafe_noiommu_mode", "N\n")]),
    (
        "vfio_iommu_type1",
        &[
            ("allow_unsafe_interrupts", "N\n"),
            ("disable_hugepages", "N\n"),
        ],
    ),
    (
        "vfio_pci",
        &[
            ("disable_denylist", "N\n"),
            ("disable_idle_d3", "N\n"),
            ("disable_vga", "N\n"),
            ("enable_sriov", "N\n"),
            ("ids", "\n"),
            ("nointxmask", "N\n"),
        ],
    ),
    ("vfio_pci_core", &[]),
    ("iommufd", &[("allow_unsafe_interrupts", "N\n")]),
];

pub(crate) fn modules(tree: &mut Tree, machine: &Machine) {
    for (module, parameters) in MODULES {
        let path = format!("/sys/module/{module}");
        tree.file(format!("{path}/initstate"), "live\n");
        tree.file(format!("{path}/refcnt"), "1\n");
        for (name, value) in parameters {
            tree.file_with_mode(format!("{path}/parameters/{name}"), *value, 0o644);
        }
    }
    let of_virtual = |entry: &FunctionEntry| entry.placed.virtual_of.is_some();
    if machine.functions().iter().any(of_virtual) {
        let path = "/sys/module/vfio_pci/parameters/enable_sriov";
        tree.file_with_mode(path.to_owned(), "Y\n", 0o644);
    }
    let without = |entry: &FunctionEntry| {
        entry.translation == Translation::None && entry.driver == Driver::Vfio
    };
    if machine.functions().iter().any(without) {
        let path = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
        tree.file_with_mode(path.to_owned(), "Y\n", 0o644);
    }
    let limit = format!("{}\n", machine.dma_entry_limit());
    let path = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    tree.file_with_mode(path.to_owned(), limit, 0o644);
}

pub(crate) fn bus(tree: &mut Tree) {
    for name in ["devices", "drivers", "slots"] {
        tree.directory(&format!("/sys/bus/pci/{name}"));
    }
    for name in ["drivers_probe", "rescan", "uevent"] {
        tree.control(format!("/sys/bus/pci/{name}"));
    }
    let autoprobe = "/sys/bus/pci/drivers_autoprobe";
    tree.file_with_mode(autoprobe.to_owned(), "1\n", 0o644);
    driver(tree, "vfio-pci");
}

/// The directory of a driver, made when it is first asked for.
pub(crate) fn driver(tree: &mut Tree, name: &str) -> String {
    let path = format!("{DRIVERS}/{name}");
    if !tree.drivers.insert(name.to_owned()) {
        return path;
    }
    for control in ["bind", "unbind", "new_id", "remove_id", "uevent"] {
        tree.control(format!("{path}/{control}"));
    }
    if name == "vfio-pci" {
        tree.link(format!("{path}/module"), "/sys/module/vfio_pci");
        let back = "/sys/module/vfio_pci/drivers/pci:vfio-pci".to_owned();
        tree.link(back, &path);
    }
    path
}
