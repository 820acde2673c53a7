//! The fuzz body for machine files: whatever the bytes are, they are a machine
//! that keeps its promises, or findings that can be shown.
use iogate_machine::{Driver, Machine, Model, Property, PropertyKind, Text, Translation};

/// Loads `bytes` as a machine file, and again as an argument.
#[allow(clippy::unwrap_used)]
pub(crate) fn machine_file(bytes: &[u8]) {
    let property = |(name, kind)| Property { name, kind };
    let nvme = [
        ("size", PropertyKind::Size),
        ("serial", PropertyKind::Text),
        ("queues", PropertyKind::Integer),
        ("read-only", PropertyKind::Boolean),
    ];
    let models = [
        Model {
            name: "edu",
            properties: Vec::new(),
        },
        Model {
            name: "nvme",
            properties: nvme.map(property).to_vec(),
        },
    ];
    let file = Text {
        name: "m.toml",
        bytes,
    };
    let argument = String::from_utf8_lossy(bytes).into_owned();
    for machine in [
        Machine::load(Some(file), &[], &models),
        Machine::load(None, &[argument], &models),
    ] {
        match machine {
            Ok(machine) => keeps_its_promises(&machine),
            Err(error) => {
                assert!(!error.findings().is_empty());
                assert!(!error.to_string().is_empty());
            }
        }
    }
}

fn keeps_its_promises(machine: &Machine) {
    assert!(!machine.iommus().is_empty());
    assert!(machine.describe().ends_with('\n'));
    let functions = machine.functions();
    assert!(functions.windows(2).all(|w| w[0].source() < w[1].source()));
    let mut cdevs = 0..;
    for function in functions {
        if let Translation::Unit(unit) = function.translation {
            assert!(unit < machine.iommus().len());
        }
        assert_eq!(function.aliases.first(), Some(&function.source().requester));
        if let Some(device) = function.device() {
            let bound = function.driver == Driver::Vfio;
            assert_eq!(device.cdev, if bound { cdevs.next() } else { None });
        }
    }
    let grouped: usize = machine.groups().iter().map(|g| g.members.len()).sum();
    assert_eq!(grouped, functions.len());
    for group in machine.groups() {
        for member in machine.members(group) {
            assert_eq!(
                (member.group, member.translation),
                (group.number, group.translation)
            );
        }
    }
    for iommu in machine.iommus() {
        assert_ne!(iommu.page_sizes, 0);
        let ranges = iommu.reserved.windows(2);
        assert!(
            ranges
                .into_iter()
                .all(|w| w[0].span.last() < w[1].span.first())
        );
    }
}
