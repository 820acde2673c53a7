//! The device nodes of a machine.
use iogate_machine::{Machine, Translation};

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
        nodes.push(node(
            format!("/dev/vfio/{}", machine.node_name(group)),
            NodeKind::Group { number },
        ));
    }
    for (function, entry, device) in machine.devices() {
        if let Some(cdev) = device.cdev
            && entry.translation != Translation::None
        {
            let path = format!("/dev/vfio/devices/vfio{cdev}");
            nodes.push(node(path, NodeKind::Device { function }));
        }
    }
    nodes
}
