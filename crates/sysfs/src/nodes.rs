//! The device nodes of a machine. Those of virtual functions stand aside, and
//! links lead to them while the functions are there.
use crate::tree::Tree;
use iogate_machine::{Driver, Group, Machine, Translation};

/// What a device node is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NodeKind {
    /// `/dev/vfio/vfio`: every open is a container.
    Container,
    /// `/dev/iommu`: every open is an iommufd.
    Iommufd,
    /// `/dev/vfio/N`, or `/dev/vfio/noiommu-N`.
    Group {
        /// N.
        number: u32,
    },
    /// `/dev/vfio/devices/vfioN`.
    Device {
        /// Index in [`Machine::functions`].
        function: usize,
    },
}

/// One device node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceNode {
    /// Absolute path.
    pub path: String,
    /// What it is.
    pub kind: NodeKind,
}

/// Where the nodes of virtual functions stand.
const ASIDE: &str = "/dev/iogate/nodes";

/// Whether a group's node is there only while a virtual function is.
pub(crate) fn comes_later(machine: &Machine, group: &Group) -> bool {
    let mut members = machine.members(group);
    members.all(|member| member.driver != Driver::Vfio || member.placed.virtual_of.is_some())
}

/// Leads to the node of a virtual function.
pub(crate) fn link_device(tree: &mut Tree, cdev: u32) {
    let target = format!("{ASIDE}/vfio{cdev}");
    tree.link_outside(format!("/dev/vfio/devices/vfio{cdev}"), &target);
}

/// Leads to the node of a group of virtual functions.
pub(crate) fn link_group(tree: &mut Tree, name: &str) {
    tree.link_outside(format!("/dev/vfio/{name}"), &format!("{ASIDE}/{name}"));
}

/// Every node of a machine. A group has one if a member is bound to vfio-pci.
pub fn device_nodes(machine: &Machine) -> Vec<DeviceNode> {
    let node = |path: String, kind| DeviceNode { path, kind };
    let mut nodes = vec![
        node("/dev/vfio/vfio".to_owned(), NodeKind::Container),
        node("/dev/iommu".to_owned(), NodeKind::Iommufd),
    ];
    for group in machine
        .groups()
        .iter()
        .filter(|group| machine.has_node(group))
    {
        let number = group.number;
        let name = machine.node_name(group);
        let path = match comes_later(machine, group) {
            true => format!("{ASIDE}/{name}"),
            false => format!("/dev/vfio/{name}"),
        };
        nodes.push(node(path, NodeKind::Group { number }));
    }
    for (function, entry, device) in machine.devices() {
        if let Some(cdev) = device.cdev
            && entry.translation != Translation::None
        {
            let path = match entry.placed.virtual_of {
                Some(_) => format!("{ASIDE}/vfio{cdev}"),
                None => format!("/dev/vfio/devices/vfio{cdev}"),
            };
            nodes.push(node(path, NodeKind::Device { function }));
        }
    }
    nodes
}
