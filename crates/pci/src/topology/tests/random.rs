//! Random topologies: isolation against a naive model by closure, numbers
//! against the invariants of bus ranges.
use super::*;
use std::collections::BTreeSet;

/// SplitMix64: a sequence that is the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A random list that may hold functions which cannot be placed.
fn plan(random: &mut Random) -> Vec<Planned> {
    let kinds = [RootPort, UpstreamPort, DownstreamPort, PcieToPci, PciToPci];
    let count = 1 + random.below(14);
    let mut planned: Vec<Planned> = Vec::new();
    while planned.len() < count {
        let kind = match random.below(8) {
            n @ 0..5 => FunctionKind::Bridge(kinds[n]),
            _ => FunctionKind::Endpoint,
        };
        let parent =
            (random.below(5) > 0 && !planned.is_empty()).then(|| random.below(planned.len()));
        let slot = [0, 0, 1, 2, 3][random.below(5)];
        let bus = if parent.is_none() {
            0
        } else {
            random.below(12) as u8
        };
        let at = RequesterId::new(bus, slot, [0, 0, 1][random.below(3)]);
        let candidate = Planned {
            kind,
            parent,
            segment: 0,
            at: at
                .filter(|_| random.below(4) == 0)
                .map(|id| Source::new(0, id)),
            acs: random.below(2) == 0,
            vfs: 0,
        };
        planned.push(candidate);
        // Most lists should be placed: keep a refused function now and then.
        if Topology::new(&planned).is_err() && random.below(40) > 0 {
            planned.pop();
        }
        if random.below(30) == 0 {
            break;
        }
    }
    planned
}

/// Isolation as a closure: who shares with whom, and whoever shares with them.
fn naive_groups(topology: &Topology) -> BTreeSet<BTreeSet<usize>> {
    let all = topology.functions();
    let keeps_apart = |f: &Placed| match f.kind {
        FunctionKind::Bridge(RootPort | DownstreamPort) => f.acs,
        FunctionKind::Bridge(PcieToPci | PciToPci) => false,
        FunctionKind::Endpoint | FunctionKind::Bridge(UpstreamPort) => {
            f.express && (f.acs || !f.multifunction)
        }
    };
    let shares = |a: usize, b: usize| {
        let (fa, fb) = (&all[a], &all[b]);
        if fa.parent == Some(b) {
            let mut above = Some(b);
            while let Some(port) = above {
                if !keeps_apart(&all[port]) {
                    return true;
                }
                above = all[port].parent;
            }
        }
        let slot = |f: &Placed| f.address.requester.0 / 8;
        a != b && slot(fa) == slot(fb) && !keeps_apart(fa) && !keeps_apart(fb)
    };
    let mut label: Vec<usize> = (0..all.len()).collect();
    for _ in 0..all.len() {
        for a in 0..all.len() {
            for b in 0..all.len() {
                if shares(a, b) {
                    let least = label[a].min(label[b]);
                    label[a] = least;
                    label[b] = least;
                }
            }
        }
    }
    let members = |l: usize| (0..all.len()).filter(|&i| label[i] == l).collect();
    let labels: BTreeSet<usize> = label.iter().copied().collect();
    labels.into_iter().map(members).collect()
}

#[test]
fn isolation_groups_are_those_of_the_naive_model() {
    let mut random = Random(1);
    let mut placed = 0;
    for _ in 0..4000 {
        let planned = plan(&mut random);
        let Ok(topology) = Topology::new(&planned) else {
            continue;
        };
        placed += 1;
        let groups = topology.isolation_groups();
        let as_sets = groups.iter().map(|g| g.iter().copied().collect()).collect();
        assert_eq!(naive_groups(&topology), as_sets, "{planned:#?}");
    }
    assert!(placed > 2000, "only {placed} lists could be placed");
}

#[test]
fn bus_ranges_nest_and_every_function_is_on_its_bridges_secondary_bus() {
    let mut random = Random(2);
    for _ in 0..4000 {
        let planned = plan(&mut random);
        let Ok(topology) = Topology::new(&planned) else {
            continue;
        };
        let all = topology.functions();
        let distinct: BTreeSet<Source> = all.iter().map(|f| f.address).collect();
        assert_eq!(distinct.len(), all.len(), "{planned:#?}");
        let mut secondaries = BTreeSet::new();
        for (function, plan) in all.iter().zip(&planned) {
            assert!(
                plan.at.is_none_or(|at| at == function.address),
                "{planned:#?}"
            );
            let bus = function.address.requester.bus();
            let above = function.parent.map(|p| all[p].buses.unwrap());
            assert_eq!(bus, above.map_or(0, |b| b.secondary));
            let Some(own) = function.buses else { continue };
            assert!(secondaries.insert(own.secondary), "{planned:#?}");
            assert_eq!(own.primary, bus);
            assert!(own.primary < own.secondary && own.secondary <= own.subordinate);
            assert!(above.is_none_or(|b| own.subordinate <= b.subordinate));
            for other in all.iter().filter(|f| f.parent == function.parent) {
                let Some(buses) = other.buses.filter(|b| *b != own) else {
                    continue;
                };
                let apart = buses.subordinate < own.secondary || own.subordinate < buses.secondary;
                assert!(apart, "{planned:#?}");
            }
        }
    }
}
