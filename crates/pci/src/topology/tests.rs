//! The rules of aliases, isolation and numbering, each in a topology small
//! enough to be judged by eye; random topologies against naive models.
use super::BridgeKind::{DownstreamPort, PciToPci, PcieToPci, RootPort, UpstreamPort};
use super::*;

mod random;

fn bridge(kind: BridgeKind, parent: Option<usize>, acs: bool) -> Planned {
    Planned {
        kind: FunctionKind::Bridge(kind),
        parent,
        segment: 0,
        at: None,
        acs,
        vfs: 0,
    }
}

fn endpoint(parent: usize) -> Planned {
    Planned {
        kind: FunctionKind::Endpoint,
        parent: Some(parent),
        segment: 0,
        at: None,
        acs: false,
        vfs: 0,
    }
}

fn at(address: &str, planned: Planned) -> Planned {
    let at: Source = address.parse().unwrap();
    Planned {
        at: Some(at),
        segment: at.segment,
        ..planned
    }
}

fn addresses(topology: &Topology) -> Vec<String> {
    let functions = topology.functions().iter();
    functions.map(|f| f.address.to_string()).collect()
}

fn groups(planned: &[Planned]) -> Vec<Vec<usize>> {
    Topology::new(planned).unwrap().isolation_groups()
}

fn refusal(planned: &[Planned]) -> (usize, Option<usize>, Misplaced) {
    let error = Topology::new(planned).unwrap_err();
    (error.function, error.other, error.reason)
}

#[test]
fn a_root_port_with_acs_and_the_device_behind_it_are_apart() {
    let planned = [bridge(RootPort, None, true), endpoint(0)];
    assert_eq!(groups(&planned), [vec![0], vec![1]]);
}

#[test]
fn everything_below_a_root_port_without_acs_shares_its_group() {
    let planned = [
        bridge(RootPort, None, false),
        bridge(UpstreamPort, Some(0), false),
        bridge(DownstreamPort, Some(1), true),
        endpoint(2),
        bridge(DownstreamPort, Some(1), true),
        endpoint(4),
    ];
    assert_eq!(groups(&planned), [vec![0, 1, 2, 4, 3, 5]]);
}

#[test]
fn a_conventional_bridge_and_all_behind_it_are_one_group() {
    let planned = [
        bridge(RootPort, None, true),
        bridge(PcieToPci, Some(0), false),
        endpoint(1),
        bridge(PciToPci, Some(1), false),
        endpoint(3),
    ];
    assert_eq!(groups(&planned), [vec![0], vec![1, 2, 3, 4]]);
}

#[test]
fn functions_of_one_slot_without_acs_are_one_group() {
    let planned = [bridge(RootPort, None, true), endpoint(0), endpoint(0)];
    assert_eq!(groups(&planned), [vec![0], vec![1, 2]]);
}

#[test]
fn functions_of_one_slot_with_acs_are_apart() {
    let acs = Planned {
        acs: true,
        ..endpoint(0)
    };
    let planned = [bridge(RootPort, None, true), acs, acs];
    assert_eq!(groups(&planned), [vec![0], vec![1], vec![2]]);
    let mixed = [bridge(RootPort, None, true), endpoint(0), acs, endpoint(0)];
    assert_eq!(groups(&mixed), [vec![0], vec![1, 3], vec![2]]);
}

#[test]
fn devices_below_a_downstream_port_without_acs_share_its_group_but_not_the_switch() {
    let planned = [
        bridge(RootPort, None, true),
        bridge(UpstreamPort, Some(0), false),
        bridge(DownstreamPort, Some(1), false),
        endpoint(2),
        endpoint(2),
        bridge(DownstreamPort, Some(1), true),
        endpoint(5),
    ];
    let expected = [vec![0], vec![1], vec![2, 3, 4], vec![5], vec![6]];
    assert_eq!(groups(&planned), expected);
}

#[test]
fn devices_below_root_ports_that_share_a_slot_without_acs_are_one_group() {
    let planned = [
        at("0000:00:1c.0", bridge(RootPort, None, false)),
        at("0000:00:1c.1", bridge(RootPort, None, false)),
        at("0000:00:1d.0", bridge(RootPort, None, false)),
        endpoint(0),
        endpoint(1),
        endpoint(2),
    ];
    assert_eq!(groups(&planned), [vec![0, 1, 3, 4], vec![2, 5]]);
}

#[test]
fn a_function_carries_its_own_id_where_all_bridges_are_express() {
    let planned = [
        bridge(RootPort, None, true),
        bridge(UpstreamPort, Some(0), false),
        bridge(DownstreamPort, Some(1), true),
        endpoint(2),
    ];
    let topology = Topology::new(&planned).unwrap();
    let own = topology.functions()[3].address.requester;
    assert_eq!(topology.aliases(3), [own]);
}

#[test]
fn a_bridge_from_express_presents_device_0_of_its_secondary_bus() {
    let planned = [
        bridge(RootPort, None, true),
        bridge(PcieToPci, Some(0), false),
        endpoint(1),
    ];
    let topology = Topology::new(&planned).unwrap();
    let aliases: Vec<String> = topology
        .aliases(2)
        .iter()
        .map(|id| id.to_string())
        .collect();
    assert_eq!(aliases, ["02:01.0", "02:00.0"]);
    assert_eq!(topology.aliases(1).len(), 1, "the bridge is itself");
}

#[test]
fn a_conventional_bridge_presents_its_own_id() {
    let planned = [
        bridge(PcieToPci, None, false),
        bridge(PciToPci, Some(0), false),
        endpoint(1),
    ];
    let topology = Topology::new(&planned).unwrap();
    let aliases: Vec<String> = topology
        .aliases(2)
        .iter()
        .map(|id| id.to_string())
        .collect();
    assert_eq!(aliases, ["02:01.0", "01:01.0", "01:00.0"]);
}

#[test]
fn buses_are_numbered_depth_first() {
    let planned = [
        bridge(RootPort, None, true),
        bridge(RootPort, None, true),
        endpoint(1),
        bridge(UpstreamPort, Some(0), false),
        bridge(DownstreamPort, Some(3), true),
        bridge(DownstreamPort, Some(3), true),
        endpoint(5),
    ];
    let topology = Topology::new(&planned).unwrap();
    let expected = [
        "0000:00:01.0",
        "0000:00:02.0",
        "0000:05:00.0",
        "0000:01:00.0",
        "0000:02:00.0",
        "0000:02:01.0",
        "0000:04:00.0",
    ];
    assert_eq!(addresses(&topology), expected);
    let buses = |i: usize| topology.functions()[i].buses.unwrap();
    assert_eq!((buses(0).secondary, buses(0).subordinate), (1, 4));
    assert_eq!((buses(3).primary, buses(3).subordinate), (1, 4));
    assert_eq!((buses(1).secondary, buses(1).subordinate), (5, 5));
}

#[test]
fn a_bus_gets_the_number_asked_for_and_free_ones_go_round_it() {
    let planned = [
        bridge(RootPort, None, true),
        bridge(RootPort, None, true),
        bridge(RootPort, None, true),
        at("0000:41:00.0", endpoint(0)),
        at("0000:02:00.0", endpoint(1)),
        endpoint(2),
    ];
    let topology = Topology::new(&planned).unwrap();
    assert_eq!(
        addresses(&topology)[3..],
        ["0000:41:00.0", "0000:02:00.0", "0000:01:00.0"]
    );
}

#[test]
fn a_bus_number_that_is_not_free_is_refused() {
    let planned = [
        bridge(RootPort, None, true),
        bridge(UpstreamPort, Some(0), false),
        bridge(DownstreamPort, Some(1), true),
        at("0000:02:00.0", endpoint(2)),
    ];
    assert_eq!(refusal(&planned), (3, None, Misplaced::BusNotFree(2, 3)));
    let planned = [
        bridge(RootPort, None, true),
        at("0000:07:00.0", endpoint(0)),
        at("0000:08:00.1", endpoint(0)),
    ];
    assert_eq!(refusal(&planned), (2, Some(1), Misplaced::TwoBusNumbers));
}

#[test]
fn two_functions_at_one_address_are_refused() {
    let port = at("0000:00:03.0", bridge(RootPort, None, true));
    let taken = Misplaced::AddressTaken("0000:00:03.0".parse().unwrap());
    assert_eq!(refusal(&[port, port]), (1, Some(0), taken));
}

#[test]
fn a_function_that_no_system_would_find_is_refused() {
    let port = at("0000:00:03.1", bridge(RootPort, None, true));
    assert_eq!(refusal(&[port]), (0, None, Misplaced::NoFunctionZero));
    let planned = [
        bridge(RootPort, None, true),
        at("0000:01:01.0", endpoint(0)),
    ];
    assert_eq!(refusal(&planned), (1, None, Misplaced::NotDeviceZero));
}

#[test]
fn bridges_behind_themselves_are_refused() {
    let planned = [
        bridge(UpstreamPort, Some(1), false),
        bridge(DownstreamPort, Some(0), true),
    ];
    assert_eq!(refusal(&planned).2, Misplaced::Loop);
}

#[test]
fn functions_are_refused_where_such_a_function_cannot_be() {
    let wrong = |planned: &[Planned]| matches!(refusal(planned).2, Misplaced::WrongBus(..));
    let root = bridge(RootPort, None, true);
    assert!(wrong(&[root, bridge(RootPort, Some(0), true)]));
    assert!(wrong(&[root, bridge(DownstreamPort, Some(0), true)]));
    assert!(wrong(&[root, bridge(PciToPci, Some(0), false)]));
    assert!(wrong(&[bridge(UpstreamPort, None, false)]));
    assert!(wrong(&[
        root,
        bridge(UpstreamPort, Some(0), false),
        endpoint(1)
    ]));
    let behind_endpoint = [root, endpoint(0), endpoint(1)];
    assert_eq!(
        refusal(&behind_endpoint),
        (2, Some(1), Misplaced::NotABridge)
    );
    assert_eq!(refusal(&[endpoint(7)]).2, Misplaced::NotABridge);
    let off_root = at("0000:01:00.0", root);
    assert_eq!(refusal(&[off_root]).2, Misplaced::OffRootBus);
    let elsewhere = [root, at("0001:01:00.0", endpoint(0))];
    assert_eq!(refusal(&elsewhere).2, Misplaced::OtherSegment(0));
}

#[test]
fn a_full_bus_and_a_full_segment_are_refused() {
    let ports = vec![bridge(RootPort, None, true); 249];
    assert_eq!(refusal(&ports), (248, None, Misplaced::BusFull));
    let mut planned = vec![
        bridge(RootPort, None, true),
        bridge(UpstreamPort, Some(0), true),
    ];
    planned.extend(vec![bridge(DownstreamPort, Some(1), true); 254]);
    let last = planned.len() - 1;
    assert_eq!(refusal(&planned), (last, None, Misplaced::NoBusLeft(0)));
    planned.pop();
    assert!(Topology::new(&planned).is_ok());
}

#[test]
fn a_bridge_shows_its_buses_its_port_type_and_its_acs() {
    let planned = [
        bridge(RootPort, None, true),
        bridge(PcieToPci, Some(0), true),
    ];
    let topology = Topology::new(&planned).unwrap();
    let port = bridge_config(&topology.functions()[0]);
    assert_eq!(port.len(), 4096);
    assert_eq!(port[0x18..0x1b], [0, 1, 2]);
    assert_eq!(port[0x0b..0x0f], [6, 0, 0, 1], "class 06, header type 1");
    assert_eq!(port[port[0x34] as usize], 0x10, "PCI Express capability");
    assert_eq!(port[0x42] >> 4, 4, "root port");
    assert_eq!(port[0x100], 0x0d, "ACS");
    let conventional = bridge_config(&topology.functions()[1]);
    assert_eq!((conventional[0x42] >> 4, conventional[0x100]), (7, 0));
}

#[test]
fn bridges_can_be_chained_until_the_bus_numbers_end() {
    let chain = |length: usize| -> Vec<Planned> {
        let parent = |n: usize| n.checked_sub(1);
        let bridges = (0..length).map(|n| bridge(PciToPci, parent(n), false));
        bridges.chain([endpoint(length - 1)]).collect()
    };
    let topology = Topology::new(&chain(255)).unwrap();
    assert_eq!(
        topology.functions()[255].address.to_string(),
        "0000:ff:01.0"
    );
    assert_eq!(topology.isolation_groups().len(), 1);
    assert_eq!(refusal(&chain(256)).2, Misplaced::TooDeep);
    assert_eq!(refusal(&chain(100_000)).2, Misplaced::TooDeep);
}

fn with_vfs(vfs: u16, planned: Planned) -> Planned {
    Planned { vfs, ..planned }
}

#[test]
fn virtual_functions_follow_their_device_on_its_bus_and_are_apart_from_it() {
    let planned = [
        bridge(RootPort, None, true),
        with_vfs(2, endpoint(0)),
        bridge(RootPort, None, true),
        endpoint(2),
    ];
    let topology = Topology::new(&planned).unwrap();
    assert_eq!(
        addresses(&topology),
        [
            "0000:00:01.0",
            "0000:01:00.0",
            "0000:00:02.0",
            "0000:02:00.0",
            "0000:01:10.0",
            "0000:01:11.0",
        ]
    );
    let sets = [vec![0], vec![2], vec![1], vec![4], vec![5], vec![3]];
    assert_eq!(topology.isolation_groups(), sets);
    let ari: Vec<bool> = topology.functions().iter().map(|f| f.ari).collect();
    assert_eq!(ari, [true, true, false, false, true, true]);
    let second = topology.functions()[5].virtual_of.unwrap();
    assert_eq!((second.physical, second.number), (1, 1));
}

#[test]
fn virtual_functions_below_a_port_without_acs_share_its_group() {
    let planned = [bridge(RootPort, None, false), with_vfs(2, endpoint(0))];
    assert_eq!(groups(&planned), [vec![0, 1, 2, 3]]);
}

#[test]
fn the_virtual_functions_of_two_devices_in_a_slot_do_not_meet() {
    let planned = [
        bridge(RootPort, None, true),
        with_vfs(MAX_VFS, endpoint(0)),
        with_vfs(MAX_VFS, endpoint(0)),
    ];
    let topology = Topology::new(&planned).unwrap();
    let all: std::collections::BTreeSet<_> = addresses(&topology).into_iter().collect();
    assert_eq!(all.len(), 3 + 2 * usize::from(MAX_VFS));
    assert!(all.contains("0000:01:1f.0") && all.contains("0000:01:1f.1"));
}

#[test]
fn virtual_functions_want_a_link_above_and_are_not_too_many() {
    let conventional = [bridge(PcieToPci, None, false), with_vfs(1, endpoint(0))];
    assert_eq!(refusal(&conventional), (1, None, Misplaced::NoAri));
    let integrated = Planned {
        parent: None,
        ..with_vfs(1, endpoint(0))
    };
    assert_eq!(refusal(&[integrated]), (0, None, Misplaced::NoAri));
    let many = [bridge(RootPort, None, true), with_vfs(17, endpoint(0))];
    assert_eq!(refusal(&many), (1, None, Misplaced::TooManyVirtual(17)));
}
