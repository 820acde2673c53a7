//! Mediated devices below the software that makes them. Linux
//! drivers/vfio/mdev/mdev_sysfs.c and mdev_driver.c;
//! Documentation/ABI/testing/sysfs-bus-vfio-mdev.
use crate::DEVICES;
use crate::function::vfio_device;
use crate::tree::{Settings, Tree};
use iogate_machine::{DeviceEntry, Machine};

/// The driver that all of them are bound to.
const DRIVER: &str = "vfio-iogate";

/// The directory of what makes the mediated devices of a model.
fn parent(model: &str) -> String {
    format!("{DEVICES}/mediated/{model}")
}

/// The directory of a mediated device.
pub(crate) fn path(device: &DeviceEntry, uuid: &str) -> String {
    format!("{}/{uuid}", parent(&device.model))
}

/// The bus, if a machine has such devices.
pub(crate) fn bus(tree: &mut Tree, machine: &Machine) {
    if !machine.devices().any(|(.., one)| one.mediated.is_some()) {
        return;
    }
    for directory in ["devices", "drivers"] {
        tree.directory(&format!("/sys/bus/mdev/{directory}"));
    }
    for (name, file) in [("initstate", "live\n"), ("refcnt", "1\n")] {
        tree.file(format!("/sys/module/mdev/{name}"), file);
    }
    let driver = driver();
    for control in ["bind", "unbind", "uevent"] {
        tree.control(format!("{driver}/{control}"));
    }
    tree.link(format!("{driver}/module"), "/sys/module/mdev");
}

fn driver() -> String {
    format!("/sys/bus/mdev/drivers/{DRIVER}")
}

pub(crate) fn add(tree: &mut Tree, device: &DeviceEntry, uuid: &str, settings: &Settings) {
    let (parent, path) = (parent(&device.model), path(device, uuid));
    let kind = format!("{parent}/mdev_supported_types/iogate-{}", device.model);
    tree.file(format!("{kind}/name"), format!("{}\n", device.model));
    tree.file(format!("{kind}/device_api"), "vfio-pci\n");
    // A machine is what its file says.
    tree.file(format!("{kind}/available_instances"), "0\n");
    tree.control(format!("{kind}/create"));
    tree.link(format!("{kind}/devices/{uuid}"), &path);
    let class = format!("/sys/class/mdev_bus/{}", device.model);
    tree.link(class, &parent);
    let file = |name: &str| format!("{path}/{name}");
    let uevent = format!("DRIVER={DRIVER}\n");
    tree.file_with_mode(file("uevent"), uevent, 0o644);
    tree.control(file("remove"));
    tree.link(file("mdev_type"), &kind);
    tree.link(file("subsystem"), "/sys/bus/mdev");
    tree.link(file("driver"), &driver());
    tree.link(format!("/sys/bus/mdev/devices/{uuid}"), &path);
    tree.link(format!("{}/{uuid}", driver()), &path);
    if let Some(cdev) = device.cdev {
        vfio_device(tree, &path, cdev, Some(settings));
    }
}
