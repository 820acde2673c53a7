//! One function's directory. Linux drivers/pci/pci-sysfs.c; what each file
//! holds is in Documentation/ABI/testing/sysfs-bus-pci.
use crate::facts::{FunctionFacts, Presence};
use crate::nodes;
use crate::sriov;
use crate::tree::{Settings, Tree, function_path};
use iogate_machine::{Driver, FunctionEntry, Machine, Translation};
use std::fmt::Write;

pub(crate) fn add(
    tree: &mut Tree,
    machine: &Machine,
    index: usize,
    entry: &FunctionEntry,
    facts: &FunctionFacts,
    settings: &Settings,
) {
    let address = entry.source().to_string();
    let path = function_path(machine, index);
    let file = |name: &str| format!("{path}/{name}");
    identity(tree, &path, facts);
    tree.file_with_mode(file("config"), facts.config.clone(), 0o644);
    tree.file(file("resource"), resources(facts));
    placement(tree, &path, facts, settings);
    tree.file_with_mode(file("uevent"), uevent(entry, facts), 0o644);
    tree.file_with_mode(file("remove"), "", 0o220);
    tree.control(file("rescan"));
    power_and_reset(tree, &path, entry, facts);
    if let Some(buses) = entry.placed.buses {
        tree.file(
            file("secondary_bus_number"),
            format!("{}\n", buses.secondary),
        );
        tree.file(
            file("subordinate_bus_number"),
            format!("{}\n", buses.subordinate),
        );
    }
    tree.link(file("subsystem"), "/sys/bus/pci");
    tree.link(format!("/sys/bus/pci/devices/{address}"), &path);
    sriov::physical(tree, &path, facts);
    sriov::virtual_function(tree, machine, &path, entry, facts.presence);
    if let Some(driver) = entry.driver.name().filter(|_| facts.has_driver()) {
        let directory = crate::drivers::driver(tree, driver);
        tree.link(file("driver"), &directory);
        tree.link(format!("{directory}/{address}"), &path);
    }
    let cdev = entry.device().and_then(|device| device.cdev);
    if let Some(cdev) = cdev.filter(|_| facts.presence == Presence::Present) {
        let has_node = entry.translation != Translation::None;
        if has_node && entry.placed.virtual_of.is_some() {
            nodes::link_device(tree, cdev);
        }
        vfio_device(tree, &path, cdev, has_node.then_some(settings));
    }
}

fn identity(tree: &mut Tree, path: &str, facts: &FunctionFacts) {
    let (subsystem_vendor, subsystem_device) = facts.subsystem();
    for (name, value) in [
        ("vendor", facts.word(0)),
        ("device", facts.word(2)),
        ("subsystem_vendor", subsystem_vendor),
        ("subsystem_device", subsystem_device),
    ] {
        tree.file(format!("{path}/{name}"), format!("0x{value:04x}\n"));
    }
    tree.file(
        format!("{path}/class"),
        format!("0x{:06x}\n", facts.class()),
    );
    tree.file(
        format!("{path}/revision"),
        format!("0x{:02x}\n", facts.byte(8)),
    );
    tree.file(format!("{path}/modalias"), format!("{}\n", modalias(facts)));
}

fn modalias(facts: &FunctionFacts) -> String {
    let (subsystem_vendor, subsystem_device) = facts.subsystem();
    format!(
        "pci:v{:08X}d{:08X}sv{subsystem_vendor:08X}sd{subsystem_device:08X}bc{:02X}sc{:02X}i{:02X}",
        facts.word(0),
        facts.word(2),
        facts.byte(0x0b),
        facts.byte(0x0a),
        facts.byte(0x09),
    )
}

fn uevent(entry: &FunctionEntry, facts: &FunctionFacts) -> String {
    let (subsystem_vendor, subsystem_device) = facts.subsystem();
    let driver = match entry.driver.name().filter(|_| facts.has_driver()) {
        Some(name) => format!("DRIVER={name}\n"),
        None => String::new(),
    };
    format!(
        "{driver}PCI_CLASS={:04X}\nPCI_ID={:04X}:{:04X}\n\
         PCI_SUBSYS_ID={subsystem_vendor:04X}:{subsystem_device:04X}\n\
         PCI_SLOT_NAME={}\nMODALIAS={}\n",
        facts.class(),
        facts.word(0),
        facts.word(2),
        entry.source(),
        modalias(facts),
    )
}

/// The `resource` file: BARs and ROM, six lines for virtual functions' BARs,
/// four more for a bridge's windows.
fn resources(facts: &FunctionFacts) -> String {
    const WINDOWS: usize = 4;
    let mut text = String::new();
    let of_virtual_functions = facts.sr_iov.as_ref().map(|sr_iov| sr_iov.resources);
    let of_virtual_functions = of_virtual_functions.unwrap_or_default();
    for resource in facts.resources.iter().chain(&of_virtual_functions) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "0x{:016x} 0x{:016x} 0x{:016x}",
            resource.start, resource.end, resource.flags
        );
    }
    let windows = if facts.is_bridge() { WINDOWS } else { 0 };
    let none = format!("0x{0:016x} 0x{0:016x} 0x{0:016x}\n", 0);
    text.push_str(&none.repeat(windows));
    text
}

fn placement(tree: &mut Tree, path: &str, facts: &FunctionFacts, settings: &Settings) {
    let file = |name: &str| format!("{path}/{name}");
    tree.file(file("irq"), format!("{}\n", facts.irq));
    tree.file_with_mode(file("numa_node"), format!("{}\n", facts.numa_node), 0o644);
    let last = settings.cpus.saturating_sub(1);
    let list = match last {
        0 => "0\n".to_owned(),
        last => format!("0-{last}\n"),
    };
    tree.file(file("local_cpulist"), list);
    tree.file(file("local_cpus"), cpu_mask(settings.cpus));
    tree.file(file("dma_mask_bits"), "64\n");
    tree.file(file("consistent_dma_mask_bits"), "64\n");
    if let Some(express) = facts.express().filter(|express| express.has_link()) {
        for (when, link) in [("max", &express.capable), ("current", &express.current)] {
            tree.file(
                file(&format!("{when}_link_speed")),
                format!("{}\n", link.speed()),
            );
            tree.file(
                file(&format!("{when}_link_width")),
                format!("{}\n", link.width()),
            );
        }
    }
}

/// A mask with the lowest `cpus` bits set, in groups of 32 bits, the highest
/// first.
fn cpu_mask(cpus: u32) -> String {
    let cpus = cpus.max(1);
    let top = match cpus.checked_rem(32) {
        Some(0) | None => 32,
        Some(bits) => bits,
    };
    let groups = cpus.div_ceil(32);
    let width = usize::try_from(top.div_ceil(4)).unwrap_or(8);
    let mask = u32::MAX.checked_shr(32u32.saturating_sub(top)).unwrap_or(0);
    let mut text = format!("{mask:0width$x}");
    for _ in 1..groups {
        text.push_str(",ffffffff");
    }
    text.push('\n');
    text
}

fn power_and_reset(tree: &mut Tree, path: &str, entry: &FunctionEntry, facts: &FunctionFacts) {
    let file = |name: &str| format!("{path}/{name}");
    let enabled = facts.word(4) & 0b11 != 0 || entry.driver == Driver::Port;
    tree.file_with_mode(file("enable"), format!("{}\n", u8::from(enabled)), 0o644);
    tree.file(file("power_state"), "D0\n");
    tree.file_with_mode(file("d3cold_allowed"), "0\n", 0o644);
    tree.file_with_mode(file("broken_parity_status"), "0\n", 0o644);
    tree.file_with_mode(file("msi_bus"), "1\n", 0o644);
    let driver_override = match entry.driver {
        Driver::Vfio => "vfio-pci\n",
        _ => "(null)\n",
    };
    tree.file_with_mode(file("driver_override"), driver_override, 0o644);
    let ari = entry.placed.ari && !facts.is_bridge();
    tree.file(file("ari_enabled"), format!("{}\n", u8::from(ari)));
    let express = facts.express();
    if express.is_some_and(|express| express.function_level_reset) {
        tree.control(file("reset"));
        tree.file_with_mode(file("reset_method"), "flr\n", 0o644);
    }
}

/// What VFIO adds to a device: a device of its own, which is a character device
/// with `settings`. Linux drivers/vfio/vfio.h `vfio_device_add`.
pub(crate) fn vfio_device(tree: &mut Tree, path: &str, cdev: u32, settings: Option<&Settings>) {
    let own = format!("{path}/vfio-dev/vfio{cdev}");
    let mut uevent = String::new();
    if let Some((major, minor)) = settings.map(|settings| settings.node_number) {
        tree.file(format!("{own}/dev"), format!("{major}:{minor}\n"));
        uevent = format!("MAJOR={major}\nMINOR={minor}\nDEVNAME=vfio/devices/vfio{cdev}\n");
    }
    tree.file_with_mode(format!("{own}/uevent"), uevent, 0o644);
    tree.link(format!("{own}/device"), path);
    tree.link(format!("{own}/subsystem"), "/sys/class/vfio-dev");
    tree.link(format!("/sys/class/vfio-dev/vfio{cdev}"), &own);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_masks_are_written_in_groups_of_32_bits() {
        for (cpus, mask) in [
            (1, "1\n"),
            (2, "3\n"),
            (8, "ff\n"),
            (12, "fff\n"),
            (32, "ffffffff\n"),
            (36, "f,ffffffff\n"),
            (64, "ffffffff,ffffffff\n"),
        ] {
            assert_eq!(cpu_mask(cpus), mask, "{cpus}");
        }
    }
}
