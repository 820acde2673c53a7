//! Isolation groups as Linux forms them when it meets the functions of a
//! machine in the order of their addresses. Linux drivers/iommu/iommu.c
//! `pci_device_group`, `get_pci_function_alias_group`;
//! drivers/pci/pci.c `pci_acs_path_enabled`.
use super::{Placed, Topology};

pub(super) fn groups(topology: &Topology) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..topology.functions.len()).collect();
    order.sort_by_key(|&index| topology.functions.get(index).map(|f| f.address));
    let mut forming = Forming {
        topology,
        group_of: vec![None; order.len()],
        groups: Vec::new(),
    };
    for &index in &order {
        forming.join(index);
    }
    forming.groups
}

struct Forming<'a> {
    topology: &'a Topology,
    group_of: Vec<Option<usize>>,
    groups: Vec<Vec<usize>>,
}

impl Forming<'_> {
    fn join(&mut self, index: usize) {
        let group = self.existing(index).unwrap_or_else(|| {
            self.groups.push(Vec::new());
            self.groups.len().saturating_sub(1)
        });
        if let Some(members) = self.groups.get_mut(group) {
            members.push(index);
        }
        if let Some(slot) = self.group_of.get_mut(index) {
            *slot = Some(group);
        }
    }

    fn group(&self, index: usize) -> Option<usize> {
        self.group_of.get(index).copied().flatten()
    }

    /// The group that a function has to share. Its aliases come first: who
    /// presents one of its ids has its group. Then every bridge up to where
    /// all ports to the root keep peers apart. Last the functions of its slot
    /// (of the slot where the walk ended).
    fn existing(&self, index: usize) -> Option<usize> {
        let mut at = index;
        for (owner, _) in self.topology.alias_owners(index) {
            at = owner;
            if let Some(group) = self.group(owner) {
                return Some(group);
            }
        }
        while let Some(bridge) = self.function(at)?.parent {
            if self.path_isolates(bridge) {
                break;
            }
            at = bridge;
            if let Some(group) = self.group(bridge) {
                return Some(group);
            }
        }
        self.slot_mates(at)
    }

    fn function(&self, index: usize) -> Option<&Placed> {
        self.topology.functions.get(index)
    }

    /// Whether a bridge and every bridge above it keep peers apart.
    fn path_isolates(&self, bridge: usize) -> bool {
        self.function(bridge).is_some_and(Placed::isolates)
            && self.topology.upstream(bridge).all(|(_, f)| f.isolates())
    }

    /// The group of a function in the same slot, where neither that function
    /// nor this one keeps its peers apart.
    fn slot_mates(&self, index: usize) -> Option<usize> {
        let function = self.function(index)?;
        if function.isolates() {
            return None;
        }
        let slot = |f: &Placed| (f.address.segment, f.address.requester.0 >> 3);
        self.topology
            .functions
            .iter()
            .enumerate()
            .filter(|(_, mate)| slot(mate) == slot(function) && !mate.isolates())
            .find_map(|(mate, _)| self.group(mate))
    }
}
