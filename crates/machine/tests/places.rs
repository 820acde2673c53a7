//! Where functions end up: addresses, units, groups and node numbers.
#![allow(clippy::unwrap_used)]
mod common;
use common::{error, machine, models};
use iogate_machine::{Driver, Machine, Translation};

fn groups(machine: &Machine) -> Vec<(u32, Vec<String>)> {
    let names = |group| machine.members(group).map(ToString::to_string).collect();
    machine
        .groups()
        .iter()
        .map(|g| (g.number, names(g)))
        .collect()
}

fn group(number: u32, members: &[&str]) -> (u32, Vec<String>) {
    (number, members.iter().map(|m| (*m).to_owned()).collect())
}

#[test]
fn the_default_machine_has_edu_and_nvme_each_in_its_own_group() {
    let machine = Machine::default_machine(&models()).unwrap();
    let expected = [
        group(0, &["root port 0000:00:01.0"]),
        group(1, &["root port 0000:00:02.0"]),
        group(2, &["edu 0000:01:00.0"]),
        group(3, &["nvme 0000:02:00.0"]),
    ];
    assert_eq!(groups(&machine), expected);
    let cdevs: Vec<_> = machine.devices().map(|(_, _, d)| d.cdev).collect();
    assert_eq!(cdevs, [Some(0), Some(1)]);
    let (index, nvme, device) = machine.devices().last().unwrap();
    assert_eq!(device.properties.number("size"), Some(64 << 20));
    assert_eq!(machine.function_at(nvme.source()), Some(index));
    let port = &machine.functions()[nvme.placed.parent.unwrap()];
    assert_eq!(port.source().to_string(), "0000:00:02.0");
    assert_eq!(port.driver, Driver::Port);
}

#[test]
fn devices_behind_a_conventional_bridge_share_its_group_and_its_requester_id() {
    let machine = machine(
        r#"
        [[bridge]]
        name = "conv"
        kind = "pcie-pci-bridge"
        behind = "rp"
        [[bridge]]
        name = "rp"
        kind = "root-port"
        [[device]]
        model = "edu"
        behind = "conv"
        [[device]]
        model = "nvme"
        behind = "conv"
        driver = "nvme"
        "#,
    );
    let expected = [
        group(0, &["rp 0000:00:01.0"]),
        group(
            1,
            &["conv 0000:01:00.0", "edu 0000:02:01.0", "nvme 0000:02:02.0"],
        ),
    ];
    assert_eq!(groups(&machine), expected);
    let (_, edu, _) = machine.devices().next().unwrap();
    assert_eq!(edu.aliases.last().unwrap().to_string(), "02:00.0");
    let shared = machine.group(1).unwrap();
    assert!(machine.has_node(shared), "edu is bound to vfio-pci");
    assert!(!machine.is_viable(shared), "nvme is the machine's own");
    assert!(machine.is_viable(machine.group(0).unwrap()));
    assert!(!machine.has_node(machine.group(0).unwrap()));
}

#[test]
fn devices_that_name_one_bus_share_a_root_port_of_their_own() {
    let machine = machine(
        r#"
        [[device]]
        model = "edu"
        at = "0000:41:00.0"
        [[device]]
        model = "nvme"
        at = "0000:41:00.1"
        [[device]]
        model = "edu"
        at = "0000:00:04.0"
        [[device]]
        model = "edu"
        at = "0002:01:00.0"
        "#,
    );
    let expected = [
        group(0, &["root port 0000:00:01.0"]),
        group(1, &["edu 0000:00:04.0"]),
        group(2, &["edu 0000:41:00.0", "nvme 0000:41:00.1"]),
        group(3, &["root port 0002:00:01.0"]),
        group(4, &["edu 0002:01:00.0"]),
    ];
    assert_eq!(groups(&machine), expected);
}

#[test]
fn a_forced_group_keeps_its_number_and_merges_what_shares_it() {
    let machine = machine(
        r#"
        [[device]]
        model = "edu"
        group = 1
        [[device]]
        model = "nvme"
        group = 1
        "#,
    );
    let expected = [
        group(0, &["root port 0000:00:01.0"]),
        group(1, &["edu 0000:01:00.0", "nvme 0000:02:00.0"]),
        group(2, &["root port 0000:00:02.0"]),
    ];
    assert_eq!(groups(&machine), expected);
}

#[test]
fn a_forced_group_cannot_split_what_cannot_be_isolated() {
    let shown = error(
        "[[device]]\nmodel = 'edu'\nat = '01:00.0'\ngroup = 1\n\
         [[device]]\nmodel = 'nvme'\nat = '01:00.1'\ngroup = 2\n",
    );
    let first = "m.toml:9:9: device `nvme` cannot be in group 2: \
                 it cannot be isolated from device `edu` in group 1";
    assert!(shown.starts_with(first), "{shown}");
    assert!(
        shown.contains("m.toml:5:9: the other group is here"),
        "{shown}"
    );
}

const TWO_UNITS: &str = "[[iommu]]\nname = 'a'\n[[iommu]]\nname = 'b'\n";

#[test]
fn a_function_is_translated_by_the_unit_of_the_nearest_bridge_that_names_one() {
    let machine = machine(&format!(
        "{TWO_UNITS}
        [[bridge]]
        name = 'rp'
        kind = 'root-port'
        iommu = 'b'
        [[bridge]]
        name = 'up'
        kind = 'upstream-port'
        behind = 'rp'
        [[bridge]]
        name = 'down'
        kind = 'downstream-port'
        behind = 'up'
        [[device]]
        model = 'edu'
        behind = 'down'
        [[device]]
        model = 'nvme'
        iommu = 'b'
        [[device]]
        model = 'edu'"
    ));
    let units = |name: &str| -> Vec<Translation> {
        let named = |f: &&iogate_machine::FunctionEntry| f.to_string().starts_with(name);
        machine
            .functions()
            .iter()
            .filter(named)
            .map(|f| f.translation)
            .collect()
    };
    let [first, second] = [0, 1].map(Translation::Unit);
    assert_eq!(units("edu"), [second, first]);
    assert_eq!(units("nvme"), [second]);
    assert_eq!(
        units("root port"),
        [second, first],
        "a port of its own is with its device"
    );
}

#[test]
fn a_group_cannot_span_two_iommus() {
    let device = |at: &str, iommu: &str, more: &str| {
        format!("[[device]]\nmodel = 'edu'\nat = '{at}'\niommu = '{iommu}'\n{more}\n")
    };
    let slot = format!(
        "{TWO_UNITS}{}{}",
        device("01:00.0", "a", ""),
        device("01:00.1", "b", "")
    );
    let shown = error(&slot);
    assert!(
        shown.contains("cannot be isolated from device `edu`"),
        "{shown}"
    );
    assert!(shown.contains("behind two IOMMUs"), "{shown}");
    let forced = format!(
        "{TWO_UNITS}{}{}",
        device("01:00.0", "a", "group = 5"),
        device("02:00.0", "b", "group = 5")
    );
    let shown = error(&forced);
    assert!(shown.contains("group 5 would span two IOMMUs"), "{shown}");
}

#[test]
fn two_entries_at_one_address_are_both_named() {
    let shown = error(
        "[[device]]\nmodel = 'edu'\nat = '01:00.0'\n[[device]]\nmodel = 'nvme'\nat = '0000:01:00.0'\n",
    );
    let first = "m.toml:7:6: device `nvme` cannot be placed: address 0000:01:00.0 is taken";
    assert!(shown.starts_with(first), "{shown}");
    assert!(
        shown.contains("m.toml:4:6: device `edu` is here"),
        "{shown}"
    );
}

#[test]
fn bridges_that_cannot_be_where_they_are_asked_for_are_refused() {
    let loops = "[[bridge]]\nname = 'a'\nkind = 'upstream-port'\nbehind = 'b'\n\
                 [[bridge]]\nname = 'b'\nkind = 'downstream-port'\nbehind = 'a'\n";
    assert!(error(loops).contains("bridge `a` cannot be placed: it is behind itself"));
    let root = "[[bridge]]\nname = 'a'\nkind = 'downstream-port'\n";
    assert!(error(root).contains("a downstream port needs an upstream port above it"));
}

#[test]
fn as_many_devices_as_the_buses_hold_are_placed_and_no_more() {
    let devices = |n: usize| "[[device]]\nmodel = 'edu'\n".repeat(n);
    assert_eq!(machine(&devices(248)).devices().count(), 248);
    assert!(error(&devices(249)).contains("the bus is full"));
}

#[test]
fn the_description_shows_tree_groups_and_what_is_in_the_way() {
    let machine = machine(
        "[[bridge]]\nname = 'rp0'\nkind = 'root-port'\nacs = false\n\
         [[device]]\nmodel = 'nvme'\nbehind = 'rp0'\nsize = '64 MiB'\n\
         [[device]]\nmodel = 'edu'\nbehind = 'rp0'\ndriver = 'e1000'\n",
    );
    let expected = "\
pinned memory not counted, 65535 mappings per container
iommu0: 48-bit IOVA, pages of 4 KiB, 2 MiB, 1 GiB, coherent
  0xfee00000-0xfeefffff msi

segment 0000
  0000:00:01.0 root-port rp0, buses 01-01, group 0
    0000:01:00.0 nvme size=64 MiB, group 0
    0000:01:00.1 edu, group 0

group 0: rp0 0000:00:01.0, nvme 0000:01:00.0, edu 0000:01:00.1
  /dev/vfio/0, /dev/vfio/devices/vfio0
  not viable: edu 0000:01:00.1 is bound to e1000
";
    assert_eq!(machine.describe(), expected);
}

/// Linux drivers/vfio/group.c, vfio_noiommu_group_alloc: what has no IOMMU
/// group gets one by itself.
#[test]
fn a_mediated_device_is_no_function_and_has_a_group_of_its_own_behind_all_others() {
    let machine = machine(
        "[[device]]
        model = 'edu'
        mediated = true
        [[device]]
        model = 'nvme'
        [[device]]
        model = 'edu'
        mediated = true
        uuid = '83b8f4f2-509f-4c5e-9a3d-2f1b1c0de001'",
    );
    let devices: Vec<_> = machine
        .devices()
        .map(|(_, entry, device)| (entry.name(), entry.group, device.cdev, entry.translation))
        .collect();
    let unit = Translation::Unit(0);
    let given = "696f6761-7465-4000-8000-000000000000".to_owned();
    let chosen = "83b8f4f2-509f-4c5e-9a3d-2f1b1c0de001".to_owned();
    assert_eq!(
        devices,
        [
            ("0000:01:00.0".to_owned(), 1, Some(0), unit),
            (given, 2, Some(1), Translation::Emulated),
            (chosen.clone(), 3, Some(2), Translation::Emulated),
        ]
    );
    let text = machine.describe();
    let shown = format!(
        "mediated devices\n  696f6761-7465-4000-8000-000000000000 edu, group 2\n  {chosen} edu, group 3\n"
    );
    assert!(text.contains(&shown), "{text}");
}

#[test]
fn what_is_about_functions_has_no_place_at_a_mediated_device() {
    let device = "[[device]]\nmodel = 'edu'\nmediated = true\n";
    for key in [
        "behind = 'x'",
        "at = '0000:01:00.0'",
        "group = 3",
        "iommu = 'none'",
    ] {
        let said = error(&format!("{device}{key}"));
        assert!(
            said.contains("a mediated device is no PCI function"),
            "{said}"
        );
    }
    let said = error(&format!("{device}uuid = 'X'"));
    assert!(said.contains("it looks like"), "{said}");
    let uuid = "uuid = '83b8f4f2-509f-4c5e-9a3d-2f1b1c0de001'\n";
    let said = error(&format!("{device}{uuid}{device}{uuid}"));
    assert!(said.contains("two devices have the UUID"), "{said}");
    let said = error(&format!("[[device]]\nmodel = 'edu'\n{uuid}"));
    assert!(said.contains("mediated = true"), "{said}");
}

/// Linux drivers/vfio/group.c, vfio_create_group: the name of the node.
#[test]
fn a_device_without_iommu_is_alone_in_its_group_whatever_stands_beside_it() {
    let machine = machine(
        "[[bridge]]
        name = 'conv'
        kind = 'pcie-pci-bridge'
        iommu = 'none'
        [[device]]
        model = 'edu'
        behind = 'conv'
        [[device]]
        model = 'edu'
        behind = 'conv'
        [[device]]
        model = 'nvme'",
    );
    let with_node: Vec<String> = machine
        .groups()
        .iter()
        .filter(|group| machine.has_node(group))
        .map(|group| machine.node_name(group))
        .collect();
    assert_eq!(with_node, ["noiommu-0", "noiommu-1", "3"]);
    let said = error("[[iommu]]\nname = 'none'");
    assert!(said.contains("no IOMMU can be called `none`"), "{said}");
    let one = "[[device]]\nmodel = 'edu'\niommu = 'none'\ngroup = 7\n";
    let said = error(&format!("{one}{one}"));
    assert!(said.contains("two devices without IOMMU"), "{said}");
}

fn with_virtual_functions(file: &str) -> Result<Machine, String> {
    let vfs = iogate_machine::Property {
        name: iogate_machine::VIRTUAL_FUNCTIONS,
        kind: iogate_machine::PropertyKind::Integer,
    };
    let nic = iogate_machine::Model {
        name: "nic",
        properties: vec![vfs],
    };
    let text = format!("version = 1\n{file}");
    let text = iogate_machine::Text {
        name: "m.toml",
        bytes: text.as_bytes(),
    };
    Machine::load(Some(text), &[], &[nic]).map_err(|error| error.to_string())
}

#[test]
fn virtual_functions_are_numbered_after_everything_else() {
    let file = "[[device]]\nmodel = \"nic\"\nvfs = 2\n[[device]]\nmodel = \"nic\"\n";
    let machine = with_virtual_functions(file).unwrap();
    let expected = [
        group(0, &["root port 0000:00:01.0"]),
        group(1, &["root port 0000:00:02.0"]),
        group(2, &["nic 0000:01:00.0"]),
        group(3, &["nic 0000:02:00.0"]),
        group(4, &["nic 0000:01:10.0"]),
        group(5, &["nic 0000:01:11.0"]),
    ];
    assert_eq!(groups(&machine), expected);
    let cdevs: Vec<_> = machine.devices().map(|(_, _, d)| d.cdev).collect();
    assert_eq!(cdevs, [Some(0), Some(2), Some(3), Some(1)]);
    let (physical, ..) = machine.devices().next().unwrap();
    let functions: Vec<_> = machine.virtual_functions(physical).collect();
    let numbers: Vec<u16> = functions
        .iter()
        .map(|(_, entry)| entry.placed.virtual_of.unwrap().number)
        .collect();
    assert_eq!(numbers, [0, 1]);
    let text = machine.describe();
    assert!(text.contains("0000:01:11.0 nic, virtual function 1, group 5\n"));
}

#[test]
fn virtual_functions_that_nobody_could_enable_are_refused() {
    for (file, why) in [
        ("vfs = 17", "a device has at most 16"),
        (
            "vfs = 1\ndriver = \"virtio-pci\"",
            "wants the driver vfio-pci",
        ),
        (
            "vfs = 1\nat = \"0000:00:03.0\"",
            "need a root or downstream port",
        ),
    ] {
        let file = format!("[[device]]\nmodel = \"nic\"\n{file}\n");
        let error = with_virtual_functions(&file).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let many = "[[device]]\nmodel = \"nic\"\nvfs = 16\n".repeat(17);
    let error = with_virtual_functions(&many).unwrap_err();
    assert!(error.contains("at most 256 virtual functions"), "{error}");
}
