//! IOMMUs and groups. Linux drivers/iommu/iommu.c
//! `iommu_group_show_resv_regions`, `iommu_group_show_type`;
//! drivers/iommu/iommu-sysfs.c; drivers/vfio/group.c.
use crate::facts::{FunctionFacts, Presence};
use crate::tree::{Settings, Tree, function_path};
use crate::{DEVICES, nodes};
use iogate_machine::{Iommu, Machine, Translation};
use std::fmt::Write;

pub(crate) fn add(
    tree: &mut Tree,
    machine: &Machine,
    settings: &Settings,
    facts: &[FunctionFacts],
) {
    for class in ["iommu", "vfio", "vfio-dev"] {
        tree.directory(&format!("/sys/class/{class}"));
    }
    tree.directory("/sys/kernel/iommu_groups");
    for iommu in machine.iommus() {
        let path = unit_path(iommu);
        tree.directory(&format!("{path}/devices"));
        tree.link(format!("{path}/subsystem"), "/sys/class/iommu");
        tree.link(format!("/sys/class/iommu/{}", iommu.name), &path);
    }
    let is_there = |index: &usize| {
        let facts = facts.get(*index);
        facts.is_some_and(|facts| facts.presence != Presence::Absent)
    };
    for group in machine.groups() {
        if !group.members.iter().any(is_there) {
            continue;
        }
        let path = format!("/sys/kernel/iommu_groups/{}", group.number);
        let iommu = match group.translation {
            Translation::Unit(unit) => machine.iommus().get(unit),
            // Without a unit only VFIO makes groups.
            _ if !machine.has_node(group) => continue,
            _ => None,
        };
        let kind = match iommu {
            Some(_) => "DMA\n",
            None => "unknown\n",
        };
        tree.file_with_mode(format!("{path}/type"), kind, 0o644);
        if iommu.is_none() {
            // Linux drivers/vfio/group.c vfio_noiommu_group_alloc.
            tree.file(format!("{path}/name"), "vfio-noiommu\n");
        }
        let reserved = iommu.map(reserved_regions).unwrap_or_default();
        tree.file(format!("{path}/reserved_regions"), reserved);
        for &index in group.members.iter().filter(|index| is_there(index)) {
            let Some(entry) = machine.functions().get(index) else {
                continue;
            };
            let (address, function) = (entry.name(), function_path(machine, index));
            tree.link(format!("{path}/devices/{address}"), &function);
            tree.link(format!("{function}/iommu_group"), &path);
            if let Some(iommu) = iommu {
                let unit = unit_path(iommu);
                tree.link(format!("{unit}/devices/{address}"), &function);
                tree.link(format!("{function}/iommu"), &unit);
            }
        }
        let has_driver = |index: &usize| facts.get(*index).is_some_and(FunctionFacts::has_driver);
        if machine.has_node(group) && group.members.iter().any(has_driver) {
            let name = machine.node_name(group);
            if nodes::comes_later(machine, group) {
                nodes::link_group(tree, &name);
            }
            vfio_group(tree, &name, settings);
        }
    }
}

fn unit_path(iommu: &Iommu) -> String {
    format!("{DEVICES}/iommu/{}", iommu.name)
}

/// One line for every reserved range: first and last byte, kind.
fn reserved_regions(iommu: &Iommu) -> String {
    let mut text = String::new();
    for reserved in &iommu.reserved {
        let (first, last) = (reserved.span.first().0, reserved.span.last().0);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "0x{first:016x} 0x{last:016x} {}",
            reserved.kind.name()
        );
    }
    text
}

fn vfio_group(tree: &mut Tree, name: &str, settings: &Settings) {
    let (major, minor) = settings.node_number;
    let path = format!("{DEVICES}/vfio/{name}");
    tree.file(format!("{path}/dev"), format!("{major}:{minor}\n"));
    let uevent = format!("MAJOR={major}\nMINOR={minor}\nDEVNAME=vfio/{name}\n");
    tree.file_with_mode(format!("{path}/uevent"), uevent, 0o644);
    tree.link(format!("{path}/subsystem"), "/sys/class/vfio");
    tree.link(format!("/sys/class/vfio/{name}"), &path);
}
