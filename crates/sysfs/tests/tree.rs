//! The tree as programs read it: every link leads somewhere, every file has
//! the kernel's form.
#![allow(clippy::unwrap_used)]
use iogate_machine::{FunctionEntry, Machine, Model, Text};
use iogate_sysfs::{
    Change, Clash, DEVICES, FunctionFacts, HostPci, Node, NodeKind, Presence, Resource, Settings,
    SrIovFacts, SrIovFile, Tree, device_nodes, sr_iov_files,
};
use std::collections::BTreeSet;

fn load(file: &str) -> Machine {
    let models = ["edu", "nvme"].map(|name| Model {
        name,
        properties: Vec::new(),
    });
    let text = format!("version = 1\n{file}");
    let file = Text {
        name: "m.toml",
        bytes: text.as_bytes(),
    };
    Machine::load(Some(file), &[], &models).unwrap_or_else(|error| panic!("{error}"))
}

/// A root port with ACS and an nvme behind it; a PCIe-to-PCI bridge with two
/// edus, one of them the machine's own; a reserved range of every kind.
fn machine() -> Machine {
    load(
        r#"
        dma_entry_limit = 77
        [[iommu]]
        name = "iommu0"
        [[iommu]]
        name = "iommu1"
        msi-window = "software"
        reserved = [
            { start = 0x1000, end = 0x1fff, type = "direct" },
            { start = 0x2000, end = 0x2fff, type = "direct-relaxable" },
            { start = "0xfffffffffffff000", end = "0xffffffffffffffff", type = "reserved" },
        ]
        [[bridge]]
        name = "conv"
        kind = "pcie-pci-bridge"
        iommu = "iommu1"
        [[device]]
        model = "nvme"
        [[device]]
        model = "edu"
        behind = "conv"
        [[device]]
        model = "edu"
        behind = "conv"
        driver = "uhci_hcd"
        "#,
    )
}

/// An NVMe controller with a PCI Express capability behind an unrelated one,
/// or a conventional device.
fn facts(entry: &FunctionEntry) -> FunctionFacts {
    let mut config = vec![0; if entry.placed.express { 4096 } else { 256 }];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &[0x36, 0x1b, 0x10, 0x00]);
    put(0x08, &[0x02, 0x02, 0x08, 0x01]);
    put(0x2c, &[0xf4, 0x1a, 0x00, 0x11]);
    if entry.placed.express {
        put(0x06, &[0x10, 0x00]);
        put(0x34, &[0x40]);
        put(0x40, &[0x11, 0x60]);
        put(0x60, &[0x10, 0x00, 0x02, 0x00, 0x00, 0x80, 0x00, 0x10]);
        put(0x6c, &[0x43, 0x00]);
        put(0x72, &[0x12, 0x00]);
    }
    let mut resources = [Resource::default(); 7];
    resources[0] = Resource {
        start: 0xfeb0_0000,
        end: 0xfeb0_3fff,
        flags: Resource::MEMORY | Resource::WIDE | 0x4,
    };
    FunctionFacts {
        config,
        resources,
        irq: 11,
        numa_node: -1,
        presence: Presence::Present,
        sr_iov: None,
    }
}

fn tree() -> Tree {
    let settings = Settings {
        node_number: (1, 3),
        cpus: 2,
    };
    Tree::new(&machine(), settings, facts)
}

/// What a program reads at a path, links followed.
fn read(tree: &Tree, path: &str) -> String {
    let resolved = tree
        .resolve(path, true)
        .unwrap_or_else(|| panic!("no {path}"));
    match tree.node(resolved) {
        Some(Node::File { content, .. }) => String::from_utf8(content.clone()).unwrap(),
        other => panic!("{path} is {other:?}"),
    }
}

fn names(tree: &Tree, path: &str) -> Vec<String> {
    let directory = tree
        .resolve(path, true)
        .unwrap_or_else(|| panic!("no {path}"));
    tree.list(directory)
        .map(|(name, _)| name.to_owned())
        .collect()
}

const NVME: &str = "/sys/bus/pci/devices/0000:02:00.0";
const EDU: &str = "/sys/bus/pci/devices/0000:01:01.0";
const HOST_EDU: &str = "/sys/bus/pci/devices/0000:01:02.0";

#[test]
fn every_path_has_its_directory_before_it_and_every_link_leads_into_the_tree() {
    let tree = tree();
    let mut seen = BTreeSet::from([String::new()]);
    for (path, node) in tree.entries() {
        let (above, _) = path.rsplit_once('/').unwrap();
        assert!(seen.contains(above), "{path} comes before {above}");
        if let Node::Link { target } = node {
            assert!(target.starts_with("../"), "{path} -> {target}");
            assert!(tree.resolve(path, true).is_some(), "{path} -> {target}");
        }
        if matches!(node, Node::Directory) {
            seen.insert(path.to_owned());
        }
    }
    assert_eq!(tree.entries().next().map(|(path, _)| path), Some("/sys"));
}

#[test]
fn the_bus_lists_every_function_in_its_place_below_the_bridges() {
    let tree = tree();
    let expected = [
        "0000:00:01.0",
        "0000:00:02.0",
        "0000:01:01.0",
        "0000:01:02.0",
        "0000:02:00.0",
    ];
    assert_eq!(names(&tree, "/sys/bus/pci/devices"), expected);
    let place = format!("{DEVICES}/pci0000:00/0000:00:02.0/0000:02:00.0");
    assert_eq!(tree.resolve(NVME, true), Some(place.as_str()));
    let Some(Node::Link { target }) = tree.node(NVME) else {
        panic!("a link");
    };
    let text = "../../../devices/iogate/pci0000:00/0000:00:02.0/0000:02:00.0";
    assert_eq!(target, text);
}

#[test]
fn identity_is_that_of_the_configuration_space() {
    let tree = tree();
    for (name, content) in [
        ("vendor", "0x1b36\n"),
        ("device", "0x0010\n"),
        ("subsystem_vendor", "0x1af4\n"),
        ("subsystem_device", "0x1100\n"),
        ("class", "0x010802\n"),
        ("revision", "0x02\n"),
        (
            "modalias",
            "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n",
        ),
        (
            "uevent",
            "DRIVER=vfio-pci\nPCI_CLASS=10802\nPCI_ID=1B36:0010\nPCI_SUBSYS_ID=1AF4:1100\n\
             PCI_SLOT_NAME=0000:02:00.0\n\
             MODALIAS=pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n",
        ),
        ("irq", "11\n"),
        ("numa_node", "-1\n"),
        ("local_cpus", "3\n"),
        ("local_cpulist", "0-1\n"),
        ("enable", "0\n"),
        ("driver_override", "vfio-pci\n"),
        ("max_link_speed", "8.0 GT/s PCIe\n"),
        ("max_link_width", "4\n"),
        ("current_link_speed", "5.0 GT/s PCIe\n"),
        ("current_link_width", "1\n"),
        ("reset_method", "flr\n"),
    ] {
        assert_eq!(read(&tree, &format!("{NVME}/{name}")), content, "{name}");
    }
    for name in ["max_link_speed", "reset", "reset_method"] {
        assert_eq!(tree.resolve(&format!("{EDU}/{name}"), true), None, "{name}");
    }
    let own = format!("{NVME}/config");
    let config = tree.node(tree.resolve(&own, true).unwrap());
    assert!(matches!(config, Some(Node::File { content, mode: 0o644 }) if content.len() == 4096));
}

#[test]
fn resources_are_lines_of_start_end_and_flags() {
    let tree = tree();
    let resource = read(&tree, &format!("{NVME}/resource"));
    let lines: Vec<&str> = resource.lines().collect();
    assert_eq!(lines.len(), 13);
    let bar = "0x00000000feb00000 0x00000000feb03fff 0x0000000000100204";
    assert_eq!(lines[0], bar);
    assert!(
        lines[1..]
            .iter()
            .all(|l| *l == ["0x0000000000000000"; 3].join(" "))
    );
    let bridge = read(&tree, "/sys/bus/pci/devices/0000:00:02.0/resource");
    assert_eq!(bridge.lines().count(), 17);
}

#[test]
fn a_bridge_is_of_class_0604_with_its_bus_numbers() {
    let tree = tree();
    let port = "/sys/bus/pci/devices/0000:00:02.0";
    assert_eq!(read(&tree, &format!("{port}/class")), "0x060400\n");
    assert_eq!(read(&tree, &format!("{port}/secondary_bus_number")), "2\n");
    assert_eq!(
        read(&tree, &format!("{port}/subordinate_bus_number")),
        "2\n"
    );
    let driver = tree.resolve(&format!("{port}/driver"), true);
    assert_eq!(driver, Some("/sys/bus/pci/drivers/pcieport"));
    let conventional = "/sys/bus/pci/devices/0000:00:01.0/driver";
    assert_eq!(tree.resolve(conventional, true), None);
}

#[test]
fn a_group_shows_its_functions_its_type_and_its_reserved_regions() {
    let tree = tree();
    let group = tree.resolve(&format!("{EDU}/iommu_group"), true).unwrap();
    assert_eq!(group, "/sys/kernel/iommu_groups/0");
    let expected = ["0000:00:01.0", "0000:01:01.0", "0000:01:02.0"];
    assert_eq!(names(&tree, &format!("{group}/devices")), expected);
    let back = format!("{group}/devices/0000:01:01.0");
    assert_eq!(tree.resolve(&back, true), tree.resolve(EDU, true));
    assert_eq!(read(&tree, &format!("{group}/type")), "DMA\n");
    let regions = "\
0x0000000000001000 0x0000000000001fff direct
0x0000000000002000 0x0000000000002fff direct-relaxable
0x0000000008000000 0x00000000080fffff msi
0xfffffffffffff000 0xffffffffffffffff reserved
";
    assert_eq!(read(&tree, &format!("{group}/reserved_regions")), regions);
    let regions = "0x00000000fee00000 0x00000000feefffff msi\n";
    let nvme = format!("{NVME}/iommu_group/reserved_regions");
    assert_eq!(read(&tree, &nvme), regions);
    assert_eq!(names(&tree, "/sys/class/iommu"), ["iommu0", "iommu1"]);
    let below = names(&tree, &format!("{NVME}/iommu/devices"));
    assert_eq!(below, ["0000:00:02.0", "0000:02:00.0"]);
}

#[test]
fn a_function_bound_to_vfio_pci_has_a_character_device_and_others_have_none() {
    let tree = tree();
    let number = read(&tree, &format!("{NVME}/vfio-dev/vfio1/dev"));
    assert_eq!(number, "1:3\n");
    assert_eq!(names(&tree, &format!("{EDU}/vfio-dev")), ["vfio0"]);
    assert_eq!(tree.resolve(&format!("{HOST_EDU}/vfio-dev"), true), None);
    assert_eq!(names(&tree, "/sys/class/vfio-dev"), ["vfio0", "vfio1"]);
    let device = "/sys/class/vfio-dev/vfio1/device";
    assert_eq!(tree.resolve(device, true), tree.resolve(NVME, true));
    let driver = tree.resolve(&format!("{HOST_EDU}/driver"), true);
    assert_eq!(driver, Some("/sys/bus/pci/drivers/uhci_hcd"));
    assert_eq!(
        read(&tree, &format!("{HOST_EDU}/driver_override")),
        "(null)\n"
    );
    let bound = "/sys/bus/pci/drivers/vfio-pci/0000:02:00.0";
    assert_eq!(tree.resolve(bound, true), tree.resolve(NVME, true));
}

#[test]
fn the_modules_of_vfio_are_loaded_with_the_kernels_parameters() {
    let tree = tree();
    let unsafe_mode = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    assert_eq!(read(&tree, unsafe_mode), "N\n");
    let limit = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    assert_eq!(read(&tree, limit), "77\n");
    let module = tree.resolve("/sys/bus/pci/drivers/vfio-pci/module", true);
    assert_eq!(module, Some("/sys/module/vfio_pci"));
    let modules = [
        "iommufd",
        "vfio",
        "vfio_iommu_type1",
        "vfio_pci",
        "vfio_pci_core",
    ];
    assert_eq!(names(&tree, "/sys/module"), modules);
}

#[test]
fn only_groups_and_functions_of_the_client_have_nodes() {
    let nodes = device_nodes(&machine());
    let paths: Vec<&str> = nodes.iter().map(|node| node.path.as_str()).collect();
    let expected = [
        "/dev/vfio/vfio",
        "/dev/iommu",
        "/dev/vfio/0",
        "/dev/vfio/2",
        "/dev/vfio/devices/vfio0",
        "/dev/vfio/devices/vfio1",
    ];
    assert_eq!(paths, expected);
    let NodeKind::Device { function } = nodes[5].kind else {
        panic!("a device");
    };
    let address = machine().functions()[function].source().to_string();
    assert_eq!(address, "0000:02:00.0");
}

#[test]
fn overlays_are_directories_of_the_tree_and_show_the_hosts_pci_only_if_asked() {
    let tree = tree();
    let paths = |host| -> Vec<String> {
        let overlays = tree.overlays(host);
        for overlay in &overlays {
            assert_eq!(
                tree.node(&overlay.path),
                Some(&Node::Directory),
                "{overlay:?}"
            );
        }
        overlays.into_iter().map(|overlay| overlay.path).collect()
    };
    let hidden = paths(HostPci::Hidden);
    let shown = paths(HostPci::Shown);
    assert!(hidden.iter().all(|path| shown.contains(path)));
    let pci = |path: &&String| path.starts_with("/sys/bus/pci") || path.contains("iommu");
    assert_eq!(hidden.iter().filter(pci).count(), 0);
    assert!(shown.contains(&"/sys/bus/pci/drivers/uhci_hcd".to_owned()));
    for path in ["/sys/bus/pci/devices", "/sys/kernel/iommu_groups"] {
        let overlays = tree.overlays(HostPci::Shown);
        let overlay = overlays.iter().find(|overlay| overlay.path == path);
        assert_eq!(overlay.unwrap().clash, Clash::IsAnError);
    }
    for overlays in [hidden, shown] {
        let above = |path: &String| path.rsplit_once('/').unwrap().0.to_owned();
        for (nth, path) in overlays.iter().enumerate().skip(1) {
            assert!(overlays[..nth].contains(&above(path)), "{path}");
        }
    }
}

#[test]
fn configuration_spaces_that_make_no_sense_are_shown_all_the_same() {
    let odd = |config: Vec<u8>| {
        Tree::new(&machine(), Settings::default(), |_| FunctionFacts {
            config: config.clone(),
            resources: [Resource::default(); 7],
            irq: 0,
            numa_node: 0,
            presence: Presence::Present,
            sr_iov: None,
        })
    };
    let mut endless = vec![0; 256];
    endless[0x06] = 0x10;
    endless[0x34] = 0x40;
    endless[0x41] = 0x40;
    for config in [Vec::new(), vec![0xff; 3], vec![0xff; 256], endless] {
        let tree = odd(config);
        assert!(!read(&tree, &format!("{NVME}/vendor")).is_empty());
    }
}

/// drivers/vfio/mdev/mdev_sysfs.c, mdev_create_sysfs_files; drivers/vfio/
/// group.c, vfio_noiommu_group_alloc.
#[test]
fn a_mediated_device_is_on_a_bus_of_its_own_in_a_group_without_unit() {
    const UUID: &str = "83b8f4f2-509f-4c5e-9a3d-2f1b1c0de001";
    let machine = load(&format!(
        "[[device]]\nmodel = 'nvme'\n[[device]]\nmodel = 'edu'\nmediated = true\nuuid = '{UUID}'"
    ));
    let tree = Tree::new(&machine, Settings::default(), facts);
    let device = format!("/sys/bus/mdev/devices/{UUID}");
    let place = format!("{DEVICES}/mediated/edu/{UUID}");
    assert_eq!(tree.resolve(&device, true), Some(place.as_str()));
    assert_eq!(names(&tree, "/sys/bus/pci/devices").len(), 2);
    let link = |name: &str| tree.resolve(&format!("{device}/{name}"), true);
    assert_eq!(link("subsystem"), Some("/sys/bus/mdev"));
    assert_eq!(link("driver"), Some("/sys/bus/mdev/drivers/vfio-iogate"));
    let group = link("iommu_group").unwrap();
    assert_eq!(group, "/sys/kernel/iommu_groups/2");
    assert_eq!(read(&tree, &format!("{group}/name")), "vfio-noiommu\n");
    assert_eq!(read(&tree, &format!("{group}/type")), "unknown\n");
    assert_eq!(read(&tree, &format!("{group}/reserved_regions")), "");
    assert_eq!(names(&tree, &format!("{group}/devices")), [UUID]);
    let kind = link("mdev_type").unwrap();
    assert_eq!(read(&tree, &format!("{kind}/device_api")), "vfio-pci\n");
    let parent = "/sys/class/mdev_bus/edu/mdev_supported_types/iogate-edu";
    assert_eq!(tree.resolve(parent, true), Some(kind));
    assert_eq!(link(&format!("mdev_type/devices/{UUID}")), Some(&*place));
    assert_eq!(names(&tree, &format!("{device}/vfio-dev")), ["vfio1"]);
    let nodes = device_nodes(&machine);
    let paths: Vec<&str> = nodes.iter().map(|node| node.path.as_str()).collect();
    assert!(paths.contains(&"/dev/vfio/2") && paths.contains(&"/dev/vfio/devices/vfio1"));
    for (path, node) in tree.entries() {
        if let Node::Link { .. } = node {
            assert!(tree.resolve(path, true).is_some(), "{path}");
        }
    }
}

/// drivers/vfio/group.c, vfio_create_group; vfio.h, vfio_device_add.
#[test]
fn a_device_without_iommu_has_a_group_by_another_name_and_no_node_of_its_own() {
    let machine = load("[[device]]\nmodel = 'nvme'\niommu = 'none'\n[[device]]\nmodel = 'edu'");
    let tree = Tree::new(&machine, Settings::default(), facts);
    let unsafe_mode = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    assert_eq!(read(&tree, unsafe_mode), "Y\n");
    let nodes = device_nodes(&machine);
    let paths: Vec<&str> = nodes.iter().map(|node| node.path.as_str()).collect();
    let expected = [
        "/dev/vfio/vfio",
        "/dev/iommu",
        "/dev/vfio/noiommu-1",
        "/dev/vfio/2",
        "/dev/vfio/devices/vfio1",
    ];
    assert_eq!(paths, expected);
    assert_eq!(names(&tree, "/sys/class/vfio"), ["2", "noiommu-1"]);
    let group = "/sys/kernel/iommu_groups/1";
    assert_eq!(names(&tree, &format!("{group}/devices")).len(), 1);
    assert_eq!(read(&tree, &format!("{group}/name")), "vfio-noiommu\n");
    let device = "/sys/bus/pci/devices/0000:01:00.0";
    assert_eq!(
        tree.resolve(&format!("{device}/iommu_group"), true),
        Some(group)
    );
    assert_eq!(tree.resolve(&format!("{device}/iommu"), true), None);
    let port = "/sys/bus/pci/devices/0000:00:01.0/iommu_group";
    assert_eq!(tree.resolve(port, true), None);
    assert_eq!(
        tree.resolve(&format!("{device}/vfio-dev/vfio0/dev"), true),
        None
    );
}

/// A physical function with two virtual ones, of which `present` are there.
fn with_virtual_functions(present: &[Presence; 2]) -> (Machine, Tree) {
    let vfs = iogate_machine::Property {
        name: iogate_machine::VIRTUAL_FUNCTIONS,
        kind: iogate_machine::PropertyKind::Integer,
    };
    let nic = Model {
        name: "nic",
        properties: vec![vfs],
    };
    let text = "version = 1\n[[device]]\nmodel = \"nic\"\nvfs = 2\n";
    let file = Text {
        name: "m.toml",
        bytes: text.as_bytes(),
    };
    let machine = Machine::load(Some(file), &[], &[nic]).unwrap();
    let tree = Tree::new(&machine, Settings::default(), |entry| {
        let mut facts = facts(entry);
        match entry.placed.virtual_of {
            Some(of) => facts.presence = present[usize::from(of.number)],
            None => {
                let registers = [
                    0x0001_0010_u32,
                    0,
                    0,
                    2 << 16 | 2,
                    0,
                    8 << 16 | 0x80,
                    0x1041 << 16,
                ];
                for (at, register) in (0x100..).step_by(4).zip(registers) {
                    facts.config[at..at + 4].copy_from_slice(&register.to_le_bytes());
                }
                let enabled = present.iter().filter(|p| **p != Presence::Absent).count();
                facts.sr_iov = Some(SrIovFacts {
                    enabled: u16::try_from(enabled).unwrap(),
                    autoprobe: true,
                    resources: [Resource::default(); 6],
                });
            }
        }
        facts
    });
    (machine, tree)
}

#[test]
fn a_physical_function_shows_what_its_capability_says() {
    let (machine, tree) = with_virtual_functions(&[Presence::Absent; 2]);
    let (path, _, what) = sr_iov_files(&machine).swap_remove(0);
    assert_eq!(what, SrIovFile::NumVfs);
    let path = path.strip_suffix("/sriov_numvfs").unwrap().to_owned();
    for (name, content) in [
        ("sriov_totalvfs", "2\n"),
        ("sriov_numvfs", "0\n"),
        ("sriov_offset", "128\n"),
        ("sriov_stride", "8\n"),
        ("sriov_vf_device", "1041\n"),
        ("sriov_drivers_autoprobe", "1\n"),
        ("ari_enabled", "1\n"),
    ] {
        let node = tree.node(&format!("{path}/{name}"));
        let Some(Node::File { content: found, .. }) = node else {
            panic!("{name}: {node:?}");
        };
        assert_eq!(String::from_utf8_lossy(found), content, "{name}");
    }
    assert_eq!(tree.resolve(&format!("{path}/virtfn0"), false), None);
    assert_eq!(
        tree.resolve("/sys/bus/pci/devices/0000:01:10.0", true),
        None
    );
    assert_eq!(tree.resolve("/sys/kernel/iommu_groups/2", true), None);
}

#[test]
fn a_virtual_function_is_shown_as_far_as_it_is_there() {
    use Presence::{Absent, Leaving, Present, Unbound};
    let links = [
        "physfn",
        "driver",
        "vfio-dev/vfio1/dev",
        "iommu_group/devices",
    ];
    for (presence, expected, nodes) in [
        (Present, [true, true, true, true], [true, true]),
        (Unbound, [true, false, false, true], [false, false]),
        (Leaving, [false, true, false, true], [true, false]),
        (Absent, [false; 4], [false, false]),
    ] {
        let (_, tree) = with_virtual_functions(&[presence, Absent]);
        let shown = links.map(|name| {
            let path = format!("/sys/bus/pci/devices/0000:01:10.0/{name}");
            tree.resolve(&path, true).is_some()
        });
        assert_eq!(shown, expected, "{presence:?}");
        let shown = ["/dev/vfio/2", "/dev/vfio/devices/vfio1"].map(|at| tree.node(at).is_some());
        assert_eq!(shown, nodes, "{presence:?}");
    }
}

#[test]
fn the_changes_from_one_tree_lead_to_the_other() {
    use Presence::{Absent, Leaving, Present, Unbound};
    let trees = [
        [Absent, Absent],
        [Present, Present],
        [Present, Absent],
        [Unbound, Leaving],
    ]
    .map(|present| with_virtual_functions(&present).1);
    for from in &trees {
        for to in &trees {
            let mut paths: std::collections::BTreeMap<String, Node> = from
                .entries()
                .map(|(path, node)| (path.to_owned(), node.clone()))
                .collect();
            for change in from.changes(to) {
                match change {
                    Change::Remove { path, was } => {
                        let below = format!("{path}/");
                        assert!(!paths.keys().any(|other| other.starts_with(&below)));
                        assert_eq!(paths.remove(path).as_ref(), Some(was));
                    }
                    Change::Make { path, node } => {
                        assert!(path.rsplit_once('/').is_some_and(|(above, _)| {
                            !path.starts_with("/sys") || paths.get(above) == Some(&Node::Directory)
                        }));
                        assert_eq!(paths.insert(path.to_owned(), node.clone()), None);
                    }
                    Change::Rewrite { path, content: new } => match paths.get_mut(path) {
                        Some(Node::File { content, .. }) => *content = new.to_vec(),
                        other => panic!("{path}: {other:?}"),
                    },
                }
            }
            let expected = to
                .entries()
                .map(|(path, node)| (path.to_owned(), node.clone()));
            assert_eq!(paths, expected.collect());
        }
    }
}
